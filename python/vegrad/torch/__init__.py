"""vegrad under PyTorch's models: drop-ins on its kernels. `import vegrad` never imports torch."""

try:
    import torch  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('vegrad.torch needs PyTorch: pip install "vegrad[torch]"') from error

from vegrad.diagnosis.alarms import FindingError, FindingWarning
from vegrad.torch.clip import (
    clip_grad_norm_,
    clip_grad_value_,
    clip_grads_with_norm_,
    get_total_norm,
)
from vegrad.torch.diagnosis import ModelDiagnosis, diagnose
from vegrad.torch.fused.fuse import fuse
from vegrad.torch.fused.recurrent import FusedGRU, FusedLSTM, FusedRNN
from vegrad.torch.fused.sequential import FusedMLP
from vegrad.torch.lsuv import lsuv_
from vegrad.torch.monitor.history import MonitorHistory, NonFinite
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.optim import SGD, Adam, AdamW, Lion
from vegrad.torch.threads import borrow_threads as _borrow_threads
from vegrad.torch.treatment import ModelCure, cure

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "FindingError",
    "FindingWarning",
    "FusedGRU",
    "FusedLSTM",
    "FusedMLP",
    "FusedRNN",
    "Lion",
    "ModelCure",
    "ModelDiagnosis",
    "Monitor",
    "MonitorHistory",
    "NonFinite",
    "clip_grad_norm_",
    "clip_grad_value_",
    "clip_grads_with_norm_",
    "cure",
    "diagnose",
    "fuse",
    "get_total_norm",
    "lsuv_",
]

_borrow_threads()

"""vegrad finds, explains and cures vanishing and exploding gradients."""

from vegrad import clipping, optim, theory
from vegrad._core import __version__, isa, num_threads, set_num_threads
from vegrad.arrays.measurement import Measurement, Statistics, measure, norm, norms
from vegrad.clipping import (
    Clipped,
    NonFiniteGradientError,
    adaptive_clip_,
    clip_by_block_rms_,
    clip_by_global_norm_,
    clip_by_norm_,
    clip_by_value_,
)
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.lsuv import lsuv_
from vegrad.networks.mlp import MLP
from vegrad.networks.treatment import Cure, cure
from vegrad.optim import SGD, Adam, AdamW, Lion
from vegrad.recordings import diagnose_gradients, diagnose_history
from vegrad.treatment.outcome import Attempt, Proof

__all__ = [
    "MLP",
    "SGD",
    "Adam",
    "AdamW",
    "Attempt",
    "Clipped",
    "Cure",
    "Diagnosis",
    "Finding",
    "Flow",
    "History",
    "Lion",
    "Measurement",
    "NonFiniteGradientError",
    "Proof",
    "Statistics",
    "__version__",
    "adaptive_clip_",
    "clip_by_block_rms_",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
    "clipping",
    "cure",
    "diagnose",
    "diagnose_gradients",
    "diagnose_history",
    "isa",
    "lsuv_",
    "measure",
    "norm",
    "norms",
    "num_threads",
    "optim",
    "set_num_threads",
    "theory",
]

"""vegrad finds, explains and cures vanishing and exploding gradients.

Clipping and optimizers are here at once; the rest is imported when it is first asked for, so that
nobody waits for what he does not use. Type
checkers read `__init__.pyi`.
"""

from importlib import import_module

from vegrad import clipping, optim
from vegrad._core import __version__, isa, num_threads, set_num_threads
from vegrad.arrays.checks import Buffers
from vegrad.clipping import (
    Clipped,
    NonFiniteGradientError,
    adaptive_clip_,
    clip_by_block_rms_,
    clip_by_global_norm_,
    clip_by_norm_,
    clip_by_value_,
)
from vegrad.optim import SGD, Adam, AdamW, Lion

__all__ = [
    "MLP",
    "RNN",
    "SGD",
    "Adam",
    "AdamW",
    "Attempt",
    "Buffers",
    "Clipped",
    "Comparison",
    "Cure",
    "Diagnosis",
    "Finding",
    "FindingError",
    "FindingWarning",
    "Flow",
    "History",
    "Lion",
    "Measurement",
    "NonFiniteGradientError",
    "Proof",
    "RandomTruncation",
    "Run",
    "RunLog",
    "Statistics",
    "TimeFlow",
    "Truncation",
    "__version__",
    "adaptive_clip_",
    "clip_by_block_rms_",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
    "clipping",
    "compare",
    "cure",
    "datasets",
    "diagnose",
    "diagnose_gradients",
    "diagnose_history",
    "diagnose_run",
    "isa",
    "lsuv_",
    "measure",
    "norm",
    "norms",
    "num_threads",
    "optim",
    "read_run",
    "set_num_threads",
    "theory",
    "truncation",
]

_LATER = {
    "Attempt": "vegrad.treatment.outcome",
    "Comparison": "vegrad.runs.comparison",
    "Cure": "vegrad.networks.treatment",
    "Diagnosis": "vegrad.diagnosis.diagnosis",
    "Finding": "vegrad.flow.finding",
    "FindingError": "vegrad.diagnosis.alarms",
    "FindingWarning": "vegrad.diagnosis.alarms",
    "Flow": "vegrad.reports.flow",
    "History": "vegrad.diagnosis.history",
    "MLP": "vegrad.networks.mlp",
    "Measurement": "vegrad.arrays.measurement",
    "RNN": "vegrad.networks.rnn",
    "Proof": "vegrad.treatment.outcome",
    "Run": "vegrad.runs.run",
    "RunLog": "vegrad.runs.log",
    "RandomTruncation": "vegrad.networks.random_truncation",
    "Statistics": "vegrad.arrays.measurement",
    "Truncation": "vegrad.networks.truncation",
    "TimeFlow": "vegrad.networks.time_flow",
    "compare": "vegrad.runs.comparison",
    "cure": "vegrad.networks.treatment",
    "diagnose": "vegrad.networks.diagnosis",
    "diagnose_gradients": "vegrad.recordings",
    "diagnose_history": "vegrad.recordings",
    "diagnose_run": "vegrad.recordings",
    "read_run": "vegrad.runs.read",
    "lsuv_": "vegrad.networks.lsuv",
    "measure": "vegrad.arrays.measurement",
    "norm": "vegrad.arrays.measurement",
    "norms": "vegrad.arrays.measurement",
    "truncation": "vegrad.networks.truncation",
}


def __getattr__(name: str) -> object:
    """Import a public name, or the package of this name, when it is first asked for."""
    if name in _LATER:
        found = getattr(import_module(_LATER[name]), name)
    elif name in ("datasets", "theory"):
        found = import_module(f"vegrad.{name}")
    else:
        raise AttributeError(f"module 'vegrad' has no attribute {name!r}")
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

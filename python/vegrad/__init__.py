"""vegrad finds, explains and cures vanishing and exploding gradients."""

from vegrad._core import __version__, isa, num_threads, set_num_threads
from vegrad.diagnosis import Diagnosis, Finding, diagnose
from vegrad.network import MLP, Flow

__all__ = [
    "MLP",
    "Diagnosis",
    "Finding",
    "Flow",
    "__version__",
    "diagnose",
    "isa",
    "num_threads",
    "set_num_threads",
]

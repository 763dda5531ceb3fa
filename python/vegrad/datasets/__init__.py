"""Data for networks: tables by name or file, sequences from files, and tasks that need memory."""

from vegrad.datasets.dataset import LOSSES, MOST_CLASSES, Dataset
from vegrad.datasets.files import NAMES, load
from vegrad.datasets.sequences import TARGETS, Sequences, load_sequences
from vegrad.datasets.tasks import TASKS, adding, copy, temporal_order

__all__ = [
    "LOSSES",
    "MOST_CLASSES",
    "NAMES",
    "TARGETS",
    "TASKS",
    "Dataset",
    "Sequences",
    "adding",
    "copy",
    "load",
    "load_sequences",
    "temporal_order",
]

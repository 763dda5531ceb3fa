"""Data for networks: tables by name or file, sequences from files, and tasks that need memory."""

from vegrad.datasets.dataset import LOSSES, MOST_CLASSES, Dataset
from vegrad.datasets.files import NAMES, TABLES, load
from vegrad.datasets.preparation import Preparation
from vegrad.datasets.preparing import FILLS
from vegrad.datasets.sequences import TARGETS, Sequences, load_sequences
from vegrad.datasets.tasks import TASKS, adding, copy, temporal_order

__all__ = [
    "FILLS",
    "LOSSES",
    "MOST_CLASSES",
    "NAMES",
    "TABLES",
    "TARGETS",
    "TASKS",
    "Dataset",
    "Preparation",
    "Sequences",
    "adding",
    "copy",
    "load",
    "load_sequences",
    "temporal_order",
]

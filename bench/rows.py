"""The rows of the benchmark of passes: one network shape each."""

from dataclasses import dataclass

from vegrad.benchmark import peers


@dataclass(frozen=True)
class Row(peers.Case):
    """One line of the table."""

    flushed: bool = False  # also time PyTorch with set_flush_denormal(True)
    more: bool = False  # only with --all


ROWS = (
    Row(50, 64, 64),
    Row(50, 64, 256),
    Row(20, 256, 128),
    Row(10, 1024, 256),
    Row(100, 128, 1),
    Row(8, 2048, 512, more=True),
    Row(50, 64, 64, activation="sigmoid", init="linear", flushed=True, more=True),
    Row(100, 64, 256, activation="relu", init="glorot_uniform", more=True),
)

"""The recurrent cells: names and order of their gates."""

from __future__ import annotations

from collections.abc import Mapping

GATES: Mapping[str, tuple[str, ...]] = {
    "tanh": ("",),
    "relu": ("",),
    "lstm": ("input", "forget", "cell", "output"),
    "gru": ("reset", "update", "new"),
}
"""Blocks of H rows of a cell's parameters, in PyTorch's order."""

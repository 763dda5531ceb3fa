"""PyTorch's functions and modules of the activations that vegrad knows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from torch import nn
from torch.nn import Module

from vegrad.activations import ACTIVATIONS


class Row(NamedTuple):
    """An activation of PyTorch, as vegrad calls it."""

    ours: str
    arguments: Mapping[str, object]
    """Arguments that change it, in the function's order, with the values that make it vegrad's."""


_COUNTERPARTS = [(row.name, row.torch) for row in ACTIVATIONS.values() if row.torch is not None]
FUNCTIONS = {torch.short: Row(ours, torch.arguments) for ours, torch in _COUNTERPARTS}
MODULES: dict[type[Module], Row] = {
    getattr(nn, torch.module): FUNCTIONS[torch.short]
    for _, torch in _COUNTERPARTS
    if torch.module is not None
}
# Known as activations, but none of vegrad's.
OTHERS = {
    "celu",
    "hardshrink",
    "hardsigmoid",
    "hardswish",
    "logsigmoid",
    "mish",
    "prelu",
    "relu6",
    "rrelu",
    "softshrink",
    "softsign",
    "tanhshrink",
}

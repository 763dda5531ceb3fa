"""Run a model in float64, where its own dtype has lost gradients, and leave it as it was."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.torch.reading.what_if import borrowed

NARROW = {torch.float16, torch.bfloat16, torch.float32}


def in_float64(model: Module) -> AbstractContextManager[None]:
    """Put values of float64 into all parameters and buffers, and take them out at the end."""
    several = [one for one in (*model.parameters(), *model.buffers()) if one.dtype in NARROW]
    return borrowed(several, torch.float64)


def doubled(value: object) -> object:
    """Return inputs or targets with their floats in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, Mapping):
        return {name: doubled(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(doubled(one) for one in value) if type(value) in (tuple, list) else value
    return value

"""Find out if the rows of a model's data may be taken by themselves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import Array
from vegrad.torch import models

TRIED = 32  # rows
NEAR = 1e-5  # of an output's largest element
Take = Callable[[Array], tuple[Any, Any]]


def are_independent(model: Module, take: Take, count: int) -> tuple[bool, float]:
    """Return True if a row's output depends on no other row, and how many rows were run.

    Some rows are run with others beside them, and with others in their place, in eval mode: the
    same rows in the same places give the same output, to the bit, however far the model magnifies
    rounding. A graph's nodes do not, nor can a part of them be run at all if the model has edges to
    the others. A difference that two equal passes show too (the model draws at random) is none.

    Args:
        model: may be anything that `models.copied` copies; stays as it is.
        take: returns inputs and targets of rows.
        count: of all rows.
    """
    if count < 2:
        return True, 0.0
    some = min(TRIED, count)
    half = (some + 1) // 2
    chosen = np.unique(np.linspace(0, count - 1, some).astype(np.intp))
    others = np.where(np.arange(some) < half, chosen, chosen[0])
    copy = still(models.copied(model))

    def outputs(rows: Array) -> list[Tensor]:
        with models.untouched(copy):
            torch.manual_seed(0)
            found = list(models.tensors_in(models.called(copy, take(rows)[0])))
        return [one.detach()[:half] for one in found if one.ndim and len(one) == len(rows)]

    try:
        outputs(chosen[: half - (half > 1)])
        beside = outputs(chosen)
        instead = outputs(others)
    except (IndexError, RuntimeError, ValueError, AssertionError):
        return False, float(2 * some + half)
    return all(map(_same, beside, instead)), float(2 * some + half)


def _same(one: Tensor, other: Tensor) -> bool:
    if not (one.is_floating_point() or one.is_complex()):
        return torch.equal(one, other)
    size = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()) if one.numel() else 0.0
    return torch.allclose(one, other, rtol=0.0, atol=NEAR * size, equal_nan=True)


def still(model: Module) -> Module:
    """Put a copy into eval mode, with statistics of its own where a normalization has none."""
    for module in model.eval().modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            weight = next(model.parameters())
            if module.running_mean is None:
                shape = {"device": weight.device, "dtype": weight.dtype}
                module.running_mean = torch.zeros(module.num_features, **shape)
                module.running_var = torch.ones(module.num_features, **shape)
            module.track_running_stats = True
    return model

"""Run a model in float64, where its own dtype has lost gradients, and leave it as it was."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, isfinite, isnan

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.flow.data import Stored
from vegrad.flow.reading import Reading
from vegrad.torch import models
from vegrad.torch.reading.gradients import gradients
from vegrad.torch.reading.passes import Task, checked

NARROW = {torch.float16, torch.bfloat16, torch.float32}


def in_float64(model: Module) -> Module:
    """Return a copy of a model in float64.

    Its own parameters keep their dtype: they would get another place in autograd's graph, and what
    waits for their gradients there, as DistributedDataParallel does, would wait for ever.
    """
    return models.copied(model).double()


def doubled(value: object) -> object:
    """Return inputs or targets with their floats in float64."""
    if isinstance(value, Tensor):
        return value.double() if value.dtype in NARROW else value
    if isinstance(value, Mapping):
        return {name: doubled(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return type(value)(doubled(one) for one in value) if type(value) in (tuple, list) else value
    return value


def may_be_lost(found: Reading) -> bool:
    """Return True if the dtype may have none, or next to none, of the gradients."""
    if not found.operations or not isfinite(found.loss or 0.0):
        return False
    sizes = {one.gradient_log2 for one in found.parameters.values() if one.trained}
    return found.dtype == "float16" or {one for one in sizes if not isnan(one)} == {-inf}


def stored(task: Task) -> Stored | None:
    """Count what the dtype has of the gradients' elements; None if float64 cannot be run."""
    wanted = [one for one in task.model.parameters() if one.requires_grad]
    try:
        own = _gradients(task, wanted)
        copy = in_float64(task.model)
        double = Task(copy, task.loss_fn, doubled(task.x), doubled(task.target))
        true = _gradients(double, [one for one in copy.parameters() if one.requires_grad])
    except Exception:  # a model may do anything, and is not always to be copied
        return None
    elements = lost = 0
    for one, exact in zip(own, true, strict=True):
        if one is not None and exact is not None and one.layout is torch.strided:
            there = exact != 0
            elements += int(there.sum())
            lost += int((there & (one == 0)).sum())
    return Stored(elements, lost)


def _gradients(task: Task, wanted: list[Tensor]) -> list[Tensor | None]:
    loss = checked(task.loss_fn(models.called(task.model, task.x), task.target))
    return gradients(loss, wanted)

"""Kinds of losses, told by what they make of other outputs and targets."""

from __future__ import annotations

from math import isclose
from typing import Any

import torch
from torch import Tensor

from vegrad.torch import models
from vegrad.torch.answers import Answers
from vegrad.torch.reading.losses import Loss
from vegrad.torch.subject import ModelSubject


def is_fitted(output: Any, target: Any) -> bool:
    """Return True if outputs look as if they shall become targets, a number or a class each."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    return not target.is_floating_point() or output.numel() == target.numel()


def is_looked_at(given: ModelSubject, first: Answers, target: Any) -> bool:
    """Return True if the loss depends on which target belongs to which row."""
    if len(given.data) == 1:
        return bool(first.calls)
    moved = target.roll(1, 0)
    if torch.equal(moved, target):  # all are the same: another value then
        moved = target + 1 if target.is_floating_point() else (target == 0).to(target)
    outputs = [first.output]
    if target.is_floating_point():  # outputs may be lost beside large targets
        outputs.append(target.reshape(first.output.shape))
    try:
        with models.untouched(given.model, given.loss_fn):
            pairs = [[given.loss_fn(one, other) for other in (target, moved)] for one in outputs]
    except (ValueError, RuntimeError, IndexError):  # it has looked: it does not take that one
        return True
    return any(bool(torch.as_tensor(one != other).any()) for one, other in pairs)


def is_sum(loss_fn: Loss, first: Answers, target: Any) -> bool:
    """Return True if a loss of the same rows twice is twice as large."""
    if not isinstance(first.output, Tensor) or not isinstance(target, Tensor):
        return False
    both = (torch.cat([one.detach(), one.detach()]) for one in (first.output, target))
    try:
        twice = float(torch.as_tensor(loss_fn(*both)).detach())
    except (ValueError, RuntimeError, IndexError):
        return False
    return first.value > 0 and isclose(twice, 2.0 * first.value, rel_tol=1e-3)


def is_of_differences(loss_fn: Loss, output: object, target: object) -> bool:
    """Return True if a loss of numbers stays the same where both have another zero."""
    if not isinstance(output, Tensor) or not isinstance(target, Tensor):
        return False
    if not target.is_floating_point() or not target.ndim:
        return False
    given, wanted = output.detach(), target.detach()
    squares = [one.double().square().mean() for one in (given, wanted)]
    size = float(torch.stack(squares).max().sqrt())
    try:
        first, other = (float(loss_fn(given + by, wanted + by)) for by in (0.0, size))
    except (ValueError, RuntimeError):
        return False
    return isclose(first, other, rel_tol=1e-2)

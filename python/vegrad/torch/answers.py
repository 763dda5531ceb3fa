"""The answers of a model as its loss sees them: outputs beside labels, shifted, flat or ignored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import isclose, nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.torch import models
from vegrad.torch.reading.losses import Call, Heard, Loss
from vegrad.treatment.goal import Goal, goal_for


class Lenient(Module):
    """A loss that is NaN where another raises because the model's output is not finite.

    PyTorch's BCELoss is one that raises then. Here the trouble can be measured like any other: the
    gradients are NaN too. Whatever else is raised, is raised.
    """

    def __init__(self, loss_fn: Loss) -> None:
        super().__init__()
        self.loss_fn = loss_fn

    def forward(self, output: object, target: object) -> object:
        """Return the loss, of whatever the model returned and whatever the loss takes."""
        try:
            return self.loss_fn(output, target)
        except (ValueError, RuntimeError):
            broken = [one for one in models.tensors_in(output) if not bool(one.isfinite().all())]
            if not broken:
                raise
            return torch.stack([one.sum() * nan for one in broken]).sum()


class InUnits(Module):
    """The loss in the target's own units, of outputs and targets that were scaled."""

    def __init__(self, loss_fn: Loss, shift: Tensor, scale: Tensor) -> None:
        super().__init__()
        self.loss_fn, self.shift, self.scale = loss_fn, shift, scale

    def forward(self, output: Tensor, target: Tensor) -> object:
        """Return the loss of output · scale + shift beside the target likewise."""
        back = (one * self.scale + self.shift.view_as(one[:1]) for one in (output, target))
        return self.loss_fn(*back)


@dataclass(frozen=True)
class Answers:
    """Output and loss of a batch, and what the loss compared."""

    output: Any
    loss: Any
    """Whatever the loss returned: a tensor of one element, if it is one."""
    calls: Sequence[Call] = field(default_factory=tuple)
    """Calls within the loss; within the model, if it is the model that works out the loss."""

    @property
    def kind(self) -> str:
        """The kind of the first loss that was called; "" if none was."""
        return self.calls[0].kind if self.calls else ""

    @property
    def accuracy(self) -> float:
        """The share of labels that are right; nan if these are no classes."""
        found = [one.right for one in self.calls if one.kind == self.kind]
        if not found or any(one is None for one in found):
            return nan
        right = torch.cat([one for one in found if one is not None])
        return float(right.double().mean()) if right.numel() else nan

    @property
    def value(self) -> float:
        """The loss as a number."""
        return float(self.loss.detach()) if isinstance(self.loss, Tensor) else float(self.loss)


def answers(model: Module, loss_fn: Loss, x: Any, target: Any) -> Answers:
    """Run a model and its loss, with gradients, which some models ask for inside."""
    with torch.enable_grad():
        with Heard() as inside:
            output = models.called(model, x)
        with Heard() as said:
            loss = loss_fn(output, target)
    return Answers(output, loss, tuple(said.calls or inside.calls))


def goal_of(first: Answers, taken: Any, target: Any, wanted: float | None) -> Goal:
    """Return the goal as `vegrad.cure` has it; where it cannot be told, half of the first loss.

    Args:
        first: answers to some rows.
        taken: the targets of these rows.
        target: those of all rows.
        wanted: what the user wants, if it was given.
    """
    loss = first.value
    unknown = Goal("mse", loss - abs(loss) / 2 if wanted is None else wanted, loss)
    if not first.calls:
        return unknown
    call = first.calls[0]
    values, kind = _all_of(call, taken, target), call.kind
    if values is None:
        values = call.labels
        close = isclose(loss, _mean_square(call), rel_tol=1e-3)
        if kind == "mse" and not (close and bool((values != values.flatten()[:1]).any())):
            return unknown
    values = values.cpu()
    if not values.numel() or (kind == "mse" and not values.is_floating_point()):
        return unknown
    if kind == "cross_entropy" and values.is_floating_point():
        return _soft(values.double(), wanted)
    if kind != "mse" and first.accuracy != first.accuracy:
        return unknown
    if kind == "cross_entropy":
        return goal_for(kind, values.numpy(), wanted)
    return goal_for(kind, values.double().numpy(), wanted)


def _all_of(call: Call, taken: Any, target: Any) -> Tensor | None:
    """Return the targets of all rows, if the loss has compared those of some as they are."""
    if not isinstance(taken, Tensor) or not isinstance(target, Tensor):
        return None
    if taken.is_floating_point() != call.target.is_floating_point():
        return None
    same = taken.numel() == call.target.numel()
    if not same or not torch.equal(taken.flatten(), call.target.detach().flatten().to(taken)):
        return None
    if target.is_floating_point():
        return target.detach()
    return Call(call.kind, call.output, target, call.level, call.ignored).labels


def _mean_square(call: Call) -> float:
    if call.output.shape != call.target.shape:
        return nan
    return float((call.output.detach() - call.target.detach()).abs().square().mean())


def _soft(shares: Tensor, wanted: float | None) -> Goal:
    """Return half of the way from the best constant output to the classes' shares themselves."""
    axis = min(1, shares.ndim - 1)
    every = shares.movedim(axis, -1).flatten(0, -2)
    guess = float(torch.special.entr(every.mean(0)).sum())
    least = float(torch.special.entr(every).sum(-1).mean())
    return Goal("mse", (guess + least) / 2 if wanted is None else wanted, guess)

"""Short trainings of copies of a model, with the gauge of their steps."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from math import hypot, inf, isfinite, isnan, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vegrad.arrays.checks import Array
from vegrad.diagnosis.gauge import parabola
from vegrad.torch import models
from vegrad.torch.clip import clip_grad_norm_
from vegrad.torch.norms import norms_of
from vegrad.torch.reading import passes
from vegrad.treatment import trial
from vegrad.treatment.trial import LOOKS, Goal, goal_for

EARLY = (1, 3)  # steps that are gauged too: the first may be the only one that is not too long


class Data:
    """Inputs and targets by rows; where they have none, all is one."""

    def __init__(self, x: Any, target: Any) -> None:
        self.x, self.target = x, target
        self._take = passes.rows_of(x, target)

    def __len__(self) -> int:
        return 1 if self._take is None else len(self.target)

    @property
    def by_rows(self) -> bool:
        """Whether rows can be drawn."""
        return self._take is not None

    def take(self, rows: Any) -> tuple[Any, Any]:
        """Inputs and targets of these rows."""
        return (self.x, self.target) if self._take is None else self._take(rows)


@dataclass
class Trial(trial.Trial):
    """As `vegrad.trial.Trial`, of a model; `x` are `Data` with the target, `treatment` a Change."""

    loss_fn: Any = None

    def __post_init__(self) -> None:
        """Nothing is trained yet; the model as it begins is looked at."""
        change: Any = self.treatment
        self.model: Any = copy.deepcopy(change.network)
        self.optimizer: Any = change.optimizer(
            [one for one in self.model.parameters() if one.requires_grad]
        )
        for group in self.optimizer.param_groups if change.rate is not None else []:
            group["lr"] = change.rate
        self.clip = change.clip
        self._random = np.random.default_rng(self.seed)
        self._rest = np.empty(0, np.intp)
        self.size = min(self.batch_size, len(self.x))
        self.block_steps = max(1, self.steps // LOOKS)
        self.look()

    def look(self) -> None:
        """Loss and accuracy on the rows to look at, in the model's own mode."""
        if self.points and self.points[-1][0] == self.history.steps:
            self.points.pop()
        self.passed += trial.FORWARD * len(self.rows)
        x, target = self._rows(self.rows)
        with models.untouched(self.model), torch.no_grad():
            output = models.called(self.model, x)
            loss = float(self.loss_fn(output, target))
            figure = accuracy(output, target) if self.goal.kind != "mse" else nan
        self.points.append((self.history.steps, loss, figure))

    def forget(self) -> None:
        """Lets go of the model and the optimizer's states; it cannot be trained any further."""
        self.model = self.optimizer = None

    def _rows(self, rows: Array) -> tuple[Any, Any]:
        x, target = self.x.take(rows)
        return self.treatment.prepared(x), target

    def _advance(self, steps: int) -> None:
        order = self._order(steps).reshape(steps, self.size)
        first, columns = self.history.steps, []
        with torch.random.fork_rng(devices=models.gpus(self.model)), torch.enable_grad():
            torch.manual_seed(self.seed + first)  # the same with and without a cure
            for number, rows in enumerate(order, first):
                gauged = number % (2 * self.block_steps) == 0 or number in EARLY
                columns.append(self._step(rows, gauged))
                if not isfinite(columns[-1][1]):
                    self.ended = f"the gradient's norm is {columns[-1][1]} at step {number}"
                    break
        table = np.array(columns)
        self.history.add_steps(table.T)
        sizes = self._sizes()
        self.history.add_epoch(
            epoch_steps=len(table), epoch_loss=float(np.mean(table[:, 0])),
            clipped_share=float(np.mean(table[:, 2] < 1)), validation_loss=nan,
            validation_accuracy=nan, gradient_log2=sizes, update_log2=[nan] * len(sizes),
        )  # fmt: skip

    def _step(self, rows: Array, gauged: bool) -> list[float]:
        """A step; its row of a history's columns."""
        x, target = self._rows(rows)
        self.optimizer.zero_grad()
        loss = self.loss_fn(models.called(self.model, x), target)
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        # Not backward(), which would add to the gradients of what else the loss is made with.
        for param, grad in zip(wanted, torch.autograd.grad(loss, wanted, allow_unused=True),
                               strict=True):  # fmt: skip
            param.grad = grad
        params = [p for p in wanted if p.grad is not None]
        norm = self._clipped_norm(params)
        clipped = 1.0 if self.clip is None or not norm > self.clip else self.clip / norm
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = [float(loss.detach()), norm, clipped, rate, *[nan] * 5]
        if not isfinite(norm):
            return row
        if gauged:
            before = [(p.detach().clone(), p.grad.detach().clone() / clipped) for p in params]
        self.optimizer.step()
        if gauged:
            row[4:] = self._gauge(row[0], params, before, x, target)
        return row

    def _clipped_norm(self, params: list[Any]) -> float:
        """The gradients' joint norm, which is clipped after."""
        if self.clip is None:  # sparse ones too
            return hypot(*norms_of([p.grad for p in params]).tolist())
        return float(clip_grad_norm_(params, self.clip))

    def _gauge(
        self, loss: float, params: list[Any], before: list[Any], x: Any, target: Any
    ) -> list[float]:
        """alpha, step_length, loss_after, slope, slope_after."""
        with models.untouched(self.model):
            after = self.loss_fn(models.called(self.model, x), target)
            grads = torch.autograd.grad(after, params, allow_unused=True)
        moved = [_real(p.detach()) - _real(old) for p, (old, _) in zip(params, before, strict=True)]
        length = float(torch.stack([m.square().sum() for m in moved]).sum().sqrt())
        slope = sum(float((m * _real(g)).sum()) for m, (_, g) in zip(moved, before, strict=True))
        ends = [float((m * _real(g)).sum()) for m, g in zip(moved, grads, strict=True)
                if g is not None]  # fmt: skip
        record = np.array([[loss, 0, 0, 0, float(after.detach()), slope, sum(ends), length]])
        with np.errstate(all="ignore"):
            b, c = parabola(record)
            alpha = float((-(b + 2 * c) / b)[0])
            along, beyond = np.array([slope, sum(ends)]) / np.float64(length)
        alpha = alpha if isfinite(float(record[0, 4])) else inf
        return [alpha, length, float(record[0, 4]), float(along), float(beyond)]

    def _sizes(self) -> list[float]:
        """log2 of the last gradients' norms, of weights."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None and p.ndim > 1]
        return [max(models.size_log2(grad), -1e4) for grad in grads]


def _real(values: Tensor) -> Tensor:
    """In float64, complex ones as pairs."""
    return (torch.view_as_real(values) if values.is_complex() else values).double()


def accuracy(output: Any, target: Any) -> float:
    """Share of labels that are right; nan where outputs and targets are no classes'.

    Classes are the second axis, as PyTorch's losses have it, or the last; labels below 0 (an
    ignore_index) do not count. For targets of 0 and 1, outputs are probabilities or logits.
    """
    if not isinstance(output, Tensor) or not isinstance(target, Tensor) or output.ndim < 1:
        return nan
    if target.is_floating_point():
        if output.shape != target.shape:
            return nan
        # Logits that all lie there by chance are those of a network that has learnt nothing.
        level = 0.5 if bool(((output >= 0) & (output <= 1)).all()) else 0.0
        return float(((output > level) == (target > 0.5)).double().mean())
    shape = output.shape
    axis = 1 if shape[:1] + shape[2:] == target.shape else -1
    if output.ndim != target.ndim + 1 or (axis == -1 and shape[:-1] != target.shape):
        return nan
    meant = target >= 0
    return float((output.argmax(axis) == target)[meant].double().mean())


def goal_of(kind: str, target: Any, loss: float, right: float, wanted: float | None) -> Goal:
    """As of `vegrad.cure`; where loss and targets are not known, half of the loss given, the first.

    `right` is the first accuracy, nan where it cannot be told.
    """
    known = ""
    if isinstance(target, Tensor) and target.numel():
        known = "cross_entropy" if not target.is_floating_point() else kind
    if kind != known or kind not in ("mse", "cross_entropy", "binary_cross_entropy"):
        return Goal("mse", loss / 2 if wanted is None else wanted, loss)
    if kind != "mse" and isnan(right):
        return Goal("mse", loss / 2 if wanted is None else wanted, loss)
    values = target.detach().cpu()
    if kind == "cross_entropy" and target.is_floating_point():
        return _soft(values.double(), wanted)
    values = values[values >= 0] if kind == "cross_entropy" else values.double()
    return goal_for(kind, values.numpy(), wanted)


def _soft(shares: Tensor, wanted: float | None) -> Goal:
    """Half of the way from the best constant output to outputs that are the classes' shares."""
    axis = min(1, shares.ndim - 1)
    every = shares.movedim(axis, -1).flatten(0, -2)
    guess = float(torch.special.entr(every.mean(0)).sum())
    least = float(torch.special.entr(every).sum(-1).mean())
    return Goal("mse", (guess + least) / 2 if wanted is None else wanted, guess)

"""Short trainings of copies of a model, with the gauge of their steps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import hypot, inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.nn.modules.dropout import _DropoutNd as Dropout

from vegrad.arrays.checks import Array
from vegrad.diagnosis.history import History
from vegrad.diagnosis.parabola import parabola
from vegrad.flow.subject import Refusal
from vegrad.torch import models
from vegrad.torch.answers import InUnits, answers
from vegrad.torch.clip import clip_grad_norm_
from vegrad.torch.gradient_norms import norms_of
from vegrad.torch.reading import passes
from vegrad.torch.reading.losses import Loss

EARLY = (1, 3)  # steps that are gauged too: the first may be the only one that is not too long


class ModelData:
    """Inputs and targets by rows; where these cannot be told apart, all is one.

    Args:
        x: a tensor, or a tuple or mapping of several.
        target: whatever the loss takes.
        fitted: True if outputs look as if they shall become the targets, a number or class each.
        rows: False if rows must not be taken by themselves.
    """

    numeric = False
    """True if targets are numbers whose unit is free: the loss sees how far outputs are off."""
    summed = False
    """True if the loss is a sum over rows, which is then told by row."""
    units: tuple[Tensor, Tensor] | None = None
    """The shift and scale that targets were put through: (target - shift)/scale."""

    def __init__(self, x: Any, target: Any, *, fitted: bool = False, rows: bool = True) -> None:
        self.x, self.target, self.fitted, self.rows = x, target, fitted, rows
        self._take = passes.rows_of(x, target)

    def __len__(self) -> int:
        return 1 if self._take is None or not self.rows else len(self.target)

    def take(self, rows: Array) -> tuple[Any, Any]:
        """Return the inputs and targets of these rows."""
        if self._take is None or not self.rows:
            return self.x, self.target
        return self._take(rows)

    def with_x(self, x: Any) -> ModelData:
        """Return the same data with other inputs, of the same shapes."""
        return self._with(x, self.target)

    def with_units(self, target: Tensor, shift: Tensor, scale: Tensor) -> ModelData:
        """Return the same data with targets in other units."""
        other = self._with(self.x, target)
        other.units = (shift, scale)
        return other

    def _with(self, x: Any, target: Any) -> ModelData:
        other = ModelData(x, target, fitted=self.fitted, rows=self.rows)
        other.numeric, other.units, other.summed = self.numeric, self.units, self.summed
        return other

    @property
    def key(self) -> Any:
        """The place of the largest rows of numbers among several inputs; None of a single one."""
        if isinstance(self.x, Tensor):
            return None
        several = dict(enumerate(self.x)) if isinstance(self.x, tuple | list) else self.x
        known = several.items() if isinstance(several, Mapping) else ()
        sizes = {key: one.numel() for key, one in known if _is_table(one)}
        return max(sizes, key=lambda key: sizes[key], default=None)

    @property
    def numbers(self) -> tuple[Tensor, tuple[int, ...]] | None:
        """The input that is rows of numbers, and the axes over which a column, or channel, goes.

        None if there is none.
        """
        key = self.key
        table = self.x if key is None else self.x[key]
        if self._take is None or not _is_table(table):
            return None
        return table, (0, *range(2, table.ndim))

    def spread(self) -> tuple[float, float] | Refusal:
        """Return the medians of the columns' standard deviations and of |mean| over that."""
        found = self.numbers
        if found is None:
            return Refusal("the inputs are not rows of numbers")
        rows, axes = found[0].detach().double(), found[1]
        mean, std = rows.mean(axes), rows.std(axes, correction=0)
        varies = rows.amax(axes) > rows.amin(axes)
        if not bool(varies.any()):
            return Refusal("the columns of x are constant: there is nothing to scale")
        return float(std[varies].median()), float((mean.abs() / std)[varies].median())

    def target_spread(self) -> tuple[float, float] | Refusal:
        """Return the standard deviation of the targets, each column by itself, and |mean| over it.

        The mean is the largest of the columns'.
        """
        if not self.numeric:
            return Refusal("")  # of labels there is nothing to say
        values = self.target.detach().double()
        mean = values.mean(0)
        size = float((values - mean).square().mean().sqrt())
        if not size:
            return Refusal("the targets are constant: there is nothing to scale")
        return size, float(mean.abs().max()) / size

    def table(self, kind: str) -> tuple[Array, Array] | None:
        """Return x (N, I) and the targets, if they are rows of numbers and labels or numbers."""
        if self.numbers is None or not isinstance(self.x, Tensor):
            return None
        if not self.fitted or self.target.ndim > 2:
            return None
        target = self.target.detach().cpu()
        if kind == "cross_entropy" and (target.ndim != 1 or bool((target < 0).any())):
            return None
        if kind == "mse" and not target.is_floating_point():
            return None
        return self.x.detach().cpu().flatten(1).double().numpy(), target.numpy()


def _is_table(x: object) -> bool:
    return isinstance(x, Tensor) and x.ndim > 1 and x.is_floating_point()


@dataclass
class ModelTrainer:
    """A model in training; the model and the optimizer must be its own."""

    model: Module
    loss_fn: Loss
    optimizer: torch.optim.Optimizer
    clip: float | None
    """The limit of the gradients' joint norm."""
    data: ModelData
    history: History
    gauge_every: int
    seed: int

    def advance(self, order: Array) -> str:
        """Take a step on each batch of rows; return why it cannot go on, "" if it can."""
        first, columns, why = self.history.steps, list[list[float]](), ""
        with torch.random.fork_rng(devices=models.gpus(self.model)), torch.enable_grad():
            torch.manual_seed(self.seed + first)  # the same with and without a cure
            for number, rows in enumerate(order, first):
                gauged = number % self.gauge_every == 0 or number in EARLY
                try:
                    columns.append(self._step(rows, gauged=gauged))
                except Exception as error:  # of the user's code, for what a change has made of it
                    rate = float(self.optimizer.param_groups[0]["lr"])
                    columns.append([nan, nan, 1.0, rate, *[nan] * 5])
                    why = f"step {number} raises {type(error).__name__}: {error}"
                    break
                if not isfinite(columns[-1][1]):
                    why = f"the gradient's norm is {columns[-1][1]} at step {number}"
                    break
        table = np.array(columns)
        self.history.add_steps(table.T)
        sizes = self._sizes()
        self.history.add_epoch(
            epoch_steps=len(table),
            epoch_loss=float(np.mean(table[:, 0])),
            clipped_share=float(np.mean(table[:, 2] < 1)),
            validation_loss=nan,
            validation_accuracy=nan,
            gradient_log2=sizes,
            update_log2=[nan] * len(sizes),
        )
        return why

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Return loss and accuracy (nan if there is none) on rows, in the target's own units.

        The model is in its own mode, but without dropout. Both are nan if something raises.
        """
        drops = [one for one in self.model.modules() if isinstance(one, Dropout) and one.training]
        try:
            with models.untouched(self.model, self.loss_fn):
                torch.manual_seed(self.seed)
                for one in drops:
                    one.training = False
                found = answers(self.model, self._in_units, *self.data.take(rows))
                return found.value / self._shared_by(rows), found.accuracy
        except Exception:  # of the user's code, for what a change has made of it
            return nan, nan
        finally:
            for one in drops:
                one.training = True

    def _shared_by(self, rows: Array) -> int:
        """Return the number of rows that share in a loss: 1 if it is a mean."""
        return len(rows) if self.data.summed else 1

    @property
    def _in_units(self) -> Loss:
        units = self.data.units
        return self.loss_fn if units is None else InUnits(self.loss_fn, *units)

    def _step(self, rows: Array, *, gauged: bool) -> list[float]:
        """Take a step; return its row of a history's columns."""
        x, target = self.data.take(rows)
        random = _random_states(self.model) if gauged else []
        self.optimizer.zero_grad()
        output = models.called(self.model, x)
        loss = self.loss_fn(output, target)
        unit = 1.0 / self._shared_by(rows)
        if self.data.units is not None and float(loss):
            with torch.no_grad():
                unit *= float(self._in_units(output, target)) / float(loss)
        wanted = [p for p in self.model.parameters() if p.requires_grad]
        # Not backward(), which would add to the gradients of what else the loss is made with.
        grads = torch.autograd.grad(loss, wanted, allow_unused=True)
        for param, grad in zip(wanted, grads, strict=True):
            param.grad = grad
        params = [p for p in wanted if p.grad is not None]
        norm = self._clipped_norm(params)
        clipped = 1.0 if self.clip is None or not norm > self.clip else self.clip / norm
        rate = float(self.optimizer.param_groups[0]["lr"])
        row = [float(loss.detach()) * unit, norm, clipped, rate, *[nan] * 5]
        if not isfinite(norm):
            return row
        before = [
            (p.detach().clone(), p.grad.detach().clone() / clipped)
            for p in (params if gauged else [])
            if p.grad is not None
        ]
        self.optimizer.step()
        if gauged:
            row[4:] = self._gauge(float(loss.detach()), params, before, x, target, random)
            row[6:] = [figure * unit for figure in row[6:]]
        return row

    def _clipped_norm(self, params: Sequence[Tensor]) -> float:
        """Return the gradients' joint norm before the clip, and clip them."""
        if self.clip is None:  # sparse ones too
            return hypot(*norms_of([p.grad for p in params]).tolist())
        return float(clip_grad_norm_(params, self.clip))

    def _gauge(
        self,
        loss: float,
        params: Sequence[Tensor],
        before: Sequence[tuple[Tensor, Tensor]],
        x: Any,
        target: Any,
        random: Sequence[tuple[torch.device, Tensor]],
    ) -> list[float]:
        """Return alpha, step_length, loss_after, slope and slope_after.

        What is drawn at random, as dropout is, is drawn as before the step.
        """
        with models.untouched(self.model):
            _set_random_states(random)
            after = self.loss_fn(models.called(self.model, x), target)
            grads = torch.autograd.grad(after, params, allow_unused=True)
        moved = [_real(p.detach()) - _real(old) for p, (old, _) in zip(params, before, strict=True)]
        length = float(torch.stack([m.square().sum() for m in moved]).sum().sqrt())
        slope = sum(float((m * _real(g)).sum()) for m, (_, g) in zip(moved, before, strict=True))
        pairs = zip(moved, grads, strict=True)
        ends = sum(float((m * _real(g)).sum()) for m, g in pairs if g is not None)
        record = np.array([[loss, 0, 0, 0, float(after.detach()), slope, ends, length]])
        with np.errstate(all="ignore"):
            b, c = parabola(record)
            alpha = float((-(b + 2 * c) / b)[0])
            along, beyond = np.array([slope, ends]) / np.float64(length)
        alpha = alpha if isfinite(float(record[0, 4])) else inf
        return [alpha, length, float(record[0, 4]), float(along), float(beyond)]

    def _sizes(self) -> list[float]:
        """Return log2 of the last gradients' norms, of weights."""
        grads = [p.grad for p in self.model.parameters() if p.grad is not None and p.ndim > 1]
        return [max(models.size_log2(grad), -1e4) for grad in grads]


def _random_states(model: Module) -> list[tuple[torch.device, Tensor]]:
    """Return the states of the random generators that a model may draw from."""
    gpus = [(one, torch.cuda.get_rng_state(one)) for one in models.gpus(model)]
    return [(torch.device("cpu"), torch.get_rng_state()), *gpus]


def _set_random_states(states: Sequence[tuple[torch.device, Tensor]]) -> None:
    for device, state in states:
        if device.type == "cpu":
            torch.set_rng_state(state)
        else:
            torch.cuda.set_rng_state(state, device)


def _real(values: Tensor) -> Tensor:
    """Return values in float64, complex ones as pairs."""
    return (torch.view_as_real(values) if values.is_complex() else values).double()

"""A short training of a copy of a model, with the gauge of its steps."""

from __future__ import annotations

import copy
from collections.abc import Callable
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.history import STEPS, History
from vegrad.torch import chain, probe
from vegrad.torch.clip import clip_grad_norm_
from vegrad.training import parabola
from vegrad.trial import Goal, goal_for

LOOKED_AT = 256  # rows on which loss and accuracy are taken
LOOKS, GAUGES = 10, 20  # of a whole training
HOPELESS = 0.95  # of the first loss, at half of the steps


class Trial:
    """A training from a seed. `points` are steps, loss and accuracy (nan without labels)."""

    def __init__(
        self,
        model: Module,
        loss_fn: Any,
        data: tuple[Any, Any],
        optimizer: Callable[[Any], torch.optim.Optimizer],
        goal: Goal,
        *,
        steps: int,
        batch_size: int,
        seed: int,
        rate: float | None = None,
        clip: float | None = None,
    ) -> None:
        self.model, self.loss_fn, (self.x, self.target) = copy.deepcopy(model), loss_fn, data
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad])
        for group in self.optimizer.param_groups if rate is not None else []:
            group["lr"] = rate
        self.goal, self.steps, self.size, self.seed, self.clip = goal, steps, batch_size, seed, clip
        self.take = chain.rows_of(self.x, self.target) if isinstance(self.x, Tensor) else None
        self.history, self.points, self.passes = History(), list[tuple[int, float, float]](), 0
        self._order = np.random.default_rng(seed)
        self._columns: list[list[float]] = []

    @property
    def rate(self) -> float:
        """The first group's learning rate."""
        return float(self.optimizer.param_groups[0]["lr"])

    @property
    def loss(self) -> float:
        """At the last look."""
        return self.points[-1][1]

    @property
    def reached(self) -> bool:
        """Whether the last look met the goal."""
        return self.goal.reached(*self.points[-1][1:])

    def look(self, step: int) -> None:
        """Loss and accuracy on the first rows, in the model's own mode."""
        x, target = first_rows(self.x, self.target)
        with probe.untouched(self.model), torch.no_grad():
            output = probe.called(self.model, x)
            loss = float(self.loss_fn(output, target))
            self.points.append((step, loss, accuracy(output, target)))

    def train(self, until: int | None = None, stop: bool = True) -> None:
        """Trains, until the goal is reached or nothing is learnt (unless `stop` is False)."""
        steps = self.steps if until is None else until
        gauge, every = max(1, self.steps // GAUGES), max(1, self.steps // LOOKS)
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.manual_seed(self.seed)
            self.look(0)
            for step in range(steps):
                self._step(step % gauge == 0)
                last = step == steps - 1
                if (step + 1) % every == 0 or last or not isfinite(self._columns[-1][0]):
                    self.look(step + 1)
                    if not isfinite(self.loss) or (stop and (self.reached or self._hopeless())):
                        break
        self._note()

    def _hopeless(self) -> bool:
        return self.points[-1][0] >= self.steps / 2 and not self.loss < HOPELESS * self.points[0][1]

    def _step(self, gauged: bool) -> None:
        x, target = self.x, self.target
        if self.take is not None and self.size < len(x):
            x, target = self.take(self._order.integers(0, len(x), self.size))
        self.optimizer.zero_grad()
        loss = self.loss_fn(probe.called(self.model, x), target)
        loss.backward()
        self.passes += 1
        params = [p for p in self.model.parameters() if p.grad is not None]
        norm = float(clip_grad_norm_(params, inf if self.clip is None else self.clip))
        clipped = 1.0 if self.clip is None or not norm > self.clip else self.clip / norm
        row = [float(loss.detach()), norm, clipped, self.rate, *[nan] * 5]
        if gauged:
            before = [(p.detach().clone(), p.grad.detach().clone() / clipped) for p in params]
        if isfinite(norm):
            self.optimizer.step()
        if gauged:
            row[4:] = self._gauge(row[0], params, before, x, target)
        self._columns.append(row)

    def _gauge(
        self, loss: float, params: list[Any], before: list[Any], x: Any, target: Any
    ) -> list[float]:
        """alpha, step_length, loss_after, slope, slope_after."""
        with probe.untouched(self.model):
            after = self.loss_fn(probe.called(self.model, x), target)
            grads = torch.autograd.grad(after, params, allow_unused=True)
        self.passes += 1
        moved = [p.detach().double() - old.double() for p, (old, _) in
                 zip(params, before, strict=True)]  # fmt: skip
        length = float(torch.stack([m.square().sum() for m in moved]).sum().sqrt())
        slope = sum(float((m * g.double()).sum()) for m, (_, g) in zip(moved, before, strict=True))
        ends = [float((m * g.double()).sum()) for m, g in zip(moved, grads, strict=True)
                if g is not None]  # fmt: skip
        record = np.array([[loss, 0, 0, 0, float(after.detach()), slope, sum(ends), length]])
        with np.errstate(all="ignore"):
            b, c = parabola(record)
            alpha = float((-(b + 2 * c) / b)[0])
            along, beyond = np.array([slope, sum(ends)]) / np.float64(length)
        alpha = alpha if isfinite(float(record[0, 4])) else inf
        return [alpha, length, float(record[0, 4]), float(along), float(beyond)]

    def _note(self) -> None:
        columns = np.array(self._columns).reshape(-1, len(STEPS))
        self.history.add_steps(columns.T)
        grads = [p.grad for p in self.model.parameters() if p.grad is not None and p.ndim > 1]
        sizes = [max(probe.size_log2(grad), -1e4) for grad in grads]
        self.history.add_epoch(
            epoch_steps=len(columns), epoch_loss=float(np.mean(columns[:, 0])),
            clipped_share=float(np.mean(columns[:, 2] < 1)), validation_loss=self.loss,
            validation_accuracy=self.points[-1][2], gradient_log2=sizes,
            update_log2=[nan] * len(sizes),
        )  # fmt: skip


def first_rows(x: Any, target: Any) -> tuple[Any, Any]:
    """The rows to look at; all of what has no rows."""
    if isinstance(x, Tensor) and chain.rows_of(x, target) is not None:
        return x[:LOOKED_AT], target[:LOOKED_AT]
    return x, target


def accuracy(output: Any, target: Any) -> float:
    """Share of the rows whose largest output is the label's; nan if the target has no labels."""
    labels = isinstance(target, Tensor) and not target.is_floating_point()
    if not labels or not isinstance(output, Tensor) or output.ndim != target.ndim + 1:
        return nan
    if target.ndim != 1:
        return nan
    return float((output.argmax(1) == target).double().mean())


def goal_of(kind: str, target: Any, first: float, wanted: float | None) -> Goal:
    """As of `vegrad.cure`; half of the first loss for losses that it does not know."""
    if isinstance(target, Tensor) and (
        (kind == "cross_entropy" and target.ndim == 1 and not target.is_floating_point())
        or (kind in ("mse", "binary_cross_entropy") and target.is_floating_point())
    ):
        return goal_for(kind, target.detach().cpu().numpy(), wanted)
    return Goal("mse", first / 2 if wanted is None else wanted, first)

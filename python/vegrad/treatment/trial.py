"""Short trainings from the same seed, looked at as they run, and stopped when it is clear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf, isfinite, isnan, nan
from numbers import Real

import numpy as np

from vegrad.arrays.checks import Array, as_count
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.history import History
from vegrad.networks.mlp import MLP
from vegrad.networks.training import Run
from vegrad.treatment.remedy import Treatment, clone, renewed

LOOKS = 20  # at a whole training
NEAR = 0.9  # of the guess's loss: below, a look is worth a forward pass
SOON = 1.5  # times the loss wanted: the same with the mean square
BY_LOSS = 1.5  # ways of classification, if the loss falls to 0
MOVING = 0.95  # of the loss two looks ago
MOST_OF = 0.8  # the way, for classes; half of it for numbers, which may be mostly noise
FORWARD = 1 / 3  # of a forward and backward pass


@dataclass(frozen=True)
class Goal:
    """What a training shall reach: an accuracy at least, or, with the mean square, a loss at most.

    `guess` is the loss of the best constant output, `base` its accuracy (nan for numbers).
    """

    kind: str
    wanted: float
    guess: float
    base: float = nan

    def reached(self, loss: float, accuracy: float) -> bool:
        """Whether these figures are good enough."""
        return loss <= self.wanted if self.kind == "mse" else accuracy >= self.wanted

    def way(self, loss: float, accuracy: float) -> float:
        """How much of the way from guessing to the goal is done: 0 to 1, or beyond either end."""
        if self.kind == "mse":
            return (self.guess - loss) / max(self.guess - self.wanted, 1e-300)
        by_loss = BY_LOSS * (1.0 - loss / max(self.guess, 1e-300))
        if isnan(accuracy):
            return by_loss
        return max(by_loss, (accuracy - self.base) / max(self.wanted - self.base, 1e-300))

    def __str__(self) -> str:
        if self.kind == "mse":
            return f"loss {self.wanted:.3g}"
        return f"accuracy {100 * self.wanted:.3g} %"


def check_lengths(steps: int, batch_size: int, budget: float) -> tuple[int, int]:
    """Steps and batch_size as numbers. TypeError, ValueError if one of the three cannot be."""
    if not isinstance(budget, Real) or not (isfinite(budget) and budget >= 1):
        raise ValueError(f"budget must be finite and at least 1, not {budget}")
    steps, batch_size = as_count("steps", steps), as_count("batch_size", batch_size)
    if not steps or not batch_size:
        raise ValueError("steps and batch_size must be at least 1")
    return steps, batch_size


def check_goal(goal: float | None, kind: str) -> None:
    """TypeError, ValueError if it is no accuracy, or for mse no loss."""
    if goal is not None and not isinstance(goal, Real):
        raise TypeError(f"goal must be a number, not {type(goal).__name__}")
    most = np.inf if kind == "mse" else 1.0
    if goal is not None and not 0 < goal <= most:
        raise ValueError(f"goal must be above 0{' and at most 1' if most == 1 else ''}, not {goal}")


def goal_for(kind: str, target: Array, wanted: float | None) -> Goal:
    """The goal; if None is given, some of the way from the best constant output to perfection."""
    if kind == "mse":
        values = target.astype(np.float64).reshape(len(target), -1)
        guess = float(np.mean(np.var(values, axis=0)))
        return Goal(kind, guess / 2 if wanted is None else wanted, guess)
    if kind == "cross_entropy":
        share = np.bincount(target) / len(target)
        best = float(share.max())
    else:
        p = target.astype(np.float64).reshape(len(target), -1).mean(axis=0)
        share = np.stack([p, 1 - p])
        best = float(share.max(axis=0).mean())
    with np.errstate(all="ignore"):
        entropy = -float(np.nansum(share * np.log(share)))
    guess = entropy if share.ndim == 1 else entropy / share.shape[1]
    return Goal(kind, best + MOST_OF * (1 - best) if wanted is None else wanted, guess, best)


def evaluate(network: MLP, x: Array, target: Array) -> tuple[float, float]:
    """Loss and accuracy (nan for numbers) on these rows, from one forward pass."""
    kind = network.config["loss"]
    output = network.forward(x).astype(np.float64)
    with np.errstate(all="ignore"):
        if kind == "mse":
            return float(np.mean((output - target.reshape(output.shape)) ** 2)), nan
        if not np.isfinite(output).all():
            return nan, 0.0
        if kind == "cross_entropy":
            top = output - output.max(axis=1, keepdims=True)
            own = top[np.arange(len(target)), target]
            loss = float(np.mean(np.log(np.exp(top).sum(axis=1)) - own))
            return loss, float(np.mean(output.argmax(axis=1) == target))
        wanted = target.reshape(output.shape)
        loss = float(np.mean(np.logaddexp(0.0, output) - wanted * output))
        return loss, float(np.mean((output > 0) == (wanted > 0.5)))


@dataclass
class Trial:
    """A training of a copy, which can be gone on with.

    `points` are steps, loss and accuracy: on the rows to look at before the first step and where
    the batches' loss is near the goal, else the mean of the batches' since the last (accuracy nan).
    `passed` counts the rows that went forward and back.
    """

    treatment: Treatment
    x: Array
    target: Array
    rows: Array
    goal: Goal
    batch_size: int
    steps: int
    """Of a whole training."""
    seed: int
    points: list[tuple[int, float, float]] = field(default_factory=list)
    history: History = field(default_factory=History)
    passed: float = 0.0
    ended: str = ""
    """Why it cannot go on: not finite."""

    def __post_init__(self) -> None:
        """Nothing is trained yet; the network as it begins is looked at."""
        self.network = clone(self.treatment.network)
        self.x, self.target = self.network.checked(self.treatment.prepared(self.x), self.target)
        optimizer = renewed(self.treatment.optimizer)
        self._random = np.random.default_rng(self.seed)
        self.size = min(self.batch_size, len(self.x))
        self.block_steps = max(1, self.steps // LOOKS)
        self._run = Run(
            self.network, optimizer, self.history, self.x, self.target, self.size,
            2 * self.block_steps,
        )  # fmt: skip
        self._rest = np.empty(0, np.intp)
        self.look()

    def look(self) -> None:
        """Evaluate the rows to look at, in place of what the batches said."""
        if self.points and self.points[-1][0] == self.history.steps:
            self.points.pop()
        self.passed += FORWARD * len(self.rows)
        figures = evaluate(self.network, self.x[self.rows], self.target[self.rows])
        self.points.append((self.history.steps, *figures))

    @property
    def reached(self) -> bool:
        """Whether the last look met the goal, after a step at least: a guess may meet it."""
        return self.history.steps > 0 and self.goal.reached(*self.points[-1][1:])

    @property
    def way(self) -> float:
        """See `Goal.way`, at the last look."""
        return self.goal.way(*self.points[-1][1:])

    @property
    def share(self) -> float:
        """Of a whole training."""
        return self.history.steps / self.steps

    @property
    def moving(self) -> bool:
        """Whether the loss is clearly lower than two looks ago."""
        losses = [point[1] for point in self.points[-3:]]
        return losses[-1] < MOVING * losses[0]

    def train(self, until: int, stop: Callable[[Trial], bool] | None = None) -> None:
        """Train to this step in all, or until `stop` says so at a look, or it cannot go on."""
        while self.history.steps < until and not self.ended and not self.reached:
            self.block(min(self.block_steps, until - self.history.steps))
            if stop is not None and stop(self):
                return

    def block(self, steps: int, *, looking: bool = True) -> None:
        """So many steps, and a look if the batches' loss says that it is worth it."""
        first = self.history.steps
        try:
            self._advance(steps)
        except NonFiniteGradientError as error:
            self.ended = str(error)
        looked = np.count_nonzero(~np.isnan(self.history.since(first, "alpha")))
        self.passed += (steps + looked) * self.size
        loss = float(np.mean(self.history.since(first, "loss"))) if self.history.steps else nan
        self.points.append((self.history.steps, loss, nan))
        near = NEAR * self.goal.guess
        if self.goal.kind == "mse":
            near = SOON * self.goal.wanted
        if looking and not self.ended and loss <= near:
            self.look()
            loss = self.points[-1][1]
        if not isfinite(loss):
            self.ended = self.ended or f"the loss is {loss} after {self.history.steps} steps"

    def _advance(self, steps: int) -> None:
        first = self.history.steps
        self._run.epoch(self._order(steps), inf, lambda done: None)
        self._run.close_epoch(first, None)

    def _order(self, steps: int) -> Array:
        """The next rows; all rows once in a new order each epoch, batches of one size."""
        size = self.size
        whole = len(self.x) // size * size
        while len(self._rest) < steps * size:
            self._rest = np.append(self._rest, self._random.permutation(len(self.x))[:whole])
        order, self._rest = self._rest[: steps * size], self._rest[steps * size :]
        return order

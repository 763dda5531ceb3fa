"""Goals of trainings, and how long these may take."""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, isfinite, isnan, nan
from numbers import Real

import numpy as np

from vegrad.arrays.checks import Array, as_count
from vegrad.arrays.shown import shown

BY_LOSS = 1.5  # ways of classification, if the loss falls to 0
MOST_OF = 0.8  # the way, for classes; half of it for numbers, which may be mostly noise


@dataclass(frozen=True)
class Goal:
    """An accuracy to reach at least or, with the mean square, a loss at most.

    `kind` is the loss: "cross_entropy", "binary_cross_entropy", or "mse" for any other. `guess` is
    the loss of the best constant output and `base` its accuracy (nan for numbers). `wanted` is nan
    where it takes the model's output to tell, and nothing could be run.
    """

    kind: str
    wanted: float
    guess: float
    base: float = nan

    def reached(self, loss: float, accuracy: float) -> bool:
        """Return True if these figures are good enough."""
        return loss <= self.wanted if self.kind == "mse" else accuracy >= self.wanted

    def way(self, loss: float, accuracy: float) -> float:
        """Return how much of the way from guessing to the goal is done.

        It is 0 of a guess, 1 at the goal, and may lie beyond either.
        """
        if self.kind == "mse":
            return (self.guess - loss) / max(self.guess - self.wanted, 1e-300)
        by_loss = BY_LOSS * (1.0 - loss / max(self.guess, 1e-300))
        if isnan(accuracy):
            return by_loss
        return max(by_loss, (accuracy - self.base) / max(self.wanted - self.base, 1e-300))

    def __str__(self) -> str:
        if isnan(self.wanted):
            return "not known"
        if self.kind == "mse":
            return f"loss {self.wanted:.3g}"
        return f"accuracy {100 * self.wanted:.3g} %"


@dataclass(frozen=True)
class Plan:
    """The goal of every training of a search, its length, and what all of them may cost."""

    goal: Goal
    steps: int
    batch_size: int
    seed: int
    budget: float
    """The most to spend, in whole trainings."""
    whole: bool = False
    """True if another learning rate must hold the goal to the end of a training."""


def check_lengths(steps: int, batch_size: int, budget: float) -> tuple[int, int]:
    """Return steps and batch_size as integers.

    Raises:
        TypeError, ValueError: if they are not at least 1, or budget is not finite and at least 1.
    """
    if not isinstance(budget, Real) or not (isfinite(budget) and budget >= 1):
        raise ValueError(f"budget must be finite and at least 1, not {shown(budget)}")
    steps, batch_size = as_count("steps", steps), as_count("batch_size", batch_size)
    if not steps or not batch_size:
        raise ValueError("steps and batch_size must be at least 1")
    return steps, batch_size


def check_goal(goal: float | None, kind: str) -> None:
    """Raise TypeError or ValueError if a goal is no accuracy or, for mse, no loss."""
    if goal is not None and not isinstance(goal, Real):
        raise TypeError(f"goal must be a number, not {type(goal).__name__}")
    most = inf if kind == "mse" else 1.0
    if goal is not None and not 0 < goal <= most:
        raise ValueError(f"goal must be above 0{' and at most 1' if most == 1 else ''}, not {goal}")


def goal_for(kind: str, target: Array, wanted: float | None) -> Goal:
    """Return the goal for these targets, of which the best constant output is known.

    If `wanted` is None it is some of the way from there to perfection: `MOST_OF` for classes,
    half for numbers.
    """
    if kind == "mse":
        values = target.astype(np.float64).reshape(len(target), -1)
        guess = float(np.mean(np.var(values, axis=0)))
        return Goal(kind, guess / 2 if wanted is None else wanted, guess)
    if kind == "cross_entropy":
        share = np.bincount(target) / len(target)
        best = float(share.max())
    else:
        # Outside 0 to 1 there are no shares; what is right is counted as `evaluate` does it.
        values = target.astype(np.float64).reshape(len(target), -1)
        p, above = values.clip(0.0, 1.0).mean(axis=0), (values > 0.5).mean(axis=0)
        share = np.stack([p, 1 - p])
        best = float(np.maximum(above, 1 - above).mean())
    with np.errstate(all="ignore"):
        entropy = -float(np.nansum(share * np.log(share)))
    guess = entropy if share.ndim == 1 else entropy / share.shape[1]
    return Goal(kind, best + MOST_OF * (1 - best) if wanted is None else wanted, guess, best)

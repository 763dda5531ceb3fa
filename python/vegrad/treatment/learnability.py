"""Check whether the data can be learnt at all, for when no change of a network helps."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isclose

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.treatment.goal import Goal

NEIGHBOURS = 10
PARTS = 4  # of the rows, each fitted by the others
MOST_OF_FIT = 0.9  # of what a fit gets, that is enough where the data have no more
COLUMNS = 2500  # of more, no fit is made for a goal
ROWS = 1000  # at most, that are compared with each other
DEVIATIONS = 3.0  # standard errors, from which a fit counts as better than guessing
RIDGE = 1e-3  # of the mean square of the columns


def about_data(
    x: Array, target: Array, goal: Goal, *, quick: bool = False, then: str = ""
) -> tuple[str, ...]:
    """Say what is wrong with the data or, if they can be learnt, that they are not to blame.

    Args:
        x: inputs (N, I), finite.
        target: as the network takes it.
        goal: with its kind of loss.
        quick: say only what rules out learning for certain, and else nothing.
        then: what to do where the data can be learnt.
    """
    if len(x) > 1 and not np.ptp(x, axis=0).any():
        return ("x is the same in every row: no network can tell the rows apart",)
    outputs = as_numbers(target, goal.kind)
    if len(x) > 1 and not np.ptp(outputs, axis=0).any():
        return ("the target is the same in every row: there is nothing to learn",)
    if quick:
        return ()
    return (_compared(x, outputs, goal, then),)


def as_numbers(target: Array, kind: str) -> Array:
    """Return targets as numbers (N, O); labels have a column each."""
    if kind == "cross_entropy":
        return np.eye(int(target.max()) + 1)[target]
    return target.astype(np.float64).reshape(len(target), -1)


def attainable(x: Array, target: Array, goal: Goal) -> Goal:
    """Return a goal that is no higher than what noise in the data leaves room for.

    That is where a fit that needs no gradient does better than guessing on rows that it has not
    seen, and still misses the goal: most of what it gets is then enough.
    """
    if len(x) < 20 or x.shape[1] > COLUMNS:
        return goal
    outputs = as_numbers(target, goal.kind)
    numbers = goal.kind == "mse"
    if numbers and not isclose(goal.guess, float(np.mean(np.var(outputs, axis=0))), rel_tol=1e-3):
        return goal  # another loss, or another unit
    fits = _fits(x, outputs, goal.kind)
    if not fits.learnable:
        return goal
    part = MOST_OF_FIT * fits.best
    if numbers:
        return replace(goal, wanted=max(goal.wanted, (1.0 - part) * goal.guess))
    part = goal.base + MOST_OF_FIT * (fits.best - goal.base)
    return goal if part <= goal.base else replace(goal, wanted=min(goal.wanted, part))


def seems_independent(x: Array, target: Array, kind: str) -> bool:
    """Return True if no fit goes with the target on rows not seen; False of a few rows."""
    if len(x) < 20 or x.shape[1] > COLUMNS:
        return False
    return not _fits(x, as_numbers(target, kind), kind).tells


def possible(x: Array, target: Array, kind: str) -> float:
    """Return what fits without a gradient do of the way from guessing to perfection.

    It is 0 where they are no better than guessing on rows not seen, or that cannot be told.
    """
    if len(x) < 20 or x.shape[1] > COLUMNS:
        return 0.0
    fits = _fits(x, as_numbers(target, kind), kind)
    if not fits.learnable or fits.guess >= 1:
        return 0.0
    return fits.best if kind == "mse" else (fits.best - fits.guess) / (1 - fits.guess)


@dataclass(frozen=True)
class _Fits:
    """Fits that need no gradient, on `held` rows that they have not seen."""

    best: float
    """The highest score, see `_score`."""
    name: str
    guess: float
    """The score of the mean."""
    learnable: bool
    """True if the best is better than guessing, beyond chance."""
    tells: bool
    """True if any goes with the target, beyond chance."""
    held: int


def _fits(x: Array, outputs: Array, kind: str) -> _Fits:
    """Fit rows by a linear map, the nearest row and the nearest few, each part by the others."""
    order = np.random.default_rng(0).permutation(len(x))[:ROWS]
    x, known, every = x[order].astype(np.float64), outputs[order], np.arange(len(order))
    parts = np.array_split(every, PARTS)
    pieces = [_fitted(x, known, np.setdiff1d(every, new), new) for new in parts]
    mean, *fits = (np.concatenate(one) for one in zip(*pieces, strict=True))
    names = ("a linear fit", "the nearest row", f"the mean of the {NEIGHBOURS} nearest rows")
    scores = [_score(fit, known, kind) for fit in fits]
    best = int(np.argmax(scores))
    guess, tells = _score(mean, known, kind), [_tells(fit, mean, known) for fit in fits]
    learnable = tells[best] and scores[best] > guess
    return _Fits(scores[best], names[best], guess, learnable, any(tells), len(order))


def _tells(fit: Array, mean: Array, known: Array) -> bool:
    """Return True if a fit goes with what is known, beyond chance, though guessing may do as well.

    So it is of a rare class.
    """
    along = ((fit - mean) * (known - mean)).sum(axis=1)
    error = float(np.std(along)) / float(np.sqrt(len(along)))
    return float(np.mean(along)) > DEVIATIONS * error


def _fitted(x: Array, outputs: Array, seen: Array, new: Array) -> tuple[Array, ...]:
    """Fit new rows by those seen: their mean, a linear map, the nearest row, the nearest few."""
    columns = np.ptp(x[seen], axis=0) > 0
    z = (x[:, columns] - x[seen][:, columns].mean(axis=0)) / x[seen][:, columns].std(axis=0)
    centre = outputs[seen].mean(axis=0)
    left, ridge = outputs[seen] - centre, RIDGE * len(seen)
    if z.shape[1] > len(seen):  # the same, by as many equations as there are rows
        found = z[seen].T @ np.linalg.solve(z[seen] @ z[seen].T + ridge * np.eye(len(seen)), left)
    else:
        gram = z[seen].T @ z[seen] + ridge * np.eye(z.shape[1])
        found = np.linalg.solve(gram, z[seen].T @ left)
    linear = z[new] @ found + centre
    apart = np.square(z[new]).sum(axis=1)[:, None] + np.square(z[seen]).sum(axis=1)
    near = np.argsort(apart - 2.0 * z[new] @ z[seen].T, axis=1)[:, :NEIGHBOURS]
    nearest, few = outputs[seen][near[:, 0]], outputs[seen][near].mean(axis=1)
    return np.broadcast_to(centre, linear.shape), linear, nearest, few


def _compared(x: Array, outputs: Array, goal: Goal, then: str) -> str:
    """Compare fits that need no gradient, on rows that they have not seen."""
    if len(x) < 20:
        return f"{len(x)} rows are too few to say whether the data can be learnt"
    fits = _fits(x, outputs, goal.kind)
    unit = "of the variance" if goal.kind == "mse" else "right"
    figures = f"{fits.name} gets {100 * fits.best:.0f} % {unit} of {fits.held} rows not seen"
    if not fits.learnable:
        guess = 100 * max(fits.guess, 0)
        if fits.tells:
            return f"x tells little of the target: {figures}, guessing {guess:.0f} %"
        return f"the target looks independent of x: {figures}, guessing {guess:.0f} %"
    return f"the data can be learnt ({figures}){f': {then}' if then else ''}"


def _score(fit: Array, outputs: Array, kind: str) -> float:
    """Return the share of labels that are right, or of the variance that is explained."""
    if kind == "mse":
        rest = float(np.mean(np.square(outputs - fit)))
        return 1.0 - rest / max(float(np.mean(np.var(outputs, axis=0))), 1e-300)
    if kind == "cross_entropy":
        return float(np.mean(fit.argmax(axis=1) == outputs.argmax(axis=1)))
    return float(np.mean((fit > 0.5) == (outputs > 0.5)))

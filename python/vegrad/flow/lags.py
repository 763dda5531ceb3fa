"""Evidence in the data that a target depends on steps that lie far back.

What the first steps of a sequence tell of the target, beyond what the last ones do, is measured by
least squares on one half of the rows and judged on the other: once from means and largest values of
a few spans of steps, and once from those single numbers that, each by itself, tell more than chance
makes of the best of so many. It can miss a dependence, but not make one up: fits to chance gain
nothing on rows that they have not seen.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log, nan

import numpy as np
from numpy.typing import NDArray

from vegrad.arrays.checks import Array, FloatArray

BLOCKS = 4  # parts of a span of steps, each summarized by itself
PRODUCTS = 4  # inputs, up to which their products are looked at too
ROWS = 2  # for each number that is fitted
MOST_ROWS = 1024
CHANCE = 0.01
PICKED = 16  # single numbers at most, of all steps
RIDGE = 1e-3  # of the mean square, so that columns that do not vary are no matter


@dataclass(frozen=True)
class Lags:
    """Sequences with their targets, one a row."""

    x: FloatArray
    """(B, T, I), aligned at the last step."""
    wanted: FloatArray
    """(B, O): numbers, or a column for each class."""
    entering: FloatArray
    """Size of the gradient that enters at the outputs of each step by itself (T,)."""

    @staticmethod
    def of(x: Array, target: Array, entering: FloatArray | None = None) -> Lags | None:
        """Return the lags of inputs (B, T, I); None of targets that are not one a row.

        Without `entering`, the loss is one of the last step's outputs.
        """
        if x.ndim != 3 or len(x) != len(target) or target.ndim > 2 or not x.size:
            return None
        rows = np.linspace(0, len(x) - 1, min(len(x), MOST_ROWS)).astype(np.intp)
        some = np.asarray(x[rows], np.float64)
        wanted = np.asarray(target[rows])
        if wanted.ndim == 1 and not np.issubdtype(wanted.dtype, np.floating):
            wanted = (wanted[:, None] == np.unique(wanted)).astype(np.float64)
        wanted = wanted.reshape(len(wanted), -1).astype(np.float64)
        if not (np.isfinite(some).all() and np.isfinite(wanted).all()):
            return None
        if entering is None:
            entering = np.append(np.zeros(x.shape[1] - 1), 1.0)
        return Lags(some, wanted, entering)

    def beside(self, steps: int) -> float:
        """Return the share of the gradient that enters before the last steps by itself."""
        return float(np.linalg.norm(self.entering[:-steps]) / np.linalg.norm(self.entering))

    def before(self, hint: float, told: float) -> int:
        """Return the number of last steps that tell nothing of the target, while others do.

        Args:
            hint: a share of the target, below which it is nothing.
            told: that of what earlier steps tell; if it is less, or not known, 0 is returned.
        """
        low, high = 0, self.x.shape[1]
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.told(middle)[0] < hint else (low, middle)
        return low if low and self.told(low)[1] >= told else 0

    def told(self, steps: int) -> tuple[float, float]:
        """Return the shares of the target that the last steps tell, and that only earlier ones do.

        Of the last steps one by itself counts too, which their summary may miss.

        (nan, nan) if there are too few rows to know.
        """
        count = self.x.shape[1]
        if not 0 < steps < count or not self.wanted.var(axis=0).any():
            return nan, nan
        x = self.x
        if x.shape[2] <= PRODUCTS:
            first, second = np.triu_indices(x.shape[2])
            x = np.concatenate([x, x[..., first] * x[..., second]], axis=2)
        # Each span has a mean and a largest value of each column, before and after.
        blocks = min(BLOCKS, len(x) // (2 * ROWS * 4 * x.shape[2]))
        if not blocks:
            return nan, nan
        near, far = _summary(x[:, -steps:], blocks), _summary(x[:, :-steps], blocks)
        both = np.concatenate([near, far], axis=1)
        known = max(_told(near, self.wanted), 0.0)
        told = _told(both, self.wanted) - known
        # A number at one step is lost in its span's mean.
        late = max(_told(_numbers(x[:, -steps:]), self.wanted, pick=True), 0.0)
        told = max(told, _told(_numbers(x), self.wanted, pick=True) - max(known, late))
        return max(known, late, _single(x[:, -steps:], self.wanted)), told


def _single(x: FloatArray, wanted: FloatArray) -> float:
    """Return the largest share of a target that one number tells; 0 if that may be chance."""
    shares = _shares(_numbers(x), wanted)
    largest = float(shares.max())
    return largest if largest * len(x) > _by_chance(shares.size) else 0.0


def _by_chance(count: int) -> float:
    """Return the most that the largest of so many shares, times the rows, is by chance."""
    return 2.0 * log(2.0 * count / CHANCE)


def _numbers(x: FloatArray) -> FloatArray:
    """Return the numbers of all steps in one row (B, T·I)."""
    return x.reshape(len(x), -1)


def _shares(given: FloatArray, wanted: FloatArray) -> FloatArray:
    """Return the share of each output's variance that each number tells by itself (numbers, O)."""
    table, target = given - given.mean(axis=0), wanted - wanted.mean(axis=0)
    sizes = np.outer(np.square(table).sum(axis=0), np.square(target).sum(axis=0))
    shares: FloatArray = np.square(table.T @ target) / np.where(sizes > 0, sizes, 1.0)
    return shares


def _picked(given: FloatArray, wanted: FloatArray) -> NDArray[np.intp]:
    """Return those numbers that tell more than chance does, the most telling first."""
    shares = _shares(given, wanted)
    best = shares.max(axis=1)
    order = np.argsort(-best, kind="stable")[:PICKED]
    known: NDArray[np.bool_] = best[order] * len(given) > _by_chance(shares.size)
    return order[known]


def _summary(x: FloatArray, blocks: int) -> FloatArray:
    """Return means and largest values over a few spans of steps (B, numbers)."""
    parts = np.array_split(x, min(blocks, x.shape[1]), axis=1)
    means = [part.mean(axis=1) for part in parts]
    return np.concatenate([*means, *(part.max(axis=1) for part in parts)], axis=1)


def _told(given: FloatArray, wanted: FloatArray, *, pick: bool = False) -> float:
    """Return the share of the variance of `wanted` that is told on rows that were not fitted.

    If `pick`, only by the numbers that the fitted rows pick out.
    """
    missed, whole = 0.0, 0.0
    order = np.random.default_rng(0).permutation(len(given))
    halves = np.array_split(order, 2)
    for fitted, held in (halves, halves[::-1]):
        seen, new, target = given[fitted], given[held], wanted[fitted].mean(axis=0)
        if pick:
            best = _picked(seen, wanted[fitted])
            seen, new = seen[:, best], new[:, best]
        mean, scale = seen.mean(axis=0), seen.std(axis=0)
        columns = scale > 0
        mean, scale = mean[columns], scale[columns]
        a, b = (seen[:, columns] - mean) / scale, wanted[fitted] - target
        square = a.T @ a + RIDGE * len(a) * np.eye(a.shape[1])
        found = (new[:, columns] - mean) / scale @ np.linalg.solve(square, a.T @ b)
        missed += float(np.square(wanted[held] - target - found).sum())
        whole += float(np.square(wanted[held] - target).sum())
    return 1.0 - missed / whole if whole else 0.0

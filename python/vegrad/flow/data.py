"""Records of the data that a network is given, and of its loss."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from math import hypot, nan

import numpy as np

from vegrad.arrays.checks import Array

LEAST_ROWS, MOST_ROWS = 8, 4096  # of which columns are measured
LEARNT = 0.1  # times the loss of the best constant output, or the rows that it has wrong
DENSE = 0.5  # share of the rows in which a column is not at its median


@dataclass(frozen=True)
class NonFiniteValue:
    """The first element of an array that is NaN or infinite, and how many there are."""

    index: tuple[int, ...]
    value: float
    count: int


@dataclass(frozen=True)
class NonFiniteData:
    """Values of the data that are not finite, because of which nothing was run."""

    kind: str
    """"data" or "target"."""
    name: str
    """As the caller knows it: x, x[1], target, …"""
    first: NonFiniteValue
    rows: int
    """How many rows have such values."""
    of: int
    """How many rows there are."""
    too_large_for: str = ""
    """The dtype that the value does not fit, if it is finite itself."""
    steps: bool = False
    """True if the second axis has the steps of sequences."""
    trained: bool = False
    """True if a training goes over these rows, so that something was run."""

    @classmethod
    def found_in(cls, kind: str, name: str, values: Array) -> NonFiniteData | None:
        """Return what of an array is not finite; None if all of it is."""
        bad = ~np.isfinite(values)
        if not bad.any():
            return None
        index = tuple(int(n) for n in np.argwhere(bad)[0])
        first = NonFiniteValue(index, float(values[index]), int(bad.sum()))
        count = len(bad) if bad.ndim else 1
        rows = int(bad.reshape(count, -1).any(axis=1).sum())
        return cls(kind, name, first, rows, count)

    def among(self, rows: Array, count: int) -> NonFiniteData:
        """Return it for a training, with the numbers that these rows have among all of them."""
        row, *rest = self.first.index
        first = replace(self.first, index=(int(rows[row]), *rest))
        return replace(self, first=first, of=count, trained=True)


@dataclass(frozen=True)
class Columns:
    """The columns of inputs, beside each other; sparse ones are left out, which are usually 0."""

    offset: float
    """Root mean square of their means, over that of their standard deviations."""
    narrow: int
    """The column of the least standard deviation, and that of the largest, with these."""
    narrow_std: float
    wide: int
    wide_std: float

    @classmethod
    def of(cls, values: Array) -> Columns | None:
        """Measure rows (N, I); None if they are too few or have no dense column that varies."""
        if len(values) < LEAST_ROWS or not values.size:
            return None
        rows = np.linspace(0, len(values) - 1, min(len(values), MOST_ROWS)).astype(np.intp)
        chosen = np.asarray(values[rows], np.float64)
        if not np.isfinite(chosen).all():
            return None
        std, mean = chosen.std(axis=0), chosen.mean(axis=0)
        dense = (chosen != np.median(chosen, axis=0)).mean(axis=0) >= DENSE
        known = np.flatnonzero(dense & (std > 0))
        if not len(known):
            return None
        narrow, wide = int(known[std[known].argmin()]), int(known[std[known].argmax()])
        offset = float(np.linalg.norm(mean[known]) / np.linalg.norm(std[known]))
        return cls(offset, narrow, float(std[narrow]), wide, float(std[wide]))


@dataclass(frozen=True)
class Input:
    """Numbers that the network is given."""

    name: str
    """As the caller knows it: x, x[1], …"""
    rms: float
    mean: float
    alike: int = 0
    """How many rows there are, if there are several and all are the same."""
    columns: Columns | None = None
    """Of rows of numbers; None of images, and where nothing can be said."""

    @classmethod
    def of(cls, name: str, values: Array) -> Input:
        """Measure rows (N, …, I), whose last axis has the columns."""
        numbers = np.asarray(values, np.float64).reshape(-1, values.shape[-1])
        with np.errstate(all="ignore"):
            rms = float(np.linalg.norm(numbers) / max(numbers.size, 1) ** 0.5)
            mean, columns = float(numbers.mean()), Columns.of(numbers)
            return cls(name, rms, mean, same(values), columns)


def same(rows: Array) -> int:
    """Return how many rows there are, if there are several and all are the same; else 0."""
    several = len(rows) > 1 and bool((rows[0] == rows[-1]).all())
    return len(rows) if several and bool((rows == rows[:1]).all()) else 0


@dataclass(frozen=True)
class Spread:
    """Where numbers lie: outputs, or targets."""

    shape: tuple[int, ...]
    low: float
    high: float
    mean: float
    std: float
    quantiles: tuple[float, ...] = ()
    """Numbers that divide them into parts of the same count, the lowest and the highest among them;
    of many, those of an even choice."""
    whole: bool = False
    """True of whole numbers."""

    @property
    def rms(self) -> float:
        """Root mean square."""
        return hypot(self.mean, self.std)


@dataclass(frozen=True)
class Compared:
    """An output beside a target, as the loss compares them."""

    function: str
    """The loss as PyTorch calls it, or "sub" and "mul" of an operation of a loss of one's own."""
    output: Spread
    target: Spread
    place: int
    """Of the operation that made the output."""
    target_place: int | None = None
    """Of the operation that made the target; None if no trained parameter has part in it."""
    value: float = nan
    """The mean loss, where it can be told; not negative but for targets that do not fit."""
    given: bool = True
    """True if the target is (made of) the one that the loss was given; of two that are made by
    parameters, either."""
    plain: bool = True
    """True if both are the very tensors that the loss was given."""
    units: int = 0
    """Over which a cross entropy is taken."""
    sums: tuple[bool, bool] = (False, False)
    """True if probabilities sum to 1 over the units, and over the rows: those that the output is,
    or of which it is the logarithm."""
    held: int = 0
    """Classes whose output is at a lower bound in every row, though there are rows of them."""
    at_bound: float = 0.0
    """Share of the rows whose own class is there."""
    labels: bool = False
    """True if the target is labels; those that do not count are left out of its spread."""
    refused: bool = False
    """True if the loss does not take them, so that nothing could be run to its end."""


@dataclass(frozen=True)
class Stored:
    """Elements of the parameters' gradients, as the network's dtype has them beside float64."""

    elements: int
    """Those that are not 0 in float64."""
    lost: int
    """Those of them that are 0 in the network's dtype."""


@dataclass(frozen=True)
class Mixing:
    """An operation that mixes the rows of a batch, as its shapes show and a pass has proven."""

    kind: str
    """"softmax" of one over the rows, "view" of one that cuts across them, "along" of a module that
    goes along the first axis, on which they stand."""
    module: str
    """The path of the module in which it ran."""
    before: tuple[int, ...]
    """The shape that it takes."""
    after: tuple[int, ...]
    """The shape that it makes."""


@dataclass(frozen=True)
class Undefined:
    """Numbers for which a distribution is not defined, all of them finite."""

    distribution: str
    parameter: str
    """Its name; "" of the values whose likelihood was asked for, which are targets."""
    low: float
    high: float
    least: float
    """What it takes at least; -inf if that is no bound."""
    most: float


@dataclass(frozen=True)
class KnownLoss:
    """A loss of a known kind that was taken, as a mean."""

    kind: str
    value: float
    """nan if it was no mean."""
    constant: float
    """What the best constant output would cost; nan if that cannot be told."""
    wrong: float = nan
    """Share of the rows whose class is not the one of the largest output; nan if not known."""
    guess: float = nan
    """The same share if all rows were taken for the commonest class."""

    @property
    def learnt(self) -> bool:
        """True if the loss, or the number of wrong rows, is far below that of a constant output."""
        return self.value <= LEARNT * self.constant or self.wrong <= LEARNT * self.guess


@dataclass(frozen=True)
class Penalty:
    """Weight decay that is an L2 penalty: its gradient is so many times the weights."""

    decay: float
    begun_log2: Mapping[str, float] = field(default_factory=dict)
    """log2 of the root mean square of the matrices as their training began, if it is over."""
    possible: Callable[[], float] | None = None
    """Fits the data without a gradient; returns the part of the way from a constant output to
    perfection that this does on rows not seen."""

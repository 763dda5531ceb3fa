"""Records of the data that a network is given, and of its loss."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot, nan


@dataclass(frozen=True)
class NonFiniteValue:
    """The first element of an array that is NaN or infinite, and how many there are."""

    index: tuple[int, ...]
    value: float
    count: int


@dataclass(frozen=True)
class NonFiniteData:
    """Why nothing was run: values of the data that are not finite."""

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


@dataclass(frozen=True)
class Input:
    """Numbers that the network is given."""

    name: str
    """As the caller knows it: x, x[1], …"""
    rms: float
    mean: float
    alike: float = nan
    """Share of their size that all rows have in common: 1 where they are all the same."""


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

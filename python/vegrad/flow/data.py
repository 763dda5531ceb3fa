"""Records of the data that a network is given, and of its loss."""

from __future__ import annotations

from dataclasses import dataclass


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


@dataclass(frozen=True)
class Input:
    """Numbers that the network is given."""

    name: str
    """As the caller knows it: x, x[1], …"""
    rms: float
    mean: float


@dataclass(frozen=True)
class KnownLoss:
    """A loss of a known kind that was taken, as a mean."""

    kind: str
    value: float
    """nan if it was no mean."""
    constant: float
    """What the best constant output would cost; nan if that cannot be told."""

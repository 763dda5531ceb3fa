"""The subject: a network as diagnosis and cure see it, implemented by each front end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, Self

from vegrad.arrays.checks import Array
from vegrad.flow.edits import Edit
from vegrad.flow.reading import Reading
from vegrad.flow.wording import Vocabulary


@dataclass(frozen=True)
class Code:
    """The very code that an edit was done with: what a patch shows is what was run."""

    lines: tuple[str, ...]
    changed: tuple[str, ...] = ()
    """Names of the parameters that have other values now; () where the network is another."""
    words: str = ""
    """The change in words, with its numbers; "" if the edit's own words say it all."""


@dataclass(frozen=True)
class Refusal:
    """Why an edit cannot be done to this network."""

    why: str


class Data(Protocol):
    """Inputs and targets by rows."""

    @property
    def by_rows(self) -> bool:
        """False if rows cannot be drawn: then all is one."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def take(self, rows: Array) -> tuple[Any, Any]:
        """Return the inputs and targets of these rows."""


class Trainer(Protocol):
    """A copy of a network in training."""

    def advance(self, order: Sequence[Array]) -> None:
        """Take a step on each of these batches of rows, and record them in the history."""

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Return loss and accuracy (nan if there is none) on these rows."""


class Subject(Protocol):
    """A network of one kind, with what it is trained with."""

    @property
    def vocabulary(self) -> Vocabulary:
        """How its layers, parameters and edits are called."""

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""

    def copy(self) -> Self:
        """Return a copy, to the bit, that shares nothing with this one."""

    def apply(self, edit: Edit) -> Code | Refusal:
        """Do an edit to this network, in place if its shape allows it."""

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another network of the same shape."""

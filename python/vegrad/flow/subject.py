"""The subject: a network as diagnosis and cure see it, implemented by each front end.

A search for a cure asks for a little more, see `vegrad.treatment.curable`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, Self

from vegrad.arrays.checks import Array
from vegrad.flow.edits import Edit
from vegrad.flow.reading import Reading
from vegrad.flow.wording import Vocabulary


@dataclass(frozen=True)
class Code:
    """The very code that an edit was done with: what a patch shows is what was run."""

    lines: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    """Names of the parameters that have other values now; () where the network is another."""
    words: str = ""
    """The change in words, with its numbers; "" if the edit's own words say it all."""
    passed: float = 0.0
    """Rows that went forward and back to find these numbers; a third of one if only forward."""


@dataclass(frozen=True)
class Refusal:
    """An edit that cannot be done to this network."""

    why: str
    passed: float = 0.0
    """Rows that went forward and back before this was clear."""
    worth_saying: bool = False
    """True if a user may expect this edit to help, and should hear why it cannot."""


class Subject(Protocol):
    """A network of one kind, with what it is trained with."""

    @property
    def vocabulary(self) -> Vocabulary:
        """The names of its layers, parameters and edits."""

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        """Run the network forward and back on a batch and write down what that tells."""

    def copy(self) -> Self:
        """Return a copy, to the bit, that shares nothing with this one that an edit changes."""

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit to this network, in place if its shape allows it.

        Args:
            edit: what to change.
            rows: of the data that the subject is trained with, which may be run for it; the first
                of a permutation that the subject's seed gives. None if there are no data.
        """

    def write(self, other: Self) -> None:
        """Take over the parameters' values of another network of the same shape."""

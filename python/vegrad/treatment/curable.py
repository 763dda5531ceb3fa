"""Protocols that a front end implements beside `Subject` so that its networks are cured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.subject import Refusal, Subject


class Data(Protocol):
    """Inputs and targets by rows."""

    def __len__(self) -> int:
        """Return the number of rows; 1 if they cannot be told apart."""

    def take(self, rows: Array) -> tuple[Any, Any]:
        """Return the inputs and targets of these rows."""

    def spread(self) -> tuple[float, float] | Refusal:
        """Return how large the columns of x are, or why they cannot be scaled.

        The medians of the columns' standard deviations and of their |mean| over that.
        """

    def target_spread(self) -> tuple[float, float] | Refusal:
        """Return how large the targets are, or why they cannot be scaled.

        The standard deviation about the columns' means, and the largest |mean| over that.
        """

    def table(self, kind: str) -> tuple[Array, Array] | None:
        """Return x (N, I) and the targets as arrays, if a loss of this kind is one of rows."""


class Trainer(Protocol):
    """A copy of a network in training, from its beginning."""

    def advance(self, order: Array) -> str:
        """Take a step on each batch, a row of `order` (steps, B), and add them to the history.

        Returns:
            Why it cannot go on; "" if it can.
        """

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Return loss and accuracy (nan if there is none) on these rows."""


class Curable(Subject, Protocol):
    """A network with the data and the optimizer that it is trained with.

    `apply` takes edits of the data and of the training too; copies share the data and the
    optimizer as they were given.
    """

    noun: str
    """Its name in a sentence: network, model."""
    early: int
    """Steps that a trainer gauges at once, beyond the first."""

    @property
    def data(self) -> Data:
        """The data as the network sees them: scaled, if an edit has done so."""

    def diagnosed(self, x: Any, target: Any, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch, without resampling; `theory` may be left out to save time."""

    def looking(self, rows: int) -> float:
        """Return what a diagnosis costs, in rows that go forward and back."""

    def trainer(self, history: History, *, batch_size: int, gauge_every: int, seed: int) -> Trainer:
        """Begin a training of a copy, with the optimizer as it began.

        Args:
            history: what its steps are added to; every `advance` ends an epoch of it.
            batch_size: the most rows of a step.
            gauge_every: steps from one look at α to the next.
            seed: of what is drawn at random in training.
        """

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        """Write the code that makes of what was given what this is, and trains it."""

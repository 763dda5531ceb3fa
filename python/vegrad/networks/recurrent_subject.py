"""Recurrent networks as a subject: what `vegrad.diagnose` and `vegrad.cure` ask of them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array, as_count
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.edits import Edit, Truncate
from vegrad.flow.lags import Lags
from vegrad.flow.reading import Reading
from vegrad.flow.recurrence import IN_TIME
from vegrad.flow.subject import Code, Refusal
from vegrad.networks.mlp import MLP
from vegrad.networks.recurrent_editor import RecurrentEditor
from vegrad.networks.rnn import RNN
from vegrad.networks.rows import Rows
from vegrad.networks.sequence_reading import read
from vegrad.networks.subject import NetworkSubject
from vegrad.networks.vocabulary import RecurrentVocabulary
from vegrad.treatment.data import ArrayData


@dataclass(frozen=True)
class SequenceData(ArrayData):
    """Sequences x (N, T, I), their lengths and their targets."""

    lengths: Array | None = None

    @cached_property
    def lags(self) -> Lags | None:
        """The steps that the targets depend on, as all rows tell, where that can be asked."""
        return None if self.lengths is not None else Lags.of(self.x, self.target)

    def take(self, rows: Array) -> tuple[object, Array]:  # type: ignore[override]
        """Return these rows' inputs, beside their lengths if they have some, and targets."""
        x = self.x[rows]
        given = x if self.lengths is None else (x, self.lengths[rows])
        return given, self.target[rows]

    def spread(self) -> tuple[float, float] | Refusal:
        """Return the spread of the columns over rows and steps."""
        if self.lengths is not None:
            return Refusal("the sequences are of unequal length")
        flat = replace(self, x=self.x.reshape(-1, self.x.shape[-1]))
        return ArrayData.spread(flat)

    def target_spread(self) -> tuple[float, float] | Refusal:
        """Return that of targets of one a row."""
        if self.target.ndim > 2:
            return Refusal("")
        return super().target_spread()


def as_memory(memory: object, x: object) -> int:
    """Return the number of steps back that what the task needs lies, within the steps of x."""
    count, shape = as_count("memory", memory), np.shape(cast(npt.ArrayLike, x))
    if len(shape) == 3 and count > shape[1]:
        raise ValueError(f"memory must be at most the {shape[1]} steps of x, not {count}")
    return count


@dataclass
class RecurrentSubject(NetworkSubject):
    """A `vegrad.RNN`; for a cure with the data and the optimizer that it is trained with."""

    network: RNN  # type: ignore[assignment]
    truncation: tuple[int, int] | None = None
    memory: int = 0
    """How many steps back lies what the task needs, if the user says so."""

    axes = "(0, 1)"

    def __post_init__(self) -> None:
        """Raise TypeError if it is no recurrent network."""
        if not isinstance(self.network, RNN):
            raise TypeError(f"network must be a vegrad.RNN, not {type(self.network).__name__}")

    @property
    def vocabulary(self) -> RecurrentVocabulary:  # type: ignore[override]
        """The names of layers, parameters and edits."""
        return RecurrentVocabulary()

    def read(
        self, x: object, target: object, *, resamples: int, seed: int, theory: bool = True
    ) -> Reading:
        """Run the network forward and back on a batch and write down what that tells.

        Args:
            x: (B, T, I), or with the rows' lengths (x, lengths).
            target: as for `RNN.backward`.
            resamples: of no use here.
            seed: of weights drawn anew.
            theory: of no use here.
        """
        given, lengths = x if isinstance(x, tuple) else (x, None)
        reading = read(self.network, self.network.batch(given, target, lengths), seed)
        reading = replace(reading, memory=self.memory)
        if reading.lags is None or not isinstance(self.data, SequenceData) or not len(self.data):
            return reading
        return replace(reading, lags=self.data.lags)  # of more rows than a batch has

    def diagnosed(self, x: object, target: object, *, theory: bool) -> Diagnosis:
        """Diagnose it on a batch."""
        return Diagnosis.of(self.read(x, target, resamples=0, seed=0), None, RecurrentSubject)

    def looking(self, rows: int) -> float:
        """Return what a diagnosis costs, in rows that go forward and back."""
        return float(rows + IN_TIME * self.network.config["layers"])

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        """Do an edit in place, if its shape allows it; else to another network."""
        if isinstance(edit, Truncate):
            if self.network.config["targets"] != "all":
                return Refusal("there is a loss at the last step only")
            self.truncation = edit.every, edit.back
            return Code()
        return super().apply(edit, rows)

    def _editor(self, rows: Array | None) -> RecurrentEditor:
        return RecurrentEditor(cast(MLP, self.network), self.data.x, rows, self.seed)

    def rows(self) -> Rows:
        """Return the data as a training takes them."""
        lengths = self.data.lengths if isinstance(self.data, SequenceData) else None
        return self.network.rows(self.data.x, self.data.target, lengths, self.truncation)

    def _fit_arguments(self) -> list[str]:
        lengths = isinstance(self.data, SequenceData) and self.data.lengths is not None
        found = ["lengths=lengths"] if lengths else []
        return [*found, f"truncation={self.truncation}"] if self.truncation else found

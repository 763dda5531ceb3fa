"""Recurrent cells, as a reading has them: one layer and direction, and what-ifs for its weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from vegrad.arrays.checks import FloatArray
from vegrad.flow.edits import Edit
from vegrad.theory.recurrence import ExpectedRecurrence


@dataclass(frozen=True)
class Gate:
    """The part of a recurrent parameter that belongs to one gate."""

    parameter: str
    part: str
    """ih, hh, b_ih, b_hh or hr."""
    gate: str
    """"" of a cell without gates."""
    rows: tuple[int, int]
    rms: float


class Cell(Protocol):
    """One layer and direction of a recurrent module, with a what-if for its parameters."""

    module: str
    mode: str
    sizes: FloatArray
    """log2 of the gradient's size, (steps back, sets): its own weights, then those drawn anew."""
    flat: FloatArray
    """Share of its gates' elements, over all steps, that are saturated; of the same sets."""
    parts: FloatArray
    """What carry and matrix pass on of the gradient, a step (2, sets)."""
    length: int
    """The steps of a sequence, of which `sizes` may have the last ones only."""

    @property
    def expected(self) -> FloatArray:
        """Carry and matrix as theory expects them of the gates' means (2, sets)."""

    @property
    def anew(self) -> ExpectedRecurrence:
        """The way back through weights as large as its own that are drawn anew."""

    @property
    def backwards(self) -> bool:
        """True if it reads sequences from their end."""

    @property
    def label(self) -> str:
        """How it is called in words: the module, its layer and direction."""

    @property
    def bound(self) -> float:
        """The bound of weights and biases drawn anew, which are uniform within ± it."""

    @property
    def input_rms(self) -> float:
        """Root mean square of what goes in."""

    @property
    def gates(self) -> tuple[Gate, ...]:
        """The sizes of its parameters, gate by gate."""

    def if_changed(self, trials: Sequence[Sequence[Edit]]) -> tuple[FloatArray, FloatArray]:
        """Return sizes (steps back, trials) and shares that are flat, had these been done."""

"""The steps of a training that was recorded, as rules ask for them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from vegrad.arrays.checks import FloatArray
from vegrad.flow.finding import Finding


class NotedFinding(Protocol):
    """A finding that was met while the training ran."""

    @property
    def step(self) -> int:
        """The number of steps that had been taken."""

    @property
    def finding(self) -> Finding:
        """The finding, in its final words."""


class Recorded(Protocol):
    """Columns of S steps, as `vegrad.runs.run.Run` describes them; nan is what is not known."""

    @property
    def step(self) -> FloatArray:
        """Numbers of the steps, (S,)."""

    @property
    def loss(self) -> FloatArray:
        """Loss of each, (S,)."""

    @property
    def gradient_norm(self) -> FloatArray:
        """Joint norm of all gradients before any clip, (S,)."""

    @property
    def clipped_norm(self) -> FloatArray:
        """The same after it, (S,)."""

    @property
    def learning_rate(self) -> FloatArray:
        """(S,)."""

    @property
    def update_ratio(self) -> FloatArray:
        """Size of the update beside that of the weights, (S,)."""

    @property
    def validation_loss(self) -> FloatArray:
        """(S,)."""

    @property
    def modules(self) -> Sequence[str]:
        """Names of modules or weights with known gradients, from the input on if that is known."""

    @property
    def gradient_log2(self) -> FloatArray:
        """log2 of the norm of the gradient of each, (S, M)."""

    @property
    def noted(self) -> tuple[NotedFinding, ...]:
        """Findings that were met while it ran."""

    @property
    def nonfinite(self) -> Mapping[str, float]:
        """First step at which a number of a column that was recorded was not finite."""

    @property
    def about(self) -> Mapping[str, object]:
        """Anything else that is known."""

"""Protocols of what can be shown: the attributes that text, pictures and pages read.

Reports stand below diagnosis and treatment, which call them. So nothing here is imported from
there: whatever has these attributes can be shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.measurement import Measurement
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.theory.expected import ExpectedFlow


class ShownTrend(Protocol):
    """The gain a layer (log2), fitted to the gains of a chain."""

    @property
    def gain(self) -> float:
        """The fitted gain."""

    @property
    def low(self) -> float:
        """The lower end of its 95 % interval."""

    @property
    def high(self) -> float:
        """The upper end of its 95 % interval."""

    @property
    def count(self) -> int:
        """The number of gains."""


class BesideFlow(Protocol):
    """The knowledge that is shown beside a flow: findings, expectations, lost gradients."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings, causes before effects."""

    @property
    def config(self) -> Mapping[str, Any]:
        """The network's arguments, or what else is known of what was looked at."""

    @property
    def underflowed(self) -> tuple[int, ...]:
        """The layers whose weight gradient the dtype stores as 0, though it is not."""

    @property
    def overflowed(self) -> tuple[int, ...]:
        """The layers whose weight gradient the dtype stores as inf, though it is not."""

    @property
    def expected_flow(self) -> ExpectedFlow | None:
        """The flow of layers that theory expects."""


@dataclass(frozen=True)
class Nothing:
    """The knowledge beside a flow that stands alone: none."""

    findings: tuple[Finding, ...] = ()
    config: Mapping[str, object] = field(default_factory=dict)
    underflowed: tuple[int, ...] = ()
    overflowed: tuple[int, ...] = ()
    expected_flow: ExpectedFlow | None = None


class ShownDiagnosis(BesideFlow, Protocol):
    """A verdict with its findings and, as far as they are known, the numbers it rests on."""

    @property
    def verdict(self) -> str:
        """The kind of the first finding, or "healthy"."""

    @property
    def healthy(self) -> bool:
        """True if there is no finding."""

    @property
    def sentence(self) -> str:
        """The first finding's message or, without findings, why all is well."""

    @property
    def summary(self) -> str:
        """The verdict and the sentence."""

    @property
    def left_out(self) -> str:
        """The causes that were left out, as a clause; "" if none was."""

    @property
    def loss(self) -> float | None:
        """The mean loss of the batch."""

    @property
    def layer_flow(self) -> Flow | None:
        """The measured flow of a chain of layers."""

    @property
    def time_flow(self) -> ShownTimeFlow | None:
        """The measured flow of a recurrent network."""

    @property
    def trend(self) -> ShownTrend | None:
        """The trend of the gains."""

    @property
    def measurement(self) -> Measurement | None:
        """The recorded gradients, where nothing else was given."""

    def to_dict(self) -> dict[str, Any]:
        """Return the diagnosis as plain JSON types."""


class ShownHistory(Protocol):
    """A training, in columns of float64.

    An entry a step: loss, gradient_norm, coefficient, learning_rate, alpha, step_length,
    loss_after, slope, slope_after. An entry an epoch: epoch_steps, epoch_loss, validation_loss,
    validation_accuracy. `vegrad.History` says what they are.
    """

    @property
    def steps(self) -> int:
        """The number of steps."""

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The findings about its steps."""

    def __getattr__(self, name: str) -> FloatArray:
        """Return the column of this name."""


@dataclass(frozen=True)
class Comparison:
    """Two trainings to show side by side, and what was measured at their ends.

    Pairs are values before and after the cure. Without `loss` and `accuracy`, a page shows what
    the histories end with.
    """

    before: ShownHistory
    after: ShownHistory
    text: str = ""
    loss: Sequence[float] | None = None
    accuracy: Sequence[float] | None = None
    """Shares of the rows, from 0 to 1."""
    diagnoses: Sequence[ShownDiagnosis] | None = None


class ShownTruncationErrors(Protocol):
    """The loss of each measured window, shortest first."""

    @property
    def window(self) -> npt.NDArray[np.int64]:
        """Steps or layers that are gone back."""

    @property
    def error(self) -> FloatArray:
        """The relative error of the gradient."""

    @property
    def cosine(self) -> FloatArray:
        """The cosine of the angle to the full gradient."""

    @property
    def expected(self) -> FloatArray:
        """The error by formula."""


class ShownTruncation(Protocol):
    """The window that a tolerance needs; see `vegrad.Truncation`."""

    @property
    def noun(self) -> str:
        """The unit that is gone back, "steps" or "layers"."""

    @property
    def total(self) -> int:
        """How many of them there are."""

    @property
    def scheme(self) -> str:
        """The way windows lie: sliding, chunked, last or layers."""

    @property
    def tolerance(self) -> float:
        """The relative error that is allowed."""

    @property
    def window(self) -> int | tuple[int, int] | None:
        """The smallest window, None if none is worth while."""

    @property
    def beyond(self) -> float:
        """The share of the targets that only the steps tell which the window leaves out."""

    @property
    def gain(self) -> float:
        """The factor of the gradient's size a step or layer."""

    @property
    def errors(self) -> ShownTruncationErrors:
        """The relative error of each window."""

    @property
    def parts(self) -> Mapping[str, float]:
        """The relative error of each parameter's gradient at the window."""


class ShownTimeFlow(Protocol):
    """How a gradient went back through time; see `vegrad.TimeFlow`."""

    @property
    def delta_log2(self) -> FloatArray:
        """log2 of the size of δ (L, T)."""

    @property
    def gain_log2(self) -> FloatArray:
        """log2 of the gain of each step back (L, T)."""

    @property
    def passed_log2(self) -> FloatArray:
        """log2 of what a step passes on of a gradient from later ones (L, T)."""

    @property
    def left_log2(self) -> FloatArray:
        """log2 of what each step gets of the last step's gradient (L, T)."""

    @property
    def carry_log2(self) -> FloatArray:
        """The part of the gain that is carried (L, T)."""

    @property
    def matrix_log2(self) -> FloatArray:
        """The part of the gain that goes through the recurrent weights (L, T)."""

    @property
    def reach(self) -> FloatArray:
        """Steps back to where a thousandth is left (L,)."""

    @property
    def time_scales(self) -> FloatArray:
        """Memory of each unit in steps (L, H)."""

    @property
    def every_step(self) -> bool:
        """True if the loss enters at each step."""

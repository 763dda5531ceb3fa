"""Protocols of a run that can be shown: its columns, findings and spikes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.flow.recorded import Recorded
from vegrad.reports.module_text import ModuleRow, TimeRow


class ShownSpikeStep(Protocol):
    """A step near a spike."""

    @property
    def step(self) -> int:
        """Its number."""

    @property
    def batch(self) -> object:
        """The index or name of its batch; None if it is not known."""

    @property
    def loss(self) -> float:
        """The loss of that batch."""

    @property
    def gradient_norm(self) -> float:
        """The joint norm of the gradients."""

    @property
    def update(self) -> float:
        """The size of the update beside the weights'; nan if it was not sampled."""


class ShownSpike(Protocol):
    """A loss or gradient far beyond those before, and the steps around it."""

    @property
    def step(self) -> int:
        """Its step."""

    @property
    def batch(self) -> object:
        """The index or name of its batch; None if it is not known."""

    @property
    def loss_times(self) -> float:
        """The loss over the median of those before."""

    @property
    def norm_times(self) -> float:
        """The gradients' joint norm over the median of those before."""

    @property
    def window(self) -> Sequence[ShownSpikeStep]:
        """The steps around it."""


class ShownMoved(Protocol):
    """The module whose gradient left its usual size first, as a spike came."""

    @property
    def step(self) -> int:
        """The step at which it did."""

    @property
    def module(self) -> str:
        """Its name."""

    @property
    def times(self) -> float:
        """The size of its gradient then over the usual one."""

    @property
    def others(self) -> int:
        """How many more modules' gradients left theirs at that step."""


class ShownRun(Recorded, Protocol):
    """A training, step by step and module by module; see `vegrad.runs.run.Run`."""

    @property
    def floor_log2(self) -> float:
        """log2 of the smallest normal number of the gradients' dtype."""

    @property
    def spikes(self) -> Sequence[ShownSpike]:
        """The spikes of the loss or the gradient."""

    def moved(self, spike: ShownSpike) -> ShownMoved | None:
        """Return the module whose gradient left its usual size first; None if none did."""


@dataclass(frozen=True)
class ShownModules:
    """The modules of a model that is no chain, and the run of its training if there is one."""

    head: str
    """The model, or the run, in a line."""
    rows: Sequence[ModuleRow] = ()
    through_time: Sequence[TimeRow] = ()
    notes: Sequence[str] = ()
    run: ShownRun | None = None
    dtype: str = ""
    """Of the gradients, if it is known."""


def after_clip(run: ShownRun) -> FloatArray:
    """Return the joint norm after the clip, (S,); nan if none was recorded.

    A log has it only at steps at which the clip changed it.
    """
    known = np.isfinite(run.clipped_norm)
    return np.where(known | ~known.any(), run.clipped_norm, run.gradient_norm)


def is_clipped(run: ShownRun) -> npt.NDArray[np.bool_]:
    """Return True for each step at which a clip made the gradients smaller, (S,)."""
    with np.errstate(invalid="ignore"):
        clipped: npt.NDArray[np.bool_] = run.clipped_norm < 0.999 * run.gradient_norm
    return clipped


def drawn(run: ShownRun, column: str) -> npt.NDArray[np.bool_]:
    """Return the steps that a line through a column goes through, (S,).

    Those at which other programs have not logged it are left out; numbers that were not finite are
    gaps.
    """
    values: FloatArray = getattr(run, column)
    return np.isfinite(values) | (column in run.nonfinite)

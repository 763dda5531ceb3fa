"""The course of a training, step by step, as a monitor has seen it."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf, nan

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray


@dataclass(frozen=True, kw_only=True)
class Look:
    """A closer look at the outputs of a few modules, in one step."""

    step: int
    alike: tuple[float, ...]
    """Of each module that is looked at: the share of its output that all rows have in common, as a
    mean square; 1 where they are all the same, nan where it was not seen."""


@dataclass(frozen=True, kw_only=True)
class Course:
    """The steps of a training that were looked at, the oldest first; S of them, of M modules."""

    step: FloatArray
    """Numbers of the steps, (S,)."""
    loss: FloatArray
    """Loss of each batch, (S,); nan where it is not known."""
    norm: FloatArray
    """Joint norm of all gradients, (S,)."""
    rms: FloatArray
    """Root mean square of each module's output, (S, M), in the order of `Reading.modules`."""
    delta: FloatArray
    """Norm of the loss's gradient with respect to it, (S, M)."""
    largest: float = inf
    """The largest number of the narrowest dtype that the outputs have."""
    looked: tuple[str, ...] = ()
    """The modules that closer looks are about, in run order; the last is the model itself."""
    looks: tuple[Look, ...] = ()
    input_rms: float = nan
    """Root mean square of the first input, at the first step; nan if it has no floats."""
    input_column: float = nan
    """The largest of its columns, by its root mean square."""
    outputs: int = 0
    """Elements of the model's output in the first step; 0 if they are not known."""
    loss_kind: str = ""
    """"binary_cross_entropy" of that loss; "" of others."""
    of_zero: FloatArray = field(default_factory=lambda: np.zeros(0))
    """What an output of 0 would have cost, (S,), of a loss that is an error; nan of others."""
    entry: tuple[str, float] = "", nan
    """The module with weights that ran first, and the root mean square of the largest column of
    what it was given, at the first step."""
    complete: bool = True
    """False if the first steps were not kept."""

    @property
    def steps(self) -> int:
        """The number of steps."""
        return len(self.step)

    def until(self, end: int) -> Course:
        """Return the first `end` of the steps."""
        return self.only(slice(end))

    def only(self, chosen: slice | npt.NDArray[np.bool_]) -> Course:
        """Return some of the steps."""
        return replace(
            self,
            step=self.step[chosen],
            loss=self.loss[chosen],
            norm=self.norm[chosen],
            rms=self.rms[chosen],
            delta=self.delta[chosen],
            of_zero=self.of_zero[chosen] if len(self.of_zero) else self.of_zero,
        )


def smooth(values: FloatArray, width: int = 5) -> FloatArray:
    """Return the median of each value and those before it, `width` in all; a NaN counts as inf.

    The first width − 1 are left out.
    """
    if len(values) < width:
        return np.zeros(0)
    finite = np.where(np.isnan(values), inf, values)
    windows = np.lib.stride_tricks.sliding_window_view(finite, width)
    return np.asarray(np.median(windows, axis=1), np.float64)

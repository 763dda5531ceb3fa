"""Inputs and targets as NumPy arrays, for front ends whose data are such."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.flow.subject import Refusal


@dataclass(frozen=True)
class ArrayData:
    """Inputs x (N, I) and targets (N, ...)."""

    x: Array
    target: Array
    numeric: bool = False
    """True if targets are numbers whose unit is free, as with the mean square."""
    units: tuple[Array, float] | None = None
    """The shift and scale that targets were put through: (target - shift)/scale."""

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Array) -> tuple[Array, Array]:
        """Return the inputs and targets of these rows."""
        return self.x[rows], self.target[rows]

    def spread(self) -> tuple[float, float] | Refusal:
        """Return the medians of the columns' standard deviations and of |mean| over that."""
        mean = self.x.mean(axis=0, dtype=np.float64)
        std = self.x.std(axis=0, dtype=np.float64)
        varies = np.ptp(self.x, axis=0) > 0
        if not varies.any():
            return Refusal("the columns of x are constant: there is nothing to scale")
        typical, off = std[varies], np.abs(mean[varies]) / std[varies]
        return float(np.median(typical)), float(np.median(off))

    def target_spread(self) -> tuple[float, float] | Refusal:
        """Return the standard deviation of the targets about their columns' means, and |mean|/std.

        The mean is the largest of the columns'.
        """
        if not self.numeric:
            return Refusal("")  # of labels there is nothing to say
        mean = self.target.mean(axis=0, dtype=np.float64)
        size = float(np.sqrt(np.mean(np.square(self.target - mean))))
        if not size:
            return Refusal("the targets are constant: there is nothing to scale")
        return size, float(np.max(np.abs(mean))) / size

    def table(self, kind: str) -> tuple[Array, Array]:
        """Return both, whatever the loss."""
        return self.x, self.target

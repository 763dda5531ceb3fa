"""The slope of the loss along a step, at its beginning and at its end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import sqrt

import numpy as np

from vegrad.arrays.checks import Array


def copies(arrays: Mapping[str, Array]) -> list[Array]:
    """Return copies of the arrays, in their order."""
    return [array.copy() for array in arrays.values()]


def compared(
    parameters: Mapping[str, Array],
    gradients: Mapping[str, Array],
    parameters_before: Sequence[Array],
    gradients_before: Sequence[Array],
) -> tuple[float, float, float]:
    """Return the slope along a step at its beginning and end, and the step's length."""
    sums = np.zeros(3)
    for before, gradient, name in zip(parameters_before, gradients_before, parameters, strict=True):
        moved = np.subtract(parameters[name], before, dtype=np.float64).ravel()
        sums[0] += moved @ gradient.ravel().astype(np.float64)
        sums[1] += moved @ gradients[name].ravel().astype(np.float64)
        sums[2] += moved @ moved
    return float(sums[0]), float(sums[1]), sqrt(sums[2])

"""Gains of batches drawn again from the rows of one: how far they depend on the batch."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np

from vegrad.arrays.checks import Array, FloatArray

MOST_ROWS = 256  # of a resampled batch


def resampled(
    gains: Callable[[Array], FloatArray], rows: int, chain: int, count: int, seed: int
) -> FloatArray:
    """Return what `gains` gives of rows drawn with replacement, as if of all: (count, chain)."""
    size = min(rows, MOST_ROWS)
    random = np.random.default_rng(seed)
    drawn = [random.integers(0, rows, size) for _ in range(count if rows > 1 else 0)]
    found = np.array([gains(chosen) for chosen in drawn]).reshape(len(drawn), chain)
    if not len(found):
        return found
    with np.errstate(invalid="ignore"):
        middle = found.mean(axis=0)
        shrunk: FloatArray = middle + (found - middle) * sqrt(size / rows)
    return shrunk

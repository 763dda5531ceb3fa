"""Fewer steps of a long run: the ends, what is marked, and an even grid between them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray

MOST = 1000  # steps of a run that is to be drawn or compared
ENDS = 50  # steps kept at either end


def kept_places(
    step: FloatArray, marked: Iterable[float] = (), most: int = MOST
) -> npt.NDArray[np.int64]:
    """Return the places of the steps to keep: all, or about as many as `most`.

    The steps between the ends are multiples of the same number in every run, a power of two times
    the distance between steps, so that two runs that were thinned still share most of theirs.

    Args:
        step: numbers of the steps, (S,), rising.
        marked: numbers of steps that are kept in any case.
        most: steps to keep, beside those that are marked.
    """
    count = len(step)
    if count <= most:
        return np.arange(count)
    kept = np.isin(step, np.fromiter(marked, np.float64))
    kept[:ENDS] = kept[-ENDS:] = True
    apart = float(np.diff(step).min())
    begin = step[0] % apart
    while count > most:
        apart *= 2
        even = (step - begin) % apart == 0
        count = int(even.sum()) + 2 * ENDS
    if count < most // 4:  # the steps lie unevenly, so that hardly one is on the grid
        even = np.zeros(len(step), bool)
        even[np.linspace(0, len(step) - 1, most - 2 * ENDS).round().astype(int)] = True
    return np.flatnonzero(kept | even)

"""The module whose gradient left its usual size first, as a spike came."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray

FEW = 5  # steps before, at least, that say what is usual
LEAST = 1.0  # log2: a gradient that has not doubled or halved has not moved
NOISE = 6.0  # times the median distance of the steps before from their median, on that scale


class Moved(NamedTuple):
    """A module's gradient that left its usual size."""

    step: int
    module: str
    times: float
    """The size of the gradient over the usual one."""
    others: int
    """How many more modules' gradients left theirs at the same step, none by as much."""


def first_moved(
    step: FloatArray, gradient_log2: FloatArray, modules: tuple[str, ...], until: float
) -> Moved | None:
    """Return the first module whose gradient leaves its usual size, up to a step; None if none.

    The usual size is the median of the steps before, at least five of them.

    Args:
        step: numbers of steps, (S,), rising.
        gradient_log2: log2 of the norms of the modules' gradients at these, (S, M).
        modules: their names.
        until: the last step that is looked at.
    """
    for place in range(FEW, len(step)):
        if step[place] > until:
            return None
        before = np.where(np.isfinite(gradient_log2[:place]), gradient_log2[:place], np.nan)
        known = np.isfinite(before).sum(axis=0) >= FEW
        if not known.any():
            continue
        usual = np.nanmedian(before[:, known], axis=0)
        spread = np.nanmedian(np.abs(before[:, known] - usual), axis=0)
        away = gradient_log2[place, known] - usual
        far = np.abs(away) > np.maximum(LEAST, NOISE * spread)
        if far.any():
            most = int(np.argmax(np.where(far, np.abs(away), -1.0)))
            name = modules[np.flatnonzero(known)[most]]
            return Moved(int(step[place]), name, float(np.exp2(away[most])), int(far.sum()) - 1)
    return None

"""The gauge of a training: where a step lands on the parabola that fits the loss along it."""

from __future__ import annotations

import numpy as np

from vegrad.arrays.checks import Array, FloatArray

# The least-squares solution for the coefficients of a + b τ + c τ², given its values at τ = 0 and 1
# and its slopes there.
PARABOLA = np.linalg.pinv([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]])


def parabola(records: Array) -> tuple[FloatArray, FloatArray]:
    """Fit b τ + c τ² to the loss along each step, from its beginning τ = 0 to its end τ = 1.

    The fit is by least squares in four equations: loss and slope at both ends of the step.

    Args:
        records: (steps, 8), as `_core.Trainer` writes them: column 0 holds the loss before the
            step, 4 the loss after it, 5 and 6 the slopes at its two ends.

    Returns:
        b, the slope at the step's begin, and c, half the curvature; both (steps,).
    """
    loss, after, slope, slope_after = records[:, [0, 4, 5, 6]].T
    ends = np.array([loss, after, slope, slope_after])
    _, b, c = PARABOLA @ ends
    return b, c

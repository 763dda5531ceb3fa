"""Recurrent weights that keep the gradient's size from step to step, found before any training.

The regularizer Ω of Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063) is descended by itself: the
mean of (r - 1)², where r is the squared norm of what a step passes back over that of what came to
it. As there, its derivative is taken with respect to U alone, states and gradients held. The
network is driven by noise in place of data.
"""

from __future__ import annotations

from math import exp, inf

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray

STEPS, ROWS, TRANSIENT = 40, 8, 10
ROUNDS, RATE = 120, 0.05  # of the norm of U
CLOSE = 0.01  # log of the gain a step


def steadied(
    weights: npt.ArrayLike, drive: float, *, cell: str = "tanh", seed: int = 0
) -> FloatArray:
    """Return recurrent weights (H, H) near these whose gradients keep their size through time.

    Args:
        weights: U (H, H).
        drive: standard deviation of what inputs and biases give a pre-activation.
        cell: tanh or relu.
        seed: of the noise.
    """
    u = np.array(weights, np.float64)
    if u.ndim != 2 or u.shape[0] != u.shape[1]:
        raise ValueError(f"weights must be (H, H), not {u.shape}")
    random = np.random.default_rng(seed)
    best, least = u, inf
    for round_ in range(ROUNDS):
        z = drive * random.standard_normal((STEPS, ROWS, len(u)))
        gain, gradient = _omega(u, z, cell, random.standard_normal((ROWS, len(u))))
        if abs(gain) < least:
            best, least = u, abs(gain)
        size = float(np.linalg.norm(gradient))
        if least < CLOSE or not 0 < size < inf:
            break
        step = RATE * float(np.linalg.norm(u)) * exp(-4 * round_ / ROUNDS)
        u = u - step / size * gradient
    return best


def _omega(u: FloatArray, z: FloatArray, cell: str, given: FloatArray) -> tuple[float, FloatArray]:
    """Return the mean log of the gain a step, and the derivative of Ω with respect to U."""
    h, slopes = np.zeros_like(given), list[FloatArray]()
    for drive in z:
        a = drive + h @ u.T
        h = np.tanh(a) if cell == "tanh" else np.maximum(a, 0.0)
        slopes.append(1 - h * h if cell == "tanh" else (a > 0).astype(np.float64))
    gradient, logs, delta = np.zeros_like(u), list[float](), given
    with np.errstate(all="ignore"):
        for slope in slopes[:TRANSIENT:-1]:
            delta = delta / np.linalg.norm(delta, axis=1, keepdims=True)
            back = delta * slope
            through = back @ u
            ratio = np.sum(through * through, axis=1)
            logs.append(float(np.mean(np.log(ratio))) / 2)
            gradient += 4 * ((ratio - 1)[:, None] * back).T @ through
            delta = through
    return float(np.mean(logs)), gradient

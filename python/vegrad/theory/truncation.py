"""The error of truncated backpropagation through time, from the gain of one step alone."""

from __future__ import annotations

from math import ceil, expm1, inf, log, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray, as_count, as_limit
from vegrad.arrays.shown import shown


def truncation_error(gain: float, steps: int, window: int, every: int | None = None) -> float:
    """Return the relative error of a recurrent weight's gradient under a truncation.

    A loss at step t reaches step t - j through j factors, so that its part of the gradient from
    there has the size gain^j; these parts are taken to have independent directions. Where all
    losses reach back K steps the error is gain^K, and chunks of K are off by
    √(χ(1 - χ^K)/(K(1 - χ))), χ = gain², but for the ends of the sequence, which are counted here.
    Parts that point the same way are lost as much more as they add up.

    Args:
        gain: the factor by which a step back changes the size of the gradient.
        steps: T, of a sequence.
        window: K, the steps that are gone back; T and more lose nothing.
        every: k1, the steps after which a window ends: 1 for a window at each step, K for chunks.
            None if the loss enters at the last step only, from which K steps are gone back.

    Returns:
        ‖truncated - full‖/‖full‖, from 0 to 1.

    Raises:
        TypeError, ValueError: steps, window or every below 1, every above window, a negative gain.
    """
    gain = as_limit("gain", gain)
    steps, window = as_count("steps", steps, 1), as_count("window", window, 1)
    if every is None:
        last = np.array([steps])
        lags, reach = last, np.minimum(last, window)
    else:
        every = as_count("every", every, 1)
        if every > window:
            raise ValueError(f"every must be at most window = {window}, not {every}")
        lags = np.arange(1, steps + 1)  # parts of the loss of each step
        reach = np.minimum(lags, window - -lags % every)
    growth = 2 * log(gain) if gain > 0 else -inf
    lost, all_of_it = _squares(growth, reach, lags), _squares(growth, np.zeros_like(lags), lags)
    return sqrt(float(lost.sum()) / float(all_of_it.sum()))


def _squares(growth: float, first: np.ndarray, end: np.ndarray) -> FloatArray:
    """Return Σ exp(growth·j) of j from `first` to below `end`; if growth > 0, over exp(growth·T).

    An empty sum is 0.
    """
    count = end - first
    if growth == -inf:
        return np.where(first == 0, 1.0, 0.0)
    if growth == 0:
        return np.asarray(count, np.float64)
    largest = first if growth < 0 else end - 1 - end.max()
    size = np.exp(growth * largest) * np.expm1(-abs(growth) * count) / np.expm1(-abs(growth))
    return np.asarray(size, np.float64)


def truncation_window(gain: float, error: float, scheme: str = "sliding") -> float:
    """Return the smallest window whose error is at most `error`, of a sequence that has no end.

    It is for losses at every step. With windows of k2 steps every k1, every loss goes back at least
    k2 - k1 + 1 steps: k2 is the sliding window and k1 - 1 more.

    Args:
        gain: the factor by which a step back changes the size of the gradient.
        error: relative, as in `truncation_error`.
        scheme: "sliding" (every loss goes back K steps, error gain^K) or "chunked" (K steps
            forward, K back, error √(χ(1 - χ^K)/(K(1 - χ))), which falls as 1/√K only).

    Returns:
        The number of steps, a whole number; inf if the gain is 1 or more, where none is enough.

    Raises:
        TypeError, ValueError: error is not between 0 and 1; another scheme; a negative gain.
    """
    gain, error = as_limit("gain", gain), as_limit("error", error)
    if not 0 < error < 1:
        raise ValueError(f"error must be above 0 and below 1, not {error}")
    if scheme not in ("sliding", "chunked"):
        raise ValueError(f"scheme must be sliding or chunked, not {shown(scheme)}")
    if gain >= 1.0:
        return inf
    if gain <= error:
        return 1.0
    if scheme == "sliding":
        return float(ceil(log(error) / log(gain) - 1e-12))
    chi = gain * gain
    low, high = 1, ceil(chi / ((1.0 - chi) * error**2))  # enough, as 1 - χ^K is below 1
    while high - low > 1:
        middle = (low + high) // 2
        enough = chi * -expm1(middle * log(chi)) <= error**2 * middle * (1.0 - chi)
        low, high = (low, middle) if enough else (middle, high)
    return float(high)

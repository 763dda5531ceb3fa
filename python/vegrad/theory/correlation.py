"""Two samples in a wide random network: their correlation, and the depth scales.

The correlation c of two samples' pre-activations follows c ← C(c) from layer to layer, at the fixed
point q* of `meanfield`. This module computes C, its fixed point c*, and the number of layers over
which a variance, a correlation and a gradient approach their ends.

It must guarantee digits near c = 1, where everything of interest happens: just above criticality
1 - c* is in proportion to χ₁ - 1, and may be 1e-10. So all is done on t = 1 - c, never on c.
Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017 (arXiv:1611.01232).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from math import inf, isfinite, log

import numpy as np

from vegrad.arrays.checks import FloatArray, refuse_masked
from vegrad.theory.gaussian import (
    Quantity,
    activation_of,
    check_sigma,
    mean_square,
    pair_mean,
    rectifier_decorrelation,
)
from vegrad.theory.meanfield import chi, chi_parallel, fixed_point, solve


@dataclass(frozen=True)
class DepthScales:
    """Numbers of layers over which something falls to 1/e: negative if it grows, inf if it stays.

    A network trains to a depth of about six times the gradient's (Schoenholz 2017).
    """

    variance: float
    """ξ_q = -1/ln V′(q*), over which a sample's variance approaches q*."""
    correlation: float
    """ξ_c = -1/ln C′(c*), over which the correlation of two samples approaches c*."""
    gradient: float
    """ξ_∇ = -1/ln χ₁, over which ‖δ‖² falls, from the last layer down."""


def correlation_map(
    c: Quantity,
    activation: str,
    sigma_w: float,
    sigma_b: float,
    *,
    negative_slope: float = 0.01,
) -> Quantity:
    """Return C(c) = (σ_w² E φ(u)φ(v) + σ_b²)/q*, u and v ~ N(0, q*) with correlation c.

    Poole 2016, eq. 5. Where q* is 0, inf or any value, it is the limit: the map of the half-lines
    that φ is there, without bias.

    Args:
        c: correlations from -1 to 1, a number or an array.
        activation: its name.
        sigma_w: weights have variance sigma_w²/fan_in.
        sigma_b: standard deviation of biases.
        negative_slope: slope of leaky_relu on the left.

    Raises:
        TypeError, ValueError: as `variance_map`; or c is not from -1 to 1.
    """
    refuse_masked(c, "c")
    array = np.asarray(c, np.float64)
    if not np.all(np.abs(array) <= 1):
        raise ValueError(f"c must be from -1 to 1, got {array[~(np.abs(array) <= 1)].flat[0]}")
    fall = _decorrelation(activation, sigma_w, sigma_b, negative_slope)
    values = np.array([1.0 - fall(1.0 - v) for v in array.ravel()]).reshape(array.shape)
    return values if isinstance(c, np.ndarray) else float(values)


def _decorrelation(
    activation: str, sigma_w: float, sigma_b: float, negative_slope: float
) -> Callable[[float], float]:
    """Return 1 - C(1 - t) as a function of t = 1 - c, which keeps its digits as t → 0.

    By V(q*) = q* it is σ_w² E(φ(u) - φ(v))²/(2 q*).
    """
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if a.rectifier or q == 0.0 or not isfinite(q):
        slopes = a.at_zero if q == 0.0 and a.at_zero else a.at_infinity
        share = 1.0 if q == 0.0 or not isfinite(q) else sigma_w**2 * mean_square(slopes)
        return lambda t: share * rectifier_decorrelation(slopes, t)

    def difference(u: FloatArray, v: FloatArray) -> FloatArray:
        return (a.phi(u) - a.phi(v)) ** 2

    factor = sigma_w * sigma_w / (2.0 * q)
    return lambda t: factor * pair_mean(difference, q, t, a.kinks) if t > 0.0 else 0.0


def correlation_fixed_point(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> float:
    """Return c* = C(c*), the correlation that two different samples come to (Poole 2016).

    It is 1 in the ordered phase and on the critical line, and below 1 in the chaotic phase.
    Arguments and errors are those of `variance_map`.
    """
    activation_of(activation, negative_slope)
    w, b = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b)
    return 1.0 - _decorrelated(activation, w, b, float(negative_slope))


@lru_cache(maxsize=1024)
def _decorrelated(activation: str, sigma_w: float, sigma_b: float, negative_slope: float) -> float:
    """Return 1 - c*."""
    at = (activation, sigma_w, sigma_b)
    q = fixed_point(*at, negative_slope=negative_slope)
    known = activation_of(activation, negative_slope).rectifier
    if known or q == 0.0 or not isfinite(q) or chi(*at, negative_slope=negative_slope) <= 1.0:
        return 0.0
    fall = _decorrelation(*at, negative_slope)

    def excess(t: float) -> float:
        # C has a positive Taylor series, so that this falls from χ₁ - 1 to 0 or less.
        return fall(t) / t - 1.0

    if excess(1.0) >= -1e-13:
        return 1.0
    low = 0.5
    while low > 1e-15 and excess(low) <= 0.0:
        low /= 4.0
    return solve(excess, low, min(1.0, 4.0 * low)) if low > 1e-15 else 0.0


def _chi_correlation(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float
) -> float:
    """Return C′(c*) = σ_w² E φ′(u)φ′(v) at c*."""
    at = (activation, sigma_w, sigma_b)
    q = fixed_point(*at, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if sigma_w > 0.0 and (q == 0.0 or not isfinite(q)):
        return 1.0  # of half-lines without bias: 1 - c falls, but more slowly than by a factor
    t = _decorrelated(activation, float(sigma_w), float(sigma_b), float(negative_slope))
    if t == 0.0:
        return chi(*at, negative_slope=negative_slope)

    def product(u: FloatArray, v: FloatArray) -> FloatArray:
        return a.slope(u) * a.slope(v)

    return sigma_w * sigma_w * pair_mean(product, q, t, a.kinks)


def depth_scales(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> DepthScales:
    """Return ξ = -1/ln of V′(q*), of C′(c*) and of χ₁ (Schoenholz 2017, eq. 9, 11 and 13).

    Arguments and errors are those of `variance_map`.
    """
    at = (activation, sigma_w, sigma_b)
    return DepthScales(
        variance=_scale(chi_parallel(*at, negative_slope=negative_slope)),
        correlation=_scale(_chi_correlation(*at, negative_slope=negative_slope)),
        gradient=_scale(chi(*at, negative_slope=negative_slope)),
    )


def _scale(factor: float) -> float:
    if factor <= 0.0:
        return 0.0
    return inf if abs(factor - 1.0) < 1e-15 else -1.0 / log(factor)

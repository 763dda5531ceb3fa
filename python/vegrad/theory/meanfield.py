"""Variance maps, correlation maps and criticality of wide random networks.

z^l = W^l φ(z^{l-1}) + b^l with Var W = σ_w²/fan_in and Var b = σ_b². In the limit of wide layers
the pre-activations are Gaussian with variance q, which follows q ← V(q), and the correlation c of
two samples follows c ← C(c). Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017
(arXiv:1611.01232), Pennington et al. 2017 (arXiv:1711.04735), Hayou et al. 2019
(arXiv:1902.06853).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf, isfinite, isinf, isnan, log, nan, sqrt
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.gaussian import (
    Activation,
    Quantity,
    activation_of,
    check_sigma,
    derivative_second_moment,
    mean,
    mean_square,
    pair_mean,
    rectifier_decorrelation,
    second_moment,
    slope_of_second_moment,
)

RATIO = 1.2  # from one q to the next where a fixed point is searched
LARGEST, SMALLEST = 1e18, 1e-16
ROUNDING = 4e-15  # of V(q)/q

# σ_b of init="critical": 0 where the critical point there is a good place to be, else the value
# with which the literature shows the activation (Schoenholz 2017, Hayou 2019).
CRITICAL_SIGMA_B = {
    "identity": 0.0, "relu": 0.0, "leaky_relu": 0.0, "sigmoid": 0.0, "tanh": sqrt(0.05),
    "erf": sqrt(0.05), "hard_tanh": sqrt(0.05), "elu": 0.2, "selu": 0.2, "gelu": sqrt(0.3),
    "silu": sqrt(0.8),
}  # fmt: skip


@dataclass(frozen=True)
class DepthScales:
    """Layers over which something falls to 1/e; negative where it grows, inf where it stays.

    A network trains to a depth of about six times the gradient's (Schoenholz 2017).
    """

    variance: float
    """ξ_q = -1/ln V′(q*): a sample's variance approaches q*."""
    correlation: float
    """ξ_c = -1/ln C′(c*): two samples' correlation approaches c*."""
    gradient: float
    """ξ_∇ = -1/ln χ₁: of ‖δ‖², from the last layer down."""


@dataclass(frozen=True)
class CriticalPoint:
    """A point (σ_w, σ_b) at which ‖δ‖² keeps its size: χ₁ = 1."""

    sigma_w: float
    q: float
    """The variance there; nan where it is whatever the input's is (rectifiers)."""
    stable: bool
    """Whether a variance beside q returns to it, or at least stays: V′(q) ≤ 1."""


# The variance ----------------------------------------------------------------------------------


def variance_map(
    q: Quantity,
    activation: str,
    sigma_w: float,
    sigma_b: float,
    *,
    negative_slope: float = 0.01,
) -> Quantity:
    """V(q) = σ_w² E φ(√q Z)² + σ_b², the next layer's variance (Poole 2016, eq. 3).

    Args:
        q: this layer's variance, a number or an array.
        activation: a name.
        sigma_w: weights have variance sigma_w²/fan_in.
        sigma_b: standard deviation of biases.
        negative_slope: of leaky_relu.

    Raises:
        TypeError, ValueError: an unknown activation; a q or sigma that is negative.
    """
    w, b = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b)
    moment = second_moment(activation, q, negative_slope=negative_slope)
    return w * w * moment + b * b


def fixed_point(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> float:
    """q* = V(q*), the one to which a network fed with variance 1 comes (Poole 2016).

    Solved, not iterated. 0 where the signal dies out, inf where it grows without bound, nan where
    every q is one (rectifiers at σ_w² E φ′² = 1 without bias). Arguments and errors as of
    `variance_map`.
    """
    activation_of(activation, negative_slope)
    w, b = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b)
    return _fixed_point(activation, w, b, float(negative_slope))


@lru_cache(maxsize=1024)
def _fixed_point(name: str, w: float, b: float, slope: float) -> float:
    a = activation_of(name, slope)
    if w == 0.0:
        return b * b
    if a.rectifier:
        excess = w * w * mean_square(a.at_infinity) - 1.0
        if abs(excess) < ROUNDING:
            return inf if b > 0 else nan
        return inf if excess > 0 else b * b / -excess

    def growth(q: FloatArray) -> FloatArray:
        """V(q)/q - 1, 0 where that is rounding."""
        ratio = variance_map(q, name, w, b, negative_slope=slope) / q - 1.0
        return np.where(np.abs(ratio) < ROUNDING, 0.0, ratio)

    start = float(growth(np.array([1.0]))[0])
    if start == 0.0:
        return 1.0
    steps = np.log(LARGEST if start > 0 else min(SMALLEST, max(b * b / 2.0, 1e-300))) / log(RATIO)
    grid = RATIO ** (np.sign(start) * np.arange(int(abs(steps)) + 2))
    bracket = _first_change(growth, grid, np.sign(start))
    if bracket is None:
        return inf if start > 0 else 0.0
    return solve(lambda q: float(growth(np.array([q]))[0]), *bracket)


def _first_change(
    f: Callable[[FloatArray], FloatArray], grid: FloatArray, sign: float
) -> tuple[float, float] | None:
    """Neighbours between which f changes from `sign`, also where it does so twice in one step."""
    values = sign * f(grid)
    change = np.flatnonzero(values < 0)
    last = int(change[0]) if change.size else len(grid)
    for i in range(1, min(last, len(grid) - 1)):
        if 0 < values[i] < 0.02 and values[i] <= min(values[i - 1], values[i + 1]):
            fine = np.geomspace(grid[i - 1], grid[i + 1], 64)
            inner = np.flatnonzero(sign * f(fine) < 0)
            if inner.size:
                return float(fine[inner[0] - 1]), float(fine[inner[0]])
    if last == len(grid):
        return None
    before = last - 1
    while values[before] == 0.0:
        before -= 1
    return float(grid[before]), float(grid[last])


def solve(f: Callable[[float], float], a: float, b: float) -> float:
    """A root of f between a and b > 0, where its signs differ, to rounding (Chandrupatla 1997)."""
    fa, fb = f(a), f(b)
    if fa == 0.0 or fb == 0.0:
        return a if fa == 0.0 else b
    c, fc, share = a, fa, 0.5
    for _ in range(200):
        x = a + share * (b - a)
        fx = f(x)
        if (fx > 0) == (fa > 0):
            c, fc = a, fa
        else:
            c, b, fc, fb = b, a, fb, fa
        a, fa = x, fx
        best, f_best = (a, fa) if abs(fa) < abs(fb) else (b, fb)
        tolerance = 2.3e-16 * abs(best) / abs(b - c) if b != c else 1.0
        if f_best == 0.0 or tolerance > 0.5:
            return best
        xi, phi = (a - b) / (c - b), (fa - fb) / (fc - fb)
        if phi**2 < xi and (1.0 - phi) ** 2 < 1.0 - xi:
            share = fa / (fb - fa) * fc / (fb - fc)
            share += (c - a) / (b - a) * fa / (fc - fa) * fb / (fc - fb)
        else:
            share = 0.5
        share = min(1.0 - tolerance, max(tolerance, share))
    return best


# Gradients -------------------------------------------------------------------------------------


def chi(activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01) -> float:
    """χ₁ = σ_w² E φ′(√q* Z)²: the growth of ‖δ‖² from one layer to the one below.

    Schoenholz 2017, eq. 6. Above 1 gradients explode, below 1 they vanish; where q* is 0 or inf
    it is the limit there. Arguments and errors as of `variance_map`.
    """
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if isnan(q) or isinf(q):
        return sigma_w * sigma_w * mean_square(a.at_infinity)
    return (
        sigma_w * sigma_w * derivative_second_moment(activation, q, negative_slope=negative_slope)
    )


def chi_parallel(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> float:
    """V′(q*) = σ_w² E[x φ(x) φ′(x)]/q*, x = √q* Z: how fast a variance returns to q*.

    Schoenholz 2017, eq. 9. Arguments and errors as of `variance_map`.
    """
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if sigma_w == 0.0:
        return 0.0
    slope = slope_of_second_moment(a, np.array([inf if isnan(q) else q]))
    return sigma_w * sigma_w * float(slope[0])


def depth_scales(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> DepthScales:
    """ξ = -1/ln of V′(q*), of C′(c*) and of χ₁ (Schoenholz 2017, eq. 9, 11 and 13).

    Arguments and errors as of `variance_map`.
    """
    at = (activation, sigma_w, sigma_b)
    return DepthScales(
        _scale(chi_parallel(*at, negative_slope=negative_slope)),
        _scale(_chi_correlation(*at, negative_slope=negative_slope)),
        _scale(chi(*at, negative_slope=negative_slope)),
    )


def _scale(factor: float) -> float:
    if factor <= 0.0:
        return 0.0
    return inf if abs(factor - 1.0) < 1e-15 else -1.0 / log(factor)


# The correlation of two samples ----------------------------------------------------------------


def correlation_map(
    c: Quantity,
    activation: str,
    sigma_w: float,
    sigma_b: float,
    *,
    negative_slope: float = 0.01,
) -> Quantity:
    """C(c) = (σ_w² E φ(u)φ(v) + σ_b²)/q*, u and v ~ N(0, q*) with correlation c.

    Poole 2016, eq. 5. Where q* is 0 or inf (or any), its limit: the map of the half-lines that φ
    is there, without bias.

    Args:
        c: correlations from -1 to 1, a number or an array.
        activation: a name.
        sigma_w: weights have variance sigma_w²/fan_in.
        sigma_b: standard deviation of biases.
        negative_slope: of leaky_relu.

    Raises:
        TypeError, ValueError: as `variance_map`; a c that is not from -1 to 1.
    """
    array = np.asarray(c, np.float64)
    if not np.all(np.abs(array) <= 1):
        raise ValueError(f"c must be from -1 to 1, got {array[~(np.abs(array) <= 1)].flat[0]}")
    fall = _decorrelation(activation, sigma_w, sigma_b, negative_slope)
    values = np.array([1.0 - fall(1.0 - v) for v in array.ravel()]).reshape(array.shape)
    return values if isinstance(c, np.ndarray) else float(values)


def _decorrelation(
    activation: str, sigma_w: float, sigma_b: float, negative_slope: float
) -> Callable[[float], float]:
    """The function 1 - C(1 - t) of t = 1 - c, which keeps its digits as t → 0.

    From V(q*) = q*: 1 - C = σ_w² E(φ(u) - φ(v))²/(2 q*).
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
    """c* = C(c*), the correlation to which two different samples come (Poole 2016).

    1 in the ordered phase and on the critical line, below 1 in the chaotic phase. Arguments and
    errors as of `variance_map`.
    """
    activation_of(activation, negative_slope)
    w, b = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b)
    return 1.0 - _decorrelated(activation, w, b, float(negative_slope))


@lru_cache(maxsize=1024)
def _decorrelated(activation: str, sigma_w: float, sigma_b: float, negative_slope: float) -> float:
    """1 - c*."""
    at = (activation, sigma_w, sigma_b)
    q = fixed_point(*at, negative_slope=negative_slope)
    known = activation_of(activation, negative_slope).rectifier
    if known or q == 0.0 or not isfinite(q) or chi(*at, negative_slope=negative_slope) <= 1.0:
        return 0.0
    fall = _decorrelation(*at, negative_slope)

    def excess(t: float) -> float:
        # C has a positive Taylor series, so that this falls from χ₁ - 1 to at most 0.
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
    """C′(c*) = σ_w² E φ′(u)φ′(v) at c*."""
    at = (activation, sigma_w, sigma_b)
    q = fixed_point(*at, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if sigma_w > 0.0 and (q == 0.0 or not isfinite(q)):
        return 1.0  # half-lines without bias: 1 - c falls, but not by a factor a layer
    t = _decorrelated(activation, float(sigma_w), float(sigma_b), float(negative_slope))
    if t == 0.0:
        return chi(*at, negative_slope=negative_slope)

    def product(u: FloatArray, v: FloatArray) -> FloatArray:
        return a.slope(u) * a.slope(v)

    return sigma_w * sigma_w * pair_mean(product, q, t, a.kinks)


# Criticality -----------------------------------------------------------------------------------


def critical_point(
    activation: str, sigma_b: float, *, negative_slope: float = 0.01
) -> CriticalPoint | None:
    """The σ_w at which gradients neither grow nor shrink, for a given σ_b.

    On the critical line σ_w² = 1/A(q) and σ_b² = q - B(q)/A(q) (Schoenholz 2017; Hayou 2019):
    one equation for q. Of several solutions it is a stable one, else the one of smallest q. At
    σ_b = 0 an activation with φ(0) = 0 has its point at q = 0, σ_w² = 1/E φ′(0)²; sigmoid has one
    at q = 45.6.

    Returns:
        None if there is no such point: softplus at any σ_b, rectifiers at σ_b > 0.

    Raises:
        TypeError, ValueError: an unknown activation; a negative sigma_b.
    """
    a, b = activation_of(activation, negative_slope), check_sigma("sigma_b", sigma_b)
    return _critical_point(activation, a, b, float(negative_slope))


def _critical_point(name: str, a: Activation, b: float, slope: float) -> CriticalPoint | None:
    def bias(q: Any) -> Any:
        """σ_b² on the critical line, less the one that is wanted."""
        second = second_moment(name, q, negative_slope=slope)
        return q - second / derivative_second_moment(name, q, negative_slope=slope) - b * b

    def point(q: float) -> CriticalPoint:
        square = derivative_second_moment(name, q, negative_slope=slope)
        near = np.array([q if q > 0 else 1e-5])
        return CriticalPoint(
            1.0 / sqrt(square), q, bool(slope_of_second_moment(a, near)[0] <= square * (1 + 1e-12))
        )

    if a.rectifier:
        square = mean_square(a.at_infinity)
        return CriticalPoint(1.0 / sqrt(square), nan, True) if b == 0.0 and square else None
    if b == 0.0 and a.at_zero:
        return point(0.0)
    grid = 1e-10 * RATIO ** np.arange(350)
    values = bias(grid)
    noise = ROUNDING * grid
    sign = np.where(np.abs(values) < noise, 0.0, np.sign(values))
    known = np.flatnonzero(sign)
    changes = [(i, j) for i, j in pairwise(known) if sign[i] != sign[j]]
    points = [point(solve(bias, float(grid[i]), float(grid[j]))) for i, j in changes]
    return next((p for p in points if p.stable), points[0] if points else None)


# Gains -----------------------------------------------------------------------------------------


def gain(activation: str, *, negative_slope: float = 0.01) -> float:
    """1/√(B(1) - m(1)²): the factor that gives φ(Z) variance 1 (Brock et al. 2021).

    arXiv:2101.08692, whose published numbers are Monte Carlo and 0.03 to 0.09 % off.

    Raises:
        TypeError, ValueError: an unknown activation.
    """
    first = mean(activation, 1.0, negative_slope=negative_slope)
    return 1.0 / sqrt(second_moment(activation, 1.0, negative_slope=negative_slope) - first**2)


def normalized_chi(activation: str, *, negative_slope: float = 0.01) -> float:
    """A(1)/B(1): χ where every layer's pre-activations are brought to variance 1.

    By layer normalization (Doshi, He & Gromov 2023, arXiv:2111.12143) or by LSUV (Mishkin & Matas
    2016, arXiv:1511.06422); without biases.

    Raises:
        TypeError, ValueError: an unknown activation.
    """
    slopes = derivative_second_moment(activation, 1.0, negative_slope=negative_slope)
    return slopes / second_moment(activation, 1.0, negative_slope=negative_slope)

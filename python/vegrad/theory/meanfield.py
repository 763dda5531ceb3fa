"""Variance maps and criticality of wide random networks.

A layer is z^l = W^l φ(z^{l-1}) + b^l with Var W = σ_w²/fan_in and Var b = σ_b². In the limit of
wide layers the pre-activations are Gaussian with variance q, and the next layer's variance is V(q).
This module solves for the fixed point q* = V(q*), the factor χ₁ by which ‖δ‖² grows at it from a
layer to the one below, and the σ_w at which χ₁ = 1. `correlation` adds what happens to two samples.

It must guarantee that fixed points are solved for and not iterated to: near criticality iteration
takes 1e8 steps and more. Every function is defined at the ends as well: q* may be 0 (the signal
dies out), inf (it grows without bound) or nan (any q is a fixed point, as with rectifiers at their
critical σ_w).

It leaves out finite width (see `moments` and `propagation`), skip connections and normalization.
Sources: Poole et al. 2016 (arXiv:1606.05340), Schoenholz et al. 2017 (arXiv:1611.01232), Pennington
et al. 2017 (arXiv:1711.04735), Hayou et al. 2019 (arXiv:1902.06853).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import inf, isinf, isnan, log, nan, sqrt

import numpy as np

from vegrad.activations import ACTIVATIONS, Activation
from vegrad.arrays.checks import FloatArray
from vegrad.theory.gaussian import (
    Quantity,
    activation_of,
    check_sigma,
    derivative_second_moment,
    mean,
    mean_square,
    second_moment,
    slope_of_second_moment,
)

RATIO = 1.2  # between neighbouring q where a fixed point is searched for
LARGEST, SMALLEST = 1e18, 1e-16  # the ends of that search
ROUNDING = 4e-15  # relative error of V(q)/q

CRITICAL_SIGMA_B = {
    name: row.critical_sigma_b
    for name, row in ACTIVATIONS.items()
    if row.critical_sigma_b is not None
}


@dataclass(frozen=True)
class CriticalPoint:
    """A point (σ_w, σ_b) at which ‖δ‖² keeps its size: χ₁ = 1."""

    sigma_w: float
    q: float
    """The variance there; nan for rectifiers, where it is that of the input."""
    stable: bool
    """True if a variance beside q returns to it, or at least stays: V′(q) ≤ 1."""


# The variance ----------------------------------------------------------------------------------


def variance_map(
    q: Quantity,
    activation: str,
    sigma_w: float,
    sigma_b: float,
    *,
    negative_slope: float = 0.01,
) -> Quantity:
    """Return V(q) = σ_w² E φ(√q Z)² + σ_b², the next layer's variance (Poole 2016, eq. 3).

    Args:
        q: this layer's variance, a number or an array.
        activation: its name.
        sigma_w: weights have variance sigma_w²/fan_in.
        sigma_b: standard deviation of biases.
        negative_slope: slope of leaky_relu on the left.

    Raises:
        TypeError, ValueError: the activation is unknown; q or a sigma is negative.
    """
    w, b = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b)
    moment = second_moment(activation, q, negative_slope=negative_slope)
    return w * w * moment + b * b


def fixed_point(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> float:
    """Return the fixed point q* = V(q*) that a network fed with variance 1 comes to (Poole 2016).

    It is solved for, not iterated to: 0 where the signal dies out, inf where it grows without
    bound, nan where every q is a fixed point (rectifiers at σ_w² E φ′² = 1 without bias).
    Arguments and errors are those of `variance_map`.
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
        """Return V(q)/q - 1, or 0 where that is but rounding."""
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
    """Return the first neighbours on the grid between which f loses this sign; None if none do.

    A double change within one step of the grid shows as a local minimum near 0, and is looked for
    on a finer grid.
    """
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
    """Return the root of f between a and b > 0, where its signs differ (Chandrupatla 1997).

    It is exact up to rounding.
    """
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
    """Return χ₁ = σ_w² E φ′(√q* Z)², the growth of ‖δ‖² from one layer to the one below.

    Schoenholz 2017, eq. 6. Above 1 gradients explode, below 1 they vanish; where q* is 0 or inf
    it is the limit there. Arguments and errors are those of `variance_map`.
    """
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if isnan(q) or isinf(q):
        return sigma_w * sigma_w * mean_square(a.at_infinity)
    slopes = derivative_second_moment(activation, q, negative_slope=negative_slope)
    return sigma_w * sigma_w * slopes


def chi_parallel(
    activation: str, sigma_w: float, sigma_b: float, *, negative_slope: float = 0.01
) -> float:
    """Return V′(q*) = σ_w² E[x φ(x) φ′(x)]/q*, x = √q* Z: how fast a variance returns to q*.

    Schoenholz 2017, eq. 9. Arguments and errors are those of `variance_map`.
    """
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    a = activation_of(activation, negative_slope)
    if sigma_w == 0.0:
        return 0.0
    slope = slope_of_second_moment(a, np.array([inf if isnan(q) else q]))
    return sigma_w * sigma_w * float(slope[0])


# Criticality -----------------------------------------------------------------------------------


def critical_point(
    activation: str, sigma_b: float, *, negative_slope: float = 0.01
) -> CriticalPoint | None:
    """Return the σ_w at which gradients neither grow nor shrink, for a given σ_b.

    On the critical line σ_w² = 1/A(q) and σ_b² = q - B(q)/A(q) (Schoenholz 2017; Hayou 2019),
    which is one equation for q. Of several solutions the first stable one is taken, else the one
    of smallest q. At σ_b = 0 an activation with φ(0) = 0 has its point at q = 0, σ_w² = 1/E φ′(0)²;
    that of sigmoid lies at q = 45.6.

    Returns:
        The point, or None if there is none: softplus at any σ_b, rectifiers at σ_b > 0.

    Raises:
        TypeError, ValueError: the activation is unknown; sigma_b is negative.
    """
    a, b = activation_of(activation, negative_slope), check_sigma("sigma_b", sigma_b)
    return _critical_point(activation, a, b, float(negative_slope))


def _critical_point(name: str, a: Activation, b: float, slope: float) -> CriticalPoint | None:
    def bias(q: Quantity) -> Quantity:
        """Return σ_b² on the critical line less the one that is wanted."""
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
    grid = np.asarray(1e-10 * RATIO ** np.arange(350), np.float64)
    values = bias(grid)
    noise = ROUNDING * grid
    sign = np.where(np.abs(values) < noise, 0.0, np.sign(values))
    known = np.flatnonzero(sign)
    changes = [(i, j) for i, j in pairwise(known) if sign[i] != sign[j]]
    points = [point(solve(bias, float(grid[i]), float(grid[j]))) for i, j in changes]
    return next((p for p in points if p.stable), points[0] if points else None)


# Gains -----------------------------------------------------------------------------------------


def gain(activation: str, *, negative_slope: float = 0.01) -> float:
    """Return 1/√(B(1) - m(1)²), the factor that gives φ(Z) variance 1.

    Brock et al. 2021, arXiv:2101.08692, whose published numbers are Monte Carlo and 0.03 to 0.09 %
    off.

    Raises:
        TypeError, ValueError: the activation is unknown.
    """
    first = mean(activation, 1.0, negative_slope=negative_slope)
    return 1.0 / sqrt(second_moment(activation, 1.0, negative_slope=negative_slope) - first**2)


def normalized_chi(activation: str, *, negative_slope: float = 0.01) -> float:
    """Return A(1)/B(1), which is χ where every layer's pre-activations have variance 1.

    They have it with layer normalization (Doshi, He & Gromov 2023, arXiv:2111.12143) or after LSUV
    (Mishkin & Matas 2016, arXiv:1511.06422); without biases.

    Raises:
        TypeError, ValueError: the activation is unknown.
    """
    slopes = derivative_second_moment(activation, 1.0, negative_slope=negative_slope)
    return slopes / second_moment(activation, 1.0, negative_slope=negative_slope)

"""What mean-field theory predicts of wide random networks; its whole vocabulary in one place.

`activation` is a name of `vegrad.MLP`, and every function that takes one has the keyword
`negative_slope=0.01` for leaky_relu. Weights have variance σ_w²/fan_in, biases σ_b²; q is the
variance of pre-activations, χ₁ the factor of ‖δ‖² from a layer to the one below.
"""

from __future__ import annotations

from math import inf, isnan, lgamma, log, sqrt
from numbers import Integral
from typing import Any, NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.expected import ExpectedFlow, expected_flow
from vegrad.theory.gaussian import (
    activation_of,
    check_sigma,
    derivative_second_moment,
    mean,
    second_moment,
    slope_moment,
)
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.meanfield import (
    CriticalPoint,
    DepthScales,
    chi,
    chi_parallel,
    correlation_fixed_point,
    correlation_map,
    critical_point,
    depth_scales,
    fixed_point,
    gain,
    normalized_chi,
    variance_map,
)

__all__ = [
    "CriticalPoint",
    "DepthScales",
    "ExpectedFlow",
    "LogMoments",
    "chi",
    "chi_parallel",
    "correlation_fixed_point",
    "correlation_map",
    "critical_point",
    "depth_scales",
    "derivative_second_moment",
    "expected_flow",
    "fixed_point",
    "gain",
    "gradient_log_moments",
    "mean",
    "normalized_chi",
    "second_moment",
    "sigma_w",
    "variance_map",
]

FAMILIES = {"glorot": "glorot_normal", "he": "he_normal", "lecun": "lecun_normal"}


class LogMoments(NamedTuple):
    """Of what one layer adds to ln ‖δ‖², on its way down."""

    mean: float
    variance: float


def sigma_w(init: str, fan_in: int, fan_out: int, gain: float = 1.0) -> float:
    """σ_w of an initialization: the square root of fan_in times the variance of a weight.

    Glorot 2 n_in/(n_in + n_out), He 2, LeCun 1, orthogonal n_in/max(n_in, n_out), all times gain².
    What the backward pass sees in its place is fan_out times that variance.

    Args:
        init: a name of `vegrad.MLP`, or glorot, he, lecun. For normal and critical, gain is σ_w.
        fan_in: inputs of the layer.
        fan_out: its outputs.
        gain: a factor of the weights.

    Raises:
        TypeError, ValueError: an unknown init; a width below 1; a negative gain.
    """
    names = ", ".join(INITIALIZERS)
    if not isinstance(init, str):
        raise TypeError(f"init must be one of {names}, not {type(init).__name__}")
    row = INITIALIZERS.get(FAMILIES.get(init, init))
    if row is None:
        raise ValueError(f"init must be one of {names}, not {init!r}")
    for name, width in (("fan_in", fan_in), ("fan_out", fan_out)):
        _check_width(name, width)
    return check_sigma("gain", gain) * sqrt(fan_in * row.variance(fan_out, fan_in))


def gradient_log_moments(
    activation: str,
    sigma_w: float,
    sigma_b: float,
    width: int,
    *,
    negative_slope: float = 0.01,
) -> LogMoments:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖² for one sample at layers `width` wide.

    With μ_k = E φ′^{2k} at q*: mean ln χ₁ - (3 μ₂/μ₁² - 1)/(2N), variance (3 μ₂/μ₁² - 1)/N to
    leading order in 1/N (independent layers; generalizes Hanin & Nica 2020, arXiv:1812.05994).
    For relu the exact sums over the number of active units, if at least one is.

    Raises:
        TypeError, ValueError: an unknown activation; a negative sigma; a width below 1.
    """
    n = _check_width("width", width)
    factor = chi(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    if factor == 0.0:
        return LogMoments(-inf, 0.0)
    if activation == "relu":
        return _relu_log_moments(2.0 * factor, n)
    activation_of(activation, negative_slope)
    q = fixed_point(activation, sigma_w, sigma_b, negative_slope=negative_slope)
    q = inf if isnan(q) else q
    first, second = (slope_moment(activation, q, power, negative_slope) for power in (2, 4))
    spread = (3.0 * second / first**2 - 1.0) / n
    return LogMoments(log(factor) - spread / 2.0, spread)


def _relu_log_moments(square: float, n: int) -> LogMoments:
    """Of ln (square/n) χ²_k, k ~ binomial(n, 1/2) above 0."""
    k = np.arange(1, n + 1)
    log_ways = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in k.tolist()])
    weight = np.exp(log_ways - n * log(2.0))
    weight /= weight.sum()
    digamma, trigamma = _polygamma(k / 2.0)
    centre = float(weight @ digamma)
    variance = float(weight @ (trigamma + (digamma - centre) ** 2))
    return LogMoments(log(2.0 * square / n) + centre, variance)


def _polygamma(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """ψ(x) and ψ′(x) by their recurrences to x + 16 and their asymptotic series there."""
    digamma, trigamma, x = np.zeros_like(x), np.zeros_like(x), x.copy()
    for _ in range(16):
        digamma -= 1.0 / x
        trigamma += 1.0 / x**2
        x += 1.0
    s = 1.0 / x**2
    digamma += np.log(x) - 0.5 / x
    digamma -= s * (1 / 12 - s * (1 / 120 - s * (1 / 252 - s * (1 / 240 - s / 132))))
    trigamma += 1.0 / x + 0.5 * s
    trigamma += s / x * (1 / 6 - s * (1 / 30 - s * (1 / 42 - s * (1 / 30 - s * 5 / 66))))
    return digamma, trigamma


def _check_width(name: str, width: Any) -> int:
    if not isinstance(width, Integral) or isinstance(width, bool):
        raise TypeError(f"{name} must be an integer, not {type(width).__name__}")
    if width < 1:
        raise ValueError(f"{name} must be at least 1, not {width}")
    return int(width)

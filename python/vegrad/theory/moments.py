"""The gradient's growth through one layer of finite width, and σ_w of the usual initializations."""

from __future__ import annotations

from math import inf, isnan, lgamma, log, sqrt
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray, as_count
from vegrad.arrays.shown import shown
from vegrad.theory.gaussian import activation_of, check_sigma, slope_moment
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.meanfield import chi, fixed_point

# Names of the literature, and the row that has their variance.
FAMILIES = {"glorot": "glorot_normal", "he": "he_normal", "lecun": "lecun_normal"}


class LogMoments(NamedTuple):
    """Mean and variance of what one layer adds to ln ‖δ‖² on its way down."""

    mean: float
    variance: float


def sigma_w(init: str, fan_in: int, fan_out: int, gain: float = 1.0) -> float:
    """Return σ_w of an initialization, the square root of fan_in times the variance of a weight.

    σ_w² is 2 n_in/(n_in + n_out) for Glorot, 2 for He, 1 for LeCun and n_in/max(n_in, n_out) for
    orthogonal weights, all times gain². The backward pass sees fan_out times the variance instead.

    Args:
        init: a name of `vegrad.MLP`, or glorot, he or lecun. For normal and critical, gain is σ_w.
        fan_in: number of the layer's inputs.
        fan_out: number of its outputs.
        gain: factor by which the weights are multiplied.

    Raises:
        TypeError, ValueError: init is unknown; a width is below 1; gain is negative.
    """
    names = ", ".join(INITIALIZERS)
    if not isinstance(init, str):
        raise TypeError(f"init must be one of {names}, not {type(init).__name__}")
    row = INITIALIZERS.get(FAMILIES.get(init, init))
    if row is None:
        raise ValueError(f"init must be one of {names}, not {shown(init)}")
    as_count("fan_in", fan_in, 1)
    as_count("fan_out", fan_out, 1)
    return check_sigma("gain", gain) * sqrt(fan_in * row.variance(fan_out, fan_in))


def gradient_log_moments(
    activation: str,
    sigma_w: float,
    sigma_b: float,
    width: int,
    *,
    negative_slope: float = 0.01,
) -> LogMoments:
    """Return mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖² for one sample and layers `width` wide.

    With μ_k = E φ′^{2k} at q* and N the width, the mean is ln χ₁ - (3 μ₂/μ₁² - 1)/(2N) and the
    variance (3 μ₂/μ₁² - 1)/N, to leading order in 1/N and for independent layers (this generalizes
    Hanin & Nica 2020, arXiv:1812.05994). For relu they are the exact sums over the number of active
    units, given that there is one.

    Raises:
        TypeError, ValueError: the activation is unknown; a sigma is negative; width is below 1.
    """
    n = as_count("width", width, 1)
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
    """Return the moments of ln (square/n) χ²_k, where k ~ binomial(n, 1/2) and k > 0."""
    k = np.arange(1, n + 1)
    log_ways = np.array([lgamma(n + 1) - lgamma(i + 1) - lgamma(n - i + 1) for i in k.tolist()])
    weight = np.exp(log_ways - n * log(2.0))
    weight /= weight.sum()
    digamma, trigamma = _polygamma(k / 2.0)
    centre = float(weight @ digamma)
    variance = float(weight @ (trigamma + (digamma - centre) ** 2))
    return LogMoments(log(2.0 * square / n) + centre, variance)


def _polygamma(x: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return ψ(x) and ψ′(x), by recurrence from x + 16 and their asymptotic series there."""
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

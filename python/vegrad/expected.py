"""The flow that theory expects of a network at initialization, and how far chance moves it.

The means are mean-field theory's with each layer's own widths (Schoenholz 2017, arXiv:1611.01232;
Yang & Schoenholz 2017, arXiv:1712.08969 for skip connections). The spreads are those of finite
width, to leading order in 1/n: norms of random products are log-normal (Hanin & Nica 2020,
arXiv:1812.05994), so all is done on logarithms.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from numbers import Real
from typing import Any

import numpy as np

from vegrad.gaussian import (
    Activation,
    FloatArray,
    activation_of,
    derivative_second_moment,
    mean,
    second_moment,
    slope_of_second_moment,
)
from vegrad.initializers import INITIALIZERS, NORM_EPS, resolve_sigmas

LN2 = log(2.0)
NEAREST, FARTHEST = 1e-100, 1e100  # beyond these variances an activation is its half-lines
UNKNOWN = 0.4  # standard deviation of the part of ∂loss/∂h along h, relative to what is assumed
BEYOND = 1.5  # orders 1/n² of a log-variance, that the leading order leaves out


@dataclass(frozen=True)
class ExpectedFlow:
    """What a `Flow` would be if the weights were as large as their initialization makes them.

    Float64 arrays with one entry a layer, the layer nearest the input first; the gains have one
    entry fewer. Spreads are standard deviations in log2 over the draws of the weights: nineteen
    out of twenty measurements lie within two of them.
    """

    activation_rms: FloatArray
    """Root mean square of the layer's output: the middle (geometric mean) of its distribution."""
    activation_rms_std: FloatArray
    """Spread of log2 activation_rms."""
    delta_log2: FloatArray
    """log2 ‖δ_l‖/‖δ_L‖: relative to the last layer, whose δ the loss decides; 0 there."""
    delta_log2_std: FloatArray
    """Spread of delta_log2, of independent gains."""
    gain_log2: FloatArray
    """log2 ‖δ_l‖/‖δ_{l+1}‖."""
    gain_log2_std: FloatArray
    """Spread of gain_log2."""

    def deviations(self, flow: Any) -> FloatArray:
        """How many spreads each measured gain lies from the expected: (L - 1,).

        Beyond ±2 one in twenty lies by chance, beyond ±4 hardly any.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            apart: FloatArray = (flow.gain_log2 - self.gain_log2) / self.gain_log2_std
        return apart


@dataclass(frozen=True)
class _Data:
    """What matters of the rows that a network sees."""

    log_power: float
    """Mean over the rows of ln of a row's mean square."""
    unequal: float
    """Standard deviation of the same."""
    rows: int
    alike: float
    """Mean cosine between two rows."""


def expected_flow(network: Any, x: Any = None, *, input_rms: float = 1.0) -> ExpectedFlow:
    """What theory expects of the flow of `network` at initialization, from its config alone.

    Args:
        network: a `vegrad.MLP`, of which only the config is read (sizes, activation, output, init
            with its sigmas, residual, norm).
        x: the inputs (B, I) that will be measured. Their size, number and likeness then narrow the
            spreads, as chance averages out over unlike rows. Without them the spreads are those of
            one row, which are also those of many that move alike.
        input_rms: root mean square of the inputs, if there is no x.

    Raises:
        TypeError, ValueError: inputs that are no finite (B, I) array; an input_rms that is not
            positive.
    """
    config = network.config
    data = _data(x, input_rms, config["sizes"][0])
    layers = _forward(config, data)
    gains = _gains(_backward(layers, config), data.rows)
    gain, variance = np.array(gains).reshape(-1, 2).T / [[2.0 * LN2], [4.0 * LN2**2]]

    def from_the_top(values: FloatArray) -> FloatArray:
        return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])

    with np.errstate(over="ignore"):
        rms = np.exp(np.array([layer.log_power for layer in layers]) / 2.0)
    beyond = BEYOND / np.array(config["sizes"][1:])
    rms_variance = np.array([layer.power_variance for layer in layers]) + beyond**2
    return ExpectedFlow(
        rms, np.sqrt(rms_variance) / (2.0 * LN2), from_the_top(gain), np.sqrt(from_the_top(variance)),
        gain, np.sqrt(variance),
    )  # fmt: skip


def _data(x: Any, input_rms: float, inputs: int) -> _Data:
    if not isinstance(input_rms, Real) or isinstance(input_rms, bool):
        raise TypeError(f"input_rms must be a number, not {type(input_rms).__name__}")
    if not (isfinite(input_rms) and input_rms > 0):
        raise ValueError(f"input_rms must be finite and positive, not {input_rms}")
    if x is None:
        return _Data(2.0 * log(input_rms), 0.0, 1, 1.0)
    rows = np.asarray(x, np.float64)
    if rows.ndim != 2 or rows.shape[1] != inputs or not len(rows):
        raise ValueError(f"x must be of shape (B, {inputs}), not {rows.shape}")
    power = float(np.mean(rows**2))
    if not (isfinite(power) and power > 0):
        raise ValueError(f"x must be finite and not all zero, got a mean square of {power}")
    others = max(len(rows) - 1, 1)
    together = float(np.sum(rows.sum(axis=0) ** 2)) / (power * rows.size)
    alike = float(np.clip((together - 1.0) / others, -1.0 / others, 1.0))
    log_powers = np.log(np.maximum(np.mean(rows**2, axis=1), 1e-6 * power))
    return _Data(float(np.mean(log_powers)), float(np.std(log_powers)), len(rows), alike)


# Forward ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Layer:
    """One layer's sizes, all in logarithms of squares, their variances and likenesses."""

    inputs: int
    outputs: int
    weight_variance: float
    skip: bool
    orthogonal: bool
    normalized: str | None
    log_q: float
    """ln of the pre-activations' mean square."""
    q_variance: float
    """Of log_q, from the layers below."""
    log_power: float
    """ln of the outputs' mean square."""
    power_variance: float
    unequal: float
    """Standard deviation, over the rows, of ln of a row's pre-activations' mean square."""
    log_slope: float
    """ln of what φ′ and normalization make of ‖∂loss/∂h‖²."""
    slope_per_q: float
    """d log_slope/d log_q."""
    own: float
    """n times the variance of log_slope, one row with itself, from the draw of its n units."""
    other: float
    """The same of two rows."""
    fixed: float
    """What is not drawn, of both, because the pre-activations' norm is given."""
    likeness: float
    """E φ′φ′ of two rows over E φ′²."""
    alike: float
    """Correlation of two rows' pre-activations."""
    along: float
    """What becomes of the part of ∂loss/∂h that lies along h, on the way down: its growth."""
    across: float
    """What the layer adds to it of the rest."""
    straight: float
    """Of it, what the skip connection alone would leave."""
    bonus: float
    """By how much φ′ favours that part: E h²φ′²/(E h² E φ′²) - 1."""
    projected: float = 0.0
    """n times the share of ‖δ‖² that the normalization's backward pass takes out."""
    drift: float = 1.0
    """Cosine of two rows' ∂loss/∂h, root mean square; known from the last layer down."""
    aligned: float = 0.0
    """Share of ‖∂loss/∂h‖² that lies along h: cosine squared of the two; likewise."""


@dataclass(frozen=True)
class _Stream:
    """What one layer hands to the next."""

    log_power: float
    variance: float
    unequal: float
    mean: float
    alike: float


def _average(same: float, other: float, weight: float) -> float:
    """The mean over pairs of rows, of which a row with itself has this weight."""
    return weight * same + (1.0 - weight) * other


def _forward(config: dict[str, Any], data: _Data) -> list[_Layer]:
    sigmas = resolve_sigmas(
        config["init"], config["activation"], config["sigma_w"], config["sigma_b"]
    )
    stream, layers = _Stream(data.log_power, 0.0, data.unequal, 0.0, data.alike), []
    depth = len(config["sizes"]) - 1
    for place, (inputs, outputs) in enumerate(pairwise(config["sizes"])):
        hidden = place < depth - 1
        layer, stream = _layer(
            config, sigmas, config["activation" if hidden else "output"],
            config["norm"] if hidden else None, inputs, outputs, stream, data,
        )  # fmt: skip
        layers.append(layer)
    return layers


def _layer(
    config: dict[str, Any],
    sigmas: tuple[float, float],
    activation: str,
    norm: str | None,
    inputs: int,
    outputs: int,
    below: _Stream,
    data: _Data,
) -> tuple[_Layer, _Stream]:
    row, a = INITIALIZERS[config["init"]], activation_of(activation)
    weight_variance = sigmas[0] ** 2 * row.variance(outputs, inputs)
    skip = config["residual"] and inputs == outputs
    # Pre-activations.
    log_weights = _log(inputs * weight_variance) + below.log_power
    log_q = float(np.logaddexp(log_weights, 2.0 * _log(sigmas[1])))
    share = exp(log_weights - log_q) if isfinite(log_q) else 1.0  # of the weights in q
    log_q += 0.5 * share * (1.0 - share) * (below.variance + below.unequal**2)
    q_variance, unequal = share**2 * below.variance, share * below.unequal
    alike = share * below.alike + 1.0 - share
    # An orthogonal matrix that does not widen keeps norms, so that they are not drawn.
    kept = min(1.0, outputs / inputs) if row.orthogonal else 0.0
    log_y = 0.0 if norm else log_q
    held = 1.0 if norm else kept
    y = exp(np.clip(log_y, log(NEAREST), log(FARTHEST)))
    pairs = _Pairs(a, y, alike)
    n, weight = outputs, 1.0 / data.rows
    # Outputs.
    log_second, second_per_y, second_bend = _log_second(activation, a, log_y, y)
    relative = [pairs.covariance(lambda v: a.phi(v) ** 2, own) for own in (True, False)]
    drawn = _average(*relative, weight)
    drawn -= 2.0 * held * second_per_y**2 * _average(1.0, alike**2, weight)
    drawn = max(drawn, 0.0) / n
    carried = 0.0 if norm else second_per_y * sqrt(q_variance)
    turned = 0.0 if norm else second_per_y * unequal
    log_second += 0.0 if norm else 0.5 * second_bend * (q_variance + unequal**2)
    if skip:
        middle = _mean(activation, y)
        product = 2.0 * below.mean * middle
        power = [below.log_power, log_second]
        total = float(np.logaddexp(*power))
        if product:
            total += log(max(1.0 + product * exp(-total), 1e-3))
        old, new = (exp(p - total) for p in power)
        cross = _average(1.0, below.alike * pairs.likeness(a.phi), weight)
        own = new**2 * drawn + 4.0 * old * new * max(cross, 0.0) / n
        both = (1.0 - old - new) / 2.0  # from the product of their means
        variance = ((old + both) * sqrt(below.variance) + (new + both) * carried) ** 2 + own
        outward = old * below.alike + new * pairs.likeness(a.phi) + 2.0 * both
        stream = _Stream(
            total - own / 2.0, variance, (old + both) * below.unequal + (new + both) * turned,
            below.mean + middle, outward,
        )  # fmt: skip
    else:
        stream = _Stream(
            log_second - drawn / 2.0, carried**2 + drawn, turned, _mean(activation, y),
            pairs.likeness(a.phi),
        )  # fmt: skip
    # Derivatives.
    log_slope, slope_per_y, slope_bend = _log_slope(activation, y)
    log_slope += 0.0 if norm else 0.5 * slope_bend * (q_variance + unequal**2)
    radius = 0.0
    projected = 0.0
    if norm:
        log_slope -= float(np.logaddexp(log_q, log(NORM_EPS)))
        radius = 2.0 * (1.0 - kept)
        projected = pairs.along() + (1.0 if norm == "layer" else 0.0)
    along, across, straight, bonus = pairs.alignment(below, skip, 0.0 if norm else share)
    fixed = 2.0 * (held * slope_per_y**2) - radius
    layer = _Layer(
        inputs, outputs, weight_variance, skip, row.orthogonal, norm, log_q, q_variance,
        stream.log_power + stream.unequal**2 / 2.0, stream.variance, unequal, log_slope, -1.0 if norm else slope_per_y,
        pairs.covariance(lambda v: a.slope(v) ** 2, True),
        pairs.covariance(lambda v: a.slope(v) ** 2, False),
        fixed, pairs.likeness(a.slope), alike,
        along, across, straight, bonus, projected,
    )  # fmt: skip
    return layer, stream


def _log(value: float) -> float:
    return log(value) if value > 0 else -inf


STEP = 0.2  # of ln q


def _log_second(name: str, a: Activation, log_y: float, y: float) -> tuple[float, float, float]:
    """ln E φ² and its first two derivatives by ln q, also where q is beyond float64."""
    around = y * np.exp(STEP * np.array([-1.0, 0.0, 1.0]))
    second = second_moment(name, around)
    per_y = slope_of_second_moment(a, around) * around / second
    bend = float(per_y[2] - per_y[0]) / (2.0 * STEP)
    return log(second[1]) + float(per_y[1]) * (log_y - log(y)), float(per_y[1]), bend


def _log_slope(name: str, y: float) -> tuple[float, float, float]:
    """ln E φ′² and its first two derivatives by ln q."""
    low, middle, high = np.log(
        derivative_second_moment(name, y * np.exp(STEP * np.array([-1.0, 0.0, 1.0])))
    ).tolist()
    return middle, (high - low) / (2.0 * STEP), (high - 2.0 * middle + low) / STEP**2


def _mean(name: str, y: float) -> float:
    return mean(name, y)


GRID = np.linspace(-5.0, 5.0, 101)
DENSITY = np.exp(-0.5 * GRID**2) / np.sum(np.exp(-0.5 * GRID**2))


class _Pairs:
    """Means over two rows' pre-activations, to the percent that spreads need."""

    def __init__(self, a: Activation, y: float, alike: float) -> None:
        alike = min(max(alike, -1.0), 1.0)
        self.u = sqrt(y) * GRID
        self.v = alike * self.u[:, None] + sqrt(y * (1.0 - alike * alike)) * GRID
        self.a = a

    def _moments(self, f: Any) -> tuple[float, float, float]:
        """E f(u), E f(u)², E f(u)f(v)."""
        u, v = f(self.u), f(self.v)
        return float(DENSITY @ u), float(DENSITY @ u**2), float((DENSITY * u) @ (v @ DENSITY))

    def covariance(self, f: Any, own: bool) -> float:
        """Relative to (E f)²: of f(u) with itself or with f(v)."""
        first, second, cross = self._moments(f)
        return max((second if own else cross) / first**2 - 1.0, 0.0) if first else 0.0

    def likeness(self, f: Any) -> float:
        """E f(u)f(v)/E f²."""
        _, second, cross = self._moments(f)
        return cross / second if second else 1.0

    def alignment(
        self, below: _Stream, skip: bool, share: float
    ) -> tuple[float, float, float, float]:
        """`along`, `across`, `straight` and `bonus` of a layer.

        With D = ∂loss/∂h: scaling the layer's input by 1 + ε moves h by ε g, g = φ′y times the
        weights' `share` of y (0 if it is normalized) plus the input if that skips, so that D·g is
        what of D gets along the input.
        """
        value, slope = self.a.phi(self.u), self.a.slope(self.u)
        power, mean = (exp(min(below.log_power, 600.0)), below.mean) if skip else (0.0, 0.0)

        def product(a: FloatArray, b: FloatArray) -> float:
            return power + mean * float(DENSITY @ (a + b)) + float(DENSITY @ (a * b))

        own, turned = product(value, value), product(share * slope * self.u, value)
        square, given = float(DENSITY @ slope**2), exp(min(below.log_power, 600.0))
        if not (own > 0 and square > 0):
            return 0.0, 0.0, 0.0, 0.0
        root = sqrt(share) * slope * self.u
        along, straight = turned**2 / own, product(0.0 * value, value) ** 2 / own
        across = max(product(root, root) - along, 0.0)
        favoured = power * square + 2.0 * mean * float(DENSITY @ (value * slope**2))
        favoured += float(DENSITY @ ((value * slope) ** 2))
        return along / given, across / given, straight / given, favoured / (own * square) - 1.0

    def along(self) -> float:
        """E φ′² y²/E φ′² at y of variance 1."""
        slope = self.a.slope(self.u) ** 2
        return float(DENSITY @ (slope * self.u**2) / (DENSITY @ slope))


# Backward --------------------------------------------------------------------------------------


def _backward(layers: list[_Layer], config: dict[str, Any]) -> list[_Layer]:
    """The same layers with what is known of ∂loss/∂h from the last one down.

    The likeness of its rows falls. Its part along h is one of n directions if the loss does not
    depend on the outputs; if it does, or in skip connections where that direction grows faster
    than others, it is more.
    """
    top = layers[-1]
    share, directions = _of_outputs(config["loss"], exp(min(top.log_q, 50.0))), top.outputs
    # Two rows' δ agree by chance in one of O directions, and where the outputs are in them.
    drift = sqrt(1.0 / directions + (1.0 - 1.0 / directions) * (share * top.alike) ** 2)
    aligned = min((1.0 + (directions - 1.0) * share) / top.inputs, 1.0)
    result = [replace(top, drift=drift)]
    for upper, layer in pairwise(reversed(layers)):
        skip, grown = (1.0 if upper.skip else 0.0), _grown(upper)
        drift = (skip * drift + grown * drift * upper.likeness) / (skip + grown)
        if upper is not top:
            gained = aligned * upper.along + (1.0 - aligned) / upper.outputs * upper.across
            aligned = min(gained / _total(result[-1]), 1.0)
        result.append(replace(layer, drift=min(drift, 1.0), aligned=aligned))
    return result[::-1]


def _total(layer: _Layer) -> float:
    """The growth of ‖∂loss/∂h‖² through a layer."""
    straight = 1.0 - layer.aligned * layer.straight if layer.skip else 0.0
    grown = _grown(layer) * (1.0 + layer.aligned * layer.bonus)
    return straight + grown + layer.aligned * layer.along


def _of_outputs(loss: str, q: float) -> float:
    """The share of ‖∂loss/∂z‖² that lies along the outputs z, whose variance is q.

    For targets of variance 1, or labels; about right, as the targets are not known here.
    """
    if loss == "cross_entropy":
        return q / (q + 10.0)
    return q / (q + (1.0 if loss == "mse" else 4.0))


def _grown(layer: _Layer) -> float:
    """‖Wᵀδ‖²/‖∂loss/∂h‖²."""
    return layer.inputs * layer.weight_variance * exp(min(layer.log_slope, 50.0))


def _gains(layers: list[_Layer], rows: int) -> list[tuple[float, float]]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², for l = 1 … L - 1.

    Rows whose δ is larger count for more, so that fewer average out: from the top down their
    logarithms drift apart, at random by `scatter` and with the rows' own sizes by `tilt`.
    """
    gains = []
    scatter, tilt = log(1.0 + 2.0 / layers[-1].outputs), 0.0
    for upper, lower in pairwise(reversed(layers)):
        weight = min(1.0, exp(min(scatter + tilt**2, 50.0)) / rows)
        mean, variance, past = _gain(lower, upper, weight)
        single, pair = _own(lower, upper, past, 1.0), _own(lower, upper, past, 0.0)
        step = lower.slope_per_q * lower.unequal - past * upper.slope_per_q * upper.unequal
        gains.append((mean + tilt * step + step**2 / 2.0, variance))
        scatter += max(single - pair, 0.0) / lower.outputs
        tilt += step
    return gains[::-1]


def _gain(lower: _Layer, upper: _Layer, weight: float) -> tuple[float, float, float]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², lower and upper being layers l and l + 1.

    With D = ∂loss/∂h_l: δ_l is D times φ′, and D is Wᵀδ_{l+1}, plus ∂loss/∂h_{l+1} where there is
    a skip connection; the latter's share of ‖D‖² comes third.
    """
    n = lower.outputs
    log_weights = _log(n * upper.weight_variance)
    bonus = log(1.0 + upper.aligned * upper.bonus)
    past, total = 0.0, log_weights
    if upper.skip:
        total = float(np.logaddexp(-upper.log_slope - bonus, log_weights))
        past = exp(-upper.log_slope - bonus - total)
    plain = (1.0 if upper.skip else 0.0) + _grown(upper) * exp(bonus)
    surplus = (_total(upper) if upper.along else plain) / plain
    log_gain = lower.log_slope + total + log(surplus) + log(1.0 + lower.aligned * lower.bonus)
    log_gain += log(max(1.0 - lower.projected / n, 1e-3))
    drawn, above = _own(lower, upper, past, weight), _slopes(upper, weight)
    log_gain += (past * above - drawn) / (2.0 * n)
    variance = drawn / n + past**2 * above / upper.outputs
    moved = lower.slope_per_q * sqrt(lower.q_variance)
    moved -= past * upper.slope_per_q * sqrt(upper.q_variance)
    # The part along h began as a χ² of few degrees, and depends on targets that are not known.
    growth = upper.along / (plain * surplus)
    caught = upper.aligned * growth * (1.0 - upper.aligned)
    grew = 2.0 * (caught * (1.0 - 1.0 / max(growth, 1.0))) ** 2
    unknown = UNKNOWN * (caught + lower.aligned * abs(lower.bonus))
    return log_gain, variance + moved**2 + grew + unknown**2 + (BEYOND / n) ** 2, past


def _own(lower: _Layer, upper: _Layer, past: float, weight: float) -> float:
    """n times the variance that the draw of layer l's n units and of Wᵀ brings."""
    kept = min(1.0, lower.outputs / upper.outputs) if upper.orthogonal else 0.0
    spread = _average(1.0, upper.drift**2, weight)
    through = 1.0 - past
    weights = through**2 * 2.0 * spread * (1.0 - kept) + 4.0 * past * through * spread
    return _slopes(lower, weight) + weights


def _slopes(layer: _Layer, weight: float) -> float:
    """n times the variance of log_slope, from the draw of a layer's n units."""
    drawn = _average(3.0 * layer.own, layer.other * (1.0 + 2.0 * layer.drift**2), weight)
    return max(drawn - layer.fixed * _average(1.0, layer.alike**2, weight), 0.0)

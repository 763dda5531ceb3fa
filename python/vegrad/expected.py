"""The flow that theory expects of a network at initialization, and how far chance moves it.

The means are mean-field theory's with each layer's own widths (Schoenholz et al. 2017,
arXiv:1611.01232; Yang & Schoenholz 2017, arXiv:1712.08969, for skip connections). The spreads are
those of finite width: norms of random products are log-normal (Hanin & Nica 2020,
arXiv:1812.05994), so all is done on logarithms. Theory takes the gradient for independent of the
signal; that it is not, because the loss depends on the outputs, is a term of order 1/n, followed
here as the part of ∂loss/∂h that lies along h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from numbers import Real
from typing import Any

import numpy as np

from vegrad.gaussian import FloatArray
from vegrad.propagation import Data, Layer, Shape, average, forward, log_or_less, through

LN2 = log(2.0)
UNKNOWN = 0.4  # standard deviation of the part of ∂loss/∂h along h, relative to what is assumed
BEYOND = 1.5  # standard deviation, in 1/n, of what the leading order leaves out


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
    return _flow(forward(config, data), config["loss"], data.rows)


def flow_through(shapes: Sequence[Shape], loss: str, x: Any) -> ExpectedFlow:
    """`expected_flow` of layers of these shapes on the inputs x (B, I), whatever they are part of.

    Raises:
        TypeError, ValueError: as `expected_flow`.
    """
    data = _data(x, 1.0, shapes[0].inputs)
    return _flow(through(shapes, data), loss, data.rows)


def _flow(layers: list[Layer], loss: str, rows: int) -> ExpectedFlow:
    gains = _gains(_descend(layers, loss), rows)
    gain, variance = np.array(gains).reshape(-1, 2).T / [[2.0 * LN2], [4.0 * LN2**2]]

    def from_the_top(values: FloatArray) -> FloatArray:
        return np.concatenate([np.cumsum(values[::-1])[::-1], [0.0]])

    with np.errstate(over="ignore"):
        rms = np.exp(np.array([layer.log_power for layer in layers]) / 2.0)
    beyond = BEYOND / np.array([layer.outputs for layer in layers])
    rms_variance = np.array([layer.power_variance for layer in layers]) + beyond**2
    return ExpectedFlow(
        rms,
        np.sqrt(rms_variance) / (2.0 * LN2),
        from_the_top(gain),
        np.sqrt(from_the_top(variance)),
        gain,
        np.sqrt(variance),
    )


def _data(x: Any, input_rms: float, inputs: int) -> Data:
    if not isinstance(input_rms, Real) or isinstance(input_rms, bool):
        raise TypeError(f"input_rms must be a number, not {type(input_rms).__name__}")
    if not (isfinite(input_rms) and input_rms > 0):
        raise ValueError(f"input_rms must be finite and positive, not {input_rms}")
    if x is None:
        return Data(2.0 * log(input_rms), 0.0, 1, 1.0)
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
    return Data(float(np.mean(log_powers)), float(np.std(log_powers)), len(rows), alike)


# Backward --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gradient:
    """What is known of D = ∂loss/∂h of a layer, beside its size."""

    layer: Layer
    alike: float
    """Cosine of two rows' D, root mean square."""
    aligned: float
    """Share of ‖D‖² that lies along h."""
    surplus: float = 0.0
    """Of the last layer: what ‖Wᵀδ‖² is more, relatively, as δ is not independent of W."""

    @property
    def favour(self) -> float:
        """By how much more of ‖D‖² than E φ′² the layer's slopes let through."""
        return 1.0 + self.aligned * self.layer.bonus

    @property
    def total(self) -> float:
        """‖D‖² of the layer below, relative to this one's."""
        along = self.aligned * self.layer.along
        return (
            self.layer.skip
            - self.aligned * self.layer.straight
            + self.noise * (1.0 + self.surplus)
            + along
        )

    @property
    def noise(self) -> float:
        """Of `total`, what comes through the weights at random."""
        return self.layer.grown * self.favour


def _descend(layers: list[Layer], loss: str) -> list[_Gradient]:
    """The gradient in every layer, from the last one down.

    Two rows' likeness falls. The part along h is one of n directions if the loss does not depend
    on the outputs; if it does, or in skip connections, where that direction grows faster than
    others, it is more.
    """
    top = layers[-1]
    share = _along_outputs(loss, exp(min(top.log_q, 50.0)))
    # Two rows' δ agree by chance in one of O directions, and where the outputs are in them.
    chance = 1.0 / top.outputs
    alike = sqrt(chance + (1.0 - chance) * (share * top.alike) ** 2)
    surplus = (top.outputs - 1.0) * share / top.inputs
    gradients = [_Gradient(top, alike, 0.0, surplus)]
    aligned = (1.0 / top.inputs + surplus) / (1.0 + surplus)
    for upper, layer in pairwise(reversed(layers)):
        if upper is not top:
            gained = aligned * upper.along + (1.0 - aligned) / upper.outputs * upper.across
            aligned = min(gained / (gradients[-1].total or 1.0), 1.0)
        through = upper.grown / ((upper.skip + upper.grown) or 1.0)
        alike *= 1.0 - through + through * upper.likeness
        if not upper.orthogonal:  # Wᵀ turns two rows together by chance
            alike = sqrt(alike**2 + through**2 * (1.0 - alike**2) / upper.inputs)
        gradients.append(_Gradient(layer, min(alike, 1.0), aligned))
    return gradients


def _along_outputs(loss: str, q: float) -> float:
    """The share of ‖∂loss/∂z‖² that lies along the outputs z, whose variance is q.

    For targets of variance 1, or labels; about right, as the targets are not known here.
    """
    most, half = {
        "mse": (1.0, 1.0), "binary_cross_entropy": (0.32, 1.3), "cross_entropy": (0.1, 1.0)
    }[loss]  # fmt: skip
    return most * q / (q + half)


def _gains(gradients: list[_Gradient], rows: int) -> list[tuple[float, float]]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², for l = 1 … L - 1.

    Rows whose δ is larger count for more, so that fewer average out: from the top down their
    logarithms drift apart, at random by `scatter` and with the rows' own sizes by `tilt`.
    """
    gains = []
    scatter, tilt = log(1.0 + 2.0 / gradients[0].layer.outputs), 0.0
    for upper, lower in pairwise(gradients):
        weight = min(1.0, exp(min(scatter + tilt**2, 50.0)) / rows)
        mean, variance, past = _gain(lower, upper, weight)
        below, above = lower.layer, upper.layer
        step = below.slope_per_q * below.unequal - past * above.slope_per_q * above.unequal
        gains.append((mean + tilt * step + step**2 / 2.0, variance))
        apart = _drawn(lower, upper, past, 1.0) - _drawn(lower, upper, past, 0.0)
        scatter += max(apart, 0.0) / below.outputs
        tilt += step
    return gains[::-1]


def _gain(lower: _Gradient, upper: _Gradient, weight: float) -> tuple[float, float, float]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², lower and upper being layers l and l + 1.

    δ_l is D_l times φ′, and D_l is Wᵀδ_{l+1}, plus D_{l+1} where there is a skip connection; the
    latter's share of ‖D_l‖² comes third.
    """
    below, above = lower.layer, upper.layer
    n, favour = below.outputs, log(upper.favour)
    past, log_gain = 0.0, log_or_less(n * above.weight_variance)
    if above.skip:
        weights, log_gain = log_gain, float(np.logaddexp(-above.log_slope - favour, log_gain))
        past = exp(-above.log_slope - favour - log_gain) if weights > -inf else 1.0
    elif log_gain == -inf:
        return -inf, 0.0, 0.0
    plain = above.skip + upper.noise
    total = upper.total
    log_gain += log(total / plain) + below.log_slope + log(lower.favour)
    log_gain += log(max(1.0 - below.projected / n, 1e-3))
    drawn, kept = _drawn(lower, upper, past, weight), past * _slopes(upper, weight)
    log_gain += (kept - drawn) / (2.0 * n)
    variance = drawn / n + past * kept / above.outputs
    moved = below.slope_per_q * sqrt(below.q_variance)
    moved -= past * above.slope_per_q * sqrt(above.q_variance)
    # The part along h began as a χ² of few degrees, and depends on targets that are not known.
    growth = above.along / total
    caught = upper.aligned * growth * (1.0 - upper.aligned)
    grew = caught * (1.0 - 1.0 / max(growth, 1.0))
    unknown = UNKNOWN * (upper.surplus + caught + lower.aligned * abs(below.bonus))
    return log_gain, variance + moved**2 + 2.0 * grew**2 + unknown**2 + (BEYOND / n) ** 2, past


def _drawn(lower: _Gradient, upper: _Gradient, past: float, weight: float) -> float:
    """Variance, times n, from the draw of layer l's n units and of Wᵀ."""
    below, above = lower.layer, upper.layer
    kept = min(1.0, below.outputs / above.outputs) if above.orthogonal else 0.0
    spread = average(1.0, upper.alike**2, weight)
    through = 1.0 - past
    weights = through**2 * 2.0 * spread * (1.0 - kept) + 4.0 * past * through * spread
    return _slopes(lower, weight) + weights


def _slopes(gradient: _Gradient, weight: float) -> float:
    """Variance of log_slope, times n, from the draw of a layer's n units."""
    layer = gradient.layer
    pairs = 1.0 + 2.0 * gradient.alike**2
    drawn = average(3.0 * layer.own, pairs * layer.other, weight)
    return max(drawn - layer.fixed * average(1.0, layer.alike**2, weight), 0.0)

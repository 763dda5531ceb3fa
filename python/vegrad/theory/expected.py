"""The flow that theory expects of a network at initialization, and how far chance moves it.

The means are mean-field theory's with each layer's own widths (Schoenholz et al. 2017,
arXiv:1611.01232; Yang & Schoenholz 2017, arXiv:1712.08969, for skip connections). The spreads are
those of finite width: norms of random products are log-normal (Hanin & Nica 2020,
arXiv:1812.05994), so all is done on logarithms. Chance averages out over rows as far as they are
unlike, so each row's size and a sample of the correlations between rows go through the layers
(Cho & Saul 2009 for the map; here of any activation). Theory takes the gradient for independent of
the signal; that it is not, because the loss depends on the outputs, is a term of order 1/n,
followed here as the part of ∂loss/∂h that lies along h.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from numbers import Real
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.propagation import Data, Layer, Shape, average, forward, log_or_less, through

LN2 = log(2.0)
UNKNOWN = 0.4  # standard deviation of the part of ∂loss/∂h along h, relative to what is assumed
ROWS = 256  # of which sizes and likeness are looked at
GROUPS = 24  # of pairs of rows, by how much alike they are
BEYOND = 0.5  # standard deviation, in 1/n, of what the leading order leaves out


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
    return _flow(forward(config, data), config["loss"], data)


def flow_through(shapes: Sequence[Shape], loss: str, x: Any) -> ExpectedFlow:
    """`expected_flow` of layers of these shapes on the inputs x (B, I), whatever they are part of.

    Raises:
        TypeError, ValueError: as `expected_flow`.
    """
    data = _data(x, 1.0, shapes[0].inputs)
    return _flow(through(shapes, data), loss, data)


def _flow(layers: list[Layer], loss: str, data: Data) -> ExpectedFlow:
    gains = _gains(_descend(layers, loss, data), data)
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
        return Data(np.array([2.0 * log(input_rms)]), 1, np.ones(1), np.ones((1, 1)))
    rows = np.asarray(x, np.float64)
    if rows.ndim != 2 or rows.shape[1] != inputs or not len(rows):
        raise ValueError(f"x must be of shape (B, {inputs}), not {rows.shape}")
    power = float(np.mean(rows**2))
    if not (isfinite(power) and power > 0):
        raise ValueError(f"x must be finite and not all zero, got a mean square of {power}")
    some = rows[:: -(-len(rows) // ROWS)]
    squares = np.mean(some**2, axis=1)
    unit = some / np.sqrt(np.where(squares > 0, squares, 1.0) * inputs)[:, None]
    cosines = np.clip(unit @ unit.T, -1.0, 1.0)
    pairs = np.sort(cosines[np.triu_indices(len(some), 1)])
    groups = np.array_split(pairs, max(min(GROUPS, len(pairs)), 1))
    alike = np.array([np.mean(group) for group in groups if len(group)] or [1.0])
    return Data(np.log(np.maximum(squares, 1e-6 * power)), len(rows), alike, cosines)


# Backward --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Gradient:
    """What is known of D = ∂loss/∂h of a layer, beside its size."""

    layer: Layer
    shares: FloatArray
    """Of the rows in ‖D‖²."""
    alike: FloatArray
    """Cosines of two rows' D, root mean square."""
    aligned: float
    """Share of ‖D‖² that lies along h."""
    surplus: float | None = None
    """Of the last layer: what ‖Wᵀδ‖² is more, relatively, as δ is not independent of W."""

    @cached_property
    def log_slope(self) -> float:
        """What the slopes make of all rows together: ln ‖δ‖²/‖D‖²."""
        most = float(np.max(self.layer.log_slopes))
        return most + log(float(self.shares @ np.exp(self.layer.log_slopes - most)))

    @cached_property
    def kept(self) -> FloatArray:
        """Shares of the rows in ‖δ‖²."""
        return self.shares * np.exp(self.layer.log_slopes - self.log_slope)

    @property
    def excess(self) -> float:
        """By how much more of ‖D‖² lies along h than along any other direction."""
        return self.aligned - (1.0 - self.aligned) / max(self.layer.outputs - 1, 1)

    @property
    def favour(self) -> float:
        """By how much more of ‖D‖² than E φ′² the layer's slopes let through."""
        return max(1.0 + self.excess * self.layer.bonus, 1e-3)

    @property
    def grown(self) -> float:
        """‖Wᵀδ‖²/‖D‖²."""
        return self.layer.inputs * self.layer.weight_variance * exp(min(self.log_slope, 50.0))

    @property
    def noise(self) -> float:
        """Of `total`, what comes through the weights at random."""
        return self.grown * self.favour

    @property
    def held(self) -> float:
        """Share of ‖δ‖² that Wᵀ passes on as it is, being orthogonal."""
        layer = self.layer
        return min(1.0, layer.inputs / layer.outputs) if layer.orthogonal else 0.0

    @property
    def gained(self) -> float:
        """‖D‖² along h of the layer below, relative to this one's ‖D‖²."""
        layer = self.layer
        if self.surplus is not None:
            return self.noise * (1.0 / layer.inputs + self.surplus)
        return self.aligned * layer.along + (1.0 - self.aligned) / layer.outputs * layer.across

    @property
    def total(self) -> float:
        """‖D‖² of the layer below, relative to this one's: along its h, and across."""
        layer, noise = self.layer, self.noise
        drawn = self.gained + noise * (1.0 - 1.0 / layer.inputs)
        if not layer.skip:
            return drawn + self.held * (noise - drawn)
        counted = (1.0 - self.aligned) * max(1.0 - layer.straight, 0.0) / layer.outputs
        return drawn + 1.0 - self.aligned * layer.straight - counted  # `gained` has the skip's

    @property
    def below(self) -> FloatArray:
        """Shares of the rows in ‖D‖² of the layer below."""
        layer = self.layer
        if not layer.weight_variance:
            return self.shares
        weights = log(layer.inputs * layer.weight_variance) + layer.log_slopes
        grown = np.logaddexp(0.0, weights) if layer.skip else weights
        shares = self.shares * np.exp(grown - np.max(grown))
        return np.asarray(shares / shares.sum())


def _descend(layers: list[Layer], loss: str, data: Data) -> list[_Gradient]:
    """The gradient in every layer, from the last one down.

    Two rows' likeness falls. The part along h is one of n directions if the loss does not depend
    on the outputs; if it does, or in skip connections, where that direction grows faster than
    others, it is more.
    """
    top = layers[-1]
    q = np.exp(np.minimum(top.log_qs, 50.0))
    share = _along_outputs(loss, exp(min(float(np.mean(top.log_qs)), 50.0)))
    surplus = (top.outputs - 1.0) * share / top.inputs
    # Two rows' δ agree by chance in one of O directions (those of cross-entropy sum to 0: one
    # less), and as far as the outputs in them agree: what they have more than at q = 0. Targets
    # agree by chance too, but rather those of rows that are alike.
    sizes = _sizes(loss, q, top.outputs)
    chance = 1.0 / max(top.outputs - (loss == "cross_entropy"), 1)
    share = 1.0 - float(np.mean(1.0 / sizes))
    follow = np.maximum(data.alike, 0.0) ** 2
    follow = (1.0 - share) ** 2 * (follow - np.mean(follow)) + (share * top.alike) ** 2
    alike = np.sqrt(np.clip(chance + (1.0 - chance) * follow, 0.0, 1.0))
    gradients = [_Gradient(top, sizes / sizes.sum(), alike, 0.0, surplus)]
    for layer in layers[-2::-1]:
        above = gradients[-1]
        upper = above.layer
        aligned = min(above.gained / (above.total or 1.0), 1.0)
        through = above.grown / ((upper.skip + above.grown) or 1.0)
        alike = alike * (1.0 - through + through * upper.likeness)
        if not upper.orthogonal:  # Wᵀ turns two rows together by chance
            alike = np.sqrt(alike**2 + through**2 * (1.0 - alike**2) / upper.inputs)
        gradients.append(_Gradient(layer, above.below, np.clip(alike, -1.0, 1.0), aligned))
    return gradients


def _sizes(loss: str, q: FloatArray, outputs: int) -> FloatArray:
    """E ‖∂loss/∂z‖² of rows whose outputs z have variances q, up to a factor.

    For targets as in `_along_outputs` that are independent of z: exact for the squared error, to
    first order in q and in its limit for the others.
    """
    if loss == "mse":
        return 1.0 + q
    return 1.0 + q / (q + (4.0 if loss == "binary_cross_entropy" else outputs))


def _along_outputs(loss: str, q: float) -> float:
    """The share of ‖∂loss/∂z‖² that lies along the outputs z, whose variance is q.

    For targets of variance 1, or labels; about right, as the targets are not known here.
    """
    most, half = {
        "mse": (1.0, 1.0), "binary_cross_entropy": (0.32, 1.3), "cross_entropy": (0.1, 1.0)
    }[loss]  # fmt: skip
    return most * q / (q + half)


def _gains(gradients: list[_Gradient], data: Data) -> list[tuple[float, float]]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², for l = 1 … L - 1.

    Rows whose δ is larger count for more, so that fewer average out: beside what is known of their
    sizes, from the top down their logarithms drift apart at random, by `scatter`. Where the rows'
    gains differ, that also moves the mean of them; alike rows drift together, as the squares of
    Gaussians do, whose correlation is that of the Gaussians squared.
    """
    gains = []
    scatter = log(1.0 + 2.0 / gradients[0].layer.outputs)
    known = len(data.cosines) / data.rows
    together = np.maximum(data.cosines, 0.0) ** 2 - (1.0 - known) * np.eye(len(data.cosines))
    for upper, lower in pairwise(gradients):
        random = exp(min(scatter, 50.0))
        weight = min(1.0, random * known * float(np.sum(lower.kept**2)))
        mean, variance, past = _gain(lower, upper, weight)
        below = lower.layer
        unlike = upper.kept * _unlike(lower, upper, past)
        drift = (random - 1.0) * float(unlike @ together @ unlike)
        gains.append((mean, variance + drift))
        apart = _drawn(lower, upper, past, 1.0) - _drawn(lower, upper, past, 0.0)
        scatter += max(apart, 0.0) / below.outputs
    return gains[::-1]


def _unlike(lower: _Gradient, upper: _Gradient, past: float) -> FloatArray:
    """By how much the rows' gains of ‖δ‖² differ from the mean, relatively."""
    gains = np.exp(lower.layer.log_slopes - lower.log_slope)
    if past:
        gains = gains * (1.0 - past + past * np.exp(upper.log_slope - upper.layer.log_slopes))
    return np.asarray(gains / (upper.kept @ gains) - 1.0)


def _gain(lower: _Gradient, upper: _Gradient, weight: float) -> tuple[float, float, float]:
    """Mean and variance of ln ‖δ_l‖²/‖δ_{l+1}‖², lower and upper being layers l and l + 1.

    δ_l is D_l times φ′, and D_l is Wᵀδ_{l+1}, plus D_{l+1} where there is a skip connection; the
    latter's share of ‖D_l‖² comes third.
    """
    below, above = lower.layer, upper.layer
    n, favour = below.outputs, log(upper.favour)
    past, log_gain = 0.0, log_or_less(n * above.weight_variance)
    if above.skip:
        weights, log_gain = log_gain, float(np.logaddexp(-upper.log_slope - favour, log_gain))
        past = exp(-upper.log_slope - favour - log_gain) if weights > -inf else 1.0
    elif log_gain == -inf:
        return -inf, 0.0, 0.0
    plain = above.skip + upper.noise
    total = upper.total
    log_gain += log(max(total / plain, 1e-3)) + lower.log_slope + log(lower.favour)
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
    unknown = UNKNOWN * (
        (1.0 - upper.held) * ((upper.surplus or 0.0) + caught) + lower.aligned * abs(below.bonus)
    )
    return log_gain, variance + moved**2 + 2.0 * grew**2 + unknown**2 + (BEYOND / n) ** 2, past


def _drawn(lower: _Gradient, upper: _Gradient, past: float, weight: float) -> float:
    """Variance, times n, from the draw of layer l's n units and of Wᵀ."""
    spread = average(1.0, upper.alike**2, weight)
    through = 1.0 - past
    weights = through**2 * 2.0 * spread * (1.0 - upper.held) + 4.0 * past * through * spread
    return _slopes(lower, weight) + weights


def _slopes(gradient: _Gradient, weight: float) -> float:
    """Variance of log_slope, times n, from the draw of a layer's n units."""
    layer = gradient.layer
    pairs = 1.0 + 2.0 * gradient.alike**2
    drawn = average(3.0 * layer.own, pairs * layer.other, weight)
    return max(drawn - layer.fixed * average(1.0, layer.alike**2, weight), 0.0)

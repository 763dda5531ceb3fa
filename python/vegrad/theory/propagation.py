"""The signal in each layer of a network at initialization.

This module goes through the layers from the input to the output and computes, for each, the size
of the signal and of the slopes φ′, how alike the signals of different rows are, and how far the
draw of the weights moves both. `backpropagation` goes back through these layers with the gradient.

It must guarantee finite answers at any depth and any scale of the weights. So every size is the
logarithm of a mean square, and beyond 1e±100 an activation counts as the two half-lines that it is
there. It must also be fast, as every diagnosis calls it: so the moments in `units` are computed at
a few sizes of rows and angles between rows, and interpolated.

It leaves out what is of higher order in 1/n, n being the width, and how the weights of a trained
network differ from their draw. Sources: Schoenholz et al. 2017 (arXiv:1611.01232), Yang &
Schoenholz 2017 (arXiv:1712.08969) for skip connections, Hanin & Nica 2020 (arXiv:1812.05994) for
the variances at finite width.

Names: z = W h + b are a layer's pre-activations, y is z after normalization (if there is any), and
h = φ(y) its outputs; q is the mean square of z. D = ∂loss/∂h and δ = ∂loss/∂z are gradients.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from typing import Any, NamedTuple

import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.theory.initializers import INITIALIZERS, NORM_EPS, resolve_sigmas
from vegrad.theory.units import Alignment, Sizes, Unit

# Records ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Data:
    """The rows that a network sees, as far as theory depends on them."""

    log_powers: FloatArray
    """ln of each row's mean square, (R,); a sample of the rows if there are many."""
    rows: int
    """Number of all rows."""
    alike: FloatArray
    """Cosines between two rows, (K,), each as common as the others."""
    cosines: FloatArray
    """Cosines between the rows of the sample, (R, R)."""


class Shape(NamedTuple):
    """The parts of a layer: z = W h + b, then φ(norm(z)), plus h if it skips."""

    inputs: int
    outputs: int
    weight_variance: float
    sigma_b: float
    activation: str
    norm: str | None
    skip: bool
    orthogonal: bool

    @property
    def kept(self) -> float:
        """Share of ‖z‖² that is not left to chance, as W is orthogonal and keeps norms."""
        return min(1.0, self.outputs / self.inputs) if self.orthogonal else 0.0


@dataclass(frozen=True, kw_only=True)
class Layer:
    """One layer as the signal makes it. Arrays are (R,) over rows, (K,) over pairs of rows."""

    shape: Shape
    log_qs: FloatArray
    """ln of the mean square of each row's pre-activations, averaged over draws: (R,)."""
    q_variance: float
    """Variance of the mean of log_qs over draws of the layers below."""
    alike: FloatArray
    """Correlations of two rows' pre-activations: (K,)."""
    log_power: float
    """ln of the output's mean square."""
    power_variance: float
    """Variance of log_power over draws."""
    log_slopes: FloatArray
    """ln ‖δ‖²/‖D‖² of each row, which φ′ and the normalization decide: (R,)."""
    slope_per_q: float
    """Derivative of log_slopes by ln q."""
    slope_variance: float
    """Variance of φ′² relative to its squared mean: n times what the draw of n units adds."""
    slope_covariances: FloatArray
    """Covariances of two rows' φ′², likewise: (K,)."""
    slope_fixed: float
    """Part of these that is not left to chance, as z or y has a fixed norm."""
    likeness: FloatArray
    """E φ′φ′ of two rows over E φ′²: (K,)."""
    projected: float
    """n times the share of ‖δ‖² that the normalization's backward pass takes out."""
    alignment: Alignment

    @cached_property
    def alike_square(self) -> float:
        """The mean square of alike."""
        return mean(self.alike**2)


@dataclass(frozen=True, kw_only=True)
class _Stream:
    """The signal that one layer hands to the next."""

    log_powers: FloatArray
    """ln of each row's mean square: (R,)."""
    variance: float
    """Variance of that over draws."""
    mean: float
    """Mean over the units, relative to the root mean square."""
    alike: FloatArray
    """Cosines between two rows: (K,)."""

    @cached_property
    def log_power(self) -> float:
        """The log_powers of a typical row."""
        return mean(self.log_powers)


class _Preactivations(NamedTuple):
    """z = W h + b of a layer; the first three as in `Layer`."""

    log_qs: FloatArray
    q_variance: float
    alike: FloatArray
    share: float
    """Share of the weights in the variance of z; the rest is the biases'."""


def mean(values: FloatArray) -> float:
    """Return the mean of a few numbers, for which `np.mean` takes three times as long."""
    return float(values.sum()) / len(values)


def average(same: float, other: float, weight: float) -> float:
    """Return the mean over pairs of rows, where a row paired with itself has this weight.

    Args:
        same: what a row has with itself.
        other: the mean over pairs of different rows.
        weight: of the first.
    """
    return weight * same + (1.0 - weight) * other


def within_one(cosines: FloatArray) -> FloatArray:
    """Return cosines that rounding may have taken beyond 1."""
    return np.minimum(np.maximum(cosines, -1.0), 1.0)


def log_or_less(value: float) -> float:
    """Return the logarithm, which is -inf for 0."""
    return log(value) if value > 0 else -inf


# Layer by layer --------------------------------------------------------------------------------


def forward(config: Mapping[str, Any], data: Data) -> list[Layer]:
    """Return the layers of a network of this config, the one nearest the input first."""
    return through(shapes(config), data)


def shapes(config: Mapping[str, Any]) -> list[Shape]:
    """Return the shapes of the layers of a network of this config."""
    sigma_w, sigma_b = resolve_sigmas(
        config["init"], config["activation"], config["sigma_w"], config["sigma_b"]
    )
    row, sizes = INITIALIZERS[config["init"]], list(pairwise(config["sizes"]))
    return [
        Shape(
            inputs=inputs,
            outputs=outputs,
            weight_variance=sigma_w**2 * row.variance(outputs, inputs),
            sigma_b=sigma_b,
            activation=config["activation" if place < len(sizes) - 1 else "output"],
            norm=config["norm"] if place < len(sizes) - 1 else None,
            skip=config["residual"] and inputs == outputs,
            orthogonal=row.orthogonal,
        )
        for place, (inputs, outputs) in enumerate(sizes)
    ]


def through(shapes: Sequence[Shape], data: Data) -> list[Layer]:
    """Return the layers that these shapes become, the one nearest the input first."""
    stream = _Stream(log_powers=data.log_powers, variance=0.0, mean=0.0, alike=data.alike)
    layers = []
    for shape in shapes:
        layer, stream = _layer(shape, stream, 1.0 / data.rows)
        layers.append(layer)
    return layers


def _layer(shape: Shape, below: _Stream, weight: float) -> tuple[Layer, _Stream]:
    """Return one layer and what it hands to the next; `weight` is that of `average`."""
    z = _preactivations(shape, below)
    log_ys = np.zeros_like(z.log_qs) if shape.norm else z.log_qs
    log_y = mean(log_ys)
    sizes = Sizes(shape.activation, log_ys, log_y)
    unit = Unit(shape.activation, log_y, z.alike)
    stream = _outputs(shape, below, z, sizes, unit, weight)
    moves = 0.0 if shape.norm else 1.0  # 1 if y is larger where z is
    held = 1.0 if shape.norm else shape.kept
    log_slopes = sizes.log_slopes + moves * 0.5 * sizes.slope_bend * z.q_variance
    projected = radius = 0.0
    if shape.norm:  # Its backward pass divides by √q, and takes out what lies along y (and 1).
        log_slopes = log_slopes - np.logaddexp(z.log_qs, log(NORM_EPS))
        projected = unit.crosswise() + (1.0 if shape.norm == "layer" else 0.0)
        radius = 2.0 * (1.0 - shape.kept)
    growth = mean(sizes.log_seconds) - below.log_power
    ratio = exp(min(max(growth, -300.0), 300.0))
    largest = float(stream.log_powers.max())
    layer = Layer(
        shape=shape,
        log_qs=z.log_qs,
        q_variance=z.q_variance,
        alike=z.alike,
        log_power=largest + log_or_less(mean(np.exp(stream.log_powers - largest))),
        power_variance=stream.variance,
        log_slopes=log_slopes,
        slope_per_q=sizes.slope_per_q if moves else -1.0,
        slope_variance=unit.slope_variance,
        slope_covariances=unit.slope_covariances,
        slope_fixed=2.0 * held * sizes.slope_per_q**2 - radius,
        likeness=unit.slope_likeness,
        projected=projected,
        alignment=unit.alignment(ratio, below.mean, shape.skip, moves * z.share),
    )
    return layer, stream


def _preactivations(shape: Shape, below: _Stream) -> _Preactivations:
    log_weights = log_or_less(shape.inputs * shape.weight_variance) + below.log_powers
    if not shape.sigma_b:
        return _Preactivations(log_weights, below.variance, below.alike, 1.0)
    log_qs = np.logaddexp(log_weights, 2.0 * log(shape.sigma_b))
    log_q = mean(log_qs)
    share = exp(mean(log_weights) - log_q) if isfinite(log_q) else 1.0
    return _Preactivations(
        log_qs=log_qs + 0.5 * share * (1.0 - share) * below.variance,
        q_variance=share**2 * below.variance,
        alike=within_one(share * below.alike + 1.0 - share),
        share=share,
    )


def _outputs(
    shape: Shape, below: _Stream, z: _Preactivations, sizes: Sizes, unit: Unit, weight: float
) -> _Stream:
    """Return h = φ(y), plus the layer's input if it skips."""
    moves = 0.0 if shape.norm else 1.0
    # An orthogonal matrix that does not narrow keeps norms, and normalization gives one: what
    # follows from the norm of y is then not left to chance.
    held = 1.0 if shape.norm else shape.kept
    drawn = average(unit.value_variance, mean(unit.value_covariances), weight)
    if held:
        drawn -= 2.0 * held * sizes.second_per_q**2 * average(1.0, mean(z.alike**2), weight)
    new = _Stream(
        log_powers=sizes.log_seconds + moves * 0.5 * sizes.second_bend * z.q_variance,
        variance=max(drawn, 0.0) / shape.outputs,  # from the draw of this layer alone
        mean=unit.mean,
        alike=unit.value_likeness,
    )
    carried = moves * sizes.second_per_q * sqrt(z.q_variance)
    if shape.skip:
        return _added(below, new, carried, shape.outputs, weight)
    return _Stream(
        log_powers=new.log_powers - new.variance / 2.0,
        variance=carried**2 + new.variance,
        mean=new.mean,
        alike=new.alike,
    )


def _added(below: _Stream, new: _Stream, carried: float, n: int, weight: float) -> _Stream:
    """Return h + φ(y): mean squares add, and so does twice the product of the units' means.

    `carried` is the standard deviation that φ(y) has from the layers below, n the width.
    """
    most = np.maximum(below.log_powers, new.log_powers)
    old_roots = np.exp((below.log_powers - most) / 2)
    new_roots = np.exp((new.log_powers - most) / 2)
    means = 2.0 * below.mean * new.mean
    totals = np.maximum(old_roots**2 + new_roots**2 + means * old_roots * new_roots, 1e-3)
    # For a typical row: shares of the new mean square, each with half of the product.
    old_root, new_root = np.exp(
        np.array([below.log_power, new.log_power]) / 2 - max(below.log_power, new.log_power) / 2
    ).tolist()
    product = means * old_root * new_root
    total = max(old_root**2 + new_root**2 + product, 1e-3)
    old, fresh = (old_root**2 + product / 2) / total, (new_root**2 + product / 2) / total
    crossed = max(average(1.0, mean(below.alike * new.alike), weight), 0.0)
    drawn = (new_root**2 / total) ** 2 * new.variance
    drawn += 4.0 * (old_root * new_root / total) ** 2 * crossed / n
    return _Stream(
        log_powers=most + np.log(totals) - drawn / 2.0,
        variance=(old * sqrt(below.variance) + fresh * carried) ** 2 + drawn,
        mean=(below.mean * old_root + new.mean * new_root) / sqrt(total),
        alike=(old_root**2 * below.alike + new_root**2 * new.alike + product) / total,
    )

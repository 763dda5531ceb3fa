"""What a signal becomes in each layer of a network at initialization: sizes, likeness, chance.

Sizes are logarithms of mean squares, so that no depth overflows. Sources: Schoenholz et al. 2017
(arXiv:1611.01232), Yang & Schoenholz 2017 (arXiv:1712.08969) for skip connections, Hanin & Nica
2020 (arXiv:1812.05994) for the variances at finite width, of which the leading order in 1/n is
kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from math import cos, exp, inf, isfinite, log, pi, sin, sqrt
from typing import Any, NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.theory.gaussian import (
    Activation,
    activation_of,
    derivative_second_moment,
    second_moment,
    slope_of_second_moment,
)
from vegrad.theory.initializers import INITIALIZERS, NORM_EPS, resolve_sigmas

NEAREST, FARTHEST = log(1e-100), log(1e100)  # beyond these an activation is its half-lines
STEP = 0.2  # of ln q, for derivatives
SIZES = 17  # of rows, between which φ's moments are interpolated
GRID = np.linspace(-5.05, 5.05, 102)  # without 0, where rectifiers jump
DENSITY = np.exp(-0.5 * GRID**2) / np.sum(np.exp(-0.5 * GRID**2))
ANGLES = np.linspace(0.0, pi, 33)  # between two rows' pre-activations


@dataclass(frozen=True)
class Data:
    """What matters of the rows that a network sees."""

    log_powers: FloatArray
    """Of each row ln of its mean square: (R,), of some rows if there are many."""
    rows: int
    alike: FloatArray
    """Cosines between two rows: (K,), as common as one another."""
    cosines: FloatArray
    """The same of those rows: (R, R)."""


@dataclass(frozen=True)
class Layer:
    """One layer of n units. D = ∂loss/∂h of its output h, δ = ∂loss/∂z of its pre-activations."""

    inputs: int
    outputs: int
    weight_variance: float
    skip: bool
    orthogonal: bool
    log_qs: FloatArray
    """Mean over draws of ln of the pre-activations' mean square: (R,)."""
    q_variance: float
    """Of its mean over the rows, over draws of the layers below."""
    alike: FloatArray
    """Correlations of two rows' pre-activations: (K,)."""
    log_power: float
    """ln of the output's mean square."""
    power_variance: float
    """Of log_power, over draws."""
    log_slopes: FloatArray
    """ln ‖δ‖²/‖D‖² of each row: what φ′ and normalization make of the gradient."""
    slope_per_q: float
    """Their derivative by ln q."""
    own: float
    """Variance of φ′² relative to its square: n times what the draw of n units does to it."""
    other: FloatArray
    """Covariances of two rows' φ′², likewise."""
    fixed: float
    """What of these is not drawn, since z or y has a fixed norm."""
    likeness: FloatArray
    """E φ′φ′ of two rows over E φ′²."""
    projected: float
    """n times the share of ‖δ‖² that the normalization's backward pass takes out."""
    along: float
    """Growth, on the way down, of the part of ‖D‖² that lies along h."""
    across: float
    """n times what is added to it of the rest."""
    straight: float
    """Of `along`, what the skip connection alone would leave."""
    bonus: float
    """By how much φ′ favours that part: E h²φ′²/(E h² E φ′²) - 1."""


@dataclass(frozen=True)
class _Stream:
    """What one layer hands to the next; `log_powers` and `alike` as of `Data`."""

    log_powers: FloatArray
    variance: float
    mean: float
    """Mean over the units, relative to the root mean square."""
    alike: FloatArray

    @property
    def log_power(self) -> float:
        """Of a row as most are."""
        return float(np.mean(self.log_powers))


def average(same: float, other: FloatArray, weight: float) -> float:
    """The mean over pairs of rows, of which a row with itself has this weight."""
    return weight * same + (1.0 - weight) * float(np.mean(other))


def log_or_less(value: float) -> float:
    """The logarithm, -inf of 0."""
    return log(value) if value > 0 else -inf


class Shape(NamedTuple):
    """What a layer is made of: z = W h + b, φ(norm(z)), plus h if it skips."""

    inputs: int
    outputs: int
    weight_variance: float
    sigma_b: float
    activation: str
    norm: str | None
    skip: bool
    orthogonal: bool


def forward(config: dict[str, Any], data: Data) -> list[Layer]:
    """The layers of a network of this config, the one nearest the input first."""
    return through(shapes(config), data)


def shapes(config: dict[str, Any]) -> list[Shape]:
    """What the layers of a network of this config are made of."""
    sigma_w, sigma_b = resolve_sigmas(
        config["init"], config["activation"], config["sigma_w"], config["sigma_b"]
    )
    row, found = INITIALIZERS[config["init"]], []
    for place, (inputs, outputs) in enumerate(pairwise(config["sizes"])):
        hidden = place < len(config["sizes"]) - 2
        activation = config["activation" if hidden else "output"]
        norm = config["norm"] if hidden else None
        skip = config["residual"] and inputs == outputs
        variance = sigma_w**2 * row.variance(outputs, inputs)
        found.append(
            Shape(inputs, outputs, variance, sigma_b, activation, norm, skip, row.orthogonal)
        )
    return found


def through(shapes: Sequence[Shape], data: Data) -> list[Layer]:
    """The layers that these shapes become, the one nearest the input first."""
    stream = _Stream(data.log_powers, 0.0, 0.0, data.alike)
    layers = []
    for shape in shapes:
        layer, stream = _layer(shape, stream, 1.0 / data.rows)
        layers.append(layer)
    return layers


def _layer(shape: Shape, below: _Stream, weight: float) -> tuple[Layer, _Stream]:
    inputs, n, weight_variance, sigma_b, activation, norm, skip, orthogonal = shape
    # Pre-activations z = W h + b; `share` is the weights' part of their variance.
    log_weights = log_or_less(inputs * weight_variance) + below.log_powers
    log_qs = np.logaddexp(log_weights, 2.0 * log_or_less(sigma_b))
    log_q = float(np.mean(log_qs))
    share = exp(float(np.mean(log_weights)) - log_q) if isfinite(log_q) else 1.0
    log_qs = log_qs + 0.5 * share * (1.0 - share) * below.variance
    q_variance = share**2 * below.variance
    alike = np.clip(share * below.alike + 1.0 - share, -1.0, 1.0)
    # An orthogonal matrix that does not narrow keeps norms, and normalization gives one.
    kept = min(1.0, n / inputs) if orthogonal else 0.0
    held = 1.0 if norm else kept
    unit = _Unit(activation, np.zeros_like(log_qs) if norm else log_qs, alike)
    moves = 0.0 if norm else 1.0  # whether y is larger where z is
    # Outputs h = φ(y).
    drawn = average(unit.own[0], unit.others[0], weight)
    drawn -= 2.0 * held * unit.second_per_q**2 * average(1.0, alike**2, weight)
    new = _Stream(
        unit.log_seconds + moves * 0.5 * unit.second_bend * q_variance,
        max(drawn, 0.0) / n,  # of this layer's draw alone
        unit.mean,
        unit.likeness,
    )
    carried = moves * unit.second_per_q * sqrt(q_variance)
    stream = _added(below, new, carried, n, weight) if skip else _replaced(new, carried)
    # Derivatives, normalization included.
    log_slopes = unit.log_slopes + moves * 0.5 * unit.slope_bend * q_variance
    projected = radius = 0.0
    if norm:
        log_slopes = log_slopes - np.logaddexp(log_qs, log(NORM_EPS))
        projected = unit.crosswise() + (1.0 if norm == "layer" else 0.0)
        radius = 2.0 * (1.0 - kept)
    ratio = exp(min(max(float(np.mean(unit.log_seconds)) - below.log_power, -300.0), 300.0))
    largest = float(np.max(stream.log_powers))
    layer = Layer(
        inputs, n, weight_variance, skip, orthogonal, log_qs, q_variance, alike,
        largest + log_or_less(float(np.mean(np.exp(stream.log_powers - largest)))),
        stream.variance,
        log_slopes, unit.slope_per_q if moves else -1.0,
        unit.own[1], unit.others[1], 2.0 * held * unit.slope_per_q**2 - radius, unit.turning,
        projected, *unit.alignment(ratio, below.mean, skip, moves * share),
    )  # fmt: skip
    return layer, stream


def _replaced(new: _Stream, carried: float) -> _Stream:
    """The stream after a layer without a skip connection."""
    return _Stream(
        new.log_powers - new.variance / 2.0, carried**2 + new.variance, new.mean, new.alike
    )


def _added(below: _Stream, new: _Stream, carried: float, n: int, weight: float) -> _Stream:
    """The stream after h + φ(y): mean squares add, and twice the product of the units' means."""
    most = np.maximum(below.log_powers, new.log_powers)
    old_roots = np.exp((below.log_powers - most) / 2)
    new_roots = np.exp((new.log_powers - most) / 2)
    means = 2.0 * below.mean * new.mean
    totals = np.maximum(old_roots**2 + new_roots**2 + means * old_roots * new_roots, 1e-3)
    # Of rows as most are: shares of the new mean square; each carries half of the product.
    old_root, new_root = np.exp(
        np.array([below.log_power, new.log_power]) / 2 - max(below.log_power, new.log_power) / 2
    ).tolist()
    product = means * old_root * new_root
    total = max(old_root**2 + new_root**2 + product, 1e-3)
    old, fresh = (old_root**2 + product / 2) / total, (new_root**2 + product / 2) / total
    crossed = max(average(1.0, below.alike * new.alike, weight), 0.0)
    drawn = (new_root**2 / total) ** 2 * new.variance
    drawn += 4.0 * (old_root * new_root / total) ** 2 * crossed / n
    return _Stream(
        most + np.log(totals) - drawn / 2.0,
        (old * sqrt(below.variance) + fresh * carried) ** 2 + drawn,
        (below.mean * old_root + new.mean * new_root) / sqrt(total),
        (old_root**2 * below.alike + new_root**2 * new.alike + product) / total,
    )


@cache
def _together() -> FloatArray:
    """Probabilities (ANGLES, GRID, GRID) of two Gaussians with correlations cos ANGLES."""
    u, v = GRID[:, None], GRID
    inside = [
        np.exp(-(u * u - 2.0 * cos(angle) * u * v + v * v) / (2.0 * sin(angle) ** 2))
        for angle in ANGLES[1:-1]
    ]
    table = np.array([np.diag(DENSITY), *inside, np.diag(DENSITY)[::-1]])
    return np.asarray(table / table.sum(axis=(1, 2), keepdims=True))


class _Unit:
    """One unit's φ and φ′ at Gaussian y of the rows' ln variances `log_ys`, and their moments.

    Sizes are exact, up to interpolation between rows; what concerns spreads and pairs of rows is
    right to a percent, and that of rows as most are.
    """

    def __init__(self, activation: str, log_ys: FloatArray, alike: FloatArray) -> None:
        log_y = float(np.mean(log_ys))
        log_near = min(max(log_y, NEAREST), FARTHEST)
        around = np.exp(log_near + STEP * np.array([-1.0, 0.0, 1.0]))
        a: Activation = activation_of(activation)
        per_q = slope_of_second_moment(a, around) * around / second_moment(activation, around)
        self.second_per_q = float(per_q[1])
        self.second_bend = float(per_q[2] - per_q[0]) / (2.0 * STEP)
        low, middle, high = np.log(derivative_second_moment(activation, around)).tolist()
        self.slope_per_q = (high - low) / (2.0 * STEP)
        self.slope_bend = (high - 2.0 * middle + low) / STEP**2
        # Each row's size.
        near = np.clip(log_ys, NEAREST, FARTHEST)
        least, most = float(near.min()), float(near.max())
        nodes = np.linspace(least, most, SIZES if least < most else 1)
        far = np.where(np.isfinite(log_ys), log_ys - near, 0.0)
        seconds = np.log(second_moment(activation, np.exp(nodes)))
        self.log_seconds = np.interp(near, nodes, seconds) + self.second_per_q * far
        slopes = np.log(derivative_second_moment(activation, np.exp(nodes)))
        self.log_slopes = np.interp(near, nodes, slopes)
        # Of rows as most are: values φ(y)/√E φ², slopes φ′(y)/√E φ′², and pairs of them.
        self.u = exp(log_near / 2.0) * GRID
        both = np.array([a.phi(self.u), a.slope(self.u)])
        self.scales = 1.0 / np.sqrt(np.maximum(both**2 @ DENSITY, 1e-300))
        self.value, self.slope = both = both * self.scales[:, None]
        self.mean = float(DENSITY @ self.value)
        functions = np.concatenate([both, both**2])
        table = np.einsum("fi,aif->fa", functions, _together() @ functions.T)
        angles = np.arccos(alike)
        # E f(u)f(v)/E f² of two rows, then the covariances of f² relative to (E f²)².
        self.likeness, self.turning, *squares = (np.interp(angles, ANGLES, row) for row in table)
        means, own = functions[2:] @ DENSITY, functions[2:] ** 2 @ DENSITY
        means = np.where(means > 1e-100, means, 1.0)  # whose squares would underflow
        self.own = np.maximum(own / means**2 - 1.0, 0.0).tolist()
        self.others = [other / m**2 - 1.0 for other, m in zip(squares, means, strict=True)]

    def crosswise(self) -> float:
        """E φ′² y²/E φ′² at y of variance 1."""
        return float(DENSITY @ ((self.slope * GRID) ** 2))

    def alignment(
        self, ratio: float, mean: float, skip: bool, share: float
    ) -> tuple[float, float, float, float]:
        """`along`, `across`, `straight` and `bonus` of a layer, whose input has mean square 1.

        Scaling the input by 1 + ε moves the output h by ε g, g = φ′y times the weights' share of
        y (0 if it is normalized) plus the input if that skips; so D·g is what of D gets along the
        input. `ratio` is E φ², `mean` the input's mean over the units.
        """
        straight, mean = (1.0, mean * sqrt(ratio)) if skip else (0.0, 0.0)
        value, slope = self.value, self.slope
        turn = slope * self.u * (self.scales[0] / self.scales[1])

        def product(a: Any, b: Any) -> float:
            return straight + mean * float(DENSITY @ (a + b)) + ratio * float(DENSITY @ (a * b))

        own = max(product(value, value), 1e-300)
        along = product(share * turn, value) ** 2 / own
        across = max(product(sqrt(share) * turn, sqrt(share) * turn) - along, 0.0)
        favoured = straight + 2.0 * mean * float(DENSITY @ (value * slope**2))
        favoured += ratio * float(DENSITY @ ((value * slope) ** 2))
        return along, across, product(0.0 * value, value) ** 2 / own, favoured / own - 1.0

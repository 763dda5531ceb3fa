"""What a signal becomes in each layer of a network at initialization: sizes, likeness, chance.

Sizes are logarithms of mean squares, so that no depth overflows. Sources: Schoenholz et al. 2017
(arXiv:1611.01232), Yang & Schoenholz 2017 (arXiv:1712.08969) for skip connections, Hanin & Nica
2020 (arXiv:1812.05994) for the variances at finite width, of which the leading order in 1/n is
kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isfinite, log, sqrt
from typing import Any, NamedTuple

import numpy as np

from vegrad.gaussian import (
    Activation,
    Function,
    activation_of,
    derivative_second_moment,
    second_moment,
    slope_of_second_moment,
)
from vegrad.initializers import INITIALIZERS, NORM_EPS, resolve_sigmas

NEAREST, FARTHEST = log(1e-100), log(1e100)  # beyond these an activation is its half-lines
STEP = 0.2  # of ln q, for derivatives
GRID = np.linspace(-5.0, 5.0, 101)
DENSITY = np.exp(-0.5 * GRID**2) / np.sum(np.exp(-0.5 * GRID**2))


@dataclass(frozen=True)
class Data:
    """What matters of the rows that a network sees."""

    log_power: float
    """Mean over the rows of ln of a row's mean square."""
    unequal: float
    """Standard deviation of the same."""
    rows: int
    alike: float
    """Mean cosine between two rows."""


@dataclass(frozen=True)
class Layer:
    """One layer of n units. D = ∂loss/∂h of its output h, δ = ∂loss/∂z of its pre-activations."""

    inputs: int
    outputs: int
    weight_variance: float
    skip: bool
    orthogonal: bool
    log_q: float
    """Mean over rows and draws of ln of the pre-activations' mean square."""
    q_variance: float
    """Of log_q, over draws of the layers below."""
    unequal: float
    """Standard deviation of log_q over the rows."""
    alike: float
    """Correlation of two rows' pre-activations."""
    log_power: float
    """ln of the output's mean square."""
    power_variance: float
    """Of log_power, over draws."""
    log_slope: float
    """ln ‖δ‖²/‖D‖²: what φ′ and normalization make of the gradient."""
    slope_per_q: float
    """Derivative of log_slope by log_q."""
    own: float
    """Variance of φ′² relative to its square: n times what the draw of n units does to it."""
    other: float
    """Covariance of two rows' φ′², likewise."""
    fixed: float
    """What of these is not drawn, since z or y has a fixed norm."""
    likeness: float
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

    @property
    def grown(self) -> float:
        """‖Wᵀδ‖²/‖D‖²."""
        return self.inputs * self.weight_variance * exp(min(self.log_slope, 50.0))


@dataclass(frozen=True)
class _Stream:
    """What one layer hands to the next; `log_power` and `unequal` as of `Data`."""

    log_power: float
    variance: float
    unequal: float
    mean: float
    """Mean over the units, relative to the root mean square."""
    alike: float


def average(same: float, other: float, weight: float) -> float:
    """The mean over pairs of rows, of which a row with itself has this weight."""
    return weight * same + (1.0 - weight) * other


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
    stream = _Stream(data.log_power, 0.0, data.unequal, 0.0, data.alike)
    layers = []
    for shape in shapes:
        layer, stream = _layer(shape, stream, 1.0 / data.rows)
        layers.append(layer)
    return layers


def _layer(shape: Shape, below: _Stream, weight: float) -> tuple[Layer, _Stream]:
    inputs, n, weight_variance, sigma_b, activation, norm, skip, orthogonal = shape
    # Pre-activations z = W h + b; `share` is the weights' part of their variance.
    log_weights = log_or_less(inputs * weight_variance) + below.log_power
    log_q = float(np.logaddexp(log_weights, 2.0 * log_or_less(sigma_b)))
    share = exp(log_weights - log_q) if isfinite(log_q) else 1.0
    log_q += 0.5 * share * (1.0 - share) * (below.variance + below.unequal**2)
    q_variance, unequal = share**2 * below.variance, share * below.unequal
    alike = min(max(share * below.alike + 1.0 - share, -1.0), 1.0)
    # An orthogonal matrix that does not narrow keeps norms, and normalization gives one.
    kept = min(1.0, n / inputs) if orthogonal else 0.0
    held = 1.0 if norm else kept
    unit = _Unit(activation, 0.0 if norm else log_q, alike)
    moves = 0.0 if norm else 1.0  # whether y is larger where z is
    # Outputs h = φ(y).
    spread = q_variance + unequal**2
    log_second = unit.log_second + moves * 0.5 * unit.second_bend * spread
    drawn = average(*unit.covariances(lambda y: unit.value(y) ** 2), weight)
    drawn -= 2.0 * held * unit.second_per_q**2 * average(1.0, alike**2, weight)
    new = _Stream(
        log_second,
        max(drawn, 0.0) / n,  # of this layer's draw alone
        moves * unit.second_per_q * unequal,
        unit.mean,
        unit.likeness(unit.value),
    )
    carried = moves * unit.second_per_q * sqrt(q_variance)
    stream = _added(below, new, carried, n, weight) if skip else _replaced(new, carried)
    # Derivatives, normalization included.
    log_slope = unit.log_slope + moves * 0.5 * unit.slope_bend * spread
    projected = radius = 0.0
    if norm:
        log_slope -= float(np.logaddexp(log_q, log(NORM_EPS)))
        projected = unit.crosswise() + (1.0 if norm == "layer" else 0.0)
        radius = 2.0 * (1.0 - kept)
    own, other = unit.covariances(lambda y: unit.slope(y) ** 2)
    ratio = exp(min(max(unit.log_second - below.log_power, -300.0), 300.0))
    layer = Layer(
        inputs, n, weight_variance, skip, orthogonal, log_q, q_variance, unequal, alike,
        stream.log_power + stream.unequal**2 / 2.0, stream.variance,
        log_slope, unit.slope_per_q if moves else -1.0,
        own, other, 2.0 * held * unit.slope_per_q**2 - radius, unit.likeness(unit.slope),
        projected, *unit.alignment(ratio, below.mean, skip, moves * share),
    )  # fmt: skip
    return layer, stream


def _replaced(new: _Stream, carried: float) -> _Stream:
    """The stream after a layer without a skip connection."""
    return _Stream(
        new.log_power - new.variance / 2.0, carried**2 + new.variance, new.unequal, new.mean,
        new.alike,
    )  # fmt: skip


def _added(below: _Stream, new: _Stream, carried: float, n: int, weight: float) -> _Stream:
    """The stream after h + φ(y): mean squares add, and twice the product of the units' means."""
    most = max(below.log_power, new.log_power)
    old_root, new_root = exp((below.log_power - most) / 2), exp((new.log_power - most) / 2)
    product = 2.0 * below.mean * new.mean * old_root * new_root
    total = max(old_root**2 + new_root**2 + product, 1e-3)
    # Shares of the new mean square; each of the two carries half of the product.
    old, fresh = (old_root**2 + product / 2) / total, (new_root**2 + product / 2) / total
    crossed = max(average(1.0, below.alike * new.alike, weight), 0.0)
    drawn = (new_root**2 / total) ** 2 * new.variance
    drawn += 4.0 * (old_root * new_root / total) ** 2 * crossed / n
    return _Stream(
        most + log(total) - drawn / 2.0,
        (old * sqrt(below.variance) + fresh * carried) ** 2 + drawn,
        old * below.unequal + fresh * new.unequal,
        (below.mean * old_root + new.mean * new_root) / sqrt(total),
        (old_root**2 * below.alike + new_root**2 * new.alike + product) / total,
    )


class _Unit:
    """One unit's φ and φ′ at Gaussian y, of root mean square 1, and their moments.

    Sizes are exact; what concerns spreads and pairs of rows is right to a percent.
    """

    def __init__(self, activation: str, log_y: float, alike: float) -> None:
        log_near = min(max(log_y, NEAREST), FARTHEST)
        around = np.exp(log_near + STEP * np.array([-1.0, 0.0, 1.0]))
        self.a: Activation = activation_of(activation)
        second = second_moment(activation, around)
        per_q = slope_of_second_moment(self.a, around) * around / second
        self.second_per_q = float(per_q[1])
        self.second_bend = float(per_q[2] - per_q[0]) / (2.0 * STEP)
        far = log_y - log_near if isfinite(log_y) else 0.0
        self.log_second = float(np.log(second[1])) + self.second_per_q * far
        low, self.log_slope, high = np.log(derivative_second_moment(activation, around)).tolist()
        self.slope_per_q = (high - low) / (2.0 * STEP)
        self.slope_bend = (high - 2.0 * self.log_slope + low) / STEP**2
        root = exp(log_near / 2.0)
        self.u = root * GRID
        self.v = alike * self.u[:, None] + sqrt(1.0 - alike * alike) * self.u
        self.scales = (self._scale(self.a.phi), self._scale(self.a.slope))
        self.mean = float(DENSITY @ self.value(self.u))

    def _scale(self, f: Function) -> float:
        return 1.0 / sqrt(max(float(DENSITY @ (f(self.u) ** 2)), 1e-300))

    def value(self, y: Any) -> Any:
        """φ(y)/√E φ²."""
        return self.a.phi(y) * self.scales[0]

    def slope(self, y: Any) -> Any:
        """φ′(y)/√E φ′²."""
        return self.a.slope(y) * self.scales[1]

    def covariances(self, f: Function) -> tuple[float, float]:
        """Relative to (E f)²: of f(u) with itself, and of two rows' f(u) and f(v)."""
        u, v = f(self.u), f(self.v)
        first = float(DENSITY @ u) or 1.0
        same, other = float(DENSITY @ u**2), float((DENSITY * u) @ (v @ DENSITY))
        return max(same / first**2 - 1.0, 0.0), max(other / first**2 - 1.0, 0.0)

    def likeness(self, f: Callable[[Any], Any]) -> float:
        """E f(u)f(v)/E f² of two rows."""
        return float((DENSITY * f(self.u)) @ (f(self.v) @ DENSITY))

    def crosswise(self) -> float:
        """E φ′² y²/E φ′² at y of variance 1."""
        return float(DENSITY @ ((self.slope(self.u) * self.u) ** 2))

    def alignment(
        self, ratio: float, mean: float, skip: bool, share: float
    ) -> tuple[float, float, float, float]:
        """`along`, `across`, `straight` and `bonus` of a layer, whose input has mean square 1.

        Scaling the input by 1 + ε moves the output h by ε g, g = φ′y times the weights' share of
        y (0 if it is normalized) plus the input if that skips; so D·g is what of D gets along the
        input. `ratio` is E φ², `mean` the input's mean over the units.
        """
        straight, mean = (1.0, mean * sqrt(ratio)) if skip else (0.0, 0.0)
        value, slope = self.value(self.u), self.slope(self.u)
        turn = slope * self.u * (self.scales[0] / self.scales[1])

        def product(a: Any, b: Any) -> float:
            return straight + mean * float(DENSITY @ (a + b)) + ratio * float(DENSITY @ (a * b))

        own = max(product(value, value), 1e-300)
        along = product(share * turn, value) ** 2 / own
        across = max(product(sqrt(share) * turn, sqrt(share) * turn) - along, 0.0)
        favoured = straight + 2.0 * mean * float(DENSITY @ (value * slope**2))
        favoured += ratio * float(DENSITY @ ((value * slope) ** 2))
        return along, across, product(0.0 * value, value) ** 2 / own, favoured / own - 1.0

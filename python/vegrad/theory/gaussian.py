"""Means of activations over Gaussian pre-activations, to the last digits of float64.

Everything in mean-field theory is E f(√q Z), Z ~ N(0, 1), or the same of two correlated variables.
Sources: Cho & Saul 2009 (rectifiers of two variables); Williams 1997 (erf); the closed forms of
GELU and hard tanh follow by integration by parts. What has no closed form, or one that loses
digits, goes through Gauss-Legendre panels whose ends lie where f bends. (Gauss-Hermite rules do
not see features narrower than 1/√q: with 25 nodes E tanh′² at q = 10 is half as large again.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from math import asin, erf, isfinite, pi, sqrt
from numbers import Real
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import FloatArray

Function = Callable[[FloatArray], FloatArray]
Quantity = TypeVar("Quantity", float, FloatArray)

SELU_SCALE = 1.0507009873554805  # Klambauer et al. 2017
SELU_ALPHA = 1.6732632423543772

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
SPREADS = np.array([1.5, 3.0, 6.0, 12.0])  # panel ends of Z; 12 is the end of the world
FEATURES = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])  # panel ends of √q Z
CHUNK = 2048  # values of q at a time, for the memory's sake


# Activations -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Activation:
    """φ and what the theory needs to know of it."""

    phi: Function
    slope: Function
    """φ′."""
    at_zero: tuple[float, float] | None
    """φ′ just below and just above 0; None where φ(0) is not 0."""
    at_infinity: tuple[float, float] = (0.0, 0.0)
    """φ′ towards -∞ and +∞."""
    kinks: tuple[float, ...] = ()
    """Where φ, φ′ or φ″ jumps, apart from 0."""

    @property
    def rectifier(self) -> bool:
        """Whether φ is two half-lines from 0, so that it knows no scale."""
        return self.at_zero == self.at_infinity


def _erf(x: FloatArray) -> FloatArray:
    return np.asarray(np.frompyfunc(erf, 1, 1)(x), np.float64)


def _sigmoid(x: FloatArray) -> FloatArray:
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def _normal_cdf(x: FloatArray) -> FloatArray:
    return 0.5 + 0.5 * _erf(x * sqrt(0.5))


def _normal_pdf(x: FloatArray) -> FloatArray:
    return np.exp(-0.5 * x * x) / sqrt(2.0 * pi)


def _tanh_slope(x: FloatArray) -> FloatArray:
    e = np.exp(-2.0 * np.abs(x))
    return 4.0 * e / (1.0 + e) ** 2


def _softplus(x: FloatArray) -> FloatArray:
    return np.maximum(x, 0.0) + np.log1p(np.exp(-np.abs(x)))


def _silu_slope(x: FloatArray) -> FloatArray:
    return _sigmoid(x) * (1.0 + x * _sigmoid(-x))


def _rectifier(below: float) -> Activation:
    slopes = (below, 1.0)
    return Activation(
        lambda x: np.where(x > 0, x, below * x), lambda x: np.where(x > 0, 1.0, below),
        slopes, slopes,
    )  # fmt: skip


def _exponential_unit(scale: float, alpha: float) -> Activation:
    def below(x: FloatArray) -> FloatArray:
        return np.minimum(x, 0.0)

    return Activation(
        lambda x: scale * np.where(x > 0, x, alpha * np.expm1(below(x))),
        lambda x: scale * np.where(x > 0, 1.0, alpha * np.exp(below(x))),
        (scale * alpha, scale),
        (0.0, scale),
    )


TABLE: dict[str, Activation] = {
    "identity": _rectifier(1.0),
    "sigmoid": Activation(_sigmoid, lambda x: _sigmoid(x) * _sigmoid(-x), None),
    "tanh": Activation(np.tanh, _tanh_slope, (1.0, 1.0)),
    "relu": _rectifier(0.0),
    "leaky_relu": _rectifier(0.01),  # of MLP; any other slope by `activation_of`
    "elu": _exponential_unit(1.0, 1.0),
    "selu": _exponential_unit(SELU_SCALE, SELU_ALPHA),
    "gelu": Activation(
        lambda x: x * _normal_cdf(x), lambda x: _normal_cdf(x) + x * _normal_pdf(x),
        (0.5, 0.5), (0.0, 1.0),
    ),
    "silu": Activation(lambda x: x * _sigmoid(x), _silu_slope, (0.5, 0.5), (0.0, 1.0)),
    "softplus": Activation(_softplus, _sigmoid, None, (0.0, 1.0)),
    "hard_tanh": Activation(
        lambda x: np.clip(x, -1.0, 1.0), lambda x: np.where(np.abs(x) < 1.0, 1.0, 0.0),
        (1.0, 1.0), kinks=(-1.0, 1.0),
    ),
    "erf": Activation(
        _erf, lambda x: 2.0 / sqrt(pi) * np.exp(-x * x), (2.0 / sqrt(pi), 2.0 / sqrt(pi))
    ),
}  # fmt: skip
# The theory knows one more than the networks, and PyTorch's name of the identity.
TABLE["softsign"] = Activation(
    lambda x: x / (1.0 + np.abs(x)), lambda x: 1.0 / (1.0 + np.abs(x)) ** 2, (1.0, 1.0)
)
TABLE["linear"] = TABLE["identity"]


def activation_of(name: str, negative_slope: float = 0.01) -> Activation:
    """The activation of this name, leaky ReLU with its slope.

    Raises:
        TypeError, ValueError: for a name that is none.
    """
    names = ", ".join(_core.ACTIVATIONS)
    if not isinstance(name, str):
        raise TypeError(f"activation must be one of {names}, not {type(name).__name__}")
    if name not in TABLE:
        raise ValueError(f"activation must be one of {names}, not {name!r}")
    if name != "leaky_relu":
        return TABLE[name]
    if not isinstance(negative_slope, Real) or not isfinite(negative_slope):
        raise ValueError(f"negative_slope must be a finite number, not {negative_slope!r}")
    return _rectifier(float(negative_slope))


def check_q(q: Any) -> FloatArray:
    """Variances as an array: numbers from 0 to inf."""
    array = np.asarray(q)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"q must be a number or an array of numbers, not {q!r}")
    array = array.astype(np.float64)
    if not np.all(array >= 0):
        raise ValueError(f"q must not be negative, got {array[~(array >= 0)].flat[0]}")
    return array


def check_sigma(name: str, sigma: Any) -> float:
    """A standard deviation as a float."""
    if not isinstance(sigma, Real) or isinstance(sigma, bool):
        raise TypeError(f"{name} must be a number, not {type(sigma).__name__}")
    value = float(sigma)
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {sigma}")
    return value


# Means of one variable -------------------------------------------------------------------------


def gaussian_mean(f: Function, q: FloatArray, kinks: tuple[float, ...] = ()) -> FloatArray:
    """E f(√q Z) for every entry of q (finite)."""
    flat = np.atleast_1d(q).ravel()
    parts = [_panels(f, flat[i : i + CHUNK], kinks) for i in range(0, len(flat), CHUNK)]
    return np.concatenate(parts).reshape(np.shape(q)) if parts else np.zeros(np.shape(q))


def _panels(f: Function, q: FloatArray, kinks: tuple[float, ...]) -> FloatArray:
    root = np.sqrt(q)[:, None]
    bends = np.array([*FEATURES, *-FEATURES, *kinks])
    far = SPREADS[-1]
    with np.errstate(divide="ignore", over="ignore"):
        ends = np.clip(bends / root, -far, far)
    fixed = np.broadcast_to(np.array([0.0, *SPREADS, *-SPREADS]), (len(q), 2 * len(SPREADS) + 1))
    z, weight = _nodes(np.sort(np.concatenate([ends, fixed], axis=1), axis=1))
    values = f((root[:, :, None] * z).reshape(len(q), -1))
    return np.asarray(np.sum(values * (weight * _normal_pdf(z)).reshape(len(q), -1), axis=1))


def _nodes(ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Nodes and weights (..., P, 24) of the panels between sorted ends (..., P + 1)."""
    half = np.diff(ends)[..., None] / 2.0
    middle = (ends[..., 1:] + ends[..., :-1])[..., None] / 2.0
    return middle + half * NODES, half * WEIGHTS


def _moment(q: Quantity, limit: float, values: Function) -> Quantity:
    """`values` of the finite entries of q, `limit` of the infinite ones; a float for a number."""
    array = check_q(q)
    infinite = np.isinf(array)
    result = np.where(infinite, limit, values(np.where(infinite, 1.0, array)))
    return result if isinstance(q, np.ndarray) else float(result)


def second_moment(activation: str, q: Quantity, *, negative_slope: float = 0.01) -> Quantity:
    """B(q) = E φ(√q Z)².

    Args:
        activation: a name.
        q: variances of the pre-activations, a number or an array of any shape; inf is the limit.
        negative_slope: of leaky_relu.

    Returns:
        A float for a number, an array of q's shape for an array, right to about 1e-15 relative.

    Raises:
        TypeError, ValueError: an unknown activation; a q that is negative or NaN.
    """
    a = activation_of(activation, negative_slope)
    low, high = a.at_infinity
    limit = np.inf if low or high else _ends(a, lambda x: x * x)
    return _moment(q, limit, lambda v: _second(activation, a, v))


def derivative_second_moment(
    activation: str, q: Quantity, *, negative_slope: float = 0.01
) -> Quantity:
    """A(q) = E φ′(√q Z)²; arguments and errors as of `second_moment`."""
    a = activation_of(activation, negative_slope)
    at_zero = mean_square(a.at_zero or (float(a.slope(np.zeros(1))[0]),) * 2)

    def values(v: FloatArray) -> FloatArray:  # at 0 the slope jumps, or may
        return np.where(v > 0, _derivative(activation, a, np.where(v > 0, v, 1.0)), at_zero)

    return _moment(q, mean_square(a.at_infinity), values)


def mean(activation: str, q: Quantity, *, negative_slope: float = 0.01) -> Quantity:
    """m(q) = E φ(√q Z); arguments and errors as of `second_moment`."""
    a = activation_of(activation, negative_slope)
    low, high = a.at_infinity
    limit = np.inf * np.sign(high - low) if low != high else _ends(a, lambda x: x)

    def values(v: FloatArray) -> FloatArray:
        if a.rectifier:
            return (high - low) * np.sqrt(v / (2.0 * pi))
        if activation == "gelu":
            return np.sqrt(v / (1.0 + v)) * np.sqrt(v / (2.0 * pi))
        return gaussian_mean(a.phi, v, a.kinks)

    return _moment(q, limit, values)


def mean_square(slopes: tuple[float, float]) -> float:
    """The mean of the squares of two slopes: A of the two half-lines that they are."""
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2.0


def _ends(a: Activation, of: Function) -> float:
    """The mean of φ(-∞) and φ(∞), or a function of them; 0 if both slopes are there."""
    if a.at_infinity != (0.0, 0.0):
        return 0.0
    return float(np.mean(of(a.phi(np.array([-1e300, 1e300])))))


def _second(name: str, a: Activation, q: FloatArray) -> FloatArray:
    if a.rectifier:
        return mean_square(a.at_infinity) * q
    if name == "erf":
        return 2.0 / pi * np.arcsin(q / (0.5 + q))
    if name == "gelu":
        share, root = q / (1.0 + q), np.sqrt(1.0 + 2.0 * q)
        return q / 4.0 + q / (2.0 * pi) * (np.arcsin(share) + 2.0 * share / root)
    return gaussian_mean(lambda x: a.phi(x) ** 2, q, a.kinks)


def _derivative(name: str, a: Activation, q: FloatArray) -> FloatArray:
    if a.rectifier:
        return np.full(q.shape, mean_square(a.at_infinity))
    if name == "erf":
        return 4.0 / pi / np.sqrt(1.0 + 4.0 * q)
    if name == "hard_tanh":
        return _erf(np.sqrt(0.5 / q))
    if name == "gelu":
        share, root = q / (1.0 + q), np.sqrt(1.0 + 2.0 * q)
        inner = np.arcsin(share) + 2.0 * share / root + q / (1.0 + 2.0 * q) / root
        return 0.25 + inner / (2.0 * pi)
    return gaussian_mean(lambda x: a.slope(x) ** 2, q, a.kinks)


def slope_of_second_moment(a: Activation, q: FloatArray) -> FloatArray:
    """B′(q) = E[x φ(x) φ′(x)]/q at x = √q Z, which needs no φ″ and so is right at kinks.

    At q = 0, and at inf, its limit; only for φ(0) = 0 there is one at 0.
    """
    inside = np.isfinite(q) & (q > 0)
    v = np.where(inside, q, 1.0)
    values = gaussian_mean(lambda x: x * a.phi(x) * a.slope(x), v, a.kinks) / v
    at_zero = mean_square(a.at_zero) if a.at_zero else np.nan
    limits = np.where(q > 0, mean_square(a.at_infinity), at_zero)
    return np.where(inside, values, limits)


# Means of two correlated variables --------------------------------------------------------------

REACH = 9.0  # of each of the two, in standard deviations
MARKS = np.array([0.0, 3.0, -3.0, 9.0, -9.0, 30.0, -30.0])


def pair_mean(
    f: Callable[[FloatArray, FloatArray], FloatArray],
    q: float,
    t: float,
    kinks: tuple[float, ...] = (),
) -> float:
    """E f(u, v), u and v ~ N(0, q) with correlation 1 - t, for a symmetric f.

    With independent X, Y: u, v = √q (√(1 - t/2) X ± √(t/2) Y), so that nothing is lost as t → 0.
    """
    a, b = sqrt(q * (1.0 - t / 2.0)), sqrt(q * t / 2.0)
    marks = np.array([*MARKS, *kinks])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where u and v bend at once the outer integrand has a corner, as wide as b.
        corners = np.add.outer(np.array([0.0, *kinks]), b * np.array([-9, -3, -1, 1, 3, 9.0]))
        outer = np.array([*marks, *corners.ravel()]) / a
        outer = np.concatenate([np.nan_to_num(outer), [-REACH, -3.0, 3.0, REACH]])
        x, x_weight = _nodes(np.unique(np.clip(outer, -REACH, REACH)))
        x, x_weight = x.ravel(), (x_weight * _normal_pdf(x)).ravel()
        inner = np.subtract.outer(a * x, marks) / b  # v bends there, u at the negative
    ends = np.concatenate([inner, -inner, np.full((len(x), 3), [0.0, 3.0, REACH])], axis=1)
    ends = np.sort(np.clip(np.nan_to_num(ends, posinf=REACH, neginf=0.0), 0.0, REACH), axis=1)
    y, y_weight = _nodes(ends[:, _needed(ends)])
    centre, offset = (a * x)[:, None, None], b * y
    values = f(centre + offset, centre - offset) * y_weight * _normal_pdf(y)
    return float(2.0 * np.sum(x_weight * np.sum(values, axis=(1, 2))))


def _needed(ends: FloatArray) -> npt.NDArray[np.bool_]:
    """Columns of sorted panel ends that are not the one before in every row."""
    return np.concatenate([[True], np.any(np.diff(ends, axis=1) > 0, axis=0)])


def angle_of(t: float) -> float:
    """The angle θ with cos θ = 1 - t, without loss near 0."""
    return 2.0 * asin(sqrt(min(max(t / 2.0, 0.0), 1.0)))


def rectifier_decorrelation(slopes: tuple[float, float], t: float) -> float:
    """1 - K(1 - t), K the correlation map of two half-lines without bias (Cho & Saul 2009).

    With φ(x) = p x + r |x|: K(cos θ) = (p² cos θ + r² (2/π)(sin θ + (π/2 - θ) cos θ))/(p² + r²).
    """
    p, r = (slopes[1] + slopes[0]) / 2.0, (slopes[1] - slopes[0]) / 2.0
    angle = angle_of(t)
    # sin θ - θ cos θ, by its series where the difference would lose digits
    small = angle**3 * (1 / 3 - angle**2 * (1 / 30 - angle**2 * (1 / 840 - angle**2 / 45360)))
    lag = small if angle < 0.05 else np.sin(angle) - angle * np.cos(angle)
    return float(t - r * r / (p * p + r * r) * 2.0 / pi * lag)


@cache
def slope_moment(activation: str, q: float, power: int, negative_slope: float = 0.01) -> float:
    """μ_k = E φ′^{2k}, here 2k = `power`; inf is the limit."""
    a = activation_of(activation, negative_slope)
    if np.isinf(q) or (q == 0.0 and a.at_zero) or a.rectifier:
        low, high = a.at_zero if q == 0.0 and a.at_zero else a.at_infinity
        return (low**power + high**power) / 2.0
    return float(gaussian_mean(lambda x: a.slope(x) ** power, np.array(q), a.kinks))

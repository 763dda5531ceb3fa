"""Means of activations over Gaussian pre-activations, to the last digits of float64.

Everything in mean-field theory is E f(√q Z), Z ~ N(0, 1), or the same of two correlated variables;
this module computes both, for any φ of the table of activations and for φ′.

It must guarantee about 1e-15 relative for every q from 0 to ∞, both ends included, because the
callers solve for fixed points and subtract neighbouring values. Hence closed forms where they
keep their digits: Cho & Saul 2009 (rectifiers of two variables), Williams 1997 (erf), and
integration by parts for GELU and hard tanh. Everything else goes through Gauss-Legendre panels
whose ends lie where f bends. Gauss-Hermite rules, the usual choice, do not see features narrower
than 1/√q: with 25 nodes E tanh′² at q = 10 comes out half as large again.

It leaves out everything about networks: weights, biases and layers are in `meanfield` and
`propagation`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from math import asin, inf, isfinite, pi, sqrt
from numbers import Real
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.activations import ACTIVATIONS, Activation, Function, erf, leaky_relu, normal_pdf
from vegrad.arrays.checks import FloatArray, did_you_mean, refuse_masked
from vegrad.arrays.shown import shown

Quantity = TypeVar("Quantity", float, FloatArray)

NODES, WEIGHTS = np.polynomial.legendre.leggauss(24)
SPREADS = np.array([1.5, 3.0, 6.0, 12.0])  # panel ends of Z, of which nothing beyond 12 counts
FEATURES = np.array([0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0])  # panel ends of √q Z
CHUNK = 2048  # values of q at a time, to bound the memory

# Theory knows one activation more than the networks, and PyTorch's name of the identity.
SOFTSIGN = Activation(
    name="softsign",
    phi=lambda x: x / (1.0 + np.abs(x)),
    slope=lambda x: 1.0 / (1.0 + np.abs(x)) ** 2,
    at_zero=(1.0, 1.0),
    at_infinity=(0.0, 0.0),
    kinks=(),
    largest_slope=1.0,
    critical_sigma_b=None,
    stable=True,
    torch=None,
    jax=None,
)
KNOWN: Mapping[str, Activation] = {
    **ACTIVATIONS,
    "softsign": SOFTSIGN,
    "linear": ACTIVATIONS["identity"],
}


def activation_of(name: str, negative_slope: float = 0.01) -> Activation:
    """Return the activation of this name; leaky ReLU with the given slope.

    Raises:
        TypeError, ValueError: the name is not a string, or not that of an activation; the slope is
            not a finite number.
    """
    if name == "leaky_relu":
        if not isinstance(negative_slope, Real) or not isfinite(negative_slope):
            raise ValueError(f"negative_slope must be a finite number, not {shown(negative_slope)}")
        return leaky_relu(float(negative_slope))
    if isinstance(name, str) and name in KNOWN:
        return KNOWN[name]
    names = ", ".join(_core.ACTIVATIONS)
    if not isinstance(name, str):
        raise TypeError(f"activation must be one of {names}, not {type(name).__name__}")
    raise ValueError(
        f"activation must be one of {names}, not {shown(name)}{did_you_mean(name, KNOWN)}"
    )


def check_q(q: object) -> FloatArray:
    """Return variances as an array; they are numbers from 0 to inf."""
    refuse_masked(q, "q")
    array = np.asarray(q)
    if array.dtype.kind not in "iuf":
        raise TypeError(f"q must be a number or an array of numbers, not {shown(q)}")
    array = array.astype(np.float64)
    if not np.all(array >= 0):
        raise ValueError(f"q must not be negative, got {array[~(array >= 0)].flat[0]}")
    return array


def check_sigma(name: str, sigma: object) -> float:
    """Return a standard deviation as a float."""
    if not isinstance(sigma, Real) or isinstance(sigma, bool):
        raise TypeError(f"{name} must be a number, not {type(sigma).__name__}")
    value = _as_float(sigma)
    if not (isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be finite and not negative, got {value}")
    return value


def check_positive(name: str, value: object) -> float:
    """Return a finite number above 0 as a float."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    number = _as_float(value)
    if not (isfinite(number) and number > 0):
        raise ValueError(f"{name} must be finite and positive, not {number}")
    return number


def _as_float(value: Real) -> float:
    try:
        return float(value)
    except OverflowError:  # of an integer; it is refused as one of either sign is
        return inf


# Means of one variable -------------------------------------------------------------------------


def gaussian_mean(f: Function, q: FloatArray, kinks: tuple[float, ...] = ()) -> FloatArray:
    """Return E f(√q Z) for every entry of q, all of them finite."""
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
    return np.asarray(np.sum(values * (weight * normal_pdf(z)).reshape(len(q), -1), axis=1))


def _nodes(ends: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Return nodes and weights (..., P, 24) of the panels between sorted ends (..., P + 1)."""
    half = np.diff(ends)[..., None] / 2.0
    middle = (ends[..., 1:] + ends[..., :-1])[..., None] / 2.0
    return middle + half * NODES, half * WEIGHTS


def _moment(q: Quantity, limit: float, values: Function) -> Quantity:
    """Return `values` of the finite entries of q and `limit` for the infinite ones.

    The result is a float if q is a number, else an array.
    """
    array = check_q(q)
    infinite = np.isinf(array)
    result = np.where(infinite, limit, values(np.where(infinite, 1.0, array)))
    return result if isinstance(q, np.ndarray) else float(result)


def second_moment(activation: str, q: Quantity, *, negative_slope: float = 0.01) -> Quantity:
    """Return B(q) = E φ(√q Z)².

    Args:
        activation: its name.
        q: variances of the pre-activations, a number or an array of any shape; inf is the limit.
        negative_slope: slope of leaky_relu on the left.

    Returns:
        A float if q is a number, else an array of its shape; right to about 1e-15 relative.

    Raises:
        TypeError, ValueError: the activation is unknown; q is negative or NaN.
    """
    a = activation_of(activation, negative_slope)
    low, high = a.at_infinity
    limit = np.inf if low or high else _ends(a, lambda x: x * x)
    return _moment(q, limit, lambda v: _second(activation, a, v))


def derivative_second_moment(
    activation: str, q: Quantity, *, negative_slope: float = 0.01
) -> Quantity:
    """Return A(q) = E φ′(√q Z)²; arguments and errors are those of `second_moment`."""
    a = activation_of(activation, negative_slope)
    at_zero = mean_square(a.at_zero or (float(a.slope(np.zeros(1))[0]),) * 2)

    def values(v: FloatArray) -> FloatArray:
        # At v = 0 the slope may jump, so that only the limit from the table is right.
        return np.where(v > 0, _derivative(activation, a, np.where(v > 0, v, 1.0)), at_zero)

    return _moment(q, mean_square(a.at_infinity), values)


def mean(activation: str, q: Quantity, *, negative_slope: float = 0.01) -> Quantity:
    """Return m(q) = E φ(√q Z); arguments and errors are those of `second_moment`."""
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
    """Return the mean square of two slopes, which is A of a rectifier that has them."""
    return (slopes[0] ** 2 + slopes[1] ** 2) / 2.0


def _ends(a: Activation, f: Function) -> float:
    """Return the mean of f(φ(-∞)) and f(φ(∞)) where φ is bounded, else 0."""
    if not a.bounded:
        return 0.0
    return float(np.mean(f(a.phi(np.array([-1e300, 1e300])))))


def _second(name: str, a: Activation, q: FloatArray) -> FloatArray:
    if a.rectifier:
        return mean_square(a.at_infinity) * q
    if name == "erf":
        return 2.0 / pi * np.arctan(q / np.sqrt(0.25 + q))  # arcsin(q/(1/2 + q)), with its digits
    if name == "gelu":
        share, root = q / (1.0 + q), np.sqrt(1.0 + 2.0 * q)
        return q / 4.0 + q / (2.0 * pi) * (np.arctan(q / root) + 2.0 * share / root)
    return gaussian_mean(lambda x: a.phi(x) ** 2, q, a.kinks)


def _derivative(name: str, a: Activation, q: FloatArray) -> FloatArray:
    if a.rectifier:
        return np.full(q.shape, mean_square(a.at_infinity))
    if name == "erf":
        return 4.0 / pi / np.sqrt(1.0 + 4.0 * q)
    if name == "hard_tanh":
        return erf(np.sqrt(0.5 / q))
    if name == "gelu":
        share, root = q / (1.0 + q), np.sqrt(1.0 + 2.0 * q)
        inner = np.arctan(q / root) + 2.0 * share / root + q / (1.0 + 2.0 * q) / root
        return 0.25 + inner / (2.0 * pi)
    return gaussian_mean(lambda x: a.slope(x) ** 2, q, a.kinks)


def slope_of_second_moment(a: Activation, q: FloatArray) -> FloatArray:
    """Return B′(q) = E[x φ(x) φ′(x)]/q at x = √q Z, which needs no φ″ and so is right at kinks.

    At q = 0 and at inf it is the limit; at 0 there is none (nan) unless φ(0) = 0.
    """
    inside = np.isfinite(q) & (q > 0)
    v = np.where(inside, q, 1.0)
    values = gaussian_mean(lambda x: x * a.phi(x) * a.slope(x), v, a.kinks) / v
    at_zero = mean_square(a.at_zero) if a.at_zero else np.nan
    limits = np.where(q > 0, mean_square(a.at_infinity), at_zero)
    return np.where(inside, values, limits)


# Means of two correlated variables --------------------------------------------------------------

REACH = 9.0  # how far the integral over each of the two goes, in standard deviations
MARKS = np.array([0.0, 3.0, -3.0, 9.0, -9.0, 30.0, -30.0])  # values of φ's argument that end panels


def pair_mean(
    f: Callable[[FloatArray, FloatArray], FloatArray],
    q: float,
    t: float,
    kinks: tuple[float, ...] = (),
) -> float:
    """Return E f(u, v), u and v ~ N(0, q) with correlation 1 - t, for a symmetric f.

    With independent X and Y, u and v are √q (√(1 - t/2) X ± √(t/2) Y), which loses no digits as
    t → 0.
    """
    a, b = sqrt(q * (1.0 - t / 2.0)), sqrt(q * t / 2.0)
    marks = np.array([*MARKS, *kinks])
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        # Where u and v reach a kink at once, the outer integrand has a corner as wide as b.
        corners = np.add.outer(np.array([0.0, *kinks]), b * np.array([-9, -3, -1, 1, 3, 9.0]))
        outer = np.array([*marks, *corners.ravel()]) / a
        outer = np.concatenate([np.nan_to_num(outer), [-REACH, -3.0, 3.0, REACH]])
        x, x_weight = _nodes(np.unique(np.clip(outer, -REACH, REACH)))
        x, x_weight = x.ravel(), (x_weight * normal_pdf(x)).ravel()
        # v reaches a mark at `inner`, and u at its negative.
        inner = np.subtract.outer(a * x, marks) / b
    ends = np.concatenate([inner, -inner, np.full((len(x), 3), [0.0, 3.0, REACH])], axis=1)
    ends = np.sort(np.clip(np.nan_to_num(ends, posinf=REACH, neginf=0.0), 0.0, REACH), axis=1)
    y, y_weight = _nodes(ends[:, _needed(ends)])
    centre, offset = (a * x)[:, None, None], b * y
    values = f(centre + offset, centre - offset) * y_weight * normal_pdf(y)
    return float(2.0 * np.sum(x_weight * np.sum(values, axis=(1, 2))))


def _needed(ends: FloatArray) -> npt.NDArray[np.bool_]:
    """Mark the columns of sorted panel ends that differ from the one before in some row."""
    return np.concatenate([[True], np.any(np.diff(ends, axis=1) > 0, axis=0)])


def angle_of(t: float) -> float:
    """Return the angle θ with cos θ = 1 - t, without loss of digits near 0."""
    return 2.0 * asin(sqrt(min(max(t / 2.0, 0.0), 1.0)))


def rectifier_decorrelation(slopes: tuple[float, float], t: float) -> float:
    """Return 1 - K(1 - t), K the correlation map of a rectifier without bias (Cho & Saul 2009).

    With φ(x) = p x + r |x|: K(cos θ) = (p² cos θ + r² (2/π)(sin θ + (π/2 - θ) cos θ))/(p² + r²).
    """
    p, r = (slopes[1] + slopes[0]) / 2.0, (slopes[1] - slopes[0]) / 2.0
    angle = angle_of(t)
    # sin θ - θ cos θ, by its series where the difference would lose digits.
    small = angle**3 * (1 / 3 - angle**2 * (1 / 30 - angle**2 * (1 / 840 - angle**2 / 45360)))
    lag = small if angle < 0.05 else np.sin(angle) - angle * np.cos(angle)
    return float(t - r * r / (p * p + r * r) * 2.0 / pi * lag)


@cache
def slope_moment(activation: str, q: float, power: int, negative_slope: float = 0.01) -> float:
    """Return E φ′(√q Z)^power; at q = inf the limit."""
    a = activation_of(activation, negative_slope)
    if np.isinf(q) or (q == 0.0 and a.at_zero) or a.rectifier:
        low, high = a.at_zero if q == 0.0 and a.at_zero else a.at_infinity
        return (low**power + high**power) / 2.0
    return float(gaussian_mean(lambda x: a.slope(x) ** power, np.array(q), a.kinks))

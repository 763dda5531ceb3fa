"""Initial weights and biases: one row a scheme, in one table of names.

Each row draws float64 values for one layer, weight (O, I) and bias (O,), from a NumPy generator,
so that a seed gives the same network in float32 (rounded) and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import shown
from vegrad.theory.meanfield import CRITICAL_SIGMA_B, critical_point

Variance = Callable[[int, int], float]
NORM_EPS = 1e-5  # what a network's normalization adds to the variance


@dataclass(frozen=True)
class Initializer:
    """One row of the table of initializations."""

    draw: Callable[[np.random.Generator, int, int], FloatArray]
    """Function of a generator, outputs and inputs that draws a weight (O, I)."""
    variance: Variance
    """Function of outputs and inputs: the variance of a weight, before the factor sigma_w²."""
    orthogonal: bool = False
    """True if rows or columns are orthonormal."""


def _uniform(variance: Variance) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> FloatArray:
        bound = sqrt(3.0 * variance(outputs, inputs))
        return rng.uniform(-bound, bound, (outputs, inputs))

    return Initializer(draw, variance)


def _normal(variance: Variance) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> FloatArray:
        weight = rng.standard_normal((outputs, inputs))
        weight *= sqrt(variance(outputs, inputs))
        return weight

    return Initializer(draw, variance)


def _glorot(outputs: int, inputs: int) -> float:
    return 2.0 / (inputs + outputs)  # Glorot & Bengio 2010


def _he(outputs: int, inputs: int) -> float:
    return 2.0 / inputs  # He et al. 2015


def _lecun(outputs: int, inputs: int) -> float:
    return 1.0 / inputs  # LeCun et al. 1998


def _orthonormal(outputs: int, inputs: int) -> float:
    return 1.0 / max(outputs, inputs)


def _orthogonal(rng: np.random.Generator, outputs: int, inputs: int) -> FloatArray:
    """Draw orthonormal rows or columns, whichever are fewer, uniformly (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((max(outputs, inputs), min(outputs, inputs))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # Makes the draw uniform over such matrices.
    return np.ascontiguousarray(q if outputs >= inputs else q.T)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": _uniform(_glorot),
    "glorot_normal": _normal(_glorot),
    "he_uniform": _uniform(_he),
    "he_normal": _normal(_he),
    "lecun_normal": _normal(_lecun),
    "orthogonal": Initializer(_orthogonal, _orthonormal, orthogonal=True),
    "lsuv": Initializer(_orthogonal, _orthonormal, orthogonal=True),  # to be scaled by `lsuv_`
    "normal": _normal(_lecun),  # times sigma_w, and with biases
    "critical": _normal(_lecun),  # the same
}


def resolve_sigmas(
    init: str, activation: str, sigma_w: float | None, sigma_b: float | None
) -> tuple[float, float]:
    """Return the factor of the weights and the standard deviation of the biases.

    The arguments are those of `vegrad.MLP`.

    Raises:
        ValueError: init is "critical" and there is no critical point.
    """
    if init != "critical":
        return (1.0 if sigma_w is None else sigma_w), sigma_b or 0.0
    known = CRITICAL_SIGMA_B.get(activation)
    if known is None:
        raise ValueError(
            'init="critical" needs an activation with a critical point, not '
            f"{shown(activation)}: no weights keep its gradient; use "
            'activation="relu" or "gelu", or init="lsuv"'
        )
    b = known if sigma_b is None else sigma_b
    point = critical_point(activation, b)
    if point is None:
        why = " (a rectifier has it at sigma_b 0 only)" if known == 0.0 and b > 0.0 else ""
        raise ValueError(f"{activation} has no critical point at sigma_b {b:g}{why}")
    return point.sigma_w, b


def draw_parameters(
    sizes: tuple[int, ...],
    init: str,
    sigma_w: float,
    sigma_b: float,
    seed: int | None,
) -> Iterator[tuple[FloatArray, FloatArray]]:
    """Yield weight (O, I) and bias (O,) of each layer; the sigmas are those of `resolve_sigmas`.

    They come one layer at a time to bound the memory: float64 takes twice that of the network.
    """
    rng = np.random.default_rng(seed)
    for inputs, outputs in pairwise(sizes):
        weight = INITIALIZERS[init].draw(rng, outputs, inputs)
        if sigma_w != 1.0:
            weight *= sigma_w
        bias = rng.standard_normal(outputs) * sigma_b if sigma_b else np.zeros(outputs)
        yield weight, bias

"""Initial weights and biases: one row a scheme in one table of names; LSUV, which needs data.

Each row draws float64 values for one layer, weight (O, I) and bias (O,), from a NumPy generator,
so that a seed gives the same network in float32 (rounded) and in float64.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from math import isfinite, sqrt
from numbers import Integral, Real
from typing import Any

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.theory.meanfield import CRITICAL_SIGMA_B, critical_point

Weight = npt.NDArray[np.float64]
Variance = Callable[[int, int], float]
NORM_EPS = 1e-5  # of a network's normalization


@dataclass(frozen=True)
class Initializer:
    """One row of the table."""

    draw: Callable[[np.random.Generator, int, int], Weight]
    """From a generator, outputs and inputs to a weight (O, I)."""
    variance: Variance
    """From outputs and inputs to the variance of a weight; sigma_w² comes on top."""
    orthogonal: bool = False


def _uniform(variance: Variance) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
        bound = sqrt(3.0 * variance(outputs, inputs))
        return rng.uniform(-bound, bound, (outputs, inputs))

    return Initializer(draw, variance)


def _normal(variance: Variance) -> Initializer:
    def draw(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
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


def _orthogonal(rng: np.random.Generator, outputs: int, inputs: int) -> Weight:
    """Orthonormal rows or columns, whichever are fewer, uniformly drawn (Saxe et al. 2014)."""
    q, r = np.linalg.qr(rng.standard_normal((max(outputs, inputs), min(outputs, inputs))))
    q *= np.where(np.diagonal(r) < 0, -1.0, 1.0)  # makes the draw uniform over orthogonal matrices
    return np.ascontiguousarray(q if outputs >= inputs else q.T)


INITIALIZERS: dict[str, Initializer] = {
    "glorot_uniform": _uniform(_glorot),
    "glorot_normal": _normal(_glorot),
    "he_uniform": _uniform(_he),
    "he_normal": _normal(_he),
    "lecun_normal": _normal(_lecun),
    "orthogonal": Initializer(_orthogonal, _orthonormal, orthogonal=True),
    "lsuv": Initializer(_orthogonal, _orthonormal, orthogonal=True),  # then `lsuv_`
    "normal": _normal(_lecun),  # times sigma_w; with biases, as the next
    "critical": _normal(_lecun),
}


def resolve_sigmas(
    init: str, activation: str, sigma_w: float | None, sigma_b: float | None
) -> tuple[float, float]:
    """The factor of the weights and the biases' deviation, arguments as of `vegrad.MLP`.

    Raises:
        ValueError: for init="critical", if there is no critical point.
    """
    if init != "critical":
        return (1.0 if sigma_w is None else sigma_w), sigma_b or 0.0
    known = CRITICAL_SIGMA_B.get(activation)
    if known is None:
        raise ValueError(
            f'init="critical" needs an activation with a critical point, not {activation!r}: no '
            'weights keep its gradient; use activation="relu" or "gelu", or init="lsuv"'
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
) -> Iterator[tuple[Weight, Weight]]:
    """Weight (O, I) and bias (O,) of each layer; sigmas as of `resolve_sigmas`.

    One layer at a time: the values are twice as large as the float32 network's.
    """
    rng = np.random.default_rng(seed)
    for inputs, outputs in pairwise(sizes):
        weight = INITIALIZERS[init].draw(rng, outputs, inputs)
        if sigma_w != 1.0:
            weight *= sigma_w
        bias = rng.standard_normal(outputs) * sigma_b if sigma_b else np.zeros(outputs)
        yield weight, bias


def lsuv_(
    network: Any,
    x: Any,
    *,
    target_std: float = 1.0,
    tolerance: float = 0.05,
    max_iterations: int = 10,
) -> Weight:
    """Layer-sequential unit variance: scales the weights, in place, to what the data need.

    From the first layer to the last, a layer's weight is divided by the standard deviation that
    its pre-activations have on x (all rows and units together, as `Flow.preactivation_std`), until
    that is `target_std`; the biases stay. Made for `init="lsuv"`, orthogonal weights without
    biases, but takes any network. Mishkin & Matas 2016, arXiv:1511.06422.

    Args:
        network: a `vegrad.MLP`.
        x: inputs (B, I); some hundred rows do.
        target_std: wanted of every layer.
        tolerance: how far, relatively, it may be missed.
        max_iterations: scalings of one layer at most; without biases the first one hits.

    Returns:
        What each layer's weight was multiplied by, (L,).

    Raises:
        TypeError, ValueError: for arguments of the wrong kind or out of range, and where a layer
            cannot be scaled: its pre-activations are all equal, or not finite, or its biases
            alone spread them further. Nothing has changed then.
    """
    for name, value in (("target_std", target_std), ("tolerance", tolerance)):
        if not isinstance(value, Real) or isinstance(value, bool):
            raise TypeError(f"{name} must be a number, not {type(value).__name__}")
        if not (isfinite(value) and value > 0):
            raise ValueError(f"{name} must be finite and positive, not {value}")
    if not isinstance(max_iterations, Integral) or isinstance(max_iterations, bool):
        raise TypeError(f"max_iterations must be an integer, not {type(max_iterations).__name__}")
    if max_iterations < 1:
        raise ValueError(f"max_iterations must be at least 1, not {max_iterations}")
    config, parameters = network.config, network.parameters
    h, factors = network._batch(x), np.ones(network.depth)
    for layer in range(network.depth):
        weight, bias = (parameters[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
        product = h @ weight.T
        for _ in range(max_iterations):
            std = float(np.std(factors[layer] * product + bias, dtype=np.float64))
            if not (isfinite(std) and std > 0):
                raise ValueError(
                    f"layer {layer} cannot be scaled: the standard deviation of its "
                    f"pre-activations is {std} on these {len(h)} rows"
                )
            if abs(std / target_std - 1.0) <= tolerance * 1e-3:
                break
            factors[layer] *= target_std / std
        z = (factors[layer] * product + bias).astype(h.dtype)
        reached = float(np.std(z, dtype=np.float64))
        if abs(reached / target_std - 1.0) > tolerance:
            raise ValueError(
                f"layer {layer} cannot be scaled: its pre-activations' standard deviation is "
                f"{reached:.4g} after {max_iterations} scalings, not {target_std:g}"
            )
        last = layer == network.depth - 1
        y = z if last else _normalized(z, config["norm"])
        value = _core.activate(config["output" if last else "activation"], y)[0].reshape(y.shape)
        h = value + h if config["residual"] and value.shape == h.shape else value
    for layer, factor in enumerate(factors):
        parameters[f"layers.{layer}.weight"][...] *= factor
    return factors


def _normalized(z: Any, norm: str | None) -> Any:
    """As the network's hidden layers do it."""
    if norm is None:
        return z
    centred = z - z.mean(axis=1, keepdims=True) if norm == "layer" else z
    size = np.sqrt(np.mean(np.square(centred), axis=1, keepdims=True) + NORM_EPS)
    return np.ascontiguousarray(centred / size)

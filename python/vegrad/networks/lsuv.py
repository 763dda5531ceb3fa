"""LSUV: weights scaled until each layer's pre-activations have unit variance on given data."""

from __future__ import annotations

from math import isfinite

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray, as_count
from vegrad.networks.mlp import MLP
from vegrad.theory.gaussian import check_positive
from vegrad.theory.initializers import NORM_EPS


def lsuv_(
    network: MLP,
    x: object,
    *,
    target_std: float = 1.0,
    tolerance: float = 0.05,
    max_iterations: int = 10,
) -> FloatArray:
    """Scale the weights in place, layer by layer, until pre-activations have unit variance on x.

    Layer-sequential unit variance (Mishkin & Matas 2016, arXiv:1511.06422): from the first layer to
    the last, a layer's weight is divided by the standard deviation that its pre-activations have on
    x (over all rows and units together, as `Flow.preactivation_std`), until that is `target_std`.
    The biases stay. It is made for `init="lsuv"`, orthogonal weights without biases, but takes any
    network.

    Args:
        network: a `vegrad.MLP`.
        x: inputs (B, I); some hundred rows do.
        target_std: the standard deviation wanted of every layer.
        tolerance: how far it may be missed, relatively.
        max_iterations: the most scalings of one layer; without biases the first one hits.

    Returns:
        The factor by which each layer's weight was multiplied, (L,).

    Raises:
        TypeError, ValueError: an argument is of the wrong kind or out of range; or a layer cannot
            be scaled because its pre-activations are all equal, or not finite, or are spread
            further by its biases alone. Nothing has changed then.
    """
    if not isinstance(network, MLP):
        raise TypeError(f"network must be a vegrad.MLP, not {type(network).__name__}")
    target_std = check_positive("target_std", target_std)
    tolerance = check_positive("tolerance", tolerance)
    rounds = as_count("max_iterations", max_iterations, 1)
    config, parameters = network.config, network.parameters
    h, factors = network._batch(x), np.ones(network.depth)
    for layer in range(network.depth):
        weight, bias = (parameters[f"layers.{layer}.{part}"] for part in ("weight", "bias"))
        product = h @ weight.T
        factors[layer] = _factor(product, bias, layer, target_std, tolerance, rounds)
        z = (factors[layer] * product + bias).astype(h.dtype)
        last = layer == network.depth - 1
        y = z if last else _normalized(z, config["norm"])
        value = _core.activate(config["output" if last else "activation"], y)[0].reshape(y.shape)
        h = value + h if config["residual"] and value.shape == h.shape else value
    for layer, factor in enumerate(factors):
        parameters[f"layers.{layer}.weight"][...] *= factor
    return factors


def _factor(
    product: Array, bias: Array, layer: int, target_std: float, tolerance: float, rounds: int
) -> float:
    """Return the factor of the weight with which factor · product + bias has the wanted deviation.

    `product` is h Wᵀ (B, O) of the layer's input h.
    """
    factor = np.float64(1.0)
    for _ in range(rounds):
        std = float(np.std(factor * product + bias, dtype=np.float64))
        if not (isfinite(std) and std > 0):
            raise ValueError(
                f"layer {layer} cannot be scaled: the standard deviation of its "
                f"pre-activations is {std} on these {len(product)} rows"
            )
        # Far closer than asked for, so that only the biases ever leave it outside the tolerance.
        if abs(std / target_std - 1.0) <= tolerance * 1e-3:
            break
        factor *= target_std / std
    z = (factor * product + bias).astype(product.dtype)
    reached = float(np.std(z, dtype=np.float64))
    if abs(reached / target_std - 1.0) > tolerance:
        raise ValueError(
            f"layer {layer} cannot be scaled: its pre-activations' standard deviation is "
            f"{reached:.4g} after {rounds} scalings, not {target_std:g}"
        )
    return float(factor)


def _normalized(z: Array, norm: str | None) -> Array:
    """Normalize each row of pre-activations, as the hidden layers of a network do it."""
    if norm is None:
        return z
    centred = z - z.mean(axis=1, keepdims=True) if norm == "layer" else z
    size = np.sqrt(np.mean(np.square(centred), axis=1, keepdims=True) + NORM_EPS)
    return np.ascontiguousarray(centred / size)

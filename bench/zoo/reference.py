"""The reference that gives the labels: plain NumPy in float64 that knows nothing of vegrad.

A network is its configuration (a dict) and a list of (W, b). Gradients go down the chain with an
exponent for each layer, so that the size of a chain of 1e-5000 is known; a derivative below 1e-308,
which exp itself cannot represent, counts as 0. Training is textbook SGD with momentum, or Adam.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log10, sqrt
from typing import Any

import numpy as np
from scipy.special import erf, expit, ndtr

Array = np.ndarray
Layers = list[tuple[Array, Array]]

NORM_EPS = 1e-5
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772
LEAST = 1e-140  # a smaller element of a gradient is set to 0: its square is slow, its step nil
CHECKS = 20  # of the target in one training


def _pdf(z: Array) -> Array:
    return np.exp(-(z**2) / 2) / sqrt(2 * np.pi)


def _elu(z: Array) -> Array:
    return np.where(z > 0, z, np.expm1(np.minimum(z, 0)))


def _elu_slope(z: Array) -> Array:
    return np.exp(np.minimum(z, 0))


# φ and φ′, from their definitions.
ACTIVATIONS: dict[str, tuple[Callable[[Array], Array], Callable[[Array], Array]]] = {
    "identity": (lambda z: z, np.ones_like),
    "sigmoid": (expit, lambda z: expit(z) * expit(-z)),
    "tanh": (np.tanh, lambda z: 4 * expit(2 * z) * expit(-2 * z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1.0, 0.01)),
    "elu": (_elu, _elu_slope),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(np.minimum(z, 0))),
        lambda z: SELU_SCALE * np.where(z > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(z, 0))),
    ),
    "gelu": (lambda z: z * ndtr(z), lambda z: ndtr(z) + z * _pdf(z)),
    "silu": (lambda z: z * expit(z), lambda z: expit(z) * (1 + z * expit(-z))),
    "softplus": (lambda z: np.logaddexp(z, 0), expit),
    "hard_tanh": (lambda z: np.clip(z, -1, 1), lambda z: (np.abs(z) < 1) * 1.0),
    "erf": (erf, lambda z: 2 / sqrt(np.pi) * np.exp(-(z**2))),
}


@dataclass
class Passed:
    """One forward and backward pass."""

    loss: float
    output: Array
    z: list[Array]
    h: list[Array]
    """Activations of each layer, the inputs first."""
    gradients: Layers
    delta_log10: list[float]
    """log10 of the Frobenius norm of ∂loss/∂z, correct also where float64 has 0 or inf."""


def forward(config: dict[str, Any], layers: Layers, x: Array) -> tuple[list[Array], list[Array]]:
    """Compute the pre-activations z of every layer, and h, with the inputs first."""
    phi = ACTIVATIONS[config["activation"]][0]
    z, h = [], [x]
    for place, (weight, bias) in enumerate(layers):
        z.append(h[-1] @ weight.T + bias)
        if place == len(layers) - 1:
            h.append(z[-1])
            break
        value = phi(_normalized(config["norm"], z[-1])[0])
        h.append(value + h[-1] if _skips(config, weight) else value)
    return z, h


def _skips(config: dict[str, Any], weight: Array) -> bool:
    return bool(config["residual"]) and weight.shape[0] == weight.shape[1]


def _normalized(kind: str | None, z: Array) -> tuple[Array, Array | float]:
    if kind is None:
        return z, 1.0
    centred = z - z.mean(axis=1, keepdims=True) if kind == "layer" else z
    size = np.sqrt(np.mean(centred**2, axis=1, keepdims=True) + NORM_EPS)
    return centred / size, size


def run(config: dict[str, Any], layers: Layers, x: Array, target: Array) -> Passed:
    """Compute the loss, the gradients and the sizes of δ."""
    slope = ACTIVATIONS[config["activation"]][1]
    z, h = forward(config, layers, x)
    loss, delta = _loss(config["loss"], h[-1], target)
    gradients: Layers = [(np.empty(0), np.empty(0))] * len(layers)
    sizes, exponent, skipped = [0.0] * len(layers), 0, np.zeros(())
    for place in reversed(range(len(layers))):
        weight = layers[place][0]
        if place < len(layers) - 1:
            y, size = _normalized(config["norm"], z[place])
            dh = delta
            dy = dh * slope(y)
            if config["norm"] is not None:
                along = np.mean(dy * y, axis=1, keepdims=True) * y
                mean = np.mean(dy, axis=1, keepdims=True) if config["norm"] == "layer" else 0.0
                dy = (dy - along - mean) / size
            delta, skipped = dy, dh if _skips(config, weight) else np.zeros(())
        norm = float(np.linalg.norm(delta))
        if 0 < norm < inf:
            sizes[place] = log10(norm) + exponent * log10(2)
        else:
            sizes[place] = -inf if norm == 0 else inf
        scale = np.exp2(np.clip(exponent, -1000, 1000))
        gradients[place] = (scale * (delta.T @ h[place]), scale * delta.sum(axis=0))
        delta = delta @ weight + skipped
        largest = float(np.max(np.abs(delta), initial=0.0))
        if 0 < largest < inf:
            shift = int(np.frexp(largest)[1])
            delta, exponent = np.ldexp(delta, -shift), exponent + shift
    return Passed(loss, h[-1], z, h, gradients, sizes)


def _loss(kind: str, output: Array, target: Array) -> tuple[float, Array]:
    if kind == "mse":
        error = output - target.reshape(output.shape)
        return float(np.mean(error**2)), 2 * error / error.size
    if kind == "cross_entropy":
        top = output - output.max(axis=1, keepdims=True)
        p = np.exp(top)
        p /= p.sum(axis=1, keepdims=True)
        own = (np.arange(len(target)), target)
        loss = float(np.mean(np.log(np.exp(top).sum(axis=1)) - top[own]))
        p[own] -= 1
        return loss, p / len(target)
    wanted = target.reshape(output.shape)
    loss = float(np.mean(np.logaddexp(0, output) - wanted * output))
    return loss, (expit(output) - wanted) / output.size


def score(kind: str, output: Array, target: Array) -> float:
    """Accuracy, or in a regression the share of the variance that is explained."""
    if not np.isfinite(output).all():
        return -inf
    if kind == "cross_entropy":
        return float(np.mean(output.argmax(axis=1) == target))
    wanted = target.reshape(output.shape)
    if kind == "mse":
        return 1.0 - float(np.mean((output - wanted) ** 2) / np.mean(np.var(wanted, axis=0)))
    return float(np.mean((output > 0) == (wanted > 0.5)))


@dataclass
class Trained:
    """The end of a plain training."""

    reached: bool
    steps: int
    score: float
    layers: Layers


def train(
    config: dict[str, Any],
    layers: Layers,
    x: Array,
    target: Array,
    *,
    optimizer: dict[str, Any],
    target_score: float,
    steps: int,
    batch: int,
    seed: int,
) -> Trained:
    """Train until the target is reached on all rows, or so many steps are done.

    `optimizer` has name ("sgd" or "adam"), lr, momentum (sgd) and clip (the joint norm's limit, or
    None).
    """
    rng = np.random.default_rng(seed)
    flat = [array.copy() for pair in layers for array in pair]
    first, second = ([np.zeros_like(a) for a in flat] for _ in range(2))
    order, every, best = np.empty(0, int), max(1, steps // CHECKS), -inf
    for step in range(1, steps + 1):
        if len(order) < batch:
            order = np.append(order, rng.permutation(len(x)))
        rows, order = order[:batch], order[batch:]
        pairs = list(zip(flat[::2], flat[1::2], strict=True))
        passed = run(config, pairs, x[rows], target[rows])
        gradients = [array for pair in passed.gradients for array in pair]
        if not np.isfinite(passed.loss) or not all(np.isfinite(g).all() for g in gradients):
            return Trained(False, step, best, pairs)
        if optimizer.get("clip"):
            norm = sqrt(sum(float(np.sum(g**2)) for g in gradients))
            factor = min(1.0, optimizer["clip"] / max(norm, 1e-300))
            gradients = [factor * g for g in gradients]
        for place, gradient in enumerate(gradients):
            gradient[np.abs(gradient) < LEAST] = 0.0
            if optimizer["name"] == "sgd":
                first[place] = optimizer["momentum"] * first[place] + gradient
                flat[place] -= optimizer["lr"] * first[place]
                continue
            first[place] += 0.1 * (gradient - first[place])
            second[place] += 0.001 * (gradient**2 - second[place])
            mean, square = first[place] / (1 - 0.9**step), second[place] / (1 - 0.999**step)
            flat[place] -= optimizer["lr"] * mean / (np.sqrt(square) + 1e-8)
        if step % every == 0 or step == steps:
            pairs = list(zip(flat[::2], flat[1::2], strict=True))
            best = score(config["loss"], forward(config, pairs, x)[1][-1], target)
            if best >= target_score:
                return Trained(True, step, best, pairs)
    return Trained(False, steps, best, list(zip(flat[::2], flat[1::2], strict=True)))

"""Recognize the initialization that a model's weights were drawn with, from their statistics."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from vegrad.theory.initializers import INITIALIZERS, Initializer
from vegrad.torch.reading.trace import Layer

NEAR = 5.0  # standard errors within which a measured variance agrees with an initialization's
TORCH = "PyTorch's default"  # kaiming_uniform_(a=√5): weights and biases of variance 1/(3 fan_in)
_NAMES = [name for name in INITIALIZERS if name not in ("normal", "critical", "lsuv")]


class Drawing(NamedTuple):
    """An initialization by name, as the arguments of `vegrad.MLP` have it."""

    init: str
    sigma_w: float | None = None
    sigma_b: float | None = None


def initialization(layers: list[Layer]) -> Drawing:
    """Return the initialization that most layers agree with, or "normal" with its σ_w and σ_b."""
    found = [_matching(layer) for layer in layers]

    def fit(name: str) -> tuple[int, float]:
        return sum(name in one for one in found), -sum(one.get(name, 0.0) ** 2 for one in found)

    best = max([TORCH, *_NAMES], key=fit)
    if fit(best)[0] > len(layers) / 2:
        return Drawing(best)
    scale = [second_moment(layer.weight) * fans(layer)[0] for layer in layers]
    biases = [0.0 if layer.bias is None else second_moment(layer.bias) for layer in layers]
    return Drawing("normal", sqrt(float(np.median(scale))), sqrt(float(np.median(biases))))


def own_initialization(layer: Layer, drawing: Drawing) -> Drawing:
    """Return the chain's initialization, or one that fits this layer's weights if that does not."""
    found = _matching(layer)
    if drawing.init in found or not found:
        return drawing
    return Drawing(min(found, key=lambda name: abs(found[name])))


def _matching(layer: Layer) -> dict[str, float]:
    """Return the initializations that the variance, kurtosis and biases of a layer agree with.

    The values are the differences of the variances in standard errors.
    """
    weight = layer.weight.detach().double()
    fan_in, fan_out, *_ = fans(layer)
    second, count = second_moment(weight), weight.numel()
    if not isfinite(second) or second == 0:
        return {}
    zero = layer.bias is None or not bool(layer.bias.detach().any())
    # The kurtosis of uniform numbers is 1.8, that of normal numbers 3.
    flat = float(weight.pow(4).mean()) / second**2 < 2.4
    error = sqrt((0.8 if flat else 2.0) / count)
    rows = {TORCH: 1.0 / (3.0 * fan_in)} if flat and not zero else {}
    for name in _NAMES if zero else []:
        if INITIALIZERS[name].orthogonal or name.endswith("uniform") == flat:
            rows[name] = INITIALIZERS[name].variance(fan_out, fan_in)
    off = {name: (second / variance - 1.0) / error for name, variance in rows.items()}
    off = {name: errors for name, errors in off.items() if abs(errors) < NEAR}
    if "orthogonal" in off and not _is_orthogonal(weight.flatten(1)):
        del off["orthogonal"]
    return {"orthogonal": 0.0} if "orthogonal" in off else off


def _is_orthogonal(weight: Tensor) -> bool:
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    row = wide[:2] @ wide.T  # Two rows are enough to tell it from other initializations.
    wanted = torch.eye(*row.shape, dtype=row.dtype, device=row.device)
    return bool((row - wanted).abs().max() < 1e-3)


def second_moment(tensor: Tensor) -> float:
    """Return the mean square of the elements."""
    return float(tensor.detach().double().square().mean())


def fans(layer: Layer) -> tuple[int, int, int, int]:
    """Return fan_in, fan_out, and the numbers of inputs and outputs (channels of a convolution)."""
    first, second, *kernel = layer.weight.shape
    field = int(np.prod(kernel)) if kernel else 1
    if "transpose" in layer.kind:
        first, second = second, first
    return second * field, first * field, second, first


def drawn_as(layer: Layer, drawing: Drawing) -> tuple[float, float, Initializer | None]:
    """Return the variance of a layer's weights, σ_b, and the initializer; None of PyTorch's own."""
    fan_in, fan_out, *_ = fans(layer)
    if drawing.init == TORCH:
        return 1.0 / (3.0 * fan_in), sqrt(1.0 / (3.0 * fan_in)), None
    row = INITIALIZERS[drawing.init]
    sigma_b = drawing.sigma_b or 0.0
    if drawing.init == "normal":
        return (drawing.sigma_w or 1.0) ** 2 / fan_in, sigma_b, row
    return row.variance(fan_out, fan_in), sigma_b, row

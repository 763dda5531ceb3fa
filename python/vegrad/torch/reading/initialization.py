"""How a model's weights look to have been drawn."""

from __future__ import annotations

from math import isfinite, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from vegrad.theory.initializers import INITIALIZERS, Initializer
from vegrad.torch.reading.trace import Layer

NEAR = 5.0  # standard errors within which a variance is an initialization's
TORCH = "PyTorch's default"  # kaiming_uniform_(a=√5): weights and biases of variance 1/(3 fan_in)


def initialization(layers: list[Layer]) -> tuple[str, float | None, float | None]:
    """The name that the sizes of most weights fit, or normal with its σ_w and σ_b."""
    found = [_matching(layer) for layer in layers]

    def fit(name: str) -> tuple[int, float]:
        return sum(name in one for one in found), -sum(one.get(name, 0.0) ** 2 for one in found)

    best = max([TORCH, *_rows()], key=fit)
    if fit(best)[0] > len(layers) / 2:
        return best, None, None
    scale = [second_moment(layer.weight) * fans(layer)[0] for layer in layers]
    biases = [0.0 if layer.bias is None else second_moment(layer.bias) for layer in layers]
    return "normal", sqrt(float(np.median(scale))), sqrt(float(np.median(biases)))


def own_initialization(layer: Layer, config: dict[str, Any]) -> dict[str, Any]:
    """The chain's initialization, or one that fits this layer's weights where that does not."""
    found = _matching(layer)
    if config["init"] in found or not found:
        return config
    return config | {"init": min(found, key=lambda name: abs(found[name])),
                     "sigma_w": None, "sigma_b": None}  # fmt: skip


def _rows() -> list[str]:
    return [name for name in INITIALIZERS if name not in ("normal", "critical", "lsuv")]


def _matching(layer: Layer) -> dict[str, float]:
    """The initializations that variance, kurtosis and biases agree with, and how far off."""
    weight = layer.weight.detach().double()
    fan_in, fan_out, *_ = fans(layer)
    second, count = second_moment(weight), weight.numel()
    if not isfinite(second) or second == 0:
        return {}
    zero = layer.bias is None or not bool(layer.bias.detach().any())
    flat = float(weight.pow(4).mean()) / second**2 < 2.4  # 1.8 of uniform, 3 of normal numbers
    error = sqrt((0.8 if flat else 2.0) / count)
    rows = {TORCH: 1.0 / (3.0 * fan_in)} if flat and not zero else {}
    for name in _rows() if zero else []:
        if INITIALIZERS[name].orthogonal or name.endswith("uniform") == flat:
            rows[name] = INITIALIZERS[name].variance(fan_out, fan_in)
    off = {name: (second / variance - 1.0) / error for name, variance in rows.items()}
    off = {name: errors for name, errors in off.items() if abs(errors) < NEAR}
    if "orthogonal" in off and not _is_orthogonal(weight.flatten(1)):
        del off["orthogonal"]
    return {"orthogonal": 0.0} if "orthogonal" in off else off


def _is_orthogonal(weight: Tensor) -> bool:
    wide = weight if weight.shape[0] <= weight.shape[1] else weight.T
    row = wide[:2] @ wide.T  # of two rows is enough
    wanted = torch.eye(*row.shape, dtype=row.dtype, device=row.device)
    return bool((row - wanted).abs().max() < 1e-3)


def second_moment(tensor: Tensor) -> float:
    """Return the mean square of the elements."""
    return float(tensor.detach().double().square().mean())


def fans(layer: Layer) -> tuple[int, int, int, int]:
    """fan_in, fan_out, and inputs and outputs (channels of a convolution)."""
    first, second, *kernel = layer.weight.shape
    field = int(np.prod(kernel)) if kernel else 1
    if "transpose" in layer.kind:
        first, second = second, first
    return second * field, first * field, second, first


def drawn_as(layer: Layer, config: dict[str, Any]) -> tuple[float, float, Initializer | None]:
    """Variance of its weights, σ_b and the row of the table in the initialization of the chain."""
    fan_in, fan_out, *_ = fans(layer)
    init = config["init"]
    if init == TORCH:
        return 1.0 / (3.0 * fan_in), sqrt(1.0 / (3.0 * fan_in)), None
    row = INITIALIZERS[init]
    if init == "normal":
        return (config["sigma_w"] or 1.0) ** 2 / fan_in, config["sigma_b"] or 0.0, row
    return row.variance(fan_out, fan_in), config["sigma_b"] or 0.0, row

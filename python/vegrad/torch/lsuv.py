"""Layer-sequential unit variance for a torch model (Mishkin & Matas 2016, arXiv:1511.06422)."""

from __future__ import annotations

from collections.abc import Callable
from math import isfinite
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.torch import models

ROUNDS = 10  # scalings of a layer at most: biases keep one from being enough
Hook: TypeAlias = Callable[[Module, tuple[Any, ...], Tensor], Tensor]


def lsuv_(
    model: Module, x: Any, *, target_std: float = 1.0, tolerance: float = 0.05
) -> dict[str, float]:
    """Scale the weights of Linear and convolution layers in place, so that outputs spread alike.

    In one forward pass of the batch, each layer's weight is divided by the standard deviation of
    the layer's output (all rows and units together) until that is `target_std`. Biases stay.

    Args:
        model: any module; buffers and random generators stay as they are.
        x: a batch, as for `vegrad.torch.diagnose`; some hundred rows are enough.
        target_std: the standard deviation that every layer's output shall have.
        tolerance: the relative error that is allowed.

    Returns:
        The factor of each weight, by the module's path.

    Raises:
        ValueError: if a layer cannot be scaled: its outputs are all equal, or not finite, or its
            biases alone spread them further. Nothing has changed then.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, kinds)}
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    factors: dict[str, float] = {}

    def hook(name: str) -> Hook:
        def scale(layer: Module, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
            if name in factors:  # the layer is called again; its first call has scaled it
                return output
            output, factors[name] = _scaled(name, layer, inputs, output, target_std, tolerance)
            return output

        return scale

    handles = [layer.register_forward_hook(hook(name)) for name, layer in layers.items()]
    try:
        with models.untouched(model), torch.no_grad():
            models.called(model, x)
    except BaseException:
        with torch.no_grad():
            for name, layer in layers.items():
                layer.weight.copy_(kept[name])
        raise
    finally:
        for handle in handles:
            handle.remove()
    return factors


def _scaled(
    name: str,
    layer: Module,
    inputs: tuple[Any, ...],
    output: Tensor,
    target_std: float,
    tolerance: float,
) -> tuple[Tensor, float]:
    """Scale a layer's weight in place; return its new output and the factor."""
    factor = 1.0
    for _ in range(ROUNDS):
        std = _std(output)
        if not (isfinite(std) and std > 0):
            break
        if abs(std / target_std - 1.0) <= tolerance * 1e-3:
            return output, factor
        layer.weight.mul_(target_std / std)
        factor *= target_std / std
        output = layer.forward(*inputs)
    std = _std(output)
    if not abs(std / target_std - 1.0) <= tolerance:
        raise ValueError(
            f"{name} cannot be scaled: the standard deviation of its outputs is {std:.4g}, "
            f"not {target_std:g}"
        )
    return output, factor


def _std(output: Tensor) -> float:
    return float(output.detach().double().std(correction=0))

"""Layer-sequential unit variance for a torch model (Mishkin & Matas 2016, arXiv:1511.06422)."""

from __future__ import annotations

from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.torch import models

ROUNDS = 10


def lsuv_(
    model: Module, x: Any, *, target_std: float = 1.0, tolerance: float = 0.05
) -> dict[str, float]:
    """Scales the weights of Linear and convolution layers, in place, to what the data need.

    As the batch comes by, a layer's weight is divided by the standard deviation of its output (all
    rows and units together), until that is `target_std`; biases stay. One forward pass.

    Args:
        model: any module; buffers and random generators stay as they are.
        x: a batch, as for `vegrad.torch.diagnose`; some hundred rows do.
        target_std: wanted of every layer.
        tolerance: how far, relatively, it may be missed.

    Returns:
        What each weight was multiplied by, by the module's path.

    Raises:
        ValueError: where a layer cannot be scaled: its outputs are all equal, or not finite, or
            its biases alone spread them further. Nothing has changed then.
    """
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    layers = {name: one for name, one in model.named_modules() if isinstance(one, kinds)}
    kept = {name: layer.weight.detach().clone() for name, layer in layers.items()}
    factors: dict[str, float] = {}

    def hook(name: str) -> Any:
        def scale(layer: Any, inputs: Any, output: Tensor) -> Tensor:
            if name in factors:
                return output
            factors[name] = 1.0
            for _ in range(ROUNDS):
                std = float(output.detach().double().std(correction=0))
                if not (isfinite(std) and std > 0):
                    break
                if abs(std / target_std - 1.0) <= tolerance * 1e-3:
                    return output
                layer.weight.mul_(target_std / std)
                factors[name] *= target_std / std
                output = layer.forward(*inputs)
            std = float(output.detach().double().std(correction=0))
            if not abs(std / target_std - 1.0) <= tolerance:
                raise ValueError(
                    f"{name} cannot be scaled: the standard deviation of its outputs is {std:.4g}, "
                    f"not {target_std:g}"
                )
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

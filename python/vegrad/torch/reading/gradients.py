"""Measure the gradients of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.measurement import measure
from vegrad.flow.reading import Gradients


def recorded(model: Module, gradients: Mapping[str, Tensor]) -> Gradients:
    """Measure gradients by name."""
    measurement = measure(_on_cpu(gradients))
    norms = {n: one.norm_log2 for n, one in zip(gradients, measurement.buffers, strict=True)}
    matrices = [name for name, one in gradients.items() if one.ndim > 1]
    return Gradients(norms, tuple(matrices or gradients), measurement=measurement)


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return dense real tensors on the CPU, as `measure` takes them."""
    found = {}
    for name, tensor in tensors.items():
        dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        values = dense.detach().cpu()
        found[name] = torch.view_as_real(values) if values.is_complex() else values
    return found

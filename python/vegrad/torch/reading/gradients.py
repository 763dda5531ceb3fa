"""The gradients of a model's parameters, and those of them that make a chain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.measurement import measure
from vegrad.flow.reading import Gradients
from vegrad.flow.wording import DECADE
from vegrad.torch import models
from vegrad.torch.reading.trace import Trace


def recorded(model: Module, gradients: Mapping[str, Tensor], trace: Trace) -> Gradients:
    """Measure gradients by name, and find the weights that stand one after the other."""
    measurement = measure(_on_cpu(gradients))
    weights = measure(_on_cpu({n: p for n, p in model.named_parameters() if n in gradients}))
    norms = {n: one.norm_log2 for n, one in zip(gradients, measurement.buffers, strict=True)}
    sizes = dict(zip(gradients, weights.buffers, strict=True))
    chosen = _one_after_the_other(gradients, trace)
    matrices = [name for name, one in gradients.items() if one.ndim > 1]
    return Gradients(
        norms_log2=norms,
        chain=tuple(chosen or matrices or gradients),
        biases=tuple(n for n in gradients if n.endswith("bias")) if chosen is None else (),
        ratios={name: (norms[name] - sizes[name].norm_log2) / DECADE for name in gradients},
        measurement=measurement,
    )


def _one_after_the_other(gradients: Mapping[str, Tensor], trace: Trace) -> list[str] | None:
    """Return the weights, of those that take the same inputs only one; None if biases count too.

    Of queries, keys and values: what goes through a softmax hardly gets a gradient at first, which
    says nothing of the layers above and below. Chosen is the kind whose gradient is mostly largest.
    Biases in branches, those of norms among them, do not stand one after the other either.
    """
    beside: dict[int, dict[str, str]] = {}  # the kind of weight, which is its name but for numbers
    for layer in trace.layers:
        name = f"{layer.name}.weight"
        if name in gradients:
            beside.setdefault(id(layer.x), {})[name] = re.sub(r"\d+", "", name)
    groups = [group for group in beside.values() if len(group) > 1]
    sizes = {name: models.size_log2(gradients[name]) for group in groups for name in group}
    first = Counter(group[max(group, key=sizes.__getitem__)] for group in groups)
    less: set[str] = set()
    for group in groups:
        less |= set(sorted(group, key=lambda name: (first[group[name]], sizes[name]))[:-1])
    weights = [name for name, one in gradients.items() if one.ndim > 1]
    return [name for name in weights if name not in less] if less or trace.branches else None


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    found = {}
    for name, tensor in tensors.items():
        dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        values = dense.detach().cpu()
        found[name] = torch.view_as_real(values) if values.is_complex() else values
    return found

"""Measure the gradients of a model's parameters, and find those that make up a chain."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

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
    """Return the names of weights that stand one after the other; None if biases may count too.

    Of the weights that take the same inputs, only one stays. Queries, keys and values are such: at
    first hardly any gradient comes through the softmax to queries and keys, which says nothing
    about the layers above and below. The kind that stays is the one whose gradient is the largest
    in most places. In models with branches, biases (those of norms among them) do not stand one
    after the other either.
    """
    # The kinds of the weights, that is their names without numbers, by the id of their input.
    beside: dict[int, dict[str, str]] = {}
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


def _on_cpu(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return dense real tensors on the CPU, as `measure` takes them."""
    found = {}
    for name, tensor in tensors.items():
        dense = tensor.to_dense() if tensor.layout is not torch.strided else tensor
        values = dense.detach().cpu()
        found[name] = torch.view_as_real(values) if values.is_complex() else values
    return found

"""Measure the gradients of a model's parameters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.measurement import measure
from vegrad.flow.gradients import Gradients
from vegrad.torch.reading.hooks import nodes_from


def gradients(loss: Tensor, wanted: Sequence[Tensor]) -> list[Tensor | None]:
    """Return the gradients of leaves; those that they have in `.grad` stay as they are.

    Checkpoints of the reentrant kind run only within `backward()`, which writes to `.grad`, as
    reversible layers do by themselves.
    """
    kept = [(one, one.grad) for one in wanted]
    try:
        for one in wanted:
            one.grad = None
        if has_reentrant(loss):
            loss.backward()
            return [one.grad for one in wanted]
        given = torch.autograd.grad(loss, list(wanted), allow_unused=True)
        return [one.grad if g is None else g for one, g in zip(wanted, given, strict=True)]
    finally:
        for one, gradient in kept:
            one.grad = gradient


def has_reentrant(loss: Tensor) -> bool:
    """Return True if there are checkpoints of the reentrant kind on the way back."""
    return any(node.name() == "CheckpointFunctionBackward" for node in nodes_from(loss.grad_fn))


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

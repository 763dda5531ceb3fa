"""Passes that leave a model as it was, while monitors and fused networks stand aside."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vegrad import _core


class _State:
    on = False


state = _State()


@contextmanager
def untouched(model: Module, loss_fn: Any = None) -> Iterator[None]:
    """Buffers (BatchNorm's running statistics) and random generators are put back at the end.

    Those of the loss too, if it is a module. Gradients stay as they are if the passes within use
    `torch.autograd.grad`.
    """
    both = [model, loss_fn] if isinstance(loss_fn, Module) else [model]
    buffers = [(buffer, buffer.detach().clone()) for one in both for buffer in one.buffers()]
    before, state.on = state.on, True
    try:
        with torch.random.fork_rng(devices=gpus(model)), torch.enable_grad():
            yield
    finally:
        state.on = before
        with torch.no_grad():
            for buffer, copy in buffers:
                buffer.copy_(copy)


def gpus(model: Module) -> list[torch.device]:
    """The CUDA devices that a model lies on."""
    devices = {one.device for one in (*model.parameters(), *model.buffers())}
    return [device for device in devices if device.type == "cuda"]


def unwrapped(model: Module) -> Module:
    """The module itself, without torch.compile and DistributedDataParallel."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def called(model: Module, x: Any) -> Any:
    """What the model makes of x: a tensor, or a tuple or mapping of its arguments."""
    torch.clear_autocast_cache()  # whose copies of weights that have changed since are stale
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


def size_log2(tensor: Tensor) -> float:
    """log2 of the norm of a tensor on any device; -inf of zeros."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        tensor = tensor.cpu() if tensor.layout is torch.strided else tensor.cpu().to_dense()
    size: float = _core.measure(tensor, False)[2]["norm_log2"]
    return size


def rms(tensor: Tensor) -> float:
    """Root mean square of the elements."""
    size = size_log2(tensor) - log2(max(tensor.numel(), 1)) / 2
    return float(2.0**size) if size < 1023 else float("inf")

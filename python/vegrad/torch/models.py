"""Passes through a model that leave it as it was, and small questions to models and tensors."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import is_dataclass
from math import log2
from typing import Any

import torch
from torch import Tensor
from torch.autograd.grad_mode import _unsafe_preserve_version_counter
from torch.nn import Module
from torch.nn.parameter import UninitializedParameter

from vegrad import _core
from vegrad.torch import checkpoints


class _State:
    on = False


# While it is on, the passes are a diagnosis's: monitors do not record them, and fused networks run
# layer by layer, so that hooks of the layers are called. `_core.Watch` reads it too.
state = _State()


@contextmanager
def untouched(model: Module, loss_fn: object = None) -> Iterator[None]:
    """Restore buffers (BatchNorm's running statistics) and random generators at the end.

    The buffers of the loss are restored too, if it is a module. Parameters have no `.grad` within,
    to which layers that run backward by themselves would add, and the one that they had afterwards.
    """
    both = [model, loss_fn] if isinstance(loss_fn, Module) else [model]
    kept = [(one, one.grad) for one in model.parameters()]
    before, state.on = state.on, True
    try:
        for parameter, _ in kept:
            parameter.grad = None
        with (
            buffers_kept(both),
            torch.random.fork_rng(devices=gpus(model)),
            torch.enable_grad(),
            checkpoints.followed(),
        ):
            yield
    finally:
        state.on = before
        for parameter, gradient in kept:
            parameter.grad = gradient


@contextmanager
def buffers_kept(models: Iterable[Module]) -> Iterator[None]:
    """Restore buffers at the end, to the bit.

    A pass that is under way keeps some for its way back (BatchNorm its running statistics), and
    autograd would take them for changed: so their count of changes is restored too.
    """
    kept = [(buffer, buffer.detach().clone()) for one in models for buffer in one.buffers()]
    with ExitStack() as counts:
        for buffer, _ in kept:
            if not buffer.is_inference():
                counts.enter_context(_unsafe_preserve_version_counter(buffer))
        try:
            yield
        finally:
            with torch.no_grad():
                for buffer, values in kept:
                    buffer.copy_(values)


def copied(model: Module) -> Module:
    """Return a copy of a model, to the bit.

    Tensors that it keeps of the graph of an earlier pass, which copy.deepcopy refuses, are detached
    in the copy.
    """
    memo: dict[int, Any] = {}
    kept = [one for module in model.modules() for one in tensors_in(vars(module))]
    with torch.no_grad():
        memo |= {id(one): one.detach().clone() for one in kept if not one.is_leaf}
    return copy.deepcopy(model, memo)


def tensors_in(value: object, seen: frozenset[int] = frozenset()) -> Iterator[Tensor]:
    """Yield the tensors in a value: itself, or in sequences, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield value
        return
    inside: Iterable[object] = ()
    if isinstance(value, Mapping):
        inside = list(value.values())
    elif isinstance(value, list | tuple | set | deque):
        inside = list(value)
    elif is_dataclass(value) and not isinstance(value, type):
        inside = list(vars(value).values())
    if id(value) not in seen:  # it may hold itself
        for one in inside:
            yield from tensors_in(one, seen | {id(value)})


def gpus(model: Module) -> list[torch.device]:
    """Return the CUDA devices that a model lies on."""
    devices = {one.device for one in (*model.parameters(), *model.buffers())}
    return [device for device in devices if device.type == "cuda"]


def refuse_scripted(model: Module) -> None:
    """Raise TypeError for a model that TorchScript has compiled, which takes no hooks."""
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("model must be the module that was scripted, not a ScriptModule")


def unwrapped(model: Module) -> Module:
    """Return the module itself, without torch.compile and DistributedDataParallel round it."""
    while True:
        if isinstance(model, torch.nn.parallel.DistributedDataParallel):
            model = model.module
        elif "_orig_mod" in model._modules:
            model = model._orig_mod
        else:
            return model


def called(model: Module, x: Any) -> Any:
    """Return the model's output for x: a tensor, or a tuple or mapping of its arguments."""
    torch.clear_autocast_cache()  # it may hold stale copies of weights that have changed since
    if isinstance(x, Mapping):
        return model(**x)
    return model(*x) if isinstance(x, tuple | list) else model(x)


MEASURABLE = {
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
}


def is_measurable(parameter: Tensor) -> bool:
    """Return True if a parameter has values of a dtype that the kernels read."""
    if isinstance(parameter, UninitializedParameter) or parameter.is_meta:
        return False
    return parameter.dtype in MEASURABLE


def size_log2(tensor: Tensor) -> float:
    """Return log2 of the norm of a tensor on any device; -inf if it is zero."""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    if tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        tensor = tensor.cpu() if tensor.layout is torch.strided else tensor.cpu().to_dense()
    size: float = _core.measure(tensor, False)[2]["norm_log2"]
    return size


def rms(tensor: Tensor) -> float:
    """Return the root mean square of the elements."""
    size = size_log2(tensor) - log2(max(tensor.numel(), 1)) / 2
    return float(2.0**size) if size < 1023 else float("inf")

"""The conditions under which a fused pass runs, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from vegrad.arrays.checks import Array
from vegrad.torch.fused.gradients import Node
from vegrad.torch.models import state

Module = TypeVar("Module", bound=torch.nn.Module)

DTYPES = {torch.float32: "float32", torch.float64: "float64"}


class NotFusedError(Exception):
    """The reason why a module is left as it is."""


def is_plain_run() -> bool:
    """Return True if PyTorch only computes: nobody watches, traces or transforms operations."""
    return (
        not torch.is_autocast_enabled("cpu")
        and not state.on  # a diagnosis wants to see the layers run
        and not torch._C._are_functorch_transforms_active()
        and forward_ad._current_level < 0
        and not torch._C._len_torch_dispatch_stack()
        and torch._C._get_tracing_state() is None  # torch.jit.trace
    )


def dtype_of(parameters: list[Tensor]) -> torch.dtype:
    """Return the dtype of all parameters, or raise if a fused pass cannot take them."""
    found = {(one.dtype, one.device.type, type(one)) for one in parameters}
    dtype, device, kind = next(iter(found))
    if len(found) > 1 or dtype not in DTYPES or device != "cpu" or kind is not torch.nn.Parameter:
        raise NotFusedError("all parameters must be float32, or all float64, on the CPU")
    if any(one.is_inference() for one in parameters):
        raise NotFusedError("the parameters must not be made in inference mode")
    return dtype


def as_array(gradient: Tensor, name: str) -> Array:
    """Return a gradient that flows back to a module of this name as a contiguous array.

    Raises:
        RuntimeError: it is a batch of gradients, as vmap makes one.
    """
    try:
        return gradient.contiguous().numpy()
    except RuntimeError as error:
        functorch = torch._C._functorch
        if functorch.is_batchedtensor(gradient) or functorch.is_legacy_batchedtensor(gradient):
            raise RuntimeError(
                f"a {name} takes one gradient at a time, and no batch of them (is_grads_batched, "
                "vectorize=True, vmap of a backward pass): take them in a loop, or use the module "
                "that was fused"
            ) from error
        raise


def as_kind(module: torch.nn.Module, kind: type[Module], without: Collection[str]) -> Module:
    """Return a module of this kind with the same attributes, submodules and parameters."""
    found = object.__new__(kind)
    own = ("_modules", "_parameters", "_buffers", "_flat_weights")
    for name, value in vars(module).items():
        if name not in without:
            found.__dict__[name] = value.copy() if name in own else value
    return found


class _Refusal(Function):
    """A gradient in a graph that leads back to its sources, but raises an error when followed."""

    @staticmethod
    def forward(ctx: Node, name: str, gradient: Tensor, *sources: Tensor) -> Tensor:
        ctx.name = name
        return gradient.view_as(gradient)

    @staticmethod
    def backward(ctx: Node, *gradients: Tensor) -> None:
        raise RuntimeError(
            f"a {ctx.name} has no second derivatives: its gradients cannot be differentiated"
        )


refuse: Callable[..., Tensor] = _Refusal.apply

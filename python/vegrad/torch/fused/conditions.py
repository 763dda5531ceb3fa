"""The conditions under which a fused pass runs, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import Function, forward_ad

from vegrad.torch.fused.gradients import Node
from vegrad.torch.models import state

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

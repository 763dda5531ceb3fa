"""Where the derivative of an activation leaves little of a gradient: saturated and dead units."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from vegrad.torch.reading.call import Call

# φ′ from φ, by the functions that autograd itself calls.
BACKWARD: Mapping[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda out: torch.ops.aten.threshold_backward(torch.ones_like(out), out, 0),
    "sigmoid": lambda out: torch.ops.aten.sigmoid_backward(torch.ones_like(out), out),
    "tanh": lambda out: torch.ops.aten.tanh_backward(torch.ones_like(out), out),
}
FLAT = 0.05  # An element is saturated if |φ′| there is below this share of the largest.


def slopes_of(call: Call, y: Tensor, out: object) -> tuple[float, float]:
    """Return the shares of saturated elements and of dead units of an activation's inputs y.

    An element is saturated if |φ′| is under 5 % of the largest; a unit is dead if φ′ = 0 for all
    rows of the batch.
    """
    args = tuple(one for one in call.args[1:] if one is not True)  # without inplace
    kwargs = {k: value for k, value in call.kwargs.items() if k not in ("inplace", "input")}

    try:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            half = y.dtype in (torch.float16, torch.bfloat16)
            own = BACKWARD.get(call.name)
            if own is not None and isinstance(out, Tensor) and not half:
                slopes = own(out.detach())
            else:
                slopes = _slopes(call.function, (y.float() if half else y).detach(), args, kwargs)
            largest = _largest_slope(call.function, slopes, args, kwargs)
    except (RuntimeError, TypeError):  # An activation with weights, of another dtype.
        return 0.0, 0.0
    flat = int((slopes.abs() < FLAT * largest).count_nonzero()) / max(slopes.numel(), 1)
    zero = slopes == 0
    if slopes.ndim == 3:  # (batch, time, units), or the channels of a one-dimensional convolution
        zero = zero.flatten(0, 1)
    elif slopes.ndim > 1:
        zero = zero.movedim(1, -1).flatten(0, -2)
    return flat, float(zero.reshape(-1, zero.shape[-1]).all(0).double().mean())


def _slopes(
    function: Callable[..., Tensor], at: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Tensor:
    """Return φ′ at some places, by autograd."""
    at = at.requires_grad_()
    own = getattr(function, "__name__", "_").endswith("_")  # it may overwrite what it is given
    value = function(at.clone() if own else at, *args, **kwargs)
    return torch.autograd.grad(value, at, torch.ones_like(value))[0]


_LARGEST: dict[object, float] = {}


def _largest_slope(
    function: Callable[..., Tensor], like: Tensor, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> float:
    """Return the largest |φ′|, which is kept where φ has no weights."""
    key = (function, args, tuple(kwargs.items()), like.dtype, like.device)
    plain = all(isinstance(one, int | float | str) for one in (*args, *kwargs.values()))
    if plain and key in _LARGEST:
        return _LARGEST[key]
    far = torch.linspace(-8, 8, 1601, dtype=like.dtype, device=like.device)
    largest = float(_slopes(function, far, args, kwargs).abs().max())
    if plain:
        _LARGEST[key] = largest
    return largest


def _same(tensor: Tensor) -> Tensor:
    """Keep a tensor as it is.

    As the hook for saved tensors it takes the place of a checkpoint's, which counts what is saved.
    """
    return tensor

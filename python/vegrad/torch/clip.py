"""torch.nn.utils' functions that clip gradients, on vegrad's kernels.

They take the arguments of PyTorch's functions and return the same results. Tensors that the kernels
cannot read (on other devices, sparse, complex, distributed, or the same tensor twice) are passed on
to PyTorch's own functions, a mixed list is shared between the two, and code that torch.compile
compiles uses PyTorch's alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Sequence
from inspect import GEN_CREATED, getgeneratorstate
from math import inf, isfinite
from types import GeneratorType
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torch.autograd.graph import increment_version
from torch.nn import Module, utils

from vegrad import _core
from vegrad._core import Clipped, NonFiniteGradientError
from vegrad.clipping.rules import Loss, Rule

PARAMETERS = Module.parameters.__code__
Tensors: TypeAlias = Iterable[Tensor] | Tensor
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
# The dtype of PyTorch's norm, by the set of the gradients' dtypes, one bit each in the order of
# FLOATS: the widest of them, but float32 for float16 and bfloat16 together.
_PROMOTED = [FLOATS[2 if bits == 3 else max(bits.bit_length() - 1, 0)] for bits in range(16)]
_SLACK = 1e-6  # PyTorch adds it to a norm before it divides by the norm


class Heard(NamedTuple):
    """A clip of gradients, as a monitor is told of it."""

    parameters: Sequence[Tensor]
    kind: str
    """ "norm", or "value" of a clip of each element."""
    limit: float
    norm: Tensor | float | None
    """The joint norm before the clip, if it was taken."""


heard: Callable[[Heard], None] | None = None
"""Set while a monitor listens: it is told of each clip."""


def clip_grad_norm_(
    parameters: Tensors,
    max_norm: float,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    compat: bool = True,
) -> Tensor:
    """Clip the joint norm of the gradients in place, as torch.nn.utils.clip_grad_norm_.

    Args:
        parameters: an iterable of tensors, or one tensor, whose `.grad` is clipped; tensors
            without one are passed over.
        max_norm: the largest norm that the gradients have afterwards.
        norm_type: the order of the norm. Orders of 0 and below are left to PyTorch.
        error_if_nonfinite: raise, and change nothing, if an element is inf or NaN.
        foreach: passed on with the gradients that are left to PyTorch.
        compat: True for PyTorch's numbers: the gradients are multiplied by
            max_norm / (norm + 1e-6), rounded down to a float32 unless some gradients are float64,
            and the norm has the gradients' dtype. False for vegrad's: they are multiplied by
            max_norm / norm, and the norm is a float64.

    Returns:
        The norm before the clipping, a tensor. It is right whenever every element is finite
        (PyTorch sums in the gradients' dtype: its norm is 0.5 % off for 2^26 elements, and inf
        where a square overflows).

    Raises:
        RuntimeError: with error_if_nonfinite, as in PyTorch; NonFiniteGradientError without compat.
    """
    if torch.compiler.is_compiling():
        return utils.clip_grad_norm_(parameters, max_norm, norm_type, error_if_nonfinite, foreach)
    several, doubtful = _found(parameters)
    if not several and isinstance(parameters, GeneratorType):
        warnings.warn(
            "`parameters` is an empty generator, no gradient clipping will occur.", stacklevel=2
        )
    limit, order = float(max_norm), float(norm_type)
    policy, slack = "raise" if error_if_nonfinite else "propagate", _SLACK if compat else 0.0
    if order > 0 and limit >= 0:
        try:
            grads, found = _core.clip_gradients(several, limit, order, policy, slack)
        except NonFiniteGradientError as error:
            if not compat:
                raise
            raise RuntimeError(_nonfinite(order)) from error
        except (TypeError, ValueError):
            if doubtful and len(once := _once_each(several)) < len(several):
                return clip_grad_norm_(
                    once, max_norm, norm_type, error_if_nonfinite, foreach, compat=compat
                )
            return _clip_mixed(several, limit, order, error_if_nonfinite, foreach, compat)
        if found.clipped:
            increment_version(grads)
        if heard is not None:
            heard(Heard(several, "norm", limit, found.norm))
        if grads:
            dtype = _PROMOTED[found.dtypes] if compat else torch.float64
            return torch.tensor(found.norm, dtype=dtype)
    several = _once_each(several) if doubtful else several
    return utils.clip_grad_norm_(several, max_norm, norm_type, error_if_nonfinite, foreach)


def clip_grad_value_(parameters: Tensors, clip_value: float, foreach: bool | None = None) -> None:
    """Bring every element into ±clip_value in place, as torch.nn.utils.clip_grad_value_."""
    if torch.compiler.is_compiling():
        utils.clip_grad_value_(parameters, clip_value, foreach)
        return
    several = listed(parameters)
    grads = [grad for one in several if (grad := one.grad) is not None]
    limit = float(clip_value)
    if heard is not None:
        heard(Heard(several, "value", limit, None))
    ours, others = grads, []
    if not limit >= 0:  # PyTorch gives negative limits a meaning
        ours, others = [], grads
    try:
        _clip_value(ours, limit)
    except (TypeError, ValueError):
        ours, others = _split(grads)
        _clip_value(ours, limit)
    if others:
        utils.clip_grad_value_(_holders(others), clip_value, foreach)


def get_total_norm(
    tensors: Tensors,
    norm_type: float = 2.0,
    error_if_nonfinite: bool = False,
    foreach: bool | None = None,
    *,
    compat: bool = True,
) -> Tensor:
    """Return the joint norm of tensors, as torch.nn.utils.get_total_norm.

    Args:
        tensors: an iterable of tensors, or one.
        norm_type: as for `clip_grad_norm_`.
        error_if_nonfinite: raise if an element is inf or NaN.
        foreach: as for `clip_grad_norm_`.
        compat: True for a norm of the tensors' dtype, False for a float64.

    Raises:
        RuntimeError: with error_if_nonfinite, as in PyTorch.
    """
    several = [tensors] if isinstance(tensors, Tensor) else list(tensors)
    order = float(norm_type)
    if not several or not order > 0 or torch.compiler.is_compiling():
        return utils.get_total_norm(several, norm_type, error_if_nonfinite, foreach)
    try:
        norm = _core.norm(several, order)
    except (TypeError, ValueError):
        ours, others = _split(several)
        if not ours:
            return utils.get_total_norm(several, norm_type, error_if_nonfinite, foreach)
        norm = _joint([_core.norm(ours, order), _norm_of(others, order, foreach)], order)
    if error_if_nonfinite and not isfinite(norm):
        raise RuntimeError(_nonfinite(order))
    dtype = _dtype(several) if compat else torch.float64
    return torch.tensor(norm, dtype=dtype, device=several[0].device)


def clip_grads_with_norm_(
    parameters: Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
) -> None:
    """Multiply gradients by max_norm / (total_norm + 1e-6) in place, if that is below 1.

    As torch.nn.utils.clip_grads_with_norm_, but gradients on the CPU that need no scaling are not
    touched.
    """
    if torch.compiler.is_compiling():
        utils.clip_grads_with_norm_(parameters, max_norm, total_norm, foreach)
        return
    several = listed(parameters)
    grads = [grad for one in several if (grad := one.grad) is not None]
    limit = float(max_norm)
    if heard is not None:
        heard(Heard(several, "norm", limit, total_norm))
    ours, others = grads, []
    plain = (
        type(total_norm) is Tensor
        and total_norm.device.type == "cpu"
        and total_norm.ndim == 0
        and not total_norm.is_complex()
    )
    total = total_norm.item() if plain else inf
    if limit < 0 or not isfinite(total):
        ours, others = [], grads
    try:
        _scale(ours, limit, total)
    except (TypeError, ValueError):
        ours, others = _split(grads)
        _scale(ours, limit, total)
    if others:
        utils.clip_grads_with_norm_(_holders(others), max_norm, total_norm, foreach)


def listed(parameters: Tensors) -> list[Tensor]:
    """Return all parameters as a list, each once if they come from `module.parameters()`."""
    found, doubtful = _found(parameters)
    return _once_each(found) if doubtful else found


def _found(parameters: Tensors) -> tuple[list[Tensor], bool]:
    """Return the parameters, and True if some may be in the list twice.

    A fresh `module.parameters()` is not run, since it makes a name for each parameter: the modules
    are asked for theirs instead, and only then may a tied parameter come twice.
    """
    if isinstance(parameters, Tensor):
        return [parameters], False
    if (
        isinstance(parameters, GeneratorType)
        and parameters.gi_code is PARAMETERS
        and getgeneratorstate(parameters) == GEN_CREATED
    ):
        asked = parameters.gi_frame.f_locals  # type: ignore[union-attr]
        module = asked["self"]
        if asked["recurse"] and type(module).named_parameters is Module.named_parameters:
            found: list[Tensor] = []
            _collect(module, set(), found)
            parameters.close()
            return found, True
    return list(parameters), False


def _once_each(tensors: list[Tensor]) -> list[Tensor]:
    return list(dict(zip(map(id, tensors), tensors, strict=True)).values())


def _collect(module: Module, seen: set[int], found: list[Tensor]) -> None:
    seen.add(id(module))
    if module._parameters:
        found += [one for one in module._parameters.values() if one is not None]
    for child in module._modules.values():
        if child is not None and id(child) not in seen:
            _collect(child, seen, found)


def is_ours(tensor: Tensor) -> bool:
    """Return True if the kernels can read it: a plain dense tensor of floats on the CPU."""
    return (
        type(tensor) in (Tensor, torch.nn.Parameter)
        and tensor.layout is torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in FLOATS
        and not tensor.is_neg()
    )


def _clip_mixed(
    parameters: list[Tensor],
    limit: float,
    order: float,
    error_if_nonfinite: bool,
    foreach: bool | None,
    compat: bool,
) -> Tensor:
    """Clip gradients of which the kernels can read some; PyTorch measures and scales the others."""
    grads = [grad for one in parameters if (grad := one.grad) is not None]
    ours, others = _split(grads)
    if not ours:
        # The parameters themselves, so that those who listen know them.
        return utils.clip_grad_norm_(parameters, limit, order, error_if_nonfinite, foreach)
    norm = _joint([_core.norm(ours, order), _norm_of(others, order, foreach)], order)
    if error_if_nonfinite and not isfinite(norm):
        raise RuntimeError(_nonfinite(order))
    if heard is not None:
        heard(Heard(parameters, "norm", limit, norm))
    first = grads[0].device
    total = torch.tensor(norm, dtype=torch.float64)
    slack = _SLACK if compat else 0.0
    coefficient = limit / (norm + slack) if norm + slack else inf
    if not coefficient >= 1:
        _scale_by(ours, coefficient)
        # PyTorch adds 1e-6 to the divisor, whatever our coefficient was made with.
        divisor = total if compat else total - 1e-6
        utils.clip_grads_with_norm_(_holders(others), limit, divisor, foreach)
    return total.to(first, _dtype(grads) if compat else torch.float64)


def clip_by_rule(
    rule: Rule, params: list[Tensor], grads: list[Tensor | None], loss: Loss | None = None
) -> Clipped:
    """Clip gradients of any kind in place, those of other devices by way of the CPU."""
    buffers: list[Tensor | None] = []
    weights: list[Tensor | None] = []
    copied: list[tuple[Tensor, Tensor]] = []
    for param, grad in zip(params, grads, strict=True):
        view = None if grad is None else _dense(grad, param)
        buffers.append(view)
        weights.append(None if grad is None else _dense(param.detach()))
        if view is not None and not is_ours(view):
            buffers[-1] = view.cpu()
            copied.append((view, buffers[-1]))
        if weights[-1] is not None:
            weights[-1] = weights[-1].cpu()
    clipped = rule.apply_(buffers, weights, loss=None if loss is None else loss())
    if clipped.clipped or clipped.nonfinite:
        for view, copy in copied:
            view.copy_(copy)
    return clipped


def _dense(tensor: Tensor, param: Tensor | None = None) -> Tensor:
    """Return the numbers of a tensor as a dense real one that shares its memory."""
    if hasattr(tensor, "full_tensor"):
        raise TypeError(
            "clip must be None for distributed tensors, of which other processes have parts: "
            "call vegrad.torch.clip_grad_norm_ before the step"
        )
    if tensor.is_sparse:
        if param is not None:
            param.grad = tensor = tensor.coalesce()
        tensor = tensor.values()
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _clip_value(grads: list[Tensor], limit: float) -> None:
    if grads and _core.clip("value", grads, limit, 2.0, "propagate").clipped:
        increment_version(grads)


def _scale(grads: list[Tensor], limit: float, total_norm: float) -> None:
    if grads and not (coefficient := limit / (total_norm + 1e-6)) >= 1:
        _scale_by(grads, coefficient)


def _scale_by(grads: list[Tensor], coefficient: float) -> None:
    try:
        if not isfinite(coefficient):
            raise NonFiniteGradientError
        _core.clip("global_norm", grads, lambda norm: norm * coefficient, 2.0, "raise")
        increment_version(grads)
    except (NonFiniteGradientError, ValueError):
        # Without a finite norm no limit gives this coefficient; what shares memory is scaled twice.
        with torch.no_grad():
            torch._foreach_mul_(grads, coefficient)


def _split(grads: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Return the gradients that the kernels can read, and the others."""
    ours = [grad for grad in grads if is_ours(grad)]
    try:
        _core.clip("global_norm", ours, None, 2.0, "propagate")
    except (TypeError, ValueError):
        return [], grads
    return ours, [grad for grad in grads if not is_ours(grad)]


class _Holder(NamedTuple):
    """Something with a gradient, as PyTorch's functions take it."""

    grad: Tensor


def _holders(grads: list[Tensor]) -> list[_Holder]:
    """Return objects with these gradients as `.grad`, for PyTorch's functions."""
    return [_Holder(grad) for grad in grads]


def _norm_of(others: list[Tensor], order: float, foreach: bool | None) -> float:
    return float(utils.get_total_norm(others, order, False, foreach)) if others else 0.0


def _joint(norms: list[float], order: float) -> float:
    return _core.norm(torch.tensor(norms, dtype=torch.float64), order)


def _dtype(grads: list[Tensor]) -> torch.dtype:
    """Return the dtype of the norm that PyTorch returns."""
    first, *others = {grad.dtype for grad in grads}
    for other in others:
        first = torch.promote_types(first, other)
    return first.to_real()


def _nonfinite(order: float) -> str:
    return (
        f"The total norm of order {order} for gradients from `parameters` is non-finite, so it "
        "cannot be clipped. To disable this error and scale the gradients by the non-finite norm "
        "anyway, set `error_if_nonfinite=False`"
    )

"""What of a model is watched, under which names; tensors in what modules take and give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.torch.fused.sequential import FusedMLP
from vegrad.torch.norms import is_distributed

_PLAIN = (torch.nn.modules.dropout._DropoutNd, torch.nn.Identity, torch.nn.Flatten)
_is_compiling = torch.compiler.is_compiling
_WRAPPERS = ("module.", "_orig_mod.", "_fsdp_wrapped_module.")


def plain_name(name: str) -> str:
    """As it is in a model without wrappers."""
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    return name


def own_parameters(path: str, module: Module) -> list[str]:
    """Names of the module's own parameters."""
    found = module.named_parameters(recurse=isinstance(module, FusedMLP))
    return [f"{path}.{name}" if path else name for name, _ in found]


def is_watched(module: Module) -> bool:
    """Modules that compute: those with parameters of their own, or without children."""
    if isinstance(module, _PLAIN):
        return False
    if isinstance(module, FusedMLP):  # whose layers' hooks are not called
        return True
    if next(module.parameters(recurse=False), None) is not None:
        return type(module).forward is not torch.nn.modules.module._forward_unimplemented
    return not module._modules and type(module) is not Module


def is_plain(tensor: Tensor | None) -> bool:
    """Whether its elements can be counted: real ones, dense, on the CPU, all here."""
    if tensor is None or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return False
    return tensor.is_floating_point() and not is_distributed(tensor)


def tensor_in(output: Any) -> Tensor | None:
    """The first tensor of floats in a module's inputs or outputs."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    values: Any = ()
    if isinstance(output, tuple | list):
        values = output
    elif isinstance(output, Mapping):
        values = output.values()
    elif is_dataclass(output):
        values = [getattr(output, one.name, None) for one in fields(output)]
    return next((found for value in values if (found := tensor_in(value)) is not None), None)


def first_sample(tensor: Tensor) -> int | None:
    """Of a batch: the first with an element that is not finite."""
    if tensor.ndim < 2:
        return None
    bad = ~torch.isfinite(tensor.detach()).flatten(1).all(1)
    return int(bad.nonzero()[0]) if bool(bad.any()) else None


class Hook:
    """A forward hook, in Python, which torch.compile can look into.

    A copy of a model has the same, which knows that it is not the model's; a pickle has none.
    """

    __slots__ = ("ran",)

    def __init__(self, ran: Callable[[Module, Any, Any], None]) -> None:
        self.ran = ran

    def __call__(self, module: Module, inputs: Any, output: Any) -> None:
        """Unless it is being compiled, calls `ran`."""
        if not _is_compiling():
            self.ran(module, inputs, output)

    def __deepcopy__(self, memo: Any) -> Hook:
        return self

    def __reduce__(self) -> Any:
        return Hook, (unwatched,)


def unwatched(module: Module, inputs: Any, output: Any) -> None:
    """What is left of a hook in a pickle."""


class Back(partial[Any]):
    """A hook of a tensor, which PyTorch need not say that it does not save with it."""

    __torch_unserializable__ = True

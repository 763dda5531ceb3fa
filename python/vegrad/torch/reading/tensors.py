"""Small helpers on tensors that a pass makes."""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")
SCALARS = {int, float, bool, str, type(None), torch.dtype, torch.device}


class ByTensor(Generic[V]):
    """A mapping from tensors, told apart by identity, which keeps none of them alive."""

    def __init__(self) -> None:
        self._entries: dict[int, tuple[weakref.ref[Tensor], V]] = {}

    def __setitem__(self, tensor: Tensor, value: V) -> None:
        self._entries[id(tensor)] = weakref.ref(tensor), value

    def get(self, tensor: object) -> V | None:
        """Return what is known of a tensor; an id may belong to a new one by now."""
        entry = self._entries.get(id(tensor))
        return entry[1] if entry is not None and entry[0]() is tensor else None


def tensors_in(values: object) -> list[Tensor]:
    """Return all tensors in nested tuples, lists, mappings and dataclasses, in their order."""
    if isinstance(values, Tensor):
        return [values]
    found: list[Tensor] = []
    _collect((values,), found)
    return found


def _collect(values: Iterable[object], found: list[Tensor]) -> None:
    """Append the tensors among some values: most are tensors or numbers, which need no call."""
    for one in values:
        if isinstance(one, Tensor):
            found.append(one)
        elif type(one) in SCALARS:
            continue
        elif isinstance(one, tuple | list):
            _collect(one, found)
        elif isinstance(one, dict):
            _collect(one.values(), found)
        elif is_dataclass(one) and not isinstance(one, type):
            _collect([getattr(one, field.name, None) for field in fields(one)], found)


def is_transformed(tensor: Tensor) -> bool:
    """Return True of a tensor inside `torch.func.vmap`, `grad` or `jacrev`: it has no values."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def is_signal(tensor: Tensor) -> bool:
    """Return True of numbers; indices beside them, as of a graph's edges, only say where."""
    dtype = tensor.dtype
    return dtype.is_floating_point or dtype.is_complex

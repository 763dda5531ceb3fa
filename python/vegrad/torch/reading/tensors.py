"""Small helpers on tensors that a pass makes."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from typing import Generic, TypeVar

import torch
from torch import Tensor

V = TypeVar("V")


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


def tensors_in(values: object) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists, mappings and dataclasses."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for one in values:
            yield from tensors_in(one)
    elif isinstance(values, dict):
        for one in values.values():
            yield from tensors_in(one)
    elif is_dataclass(values) and not isinstance(values, type):
        for field in fields(values):
            yield from tensors_in(getattr(values, field.name, None))


def is_transformed(tensor: Tensor) -> bool:
    """Return True of a tensor inside `torch.func.vmap`, `grad` or `jacrev`: it has no values."""
    return bool(torch._C._functorch.is_functorch_wrapped_tensor(tensor))

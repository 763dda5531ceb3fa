"""Follow a forward pass to the branches of its residual streams, x + f(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log2, sqrt
from typing import Any

import torch
from torch import Tensor

from vegrad.flow.reading import Branch


@dataclass(frozen=True)
class Way:
    """Where a tensor comes from."""

    bases: frozenset[int] = frozenset()
    """Numbers of inputs and of sums of a stream and a branch."""
    trail: tuple[str, ...] = ()
    """Names of the parameters that it went through since."""


@dataclass
class Branches:
    """Follows a forward pass, function by function."""

    names: dict[int, str]
    """Of the parameters, by id."""
    found: list[Branch] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    """Names of embeddings: what they add to each other is no branch, but enters the stream."""

    def __post_init__(self) -> None:
        self._ways: dict[int, Way] = {}
        self._matrices: set[str] = set()
        self._count = 0

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Tensors that the model is given."""
        for one in inputs:
            self._ways[id(one)] = self._new()

    def way(self, tensor: Tensor) -> Way:
        """Where it comes from."""
        name = self.names.get(id(tensor))
        if name is None:
            return self._ways.get(id(tensor), Way())
        if tensor.ndim > 1:
            self._matrices.add(name)
        return Way(frozenset(), (name,))

    def of(self, tensors: Sequence[Tensor]) -> Way:
        """Where what is made of these comes from."""
        ways = [self.way(one) for one in tensors]
        trail = dict.fromkeys(name for way in ways for name in way.trail)
        return Way(frozenset[int]().union(*(way.bases for way in ways)), tuple(trail))

    def added(self, one: Any, other: Any) -> Way | None:
        """Where x + f(x) comes from, and None of other sums; called before it is made."""
        if not isinstance(one, Tensor) or not isinstance(other, Tensor) or one.shape != other.shape:
            return None
        ways = sorted((self.way(one), self.way(other)), key=lambda way: len(way.trail))
        below, above = ways
        stream, branch = (one, other) if self.way(one) == below else (other, one)
        own = tuple(name for name in above.trail if name not in below.trail)
        matrices = self._matrices - self.tables
        if not below.bases or not below.bases <= above.bases or matrices.isdisjoint(own):
            return None
        passed = set(below.trail) <= set(above.trail)
        if passed or matrices & set(below.trail):  # or by way of a map, as where widths change
            sizes = _size(branch), _size(stream), _size(branch, True)
            self.found.append(Branch(own, *sizes, below.trail))
        return self._new() if passed else None

    def made(self, tensor: Tensor, way: Way) -> bool:
        """Notes a result; whether there is anything to note, and the tensor must live on."""
        if way.bases or way.trail:
            self._ways[id(tensor)] = way
        return bool(way.bases or way.trail)

    def _new(self) -> Way:
        self._count += 1
        return Way(frozenset([self._count]))


def _size(tensor: Tensor, centred: bool = False) -> float:
    values = tensor.detach()
    if values.ndim < 2 or not values.numel() or not values.is_floating_point():
        return -inf
    rows = values.flatten(1) if values.ndim == 4 else values.flatten(0, -2)  # images, or tokens
    if centred:
        rows = rows - rows.mean(0)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    size = float(norms.median()) / sqrt(rows.shape[1])
    return log2(size) if 0 < size < inf else -inf if size == 0 else inf

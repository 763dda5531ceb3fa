"""Follow a forward pass to the branches of its residual streams, x + f(x)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf, log2, sqrt

import torch
from torch import Tensor

from vegrad.flow.reading import Branch
from vegrad.torch.reading.tensors import ByTensor


@dataclass(frozen=True)
class Way:
    """The way by which a tensor was made since the last sum of a residual stream."""

    bases: frozenset[int] = frozenset()
    """Numbers of the inputs, and of the sums of a stream and a branch, that it comes from."""
    trail: tuple[str, ...] = ()
    """Names of the parameters that it has gone through since then."""


@dataclass
class Branches:
    """Finds branches while a trace follows a forward pass, function by function."""

    names: dict[int, str]
    """Names of the parameters by id."""
    found: list[Branch] = field(default_factory=list)
    tables: set[str] = field(default_factory=set)
    """Names of embeddings' matrices. Their sum is the beginning of a stream, and no branch."""

    def __post_init__(self) -> None:
        self._ways: ByTensor[Way] = ByTensor()
        self._matrices: set[str] = set()
        self._count = 0

    def begin(self, inputs: Sequence[Tensor]) -> None:
        """Number the tensors that the model is given."""
        for one in inputs:
            self._ways[one] = self._new()

    def way(self, tensor: Tensor) -> Way:
        """Return the way by which a tensor was made."""
        name = self.names.get(id(tensor))
        if name is None:
            return self._ways.get(tensor) or Way()
        if tensor.ndim > 1:
            self._matrices.add(name)
        return Way(frozenset(), (name,))

    def of(self, tensors: Sequence[Tensor]) -> Way:
        """Return the way of a tensor that is made of these."""
        ways = [self.way(one) for one in tensors]
        trail = dict.fromkeys(name for way in ways for name in way.trail)
        return Way(frozenset[int]().union(*(way.bases for way in ways)), tuple(trail))

    def added(self, one: object, other: object) -> Way | None:
        """Return the way of a sum x + f(x), and None of other sums.

        To be called before the sum is made, which may overwrite its terms.
        """
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
        # The stream goes on as it is, or through a matrix where the width changes.
        if passed or matrices & set(below.trail):
            sizes = _size(branch), _size(stream), _size(branch, True)
            self.found.append(Branch(own, *sizes, below.trail))
        return self._new() if passed else None

    def made(self, tensor: Tensor, way: Way) -> None:
        """Note the way of a result."""
        if way.bases or way.trail:
            self._ways[tensor] = way

    def _new(self) -> Way:
        self._count += 1
        return Way(frozenset([self._count]))


def _size(tensor: Tensor, centred: bool = False) -> float:
    """Return log2 of the median over rows of the root mean square, about the mean if `centred`."""
    values = tensor.detach()
    if values.ndim < 2 or not values.numel() or not values.is_floating_point():
        return -inf
    # A row is an image, or a token.
    rows = values.flatten(1) if values.ndim == 4 else values.flatten(0, -2)
    if centred:
        rows = rows - rows.mean(0)
    norms = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64)
    size = float(norms.median()) / sqrt(rows.shape[1])
    return log2(size) if 0 < size < inf else -inf if size == 0 else inf

"""The gradients of many parameters, computed at once and handed to autograd at once.

For autograd a hundred parameters are a hundred nodes of the graph, and handing one node its
gradient takes as long as computing a small layer. Here the parameters are one input of the graph,
their joint tensor, whose gradient is one block of memory. In `backward()` its pieces are put into
the parameters' `.grad` all together. Where somebody could see a difference (hooks,
`torch.autograd.grad`, graphs of gradients), autograd gets the pieces one by one instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

from vegrad import _core

Node: TypeAlias = Any  # the ctx of an autograd Function, on which anything may be kept

_needed = attrgetter("requires_grad")
_storage_count = getattr(torch._C, "_storage_Use_Count", None)
_tensor_count = getattr(Tensor, "_use_count", None)


class Handover:
    """The way of a block of gradients to its parameters.

    Args:
        parameters: of one dtype, on the CPU.
        places: the element of the block at which each gradient begins, in rising order.
    """

    def __init__(self, parameters: list[Tensor], places: list[int]) -> None:
        self.parameters = parameters
        self.size = places[-1] + parameters[-1].numel()
        self._shapes, self._chosen = _with_gaps(parameters, places)
        self._spare: Block | None = None
        # Within a backward pass, its node tells whether autograd reaches all leaves, or those only
        # that torch.autograd.grad was asked for.
        self._sentinel = torch.zeros((), requires_grad=True)
        self._node = get_gradient_edge(self._sentinel).node

    def joint(self) -> Tensor:
        """Return the parameters as one input of the graph, which serves many passes.

        Its shape is that of the block; its values mean nothing.
        """
        sentinel = self._sentinel if any(map(_needed, self.parameters)) else None
        with torch.enable_grad():
            joint: Tensor = _Joint.apply(self, sentinel, *self.parameters)
        return joint

    def take(self) -> Block:
        """Return a block that nobody else has, to be given back once its gradients are handed over.

        The last block is used again if all its gradients are gone, since fresh memory costs as
        much time as a pass over it.
        """
        block, self._spare = self._spare, None
        if block is None or not block.idle():
            block = Block(self.size, self._shapes, self._chosen, self.parameters[0].dtype)
        return block

    def give_back(self, block: Block) -> None:
        """Keep a block for the next pass, which takes it unless somebody still has its tensors."""
        self._spare = block

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """Return the gradients in the memory of a block, or in a sum of such that autograd made."""
        block = self._spare
        if block is not None and block.flat is flat:
            return block.pieces
        return self.cut(flat)

    def cut(self, flat: Tensor) -> list[Tensor]:
        """Return the gradients in such memory as new tensors."""
        return _cut(flat, self._shapes, self._chosen)

    def leave(self, pieces: list[Tensor], wanted: Sequence[int]) -> None:
        """Add the gradients to the `.grad` of those parameters that need one.

        As for autograd, these are the ones that required a gradient in the forward pass (`wanted`,
        one entry for each parameter) and still do.
        """
        if torch.is_grad_enabled():  # the sums become part of a graph, as in autograd
            for parameter, piece, needed in zip(self.parameters, pieces, wanted, strict=True):
                if needed and parameter.requires_grad:
                    grad = parameter.grad
                    parameter.grad = piece if grad is None else grad + piece
            return
        done = _core.set_gradients(self.parameters, pieces) if all(wanted) else 0
        if done == len(pieces):
            return
        old, new = [], []
        for parameter, piece, needed in zip(
            self.parameters[done:], pieces[done:], wanted[done:], strict=True
        ):
            if not (needed and parameter.requires_grad):
                continue
            grad = parameter.grad
            if grad is None or grad.layout is not torch.strided:
                parameter.grad = piece if grad is None else piece + grad
            else:
                old.append(grad)
                new.append(piece)
        if old:
            torch._foreach_add_(old, new)

    def is_plain(self) -> bool:
        """Return True if the backward pass that is running does nothing but add to `.grad`."""
        if torch.is_grad_enabled() or torch.is_anomaly_enabled():
            return False
        try:
            everything: bool = torch._C._will_engine_execute_node(self._node)
        except RuntimeError:  # another engine than autograd's own is running
            return False
        return everything and _core.unhooked(self.parameters, Tensor)


class Block:
    """Memory for gradients, with a tensor for each, which can tell if somebody else has any.

    Args:
        size: number of elements.
        shapes: tensors shaped as the pieces of the memory, gaps included.
        chosen: the pieces that are gradients.
        dtype: float32 or float64.
    """

    def __init__(
        self, size: int, shapes: list[Tensor], chosen: list[int], dtype: torch.dtype
    ) -> None:
        lanes = 64 // dtype.itemsize
        # The memory is NumPy's, which asks the system for large pages. It begins at the border of
        # a cache line.
        memory = np.zeros(size + lanes, str(dtype).rpartition(".")[2])
        first = -memory.ctypes.data % 64 // dtype.itemsize
        self.array = memory[first : first + size]
        self.flat = torch.from_numpy(self.array)
        self.pieces = _cut(self.flat, shapes, chosen)
        self._storage = self.flat.untyped_storage()
        self._everything = [self.flat, *self.pieces]
        self._alone, self._as_made = self._holders(), self._described()
        self._version = self.flat._version

    def idle(self) -> bool:
        """Return True if nobody else has a tensor of this memory, and all are as they were made."""
        if _storage_count is None or _tensor_count is None or self._holders() != self._alone:
            return False
        if self.flat._version != self._version:  # some tensor was changed in place
            self._version = self.flat._version
            return self._described() == self._as_made
        return not any(map(_needed, self.pieces))

    def _holders(self) -> tuple[object, ...]:
        """Return the numbers of references to the memory and its tensors, in Python and in C++."""
        if _storage_count is None or _tensor_count is None:
            return ()
        everything = self._everything
        counts = list(map(getrefcount, everything)), list(map(_tensor_count, everything))
        return _storage_count(self._storage._cdata), *counts

    def _described(self) -> list[tuple[object, ...]]:
        return [(one.data_ptr(), one.shape, one.stride(), _needed(one)) for one in self.pieces]


class _Joint(Function):
    """The joint tensor: forward makes it, empty, and backward cuts its gradient to pieces."""

    @staticmethod
    def forward(ctx: Node, handover: Handover, _: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.handover = handover
        return parameters[0].new_empty(1).expand(handover.size)

    @staticmethod
    def backward(ctx: Node, flat: Tensor | None) -> tuple[Tensor | None, ...]:
        handover, wanted = ctx.handover, ctx.needs_input_grad[2:]
        nothing = (None,) * (2 + len(wanted))
        if flat is None:
            return nothing
        pieces = handover.pieces(flat)
        if handover.is_plain():
            handover.leave(pieces, wanted)
            return nothing
        found = (one if needed else None for one, needed in zip(pieces, wanted, strict=True))
        return None, None, *found


def _with_gaps(parameters: list[Tensor], places: list[int]) -> tuple[list[Tensor], list[int]]:
    """Return tensors shaped as the pieces of the memory, and the places of the parameters' ones."""
    shapes: list[Tensor] = []
    chosen: list[int] = []
    end = 0
    for parameter, place in zip(parameters, places, strict=True):
        if place > end:
            shapes.append(parameter.new_empty(1).expand(place - end))
        chosen.append(len(shapes))
        shapes.append(parameter.new_empty(1).expand(parameter.shape))
        end = place + parameter.numel()
    return shapes, chosen


def _cut(flat: Tensor, shapes: list[Tensor], chosen: list[int]) -> list[Tensor]:
    # One call for all: splitting and reshaping each takes as long as computing a layer.
    pieces = torch._C._nn.unflatten_dense_tensors(flat, shapes)
    return [pieces[place] for place in chosen]

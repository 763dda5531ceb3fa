"""Gradients of many parameters that are made at once, handed over at once.

To autograd a hundred parameters are a hundred nodes, and to hand one its gradient takes as long as
to compute a small layer. Here they are one input of the graph, their joint tensor, whose gradient
is one block of memory. In `backward()` the pieces are left in the parameters' `.grad` in one go, as
autograd would; where somebody could see a difference (hooks, `torch.autograd.grad`, graphs of
gradients) autograd gets them one by one.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter
from sys import getrefcount
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd import Function
from torch.autograd.graph import get_gradient_edge

from vegrad import _core

_needed = attrgetter("requires_grad")
_storage_count = getattr(torch._C, "_storage_Use_Count", None)
_tensor_count = getattr(Tensor, "_use_count", None)


class Handover:
    """Parameters, and the memory of their gradients.

    Args:
        parameters: of one dtype, on the CPU.
        places: where in the memory, in elements, each one's gradient begins, in rising order.
    """

    def __init__(self, parameters: list[Tensor], places: list[int]) -> None:
        self.parameters = parameters
        self.size = places[-1] + parameters[-1].numel()
        self._shapes, self._chosen = _with_gaps(parameters, places)
        self._spare: Block | None = None
        # Of no use but to tell, within a backward pass, what kind it is.
        self._sentinel = torch.zeros((), requires_grad=True)
        self._node = get_gradient_edge(self._sentinel).node

    def joint(self) -> Tensor:
        """The parameters as one tensor, whose values nobody may read. It serves many passes."""
        sentinel = self._sentinel if any(map(_needed, self.parameters)) else None
        with torch.enable_grad():
            joint: Tensor = _Joint.apply(self, sentinel, *self.parameters)
        return joint

    def take(self) -> Block:
        """Memory for gradients that nobody has; to be given back when they are on their way.

        The last one's once more, if all its gradients are gone: fresh memory takes as long to be
        had as a pass over it.
        """
        block, self._spare = self._spare, None
        if block is None or not block.idle():
            block = Block(self.size, self._shapes, self._chosen, self.parameters[0].dtype)
        return block

    def give_back(self, block: Block) -> None:
        """Whoever has its tensors then keeps it from being taken."""
        self._spare = block

    def pieces(self, flat: Tensor) -> list[Tensor]:
        """The gradients in a block, or in a sum of some."""
        block = self._spare
        if block is not None and block.flat is flat:
            return block.pieces
        return self.cut(flat)

    def cut(self, flat: Tensor) -> list[Tensor]:
        """The gradients in such memory, as new tensors."""
        return _cut(flat, self._shapes, self._chosen)

    def leave(self, pieces: list[Tensor], wanted: Sequence[int]) -> None:
        """Adds the gradients to the parameters' own, of those that needed one in the forward pass.

        And still do: autograd sees to both.
        """
        if torch.is_grad_enabled():  # into a graph, as autograd does then
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
        """Whether the backward pass that runs would do nothing but add to `.grad`."""
        if torch.is_grad_enabled() or torch.is_anomaly_enabled():
            return False
        try:
            everything: bool = torch._C._will_engine_execute_node(self._node)
        except RuntimeError:  # another engine
            return False
        return everything and _core.unhooked(self.parameters, Tensor)


class Block:
    """Memory for gradients, and tensors of its pieces, which know whether somebody has them."""

    def __init__(
        self, size: int, shapes: list[Tensor], chosen: list[int], dtype: torch.dtype
    ) -> None:
        lanes = 64 // dtype.itemsize
        # NumPy's memory, for which the system has large pages; on a cache line's border.
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
        """Whether nobody has a tensor of this memory, and all are as they were made."""
        if _storage_count is None or _tensor_count is None or self._holders() != self._alone:
            return False
        if self.flat._version != self._version:  # something was done in place
            self._version = self.flat._version
            return self._described() == self._as_made
        return not any(map(_needed, self.pieces))

    def _holders(self) -> tuple[Any, ...]:
        if _storage_count is None or _tensor_count is None:
            return ()
        everything = self._everything
        counts = list(map(getrefcount, everything)), list(map(_tensor_count, everything))
        return _storage_count(self._storage._cdata), *counts

    def _described(self) -> list[Any]:
        return [(one.data_ptr(), one.shape, one.stride(), _needed(one)) for one in self.pieces]


class _Joint(Function):
    """Forward: nothing, of the right size. Backward: the gradient cut into the parameters'."""

    @staticmethod
    def forward(ctx: Any, handover: Handover, _: Tensor | None, *parameters: Tensor) -> Tensor:
        ctx.set_materialize_grads(False)
        ctx.handover = handover
        return parameters[0].new_empty(1).expand(handover.size)

    @staticmethod
    def backward(ctx: Any, flat: Tensor | None) -> Any:
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
    """Tensors shaped as the parts of the memory, and which of them are the parameters'."""
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
    # One call; to split and reshape takes as long as a layer.
    pieces = torch._C._nn.unflatten_dense_tensors(flat, shapes)
    return [pieces[place] for place in chosen]

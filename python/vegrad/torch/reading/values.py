"""Follow values that are not finite through a pass: who made them, and where they are left out."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from math import isnan

from torch import Tensor

from vegrad.flow.reading import HIDES, INPUT, Operation
from vegrad.torch.reading.call import RETURNS, Call
from vegrad.torch.reading.edges import Edge, holds_infinity, is_finite, made_by
from vegrad.torch.reading.tensors import ByTensor, tensors_in


class Values:
    """Values of a pass that are not finite, and elements that are at an edge of an operation.

    Args:
        made_by: the place of the operation that made a tensor; INPUT of the model's inputs.
        state: parameters and buffers, by id.
    """

    def __init__(self, made_by: ByTensor[int], state: Collection[int]) -> None:
        self._made_by, self._state = made_by, state
        # What targets, and what is made of nothing but them, has that is not finite: its cause.
        self._given: ByTensor[str] = ByTensor()
        self._edges: dict[int, Tensor] = {}  # the elements that are at an edge, by place
        self._unused: set[int] = set()  # places where these get a gradient of 0

    def give(self, target: object) -> None:
        """Take in the target, but for what the model was given too."""
        for one in tensors_in(target):
            if self._made_by.get(one) is None:
                self._given[one] = "" if is_finite(one) else "nonfinite-target"

    def knows(self, call: Call) -> bool:
        """Return True if something comes from the target."""
        return any(self._given.get(one) is not None for one in call.tensors)

    def pass_on(self, call: Call, made: Sequence[Tensor], edge: Edge | None) -> None:
        """Note what is made of nothing but targets."""
        causes = [cause for one in call.tensors if (cause := self._given.get(one)) is not None]
        if causes:
            first = next((one for one in causes if one), edge.cause if edge is not None else "")
            for one in made:
                self._given[one] = "" if is_finite(one) else first or "nonfinite-target"

    def cause(
        self, call: Call, made: Sequence[Tensor], rms: float, below: Sequence[Operation]
    ) -> str:
        """Return the cause for which an output is not finite; "" if its inputs are not either.

        Infinities that somebody put in are a mask.

        Args:
            call: that made it.
            made: what it made.
            rms: log2 of the size of that, nan if there is a NaN in it.
            below: the operations that made the inputs.
        """
        new = "domain-edge" if rms != rms else ""
        if any(one.lost for one in below):
            return "" if any(one.rms_log2 != one.rms_log2 for one in below) else new
        for one in call.tensors:
            overwritten = call.name not in RETURNS and any(one is other for other in made)
            if overwritten or is_finite(one):
                continue
            if self._made_by.get(one) == INPUT:
                return "nonfinite-input"
            if cause := self._given.get(one):
                return cause
            if not bool(one.isnan().any()):
                return new
            return "nonfinite-weights" if id(one) in self._state else "domain-edge"
        if holds_infinity(call):
            return new if call.name in ("mul", "__rmul__") else ""
        return made_by(call, made[0])

    def at_edge(self, place: int, edge: Edge) -> None:
        """Keep which elements of an operation's output are at an edge, until δ comes."""
        if edge.where is not None:
            self._edges[place] = edge.where

    def came(self, place: int, delta: Tensor) -> None:
        """Take note of δ at an operation: the elements at its edge may get none of it."""
        where = self._edges.get(place)
        if where is not None and where.shape == delta.shape and not bool((delta[where] != 0).any()):
            self._unused.add(place)

    def hidden(self, operations: Sequence[Operation]) -> set[int]:
        """Return the operations of which a where() or a mask takes none of what is at an edge.

        What comes to a where() by both of its branches is taken by one of them.
        """
        found, taken = set[int](), set[int]()
        for place in reversed(range(len(operations))):
            one = operations[place]
            if one.kind in HIDES:
                ways = [_behind(n, operations) for n in one.below if _is_value(n, operations)]
                found.update(*ways)
                taken.update(n for way in ways for n in way if sum(n in w for w in ways) > 1)
        return (found - taken) & self._unused


def _is_value(place: int, operations: Sequence[Operation]) -> bool:
    """Return True of numbers: conditions have no size."""
    one = operations[place]
    return place != INPUT and (one.lost or not isnan(one.rms_log2))


def _behind(place: int, operations: Sequence[Operation]) -> set[int]:
    """Return an operation and those before it, up to those with parameters."""
    found, ahead = set[int](), [place]
    while ahead:
        one = ahead.pop()
        if one != INPUT and one not in found:
            found.add(one)
            if not operations[one].parameters:
                ahead += operations[one].below
    return found

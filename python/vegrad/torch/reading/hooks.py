"""Hooks that measure δ, the gradient of the loss with respect to what a pass has computed."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from math import isfinite

from torch import Tensor
from torch.autograd.graph import Node

from vegrad.torch.models import size_log2


class Hooks:
    """Hooks on the outputs of operations, which measure δ and keep it near 1.

    Gradients are linear in δ. So at a tensor that all ways down go through, a power of two may be
    taken out for all that lies below, and sizes are right where the dtype would underflow or
    overflow. In a plain chain each layer's output is such a cut; with skip connections the sums
    between the blocks are.
    """

    def __init__(self, on_delta: Callable[[int, Tensor], None] | None = None) -> None:
        self.on_delta = on_delta
        """Called with an operation's place and δ, times 2 to its shift."""
        self.shifts: dict[int, float] = {}
        self.sizes: dict[int, float] = {}
        # The operations' places at each node of autograd's graph that has a hook: what a dropout
        # of nothing returns is what it was given.
        self._places: dict[Node | None, list[int]] = {}
        self._nodes: list[Node | None] = []
        self._layers: set[Node | None] = set()
        self._may_cut: set[Node | None] = set()
        # How many cuts there are from the loss down to a node, which is counted too.
        self._above: dict[Node | None, int] = {}
        self._cuts: set[Node] = set()
        self._totals = [0.0]  # log2 of the factor below so many cuts
        self._on = False
        self._alive = weakref.ref(self)

    def on_output(self, place: int, output: Tensor, layer: bool, may_cut: bool) -> None:
        """Hang a hook at an operation's output, which may be a layer's or another to cut at."""
        if output.requires_grad and output.grad_fn in self._places:
            self._places[output.grad_fn].append(place)
        elif output.requires_grad:
            alive, number = self._alive, len(self._nodes)

            # The hook must not refer to us or the node: Python cannot free a cycle of references
            # that goes through autograd's graph.
            def hook(gradient: Tensor | None) -> Tensor | None:
                us = alive()  # no gradient comes to an output that is not used
                return gradient if us is None or gradient is None else us._came(number, gradient)

            self._nodes.append(output.grad_fn)
            self._places[output.grad_fn] = [place]
            output.register_hook(hook)
        if layer:
            self._layers.add(output.grad_fn)
        if layer or may_cut:
            self._may_cut.add(output.grad_fn)

    def reaches(self, place: int) -> bool:
        """Return True if a gradient comes back to the output of this operation."""
        return any(place in places for places in self._places.values())

    def begin(self) -> None:
        """Measure from now on.

        Gradients that come before the forward pass has ended are the model's own, as those of
        physics-informed networks are, and none of the loss's.
        """
        self._on = True

    def find_cuts(self, root: Node | None) -> None:
        """Find the nodes that all ways from the loss to the layers below them go through.

        From then on δ is measured only where it is known how many cuts there are above.
        """
        assert root is not None
        order, leading = _downwards(root, self._layers)
        ahead, count = {root}, 0
        for node in order:
            if node in self._may_cut and ahead == {node}:
                self._cuts.add(node)
                count += 1
            self._above[node] = count
            ahead.discard(node)
            ahead |= {below for below in _below(node) if below in leading}

    def _came(self, number: int, gradient: Tensor) -> Tensor:
        """Measure the gradient at a hook, and scale it to a norm near 1 at a cut."""
        if not self._on:
            return gradient
        node = self._nodes[number]
        if self._cuts and node not in self._above:
            return gradient
        size, above = size_log2(gradient), self._above.get(node, 0)
        if node in self._cuts:
            by = 0.0
            if isfinite(size):
                by = float(min(max(-round(size), -100), 100))
                gradient, size = gradient * 2.0**by, size + by
            self._totals.append(self._totals[-1] + by)
        shift = self._totals[above]
        for place in self._places[node]:
            self.shifts[place], self.sizes[place] = shift, size - shift
            if self.on_delta is not None:
                self.on_delta(place, gradient)
        return gradient


def nodes_from(root: Node | None) -> Iterator[Node]:
    """Yield all nodes of autograd's graph from a root on."""
    stack, seen = [root], set[Node]()
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            yield node
            stack += [one for one, _ in node.next_functions]


def _below(node: Node) -> list[Node]:
    return [one for one, _ in node.next_functions if one is not None]


def _downwards(root: Node, wanted: set[Node | None]) -> tuple[list[Node], set[Node]]:
    """Return the nodes that lead to one of some, each after all above it; and the set of them."""
    order: list[Node] = []
    leading: set[Node] = set()
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, left = stack.pop()
        below = _below(node)
        if left:
            if node in wanted or any(one in leading for one in below):
                leading.add(node)
                order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(one, False) for one in below if one not in seen]
    return order[::-1], leading

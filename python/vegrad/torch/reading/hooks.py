"""Hooks that measure δ, the gradient of the loss with respect to the outputs of layers."""

from __future__ import annotations

import weakref
from math import isfinite

from torch import Tensor
from torch.autograd.graph import Node

from vegrad.torch.models import size_log2
from vegrad.torch.reading.trace import Layer


class Hooks:
    """Hooks on the outputs of layers and of sums, which measure δ and keep it near 1.

    Gradients are linear in δ. So at a tensor that all ways down go through, a power of two may be
    taken out for all that lies below, and sizes are right where the dtype would underflow or
    overflow. In a plain chain each layer's output is such a cut; with skip connections the sums
    between the blocks are.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.shifts: dict[int, float] = {}
        self.sizes: dict[int, float] = {}
        # The layer's place at each node of autograd's graph that has a hook; None at sums.
        self._places: dict[Node | None, int | None] = {}
        self._nodes: list[Node | None] = []
        # How many cuts there are from the loss down to a node, which is counted too.
        self._above: dict[Node | None, int] = {}
        self._cuts: set[Node] = set()
        self._totals = [0.0]  # log2 of the factor below so many cuts

    def on_output(self, place: int | None, output: Tensor) -> None:
        """Hang a hook at a layer's output, or at a sum if the place is None."""
        if output.requires_grad:
            came, number = weakref.WeakMethod(self._came), len(self._nodes)

            # The hook must not refer to us or the node: Python cannot free a cycle of references
            # that goes through autograd's graph.
            def hook(gradient: Tensor) -> Tensor:
                alive = came()
                return alive(number, gradient) if alive else gradient

            self._nodes.append(output.grad_fn)
            self._places[output.grad_fn] = place
            output.register_hook(hook)

    def reaches(self, place: int) -> bool:
        """Return True if a gradient comes back to the output of this layer."""
        return place in self._places.values()

    def find_cuts(self, root: Node | None) -> None:
        """Find the nodes that all ways from the loss to the layers below them go through."""
        assert root is not None
        layers = {node for node, place in self._places.items() if place is not None}
        order, leading = _downwards(root, layers)
        ahead, count = {root}, 0
        for node in order:
            if node in self._places and ahead == {node}:
                self._cuts.add(node)
                count += 1
            self._above[node] = count
            ahead.discard(node)
            ahead |= {below for below in _below(node) if below in leading}

    def _came(self, number: int, gradient: Tensor) -> Tensor:
        """Measure the gradient at a hook, and scale it to a norm near 1 at a cut.

        Gradients that come before the forward pass has ended are the model's own, as those of
        physics-informed networks are, and none of the loss's.
        """
        if not self.layers:
            return gradient
        node = self._nodes[number]
        size, above = size_log2(gradient), self._above.get(node, 0)
        if node in self._cuts:
            by = 0.0
            if isfinite(size):
                by = float(min(max(-round(size), -100), 100))
                gradient, size = gradient * 2.0**by, size + by
            self._totals.append(self._totals[-1] + by)
        place, shift = self._places[node], self._totals[above]
        if place is not None:
            self.layers[place].delta = gradient
            self.shifts[place], self.sizes[place] = shift, size - shift
        return gradient


def _below(node: Node) -> list[Node]:
    return [one for one, _ in node.next_functions if one is not None]


def _downwards(root: Node, layers: set[Node | None]) -> tuple[list[Node], set[Node]]:
    """Return the nodes that lead to some layer, each after all above it; and the set of them."""
    order: list[Node] = []
    leading: set[Node] = set()
    seen: set[Node] = set()
    stack = [(root, False)]
    while stack:
        node, left = stack.pop()
        below = _below(node)
        if left:
            if node in layers or any(one in leading for one in below):
                leading.add(node)
                order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(one, False) for one in below if one not in seen]
    return order[::-1], leading

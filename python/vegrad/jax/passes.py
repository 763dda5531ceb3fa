"""One forward and backward pass of a program, with taps that measure δ and keep it near 1.

Gradients are linear in δ. So at a value that all ways down go through, a power of two may be taken
out for all that lies below. Parameters are handed to the steps between two such cuts as copies of
their own, so that what comes back to each is known to a factor; their sum is the gradient.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.arrays.checks import FloatArray
from vegrad.flow.reading import INPUT
from vegrad.jax.graph import Graph, Node
from vegrad.jax.sizes import log2_of, norm_log2, sums, tapped, times

FLAT = 0.05  # an element is saturated if |φ′| there is below this share of the largest
SHARP, LEAST_KEYS = 0.99, 4  # of attention's weight on one key of several: a flat row


@dataclass(frozen=True)
class Measured:
    """The numbers of a pass; arrays of N nodes and P leaves, sizes in log2."""

    loss: float
    rms: FloatArray
    delta: FloatArray
    passed: FloatArray
    """Size of δ W at the input of a map."""
    mean: FloatArray
    std: FloatArray
    flat: FloatArray
    dead: FloatArray
    gradients: FloatArray
    largest: FloatArray
    """log2 of the largest element of each gradient."""
    sums: Mapping[int, FloatArray]
    """Of each sum: the sizes of its terms, and of both less their means (2, 2)."""


class Pass:
    """A program that is run forward and back, compiled once."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.program = graph, graph.program
        self.nodes = graph.nodes[: graph.end]
        self.places = {one.value: n for n, one in enumerate(self.nodes)}
        self.edges = {one.edge: n for n, one in enumerate(self.nodes) if one.edge is not None}
        self._find_cuts()
        p = self.program
        taken = {
            (n, self.segment.get(place, 0))
            for place, step in enumerate(p.steps)
            for n in step.takes
            if not p.data.isdisjoint(step.makes)
        } | {(p.loss, 0)}
        self.used = sorted({(leaf, cut) for n, cut in taken for leaf in p.parts.get(n, ())})
        self._compiled = jax.jit(self._measure)

    def _find_cuts(self) -> None:
        """Find the values that all ways from the loss down go through, and what lies below each."""
        p = self.program
        self.segment: dict[int, int] = {}
        """By step: how many cuts lie above it, that at its own output among them."""
        self.cuts = list[int]()
        ahead, self.reached = {p.loss}, set(p.parts.get(p.loss, ()))
        """Leaves that a way leads back to from the loss."""
        for place in range(len(p.steps) - 1, -1, -1):
            step = p.steps[place]
            if ahead.isdisjoint(step.makes):
                continue
            if len(ahead) == 1 and step.makes[0] in self.places:
                self.cuts.append(step.makes[0])
            self.segment[place] = len(self.cuts)
            ahead.difference_update(step.makes)
            if step.name != "stop_gradient":
                self.reached |= {leaf for n in step.takes for leaf in p.parts.get(n, ())}
                ahead |= {n for n in step.takes if n in p.data and n in p.learns}

    def run(self, leaves: Sequence[jax.Array], batch: Sequence[jax.Array]) -> Measured:
        """Measure a pass with these leaves, on this batch."""
        found = self._compiled(list(leaves), list(batch))
        found = jax.tree.map(lambda one: np.asarray(one, np.float64), found)
        loss, nodes, delta, passed, gradients, largest, several = found
        top, squares, total, flat, dead, count = nodes.reshape(-1, 6).T
        with np.errstate(all="ignore"):
            rms = np.log2(top) + np.log2(squares / count) / 2
            mean, std = top * total / count, squares / count - (total / count) ** 2
            std = top * np.sqrt(np.maximum(std, 0.0))
        rms[top == 0] = -np.inf
        shares = mean, std, flat, dead
        return Measured(float(loss), rms, delta, passed, *shares, gradients, largest, several)

    def _measure(self, leaves: list[jax.Array], batch: list[jax.Array]) -> tuple[object, ...]:
        given = {use: leaves[use[0]] for use in self.used}
        told = [[jnp.zeros(3)] * len(self.nodes)] * 2
        loss, back, seen = jax.vjp(
            lambda own, taps: self._forward(own, batch, taps), given, told, has_aux=True
        )
        gradients, told = back(jnp.ones_like(loss))
        told = jnp.stack([_stacked(one, 3) for one in told])
        cuts = np.array([self.places[n] for n in self.cuts], int)
        totals = jnp.append(0.0, jnp.cumsum(told[0, cuts, 2]))
        above = [self._above(one) for one in self.nodes]
        below = [0 if one.edge is None else self.segment.get(one.edge[0], 0) for one in self.nodes]
        shifts = totals[np.array([above, below], int)]
        deltas = log2_of(told) - shifts
        sizes = [self._joined(n, gradients, totals) for n in range(len(leaves))]
        several, shift = (jnp.stack(one) for one in zip(*sizes, strict=True))
        norms, largest = log2_of(several) - shift, jnp.log2(several[:, 0]) - shift
        return (loss, seen["nodes"], *deltas, norms, largest, seen["sums"])

    def _above(self, node: Node) -> int:
        """Return how many cuts lie above what a node makes."""
        maker = self.program.maker[node.value]
        return self.segment.get(maker, 0) - (node.value in self.cuts)

    def _joined(
        self, leaf: int, gradients: Mapping[tuple[int, int], jax.Array], totals: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Return the sums of a leaf's gradient, and log2 of what that was multiplied with."""
        parts = [(gradients[use], totals[use[1]]) for use in self.used if use[0] == leaf]
        if not parts:
            return jnp.zeros(3), jnp.float32(0.0)
        if len(parts) == 1:
            ((one, shift),) = parts
            return sums(one), shift
        top = jnp.max(jnp.stack([jnp.log2(jnp.max(jnp.abs(one))) - shift for one, shift in parts]))
        top = jnp.where(jnp.isfinite(top), jnp.round(top), 0.0)
        whole = sum(
            times(one.astype(jnp.promote_types(one.dtype, jnp.float32)), -shift - top)
            for one, shift in parts
        )
        return sums(whole), -top

    # Forward ------------------------------------------------------------------------------------

    def _forward(
        self,
        given: Mapping[tuple[int, int], jax.Array],
        batch: Sequence[jax.Array],
        told: Sequence[Sequence[jax.Array]],
    ) -> tuple[jax.Array, dict[str, object]]:
        p = self.program
        values = dict(zip(range(p.leaves, p.leaves + p.batch), batch, strict=True))
        held: dict[tuple[int, int], jax.Array] = dict(given)

        def read(value: int, segment: int) -> jax.Array:
            if value in values:
                return values[value]
            if value in p.constants:
                return p.constants[value]
            if (value, segment) not in held:  # it is made of parameters alone
                step = p.steps[p.maker[value]]
                made = step.run([read(n, segment) for n in step.takes])
                held.update(((n, segment), one) for n, one in zip(step.makes, made, strict=True))
            return held[value, segment]

        for place, step in enumerate(p.steps):
            if any(n in p.parts for n in step.makes):
                continue
            taken = [read(n, self.segment.get(place, 0)) for n in step.takes]
            for side, one in enumerate(taken):
                if (place, side) in self.edges and step.takes[side] in p.learns:
                    taken[side] = tapped(one, told[1][self.edges[place, side]], False)
            for n, one in zip(step.makes, step.run(taken), strict=True):
                values[n] = one
                if n in self.places and n in p.learns:
                    values[n] = tapped(one, told[0][self.places[n]], n in self.cuts)
        seen = {
            "nodes": _stacked([self._numbers(one, values) for one in self.nodes], 6),
            "sums": {n: self._terms(one, values) for n, one in enumerate(self.nodes) if one.terms},
        }
        return read(p.loss, 0), seen

    def _numbers(self, node: Node, values: Mapping[int, jax.Array]) -> jax.Array:
        """Return the sums of what a node makes, its flat and dead shares, and its elements."""
        made = jax.lax.stop_gradient(values[node.value])
        if not jnp.issubdtype(made.dtype, jnp.floating) or not made.size:
            return jnp.full(6, jnp.nan)
        flat, dead = jnp.float32(jnp.nan), jnp.float32(0.0)
        if node.root != INPUT:
            flat, dead = self._flatness(node, jax.lax.stop_gradient(values[node.root]))
        elif node.kind == "softmax" and made.ndim > 2 and made.shape[-1] >= LEAST_KEYS:
            flat = jnp.mean(jnp.max(made, axis=-1) > SHARP)
        return jnp.stack([*sums(made), flat, dead, jnp.float32(made.size)])

    def _flatness(self, node: Node, at: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Return the shares of saturated elements and of dead units of an activation."""
        apply = self.program.apply
        _, slopes = jax.jvp(lambda z: apply(node.root, node.value, z), (at,), (jnp.ones_like(at),))
        sizes = jnp.abs(slopes.astype(jnp.float32))
        known = ACTIVATIONS.get(node.kind)
        largest = jnp.max(sizes) if known is None else known.largest_slope
        maker = self.graph.at.get(node.root, INPUT)
        units = self.nodes[maker].units if maker != INPUT else ()
        axes = tuple(n for n in range(at.ndim) if n not in (units or (at.ndim - 1,)))
        return jnp.mean(sizes < FLAT * largest), jnp.mean((sizes == 0).all(axis=axes))

    def _terms(self, node: Node, values: Mapping[int, jax.Array]) -> jax.Array:
        """Return log2 of a row's size in both terms of a sum, and of both less their means."""
        found = []
        for one in (jax.lax.stop_gradient(values[n]) for n in node.terms):
            wide = one.astype(jnp.promote_types(one.dtype, jnp.float32))
            # A row is an image, or a token.
            rows = (
                wide.reshape(len(wide), -1)
                if wide.ndim == 4
                else wide.reshape(-1, *wide.shape[-1:])
            )
            for some in (rows, rows - rows.mean(axis=0)):
                sizes = jax.vmap(norm_log2)(some) - np.log2(max(some.shape[1], 1)) / 2
                found.append(jnp.median(sizes))
        return jnp.stack(found).reshape(2, 2)


def _stacked(rows: Sequence[jax.Array], width: int) -> jax.Array:
    """Return rows as one array, also if there are none."""
    return jnp.stack(rows) if rows else jnp.zeros((0, width))

"""One forward and backward pass of a program, step by step, right where its dtype ends.

Each step is compiled alone, once for all that are like it, so that depth costs no compiling. An
array whose largest number is far from 1 goes on as numbers near 1 times a power of two. Through a
product, a quotient, a sum or a maximum such a power goes exactly, a linear function lets it pass,
and tanh does where it is next to linear; which of this a step does, it shows on its own inputs
(`powers_of`). Where none is true (exp, the sigmoid) the numbers are what the dtype has of them,
at most its largest. Going back all is linear in δ, and the power goes along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log2, nan, sqrt
from typing import NamedTuple

import jax
import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.reading import INPUT
from vegrad.jax.graph import Graph, Node
from vegrad.jax.scaled import Scaled, highest, powers_of, wide_of
from vegrad.jax.steps import Block

FLAT = 0.05  # an element is saturated if |φ′| there is below this share of the largest
SHARP, LEAST_KEYS = 0.99, 4  # of attention's weight on one key of several: a flat row
MASKED = -1e4  # what is lower is a mask, and no product of query and key


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
    keys: FloatArray
    """Share of their size by which the logits of attention differ from key to key."""
    empty: FloatArray
    """1 of a softmax with a row of nothing but -inf."""
    gradients: FloatArray
    largest: FloatArray
    """log2 of the largest element of each gradient."""
    sums: Mapping[int, FloatArray]
    """Of each sum: the sizes of its terms, and of both less their means (2, 2)."""
    reached: frozenset[int]
    """Numbers of the leaves that a way leads back to from the loss."""


class Ran(NamedTuple):
    """A block as it ran."""

    block: Block
    given: list[Array]
    powers: list[int]
    """Of what it was given."""
    power: int
    """Of what it made of that."""


class Pass:
    """A program that is run forward and back."""

    def __init__(self, graph: Graph, blind: bool = False) -> None:
        """Cut a program into blocks.

        Args:
            graph: of the program.
            blind: look at no node.
        """
        self.graph, self.program = graph, graph.program
        self.nodes = [] if blind else graph.nodes[: graph.end]
        p, edges = self.program, [(n, one.edge) for n, one in enumerate(self.nodes) if one.edge]
        self.edges = {(p.steps[place], p.steps[place].takes[n]): one for one, (place, n) in edges}
        """The maps, by their steps and the values that come into these."""
        kept = {*p.results, *(value for _, value in self.edges), *(one.value for one in self.nodes)}
        kept.update(*(one.terms for one in self.nodes))
        kept.update(*(one.takes for one in p.steps if one.name == "scan"))
        self.blocks = p.blocks(frozenset(kept))

    def run(self, leaves: Sequence[jax.Array], batch: Sequence[jax.Array]) -> Measured:
        """Measure a pass with these leaves, on this batch."""
        p = self.program
        values, ran = self.forward([*leaves, *batch])
        loss = values[p.loss]
        deltas = {p.loss: Scaled(np.ones((), loss.values.dtype))}
        passed = self.back(ran, deltas)
        none = Scaled(np.zeros(1))
        seen = _rows([self.numbers(one, values) for one in self.nodes], 7)
        rms, mean, std, flat, dead, keys, empty = seen
        sizes = [deltas.get(n, none) for n in range(p.leaves)]
        gradients, largest = _rows([(one.norm, one.largest) for one in sizes], 2)
        return Measured(
            loss.number,
            rms,
            _row(deltas.get(one.value, none).norm for one in self.nodes),
            _row(passed.get(n, -inf) for n in range(len(self.nodes))),
            mean,
            std,
            flat,
            dead,
            keys,
            empty,
            gradients,
            largest,
            {n: self._terms(one, values) for n, one in enumerate(self.nodes) if one.kind == "add"},
            frozenset(n for n in range(p.leaves) if n in deltas),
        )

    # Forward ------------------------------------------------------------------------------------

    def forward(self, given: Sequence[jax.Array | Scaled]) -> tuple[dict[int, Scaled], list[Ran]]:
        """Run the program on leaves and a batch; return its values, and how it ran."""
        held = {**dict(enumerate(given)), **self.program.constants}
        several = {n: one if isinstance(one, Scaled) else Scaled(one) for n, one in held.items()}
        values = {n: one.settled() for n, one in several.items()}
        return values, [one for block in self.blocks for one in self._forward(block, values)]

    def _forward(self, block: Block, values: dict[int, Scaled]) -> list[Ran]:
        """Run a block, and add what it makes to the values.

        One that has to do with numbers far from 1 is run step by step.
        """
        taken = [values[n] for n in block.takes]
        single, powers, power = len(block.steps) == 1, [0] * len(taken), 0
        if any(one.power for one in taken):
            if not single:
                return self._singly(block, values)
            powers, power = powers_of(block, taken)
        given = [one.at(by) for one, by in zip(taken, powers, strict=True)]
        made = [Scaled(one) for one in block.code.run(given)]
        if not single and not all(one.usual for one in made):
            return self._singly(block, values)
        for n, one in zip(block.makes, made, strict=True):
            values[n] = one.settled(power) if one.real else one
        return [Ran(block, given, powers, power)]

    def _singly(self, block: Block, values: dict[int, Scaled]) -> list[Ran]:
        steps = (Block.of([one]) for one in block.steps)
        return [ran for one in steps for ran in self._forward(one, values)]

    # Back ---------------------------------------------------------------------------------------

    def back(self, ran: Iterable[Ran], deltas: dict[int, Scaled]) -> dict[int, float]:
        """Add δ of all that lies below some values to theirs.

        Returns:
            The sizes of what comes to the inputs of maps.
        """
        p, passed = self.program, dict[int, float]()
        for block, given, powers, power in reversed([*ran]):
            made = [n for n, value in enumerate(block.makes) if value in deltas]
            wanted = [n for n, value in enumerate(block.takes) if value in p.learns]
            if not made or not wanted or block.steps[0].name == "stop_gradient":
                continue
            several = [deltas[block.makes[n]] for n in made]
            top = highest(several)
            above = {n: one.at(top) for n, one in zip(made, several, strict=True)}
            for n, one in zip(wanted, block.code.back(given, wanted, above), strict=True):
                value, found = block.takes[n], Scaled(one).settled(top + power - powers[n])
                for step in block.steps:
                    if (step, value) in self.edges:
                        passed[self.edges[step, value]] = found.norm
                deltas[value] = deltas[value].plus(found) if value in deltas else found
        return passed

    # What is seen -------------------------------------------------------------------------------

    def numbers(self, node: Node, values: Mapping[int, Scaled]) -> tuple[float, ...]:
        """Return size, mean and deviation of what a node makes, and what lets little through there.

        That is the shares of what is flat and of dead units, and of a softmax how far keys differ
        and whether a row is empty.
        """
        made = values[node.value]
        if not made.real or not made.values.size:
            return (nan,) * 7
        flat, dead, keys, empty = nan, 0.0, nan, 0.0
        wide = wide_of(made.values)
        size = made.norm - log2(wide.size) / 2
        if node.root != INPUT:
            flat, dead = self._flatness(node, made, values[node.root])
        elif node.kind == "softmax":
            flat, keys, empty = _attention(node, wide, values[node.terms[0]])
        with np.errstate(all="ignore"):
            mean = float(np.ldexp(wide.mean(), made.power))
            std = sqrt(max(float(np.exp2(2 * size)) - mean * mean, 0.0))
        return size, mean, std, flat, dead, keys, empty

    def _flatness(self, node: Node, made: Scaled, root: Scaled) -> tuple[float, float]:
        """Return the shares of saturated elements and of dead units of an activation."""
        piece = self.program.piece(node.root, node.value)
        given = [self.program.constants.get(n, root.at(0)) for n in piece.takes]
        ones = {0: np.ones(made.values.shape, made.values.dtype)}
        (found,) = piece.code.back(given, [piece.takes.index(node.root)], ones)
        slopes = np.abs(wide_of(found))
        known = ACTIVATIONS.get(node.kind)
        largest = slopes.max() if known is None else known.largest_slope
        maker = self.graph.at.get(node.root, INPUT)
        units = self.nodes[maker].units if maker != INPUT else ()
        axes = tuple(n for n in range(slopes.ndim) if n not in (units or (slopes.ndim - 1,)))
        return float(np.mean(slopes < FLAT * largest)), float(np.mean((slopes == 0).all(axis=axes)))

    def _terms(self, node: Node, values: Mapping[int, Scaled]) -> FloatArray:
        """Return log2 of a row's size in both terms of a sum, and of both less their means."""
        found = []
        for one in (values[n] for n in node.terms):
            wide = wide_of(one.values)
            # A row is an image, or a token.
            rows = wide.reshape(len(wide), -1) if wide.ndim == 4 else wide
            rows = rows.reshape(-1, *rows.shape[-1:])
            with np.errstate(all="ignore"):
                for some in (rows, rows - rows.mean(axis=0)):
                    squares = np.einsum("ij,ij->i", some, some) / some.shape[1]
                    size = np.sqrt(np.median(squares))
                    found.append(np.log2(size) + one.power)
        return np.array(found).reshape(2, 2)


def _attention(node: Node, shares: Array, given: Scaled) -> tuple[float, float, float]:
    """Return the share of a softmax's rows that are flat, how far keys differ, 1 for an empty row.

    An empty one, of nothing but -inf, is NaN, even where it is left out later.
    """
    with np.errstate(all="ignore"):
        logits = np.ldexp(wide_of(given.values), given.power)
    if not np.isfinite(shares).all():
        return nan, nan, float((logits == -inf).all(axis=node.axes).any())
    last = node.axes in ((-1,), (shares.ndim - 1,))
    if shares.ndim < 3 or not last or shares.shape[-1] < LEAST_KEYS:
        return nan, nan, 0.0
    flat = float(np.mean(shares.max(axis=-1) > SHARP))
    shown = logits > MASKED
    logits = np.where(shown, logits, 0.0)
    middle = logits.sum(-1, keepdims=True) / np.maximum(shown.sum(-1, keepdims=True), 1)
    size = float(np.linalg.norm(logits))
    apart = float(np.linalg.norm(np.where(shown, logits - middle, 0.0)))
    return flat, apart / size if size else nan, 0.0


def _row(values: Iterable[float]) -> FloatArray:
    return np.array([*values], float)


def _rows(columns: Sequence[tuple[float, ...]], count: int) -> FloatArray:
    """Return columns as rows, also if there are none."""
    return np.array(columns, float).reshape(-1, count).T

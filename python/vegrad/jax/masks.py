"""Rows of a softmax of which nothing is left: all of their logits are -inf."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite

import jax
import numpy as np

from vegrad.jax.graph import Graph, Node
from vegrad.jax.passes import Measured, Pass
from vegrad.jax.scaled import wide_of


def masked(
    graph: Graph, pass_: Measured, leaves: Sequence[jax.Array], batch: Sequence[jax.Array]
) -> frozenset[int]:
    """Return the places of softmaxes with such a row, which is NaN even where it is left out later.

    The program is run forward once more, so that only a pass with a NaN is asked for it.
    """
    if isfinite(pass_.loss) and (pass_.gradients < inf).all():
        return frozenset()
    found = {n: _logits(graph, one) for n, one in enumerate(graph.nodes) if one.kind == "softmax"}
    if not found:
        return frozenset()
    logits = [value for value, _ in found.values()]
    values, _ = Pass(graph, blind=True, also=logits).forward([*leaves, *batch])
    return frozenset(
        n
        for n, (value, axes) in found.items()
        if value in values and (wide_of(values[value].values) == -np.inf).all(axis=axes).any()
    )


def _logits(graph: Graph, node: Node) -> tuple[int, tuple[int, ...]]:
    """Return what a softmax is taken of, before the largest is taken off, and over which axes."""
    program, step = graph.program, graph.program.steps[node.step]
    if step.name != "div":
        return step.takes[0], (-1,)
    value = program.steps[program.maker[step.takes[0]]].takes[0]
    made = program.maker.get(value)
    if made is not None and program.steps[made].name == "sub":
        value = program.steps[made].takes[0]
    return value, graph.reduced[step.takes[1]]

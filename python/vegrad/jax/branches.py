"""The branches of residual streams, x + f(x), among the nodes of a loss."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax

from vegrad.arrays.checks import FloatArray
from vegrad.flow.reading import INPUT, Branch
from vegrad.jax.graph import Graph


class Way(NamedTuple):
    """The way by which a value was made since the last sum of a stream."""

    bases: frozenset[int] = frozenset()
    """Numbers of the inputs, and of the sums of a stream and a branch, that it comes from."""
    trail: tuple[str, ...] = ()
    """Names of the parameters that it has gone through since then."""


def branches_of(
    graph: Graph, leaves: Mapping[str, jax.Array], sums: Mapping[int, FloatArray]
) -> tuple[Branch, ...]:
    """Return the sums of which one term is a stream: all that it comes from is below the other."""
    names, found, ways = list(leaves), list[Branch](), list[Way]()
    nodes = graph.nodes[: graph.end]
    looked_up = {names[leaf] for one in nodes if one.kind == "embedding" for leaf in one.leaves}
    matrices = {name for name, one in leaves.items() if one.ndim > 1}

    def way(places: frozenset[int]) -> Way:
        known = [Way(frozenset([INPUT])) if n == INPUT else ways[n] for n in sorted(places)]
        trail = dict.fromkeys(name for one in known for name in one.trail)
        return Way(frozenset[int]().union(*(one.bases for one in known)), tuple(trail))

    for place, node in enumerate(nodes):
        bases, trail = way(node.below)
        ways.append(Way(bases, (*trail, *(names[leaf] for leaf in node.leaves))))
        if node.kind != "add":
            continue
        terms = [way(graph.near[value]) for value in node.terms]
        below, above = sorted((0, 1), key=lambda n: len(terms[n].trail))
        stream, branch = terms[below], terms[above]
        own = tuple(name for name in branch.trail if name not in stream.trail)
        within = stream.bases and stream.bases <= branch.bases
        if not within or (matrices - looked_up).isdisjoint(own):
            continue
        # The stream goes on as it is, or through a matrix where the width changes.
        passed = set(stream.trail) <= set(branch.trail)
        if passed or matrices.intersection(stream.trail):
            sizes = sums[place]
            three = float(sizes[above, 0]), float(sizes[below, 0]), float(sizes[above, 1])
            found.append(Branch(own, *three, stream.trail))
        if passed:
            ways[place] = Way(frozenset([INPUT - 1 - place]))
    return tuple(found)

"""A pass of a pure loss, written down as a `Reading`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from math import inf, isfinite, log2, nan, prod

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.arrays.checks import FloatArray, range_of
from vegrad.flow.data import Columns, Input, NonFiniteData, same
from vegrad.flow.flow import Flow
from vegrad.flow.reading import (
    INPUT,
    MAPS,
    Chain,
    Layer,
    Module,
    Operation,
    Parameter,
    Reading,
    WhatIf,
)
from vegrad.flow.wording import exp2
from vegrad.jax.branches import branches_of
from vegrad.jax.editor import JaxVocabulary
from vegrad.jax.graph import NORMS, OPAQUE, Graph, Node
from vegrad.jax.passes import Measured, Pass
from vegrad.jax.recurrence import cells_of
from vegrad.jax.tree import Init, Tree, fans, size_of
from vegrad.theory.expected import ExpectedFlow

ROLES = {"linear": "map", "embedding": "table", **dict.fromkeys(NORMS, "norm")}


@dataclass
class Given:
    """A loss that was traced, with the leaves and the batch that it is run on."""

    tree: Tree
    init: Init | None
    seed: int
    batch: list[jax.Array]
    names: tuple[str, ...]
    """Of the parts of the batch."""
    runner: Pass


def outputs_of(graph: Graph, found: Measured, chain: Sequence[int]) -> FloatArray:
    """Return log2 of the size of what each layer makes, its activation included."""
    ends = [n if graph.nodes[n].activation == INPUT else graph.nodes[n].activation for n in chain]
    ends = [n if one >= len(found.rms) else one for n, one in zip(chain, ends, strict=True)]
    return found.rms[ends]


@dataclass
class Reader:
    """A pass of a task as a reading."""

    task: Given
    leaves: Mapping[str, jax.Array]
    found: Measured
    what_if: WhatIf
    draw: Callable[[Sequence[int]], ExpectedFlow | None]

    def __post_init__(self) -> None:
        self.graph = self.task.runner.graph
        self.names = list(self.leaves)
        self.nodes = self.task.runner.nodes
        self.called = called(self.graph, self.names)
        self.data = tuple(not_finite_in(self.task, self.graph))

    def reading(self) -> Reading:
        """Return the reading."""
        found, graph, task = self.found, self.graph, self.task
        tree = replace(task.tree, leaves=self.leaves)
        path = graph.path()
        # Skips go round those to which nothing comes though something comes further down.
        seen = [isfinite(found.delta[n]) for n in path]
        path = [n for k, n in enumerate(path) if seen[k] or not any(seen[:k])]
        why = f" ({graph.foreign})" if graph.foreign else ""
        shape = f"{len(path)} layers" if path else f"no chain of layers{why}"
        about = {
            "loss": f"{len(self.leaves)} parameters, {shape}",
            "parameters": sum(prod(one.shape) for one in self.leaves.values()),
        }
        fresh = None if self.task.init is None else self.task.tree.drawn(self.task.init, 0)
        return Reading(
            vocabulary=JaxVocabulary(),
            about=about,
            dtype=str(next(iter(self.leaves.values())).dtype),
            loss=found.loss,
            operations=tuple(self._operations()),
            parameters=self._parameters(fresh),
            tables=frozenset(
                self.names[leaf]
                for one in self.nodes
                if one.kind == "embedding"
                for leaf in one.leaves
            ),
            chain=self._chain(path) if path else None,
            branches=branches_of(self.graph, self.leaves, self.found.sums),
            modules=() if path else tuple(self._modules()),
            inputs=tuple(inputs_of(self.task, self.graph)),
            cells=tuple(cells_of(tree, task.init, task.seed, task.batch, task.runner)),
            draws_itself=fresh is not None and differs(self.leaves, fresh),
            what_if=self.what_if,
            data=self.data,
        )

    def _operations(self) -> list[Operation]:
        found, made = self.found, list[Operation]()
        program = self.task.runner.program
        bad = any(one.kind == "data" for one in self.data)
        for n, one in enumerate(self.nodes):
            rms, delta = float(found.rms[n]), float(found.delta[n])
            numbers = jnp.issubdtype(program.shapes[one.value].dtype, jnp.floating)
            lost = bool(numbers) and not rms < inf
            edge = "nonfinite-input" if lost and bad and INPUT in one.below else ""
            edge = "detached" if one.kind == "detach" else edge
            edge = "masked-row" if found.empty[n] == 1 else edge
            delta = nan if one.value not in program.learns else inf if delta != delta else delta
            made.append(
                Operation(
                    one.kind,
                    one.path,
                    tuple(sorted(one.below)),
                    tuple(self.names[leaf] for leaf in one.leaves),
                    rms,
                    delta,
                    flat=float(found.flat[n]) if one.kind == "softmax" else nan,
                    keys=float(found.keys[n]),
                    lost=lost,
                    edge=edge,
                )
            )
        top = self.graph.near.get(program.loss, frozenset([len(made) - 1]))
        last = {n for n in top if n < len(made)} or {len(made) - 1}
        return [*made, Operation("loss", "loss", tuple(sorted(last)))]

    def _modules(self) -> Iterator[Module]:
        """Yield the maps and tables of what is no chain, for the words of a healthy one."""
        for n, one in enumerate(self.nodes):
            if one.kind in MAPS or one.kind == "embedding":
                name, found = self.called[one.leaves[0]], self.found
                sizes = found.rms[n], found.delta[n], found.gradients[one.leaves[0]]
                rms, delta, gradient = (exp2(float(size)) for size in sizes)
                yield Module(name, rms, delta, gradient, True)

    def _parameters(self, fresh: Mapping[str, jax.Array] | None) -> dict[str, Parameter]:
        """Return the parameters in the order in which they are used."""
        uses: dict[str, Node] = {}
        for one in self.nodes:
            for leaf in one.leaves:
                uses.setdefault(self.names[leaf], self.graph.within.get(leaf, one))
        ordered = [*uses, *(name for name in self.names if name not in uses)]
        sizes = dict(zip(self.names, self.found.gradients.tolist(), strict=True))
        return {name: self._parameter(name, uses.get(name), sizes[name], fresh) for name in ordered}

    def _parameter(
        self, name: str, use: Node | None, gradient: float, fresh: Mapping[str, jax.Array] | None
    ) -> Parameter:
        leaf, number = self.leaves[name], self.names.index(name)
        values = np.asarray(leaf).astype(np.float64)
        added = number in self.graph.addends
        matrix = leaf.ndim > 1 and not (added and use is not None)
        first = use is not None and self.names[use.leaves[0]] == name
        mapped = use is not None and use.kind in MAPS and first
        role = "" if use is None else ROLES.get("linear" if mapped else use.kind, "")
        if matrix and prod(leaf.shape) and (use is None or use.kind.startswith(OPAQUE)):
            role = "map"  # of a scan, or of what is not read
        scales = use is None and number in self.graph.scales
        if matrix and (added or scales or number in self.graph.factors):
            role = ""
        role = "bias" if not matrix and (role == "" or not first) else role
        both = use.fans if mapped and use is not None else fans(name, leaf) if matrix else (0, 0)
        told = mapped and number not in self.graph.within
        if fresh is not None and matrix and not told and (like := size_of(fresh[name])) > -inf:
            both = (max(round(2.0 ** (-2.0 * like)), 1),) * 2  # as large as init draws it
        bad = NonFiniteData.found_in("data", name, values)
        return Parameter(
            name,
            both[::-1] if mapped else leaf.shape if matrix else (leaf.size,) * (leaf.ndim > 0),
            size_of(leaf),
            mean=float(values.mean()) if role == "bias" and values.size else nan,
            role=role,
            fans=both if role == "map" else (0, 0),
            gradient_log2=gradient,
            nonfinite=None if bad is None else bad.first,
            lost=not gradient < inf,
            reached=number in self.found.reached,
        )

    def _chain(self, path: list[int]) -> Chain:
        graph, found = self.graph, self.found
        nodes = [graph.nodes[n] for n in path]
        flats = [one.activation if one.activation < len(found.rms) else INPUT for one in nodes]
        sizes, passed = found.delta[path], found.passed[path]
        beside = [below in graph.below(n) for below, n in pairwise(path)]
        with np.errstate(invalid="ignore"):
            weights = np.where(beside, passed[1:] - sizes[1:], nan)
        columns = [self.names.index(self.names[one.leaves[0]]) for one in nodes]
        gradient, largest = found.gradients[columns], found.largest[columns]
        with np.errstate(invalid="ignore"):
            activation = sizes[:-1] - sizes[1:] - weights
        kinds = [graph.activation_of(n) for n in path[:-1]]
        norms = [one.norm for one in nodes[:-1]]
        dtype = jnp.finfo(next(iter(self.leaves.values())).dtype)
        least, most = (
            log2(float(dtype.smallest_normal)) - dtype.nmant,
            log2(range_of(str(dtype.dtype))[1]),
        )
        return Chain(
            layers=tuple(map(self._layer, nodes)),
            flow=Flow(
                np.exp2(outputs_of(graph, found, path)),
                found.mean[path],
                found.std[path],
                np.array([0.0 if n == INPUT else found.flat[n] for n in flats]),
                np.array([0.0 if n == INPUT else found.dead[n] for n in flats]),
                sizes,
                gradient,
                weights,
                activation,
            ),
            activation=max(kinds, key=kinds.count, default="identity"),
            output=graph.activation_of(path[-1]),
            norm=max(norms, key=norms.count, default=None),
            residual=any(len(graph.below(n)) > 1 for n in path),
            draw=partial(self.draw, path),
            underflowed=tuple(np.flatnonzero(np.isfinite(gradient) & (largest < least)).tolist()),
            overflowed=tuple(np.flatnonzero((gradient < inf) & (largest >= most)).tolist()),
            begun=tuple(k for k, n in enumerate(path) if self._begins(n, k == len(path) - 1)),
            cut=next((k for k, size in enumerate(sizes) if size > -inf), 0),
            exact=False,
        )

    def _begins(self, place: int, last: bool) -> bool:
        """Return True if a map's weights are 0 by design: a head, or the end of a branch."""
        leaf = self.graph.nodes[place].leaves[0]
        zero = size_of(self.leaves[self.names[leaf]]) == -inf
        return zero and self.found.gradients[leaf] > -inf and last

    def _layer(self, node: Node) -> Layer:
        own = [self.names[leaf] for leaf in node.leaves]
        added = self.graph.addends
        few = (n for n in node.leaves[1:] if self.leaves[self.names[n]].ndim < 2 or n in added)
        bias = next((self.names[n] for n in few), None)
        width = (
            node.fans[1]
            if node.kind == "linear"
            else self.graph.program.shapes[node.value].shape[node.units[0]]
        )
        name = self.called[node.leaves[0]]
        return Layer(name, own[0], bias, node.norm, width, node.kind, node.rescaled)


def called(graph: Graph, names: Sequence[str]) -> dict[int, str]:
    """Return how the layer of each weight is called: its module, if that has no other weight."""
    kinds = (*MAPS, "embedding")
    own = dict.fromkeys(one.leaves[0] for one in graph.nodes if one.kind in kinds)
    modules = [names[n].rpartition(".")[0] for n in own]
    return {
        n: module if module and modules.count(module) == 1 else names[n]
        for n, module in zip(own, modules, strict=True)
    }


# The batch and the trees drawn anew ---------------------------------------------------------------


def inputs_of(task: Given, graph: Graph) -> Iterator[Input]:
    """Measure the numbers that go into the model."""
    into = graph.entering()
    for n, (name, one) in enumerate(zip(task.names, task.batch, strict=True)):
        if n in into and jnp.issubdtype(one.dtype, jnp.floating) and one.size and one.ndim:
            values = np.asarray(one).astype(np.float64)
            with np.errstate(all="ignore"):
                rms, mean = float(np.sqrt(np.mean(values**2))), float(values.mean())
            rows = values.ndim == 2
            columns = Columns.of(values) if rows else None
            yield Input(name, rms, mean, same(values) if rows else 0, columns)


def not_finite_in(task: Given, graph: Graph) -> Iterator[NonFiniteData]:
    """Find what of the batch is not finite: inputs, and what only the loss takes."""
    into = graph.entering()
    for n, (name, one) in enumerate(zip(task.names, task.batch, strict=True)):
        if jnp.issubdtype(one.dtype, jnp.floating):
            values = np.asarray(one).astype(np.float64)
            found = NonFiniteData.found_in("data" if n in into else "target", name, values)
            if found is not None:
                yield found


def differs(leaves: Mapping[str, jax.Array], fresh: Mapping[str, jax.Array]) -> bool:
    """Return True if matrices are of another size than `init` draws them."""
    known = ((size_of(fresh[name]), size_of(one)) for name, one in leaves.items() if one.ndim > 1)
    return any(abs(new - old) > 1.0 for new, old in known if isfinite(old))

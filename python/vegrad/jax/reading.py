"""Read a pure loss: run it forward and back, and write down what that tells as a `Reading`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, isfinite, log2, nan, prod

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.arrays.checks import FloatArray, range_of
from vegrad.flow.data import Columns, Input, NonFiniteData, same
from vegrad.flow.edits import Edit, ScaleData, parts
from vegrad.flow.flow import Flow
from vegrad.flow.reading import (
    INPUT,
    MAPS,
    Branch,
    Chain,
    Effect,
    Layer,
    Operation,
    Parameter,
    Reading,
)
from vegrad.flow.subject import Refusal
from vegrad.jax.editor import JaxVocabulary, edited
from vegrad.jax.graph import NORMS, Graph, Node, spread
from vegrad.jax.passes import Measured, Pass
from vegrad.jax.program import Program
from vegrad.jax.tree import Init, Tree, check_leaf, fans, not_finite
from vegrad.theory.expected import ExpectedFlow

DRAWS = 8
ROLES = {"linear": "map", "embedding": "table", **dict.fromkeys(NORMS, "norm")}
Loss = Callable[..., jax.Array]


@dataclass
class Task:
    """A loss, traced once, with the leaves and the batch that it is run on."""

    tree: Tree
    init: Init | None
    seed: int
    batch: list[jax.Array]
    names: tuple[str, ...]
    """Of the parts of the batch."""
    runner: Pass
    passes: int = 0
    """How many what-ifs have been run."""
    known: dict[str, Measured] = field(default_factory=dict)

    @classmethod
    def of(
        cls, loss: Loss, params: object, batch: Sequence[object], init: Init | None, seed: int
    ) -> Task:
        """Trace a loss.

        Raises:
            TypeError: for a leaf that is no array, or a loss that returns anything but one number.
            ValueError: for a loss that depends on no parameter, or a tree without arrays.
        """
        tree = Tree.of(params)
        flat, form = jax.tree_util.tree_flatten(tuple(batch))
        names = _names(loss, batch)
        for name, one in zip(names, flat, strict=True):
            if not isinstance(one, int | float):
                check_leaf(one, name)

        def pure(leaves: list[jax.Array], rows: list[jax.Array]) -> jax.Array:
            given = tree.joined(dict(zip(tree.leaves, leaves, strict=True)))
            return _checked(loss(given, *jax.tree_util.tree_unflatten(form, rows)))

        rows = [jnp.asarray(one) for one in flat]
        closed = jax.make_jaxpr(pure)(list(tree.leaves.values()), rows)
        program = Program.of(closed, len(tree.leaves), len(rows))
        if program.loss not in program.learns:
            raise ValueError("loss must return a loss that depends on params")
        return cls(tree, init, seed, rows, names, Pass(Graph(program)))

    def measured(self, leaves: Mapping[str, jax.Array]) -> Measured:
        """Return what a pass with these leaves shows."""
        return self.runner.run(list(leaves.values()), self.batch)

    def read(self, leaves: Mapping[str, jax.Array]) -> Reading:
        """Return the reading of the loss with these leaves."""
        return Reader(self, leaves, self.measured(leaves)).reading()

    def drawn(self, chain: Sequence[int]) -> ExpectedFlow | None:
        """Return mean and spread of the flow over trees drawn anew."""
        found = list[tuple[FloatArray, ...]]()
        for number in range(DRAWS):
            fresh = self.tree.drawn(self.init, self.seed + 1 + number)
            sizes = self.measured({n: one * jnp.any(self.tree.leaves[n] != 0).astype(one.dtype)
                                   for n, one in fresh.items()})  # fmt: skip
            rms, delta = _outputs(self.runner.graph, sizes, chain), sizes.delta[list(chain)]
            with np.errstate(invalid="ignore"):
                found.append((rms, delta - delta[-1], delta[:-1] - delta[1:]))
        rms, delta, gains = (np.array(one) for one in zip(*found, strict=True))
        if not np.isfinite(delta).all():
            return None
        means = (2.0 ** rms.mean(axis=0), spread(rms), delta.mean(axis=0), spread(delta))
        return ExpectedFlow(*means, gains.mean(axis=0), spread(gains))

    # What if ------------------------------------------------------------------------------------

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done; None if it cannot be."""
        changed = self._changed(edit)
        if changed is None:
            return None
        task, leaves = changed
        found = task.measured(leaves)
        sizes = dict(zip(leaves, found.gradients.tolist(), strict=True))
        return Effect(found.loss, sizes)

    def reading(self, edit: Edit) -> Reading | None:
        """Read the loss as if this had been done."""
        changed = self._changed(edit)
        return None if changed is None else changed[0].read(changed[1])

    def _changed(self, edit: Edit | None) -> tuple[Task, Mapping[str, jax.Array]] | None:
        self.passes += 1
        done = parts(edit) if edit is not None else ()
        task, values = self, [one for one in done if not isinstance(one, ScaleData)]
        if len(values) < len(done):
            into = self.runner.graph.entering()
            batch = [_scaled(one) if n in into else one for n, one in enumerate(self.batch)]
            task = replace(self, batch=batch)
        leaves: Mapping[str, jax.Array] | Refusal = self.tree.leaves
        for one in values:
            leaves = edited(replace(self.tree, leaves=leaves), one, self.init, self.seed)
            if isinstance(leaves, Refusal):
                return None
        return task, leaves


def _names(loss: Loss, batch: Sequence[object]) -> tuple[str, ...]:
    """Name the parts of a batch as the loss does: x, y, batch["image"]."""
    try:
        known = list(inspect.signature(loss).parameters.values())[1:]
    except (TypeError, ValueError):
        known = []
    single = [one.name for one in known if one.kind is not one.VAR_POSITIONAL]
    single += [f"batch[{n}]" for n in range(len(single), len(batch))]
    return tuple(
        name + jax.tree_util.keystr(path)
        for name, one in zip(single, batch, strict=False)
        for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]
    )


def _checked(loss: object) -> jax.Array:
    """Return a loss as one number; raise TypeError for anything else."""
    wanted = "loss must return one number, the mean loss"
    if isinstance(loss, tuple | list | dict):
        hint = ": leave out what has_aux=True would take, lambda *args: loss(*args)[0]"
        kind = f"{type(loss).__name__} of {len(loss)}"
        raise TypeError(f"{wanted}, not a {kind}{hint if isinstance(loss, tuple) else ''}")
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"{wanted}, not {getattr(loss, 'dtype', type(loss).__name__)}")
    if loss.size != 1:
        raise TypeError(f"{wanted}, not an array of the shape {loss.shape}: take its mean()")
    return loss.reshape(())


def _scaled(values: jax.Array) -> jax.Array:
    """Return columns of mean 0 and standard deviation 1."""
    if values.ndim < 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    axes = tuple(range(values.ndim - 1))
    std = values.std(axis=axes, keepdims=True)
    return (values - values.mean(axis=axes, keepdims=True)) / jnp.where(std > 0, std, 1.0)


def _outputs(graph: Graph, found: Measured, chain: Sequence[int]) -> FloatArray:
    """Return log2 of the size of what each layer makes, its activation included."""
    ends = [n if graph.nodes[n].activation == INPUT else graph.nodes[n].activation for n in chain]
    ends = [n if one >= len(found.rms) else one for n, one in zip(chain, ends, strict=True)]
    return found.rms[ends]


@dataclass
class Reader:
    """A pass of a task as a reading."""

    task: Task
    leaves: Mapping[str, jax.Array]
    found: Measured

    def __post_init__(self) -> None:
        self.graph = self.task.runner.graph
        self.names = list(self.leaves)
        self.nodes = self.task.runner.nodes

    def reading(self) -> Reading:
        """Return the reading."""
        found, graph = self.found, self.graph
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
                self.names[leaf] for one in self.nodes if one.kind == "embedding"
                for leaf in one.leaves
            ),  # fmt: skip
            chain=self._chain(path) if path else None,
            branches=tuple(self._branches()),
            inputs=tuple(self._inputs()),
            draws_itself=fresh is not None and self._differs(fresh),
            what_if=self.task,
            data=tuple(self._data()),
        )

    def _operations(self) -> list[Operation]:
        found, made = self.found, list[Operation]()
        for n, one in enumerate(self.nodes):
            measured = one.value in self.task.runner.program.learns
            delta = float(found.delta[n]) if measured else nan
            made.append(
                Operation(
                    one.kind,
                    one.path,
                    tuple(sorted(one.below)),
                    tuple(self.names[leaf] for leaf in one.leaves),
                    float(found.rms[n]),
                    delta if delta == delta or not measured else inf,
                    flat=float(found.flat[n]) if one.kind == "softmax" else nan,
                    lost=not found.rms[n] < inf and not np.isnan(found.std[n]) | measured,
                )
            )
        program = self.task.runner.program
        top = self.graph.near.get(program.loss, frozenset([len(made) - 1]))
        last = {n for n in top if n < len(made)} or {len(made) - 1}
        return [*made, Operation("loss", "loss", tuple(sorted(last)))]

    def _parameters(self, fresh: Mapping[str, jax.Array] | None) -> dict[str, Parameter]:
        """Return the parameters in the order in which they are used."""
        uses: dict[str, Node] = {}
        for one in self.nodes:
            for leaf in one.leaves:
                uses.setdefault(self.names[leaf], one)
        ordered = [*uses, *(name for name in self.names if name not in uses)]
        sizes = dict(zip(self.names, self.found.gradients.tolist(), strict=True))
        return {name: self._parameter(name, uses.get(name), sizes[name], fresh) for name in ordered}

    def _parameter(
        self, name: str, use: Node | None, gradient: float, fresh: Mapping[str, jax.Array] | None
    ) -> Parameter:
        leaf = self.leaves[name]
        values = np.asarray(leaf).astype(np.float64)
        matrix = leaf.ndim > 1
        first = use is not None and self.names[use.leaves[0]] == name
        mapped = use is not None and use.kind in MAPS and first
        role = "" if use is None else ROLES.get("linear" if mapped else use.kind, "")
        if use is None and matrix and prod(leaf.shape):
            role = "map"  # of a scan, or of what is not read
        role = "bias" if not matrix and (role == "" or not first) else role
        both = use.fans if mapped and use is not None else fans(name, leaf) if matrix else (0, 0)
        if fresh is not None and matrix and not mapped and (like := _size(fresh[name])) > -inf:
            both = (max(round(2.0 ** (-2.0 * like)), 1),) * 2  # as large as init draws it
        bad = not_finite("data", name, values)
        return Parameter(
            name,
            both[::-1] if mapped else leaf.shape,
            _size(leaf),
            mean=float(values.mean()) if role == "bias" and values.size else nan,
            role=role,
            fans=both if role == "map" else (0, 0),
            gradient_log2=gradient,
            nonfinite=None if bad is None else bad.first,
            lost=not gradient < inf,
            reached=self.names.index(name) in {leaf for leaf, _ in self.task.runner.used},
        )

    def _chain(self, path: list[int]) -> Chain:
        graph, found = self.graph, self.found
        nodes = [graph.nodes[n] for n in path]
        flats = [one.activation if one.activation < len(found.rms) else INPUT for one in nodes]
        sizes, passed = found.delta[path], found.passed[path]
        beside = [below in graph.below(n) for below, n in zip(path, path[1:], strict=False)]
        weights = np.where(beside, passed[1:] - sizes[1:], nan)
        columns = [self.names.index(self.names[one.leaves[0]]) for one in nodes]
        gradient, largest = found.gradients[columns], found.largest[columns]
        with np.errstate(invalid="ignore"):
            activation = sizes[:-1] - sizes[1:] - weights
        kinds = [graph.activation_of(n) for n in path[:-1]]
        norms = [one.norm for one in nodes[:-1]]
        dtype = jnp.finfo(next(iter(self.leaves.values())).dtype)
        least, most = log2(float(dtype.smallest_normal)) - dtype.nmant, log2(range_of(str(dtype.dtype))[1])
        return Chain(
            layers=tuple(map(self._layer, nodes)),
            flow=Flow(
                np.exp2(_outputs(graph, found, path)),
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
            draw=partial(self.task.drawn, path),
            underflowed=tuple(np.flatnonzero(np.isfinite(gradient) & (largest < least)).tolist()),
            overflowed=tuple(np.flatnonzero((gradient < inf) & (largest >= most)).tolist()),
            begun=tuple(k for k, n in enumerate(path) if self._begins(n, k == len(path) - 1)),
            cut=next((k for k, size in enumerate(sizes) if size > -inf), 0),
            exact=False,
        )

    def _begins(self, place: int, last: bool) -> bool:
        """Return True if a map's weights are 0 by design: a head, or the end of a branch."""
        leaf = self.graph.nodes[place].leaves[0]
        zero = _size(self.leaves[self.names[leaf]]) == -inf
        return zero and self.found.gradients[leaf] > -inf and last

    def _layer(self, node: Node) -> Layer:
        own = [self.names[leaf] for leaf in node.leaves]
        bias = next((name for name in own[1:] if self.leaves[name].ndim < 2), None)
        width = node.fans[1] if node.kind == "linear" else self.graph.program.shapes[node.value].shape[node.units[0]]
        name = own[0].rpartition(".")[0] or own[0]
        return Layer(name, own[0], bias, node.norm, width, node.kind, node.rescaled)

    def _branches(self) -> list[Branch]:
        """Return the sums x + f(x) of which x is a stream: what it comes from is below f too."""
        found = list[Branch]()
        trails: list[tuple[frozenset[int], tuple[str, ...]]] = []
        new = 0
        matrices = {name for name, one in self.leaves.items() if one.ndim > 1}
        tables = {self.names[leaf] for one in self.nodes if one.kind == "embedding"
                  for leaf in one.leaves}  # fmt: skip

        def way(places: frozenset[int]) -> tuple[frozenset[int], tuple[str, ...]]:
            known = [(frozenset([INPUT]), ()) if n == INPUT else trails[n] for n in sorted(places)]
            names = dict.fromkeys(name for _, several in known for name in several)
            return frozenset[int]().union(*(base for base, _ in known)), tuple(names)

        for n, one in enumerate(self.nodes):
            base, names = way(one.below)
            trails.append((base, (*names, *(self.names[leaf] for leaf in one.leaves))))
            if not one.terms:
                continue
            ends = [way(self.graph.near[value]) for value in one.terms]
            stream, branch = sorted((0, 1), key=lambda k: len(ends[k][1]))
            own = tuple(name for name in ends[branch][1] if name not in ends[stream][1])
            within = ends[stream][0] and ends[stream][0] <= ends[branch][0]
            if not within or (matrices - tables).isdisjoint(own):
                continue
            passed = set(ends[stream][1]) <= set(ends[branch][1])
            sizes = self.found.sums[n]
            if passed or matrices & {*ends[stream][1]}:
                both = float(sizes[branch, 0]), float(sizes[stream, 0]), float(sizes[branch, 1])
                found.append(Branch(own, *both, ends[stream][1]))
            if passed:
                new -= 1
                trails[n] = frozenset([new + INPUT]), ()
        return found

    # The batch and the trees drawn anew -----------------------------------------------------------

    def _inputs(self) -> list[Input]:
        """Measure the numbers that go into the model."""
        into, pairs = self.graph.entering(), zip(self.task.names, self.task.batch, strict=True)
        found = list[Input]()
        for n, (name, one) in enumerate(pairs):
            if n in into and jnp.issubdtype(one.dtype, jnp.floating) and one.size and one.ndim:
                values = np.asarray(one).astype(np.float64)
                with np.errstate(all="ignore"):
                    rms, mean = float(np.sqrt(np.mean(values**2))), float(values.mean())
                rows = values.ndim == 2
                columns = Columns.of(values) if rows else None
                found.append(Input(name, rms, mean, same(values) if rows else 0, columns))
        return found

    def _data(self) -> list[NonFiniteData]:
        into = self.graph.entering()
        several = zip(self.task.names, self.task.batch, strict=True)
        found = [
            not_finite("data" if n in into else "target", name, np.asarray(one).astype(np.float64))
            for n, (name, one) in enumerate(several)
            if jnp.issubdtype(one.dtype, jnp.floating)
        ]
        return [one for one in found if one is not None]

    def _differs(self, fresh: Mapping[str, jax.Array]) -> bool:
        """Return True if leaves are of another size than `init` draws them."""
        return any(
            abs(_size(fresh[name]) - _size(one)) > 1.0
            for name, one in self.leaves.items()
            if one.ndim > 1 and isfinite(_size(one))
        )


def _size(leaf: jax.Array) -> float:
    """Return log2 of the root mean square of a leaf: -inf of zeros, and of what is not finite."""
    values = np.asarray(leaf).astype(np.float64)
    with np.errstate(all="ignore"):
        top = float(np.abs(values).max(initial=0.0))
        if not 0 < top < inf:
            return -inf
        return log2(top) + log2(float(np.mean((values / top) ** 2))) / 2

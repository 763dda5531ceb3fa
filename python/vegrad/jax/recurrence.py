"""Scans as recurrent cells: how far back the gradient of the last step reaches.

The body of a scan is a program, too, and is run step by step, forward and back from numbers drawn
for δ of what it carries after the last step; beside its own weights go trees drawn anew, on the
inputs that these give. Whatever the body is (tanh, LSTM, GRU, one's own), its gates are not told
apart: a parameter is judged as a whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import nan, sqrt

import jax
import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.flow.cell import Gate
from vegrad.flow.edits import Edit
from vegrad.flow.reading import INPUT, MAPS
from vegrad.flow.recurrence import DRAWS, LEAST_STEPS, MOST_STEPS
from vegrad.flow.subject import Refusal
from vegrad.jax.editor import edited
from vegrad.jax.graph import Graph
from vegrad.jax.passes import Pass
from vegrad.jax.program import Program
from vegrad.jax.scaled import Scaled
from vegrad.jax.steps import Step
from vegrad.jax.tree import Init, Tree, size_of
from vegrad.theory.recurrence import ExpectedRecurrence, TiedGain

LOOKS = 8  # steps, some of all, whose activations are looked at


@dataclass(eq=False)
class ScannedCell:
    """A scan, with what-ifs for its parameters (a `Cell`)."""

    tree: Tree
    """With the leaves that are judged."""
    init: Init | None
    seed: int
    batch: Sequence[jax.Array]
    runner: Pass
    step: Step
    mode: str = "scan"
    sizes: FloatArray = field(default_factory=lambda: np.zeros((0, 1)))
    """log2 of δ's size, (steps back, sets): its own weights, then those drawn anew."""
    flat: FloatArray = field(default_factory=lambda: np.zeros(1))
    """Share of its activations' elements that is saturated, of the same sets."""
    parts: FloatArray = field(default_factory=lambda: np.full((2, 1 + DRAWS), nan))
    """Carry and matrix of the gain, which are not told apart."""
    module: str = ""
    """The path of its recurrent weights."""
    length: int = 0

    def __post_init__(self) -> None:
        params = self.step.eqn.params
        self.consts, self.carried = int(params["num_consts"]), int(params["num_carry"])
        self.length, self.backwards = int(params["length"]), bool(params["reverse"])
        more = len(self.step.takes) - self.consts
        body = Program.of(params["jaxpr"], self.consts, more, self.carried)
        graph = Graph(body)
        graph.end = len(graph.nodes)
        self.body, self.whole = Pass(graph), Pass(graph, blind=True)
        self.module = self._recurrent.rpartition(".")[0] or self._recurrent

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """Its parameters, as a whole each."""
        outer, p, found = self.runner.program, self.body.program, list[Gate]()
        names = list(self.tree.leaves)
        made = [outer.parts.get(n, frozenset()) for n in self.step.takes[: self.consts]]
        first, counters = self.consts + self.carried, self._counters
        for n in sorted(self._carrying()):
            node = self.body.graph.nodes[n]
            if node.kind not in MAPS or node.edge is None:
                continue
            place, side = node.edge
            comes = p.inputs.get(p.steps[place].takes[side], frozenset())
            by_number = bool(comes) and comes <= counters  # a row of what it has as a whole
            parts = ["hh"] if any(one < first for one in comes - counters) else []
            parts += ["ih"] if by_number or any(one >= first for one in comes) else []
            for leaf in (leaf for const in node.leaves for leaf in sorted(made[const])):
                matrix = self.tree.leaves[names[leaf]].ndim > 1
                found += [self._gate(names[leaf], "b_" * (not matrix) + part) for part in parts]
        if not any(one.part == "ih" for one in found):  # inputs are multiplied before the scan
            graph, xs = self.runner.graph, self.step.takes[self.consts + self.carried :]
            near = frozenset[int]().union(*(graph.near.get(n, frozenset()) for n in xs))
            above = [graph.nodes[n] for n in sorted(near) if n != INPUT]
            found += [self._gate(names[one.leaves[0]], "ih") for one in above if one.kind in MAPS]
        return tuple(dict.fromkeys(found))

    @property
    def _counters(self) -> set[int]:
        """The places of what it carries that is no real number, as that of the step."""
        types = [one.dtype for one in self.step.eqn.params["jaxpr"].in_avals]
        carried = range(self.consts, self.consts + self.carried)
        return {n for n in carried if not jax.numpy.issubdtype(types[n], jax.numpy.inexact)}

    @property
    def _recurrent(self) -> str:
        return next((gate.parameter for gate in self.gates if gate.part == "hh"), "")

    def _gate(self, name: str, part: str) -> Gate:
        leaf = self.tree.leaves[name]
        return Gate(name, part, "", (0, leaf.shape[0]), 2.0 ** size_of(leaf))

    def _carrying(self) -> set[int]:
        """Return the places of the body's nodes that what it carries is made of."""
        graph, ahead = self.body.graph, set[int]()
        for n in self.body.program.results[: self.carried]:
            ahead |= graph.near.get(n, frozenset()) - {INPUT}
        found = set[int]()
        while ahead:
            found.add(place := ahead.pop())
            ahead |= graph.nodes[place].below - found - {INPUT}
        return found

    @property
    def label(self) -> str:
        """How it is called in words."""
        return f"the scan of {self.module}"

    @cached_property
    def bound(self) -> float:
        """The bound of uniform numbers as large as its recurrent weights are when drawn anew."""
        drawn = self.tree.drawn(self.init, self.seed)
        return sqrt(3.0) * 2.0 ** size_of(drawn[self._recurrent])

    # Passes -------------------------------------------------------------------------------------

    def look(self) -> ScannedCell:
        """Fill in what is measured, of its own weights and of trees drawn anew."""
        draws = [self.tree.drawn(self.init, self.seed + 1 + n) for n in range(DRAWS)]
        self.sizes, self.flat = self._sets([self.tree.leaves, *draws])
        return self

    def if_changed(self, trials: Sequence[Sequence[Edit]]) -> tuple[FloatArray, FloatArray]:
        """Return sizes (steps back, trials) and saturated shares, had these been done."""
        several = list[Mapping[str, jax.Array]]()
        for edits in trials:
            leaves = self.tree.leaves
            for one in edits:
                tried = edited(replace(self.tree, leaves=leaves), one, self.init, self.seed)
                leaves = leaves if isinstance(tried, Refusal) else tried
            several.append(leaves)
        return self._sets(several)

    def _sets(self, several: Sequence[Mapping[str, jax.Array]]) -> tuple[FloatArray, FloatArray]:
        sizes, flat = zip(*map(self._back, several), strict=True)
        return np.array(sizes).T, np.array(flat)

    def _taken(self, leaves: Mapping[str, jax.Array]) -> list[Scaled]:
        """Return what the scan is given."""
        values, _ = self.runner.forward([*leaves.values(), *self.batch])
        return [values[n] for n in self.step.takes]

    def _back(self, leaves: Mapping[str, jax.Array]) -> tuple[list[float], float]:
        """Return log2 of the norms of δ of what is carried, step by step back, and flat shares."""
        taken, body = self._taken(leaves), self.body
        results, first = body.program.results[: self.carried], self.consts + self.carried
        consts, carried, xs = taken[: self.consts], taken[self.consts : first], taken[first:]
        runs, flat = [], list[float]()
        looked = {*((np.arange(LOOKS) + 0.5) * self.length / LOOKS).astype(int)}
        for t in range(self.length)[:: -1 if self.backwards else 1]:
            given = [*consts, *carried, *(replace(one, values=one.values[t]) for one in xs)]
            if t in looked:
                values, _ = body.forward(given)
                shares = [body.numbers(one, values)[3] for one in body.nodes if one.root != INPUT]
                flat += [one for one in shares if one == one]
            values, ran = self.whole.forward(given)
            carried = [values[n] for n in results]
            runs.append(ran)
            del runs[:-MOST_STEPS]
        random = np.random.default_rng(self.seed)
        above = {
            n: Scaled(random.standard_normal(one.values.shape).astype(one.values.dtype))
            for n, one in zip(results, carried, strict=True)
            if one.real
        }
        sizes, counters = [_joint(above)], self._counters
        for ran in runs[:0:-1]:
            self.whole.back(ran, above)
            below = zip(results, range(self.consts, first), strict=True)
            above = {n: above[b] for n, b in below if b in above and b not in counters}
            sizes.append(_joint(above))
        return sizes, float(np.mean(flat)) if flat else 0.0

    @cached_property
    def input_rms(self) -> float:
        """Root mean square of what goes in."""
        taken = self._taken(self.tree.leaves)
        whole = zip(self.step.takes, taken[: self.consts], strict=False)
        taken = taken[self.consts + self.carried :] or [
            one for n, one in whole if not self.runner.program.parts.get(n)
        ]
        real = [one for one in taken if one.real and one.values.size]
        sizes = [one.norm - np.log2(one.values.size) / 2 for one in real]
        return float(2.0 ** max(sizes, default=0.0))

    @property
    def expected(self) -> FloatArray:
        """Carry and matrix by theory, which knows no such cell: nan (2, sets)."""
        return self.parts

    @property
    def anew(self) -> ExpectedRecurrence:
        """The way back through the trees drawn anew."""
        left = self.sizes[::-1, 1:] - self.sizes[0, 1:]
        gains = -left[0] / max(len(left) - 1, 1)
        none = np.full(DRAWS, nan)
        means = left.mean(axis=1), left.std(axis=1), float(-gains.mean()), float(gains.std())
        return ExpectedRecurrence(self.mode, TiedGain(none, none, none), *means, nan, nan, none)


def _joint(several: Mapping[int, Scaled]) -> float:
    """Return log2 of the joint norm of some arrays; -inf of none."""
    norms = [2.0 * one.norm for one in several.values()]
    return float(np.logaddexp2.reduce(norms, initial=-np.inf)) / 2


def cells_of(
    tree: Tree, init: Init | None, seed: int, batch: Sequence[jax.Array], runner: Pass
) -> Iterator[ScannedCell]:
    """Yield the scans that multiply what they carry with parameters, step after step."""
    for step in runner.program.steps:
        if step.name != "scan" or int(step.eqn.params["length"]) < LEAST_STEPS:
            continue
        one = ScannedCell(tree, init, seed, batch, runner, step)
        if {"hh", "ih"} <= {gate.part for gate in one.gates} and _is_finite(tree):
            yield one.look()


def _is_finite(tree: Tree) -> bool:
    return all(np.isfinite(np.asarray(one)).all() for one in tree.leaves.values())

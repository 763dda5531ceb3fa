"""A jaxpr written out as one flat list of steps.

Calls are inlined. A scan over layers whose weights are stacked is written out, too, with leaves of
their own for each layer, so that its layers are judged one by one. What the scan takes of a stack
may differ from it in the order of its axes and in its dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn, Literal

from vegrad.jax.steps import INLINED, Step

SAME = {"convert_element_type", "copy", "reduce_precision", "transpose"}
MOST_LAYERS = 512


@dataclass(eq=False)
class Written:
    """The steps of a jaxpr, whose first values are leaves, then parts of a batch."""

    leaves: int
    batch: int
    shapes: dict[int, jax.core.ShapedArray] = field(default_factory=dict)
    constants: dict[int, jax.Array] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    """The named scopes in which each step stands."""
    maker: dict[int, int] = field(default_factory=dict)
    """The place of the step that makes a value."""
    stacks: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    """Of values that leaves are stacked to: the axis, and the leaves."""
    results: tuple[int, ...] = ()

    def write(self, closed: ClosedJaxpr, axes: Mapping[int, int]) -> None:
        """Write out a jaxpr that takes leaves, of which some are cut, and then the batch."""
        given = [var.aval for var in closed.jaxpr.invars]
        cut = {n: given[n].shape[axis] for n, axis in axes.items()}
        self.leaves += sum(cut.values()) - len(cut)
        parts = [
            [self._new(_without(axes[n], aval) if n in cut else aval) for _ in range(cut.get(n, 1))]
            for n, aval in enumerate(given)
        ]
        inputs = [
            self._stacked(axes[n], own) if n in cut else own[0] for n, own in enumerate(parts)
        ]
        self.results = tuple(self._walk(closed.jaxpr, closed.consts, inputs, ""))
        self._leave_out_the_unused()

    def _leave_out_the_unused(self) -> None:
        wanted, kept = {*self.results}, list[int]()
        for place in range(len(self.steps) - 1, -1, -1):
            if not wanted.isdisjoint(self.steps[place].makes):
                wanted |= {*self.steps[place].takes}
                kept.insert(0, place)
        self.steps = [self.steps[place] for place in kept]
        self.paths = [self.paths[place] for place in kept]
        self.maker = {n: place for place, one in enumerate(self.steps) for n in one.makes}

    def _new(self, aval: jax.core.ShapedArray, value: jax.Array = None) -> int:
        number = len(self.shapes)
        self.shapes[number] = aval
        if value is not None:
            self.constants[number] = value
        return number

    def _walk(
        self, jaxpr: Jaxpr, consts: Sequence[object], given: Sequence[int], path: str
    ) -> list[int]:
        pairs = zip(jaxpr.constvars, consts, strict=True)
        known = {var: self._new(var.aval, value) for var, value in pairs}
        known |= dict(zip(jaxpr.invars, given, strict=True))

        def number(var: object) -> int:
            if isinstance(var, Literal):
                return self._new(var.aval, np.asarray(var.val, var.aval.dtype))
            return known[var]

        for eqn in jaxpr.eqns:
            takes = tuple(map(number, eqn.invars))
            where = "/".join(filter(None, (path, str(eqn.source_info.name_stack))))
            inner = eqn.params.get("jaxpr", eqn.params.get("call_jaxpr"))
            if eqn.primitive.name in INLINED and inner is not None:
                closed = isinstance(inner, ClosedJaxpr)
                body, held = (inner.jaxpr, inner.consts) if closed else (inner, ())
                makes = tuple(self._walk(body, held, takes, where))
            elif eqn.primitive.name == "scan" and any(self._layers(eqn, takes)):
                makes = tuple(self._unrolled(eqn, takes, where))
            else:
                makes = tuple(self._new(var.aval) for var in eqn.outvars)
                self.maker |= dict.fromkeys(makes, len(self.steps))
                self.steps.append(Step(eqn, takes, makes))
                self.paths.append(where)
            known |= dict(zip(eqn.outvars, makes, strict=True))
        return [number(var) for var in jaxpr.outvars]

    def _made(self, doing: Callable[..., jax.Array], values: Sequence[int], path: str = "") -> int:
        """Write down what a function does to values; return the value that it makes."""
        avals = [jax.ShapeDtypeStruct(self.shapes[n].shape, self.shapes[n].dtype) for n in values]
        closed = jax.make_jaxpr(doing)(*avals)
        return self._walk(closed.jaxpr, closed.consts, values, path)[0]

    # Stacks of layers ---------------------------------------------------------------------------

    def axes(self) -> dict[int, int]:
        """Return the leaves in which scans find the weights of a layer each step, and the axis."""
        found: dict[int, int] = {}
        for step in self.steps:
            if step.name == "scan" and step.eqn.params["num_carry"]:
                sources = [self._source(n) for n in _scanned(step.eqn, step.takes)]
                own = {leaf: axis for leaf, axis, _ in sources if leaf < self.leaves}
                layers = 1 < int(step.eqn.params["length"]) <= MOST_LAYERS
                if layers and any(self.shapes[leaf].ndim > 2 for leaf in own):
                    found = own | found
        return found

    def _source(self, value: int) -> tuple[int, int, list[Step]]:
        """Return what a value is but for axes and dtype, its first axis there, and the steps."""
        axis, between = 0, list[Step]()
        while value in self.maker and (step := self.steps[self.maker[value]]).name in SAME:
            axis = step.eqn.params["permutation"][axis] if step.name == "transpose" else axis
            between.insert(0, step)
            value = step.takes[0]
        return value, axis, between

    def _stacked(self, axis: int, leaves: list[int]) -> int:
        value = self._made(lambda *several: jnp.stack(several, axis), leaves)
        self.stacks[value] = axis, leaves
        return value

    def _layers(self, eqn: JaxprEqn, takes: Sequence[int]) -> Iterator[bool]:
        """Yield for all that a scan goes through whether it is a stack of leaves."""
        for value in _scanned(eqn, takes):
            source, axis, _ = self._source(value)
            yield source in self.stacks and self.stacks[source][0] == axis

    def _unrolled(self, eqn: JaxprEqn, takes: Sequence[int], path: str) -> list[int]:
        """Write out a scan, step after step; return what it makes."""
        known, closed, made = eqn.params, eqn.params["jaxpr"], list[list[int]]()
        consts, carried, length = (int(known[n]) for n in ("num_consts", "num_carry", "length"))
        rows = [self._rows(n, length) for n in _scanned(eqn, takes)]
        carry = [*takes[consts : consts + carried]]
        for n in range(length)[:: -1 if known["reverse"] else 1]:
            given = [*takes[:consts], *carry, *(row[n] for row in rows)]
            out = self._walk(closed.jaxpr, closed.consts, given, f"{path}[{n}]")
            carry = out[:carried]
            made.append(out[carried:])
        made = made[::-1] if known["reverse"] else made
        stack = lambda *several: jnp.stack(several)  # noqa: E731
        return [*carry, *(self._made(stack, column, path) for column in zip(*made, strict=True))]

    def _rows(self, value: int, length: int) -> list[int]:
        """Return what a scan takes of a value in each step."""
        source, axis, between = self._source(value)
        if self.stacks.get(source, (-1, []))[0] != axis:
            whole = partial(jax.lax.index_in_dim, keepdims=False)
            return [self._made(partial(whole, index=n), [value]) for n in range(length)]

        def row(part: jax.Array) -> jax.Array:
            part = jnp.expand_dims(part, axis)
            for step in between:
                (part,) = step.bind([part])
            return part[0]

        return [self._made(row, [n]) if between else n for n in self.stacks[source][1]]


def _scanned(eqn: JaxprEqn, takes: Sequence[int]) -> Sequence[int]:
    """Return the values of which a scan takes a row each step."""
    return takes[int(eqn.params["num_consts"]) + int(eqn.params["num_carry"]) :]


def _without(axis: int, aval: jax.core.ShapedArray) -> jax.core.ShapedArray:
    shape = (*aval.shape[:axis], *aval.shape[axis + 1 :])
    return jax.core.ShapedArray(shape, aval.dtype)

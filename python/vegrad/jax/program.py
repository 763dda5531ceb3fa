"""The steps of a jaxpr, with what each of them is in the way of a gradient.

Values have numbers. A value made of parameters alone (a transposed weight) knows its leaves; one
that is an elementwise function φ of a single other value knows that root, so that activations are
found however they are written, and named by their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from vegrad.activations import ACTIVATIONS
from vegrad.jax.steps import Block, Step
from vegrad.jax.written import Written

SHAPES = {"broadcast_in_dim", "reshape", "squeeze", "expand_dims", "transpose"}
KINDS = {"add_any": "add", "gather": "embedding", "logistic": "sigmoid", "select_n": "where"}
GRID = np.linspace(-4.0, 4.0, 81)
NEAR = 2e-3  # by which a GELU that is written with tanh differs from the exact one


@dataclass(eq=False)
class Program(Written):
    """The steps of a loss, whose first values are its trained leaves, then the batch."""

    @classmethod
    def of(
        cls,
        closed: ClosedJaxpr,
        leaves: int,
        batch: int,
        carried: int = 0,
        axes: Mapping[int, int] = MappingProxyType({}),
    ) -> Program:
        """Write out a jaxpr, and find what its values are.

        Args:
            closed: takes the leaves, then the batch.
            leaves: how many leaves it takes.
            batch: how many parts the batch has.
            carried: how many of these, the first, a gradient is asked of too.
            axes: of leaves that are cut into one for each layer: the axis on which layers lie.
        """
        made = cls(leaves, batch)
        made.write(closed, axes)
        made._look(carried)
        return made

    @property
    def loss(self) -> int:
        """The first of its results."""
        return self.results[0]

    # What values are ----------------------------------------------------------------------------

    def _look(self, carried: int) -> None:
        """Follow the leaves and the batch through the steps."""
        count, rows = self.leaves + self.batch, range(self.leaves, self.leaves + self.batch)
        self.data: set[int] = {*rows}
        """Values that come from the batch."""
        if not rows:  # the loss has closed over its data
            self.data |= {n for n in self.constants if np.ndim(self.constants[n])}
        self.learns: set[int] = {*range(self.leaves + carried)}
        """Values that a gradient comes back through."""
        self.parts: dict[int, frozenset[int]] = {n: frozenset([n]) for n in range(self.leaves)}
        """Leaves of what is made of parameters alone."""
        self.inputs: dict[int, frozenset[int]] = {n: frozenset([n]) for n in rows}
        """Parts of the batch that a value comes from."""
        self.takers: dict[int, list[int]] = {}
        self.root: dict[int, int] = {n: n for n in range(count)}
        for place, step in enumerate(self.steps):
            known = [n for n in step.takes if n in self.data]
            learned = step.name != "stop_gradient" and any(n in self.learns for n in step.takes)
            of_parts = frozenset[int]().union(*(self.parts.get(n, ()) for n in step.takes))
            own = frozenset[int]().union(*(self.inputs.get(n, ()) for n in step.takes))
            for n in step.takes:
                self.takers.setdefault(n, []).append(place)
            for n in step.makes:
                if known:
                    self.data.add(n)
                    self.inputs[n] = own
                    self.root[n] = self._root(step, known, n)
                elif of_parts:
                    self.parts[n] = of_parts
                if learned and jnp.issubdtype(self.shapes[n].dtype, jnp.inexact):
                    self.learns.add(n)

    def _root(self, step: Step, known: Sequence[int], own: int) -> int:
        """Return the value that this one is an elementwise function of; itself, if of several."""
        roots = {self.root.get(n, n) for n in known}
        others = [n for n in step.takes if n not in known]
        same = all(self.shapes[n].shape == self.shapes[own].shape for n in known)
        plain = all(n not in self.parts and self.scalar(n) is not None for n in others)
        return roots.pop() if step.elementwise and len(roots) == 1 and same and plain else own

    def scalar(self, value: int) -> jax.Array | None:
        """Return a constant that has one value, as a number; None of others."""
        if value in self.constants:
            held = self.constants[value]
            return held if np.ndim(held) == 0 else None
        step = self.steps[self.maker[value]] if value in self.maker else None
        if step is None or step.name not in SHAPES | {"convert_element_type"}:
            return None
        return self.scalar(step.takes[0])

    def exit(self, root: int) -> int:
        """Return the first value that is made of a root elementwise and is used by others."""
        ahead, seen = [root], {root}
        found = list[int]()
        while ahead:
            value = ahead.pop()
            made = [n for place in self.takers.get(value, ()) for n in self.steps[place].makes]
            inside = [n for n in made if self.root.get(n) == root]
            if len(inside) < len(made) or value in self.results:
                found.append(value)
            ahead += [n for n in inside if n not in seen]
            seen |= {*inside}
        floats = [n for n in found if jnp.issubdtype(self.shapes[n].dtype, jnp.floating)]
        return min(floats, default=root)

    def activation(self, root: int) -> tuple[int, str]:
        """Return where an activation of a root ends, and its name: "identity" if there is none."""
        end = self.exit(root)
        if end == root:
            return end, "identity"
        shape = self.shapes[root].shape
        size = max(int(np.prod(shape)), 1)
        grid = np.resize(GRID, (-(-GRID.size // size), *shape)).astype(self.shapes[root].dtype)
        piece = self.piece(root, end)
        several = [piece.code.run([self.constants.get(n, at) for n in piece.takes]) for at in grid]
        with np.errstate(all="ignore"):
            values = np.concatenate([np.ravel(one) for (one,) in several]).astype(np.float64)
            for name, one in ACTIVATIONS.items():
                if np.abs(values[: GRID.size] - one.phi(GRID)).max() < NEAR:
                    return end, name
        name = self.steps[self.maker[end]].name
        return end, KINDS.get(name, name)

    def piece(self, root: int, end: int) -> Block:
        """Return the steps by which a value is made of its root."""
        wanted, found = {end}, list[Step]()
        for place in range(self.maker[end], -1, -1):
            step = self.steps[place]
            if not wanted.isdisjoint(step.makes):
                wanted |= {*step.takes} - {root}
                found.append(step)
        return Block.of(found[::-1])

    def blocks(self, kept: frozenset[int]) -> list[Block]:
        """Join steps whose values only the steps of one block take; leave out those of no use.

        Args:
            kept: numbers of values that are looked at.
        """
        block: dict[int, int] = {}
        for place in range(len(self.steps) - 1, -1, -1):
            step = self.steps[place]
            takers = {block.get(n, -1) for one in step.makes for n in self.takers.get(one, ())}
            takers.discard(-1)
            if not kept.isdisjoint(step.makes):
                block[place] = place
            elif takers:
                last = min(takers)
                cut = "stop_gradient" in (step.name, self.steps[last].name)
                block[place] = place if cut or len(takers) > 1 else last
        members: dict[int, list[Step]] = {}
        for place in sorted(block):
            members.setdefault(block[place], []).append(self.steps[place])
        return [Block.of(members[place]) for place in sorted(members)]

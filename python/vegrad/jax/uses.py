"""How leaves are used: only added to what comes of the data, multiplied together, or in a scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jax.extend.core import ClosedJaxpr

from vegrad.jax.program import Program
from vegrad.jax.steps import Step

ADDS = {"add", "add_any", "sub"}


@dataclass(frozen=True)
class Uses:
    """A program, with the values in it that come of the data."""

    program: Program
    data: frozenset[int]

    @classmethod
    def of(cls, program: Program, data: Iterable[int]) -> Uses:
        """Follow the values that are given through a program."""
        known = {*data}
        for step in program.steps:
            if not known.isdisjoint(step.takes):
                known |= {*step.makes}
        return cls(program, frozenset(known))

    def only_added(self, value: int) -> bool:
        """Return True if a value meets the data in sums alone, after whatever is done to it."""
        places = self.program.takers.get(value, ())
        return bool(places) and all(self._adds(self.program.steps[n], value) for n in places)

    def _adds(self, step: Step, value: int) -> bool:
        met = not self.data.isdisjoint(step.takes)
        if step.name == "scan":
            return self._adds_within(step, value)
        if not met or (step.name == "dynamic_slice" and step.takes[0] == value):
            return all(self.only_added(n) for n in step.makes)
        return step.name in ADDS

    def _adds_within(self, step: Step, value: int) -> bool:
        """Return True if a scan only adds a value, or its slices, to what it makes of the data."""
        known = step.eqn.params
        first, carried = int(known["num_consts"]), int(known["num_carry"])
        carry = range(first, first + carried)
        body = Program.of(known["jaxpr"], len(step.takes), 0)
        data = {n for n, one in enumerate(step.takes) if one in self.data or n in carry}
        own = [n for n, one in enumerate(step.takes) if one == value]
        uses = Uses.of(body, data)
        return data.isdisjoint(own) and all(uses.only_added(n) for n in own)


def factors_of(program: Program) -> frozenset[int]:
    """Return numbers of the leaves that are multiplied together to weights: low-rank changes."""
    found = set[int]()
    for step in program.steps:
        own = [program.parts.get(n, frozenset()) for n in step.takes]
        if step.name == "dot_general" and all(own) and own[0].isdisjoint(own[1]):
            found |= own[0] | own[1]
    return frozenset(found)


def body_of(program: Program, step: Step) -> tuple[Program, list[list[int]]]:
    """Return what a scan does in a step, as a program whose first values are its parameters.

    Returns:
        The program, and of which leaves each of its parameters is made.
    """
    known, parts = step.eqn.params, program.parts
    closed, first = known["jaxpr"], int(known["num_consts"])
    carry = range(first, first + int(known["num_carry"]))
    taken = [n for n in range(len(step.takes)) if n not in carry]
    own = [n for n in taken if parts.get(step.takes[n])]
    order = [*own, *carry, *(n for n in taken if n not in own)]
    jaxpr = closed.jaxpr.replace(
        invars=[closed.jaxpr.invars[n] for n in order],
        debug_info=closed.jaxpr.debug_info._replace(arg_names=None, result_paths=None),
    )
    body = Program.of(
        ClosedJaxpr(jaxpr, closed.consts), len(own), len(order) - len(own), len(carry)
    )
    return body, [sorted(parts[step.takes[n]]) for n in own]

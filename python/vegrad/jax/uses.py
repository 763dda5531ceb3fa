"""How leaves are used: beside what comes of the data, multiplied together, or in a scan."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from jax.extend.core import ClosedJaxpr

from vegrad.jax.program import Program
from vegrad.jax.steps import Step

ADDS = {"add", "add_any", "sub"}
# What puts rows beside those of the data: a class token, a mask's, a prompt.
PUTS = {"concatenate", "select_n", "scatter", "scatter-add", "dynamic_update_slice"}
SCALES = {"mul", "div"}


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
        """Return True if a value meets the data in sums alone, or as rows beside them."""
        return self._only(value, frozenset(ADDS | PUTS))

    def only_scales(self, value: int) -> bool:
        """Return True if a value is one vector, and meets the data element by element alone."""
        long = [size for size in self.program.shapes[value].shape if size > 1]
        return len(long) < 2 and self._only(value, frozenset(ADDS | PUTS | SCALES))

    def _only(self, value: int, names: frozenset[str]) -> bool:
        """Return True if a value meets the data in such steps, after whatever is done to it."""
        places = self.program.takers.get(value, ())
        return bool(places) and all(
            self._meets(self.program.steps[n], value, names) for n in places
        )

    def _meets(self, step: Step, value: int, names: frozenset[str]) -> bool:
        met = not self.data.isdisjoint(step.takes)
        if step.name == "scan":
            return self._meets_within(step, value, names)
        if not met or (step.name == "dynamic_slice" and step.takes[0] == value):
            return all(self._only(n, names) for n in step.makes)
        return step.name in names

    def _meets_within(self, step: Step, value: int, names: frozenset[str]) -> bool:
        """Return True if in a scan a value, or its slices, meets the data in such steps alone."""
        known = step.eqn.params
        first, carried = int(known["num_consts"]), int(known["num_carry"])
        carry = range(first, first + carried)
        body = Program.of(known["jaxpr"], len(step.takes), 0)
        data = {n for n, one in enumerate(step.takes) if one in self.data or n in carry}
        own = [n for n, one in enumerate(step.takes) if one == value]
        uses = Uses.of(body, data)
        return data.isdisjoint(own) and all(uses._only(n, names) for n in own)


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

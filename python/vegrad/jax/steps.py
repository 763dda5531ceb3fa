"""The steps of a program, and blocks of them, each compiled once for all that are like it."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Jaxpr, JaxprEqn

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array

INLINED = {"jit", "pjit", "closed_call", "core_call", "remat", "remat2", "checkpoint"}
NAMES = """
abs add add_any cbrt clamp convert_element_type copy cos div eq erf erfc exp exp2 expm1 ge gt
integer_pow is_finite le log log1p logistic lt max min mul ne neg pow rsqrt select_n sign sin sqrt
square sub tanh
"""
ELEMENTWISE = {*NAMES.split()}
# XLA's options with which small programs are compiled in a third of the time.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


@dataclass(frozen=True, eq=False)
class Step:
    """One equation, with the numbers of what it takes and makes."""

    eqn: JaxprEqn
    takes: tuple[int, ...]
    makes: tuple[int, ...]

    @property
    def name(self) -> str:
        """The primitive, or the function whose derivative somebody has written."""
        primitive = str(self.eqn.primitive.name)
        own = primitive.startswith("custom_jvp")
        return str(self.eqn.params.get("name", primitive)) if own else primitive

    @property
    def elementwise(self) -> bool:
        """True if each element of what it makes comes of the elements in the same place alone."""
        if self.eqn.primitive.name != "custom_jvp_call":
            return self.name in ELEMENTWISE
        return _is_elementwise(self.eqn.params["call_jaxpr"].jaxpr)

    @cached_property
    def told(self) -> Hashable:
        """Its doing, whatever that is done to: the same for equal steps of all programs."""
        eqn = self.eqn
        try:
            params = frozenset(eqn.params.items())
        except TypeError:  # it holds a list
            return id(eqn)
        if eqn.primitive.name != "custom_jvp_call":
            return eqn.primitive, params
        # Each call holds functions of its own. What these do is written in the jaxpr of both.
        avals = [jax.ShapeDtypeStruct(var.aval.shape, var.aval.dtype) for var in eqn.invars]
        both = lambda *values: jax.jvp(self.bind, (values,), (values,))  # noqa: E731
        found = jax.make_jaxpr(both)(*avals)
        return id(eqn) if found.consts else str(found)

    def bind(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Apply the primitive; literals are values as others are."""
        frame = jax.make_jaxpr(lambda *some: some)(*values).jaxpr
        debug = frame.debug_info._replace(arg_names=None, result_paths=None)
        eqns = [self.eqn.replace(invars=frame.invars)]
        makes = {"outvars": self.eqn.outvars, "eqns": eqns, "effects": self.eqn.effects}
        return list(jax.core.eval_jaxpr(frame.replace(**makes, debug_info=debug), (), *values))


def _is_elementwise(jaxpr: Jaxpr) -> bool:
    inner = (one.params.get("jaxpr") for one in jaxpr.eqns if one.primitive.name in INLINED)
    names = {one.primitive.name for one in jaxpr.eqns} - INLINED
    return names <= ELEMENTWISE and all(_is_elementwise(one.jaxpr) for one in inner)


@dataclass(frozen=True, eq=False)
class Block:
    """Some steps, with the numbers of what they take of others, and of what others take of them."""

    steps: tuple[Step, ...]
    takes: tuple[int, ...]
    makes: tuple[int, ...]

    @classmethod
    def of(cls, steps: Iterable[Step], makes: Iterable[int] = ()) -> Block:
        """Join steps in their order, the last of which makes what is asked for if nothing is."""
        steps = tuple(steps)
        made = {n for one in steps for n in one.makes}
        takes = dict.fromkeys(n for one in steps for n in one.takes if n not in made)
        return cls(steps, tuple(takes), tuple(makes) or steps[-1].makes)

    @property
    def elementwise(self) -> bool:
        """True if each element of what it makes comes of those in the same place alone."""
        return all(one.elementwise for one in self.steps)

    @cached_property
    def code(self) -> Code:
        """The code of what it does, whatever it is done to."""
        known = {value: n for n, value in enumerate(self.takes)}
        key = list[Hashable]()
        for one in self.steps:
            takes = tuple(known[n] for n in one.takes)
            known |= {value: len(known) + n for n, value in enumerate(one.makes)}
            key.append((one.told, takes))
        return Code((*key, *(known[n] for n in self.makes)), self)


@dataclass(frozen=True)
class Code:
    """The doings of a block. Equal blocks have equal codes."""

    key: Hashable
    block: Block = field(compare=False)

    def run(self, values: Sequence[Array]) -> list[jax.Array]:
        """Return what it makes of values."""
        made: list[jax.Array] = _compiled()[0](self, list(values))
        return made

    def back(
        self, values: Sequence[Array], wanted: Sequence[int], deltas: Mapping[int, Array]
    ) -> list[jax.Array]:
        """Return δ of what it takes at some places, of δ of what it makes at others."""
        given = list(values), list(deltas.values())
        found: list[jax.Array] = _compiled()[1](self, tuple(wanted), tuple(deltas), *given)
        return found

    def bind(self, values: Sequence[jax.Array]) -> list[jax.Array]:
        """Apply the primitives."""
        known = dict(zip(self.block.takes, values, strict=True))
        for one in self.block.steps:
            made = one.bind([known[n] for n in one.takes])
            known |= dict(zip(one.makes, made, strict=True))
        return [known[n] for n in self.block.makes]


@cache
def _compiled() -> tuple[Callable[..., list[jax.Array]], ...]:
    """Return both ways through a block: most compile for a few runs, and not for speed."""
    options: dict[str, bool | int] | None = QUICK
    try:
        jax.jit(jnp.positive, compiler_options=options)(np.zeros(1))
    except Exception:  # XLA's options are those of its version and of the device
        options = None
    jit = partial(jax.jit, compiler_options=options)
    return jit(_run, static_argnums=0), jit(_back, static_argnums=(0, 1, 2))


def _run(code: Code, values: list[jax.Array]) -> list[jax.Array]:
    return code.bind(values)


def _back(
    code: Code,
    wanted: tuple[int, ...],
    made: tuple[int, ...],
    values: list[jax.Array],
    deltas: list[jax.Array],
) -> list[jax.Array]:
    def of(*some: jax.Array) -> list[jax.Array]:
        given = dict(enumerate(values)) | dict(zip(wanted, some, strict=True))
        found = code.bind(list(given.values()))
        return [found[n] for n in made]

    _, pull = jax.vjp(of, *(values[n] for n in wanted))
    return list(pull(deltas))

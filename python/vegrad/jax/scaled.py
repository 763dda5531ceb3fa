"""Arrays times powers of two, and what becomes of such a power in a step."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import copysign, inf, isfinite, ldexp, log2, nan

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array
from vegrad.jax.steps import Block

DEGREES = (1.0, 2.0, -1.0, 0.5, -0.5, 3.0)
BY = -2  # the power of two by which inputs are changed to see what becomes of it
NEXT = 1e-5  # how far what is next to linear may be from it, of the largest


@dataclass(frozen=True, eq=False)
class Scaled:
    """An array times a power of two."""

    values: jax.Array
    power: int = 0

    @property
    def norm(self) -> float:
        """log2 of its norm; -inf of zeros, nan or inf if a number is."""
        flat = wide_of(self.values).ravel()
        square = float(np.vdot(flat, flat))
        return log2(square) / 2 + self.power if 0 < square < inf else square or -inf

    @property
    def largest(self) -> float:
        """log2 of its largest number."""
        return self.power + log2(self.top) if 0 < self.top < inf else self.top or -inf

    @cached_property
    def top(self) -> float:
        """The largest number of its array."""
        values = np.asarray(self.values)
        return max(float(values.max(initial=0)), -float(values.min(initial=0)))

    @property
    def order(self) -> int:
        """The power at which its largest number is near 1; its own if that is 0, inf or nan."""
        return self.power + (round(log2(self.top)) if 0 < self.top < inf else 0)

    @property
    def usual(self) -> bool:
        """True if its largest number is near 1, and no product of such can have been lost."""
        return not self.real or (0 < self.top < inf and abs(log2(self.top)) < _far(self.values))

    @property
    def real(self) -> bool:
        """True of real numbers that are no integers."""
        return bool(jnp.issubdtype(self.values.dtype, jnp.floating))

    def settled(self, power: int = 0) -> Scaled:
        """Return it times a power of two, with numbers near 1 if they are far from it."""
        if not self.usual and 0 < self.top < inf:
            by = round(log2(self.top))
            return Scaled(shifted(self.values, -by), self.power + power + by)
        return replace(self, power=self.power + power) if power else self

    @property
    def number(self) -> float:
        """The only number of its array, as far as float64 has it."""
        try:
            return ldexp(float(self.values), self.power)
        except OverflowError:
            return copysign(inf, float(self.values))

    def plus(self, other: Scaled) -> Scaled:
        """Return the sum of both."""
        top = highest([self, other])
        return Scaled(np.asarray(self.at(top)) + np.asarray(other.at(top)), top).settled()

    def at(self, power: int) -> Array:
        """Return the array of the same with another power."""
        return shifted(self.values, self.power - power)


def wide_of(values: jax.Array) -> Array:
    """Return an array whose squares can be summed."""
    host = np.asarray(values)
    return host.astype(np.promote_types(host.dtype, np.float32), copy=False)


def _far(values: jax.Array) -> int:
    """Return the power of two of which sums of products stay within the range of a dtype."""
    return int(jnp.finfo(values.dtype).maxexp) // 3


def shifted(values: jax.Array, by: int) -> Array:
    """Return real numbers times a power of two, the largest at most that of their dtype."""
    if not by:
        return values
    most = float(jnp.finfo(values.dtype).max)
    wide = np.asarray(values).astype(np.float64)
    with np.errstate(all="ignore"):
        moved = np.where(np.isfinite(wide), np.clip(np.ldexp(wide, by), -most, most), wide)
        return moved.astype(values.dtype)


def powers_of(block: Block, taken: Sequence[Scaled]) -> tuple[list[int], int]:
    """Return powers at which a step can run, and that of what it then makes."""
    real = [n for n, one in enumerate(taken) if one.real]
    scaled = [n for n in real if taken[n].power and taken[n].top]
    # All at the same one, as sums and maxima take it.
    top = highest(taken[n] for n in real)
    same = [top if n in real else 0 for n in range(len(taken))]
    given = [one.at(by) for one, by in zip(taken, same, strict=True)]
    if _degree(block, given, real, of_zeros=False) == 1:
        return same, top
    # Each at its own, as products take them. A root asks for an even one.
    own = [one.order + one.order % 2 if n in scaled else 0 for n, one in enumerate(taken)]
    given = [one.at(by) for one, by in zip(taken, own, strict=True)]
    degrees = {n: _degree(block, given, [n]) for n in scaled}
    if all(isfinite(one) for one in degrees.values()):
        return own, round(sum(one * own[n] for n, one in degrees.items()))
    # A function that is linear towards 0, or towards infinity.
    if len(scaled) == 1 and block.elementwise:
        (n,) = scaled
        far = _far(taken[n].values)
        own[n] = taken[n].order + (far if taken[n].order < 0 else -far)
        if _degree(block, [one.at(by) for one, by in zip(taken, own, strict=True)], [n]) == 1:
            return own, own[n]
    return [0] * len(taken), 0


def _degree(
    block: Block, given: Sequence[Array], which: Sequence[int], of_zeros: bool = True
) -> float:
    """Return the power to which a factor of some inputs comes out of a step; nan if it does not.

    Args:
        block: a step.
        given: what it takes.
        which: the places of the inputs.
        of_zeros: take zeros, which show nothing, for a product's.
    """
    less = [shifted(one, BY) if n in which else one for n, one in enumerate(given)]
    pairs = [*zip(block.code.run(given), block.code.run(less), strict=True)]
    if not of_zeros and not any(np.asarray(other).any() for _, other in pairs):
        return nan
    for degree in DEGREES:
        if all(_times(one, round(BY * degree), other) for one, other in pairs):
            return degree
    return nan


def _times(one: jax.Array, by: int, other: jax.Array) -> bool:
    """Return True if an array is another one times a power of two."""
    if not Scaled(one).real:
        return bool((np.asarray(one) == np.asarray(other)).all())
    wanted, got = (np.asarray(n).astype(np.float64) for n in (shifted(one, by), other))
    near = max(NEXT, float(jnp.finfo(one.dtype).eps))
    with np.errstate(all="ignore"):
        return bool(np.abs(wanted - got).max(initial=0.0) <= near * np.abs(wanted).max(initial=0.0))


def highest(several: Iterable[Scaled]) -> int:
    """Return the power at which the largest of all numbers is near 1; 0 of zeros."""
    return max((one.order for one in several if one.top), default=0)

"""Sizes as base-2 logarithms, right where squares leave the range of float32; under jit too."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

MOST = 100.0  # log2 of what a single factor makes up for


def sums(values: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Return the largest |x|, and the sums of x² and of x in units of it: (3,).

    Args:
        values: of any shape and dtype.
        axis_name: of the devices over which the array lies in parts, as pmap and shard_map name it.
    """
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    top = jnp.max(jnp.abs(wide), initial=0.0)
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    units = wide / jnp.where((top > 0) & (top < jnp.inf), top, 1.0)
    both = jnp.stack([jnp.sum(jnp.square(units)), jnp.sum(units)])
    both = both if axis_name is None else jax.lax.psum(both, axis_name)
    return jnp.stack([top, *both])


def log2_of(found: jax.Array) -> jax.Array:
    """Return log2 of norms of which these are the sums: -inf of zeros, nan where an element is."""
    top, squares = found[..., 0], found[..., 1]
    size = jnp.log2(top) + jnp.log2(jnp.where(top > 0, squares, 1.0)) / 2
    return jnp.where(jnp.isfinite(squares), size, squares)


def norm_log2(values: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Return log2 of the norm of an array; see `sums`."""
    return log2_of(sums(values, axis_name))


def times(values: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return values times 2 to a power, which itself may be beyond the range of their dtype."""
    whole = jnp.round(exponent).astype(jnp.int32)
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return (wide * _power(whole // 2) * _power(whole - whole // 2)).astype(values.dtype)


def _power(exponent: jax.Array) -> jax.Array:
    """Return 2 to a whole power by its bits, as XLA's exp2 is off by a few millionths."""
    bits = (jnp.clip(exponent, -126, 127) + 127) << 23
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tapped(value: jax.Array, told: jax.Array, cut: bool) -> jax.Array:
    """Return a value as it is; on the way back, `told` gets the sums of δ as its gradient.

    At a cut δ goes on at a size near 1, and `told` gets log2 of the factor, too: what it is given
    on the way back stands for no derivative.
    """
    return value


def _forward(value: jax.Array, told: jax.Array, cut: bool) -> tuple[jax.Array, None]:
    return value, None


def _back(cut: bool, _: None, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    found = sums(delta)
    if not cut:
        return delta, jnp.append(found[:2], 0.0)
    top = found[0]
    usable = (top > 0) & jnp.isfinite(found[1])
    by = jnp.where(usable, jnp.clip(-jnp.round(jnp.log2(top)), -MOST, MOST), 0.0)
    return times(delta, by), jnp.append(found[:2], by)


tapped.defvjp(_forward, _back)

"""Sizes as base-2 logarithms, right where squares leave the range of float32; under jit too."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp

MOST = 100.0  # log2 of what a single factor makes up for


def norm_log2(values: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Return log2 of the norm of an array: -inf of zeros, inf or nan where an element is.

    Args:
        values: of any shape and dtype.
        axis_name: of the devices over which the array lies in parts, as pmap and shard_map name it.
    """
    wide = jnp.abs(values.astype(jnp.promote_types(values.dtype, jnp.float32)))
    top = jnp.max(wide, initial=0.0)
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    usable = (top > 0) & (top < jnp.inf)
    shift = jnp.floor(jnp.log2(jnp.where(usable, top, 1.0)))
    half = jnp.floor(shift / 2)  # in two parts, as 2^149 is no float32
    scaled = wide * jnp.exp2(-half) * jnp.exp2(half - shift)
    total = jnp.sum(jnp.square(scaled))
    total = total if axis_name is None else jax.lax.psum(total, axis_name)
    return jnp.log2(total) / 2 + shift


def rms_log2(values: jax.Array) -> jax.Array:
    """Return log2 of the root mean square of an array."""
    return norm_log2(values) - jnp.log2(jnp.float32(max(values.size, 1))) / 2


def times(values: jax.Array, exponent: jax.Array) -> jax.Array:
    """Return values times 2 to a power beyond the range of their dtype, if the product is within."""
    half = jnp.round(exponent / 2)
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    return (wide * jnp.exp2(half) * jnp.exp2(exponent - half)).astype(values.dtype)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def tapped(value: jax.Array, told: jax.Array, cut: bool) -> jax.Array:
    """Return a value as it is; on the way back, `told` gets log2 of the size of δ as its gradient.

    At a cut δ goes on at a size near 1, and `told` gets log2 of the factor, too: what it is given
    on the way back stands for no derivative.
    """
    return value


def _forward(value: jax.Array, told: jax.Array, cut: bool) -> tuple[jax.Array, None]:
    return value, None


def _back(cut: bool, _: None, delta: jax.Array) -> tuple[jax.Array, jax.Array]:
    size = norm_log2(delta)
    usable = jnp.isfinite(size) & cut
    by = jnp.where(usable, jnp.clip(-jnp.round(size), -MOST, MOST), 0.0)
    return (times(delta, by) if cut else delta), jnp.stack([size, by])


tapped.defvjp(_forward, _back)

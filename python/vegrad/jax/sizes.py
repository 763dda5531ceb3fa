"""Norms as base-2 logarithms, right where squares leave the range of float32; under jit too."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def norm_log2(values: jax.Array, axis_name: str | None = None) -> jax.Array:
    """Return log2 of the norm of an array: -inf of zeros, nan or inf where an element is.

    Args:
        values: of any shape and dtype.
        axis_name: of the devices over which the array lies in parts, as pmap and shard_map name it.
    """
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    top = jnp.max(jnp.abs(wide), initial=0.0)
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    square = jnp.sum(jnp.square(wide / jnp.where((top > 0) & (top < jnp.inf), top, 1.0)))
    square = square if axis_name is None else jax.lax.psum(square, axis_name)
    size = jnp.log2(top) + jnp.log2(jnp.where(top > 0, square, 1.0)) / 2
    return jnp.where(jnp.isfinite(square), size, square)

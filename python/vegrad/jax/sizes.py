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
    # Of an array that it knows to be one number everywhere, XLA would square the factor by itself.
    values = jax.lax.optimization_barrier(values)
    wide = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    top = jnp.max(jnp.abs(wide), initial=0.0)
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    # A power of two and no division: XLA multiplies with reciprocals, which are 0 beyond 2^126.
    far = 5 * jnp.finfo(wide.dtype).maxexp // 16
    large, small = top > 2.0**far, top < 2.0**-far
    factor = jnp.where(large, 2.0 ** (-2 * far), jnp.where(small, 2.0 ** (2 * far), 1.0))
    square = jnp.sum(jnp.square(wide * factor.astype(wide.dtype)))
    square = square if axis_name is None else jax.lax.psum(square, axis_name)
    size = jnp.log2(square) / 2 + 2 * far * (large.astype(wide.dtype) - small.astype(wide.dtype))
    return jnp.where(jnp.isfinite(top), size, square)

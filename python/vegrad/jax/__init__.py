"""vegrad for JAX: diagnose pure losses, watch optax, and trees with edits applied."""

from vegrad.jax.diagnosis import diagnose
from vegrad.jax.editor import apply_

__all__ = ["apply_", "diagnose"]

"""vegrad for JAX: diagnose pure losses, watch optax, and trees with edits applied."""

from vegrad.jax.diagnosis import diagnose
from vegrad.jax.editor import apply_
from vegrad.jax.watch import WatchState, report, watch

__all__ = ["WatchState", "apply_", "diagnose", "report", "watch"]

"""vegrad for JAX: diagnose pure losses, watch optax, and trees with edits applied."""

try:
    import jax  # noqa: F401
except ModuleNotFoundError as error:
    raise ImportError('vegrad.jax needs JAX: pip install "vegrad[jax]"') from error

from vegrad.jax.diagnosis import diagnose
from vegrad.jax.editor import apply_
from vegrad.jax.watch import WatchState, report, watch

__all__ = ["WatchState", "apply_", "diagnose", "report", "watch"]

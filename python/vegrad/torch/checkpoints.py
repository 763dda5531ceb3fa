"""Checkpoints of the reentrant kind, run as those of the other kind while a model is read.

PyTorch makes no graph of what runs within a reentrant checkpoint until the way back, so that
nothing in it could be followed. Both kinds compute the same, and keep as little.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.utils import checkpoint


class _Followed:
    """Stands in for `torch.utils.checkpoint.CheckpointFunction` in one thread."""

    def __init__(self, original: type[torch.autograd.Function]) -> None:
        self._original, self._thread = original, threading.get_ident()
        self.on = True

    def apply(self, function: Callable[..., object], preserve: bool, *args: object) -> object:
        """Run a function within a checkpoint."""
        ours = self.on and threading.get_ident() == self._thread and torch.is_grad_enabled()
        # Where no input needs a gradient, none comes to the parameters within, which is to be seen.
        if not ours or not any(isinstance(one, Tensor) and one.requires_grad for one in args):
            return self._original.apply(function, preserve, *args)
        return checkpoint.checkpoint(
            function,
            *args,
            use_reentrant=False,
            preserve_rng_state=preserve,
            determinism_check="none",
        )


@contextmanager
def followed() -> Iterator[None]:
    """Run checkpoints of the reentrant kind so that what is in them can be followed."""
    if threading.get_ident() in _as_they_are:
        yield
        return
    original = checkpoint.CheckpointFunction
    instead = _Followed(original)
    checkpoint.CheckpointFunction = instead
    try:
        yield
    finally:
        instead.on = False  # another thread may have taken it for the original
        checkpoint.CheckpointFunction = original


@contextmanager
def as_they_are() -> Iterator[None]:
    """Leave checkpoints as they are, in this thread.

    Only a reentrant one may run something else on the way back than it did before.
    """
    thread = threading.get_ident()
    _as_they_are.add(thread)
    try:
        yield
    finally:
        _as_they_are.discard(thread)


_as_they_are: set[int] = set()

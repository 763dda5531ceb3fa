"""Listening to a training loop: who calls backward, a clip or a GradScaler, and with what.

PyTorch has hooks for modules, tensors and optimizers, but none for these calls. So, while anybody
listens, functions stand in for PyTorch's that tell the listeners and call the original: the
engine's entry (`torch.autograd._engine_run_backward`, which `Tensor.backward` and
`torch.autograd.backward` both call), the insides of the clipping functions, which callers that have
imported these by name run too, and two methods of `GradScaler`. vegrad's own clips tell by
themselves. When the last listener leaves, the originals are put back.
"""

from __future__ import annotations

import functools
import os
import threading
import weakref
from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol, TypeAlias

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.nn.utils import clip_grad
from torch.optim import Optimizer

from vegrad.torch import clip
from vegrad.torch.models import state
from vegrad.torch.monitor.modules import eager

Call: TypeAlias = Callable[..., object]


class Listener(Protocol):
    """An object that is told of a training loop's calls, whichever model they are about."""

    def backward_begins(self, roots: Sequence[object], weights: Sequence[Tensor | None]) -> None:
        """Hear that a backward pass begins: the tensors that it starts from, and their δ."""

    def backward_ends(self) -> None:
        """Hear that it is over, or has raised."""

    def scaled(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Hear that a GradScaler has scaled a loss."""

    def unscaled(self, optimizer: Optimizer) -> None:
        """Hear that a GradScaler has scaled an optimizer's gradients back."""

    def clips(self, clipped: clip.Heard) -> None:
        """Hear of a clip."""


class _Place(NamedTuple):
    """An attribute for which a function stands in."""

    owner: object
    name: str
    original: Call
    replacement: Call


_lock = threading.Lock()
_listeners: list[weakref.ref[Listener]] = []
_places: list[_Place] = []


def _renew_lock() -> None:
    """Forget, in a child of fork(), a lock that another thread may have held."""
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_lock)


def listen(listener: Listener) -> None:
    """Tell `listener` of all calls until it leaves or dies."""
    with _lock:
        _listeners.append(weakref.ref(listener, _forget))
        if not _places:
            _stand_in()


def leave(listener: Listener) -> None:
    """Tell `listener` nothing more."""
    with _lock:
        # Those that have died are dropped too: one may die while the lock is held.
        _listeners[:] = [one for one in _listeners if one() not in (None, listener)]
        _put_back()


def _forget(dead: weakref.ref[Listener]) -> None:
    _listeners[:] = [one for one in _listeners if one() is not None]
    if _lock.acquire(blocking=False):  # a listener may die anywhere, also while the lock is held
        try:
            _put_back()
        finally:
            _lock.release()


def _alive() -> list[Listener]:
    return [one for reference in _listeners if (one := reference()) is not None]


def _stand_in() -> None:
    for owner, name, make in (
        (torch.autograd, "_engine_run_backward", _backward),
        (_inside(clip_grad._clip_grads_with_norm_), "cell_contents", _clip_norm),
        (_inside(clip_grad.clip_grad_value_), "cell_contents", _clip_value),
        (GradScaler, "scale", _scale),
        (GradScaler, "unscale_", _unscale),
    ):
        original = getattr(owner, name, None)
        if original is not None:
            replacement = functools.wraps(original)(make(original))
            _places.append(_Place(owner, name, original, replacement))
            setattr(owner, name, replacement)
    clip.heard = _heard


def _inside(decorated: Call) -> object:
    """Return the cell that holds the function which a decorator of PyTorch's has wrapped."""
    cells = dict(zip(decorated.__code__.co_freevars, decorated.__closure__ or (), strict=True))
    return cells.get("func")


def _put_back() -> None:
    """Put the originals back if nobody listens; a function that somebody put over ours stays."""
    if _listeners:
        return
    for owner, name, original, replacement in _places:
        if getattr(owner, name, None) is replacement:
            setattr(owner, name, original)
    _places.clear()
    clip.heard = None


def _backward(original: Call) -> Call:
    def run_backward(
        roots: Sequence[object], weights: Sequence[Tensor | None], *rest: object, **named: object
    ) -> object:
        told = _alive() if named.get("accumulate_grad") and not state.on else []
        for listener in told:
            listener.backward_begins(roots, weights)
        try:
            return original(roots, weights, *rest, **named)
        finally:
            _end(told)

    return eager(run_backward)


def _end(told: Sequence[Listener]) -> None:
    """Tell listeners that a backward pass is over, all of them though one may raise a finding."""
    for place, listener in enumerate(told):
        try:
            listener.backward_ends()
        except BaseException:
            _end(told[place + 1 :])
            raise


def _clip_norm(original: Call) -> Call:
    def clip_grads_with_norm_(
        parameters: clip.Tensors, max_norm: float, total_norm: Tensor, foreach: bool | None = None
    ) -> None:
        if not torch.compiler.is_compiling():
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            _heard(clip.Heard(parameters, "norm", float(max_norm), total_norm))
        original(parameters, max_norm, total_norm, foreach)

    return clip_grads_with_norm_


def _clip_value(original: Call) -> Call:
    def clip_grad_value_(
        parameters: clip.Tensors, clip_value: float, foreach: bool | None = None
    ) -> None:
        if not torch.compiler.is_compiling():
            parameters = [parameters] if isinstance(parameters, Tensor) else list(parameters)
            _heard(clip.Heard(parameters, "value", float(clip_value), None))
        original(parameters, clip_value, foreach)

    return clip_grad_value_


def _scale(original: Call) -> Call:
    def scale(self: GradScaler, outputs: object) -> object:
        result = original(self, outputs)
        if result is not outputs:
            for listener in _alive():
                listener.scaled(self, outputs, result)
        return result

    return eager(scale)


def _unscale(original: Call) -> Call:
    def unscale_(self: GradScaler, optimizer: Optimizer) -> None:
        original(self, optimizer)
        for listener in _alive():
            listener.unscaled(optimizer)

    return eager(unscale_)


def _heard(clipped: clip.Heard) -> None:
    for listener in _alive():
        listener.clips(clipped)

"""The facts of a training loop: the loss, and in which order a step's calls came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from math import nan

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from vegrad.torch.clip import Heard
from vegrad.torch.gradient_norms import is_distributed

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class Loop:
    """A listener that keeps, for one model, what its training loop has done since its last step.

    A backward pass is the model's if it changes the `.grad` of one of its parameters. The loss is
    the sum of what the backward passes began with since the gradients were last empty: that of
    which `.grad` holds the gradient. A GradScaler's factor is taken out of it.

    Args:
        parameters: returns the model's parameters.
    """

    def __init__(self, parameters: Callable[[], list[Tensor]]) -> None:
        self._parameters = parameters
        self._depth = 0
        self._grads: list[Tensor | None] = []
        self._versions: list[int] = []
        self._root: Tensor | None = None
        self._scaler: GradScaler = None
        self.begin()

    def begin(self) -> None:
        """Begin a step."""
        self.losses: list[Tensor | None] = []
        """Of each backward pass since the gradients were empty; None if it was no scalar's."""
        self.backwards = 0
        self.given: float | None = None
        """The loss that the user has given."""

    def backward_begins(self, roots: Sequence[object], weights: Sequence[Tensor | None]) -> None:
        """Note the loss, and which gradients are there."""
        self._depth += 1
        if self._depth > 1:  # within another pass, as checkpoints do
            return
        self._grads = grads = [one.grad for one in self._parameters()]
        there = [one for one in grads if one is not None]
        self._versions = [-1 if one is None else one._version for one in grads] if there else []
        self._empty = not there or not any(
            map(_has_some, {there[-1], there[len(there) // 2], there[0]})
        )
        self._root = self._loss_of(roots)
        self._scaler = None

    def backward_ends(self) -> None:
        """Count the pass if it has changed a gradient of the model."""
        self._depth -= 1
        if self._depth:
            return
        before, self._grads, root, self._root = self._grads, [], self._root, None
        if self._has_changed(before):
            if self._empty:
                self.begin()
            self.backwards += 1
            self.losses.append(root)

    def _has_changed(self, before: Sequence[Tensor | None]) -> bool:
        versions = self._versions or repeat(-1)
        for parameter, old, version in zip(self._parameters(), before, versions, strict=False):
            now = parameter.grad
            if now is not old or (now is not None and now._version != version):
                return True
        return False

    def _loss_of(self, roots: Sequence[object]) -> Tensor | None:
        """Return the loss that a backward pass begins with, where it is known."""
        total: Tensor | None = None
        for root in roots:
            if not isinstance(root, Tensor) or root.numel() != 1 or root.is_meta:
                return None
            if is_distributed(root) or _is_wrapped(root):
                return None
            value = root.detach()
            if self._scaler is not None:
                value = value.double() / self._scaler._scale.to(value.device)
            total = value if total is None else total + value
        return total

    def scaled(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Remember the scaler whose factor the next backward pass's loss has."""
        self._scaler = scaler

    def unscaled(self, optimizer: Optimizer) -> None:
        """Note that gradients are as they were before a GradScaler scaled the loss."""

    def clips(self, clipped: Heard) -> None:
        """Note a clip."""

    def loss(self) -> float:
        """Return the step's loss; nan if it is not known. Those on other devices are waited for."""
        if self.given is not None:
            return self.given
        if not self.losses or any(one is None for one in self.losses):
            return nan
        return sum(float(one) for one in self.losses if one is not None)


def _has_some(grad: Tensor) -> bool:
    """Return True if some of a few elements is not 0; those on other devices are taken to be."""
    if grad.device.type != "cpu" or grad.layout is not torch.strided or type(grad) is not Tensor:
        return True
    flat = grad.detach().reshape(-1) if grad.is_contiguous() else grad.detach()[:1].reshape(-1)
    return bool(flat[:: max(len(flat) // 64, 1)].any())

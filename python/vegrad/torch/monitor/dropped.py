"""Backward passes for nothing: their gradients were emptied before a step could take them."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from vegrad.torch.models import tensors_in
from vegrad.torch.monitor.updates import can_be_sampled, few

_is_wrapped = torch._C._functorch.is_functorch_wrapped_tensor


class Dropped:
    """The passes before a step whose gradients were emptied, and served nothing else either.

    Loops drop gradients that they have used: those of an attack on the inputs, of a step of other
    parameters, of a sharper place that weights were moved to, those read by hand. So passes count
    only if each was of other data, which need no gradient, at weights that nobody has moved, with
    no step of any optimizer between them, and if the step takes the last gradient as it was made.
    A single one may have been read by hand, but not if its loss and the step's own were halved.
    """

    def __init__(self) -> None:
        self.count = 0
        """The passes that the last step has lost; 0 if that is not certain."""
        self.reset()

    def reset(self) -> None:
        """Begin anew: an optimizer has stepped."""
        self._passes, self._is_sure = 0, True
        self._are_halved = True
        self._call: object = None
        self._data: Tensor | None = None
        self._weights: list[Tensor] = []
        self._grads: list[Tensor] | None = []
        """A few elements of some gradients as the last pass left them; None once they were seen
        to be what a step takes."""

    def see_loss(self, roots: Sequence[object]) -> None:
        """Note with which losses a backward pass begins."""
        self._are_halved &= len(roots) == 1 and _is_halved(roots[0])

    @torch.no_grad()
    def see_pass(self, parameters: Sequence[Tensor], call: object, *, began_empty: bool) -> None:
        """Note a backward pass.

        Args:
            parameters: a few of the model's.
            call: what the model was last called with.
            began_empty: True if there was no gradient as the pass began.
        """
        first, data = self._call is None, _data(call)
        weights = [few(one).clone() for one in parameters if can_be_sampled(one)]
        self._is_sure &= began_empty and bool(weights) and data is not None
        if not first and self._is_sure:
            self._is_sure = call is not self._call and not _same([data], [self._data])
            self._is_sure &= _same(weights, self._weights)
            self._passes += 1
        self._call, self._data, self._weights = call, data, weights
        self._grads = _grads(parameters)

    @torch.no_grad()
    def see_taken(self, parameters: Sequence[Tensor]) -> None:
        """Compare gradients with what the last pass made: a clip or step is about to take them."""
        if self._passes and self._grads is not None:
            self._is_sure &= _same(_grads(parameters), self._grads)
            self._grads = None

    def step_begins(self, parameters: Sequence[Tensor]) -> None:
        """Count what a step has lost."""
        self.see_taken(parameters)
        is_sure = self._is_sure and (self._passes > 1 or self._are_halved)
        self.count = self._passes * is_sure
        self.reset()


def _is_halved(loss: object) -> bool:
    """Return True of a loss that is another one divided by two."""
    node = getattr(loss, "grad_fn", None)
    by = {"DivBackward0": 2.0, "MulBackward0": 0.5}.get(type(node).__name__)
    other = None if by is None else getattr(node, "_saved_other", None)
    if not isinstance(other, Tensor) or not other.is_cpu or _is_wrapped(other):
        return False
    return other.numel() == 1 and other.item() == by


def _data(call: object) -> Tensor | None:
    """Return a few numbers that a model was given; None if it is to give them a gradient."""
    given = list(tensors_in(call))
    if not given or any(one.requires_grad for one in given):
        return None
    first = given[0].detach()
    if type(first) is not Tensor or first.layout is not torch.strided or first.is_meta:
        return None
    first = first if first.is_contiguous() else first[:1].contiguous()  # as a slice of tokens
    return few(first).clone() if first.numel() else None


def _grads(parameters: Sequence[Tensor]) -> list[Tensor]:
    grads = (one.grad for one in parameters)
    return [few(one).clone() for one in grads if one is not None and can_be_sampled(one)]


def _same(now: Sequence[Tensor | None], before: Sequence[Tensor | None]) -> bool:
    """Return True if all are equal, one by one."""
    return len(now) == len(before) and all(
        one is not None and two is not None and torch.equal(one, two)
        for one, two in zip(now, before, strict=True)
    )

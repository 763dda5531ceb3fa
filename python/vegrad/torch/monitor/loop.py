"""The facts of a training loop: the loss, and in which order a step's calls came."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import repeat
from math import inf, nan
from typing import TypeAlias

import torch
from torch import Tensor
from torch.amp import GradScaler
from torch.optim import Optimizer

from vegrad.torch.clip import Heard
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.monitor.dropped import Dropped
from vegrad.torch.monitor.scaling import Scaling
from vegrad.torch.monitor.stepped import SeenStep, Stepped, has_some

Glanced: TypeAlias = tuple[int, Tensor | None, int]
"""A parameter's place, its gradient, and the version of that."""
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
        self._known: list[Tensor] = []
        self._ids: frozenset[int] = frozenset()
        self.depth = 0
        """Backward passes within each other that are in progress."""
        self.closely = True
        """False in a step that is not looked at: a few gradients tell whose backward pass it is."""
        self.began_empty = False
        """True if there was no gradient as the last backward pass began."""
        self._glances: list[Glanced] | None = None
        """In such a step's backward pass: gradients before it, with place and version."""
        self._grads: list[Tensor | None] = []
        self._versions: list[int] = []
        self.root: Tensor | float | None = None
        """The loss of the backward pass in progress."""
        self.scaling = Scaling()
        self.steps, self.dropped = Stepped(), Dropped()
        self.made_by = ""
        """PyTorch's name of the operation that made the first loss, "NllLossBackward0"."""
        self.passes = 0
        """Backward passes that were heard since the last one of this model."""
        self.reset()

    def reset(self) -> None:
        """Forget the calls of the step before."""
        self.over = False
        """True once the step is taken: what comes next belongs to the next one."""
        self.given: float | None = None
        """The loss that the user has given."""
        self._clip = ""
        self._heard: Heard | None = None
        self._clip_scale: Tensor | float = 1.0
        self._restart()

    def _restart(self) -> None:
        """Forget the backward passes, whose gradients are gone."""
        self._losses: list[Tensor | float | None] = []
        self.backwards = 0
        """Backward passes since the gradients were empty."""
        self.scale: Tensor | None = None
        """The factor of a GradScaler that the gradients have."""
        self._last: tuple[int, int, bool] | None = None
        """A parameter whose gradient the last pass has changed: its place, the gradient's version,
        and True if it is known that some element of it was not 0."""

    # The calls ----------------------------------------------------------------------------------

    def backward_begins(self, roots: Sequence[object], weights: Sequence[Tensor | None]) -> None:
        """Note the loss, and which gradients are there."""
        self.depth += 1
        if self.depth > 1:  # within another pass, as checkpoints do
            return
        self.passes += 1
        if not self.closely and self.steps.probes:
            self._glances = _glanced(parameters := self._parameters(), self.steps.probes)
            self.steps.look(parameters)
            root = roots[0] if len(roots) == 1 and self.scaling.scale is None else None
            if isinstance(root, Tensor) and _is_number(root):
                self.root = root.item()
            else:
                self.root = self._loss_of(roots)
            return
        self.dropped.see_loss(roots)
        self._grads = grads = [one.grad for one in self._parameters()]
        there = [one for one in grads if one is not None]
        self._versions = [-1 if one is None else one._version for one in grads] if there else []
        few = {there[-1], there[len(there) // 2], there[0]} if there else ()
        self.began_empty = not any(map(has_some, few))
        self.steps.look(self._parameters())
        self.root = self._loss_of(roots)

    def backward_ends(self) -> None:
        """Count the pass if it has changed a gradient of the model."""
        self.depth -= 1
        if self.depth:
            return
        before, self._grads, root, self.root = self._grads, [], self.root, None
        scale = self.scaling.take()
        parameters, glances, self._glances = self._parameters(), self._glances, None
        if glances is None:
            changed = _changed(parameters, before, self._versions)
        else:
            changed, self.began_empty = _after_glance(parameters, glances)
        if changed is None:
            return
        if self.over:
            self.reset()
        elif self.began_empty:
            self._restart()
        self.backwards, self.passes = self.backwards + 1, 0
        self._losses.append(root)
        self.scale = scale
        self.steps.stamp(parameters)
        if glances is not None:
            self._last = None
            return
        grad = parameters[changed].grad
        if grad is not None:
            self._last = changed, grad._version, has_some(grad)

    def _loss_of(self, roots: Sequence[object]) -> Tensor | None:
        """Return the loss that a backward pass begins with, where it is known."""
        total = _total(roots, self.scaling)
        if total is not None and not self.made_by:
            self.made_by = type(getattr(roots[0], "grad_fn", None)).__name__
        return total

    def scaled(self, scaler: GradScaler, raw: object, result: object) -> None:
        """Remember the scaler whose factor the next backward pass's loss has."""
        self.scaling.note(scaler, raw, result)

    def unscaled(self, optimizer: Optimizer) -> None:
        """Note that gradients are as they were before a GradScaler scaled the loss."""
        if self.steps.knows(optimizer) or not self._mine.isdisjoint(
            id(one) for group in optimizer.param_groups for one in group["params"]
        ):
            self.scale = None

    def clips(self, clipped: Heard) -> None:
        """Note a clip of the model's gradients, and when it comes."""
        if not 0 < clipped.limit < inf:  # to measure a norm is no clip
            return
        mine = self._mine
        if not any(id(one) in mine for one in clipped.parameters):
            return
        if self.over:
            self.reset()
        if self.backwards == 0:
            kind, scale = "before", None
        else:
            kind, scale = ("scaled", self.scale) if self.scale is not None else ("done", None)
            self.dropped.see_taken(self.steps.few(self._parameters()))
        if self._clip != "done":
            self._clip, self._heard = kind, clipped._replace(parameters=())
            self._clip_scale = 1.0 if scale is None else scale

    @property
    def has_gone_back(self) -> bool:
        """True if there was a backward pass of the model since its last step."""
        return not self.over and self.backwards > 0

    @property
    def clip(self) -> tuple[Tensor | float | None, float]:
        """The norm before the step's clip, and its limit; None and nan if they are not known."""
        if self._clip != "done" or self._heard is None or self._heard.kind != "norm":
            return None, nan
        return self._heard.norm, self._heard.limit

    @property
    def _mine(self) -> frozenset[int]:
        parameters = self._parameters()
        if parameters is not self._known:
            self._known, self._ids = parameters, frozenset(map(id, parameters))
        return self._ids

    def stepped(self, optimizer: Optimizer, step: int, norm: float) -> bool:
        """Note a step with gradients of this joint norm (nan: unknown); tell if to judge now."""
        parameters = self._parameters()
        seen = SeenStep(
            step,
            self.backwards,
            self._was_emptied(parameters, norm),
            self._clip,
            self._heard,
            self._clip_scale,
            norm,
            self.dropped.count,
        )
        return self.steps.note(optimizer, parameters, seen)

    def _was_emptied(self, parameters: list[Tensor], norm: float) -> bool:
        """Return True if what the backward passes gave was gone before the step."""
        if self._last is None or not self.backwards:
            return False
        place, version, had_some = self._last
        grad = parameters[place].grad
        if grad is None:
            return norm == 0
        return norm == 0 and had_some and grad._version != version

    def give(self, loss: float) -> None:
        """Take the loss of the step in progress from the user."""
        if self.over:
            self.reset()
        self.given = loss

    def loss(self) -> float:
        """Return the step's loss; nan if it is not known. Those on other devices are waited for."""
        if self.over:
            return nan
        if self.given is not None:
            return self.given
        if self.depth and self.root is not None:  # a step that is taken within the pass
            return float(self.root)
        if not self._losses or any(one is None for one in self._losses):
            return nan
        return sum(float(one) for one in self._losses if one is not None)


def _total(roots: Sequence[object], scaling: Scaling) -> Tensor | None:
    """Return the sum of losses without a factor; None if one of them is no number."""
    total: Tensor | None = None
    for root in roots:
        if not isinstance(root, Tensor) or root.numel() != 1 or root.is_meta:
            return None
        if is_distributed(root) or _is_wrapped(root):
            return None
        value = scaling.before(root)
        total = value if total is None else total + value
    return total


def go_on(loop: Loop, backwards: int, loss: float, norm: float, limit: float) -> None:
    """Have a loop go on with a step whose backward passes so far `_core.Quiet` has heard.

    Args:
        loop: the loop, which has heard none of it.
        backwards: their number.
        loss: the sum of their losses.
        norm: the joint norm before a clip of the gradients; nan if there was none.
        limit: its limit.
    """
    loop.reset()
    loop.backwards, loop._losses = backwards, [loss]
    if norm == norm:
        loop._clip, loop._heard = "done", Heard((), "norm", limit, torch.tensor(norm))


def is_clipped(parameters: Sequence[Tensor], clipped: Heard) -> tuple[bool, bool]:
    """Return True if a clip is of these parameters' gradients, and if it is of all."""
    named = set(map(id, clipped.parameters))
    graded = [id(one) in named for one in parameters if one.grad is not None]
    return any(graded), all(graded)


def _glanced(parameters: Sequence[Tensor], places: Sequence[int]) -> list[Glanced]:
    """Return the gradients of a few parameters, as a backward pass begins."""
    found: list[Glanced] = []
    for place in places:
        grad = parameters[place].grad
        found.append((place, grad, -1 if grad is None else grad._version))
    return found


def _after_glance(
    parameters: Sequence[Tensor], glances: Sequence[Glanced]
) -> tuple[int | None, bool]:
    """Return the place of one that was changed, and True if it was empty before."""
    for place, old, version in glances:
        now = parameters[place].grad
        if now is not old or (now is not None and now._version != version):
            return place, old is None
    return None, False


def _is_number(root: Tensor) -> bool:
    """Return True of a loss whose value is at hand."""
    return type(root) is Tensor and root.is_cpu and root.ndim == 0 and not _is_wrapped(root)


def _changed(
    parameters: Sequence[Tensor], before: Sequence[Tensor | None], versions: Sequence[int]
) -> int | None:
    """Return the place of a parameter whose gradient is another than before."""
    known = versions or repeat(-1)
    for place, (one, old, version) in enumerate(zip(parameters, before, known, strict=False)):
        now = one.grad
        if now is not old or (now is not None and now._version != version):
            return place
    return None

"""The steps of a model's optimizers: what each took, and gradients that nobody has emptied."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd, isfinite, nan

import torch
from torch import Tensor
from torch.optim import Optimizer

from vegrad.flow.watched import LoopStep
from vegrad.torch.clip import Heard

KEEP = 64  # steps of each optimizer that are kept
PROBES = 3  # parameters of each optimizer whose gradients are asked whether they were emptied
SAMPLED = 64  # elements of a gradient that are asked whether they are 0
ENOUGH = 6  # steps in a row that took what was left, after which a training is judged


@dataclass
class SeenStep:
    """One step of an optimizer, as it was seen; tensors are read when somebody asks."""

    step: int
    backwards: int
    emptied: bool
    clip: str
    heard: Heard | None
    scale: Tensor | float
    norm: float
    dropped: int = 0
    kept: bool = False
    passed: tuple[bool, ...] = ()


class _Held:
    """The parameters of the model that an optimizer holds, and its last steps."""

    def __init__(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> None:
        self.count = _count(optimizer)
        held = {id(one) for group in optimizer.param_groups for one in group["params"]}
        self.places = [place for place, one in enumerate(parameters) if id(one) in held]
        last = len(self.places) - 1
        self.probes = {self.places[n * last // (PROBES - 1)] for n in range(PROBES) if last >= 0}
        self.left: dict[int, tuple[int, int]] = {}
        """Gradients that were stepped and not emptied since: id and version, by place."""
        self.is_added_to = False
        """True if a backward pass was since then, which has changed one of them."""
        self.steps: deque[SeenStep] = deque(maxlen=KEEP)
        self.passed: deque[bool] = deque(maxlen=KEEP)
        """For each step since the last that was looked at: if it took what was left."""
        self.streak = 0
        """Steps in a row that did."""

    def took(self) -> bool:
        """Return True if the step that was taken took gradients of the one before again."""
        kept = bool(self.left) and self.is_added_to
        self.streak = self.streak + 1 if kept else 0
        return kept

    def leave(self, parameters: Sequence[Tensor]) -> None:
        """Note which gradients are there after a step."""
        self.is_added_to = False
        self.left = {
            place: _stamp(grad)
            for place in self.probes
            if (grad := parameters[place].grad) is not None
        }


class Stepped:
    """The steps of all optimizers that have parameters of one model."""

    def __init__(self) -> None:
        self._held: weakref.WeakKeyDictionary[Optimizer, _Held] = weakref.WeakKeyDictionary()
        self._every: deque[_Held] = deque(maxlen=KEEP)
        """The same, of optimizers that are gone too."""
        self.ids: set[int] = set()
        """The ids of the parameters that an optimizer has stepped."""
        self.probes: list[int] = []
        """The places of a few of them, of each optimizer."""

    def few(self, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Return a few parameters of each optimizer."""
        return [parameters[place] for place in self.probes if place < len(parameters)]

    @property
    def only(self) -> Optimizer | None:
        """The optimizer, if there has been one alone."""
        return next(iter(self._held), None) if len(self._every) == 1 else None

    @property
    def left(self) -> list[tuple[int, int] | None]:
        """The gradients that the last step has left, by probe: id and version; of one optimizer."""
        return [self._every[0].left.get(place) for place in self.probes]

    def pass_over(self, count: int, left: Sequence[tuple[int, int]] | None) -> None:
        """Take in steps that were not looked at, of which each took gradients of its own.

        Args:
            count: the number of steps.
            left: the gradients that the last of them has left, by probe; None if they are gone.
        """
        held = self._every[0]
        held.passed.extend([False] * count)
        held.streak = 0 if count else held.streak
        held.is_added_to = False
        held.left = {}
        for place, stamp in zip(self.probes, left or (), strict=False):
            if stamp[0]:
                held.left[place] = stamp

    def knows(self, optimizer: Optimizer) -> bool:
        """Return True for an optimizer that has stepped."""
        return optimizer in self._held

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those that have stepped, and are still there."""
        return list(self._held)

    def last(self, optimizer: Optimizer) -> SeenStep | None:
        """Return the last step of an optimizer."""
        held = self._held.get(optimizer)
        return held.steps[-1] if held is not None and held.steps else None

    def look(self, parameters: Sequence[Tensor]) -> None:
        """Look which gradients that were stepped are left, as a backward pass begins."""
        for held in self._every:
            if held.left:
                held.left = {
                    place: stamp
                    for place, stamp in held.left.items()
                    if place < len(parameters) and _is_left(parameters[place].grad, stamp)
                }

    def stamp(self, parameters: Sequence[Tensor]) -> None:
        """Note how the gradients that were left are, as the backward pass ends."""
        for held in self._every:
            for place, before in held.left.items():
                held.left[place] = now = _stamp(parameters[place].grad)
                held.is_added_to |= now != before

    def note(self, optimizer: Optimizer, parameters: Sequence[Tensor], seen: SeenStep) -> bool:
        """Take in a step of an optimizer; return True if it is time to judge."""
        held = self._held.get(optimizer)
        if held is None or held.count != _count(optimizer):
            held = self._renewed(held, optimizer, parameters)
        seen.kept, seen.passed = held.took(), tuple(held.passed)
        held.passed.clear()
        held.steps.append(seen)
        held.leave(parameters)
        return held.streak == ENOUGH

    def passes(self, optimizer: Optimizer, parameters: Sequence[Tensor]) -> bool:
        """Take in a step that was not looked at; return as `note` does."""
        if (held := self._held.get(optimizer)) is None:
            return False
        held.passed.append(held.took())
        held.leave(parameters)
        return held.streak == ENOUGH

    def _renewed(
        self, old: _Held | None, optimizer: Optimizer, parameters: Sequence[Tensor]
    ) -> _Held:
        """Look up the parameters of an optimizer that is new, or has been given others."""
        held = self._held[optimizer] = _Held(optimizer, parameters)
        if old is not None:
            held.steps = old.steps
            self._every.remove(old)
        self._every.append(held)
        self.ids.update(id(parameters[place]) for place in held.places)
        self.probes = sorted({place for one in self._every for place in one.probes})
        return held

    def facts(self, names: Sequence[str] = ()) -> tuple[tuple[LoopStep, ...], ...]:
        """Return the last steps of each optimizer of the model, whose parameters have names."""

        def known(held: _Held) -> tuple[LoopStep, ...]:
            own = tuple(names[place] for place in held.places if place < len(names))
            return tuple(_plain(one, own) for one in held.steps)

        return tuple(known(held) for held in self._every if held.places)


def _plain(step: SeenStep, holds: tuple[str, ...]) -> LoopStep:
    heard = step.heard
    before = nan if heard is None or heard.norm is None else float(heard.norm)
    return LoopStep(
        step=step.step,
        backwards=step.backwards,
        kept=step.kept,
        passed=step.passed,
        emptied=step.emptied,
        dropped=step.dropped,
        clip=step.clip,
        limit=nan if heard is None else heard.limit,
        by_value=heard is not None and heard.kind == "value",
        before=before if isfinite(before) else nan,
        scale=float(step.scale),
        norm=step.norm,
        holds=holds,
    )


def _count(optimizer: Optimizer) -> int:
    groups = optimizer.param_groups
    if len(groups) == 1:
        return len(groups[0]["params"])
    return sum([len(group["params"]) for group in groups])


def _stamp(grad: Tensor | None) -> tuple[int, int]:
    return (0, 0) if grad is None else (id(grad), grad._version)


def _is_left(grad: Tensor | None, stamp: tuple[int, int]) -> bool:
    """Return True if a gradient that was stepped is there as it was."""
    return grad is not None and _stamp(grad) == stamp and has_some(grad)


def has_some(grad: Tensor) -> bool:
    """Return True if some of a few elements is not 0; those on other devices are taken to be."""
    if grad.device.type != "cpu" or grad.layout is not torch.strided or type(grad) is not Tensor:
        return True
    flat = grad.detach().reshape(-1) if grad.is_contiguous() else grad.detach()[:1].reshape(-1)
    stride = max(len(flat) // SAMPLED, 1)
    while gcd(stride, len(flat)) > 1:  # else it may be that of a column, whose inputs are all 0
        stride += 1
    return bool(flat[::stride].any())

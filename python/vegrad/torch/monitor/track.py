"""The numbers of optimizers' steps that are kept for the picture of a run."""

from __future__ import annotations

import weakref
from collections import deque
from math import inf, isfinite, nan
from typing import NamedTuple, TypeAlias

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from vegrad.arrays.checks import FloatArray
from vegrad.torch.optimizer_step import CoreStep

Size: TypeAlias = Tensor | float | None
MOMENTARY = ("params", "lr", "initial_lr")  # of a group's entries: no settings of the whole run
NAMES = ("norm_before_clip", "norm_after_clip")  # among the numbers for loggers
ALIKE = 0.01  # relative: the size after a clip is what its limit says


class _Stepped(NamedTuple):
    step: int
    rate: float
    before: Size
    """The joint norm before a clip that was heard, which may be one of a part of the gradients."""
    limit: float
    after: float
    """The joint norm after the clip of one of vegrad's own optimizers."""

    def around(self, norm: float) -> tuple[float, float] | None:
        """Return the joint norm before and after a clip of all gradients; None if none was heard.

        `norm` is the one that was read.
        """
        if isfinite(self.after):  # it was read before the clip
            return norm, self.after
        if self.before is None or not 0 < self.limit < inf:
            return None
        # What was clipped are all gradients only if the clip left what was read.
        before = float(self.before)
        return (before, norm) if abs(norm - min(before, self.limit)) <= ALIKE * norm else None


class Tracks(NamedTuple):
    """Columns for some steps, (S,) each; nan where a number is not known."""

    before: FloatArray
    after: FloatArray
    rate: FloatArray
    update: FloatArray


class Track:
    """The learning rate, the clip and the update of each of the last steps.

    Args:
        keep: number of steps that are kept.
    """

    def __init__(self, keep: int) -> None:
        self._steps: deque[_Stepped] = deque(maxlen=keep)
        self._updates: deque[tuple[int, float]] = deque(maxlen=keep)
        self._seen: weakref.WeakSet[Optimizer] = weakref.WeakSet()
        self.settings: list[dict[str, object]] = []
        """Of each optimizer at its first step, as plain JSON types."""

    def stepped(self, step: int, optimizer: Optimizer, before: Size, limit: float) -> None:
        """Keep a step of an optimizer, and what was heard of a clip before it."""
        if optimizer not in self._seen:
            self._seen.add(optimizer)
            self.settings.append(_settings(optimizer))
        after = nan
        if isinstance(optimizer, CoreStep) and optimizer.clip is not None:
            after = nan if optimizer.clipped is None else optimizer.clipped.norm_after
        if isinstance(before, Tensor) and before.device.type == "cpu":
            before = float(before)
        self._steps.append(_Stepped(step, rate_of(optimizer), before, limit, after))

    def passed(self, step: int, rate: float, before: Size, limit: float, after: float) -> None:
        """Keep the same of a step that nobody has looked at."""
        if isinstance(before, Tensor) and before.device.type == "cpu":
            before = float(before)
        self._steps.append(_Stepped(step, rate, before, limit, after))

    def updated(self, step: int, ratio: float) -> None:
        """Keep the size of a step's update beside that of the weights."""
        self._updates.append((step, ratio))

    def columns(self, step: FloatArray, norm: FloatArray) -> Tracks:
        """Return what is known of these steps.

        Args:
            step: their numbers, (S,), rising.
            norm: joint norms of the gradients as they were read, (S,).
        """
        found = Tracks(norm.copy(), norm.copy(), *np.full((2, len(step)), nan))
        place = {int(one): n for n, one in enumerate(step)}
        for number, ratio in self._updates:  # at the step, or the last one before it that is kept
            if (n := int(np.searchsorted(step, number, side="right")) - 1) >= 0:
                found.update[n] = ratio
        for one in self._steps:
            if one.step not in place:
                continue
            n = place[one.step]
            found.rate[n] = np.fmax(found.rate[n], one.rate)
            if (pair := one.around(float(norm[n]))) is not None:
                found.before[n], found.after[n] = pair
        return found

    def last(self, norm: float) -> tuple[float, float, float]:
        """Return the joint norm before and after the clip of the last step, and the rate."""
        one = self._steps[-1]
        return *(one.around(norm) or (norm, norm)), one.rate

    def clip(self, step: int, norm: float) -> dict[str, float]:
        """Return a late step's norms around its clip, by name; nothing if no clip was heard.

        `norm` is the joint norm of that step's gradients as they were read.
        """
        for one in reversed(self._steps):
            if one.step <= step:
                pair = one.around(norm) if one.step == step else None
                return dict(zip(NAMES, pair, strict=True)) if pair is not None else {}
        return {}


def rate_of(optimizer: Optimizer) -> float:
    """Return the largest learning rate of an optimizer's groups; nan if none is a plain number."""
    groups = optimizer.param_groups
    if len(groups) == 1:
        return rate if type(rate := groups[0]["lr"]) is float else nan
    return max((rate for group in groups if type(rate := group["lr"]) is float), default=nan)


def _settings(optimizer: Optimizer) -> dict[str, object]:
    """Return the name and the settings of an optimizer; of its groups those of the first."""
    found: dict[str, object] = {"": type(optimizer).__name__}
    for name, value in optimizer.param_groups[0].items():
        if name not in MOMENTARY and isinstance(value, bool | int | float | tuple):
            found[f": {name}"] = list(value) if isinstance(value, tuple) else value
    if isinstance(optimizer, CoreStep) and optimizer.clip is not None:
        found[": clip"] = None if optimizer.clip is None else repr(optimizer.clip)
    return found

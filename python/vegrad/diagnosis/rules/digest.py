"""A history as the rules on steps ask for it: each figure worked out once."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, isfinite, nan
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.noted import Noted
from vegrad.diagnosis.rules.long_steps import BLOCK, start_of

NO_LOSS = 1e-12  # of a training that begins with nothing left to learn
ROUNDING = 1e-6  # of a loss in float32
STILL = -0.999  # α of steps that go nowhere
SWING = 0.1  # of all that the loss has lost: a rise below that is noise


class Steps(Protocol):
    """The columns of a `vegrad.History` that these rules read."""

    loss: FloatArray
    loss_after: FloatArray
    slope: FloatArray
    step_length: FloatArray
    alpha: FloatArray
    learning_rate: FloatArray
    gradient_norm: FloatArray
    coefficient: FloatArray
    epoch_loss: FloatArray
    epoch_steps: FloatArray
    update_log2: FloatArray
    windows: int
    learnt: tuple[float, float] | None

    @property
    def steps(self) -> int:
        """The number of steps."""

    @property
    def epochs(self) -> int:
        """The number of finished epochs."""

    @property
    def noted(self) -> tuple[Noted, ...]:
        """The findings that were met while it ran."""


class Digest:
    """Figures of a history, each worked out once."""

    def __init__(self, history: Steps) -> None:
        self.history, self.loss = history, leveled(history.loss, history.windows)
        self.start, self.learnt = start_of(self.loss), history.learnt is not None
        self.most = self.start
        """The loss of a network that has learnt nothing, or that it began with."""
        if history.learnt is not None:  # its first batches may happen to have next to none
            self.start = max(self.start, history.learnt[0])
            self.most = max(self.start, history.learnt[1])

    @cached_property
    def looked(self) -> npt.NDArray[np.intp]:
        """The steps that were looked at."""
        alpha: FloatArray = self.history.alpha
        return np.flatnonzero(alpha == alpha)

    @cached_property
    def looks(self) -> npt.NDArray[np.intp]:
        """Those of them that go downhill on their batch."""
        return self.looked[self.history.slope[self.looked] < 0]

    @cached_property
    def alpha(self) -> FloatArray:
        """Their α."""
        return self.history.alpha[self.looks]

    @cached_property
    def after(self) -> FloatArray:
        """The loss of their batch after them."""
        return self.history.loss_after[self.looks]

    @property
    def rise(self) -> FloatArray:
        """The change of that loss by the step."""
        with np.errstate(all="ignore"):
            return self.after - self.history.loss[self.looks]

    @cached_property
    def climbs(self) -> npt.NDArray[np.bool_]:
        """True where that is higher than before, by more than numbers are rounded."""
        before = self.history.loss[self.looks]
        return ~(self.after <= before + ROUNDING * np.abs(before)) & ~(self.alpha < STILL)

    @cached_property
    def median(self) -> float:
        """The median α; nan if none was looked at."""
        return middle(self.alpha)

    @cached_property
    def fallen(self) -> float:
        """The part of its first value that the loss has lost in the last epoch's steps."""
        count = int(self.history.epoch_steps[-1]) if self.history.epochs else len(self.loss)
        last = self.loss[-min(count, max(len(self.loss) // 2, 1)) :]
        with np.errstate(all="ignore"):
            return float(1 - last.sum() / len(last) / self.start)

    @property
    def fall_by_looks(self) -> float:
        """The part that all steps would take off the loss if each did as those looked at.

        It is nan if none was looked at. The loss is that of a step's own batch, which falls by more
        than that of all rows.
        """
        before, after = (one[self.looked] for one in (self.history.loss, self.history.loss_after))
        with np.errstate(all="ignore"):
            part = np.log(after / before)
        part = part[np.isfinite(part)]
        return float(-np.expm1(self.history.steps * np.mean(part))) if part.size else nan

    @cached_property
    def gets_on(self) -> bool:
        """True if the mean loss of epochs falls, but for a rise that is no more than noise."""
        losses = self.history.epoch_loss
        if len(losses) < 2 or not np.isfinite(losses).all() or not losses[-1] < self.start:
            return False
        lowest = int(losses.argmin())
        lost = max(self.most, float(losses.max())) - losses[lowest]
        return bool(losses[-1] - losses[lowest] <= max(SWING * lost, self.noise(lowest, -1)))

    @cached_property
    def falls_late(self) -> bool:
        """True if the later half of the epochs lowers the loss by more than batches differ."""
        losses = self.history.epoch_loss
        half = (len(losses) - 1) // 2
        return bool(losses[half] - losses[-1] > self.noise(half, -1))

    @cached_property
    def settled(self) -> bool:
        """True if it had learnt before and ends no higher, but for what batches differ by."""
        losses = self.history.epoch_loss
        if not self.learnt or not len(losses) or not np.isfinite(losses).all():
            return False
        rise = float(losses[-1]) - self.start
        return rise <= max(2**0.5 * self.noise(-1, -1), SWING * (self.most - self.start))

    def noise(self, one: int, other: int) -> float:
        """Return twice the standard error of the difference of two epochs' mean losses."""
        return 2 * float(np.hypot(self._errors[one], self._errors[other]))

    @cached_property
    def _errors(self) -> list[float]:
        ends = np.cumsum(self.history.epoch_steps).astype(np.intp)
        parts = np.split(self.loss[: ends[-1]], ends[:-1])
        with np.errstate(all="ignore"):
            return [float(one.std() / len(one) ** 0.5) for one in parts]

    @cached_property
    def highest(self) -> float:
        """The highest mean loss of ten steps, over the first; inf where one is no number."""
        block = min(BLOCK, len(self.loss))
        means = self.loss[: len(self.loss) // block * block].reshape(-1, block).sum(axis=1) / block
        high = max(float(means.max()), float(self.loss[-block:].sum()) / block)
        return high / max(self.start, NO_LOSS) if isfinite(high) else inf

    @cached_property
    def moves(self) -> list[float]:
        """log2 of how far the last step of each epoch moves the weights: the median layer."""
        found = [middle(row) for row in self.history.update_log2]
        return [one for one in found if isfinite(one)]

    @property
    def moved(self) -> float:
        """The median of these; nan if there are none."""
        return middle(self.moves)


def middle(values: FloatArray | Sequence[float]) -> float:
    """Return the median of a few numbers; nan if there are none, or one is no number."""
    if len(values) > 64:
        return float(np.median(values))
    order = sorted(values)
    if not order or any(one != one for one in order):
        return nan
    half = len(order) // 2
    return float(order[half] if len(order) % 2 else (order[half - 1] + order[half]) / 2)


def leveled(loss: FloatArray, windows: int) -> FloatArray:
    """Return losses with the mean of a batch's windows for each; as they are, if it has but one.

    Windows of a sequence are not alike: a loss that is higher in later ones does not rise by that.
    What is left of a batch at the end has the mean of the one before. NaN and inf stay.
    """
    whole = len(loss) // windows * windows
    if windows == 1 or not whole:
        return loss
    with np.errstate(invalid="ignore"):
        means = loss[:whole].reshape(-1, windows).mean(axis=1)
    level = np.append(np.repeat(means, windows), np.full(len(loss) - whole, means[-1]))
    return np.where(np.isfinite(loss) & np.isfinite(level), level, loss)

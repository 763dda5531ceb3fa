"""Spikes of a training: the steps around a loss or a gradient far beyond those before."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace
from math import inf, isnan, log, nan
from statistics import median
from typing import Any, NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray

BEFORE, AFTER = 10, 10  # steps kept around a spike
LOSS, NORM = 3.0, 10.0  # times the median before that make one
NOISE = 5.0  # and so many times the usual distance from it, on the scale of logarithms
KEEP = 20


class SpikeStep(NamedTuple):
    """A step near a spike, as plain numbers."""

    step: int
    batch: object
    """The index that `monitor.step(loss, batch=…)` was given; None if it was not."""
    loss: float
    gradient_norm: float
    update: float
    """The update's size beside the weights', of the matrix where it is largest; nan if it was not
    sampled, as in most steps."""


@dataclass(frozen=True)
class Spike:
    """A loss or a gradient far beyond those before it, and the steps around it."""

    step: int
    batch: object
    loss_times: float
    """The loss over the median of those before."""
    norm_times: float
    """The gradients' joint norm over the median of those before."""
    window: tuple[SpikeStep, ...]
    """The steps from 10 before it to 10 after it, as far as they were seen."""


class Spikes:
    """Finds spikes as steps come, and keeps the steps around each."""

    def __init__(self) -> None:
        self._recent: deque[SpikeStep] = deque(maxlen=2 * BEFORE)
        self._losses: deque[float] = deque(maxlen=2 * BEFORE)
        self._norms: deque[float] = deque(maxlen=2 * BEFORE)
        self._found: deque[tuple[SpikeStep, float, float, list[SpikeStep]]] = deque(maxlen=KEEP)

    def see(self, one: SpikeStep) -> bool:
        """Take in a step; return True if it is a spike that does not follow another."""
        is_open = bool(self._found) and one.step - self._found[-1][0].step <= AFTER
        if is_open:
            self._found[-1][3].append(one)
        losses, norms = self._losses, self._norms
        few = len(losses) < BEFORE
        # What is near the lowest is near the median too: of most steps nothing more is asked.
        calm = few or (one.loss < LOSS * min(losses) and one.gradient_norm < NORM * min(norms))
        before = [] if calm or is_open else list(self._recent)
        self._recent.append(one)
        losses.append(one.loss)
        norms.append(one.gradient_norm)
        if not before:
            return False
        loss = _times(one.loss, [step.loss for step in before], LOSS)
        norm = _times(one.gradient_norm, [step.gradient_norm for step in before], NORM)
        if loss < LOSS and norm < NORM:
            return False
        self._found.append((one, loss, norm, [*before[-BEFORE:], one]))
        return True

    def set_update(self, step: int, update: float) -> None:
        """Set the size of a step's update beside the weights'."""
        self._set(step, update=update)

    def set_batch(self, step: int, batch: object) -> None:
        """Set the index of a step's batch."""
        self._set(step, batch=batch)

    def _set(self, step: int, **changed: Any) -> None:
        for kept in (self._recent, *(window for *_, window in list(self._found)[-1:])):
            for place in range(len(kept) - 1, -1, -1):
                if kept[place].step <= step:
                    if kept[place].step == step:
                        kept[place] = kept[place]._replace(**changed)
                    break

    @property
    def all(self) -> tuple[Spike, ...]:
        """The spikes, the oldest first; the last twenty at most."""
        return tuple(
            Spike(
                one.step,
                next(step.batch for step in window if step.step == one.step),
                loss,
                norm,
                tuple(window),
            )
            for one, loss, norm, window in self._found
        )


def spikes_of(step: FloatArray, loss: FloatArray, norm: FloatArray) -> tuple[Spike, ...]:
    """Return the spikes of a training that was recorded; the last twenty at most.

    Args:
        step: numbers of the steps, (S,), rising.
        loss: their losses, (S,); steps without one are left out.
        norm: joint norms of their gradients, (S,); likewise, unless none is known.
    """
    known, found = np.isfinite(loss), Spikes()
    if np.isfinite(norm).any():
        known &= np.isfinite(norm)
    numbers, pairs = step[known].astype(int).tolist(), (loss[known].tolist(), norm[known].tolist())
    for place, (one, size) in enumerate(zip(*pairs, strict=True)):
        found.see(SpikeStep(place, None, one, size, nan))  # near are entries, however far apart
    return tuple(
        replace(
            one,
            step=numbers[one.step],
            window=tuple(at._replace(step=numbers[at.step]) for at in one.window),
        )
        for one in found.all
    )


def _times(value: float, before: list[float], limit: float) -> float:
    """Return a size over the median of those before; 0 where it is within their noise."""
    known = sorted(one for one in before if 0 < one < inf)
    if len(known) < BEFORE:
        return 0.0
    if isnan(value):
        return inf
    middle = median(known)
    times = value / middle
    if times < limit:
        return max(times, 0.0)
    if times == inf:
        return inf
    spread = median(abs(log(one / middle)) for one in known)
    return times if log(times) > NOISE * spread else 0.0

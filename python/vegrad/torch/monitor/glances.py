"""Steps that a monitor only glances at: their loss and the norms of their gradients.

After a pass of a network nothing of Python is in a cache, so that as little as can be is done at
each such step. What was read waits for a few steps, unless it is odd, and is taken in all at once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf, nan, sqrt
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from vegrad import _core
from vegrad.runs.spikes import SpikeStep
from vegrad.torch.monitor.track import Size, rate_of
from vegrad.torch.optimizer_step import CoreStep

if TYPE_CHECKING:
    from vegrad.torch.monitor.monitor import Monitor

MOST = 8  # steps that wait
MANY = 1 << 14  # elements of a gradient from which on it may be read in part


@dataclass(slots=True)
class Glance:
    """A step that was not looked at."""

    step: int
    joint: float
    numbers: bytes
    loss: float
    rate: float
    before: Size
    """The joint norm before the step's clip, and its limit; None and nan if they are not known."""
    limit: float
    after: float
    """The joint norm after the clip of one of vegrad's own optimizers."""
    batch: object


class Glances:
    """The steps that wait to be taken in."""

    def __init__(self) -> None:
        self.waiting: list[Glance] = []
        self.last = -1
        """The number of the last step that was glanced at."""
        self._looks, self._graded = -1, dict[int, Tensor]()
        """The number of looks so far, and the parameters that had a gradient at any, by place."""

    def take(self, monitor: Monitor, optimizer: Optimizer, report: _core.Clipped | None) -> bool:
        """End a step if it is as usual; return False, having done nothing, if it is not.

        `report` is one of vegrad's own optimizers on the step that it has just taken.
        """
        loop = monitor.loop
        if not loop.has_gone_back:
            return False
        found = self._read(monitor) if report is None else _known(monitor, optimizer)
        if found is None:
            return False
        joint, numbers = found
        loss, (before, limit) = loop.loss(), loop.clip
        clips = isinstance(optimizer, CoreStep) and optimizer.clip is not None
        after = report.norm_after if report is not None and clips else nan
        self.last = monitor.steps
        one = Glance(
            monitor.steps,
            joint,
            numbers,
            loss,
            rate_of(optimizer),
            before,
            limit,
            after,
            monitor.take_batch(),
        )
        self.waiting.append(one)
        return True

    def give(self, step: int, loss: float | None, batch: object) -> bool:
        """Set the loss or the batch of a step, if it is the last that waits."""
        if not self.waiting or self.waiting[-1].step != step:
            return False
        one = self.waiting[-1]
        one.loss = one.loss if loss is None else loss
        one.batch = one.batch if batch is None else batch
        return True

    def _read(self, monitor: Monitor) -> tuple[float, bytes] | None:
        """Return the joint norm of a step's gradients, and a record's numbers.

        None if they are not all finite. Of many elements one in `part` is read, others in the next
        step.
        """
        part, known = monitor.schedule.part, monitor._params
        if part == 1 and (found := monitor._watch.record(known)) is not None:
            return found
        if self._looks != monitor.schedule.looks:
            self._looks = monitor.schedule.looks
            self._graded |= {n: one for n, one in enumerate(known) if one.grad is not None}
        count = len(known) + 2 * len(monitor.modules)
        return some_norms(self._graded, part, monitor.steps, count)

    def catch_up(self, monitor: Monitor) -> None:
        """Take in the steps that wait."""
        waiting, self.waiting = self.waiting, []
        count = len(monitor._params)
        for one in waiting:
            monitor._history.add(one.step, count, one.joint, one.numbers, one.loss, looked=False)
            monitor.track.passed(one.step, one.rate, one.before, one.limit, one.after)
            monitor.see(SpikeStep(one.step, one.batch, one.loss, one.joint, nan))


def _known(monitor: Monitor, optimizer: Optimizer) -> tuple[float, bytes] | None:
    """Return the same, of norms that one of vegrad's own optimizers has taken."""
    if not isinstance(optimizer, CoreStep) or (known := optimizer.norms()) is None:
        return None
    norms = np.full(len(monitor._params) + 2 * len(monitor.modules), nan)
    for place, one in enumerate(monitor._params):
        if (size := known.get(id(one))) is not None:
            norms[place] = size
        elif one.grad is not None:
            return None
    found = np.array(list(known.values()))
    joint = sqrt(float(found @ found))
    return (joint, norms.tobytes()) if joint < inf else None


def some_norms(
    parameters: Mapping[int, Tensor], part: int, turn: int, count: int
) -> tuple[float, bytes] | None:
    """Return estimates of the joint norm of gradients and of each one's, from one in `part` parts.

    Args:
        parameters: those whose gradients are read, by place.
        part: one of so many parts is read of each gradient that has `MANY` elements in each.
        turn: the number of the step; those after each other read other parts.
        count: number of float64 in the bytes; those of no gradient are nan.

    Returns:
        As `_core.Watch.record`; None if there is no gradient, if one is not plain, or what was read
        is not finite.
    """
    norms, places, grads, scale = np.full(count, nan), [], [], []
    for place, one in parameters.items():
        if (grad := one.grad) is None:
            continue
        if part > 1:
            grad, ratio = _part(grad, part, turn + place)
            scale.append(ratio)
        places.append(place)
        grads.append(grad)
    try:
        found = _core.norms(grads, 2.0)
    except (TypeError, ValueError):
        return None
    if part > 1:
        found *= scale
    norms[places] = found
    joint = sqrt(float(found @ found))
    return (joint, norms.tobytes()) if grads and joint < inf else None


def _part(grad: Tensor, part: int, turn: int) -> tuple[Tensor, float]:
    """Return a part of a gradient, and the factor from its norm to the whole one's."""
    count = grad.numel()
    if count < MANY * part or type(grad) is not Tensor or not grad.is_contiguous():
        return grad, 1.0
    start = turn % part * (count // part)
    stop = count if turn % part == part - 1 else start + count // part
    some = grad.as_strided((stop - start,), (1,), grad.storage_offset() + start)
    return some, sqrt(count / (stop - start))

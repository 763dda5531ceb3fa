"""The steps of a recurrent network's training: one a batch, or one a window of its steps.

Where a step takes whole sequences that are in memory, the loop is the core's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray, cast
from vegrad.networks.distributed import Group, SharedGradients
from vegrad.networks.sequence_rows import SequenceRows
from vegrad.networks.sequences import State
from vegrad.networks.steps import StepByStep


def trainer_of(
    core: _core.Recurrent, rows: SequenceRows, batch_size: int, group: Group | None = None
) -> Trainer:
    """Return what takes steps on batches of these rows; x of another dtype is converted once."""
    if group is not None:
        return RecurrentTrainer(core, rows, batch_size, group)
    x, target = rows.parts[0], rows.targets[0]
    whole = len(rows.bounds) == 1 and rows.cuts is None and len(rows) > 0
    if not (whole and _in_memory(x) and _in_memory(target)):
        return RecurrentTrainer(core, rows, batch_size)
    assert isinstance(x, np.ndarray)
    taken = np.ascontiguousarray(cast(x, rows.shape.dtype))
    return _core.Trainer(
        core, taken, np.ascontiguousarray(target), batch_size, rows.lengths, rows.window
    )


def _in_memory(array: object) -> bool:
    return isinstance(array, np.ndarray) and not isinstance(array, np.memmap)


class RecurrentTrainer(StepByStep):
    """Steps of a network over batches of sequences, as the core's `Trainer` takes them of others.

    Where sequences are taken in windows, the steps of a batch follow each other, each from the
    state in which the one before ended; a run may end between them, and the next one goes on there.
    Of several processes each keeps the states of its own part of the batch.

    Args:
        core: of the network, whose weights are changed.
        rows: the sequences.
        batch_size: rows of a step, of all processes together.
        group: the processes, if they are several.
    """

    def __init__(
        self,
        core: _core.Recurrent,
        rows: SequenceRows,
        batch_size: int,
        group: Group | None = None,
    ) -> None:
        shared = None if group is None else SharedGradients(core.gradients(), group)
        super().__init__(core, batch_size, shared)
        self.core, self.rows = core, rows
        self._window = 0
        """The window of the batch in hand that is to be taken next."""
        self._states: dict[int, State | None] = {0: None}
        """The states before steps at which windows begin, of this process's rows of the batch."""
        self._pass: Callable[[bool], float | None] = lambda flow: None
        self._share = 1.0

    def begin(self, rows: Array) -> float:
        """Run a pass over the next window of a batch."""
        own = rows if self.shared is None else self.shared.own(rows)
        begin, end = self.rows.bounds[self._window]
        carries, cuts = len(self.rows.bounds) > 1, self.rows.cuts
        there = self.rows.there(own, self._window)
        first = self.rows.first_step(self._window)
        factors = None if cuts is None else self._drawn(partial(cuts.factors, end - first))
        batch = self.rows.piece(own[there], first, end)
        if batch is None:  # none of this process's rows is as long
            self._pass, self._share = lambda flow: None, 0.0
            return self._summed(True)
        self._pass = partial(
            self.core.backward,
            batch.x,
            batch.target,
            batch.lengths,
            self._state_at(first, own, there),
            None if carries else self.rows.window,
            factors,
            losses_from=begin - first,
        )
        if self.shared is not None:
            every = rows[self.rows.there(rows, self._window)]
            counts = [self.rows.counted(part, self._window) for part in (own[there], every)]
            self._share = counts[0] / counts[1]
        loss = self._summed(True)
        if carries:
            self._keep(end, begin, there)
        return loss

    def again(self) -> float:
        """Run the pass over the same window with the weights after the step."""
        return self._summed(False)

    def ended(self, rows: Array) -> bool:
        """Go on to the next window; return True if there is none."""
        self._window += 1
        if self._window < self.rows.steps(rows, self.batch_size)[0]:
            return False
        self._window, self._states = 0, {0: None}
        return True

    def _summed(self, flow: bool) -> float:
        loss = self._pass(flow)
        if self.shared is not None:
            return self.shared.add(loss, self._share)
        assert loss is not None
        return loss

    def _drawn(self, draw: Callable[[], FloatArray]) -> FloatArray:
        """Draw at random, the same on all processes."""
        return draw() if self.shared is None else self.shared.group.first(draw)

    def _state_at(self, step: int, rows: Array, there: Array) -> State | None:
        """Return the state before a step, of those rows that are there.

        A window that overlaps the one before may begin between two whose states are kept.
        """
        known = max(one for one in self._states if one <= step)
        self._states = {at: one for at, one in self._states.items() if at >= known}
        kept = self._states[known]
        state = kept and tuple(np.ascontiguousarray(part[:, there]) for part in kept)
        if known < step:
            between = self.rows.piece(rows[there], known, step)
            assert between is not None
            self.core.forward(between.x, None, state)
            state = self.core.state()
        return state

    def _keep(self, end: int, begin: int, there: Array) -> None:
        """Keep the state after a window; rows that have ended keep theirs."""
        before, after = self._states[begin], self.core.state()
        if there.all() or before is None:
            self._states[end] = after
            return
        self._states[end] = state = tuple(part.copy() for part in before)
        for part, new in zip(state, after, strict=True):
            part[:, there] = new


Trainer: TypeAlias = RecurrentTrainer | _core.Trainer

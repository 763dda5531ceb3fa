"""The steps of a recurrent network's training: one a batch, or one a window of its steps.

Where a step takes whole sequences that are in memory, the loop is the core's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from math import nan
from time import perf_counter
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray, cast
from vegrad.networks.sequence_rows import SequenceRows
from vegrad.networks.sequences import State
from vegrad.networks.slopes import compared, copies


def trainer_of(core: _core.Recurrent, rows: SequenceRows, batch_size: int) -> Trainer:
    """Return what takes steps on batches of these rows; x of another dtype is converted once."""
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


class RecurrentTrainer:
    """Steps of a network over batches of sequences, as the core's `Trainer` takes them of others.

    Where sequences are taken in windows, the steps of a batch follow each other, each from the
    state in which the one before ended; a run may end between them, and the next one goes on there.

    Args:
        core: of the network, whose weights are changed.
        rows: the sequences.
        batch_size: rows of a step.
    """

    def __init__(self, core: _core.Recurrent, rows: SequenceRows, batch_size: int) -> None:
        self.core, self.rows, self.batch_size = core, rows, batch_size
        self.parameters, self.gradients = core.parameters(), core.gradients()
        self.done = self.taken = 0
        self._clipped: _core.Clipped | None = None
        self._window = 0
        """The window of the batch in hand that is to be taken next."""
        self._states: dict[int, State | None] = {0: None}
        """The states before steps at which windows begin, of all rows of the batch."""

    @property
    def clipped(self) -> _core.Clipped:
        """Result of the clip in the last step."""
        assert self._clipped is not None
        return self._clipped

    def run(
        self,
        optimizer: _core.Optimizer,
        order: npt.NDArray[np.int64],
        rates: FloatArray,
        records: FloatArray,
        seconds: float,
        gauge: tuple[int, int],
        *request: object,
    ) -> None:
        """Take a step for each record, until there are none or `seconds` are over."""
        self.done = self.taken = 0
        start, first, size = perf_counter(), 0, self.batch_size
        while self.done < len(records):
            rows = order[first : first + size]
            record, look = records[self.done], gauge[1] and self.done % gauge[1] == gauge[0]
            step = partial(optimizer.step, self.parameters, self.gradients)
            record[:] = self._step(rows, step, float(rates[self.taken]), request, bool(look))
            self.done += 1
            if self._window == self.rows.steps(rows, size)[0]:
                self._window, self._states, first = 0, {0: None}, first + size
            if perf_counter() - start >= seconds:
                return

    def _step(
        self,
        rows: Array,
        step: Callable[..., _core.Clipped],
        rate: float,
        request: Sequence[object],
        look: bool,
    ) -> tuple[float, ...]:
        """Take the next window of the batch; return what is written down of it."""
        begin, end = self.rows.bounds[self._window]
        carries, cuts = len(self.rows.bounds) > 1, self.rows.cuts
        there = self.rows.there(rows, self._window)
        first = self.rows.first_step(self._window)
        batch = self.rows.piece(rows[there], first, end)
        assert batch is not None
        data = (
            batch.x,
            batch.target,
            batch.lengths,
            self._state_at(first, rows, there),
            None if carries else self.rows.window,
            None if cuts is None else cuts.factors(end - first),
        )
        loss = self.core.backward(*data, True, begin - first)
        assert loss is not None
        if carries:
            self._keep(end, begin, there)
        before = (copies(self.parameters), copies(self.gradients)) if look else None
        self._clipped = clipped = step(rate, *request)
        self.taken += not clipped.skipped
        self._window += 1
        looked: tuple[float, ...] = (nan,) * 4
        if before is not None:
            loss_after = self.core.backward(*data, False, begin - first)
            assert loss_after is not None
            looked = loss_after, *compared(self.parameters, self.gradients, *before)
        return loss, clipped.norm, clipped.coefficient, rate, *looked

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

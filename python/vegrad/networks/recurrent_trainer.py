"""The steps of a recurrent network's training: one a batch, or one a window of its steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan, sqrt
from time import perf_counter

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray
from vegrad.networks.sequence_rows import SequenceRows
from vegrad.networks.sequences import State


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
        self._state: State | None = None
        """The state after the window before, of all rows of the batch."""

    @property
    def clipped(self) -> _core.Clipped:
        """What the clip found and did in the last step."""
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
                self._window, self._state, first = 0, None, first + size
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
        all_ = self.rows
        batch = all_.piece(rows, *all_.bounds[self._window])
        assert batch is not None
        carries = len(all_.bounds) > 1
        window = None if carries else all_.window
        factors = None if all_.cuts is None else all_.cuts.factors(batch.x.shape[1])
        there = all_.there(rows, self._window)
        state = self._state and tuple(np.ascontiguousarray(p[:, there]) for p in self._state)
        data = batch.x, batch.target, batch.lengths, state, window, factors
        loss = self.core.backward(*data, True)
        assert loss is not None
        after = self.core.state() if carries else None
        before = (_copies(self.parameters), _copies(self.gradients)) if look else None
        self._clipped = clipped = step(rate, *request)
        self.taken += not clipped.skipped
        self._window += 1
        if self._state is None or after is None:
            self._state = after
        else:
            for part, new in zip(self._state, after, strict=True):
                part[:, there] = new
        looked: tuple[float, ...] = (nan,) * 4
        if before is not None:
            loss_after = self.core.backward(*data, False)
            assert loss_after is not None
            looked = loss_after, *self._compared(*before)
        return loss, clipped.norm, clipped.coefficient, rate, *looked

    def _compared(
        self, parameters: Sequence[Array], gradients: Sequence[Array]
    ) -> tuple[float, float, float]:
        """Return the slope along the step at its beginning and end, and the step's length."""
        sums = np.zeros(3)
        for before, gradient, name in zip(parameters, gradients, self.parameters, strict=True):
            moved = np.subtract(self.parameters[name], before, dtype=np.float64).ravel()
            sums[0] += moved @ gradient.ravel().astype(np.float64)
            sums[1] += moved @ self.gradients[name].ravel().astype(np.float64)
            sums[2] += moved @ moved
        return float(sums[0]), float(sums[1]), sqrt(sums[2])


def _copies(arrays: Mapping[str, Array]) -> list[Array]:
    return [array.copy() for array in arrays.values()]

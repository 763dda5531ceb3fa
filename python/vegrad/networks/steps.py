"""Steps of a training that are taken in Python, as the core's `Trainer` takes them of its own."""

from __future__ import annotations

from collections.abc import Sequence
from math import nan
from time import perf_counter
from typing import Protocol

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray
from vegrad.networks.distributed import SharedGradients
from vegrad.networks.slopes import compared, copies


class Core(Protocol):
    """The part of the core's networks that steps need."""

    def parameters(self) -> dict[str, Array]:
        """Return views of the parameters."""

    def gradients(self) -> dict[str, Array]:
        """Return views of the gradients."""


class StepByStep:
    """Steps of a network over batches of rows, each of one pass and the optimizer's step.

    A subclass runs the passes. It is to `Optimizer` what the core's `Trainer` is.

    Args:
        core: of the network, whose weights are changed.
        batch_size: rows of a step, of all processes together.
        shared: the gradients that several processes make together, if they are several.
    """

    def __init__(self, core: Core, batch_size: int, shared: SharedGradients | None) -> None:
        self.batch_size, self.shared = batch_size, shared
        self.parameters, self.gradients = core.parameters(), core.gradients()
        self.done = self.taken = 0
        self._clipped: _core.Clipped | None = None

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
            look = bool(gauge[1] and self.done % gauge[1] == gauge[0])
            rate = float(rates[self.taken])
            records[self.done] = self._step(rows, optimizer, rate, request, look)
            self.done += 1
            first += size * self.ended(rows)
            if perf_counter() - start >= seconds:
                return

    def _step(
        self,
        rows: Array,
        optimizer: _core.Optimizer,
        rate: float,
        request: Sequence[object],
        look: bool,
    ) -> tuple[float, ...]:
        """Take a step on some rows; return what is written down of it."""
        loss = self.begin(rows)
        if self.shared is not None:
            self.shared.measure()
        before = (copies(self.parameters), copies(self.gradients)) if look else None
        taken = optimizer.step(self.parameters, self.gradients, rate, *request)  # type: ignore[arg-type]
        self._clipped = taken
        self.taken += not taken.skipped
        looked: tuple[float, ...] = (nan,) * 4
        if before is not None:
            looked = self.again(), *compared(self.parameters, self.gradients, *before)
        return loss, taken.norm, taken.coefficient, rate, *looked

    def begin(self, rows: Array) -> float:
        """Run the next pass over a batch; return its loss, and leave its gradients."""
        raise NotImplementedError

    def again(self) -> float:
        """Run the same pass with the weights after the step."""
        raise NotImplementedError

    def ended(self, rows: Array) -> bool:
        """Return True if the steps on a batch are all taken."""
        return True

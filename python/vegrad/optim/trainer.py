"""The stepper of a training, as an optimizer sees it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from vegrad import _core


class Trainer(Protocol):
    """Stepper of a training: the core's `Trainer`, or something like it."""

    @property
    def done(self) -> int:
        """How many steps the last run made."""

    @property
    def taken(self) -> int:
        """The same without those that were skipped."""

    @property
    def clipped(self) -> _core.Clipped:
        """Result of the clip in the last step."""

    def run(
        self,
        optimizer: _core.Optimizer,
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        records: npt.NDArray[np.float64],
        seconds: float,
        gauge: tuple[int, int],
        rule: str,
        limit: object,
        ord: float,
        nonfinite: str,
        eps: float,
    ) -> None:
        """Take a step for each record, on batches of rows in this order."""

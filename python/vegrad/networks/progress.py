"""The progress of a training, on standard error."""

from __future__ import annotations

import time

import numpy as np

from vegrad.diagnosis.history import History
from vegrad.reports.progress import Line

RECENT = 100  # steps over which the share of clipped ones is taken


class Progress:
    """A line that is written over as the training goes on a terminal, else one line an epoch.

    In a notebook it is one bar for the whole training.

    Args:
        wanted: False for silence.
        epochs: the number of epochs in all.
        rows: the number of rows of an epoch.
        batch_size: the rows of a step.
        before: the steps that were taken before this start.
    """

    def __init__(self, wanted: bool, epochs: int, rows: int, batch_size: int, before: int) -> None:
        self.epochs, self.rows = epochs, rows
        self.line = Line() if wanted else None
        live = self.line is not None and self.line.live
        self.interval = 0.1 if live else np.inf  # seconds
        self.start = self.last = time.perf_counter()
        self.batch_size, self.before = batch_size, before
        self.clips = False  # once a step was shorter for it

    def step(self, epoch: int, history: History, done: int) -> None:
        """Show how many rows of an epoch are done, unless that was shown just now."""
        now = time.perf_counter()
        if now - self.last < self.interval:
            return
        self.last = now
        place = f"{epoch + 1}/{self.epochs}  {100 * done // self.rows:3d} %"
        self._write(place, history, epoch * self.rows + done)

    def epoch(self, epoch: int, history: History) -> None:
        """Show the end of an epoch, in a line that stays."""
        done = (epoch + 1) * self.rows
        self._write(f"{epoch + 1}/{self.epochs}", history, done, stays=True)

    def close(self) -> None:
        """End the line."""
        if self.line is not None:
            self.line.close()

    def _write(self, place: str, history: History, done: int, *, stays: bool = False) -> None:
        if self.line is None:
            return

        def last(name: str) -> float:
            return float(history.since(history.steps - 1, name)[-1])

        text = f"loss {last('loss'):.4g}"
        for loss, accuracy in zip(
            history.validation_loss[-1:], history.validation_accuracy[-1:], strict=True
        ):
            text += "" if np.isnan(loss) else f"  validation {loss:.4g}"
            text += "" if np.isnan(accuracy) else f" ({100 * accuracy:.1f} %)"
        clipped = np.mean(history.since(max(history.steps - RECENT, 0), "coefficient") < 1)
        seconds = max(time.perf_counter() - self.start, 1e-9)
        rate = (history.steps - self.before) * self.batch_size / seconds
        self.clips |= bool(clipped > 0)
        text += f"  gradient {last('gradient_norm'):.3g}"
        text += f"  clipped {100 * clipped:.0f} %" if self.clips else ""
        text += f"  {rate:,.0f} rows/s"
        self.line.write(f"epoch {place}", text, done, self.epochs * self.rows, stays=stays)

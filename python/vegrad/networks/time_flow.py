"""The flow through time of an own network, with its text and its picture."""

from __future__ import annotations

from os import PathLike

from vegrad.flow import time_flow
from vegrad.pictures import Figure, kept
from vegrad.reports import notebook
from vegrad.reports.time_flow import steps_of, text
from vegrad.reports.time_picture import draw


class TimeFlow(time_flow.TimeFlow):
    """How signal and gradient travelled through layers and steps, as text and as a picture."""

    __doc__ = time_flow.TimeFlow.__doc__

    def __repr__(self) -> str:
        layers, steps = self.gain_log2.shape
        reach = ", ".join(map(steps_of, self.reach))
        plural = "s" * (layers != 1)
        return f"<TimeFlow of {layers} layer{plural}, {steps} steps: reach {reach}>"

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return notebook.time_flow(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw what is left of the gradient over layers and steps, with the reach.

        Below are the gain of a step, with what the gate carries and what goes through U, and how
        long each unit keeps what it holds. Returns matplotlib's figure.

        Args:
            path: a file to write, whose suffix gives the format.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        return kept(draw(self), path)

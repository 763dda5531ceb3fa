"""A flow that shows itself: as a table, and in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from os import PathLike
from typing import cast

from vegrad.flow import flow
from vegrad.flow.wording import power
from vegrad.pictures import Figure
from vegrad.reports import notebook
from vegrad.reports.picture import plot
from vegrad.reports.protocols import Nothing, ShownDiagnosis
from vegrad.reports.text import table


@dataclass(frozen=True)
class _Alone(Nothing):
    """A flow that nobody has judged, with a title for its picture."""

    layer_flow: flow.Flow | None = None
    summary: str = ""
    verdict: str = ""
    trend: None = None
    loss: None = None
    measurement: None = None


class Flow(flow.Flow):
    """How signal and gradient travelled through the layers in one forward and backward pass."""

    __doc__ = flow.Flow.__doc__

    def __repr__(self) -> str:
        count = len(self.delta_log2)
        layers = f"{count} layer{'s' * (count != 1)}"
        return f"<Flow of {layers}: the first gets {power(self.chain_log10)} of the last one's δ>"

    def __str__(self) -> str:
        return "\n".join(table(Nothing(), self))

    def _repr_html_(self) -> str:
        return notebook.flow(self)

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the gradient and its gains layer by layer, and the activations where they change.

        Nothing is judged: `Diagnosis.plot` also draws what is expected. Return matplotlib's figure.

        Args:
            path: a file to write, whose suffix gives the format.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the suffix is unknown.
            OSError: the file cannot be written; nothing half-written is left.
        """
        alone = _Alone(layer_flow=self, summary=repr(self)[1:-1])
        return plot(cast(ShownDiagnosis, alone), path)

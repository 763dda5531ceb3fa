"""A flow that shows itself: as a table, and in a notebook."""

from __future__ import annotations

from vegrad.flow import flow
from vegrad.flow.wording import power
from vegrad.reports import notebook
from vegrad.reports.protocols import Nothing
from vegrad.reports.text import table


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

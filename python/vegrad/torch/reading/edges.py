"""Tell operations whose inputs are at an edge of what they are made for."""

from __future__ import annotations

from torch import Tensor

from vegrad.torch.reading.call import Call


def edge(call: Call, out: Tensor) -> str:
    """Return the cause for which an output or its derivative is not finite; "" if there is none."""
    return ""

"""Tell if each row of a batch goes its own way through what ran, and measure δ row by row."""

from __future__ import annotations

import torch
from torch import Tensor

from vegrad.arrays.checks import FloatArray
from vegrad.flow.reading import MAPS
from vegrad.torch.activations import FUNCTIONS, OTHERS
from vegrad.torch.reading.graph import Graph
from vegrad.torch.reading.losses import KINDS

POOLS = {f"{kind}_pool{n}d" for kind in ("max", "avg", "adaptive_avg") for n in (1, 2, 3)}
# Operations that give each row what they make of this row alone.
ALONE = {
    *MAPS,
    *FUNCTIONS,
    *(OTHERS - {"rrelu"}),
    *POOLS,
    *("layer_norm", "rms_norm", "group_norm"),
    *("add", "radd", "iadd", "sub", "rsub", "mul", "rmul", "imul", "div", "truediv"),
    *("cos", "exp", "neg", "sin", "square"),
    *("contiguous", "flatten", "reshape", "squeeze", "unsqueeze", "view"),
}


def rows_are_alone(graph: Graph) -> bool:
    """Return True if nothing that ran makes one row depend on another."""
    kinds = [one.kind for one in graph.operations if one.kind != "loss"]
    losses = [kind for kind in kinds if kind in KINDS]
    return len(losses) == 1 and all(kind in ALONE or kind in KINDS for kind in kinds)


def row_sizes(delta: Tensor, count: int) -> FloatArray | None:
    """Return ‖δ‖ of each row, which may be several rows of δ; None if it has no such rows."""
    if not count or not delta.ndim or len(delta) % count or not delta.numel():
        return None
    rows = delta.detach().reshape(count, -1)
    sizes: FloatArray = torch.linalg.vector_norm(rows, dim=1, dtype=torch.float64).cpu().numpy()
    return sizes

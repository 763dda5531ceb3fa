"""The loss of an output of 0 at each step, beside which a loss that rises may be the targets'."""

from __future__ import annotations

from collections import deque
from math import nan

import numpy as np
import torch
from torch import Tensor

from vegrad.arrays.checks import FloatArray
from vegrad.torch.monitor.known_loss import KNOWN, SCALED, SETTINGS, past
from vegrad.torch.monitor.loss_graph import kind_of

ERRORS = ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss")
FIRST, KEEP = 50, 400  # steps, as a course has them
LARGE = 1 << 16  # elements of a target, from which it is not looked at


class Baseline:
    """The cost of an output of 0 at the steps of a training, under the loss that was taken."""

    def __init__(self) -> None:
        self._first: dict[int, float] = {}
        self._last: deque[tuple[int, float]] = deque(maxlen=KEEP)

    @torch.no_grad()
    def see(self, root: Tensor, step: int) -> None:
        """Look at the loss of a step, whose graph is still there."""
        node = None if root.grad_fn is None else past(root.grad_fn, SCALED, ())
        if node is None or kind_of(node) not in ERRORS:
            return
        pair = [getattr(node, f"_saved_{name}", None) for name in ("target", "self")]
        fixed = [one for one in pair if isinstance(one, Tensor) and not one.requires_grad]
        if not fixed or not 0 < fixed[0].numel() < LARGE or fixed[0].device.type != "cpu":
            return
        target = fixed[0]
        settings = {name: getattr(node, f"_saved_{name}") for name in SETTINGS
                    if hasattr(node, f"_saved_{name}")}  # fmt: skip
        cost = float(KNOWN[kind_of(node)](torch.zeros_like(target), target, **settings))
        if len(self._first) < FIRST:
            self._first[step] = cost
        else:
            self._last.append((step, cost))

    def at(self, steps: FloatArray) -> FloatArray:
        """Return it at some steps, (S,); nan where it is not known."""
        known = self._first | dict(self._last)
        return np.array([known.get(int(step), nan) for step in steps])

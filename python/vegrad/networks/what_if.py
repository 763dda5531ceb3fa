"""Passes of an own network with its inputs scaled, which leave it as it was."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from math import inf, log2

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norms
from vegrad.flow.edits import Edit, ScaleData
from vegrad.flow.reading import Effect, Reading
from vegrad.networks.network import Network


class ScaledInputs:
    """Answers what would be, were the inputs scaled; of all else it does not know.

    Args:
        network: the network, of which a copy is run.
        x: its inputs (N, …, I), which were checked.
        run: runs a network forward and back on inputs, and returns the loss.
    """

    def __init__(self, network: Network, x: Array, run: Callable[[Network, Array], float]) -> None:
        self.network, self.x, self.run = network, x, run
        self.passes = 0

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done; None if it is no scaling of inputs."""
        if not (edit is None or isinstance(edit, ScaleData)):
            return None
        twin = copy(self.network)
        self.passes += 1
        loss = self.run(twin, self.x if edit is None else scaled(self.x))
        sizes = norms(twin.gradients).tolist()
        found = zip(twin.gradients, sizes, strict=True)
        return Effect(loss, {name: log2(size) if size > 0 else -inf for name, size in found})

    def reading(self, edit: Edit) -> Reading | None:
        """Return None: a reading of the network with something changed is not made."""
        return None


def scaled(x: Array) -> Array:
    """Return inputs (N, …, I) with columns of mean 0 and standard deviation 1."""
    numbers, axes = np.asarray(x, np.float64), tuple(range(x.ndim - 1))
    spread = numbers.std(axis=axes)
    found: Array = (numbers - numbers.mean(axis=axes)) / np.where(spread > 0, spread, 1.0)
    return found.astype(x.dtype)

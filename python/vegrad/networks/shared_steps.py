"""Steps of a perceptron that several processes take together, each on its part of the batch."""

from __future__ import annotations

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.networks.distributed import Group, SharedGradients
from vegrad.networks.rows import Rows
from vegrad.networks.steps import StepByStep


class SharedSteps(StepByStep):
    """Steps on batches, of each of which this process passes over its part.

    Args:
        core: of the network, whose weights are changed.
        rows: all the data.
        batch_size: rows of a step, of all processes together.
        group: the processes.
    """

    shared: SharedGradients

    def __init__(self, core: _core.Network, rows: Rows, batch_size: int, group: Group) -> None:
        super().__init__(core, batch_size, SharedGradients(core.gradients(), group))
        self.core, self.rows, self.layers = core, rows, len(self.parameters) // 2
        self._rows: Array = np.zeros(0, np.int64)

    def begin(self, rows: Array) -> float:
        """Run a pass over a batch."""
        self._rows = rows
        return self._pass(True)

    def again(self) -> float:
        """Run the same pass with the weights after the step."""
        return self._pass(False)

    def _pass(self, flow: bool) -> float:
        """Return the loss of the rows over all processes, and leave its gradients everywhere."""
        own = self.shared.own(self._rows)
        loss = None
        if len(own):
            x, target = self.rows.x[own], self.rows.target[own]
            loss = self.core.backward(x, target, flow, self.layers)
        return self.shared.add(loss, len(own) / len(self._rows))

"""Short trainings of copies of own networks."""

from __future__ import annotations

import copy
from math import inf, nan
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.networks.editor import Times
from vegrad.networks.mlp import MLP
from vegrad.networks.rnn import RNN
from vegrad.networks.rows import Rows
from vegrad.networks.training import Run
from vegrad.optim import Optimizer

OF_LOSS = ("loss", "loss_after", "slope", "slope_after")


class NetworkTrainer:
    """A network in training with an optimizer of its own, which is taken as it began.

    Both must be copies; the data are as the network takes them.
    """

    def __init__(
        self,
        network: MLP | RNN,
        optimizer: Optimizer,
        rows: Rows,
        units: tuple[Array, float] | None,
        history: History,
        batch_size: int,
        gauge_every: int,
    ) -> None:
        self._network, self._rows, self._history = network, rows, history
        # Of the mean square, where the targets were scaled; their own history is in other units.
        self._unit = 1.0 if units is None else units[1] ** 2
        own = history if units is None else History()
        self._run = Run(network, optimizer, own, rows, batch_size, gauge_every)

    def advance(self, order: Array) -> str:
        """Take a step on each batch of rows; return why it cannot go on, "" if it can."""
        own = self._run.history
        first, epochs = own.steps, own.epochs
        try:
            self._run.epoch(order.ravel(), inf, lambda done: None)
            self._run.close_epoch(first, order.ravel(), None)
        except NonFiniteGradientError as error:
            return str(error)
        finally:
            if own is not self._history:
                self._tell(own, first, epochs)
        return ""

    def _tell(self, own: History, first: int, epochs: int) -> None:
        """Add what the steps have shown to the history, in the target's own units."""
        scaled = dict.fromkeys(OF_LOSS, self._unit)
        steps = [own.since(first, name) * scaled.get(name, 1.0) for name in STEPS]
        self._history.add_steps(np.array(steps))
        for epoch in range(epochs, own.epochs):
            columns = {name: getattr(own, name)[epoch] for name in (*EPOCHS, *LAYERS)}
            self._history.add_epoch(**columns | {"epoch_loss": columns["epoch_loss"] * self._unit})

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Return loss and accuracy (nan for numbers) on these rows, from one forward pass."""
        kind, batch = self._network.config["loss"], self._rows.take(rows, whole=True)
        output, target = self._network.compared(batch)
        output = output.astype(np.float64)
        with np.errstate(all="ignore"):
            if kind == "mse":
                far = np.mean((output - target.reshape(output.shape)) ** 2)
                return float(far) * self._unit, nan
            if not np.isfinite(output).all():
                return nan, 0.0
            if kind == "cross_entropy":
                top = output - output.max(axis=1, keepdims=True)
                own = top[np.arange(len(target)), target]
                loss = float(np.mean(np.log(np.exp(top).sum(axis=1)) - own))
                return loss, float(np.mean(output.argmax(axis=1) == target))
            wanted = target.reshape(output.shape)
            loss = float(np.mean(np.logaddexp(0.0, output) - wanted * output))
            return loss, float(np.mean((output > 0) == (wanted > 0.5)))


def renewed(optimizer: Optimizer, *, factor: float = 1.0, **changes: Any) -> Optimizer:
    """Return the optimizer as it began, its learning rate times `factor`."""
    lr: Any = optimizer.lr
    if factor != 1.0:
        if isinstance(lr, Times):
            lr = Times(lr.schedule, factor * lr.factor)
        else:
            lr = Times(lr, factor) if callable(lr) else factor * lr
    arguments: dict[str, Any] = {"clip": copy.deepcopy(optimizer.clip)} | optimizer._arguments
    return type(optimizer)(lr, **(arguments | changes))

"""Short trainings of copies of own networks."""

from __future__ import annotations

import copy
from math import inf, nan
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.clipping import NonFiniteGradientError
from vegrad.diagnosis.history import History
from vegrad.networks.mlp import MLP
from vegrad.networks.training import Run
from vegrad.optim import Optimizer


class NetworkTrainer:
    """A network in training with an optimizer of its own, which is taken as it began.

    Both must be copies; x and target are all rows, as the network takes them.
    """

    def __init__(
        self, network: MLP, optimizer: Optimizer, x: Array, target: Array, history: History,
        *, batch_size: int, gauge_every: int,
    ) -> None:  # fmt: skip
        self._network, self._history = network, history
        self._x, self._target = x, target
        self._run = Run(network, optimizer, history, x, target, batch_size, gauge_every)

    def advance(self, order: Array) -> str:
        """Take a step on each batch of rows; return why it cannot go on, "" if it can."""
        first = self._history.steps
        try:
            self._run.epoch(order.ravel(), inf, lambda done: None)
        except NonFiniteGradientError as error:
            return str(error)
        self._run.close_epoch(first, None)
        return ""

    def evaluate(self, rows: Array) -> tuple[float, float]:
        """Return loss and accuracy (nan for numbers) on these rows, from one forward pass."""
        kind, target = self._network.config["loss"], self._target[rows]
        output = self._network.forward(self._x[rows]).astype(np.float64)
        with np.errstate(all="ignore"):
            if kind == "mse":
                return float(np.mean((output - target.reshape(output.shape)) ** 2)), nan
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
        schedule = lr
        lr = (lambda step: factor * schedule(step)) if callable(schedule) else factor * schedule
    arguments: dict[str, Any] = {"clip": copy.deepcopy(optimizer.clip)} | optimizer._arguments
    return type(optimizer)(lr, **(arguments | changes))

"""The end of an epoch: when a training is over, and the learning rate of the next one."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

from vegrad.arrays.checks import Array
from vegrad.diagnosis.history import History
from vegrad.networks.network import Network
from vegrad.optim import Optimizer

LEAST = 1e-6  # a rate that "adaptive" does not lower any more


class Stopping:
    """A callback of `MLP.fit` that ends a training where scikit-learn's estimators would.

    Args:
        optimizer: the optimizer, whose rate is changed if `rates` is "adaptive" or "invscaling".
        tol: the least that counts as better.
        patience: epochs in a row that may bring less.
        rates: the way of the learning rate over the epochs.
        decay: rows and power of "invscaling": rate/(rows seen + 1)^power.
        unit: of the loss, in scikit-learn's.
        score: of the network on rows held out, if that is to decide instead of the loss.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        tol: float,
        patience: float,
        rates: str,
        decay: tuple[int, float],
        unit: float,
        score: Callable[[], float] | None,
    ) -> None:
        self.optimizer, self.tol, self.patience, self.rates = optimizer, tol, patience, rates
        self.rate, (self.rows, self.power) = optimizer.rate(), decay
        self.unit, self.score = unit, score
        self.losses, self.scores = list[float](), list[float]()
        self.best, self.waited, self.stopped = inf, 0, False
        self.parameters: dict[str, Array] = {}
        """Copies of the network's parameters at the best score."""

    def __call__(self, network: Network, history: History) -> bool:
        """Look at the epoch that is over; return True if the training is too."""
        self.losses.append(float(history.epoch_loss[-1]) * self.unit)
        now = self.losses[-1]
        if self.score is not None:
            self.scores.append(self.score())
            now = -self.scores[-1]
        self.waited = 0 if now <= self.best - self.tol else self.waited + 1
        if now < self.best:
            self.best = now
            if self.score is not None:
                self.parameters = {n: one.copy() for n, one in network.parameters.items()}
        if self.rates == "invscaling":
            self.optimizer.lr = self.rate / (self.rows * history.epochs + 1) ** self.power
        if self.waited > self.patience:
            self.stopped = self.rates != "adaptive" or self.optimizer.rate() <= LEAST
            if not self.stopped:
                self.optimizer.lr, self.waited = self.optimizer.rate() / 5, 0
        return self.stopped

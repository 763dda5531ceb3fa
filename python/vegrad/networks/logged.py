"""The log of a training by `fit`: what its history has gained goes to a file."""

from __future__ import annotations

from math import isnan, log2, nan
from os import PathLike

import numpy as np

from vegrad.diagnosis.history import History
from vegrad.networks.network import Network
from vegrad.optim import Optimizer
from vegrad.runs.log import RunLog
from vegrad.runs.spikes import AFTER, Spikes, SpikeStep

WRITTEN = ("loss", "gradient_norm", "coefficient", "learning_rate")


class Logged:
    """Writes the steps of a training to a log, as its history gets them.

    Args:
        path: the log.
        network: the network that is trained.
        optimizer: what takes the steps.
        history: of the training; the steps that it has were taken before.

    Raises:
        TypeError, ValueError, OSError: as `RunLog` says.
    """

    def __init__(
        self,
        path: str | PathLike[str],
        network: Network,
        optimizer: Optimizer,
        history: History,
    ) -> None:
        kind = type(network).__name__
        clip = None if optimizer.clip is None else repr(optimizer.clip)
        about = {
            "model": kind,
            "source": f"vegrad.{kind}.fit",
            "settings": {"optimizer": type(optimizer).__name__, "clip": clip},
        }
        self.network, self.history = network, history
        self.log = RunLog(
            path,
            modules=network.weights,
            floor_log2=log2(np.finfo(network.config["dtype"]).smallest_normal),
            about=about,
            first_step=history.steps,
        )
        self._written, self._noted = history.steps, len(history.noted)
        self._spikes, self._open = Spikes(), -1

    def steps(self) -> None:
        """Write the steps that are new, and what was found in them."""
        history, log, first = self.history, self.log, self._written
        if first == history.steps:
            return
        columns = (history.since(first, name).tolist() for name in WRITTEN)
        for step, (loss, norm, coefficient, rate) in enumerate(zip(*columns, strict=True), first):
            clipped = None if coefficient == 1 else norm * coefficient
            log.step(step, loss, norm, clipped, rate)
            self._look(step, loss, norm)
        last = history.steps - 1
        if log.wants_sizes(last):
            log.sizes(last, self.network.weight_gradients_log2().tolist())
        self._written = history.steps
        self.findings()

    def _look(self, step: int, loss: float, norm: float) -> None:
        """Write a spike when it comes, and again with the steps after it."""
        if self._spikes.see(SpikeStep(step, None, loss, norm, nan)):
            self._open = step
        elif step != self._open + AFTER or self._open < 0:
            return
        self.log.spike(self._spikes.all[-1])

    def findings(self) -> None:
        """Write the findings that are new."""
        noted = self.history.noted
        for one in noted[self._noted :]:
            self.log.note(one)
        self._noted = len(noted)

    def epoch(self) -> None:
        """Write the validation at an epoch's end."""
        self.steps()
        value = self.history.last("validation_loss")
        if not isnan(value):
            self.log.validation(self.history.steps - 1, value)

    def close(self) -> None:
        """Write what is left and what all the steps tell, and close the file.

        A training that goes on supersedes the latter: they stand at the step that it begins with.
        """
        self.steps()
        self.findings()
        for one in self.history.told[self._noted :]:
            self.log.note(one)
        self.log.close()

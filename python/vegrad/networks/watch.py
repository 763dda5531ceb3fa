"""A watch over a training: its first batch, its steps as they are taken, and each epoch's end."""

from __future__ import annotations

from math import inf, isfinite, log2
from typing import TYPE_CHECKING, cast

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norm
from vegrad.diagnosis.alarms import Alarms
from vegrad.diagnosis.history import History
from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.rules.long_steps import (
    BACK,
    BLOCK,
    EARLY,
    LONG_STEPS,
    LOOKS,
    MATERIAL,
    MOVED,
    SUSPICIOUS,
    Window,
    start_of,
)
from vegrad.diagnosis.rules.steps import LARGE, RISE, TINY, middle
from vegrad.flow.finding import Finding
from vegrad.networks.network import Network
from vegrad.networks.reading import read

if TYPE_CHECKING:
    from vegrad.networks.mlp import MLP

FEW, MANY = 32, 256  # rows of a quick look and of a close one
CLOSE = 25  # steps from one check of the loss to the next; every BLOCK of the first ones
SPARE = 0.1  # of the steps, that may be looked at because something is suspicious
GROWN = 1.2  # times the learning rate at which steps were last looked at closely
NO_BETTER = 0.9  # times the loss of the best constant


class Watch:
    """What `fit` looks at while it trains, and whom it tells.

    What it decides follows from the history and the number of steps alone, so that a resume goes on
    as if there had been no stop.

    Args:
        network: the network in training.
        history: its history, which findings are noted in.
        data: (N, I), as the network takes them.
        target: of all rows.
        gauge: the distance of the steps that are looked at anyway; 0 if none is.
        alarms: told of findings when they appear.
    """

    def __init__(
        self,
        network: Network,
        history: History,
        data: Array,
        target: Array,
        gauge: int,
        alarms: Alarms,
    ) -> None:
        self.network, self.history, self.alarms = cast("MLP", network), history, alarms
        self.data, self.target, self.gauge = data, target, gauge
        self.best, self.seen = inf, 0  # the lowest mean loss of BLOCK steps, and of how many
        self.constant = inf
        self.ended = int(history.epoch_steps.sum())
        """The number of steps at the end of the last epoch."""
        self.no_better = False
        """True if the last epoch's loss was not below that of a constant output."""
        alarms.known(one.finding for one in history.noted)

    # The first batch -----------------------------------------------------------------------------

    def begin(self, order: npt.NDArray[np.intp], batch_size: int) -> None:
        """Judge the network on its first batch, and the data where there is a NaN in it."""
        few = order[: min(max(batch_size, FEW), 4 * MANY)]
        if self._judged(few, resamples=0):
            many = order[: min(max(batch_size, MANY), 4 * MANY)]
            self._found(self._judged(many, resamples=4))

    def _judged(self, rows: Array, resamples: int) -> tuple[Finding, ...]:
        x, target = self.data[rows], self.target[rows]
        return judge(read(self.network, x, target, resamples=resamples, seed=0, theory=False))

    def _found(self, findings: tuple[Finding, ...]) -> None:
        """Note findings and tell of them, but not of what steps that are too long have done."""
        if self._overshoots:
            self.alarms.known(findings)
        for finding in findings:
            self.history.note(finding)
        self.alarms.tell(one.finding for one in self.history.noted)

    @property
    def _overshoots(self) -> bool:
        return any(one.finding.kind == "overshooting" for one in self.history.noted)

    # Steps ---------------------------------------------------------------------------------------

    def ahead(self) -> tuple[int, bool]:
        """Return after how many steps `check` is to be called, and if each is to be looked at."""
        step, due = self.history.steps, []
        if self.gauge > 1:
            due.append((step - 1) // self.gauge * self.gauge + self.gauge + 1 if step else 1)
        near = BLOCK if step < 4 * BLOCK else CLOSE
        due.append((step // near + 1) * near)
        end = self._window_end
        if end > step:
            due.append(end)
        return min(due) - step, end > step

    @property
    def _window_end(self) -> int:
        return -1 if self.history.watched is None else self.history.watched + LOOKS

    def check(self) -> None:
        """Look at the steps that were taken, if it is time to."""
        history, step = self.history, self.history.steps
        last = history.at(step - 1, "loss")
        if not isfinite(last):
            self.broken()
        if not self.gauge:
            return
        if step == self._window_end:
            self._close_window()
        suspicious = self._blocks(step)
        if self.gauge > 1 and (step - 1) % self.gauge == 0:
            alpha, slope = (history.at(step - 1, name) for name in ("alpha", "slope"))
            if slope >= 0 or not alpha <= SUSPICIOUS:
                self._open_window(step - 1)
        if suspicious or (step % CLOSE == 0 and self._lengthens(step)):
            self._open_window(step)

    def _lengthens(self, step: int) -> bool:
        """Return True if a rate that rises has made steps long since they were last looked at."""
        history = self.history
        if not history.epochs:
            return False

        def rate(place: int) -> float:
            return history.at(place, "learning_rate")

        now, then = rate(step - 1), rate(self.ended - 1)
        seen = max(then, 0.0) if history.watched is None else rate(history.watched)
        if not now > GROWN * seen > 0 < then:
            return False
        return middle(history.last("update_log2")) + log2(now / then) > MOVED - 1

    def _blocks(self, step: int) -> bool:
        """Take in the mean losses of blocks of steps; return True if one has risen."""
        blocks = self.history.since(self.seen, "loss")[: step // BLOCK * BLOCK - self.seen]
        if not len(blocks):
            return False
        risen = False
        for mean in blocks.reshape(-1, BLOCK).mean(axis=1).tolist():
            risen = mean > BACK * self.best
            self.best = min(self.best, mean)
        self.seen += len(blocks)
        return risen and mean > MATERIAL * self._start

    @property
    def _start(self) -> float:
        """The loss that it began with; asked for only after some steps."""
        return start_of(self.history.first("loss", 5))

    def _open_window(self, step: int) -> None:
        """Have several steps in a row looked at, from this one on, if there were not too many."""
        history = self.history
        if self._window_end > step or not self.gauge:
            return
        if self._overshoots:
            return
        if self.gauge > 1 and step > 3 * LOOKS:
            looked = np.count_nonzero(~np.isnan(history.alpha)) - step // self.gauge
            if looked > 3 * LOOKS + SPARE * step:
                return
        history.watched = step

    def _close_window(self) -> None:
        history, first = self.history, self._window_end - LOOKS
        size = norm(self.network.parameters)
        length = float(np.median(history.since(first, "step_length")))
        known = 0 < size < inf and 0 < length < inf
        window = Window(
            first,
            history.since(first, "alpha"),
            history.since(first, "slope"),
            history.loss,
            log2(length / size) if known else inf,
            float(history.since(first, "learning_rate")[0]),
        )
        self._found(tuple(LONG_STEPS.find(window, LONG_STEPS, ())))
        if first < EARLY and window.downhill > 0 and window.moved > MOVED:
            self._open_window(history.steps)  # the first steps go too far now and then

    def stops(self, due: bool) -> bool:
        """Check if it is time to; return True if the training is to end here."""
        if due:
            self.check()
        return self.alarms.stop

    def broken(self, *, ending: bool = False) -> None:
        """Say why the loss or a gradient is no number any more, as far as that can be told.

        Where an error is `ending` the training, whoever catches it has the findings from there.
        """
        if ending and self.alarms.on_finding != "warn":
            self.alarms = Alarms("stop", self.history)  # it tells nobody
        bad = ~np.isfinite(self.data).reshape(len(self.data), -1).all(axis=1)
        bad |= ~np.isfinite(self.target).reshape(len(self.target), -1).all(axis=1)
        rows = np.flatnonzero(bad)
        if len(rows):
            self._found(self._judged(rows[:1], resamples=0))
        else:
            self._found(tuple(f for f in self.history.findings if f.kind == "overshooting"))

    # Epochs --------------------------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Judge the end of an epoch: closely if the training does not go well."""
        history, epoch = self.history, self.history.epochs
        self.ended = history.steps
        loss, moved = history.last("epoch_loss"), middle(history.last("update_log2"))
        if epoch == 1 or self.constant == inf:
            self.constant = _best_constant(self.target, self.network.config["loss"])
        if moved > MOVED - (history.steps > CLOSE):
            self._open_window(history.steps)
        no_better = not loss < NO_BETTER * min(self.constant, self._start)
        rose = epoch > 1 and not loss < (1 + RISE) * history.last("epoch_loss", 2)
        if no_better or rose or not TINY < moved < LARGE:
            found = history.findings
            self._found(tuple(f for f in found if f.kind == "overshooting"))
            most = max(middle(row) for row in history.update_log2)
            tiny = most < TINY and epoch > 1 and self._is_steady()
            self.alarms.tell(f for f in found if tiny and f.cause == "learning-rate-low")
        worse, self.no_better = self.no_better and no_better, no_better
        if worse and isfinite(loss) and epoch & (epoch - 1) == 0:
            rows = np.linspace(0, len(self.data) - 1, min(len(self.data), MANY)).astype(np.intp)
            self._found(self._judged(rows, resamples=0))

    def _is_steady(self) -> bool:
        """Return True if the learning rate did not rise in the last epoch."""
        rates = self.history.since(
            self.history.steps - self.history.last("epoch_steps"), "learning_rate"
        )
        return bool(rates[-1] <= rates[0])

    def end(self) -> None:
        """Say what the training as a whole tells."""
        self.alarms.tell(self.history.findings)


def _best_constant(target: Array, loss: str) -> float:
    """Return the mean loss of the best output that is the same for all rows."""
    if loss == "cross_entropy":
        share = np.bincount(target.ravel()) / target.size
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())
    wanted = target.reshape(len(target), -1)
    if loss == "mse":
        return float(wanted.var(axis=0, dtype=np.float64).mean())
    mean = np.clip(wanted.mean(axis=0, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).mean())

"""A watch over a training: its first batch, its steps as they are taken, and each epoch's end."""

from __future__ import annotations

from math import inf, isfinite, log2

import numpy as np

from vegrad.arrays.measurement import norm
from vegrad.diagnosis.alarms import Alarms
from vegrad.diagnosis.history import History
from vegrad.diagnosis.rules.digest import Digest, middle
from vegrad.diagnosis.rules.long_steps import (
    BACK,
    BLOCK,
    EARLY,
    LONG_STEPS,
    LOOKS,
    MOVED,
    SUSPICIOUS,
    Window,
    start_of,
)
from vegrad.diagnosis.rules.stalled import LARGE, TINY
from vegrad.diagnosis.rules.steps import HIGH, RISE
from vegrad.networks.examiner import MANY, Examiner
from vegrad.networks.network import Network
from vegrad.networks.rows import Rows

CLOSE, FAR = 25, 100  # steps from one check of the loss to the next; every BLOCK of the first ones
SPARE = 0.1  # of the steps, that may be looked at because something is suspicious
MATTERS = 0.1  # times the first loss, from which a loss that rises is looked at
SHORT = -3.0  # log2 of what steps must grow by to be long, for no look to be of use
GROWN = 1.2  # times the learning rate at which steps were last looked at closely
SURE = 3  # epochs, before steps are called too long though the loss has not been thrown up
NO_BETTER = 0.9  # times the loss of the best constant


class Watch(Examiner):
    """The examiner that `fit` has look at its steps while they are taken, and at epochs' ends.

    What it decides follows from the history and the number of steps alone, so that a resume goes on
    as if there had been no stop.

    Args:
        gauge: the distance of the steps that are looked at anyway; 0 if none is.
    """

    def __init__(
        self,
        network: Network,
        history: History,
        rows: Rows,
        gauge: int,
        alarms: Alarms,
    ) -> None:
        super().__init__(network, history, rows, alarms)
        self.gauge = gauge
        self.best, self.seen = inf, 0  # the lowest mean loss of BLOCK steps, and of how many
        self.moved = middle(history.last("update_log2")) if history.epochs else inf
        """log2 of how far the last epoch's last step moved the weights: the median layer."""
        self.ended = int(history.epoch_steps.sum())
        """The number of steps at the end of the last epoch."""
        self.no_better = 0
        """How many epochs on end ended with a loss no better than that of a constant output."""
        for loss in history.epoch_loss:
            self.no_better = self.no_better + 1 if self._is_no_better(loss) else 0

    # Steps ---------------------------------------------------------------------------------------

    def ahead(self) -> tuple[int, bool]:
        """Return after how many steps `check` is to be called, and if each is to be looked at."""
        step, due = self.history.steps, []
        if self.gauge > 1:
            due.append((step - 1) // self.gauge * self.gauge + self.gauge + 1 if step else 1)
        near = BLOCK if step < 4 * BLOCK else CLOSE if self._may_be_long else FAR
        if near < FAR or not due:
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
        return self.moved + log2(now / then) > MOVED - 1.5

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
        return risen and mean > MATTERS * self._start

    @property
    def _start(self) -> float:
        """The loss that it began with; asked for only after some steps."""
        known = self.history.learnt
        return max(start_of(self.history.first("loss", 5)), known[1] if known else 0.0)

    def _open_window(self, step: int) -> None:
        """Have several steps in a row looked at, from this one on, if there were not too many."""
        history = self.history
        if self._window_end > step or not self.gauge:
            return
        if self.overshoots:
            return
        if not self._may_be_long:
            return
        if self.gauge > 1 and step > 3 * LOOKS:
            looked = np.count_nonzero(~np.isnan(history.alpha)) - step // self.gauge
            if looked > 3 * LOOKS + SPARE * step:
                return
        history.watched = step

    @property
    def _may_be_long(self) -> bool:
        """False if steps were far too short to be long at the last epoch's end."""
        return not self.history.epochs or self.moved > MOVED + SHORT

    def _close_window(self) -> None:
        """Judge the steps that were looked at: twice as many, before one is told of them."""
        first = self._window_end - LOOKS
        window = self._window(first)
        found = tuple(LONG_STEPS.find(window, LONG_STEPS, ()))
        if found and not window.rises and self.network.config["loss"] == "mse":
            self.history.doubts += 1
            if self.history.doubts < 2:
                self.history.watched = self.history.steps  # a few steps go too far now and then
                return
        self.found(found)
        if first < EARLY and window.downhill > 0 and window.moved > MOVED:
            self._open_window(self.history.steps)

    def _window(self, first: int) -> Window:
        """Return what is known of the LOOKS steps from this one on, and before."""
        history, end = self.history, first + LOOKS
        size = norm(self.network.parameters)
        length = float(np.median(history.since(first, "step_length")[:LOOKS]))
        known = 0 < size < inf and 0 < length < inf
        return Window(
            first,
            history.since(first, "alpha")[:LOOKS],
            history.since(first, "slope")[:LOOKS],
            history.first("loss", end),
            log2(length / size) if known else inf,
            history.first("learning_rate", end),
        )

    def stops(self, due: bool) -> bool:
        """Check if it is time to; return True if the training is to end here."""
        if due:
            self.check()
        return self.alarms.stop

    # Epochs --------------------------------------------------------------------------------------

    def close_epoch(self) -> None:
        """Judge the end of an epoch: closely if the training does not go well."""
        history, epoch = self.history, self.history.epochs
        self.ended = history.steps
        loss = history.last("epoch_loss")
        if not isfinite(loss):
            self.broken()
        self.moved = moved = middle(history.last("update_log2"))
        if moved > MOVED - (history.steps > CLOSE):
            self._open_window(history.steps)
        no_better = self._is_no_better(loss)
        rose = epoch > 1 and not loss < (1 + RISE) * history.last("epoch_loss", 2)
        if (no_better or rose or not TINY < moved < LARGE) and _is_due(epoch):
            found = history.findings
            sure = epoch >= SURE or not isfinite(loss)
            gets_on = Digest(history).gets_on
            self.found(
                tuple(
                    one
                    for one in found
                    if one.kind == "overshooting"
                    and not gets_on
                    and (sure or not one.evidence.get("highest", 0.0) <= HIGH)
                )
            )
            most = max(middle(row) for row in history.update_log2)
            tiny = most < TINY and epoch > 1 and self._is_steady()
            low = tuple(f for f in found if tiny and f.cause == "learning-rate-low")
            if low and self.blame_memory(low):
                low = tuple(f for f in history.findings if f.kind == "vanishing")
            self.alarms.tell(low)
        self.no_better = self.no_better + 1 if no_better else 0
        if self.no_better in (3, 6, 12, 24, 48) and isfinite(loss):
            count = len(self.rows)
            rows = np.linspace(0, count - 1, min(count, MANY)).astype(np.intp)
            self.found(self.judged(rows))

    def _is_no_better(self, loss: float) -> bool:
        return not loss < NO_BETTER * min(self.constant, self._start)

    def _is_steady(self) -> bool:
        """Return True if the learning rate did not rise in the last epoch."""
        rates = self.history.since(
            self.history.steps - self.history.last("epoch_steps"), "learning_rate"
        )
        return bool(rates[-1] <= rates[0])


def _is_due(epoch: int) -> bool:
    """Return True if a training may be judged by all its steps at the end of this epoch.

    With each doubling of the epochs, from 128 on, half as many are: judging takes the same share of
    the time however long the training is.
    """
    return epoch % (1 << max(epoch.bit_length() - 7, 0)) == 0

"""Short trainings from the same seed, looked at as they run, and stopped when it is clear."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from math import isfinite, nan

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.diagnosis.history import History
from vegrad.treatment.curable import Trainer
from vegrad.treatment.goal import Goal
from vegrad.treatment.remedy import Treatment

LOOKS = 20  # at a whole training
NEAR = 0.9  # of the guess's loss: below, a look is worth a forward pass
SOON = 1.5  # times the loss wanted: the same with the mean square
MOVING = 0.95  # of the loss two looks ago
FALLING = 3  # looks, from the first to the last of which a gain is taken
Begin = Callable[[History], Trainer]

FORWARD = 1 / 3  # of a forward and backward pass


@dataclass
class Trial:
    """A training of a copy, which can be gone on with.

    `points` are steps, loss and accuracy: on the rows to look at before the first step and where
    the batches' loss is near the goal, else the mean of the batches' since the last (accuracy nan).
    """

    treatment: Treatment
    rows: Array
    """Rows to look at."""
    goal: Goal
    batch_size: int
    steps: int
    """Steps of a whole training."""
    seed: int
    points: list[tuple[int, float, float]] = field(default_factory=list)
    history: History = field(default_factory=History)
    passed: float = 0.0
    """Rows that went forward and back."""
    ended: str = ""
    """Why it cannot go on: something is not finite."""
    trainers: Callable[[Trial, Begin], Trainer] | None = None
    """Makes the trainer, given what begins one that trains here; None for that one."""
    learnt: Array | None = None
    """Rows to train on; None for all."""

    def __post_init__(self) -> None:
        """Look at the network as it begins; nothing is trained yet."""
        subject = self.treatment.subject
        self._learnt = np.arange(len(subject.data)) if self.learnt is None else self.learnt
        self._count = len(self._learnt)
        self._random = np.random.default_rng(self.seed)
        self._rest = np.empty(0, np.intp)
        self.size = min(self.batch_size, self._count)
        self.block_steps = max(1, self.steps // LOOKS)
        begin = partial(
            subject.trainer,
            batch_size=self.size,
            gauge_every=2 * self.block_steps,
            seed=self.seed,
        )
        self._trainer: Trainer | None = (
            begin(self.history) if self.trainers is None else self.trainers(self, begin)
        )
        self.look()

    @property
    def trainer(self) -> Trainer:
        """The network in training; RuntimeError if it was let go."""
        if self._trainer is None:
            raise RuntimeError("this training was let go, and cannot be gone on with")
        return self._trainer

    def forget(self) -> None:
        """Let go of the network and the optimizer's states; it cannot be trained any further."""
        self._trainer = None

    def look(self) -> None:
        """Evaluate the rows to look at, in place of what the batches said."""
        if self.points and self.points[-1][0] == self.history.steps:
            self.points.pop()
        self.passed += FORWARD * len(self.rows)
        loss, accuracy = self.trainer.evaluate(self.rows)
        right = nan if self.goal.kind == "mse" else accuracy
        self.points.append((self.history.steps, loss, right))

    @property
    def reached(self) -> bool:
        """True if the last look met the goal, after a step at least: a guess may meet it."""
        return self.history.steps > 0 and self.goal.reached(*self.points[-1][1:])

    @property
    def way(self) -> float:
        """The part of the way to the goal that is done at the last look, see `Goal.way`."""
        return self.goal.way(*self.points[-1][1:])

    @property
    def share(self) -> float:
        """The share of a whole training that is done."""
        return self.history.steps / self.steps

    @property
    def moving(self) -> bool:
        """True if the loss is clearly lower than two looks ago."""
        losses = [point[1] for point in self.points[-3:]]
        return losses[-1] < MOVING * losses[0]

    @property
    def on_the_way(self) -> bool:
        """True if what the last looks have gained leads to the goal by the end of the training."""
        before, now = self.points[-FALLING:][0], self.points[-1]
        was, left = self.goal.way(*before[1:]), self.steps - now[0]
        gained = (self.way - was) / max(now[0] - before[0], 1)
        return gained > 0 and self.way + gained * left >= 1

    @property
    def can_go_on(self) -> bool:
        """True if nothing has ended it, and it was not let go."""
        return not self.ended and self._trainer is not None

    def train(self, until: int, stop: Callable[[Trial], bool] | None = None) -> None:
        """Train to this step in all, or until `stop` says so at a look, or it cannot go on."""
        while self.history.steps < until and not self.ended and not self.reached:
            self.block(min(self.block_steps, until - self.history.steps))
            if stop is not None and stop(self):
                return

    def block(self, steps: int, *, looking: bool = True) -> None:
        """Take so many steps, and look if the batches' loss says that it is worth it."""
        first = self.history.steps
        self.ended = self.trainer.advance(self._order(steps))
        looked = np.count_nonzero(~np.isnan(self.history.since(first, "alpha")))
        self.passed += (steps + looked) * self.size
        loss = float(np.mean(self.history.since(first, "loss"))) if self.history.steps else nan
        self.points.append((self.history.steps, loss, nan))
        near = NEAR * self.goal.guess
        if self.goal.kind == "mse":
            near = SOON * self.goal.wanted
        if looking and not self.ended and loss <= near:
            self.look()
            loss = self.points[-1][1]
        if not isfinite(loss):
            self.ended = self.ended or f"the loss is {loss} after {self.history.steps} steps"

    def _order(self, steps: int) -> Array:
        """Return the next rows (steps, B): all once in a new order each epoch, all batches full."""
        size = self.size
        whole = self._count // size * size
        while len(self._rest) < steps * size:
            self._rest = np.append(self._rest, self._random.permutation(self._learnt)[:whole])
        order, self._rest = self._rest[: steps * size], self._rest[steps * size :]
        return order.reshape(steps, size)

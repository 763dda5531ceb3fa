"""The budget of a search and what it has spent, in rows that went forward and back."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import isfinite

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.treatment.goal import Plan
from vegrad.treatment.promise import hopeless
from vegrad.treatment.trial import FORWARD, Trial

AGAIN = 3  # times the steps of a cure in which it must do without its luck
HELD = 0.8  # of the way to the goal, that must be left some time after it was reached
BUDGET = 1.5  # trainings: the usual one, in parts of which remedies keep passes for others


@dataclass(frozen=True)
class Tried:
    """A change that was trained."""

    place: int
    """The number of its attempt."""
    trial: Trial
    after: Diagnosis
    """The diagnosis of the changed network, before training."""


@dataclass
class Budget:
    """The trainings of a search and their cost.

    Whatever is spent, enough is left for the proof: to train what was given for as many steps as
    the best change.
    """

    plan: Plan
    batch_size: int
    """Rows of a step; no more than there are."""
    looks: int
    """Rows of a look at a training."""
    early: int
    """Steps that are gauged beyond one in two blocks."""
    sick: Trial
    """The training of what was given."""
    passed: float = 0.0
    """Rows that looks and edits have cost."""
    tried: list[Tried] = field(default_factory=list)
    again: list[Trial] = field(default_factory=list)
    """Trainings that repeat one with the rows in another order."""

    @property
    def spent(self) -> float:
        """The cost so far."""
        trained = sum(one.trial.passed for one in self.tried)
        trained += self.sick.passed + sum(trial.passed for trial in self.again)
        return self.passed + trained

    @property
    def cost(self) -> float:
        """The cost so far, in whole trainings."""
        return float(self.spent / (self.plan.steps * self.batch_size))

    def best(self, count: int | None = None) -> Tried | None:
        """Return the one with the lowest loss, of the first so many; None if none is finite."""
        known = [one for one in self.tried[:count] if isfinite(one.trial.points[-1][1])]
        return min(known, key=lambda one: one.trial.points[-1][1], default=None)

    def room(self, steps: int, kept: float = 0.0) -> bool:
        """Return True if a trial may come to so many steps, and the given network after it.

        `kept` of the usual budget, or as large a part of another, is then left.
        """
        sick, size, looks = self.sick, self.batch_size, self.looks * FORWARD
        block = sick.block_steps
        # The best may be the trial that goes on now, or, if that gets worse, the best before it.
        bests = [self.best(), self.best(len(self.tried) - 1)]
        proof = max(steps, *(0 if b is None else b.trial.history.steps for b in bests))
        behind = 0 if sick.ended else max(0, proof - sick.history.steps)
        ahead = block * size * (1.0 + 1.0 / block) + 2 * looks
        gauge = 1.0 + 1.0 / (2 * block)
        looks += size  # the gauge looks at the first step too
        wanted = self.spent + ahead + behind * size * gauge + looks
        most = self.plan.budget * self.plan.steps * size
        most -= 2 * self.early * size  # of the last trial and of the proof
        return wanted <= (1.0 - kept / BUDGET) * most

    def by_luck(self, trial: Trial) -> Trial | None:
        """Train again with the rows in another order; return that if it misses the goal.

        Where the training is what was changed, the goal must also be held for some time: too high
        a rate may lose it again. None, too, where nothing is left to spend on it; but a rate that
        must hold the goal for a whole training has then not done so, and if all that is left is too
        little to see it, it is left for others.
        """
        steps, rate = trial.history.steps, trial.treatment.is_of_training
        whole = rate and self.plan.whole
        if not self.room(steps):
            return trial if whole else None
        again = replace(trial, seed=trial.seed + 1, points=[], history=History(), passed=0.0)
        self.again.append(again)
        most = max(AGAIN * steps, self.plan.steps // 5)
        again.train(most, lambda trial: hopeless(trial) or not self.room(steps))
        if again.reached and rate:
            until = again.history.steps + max(steps, self.plan.steps // 4)
            until = self.plan.steps if whole else until
            if whole and not self._affords(until - again.history.steps, steps):
                return again
            self._hold(again, until)
            if whole:
                held = again.history.steps >= until and again.way >= HELD
                return None if held else again
            return None if again.way >= HELD or not self.room(steps) else again
        return None if again.reached or not self.room(steps) else again

    def _affords(self, steps: int, proof: int) -> bool:
        """Return True if so many more steps can be paid, and the given network's proof."""
        behind = 0 if self.sick.ended else max(0, proof - self.sick.history.steps)
        most = self.plan.budget * self.plan.steps * self.batch_size
        return self.spent + (steps + behind) * self.batch_size <= most

    def _hold(self, trial: Trial, until: int) -> None:
        """Train on, though the goal is reached, as far as there is room."""
        while trial.history.steps < until and not trial.ended and self.room(trial.history.steps):
            trial.block(min(trial.block_steps, until - trial.history.steps), looking=False)
        if not trial.ended:
            trial.look()

"""Attempts: changes that are judged by one pass, then trained, and what follows from that."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.subject import Refusal
from vegrad.sweeps import Pool
from vegrad.treatment.budget import Budget, Tried
from vegrad.treatment.curable import Curable
from vegrad.treatment.foresight import Executor, Foresight, Setting
from vegrad.treatment.goal import Plan
from vegrad.treatment.outcome import PAIRS, Attempt, Ended
from vegrad.treatment.progress import Listener, Look
from vegrad.treatment.promise import (
    PATIENT,
    astray,
    brings,
    creeping,
    ended,
    high,
    hopeless,
    standing,
    thrown,
    unreached,
    worse,
)
from vegrad.treatment.rates import long_steps, short_steps
from vegrad.treatment.remedies import FOLLOWING, TRAINING
from vegrad.treatment.remedy import Patient, Remedy, Treatment
from vegrad.treatment.trial import Trial

LEAST_ROWS = 8  # to look at, however short a training is
LOOKED_AT = 256  # rows on which loss and accuracy are taken
BATCHES = 4  # and those of a diagnosis, in batches
# What is kept for others may be spent on a trial that has come so much of the way, or so many times
# the share of a training that it has taken.
ALMOST, FAST = 0.9, 3.0
LUCK = "reached the goal, but not to stay, or not with the rows in another order"
GIVE_UP = 0.1  # of a training: less is no trial
Over = Callable[[Trial], bool]


class Attempts:
    """The attempts of one search, and the trainings that they cost.

    Args:
        subject: what is to be cured.
        plan: the goal and the length of its trainings, and what all may cost.
        following: remedies for what the history of a training shows.
        tell: is called at every look at a training.
        executor: has workers, which train beforehand what will probably be asked for.
    """

    def __init__(
        self,
        subject: Curable,
        plan: Plan,
        following: Sequence[Remedy] = FOLLOWING,
        tell: Listener = lambda look: None,
        executor: Executor | Pool | None = None,
    ) -> None:
        self.plan, self.following, self.tell = plan, following, tell
        self.given = Treatment(subject)
        count = len(subject.data)
        self.batch_size = min(plan.batch_size, count)
        drawn = np.random.default_rng(plan.seed).permutation(count)
        whole = plan.steps * self.batch_size
        most = max(LEAST_ROWS, whole // 50)  # a diagnosis should cost little beside a training
        rows = drawn[: min(most, max(64, min(LOOKED_AT, BATCHES * self.batch_size)))]
        self.rows = np.sort(drawn[: min(LOOKED_AT, max(LEAST_ROWS, whole // 20))])
        before = subject.diagnosed(*subject.data.take(rows), theory=True)
        self.patient = Patient(self.given, before, rows)
        self.attempts: list[Attempt] = []
        setting = Setting(self.rows, plan.goal, self.batch_size, plan.steps, plan.seed)
        self.foresight = Foresight(executor, setting)
        self.foresight.begin(self.given, whole=True)
        sick = self._trial(self.given)
        self.budget = Budget(plan, self.batch_size, len(self.rows), subject.early, sick)
        self.budget.passed += subject.looking(len(rows)) + before.further * len(rows)
        self.kept, self.said, self.brought = 0.0, False, False
        self.done = set[tuple[str, ...]]()  # the code of what has been judged

    def _trial(self, treatment: Treatment) -> Trial:
        plan = self.plan
        return Trial(
            treatment,
            self.rows,
            plan.goal,
            self.batch_size,
            plan.steps,
            plan.seed,
            trainers=self.foresight.trainer,
        )

    def _worth_a_trial(self) -> bool:
        """Return True if there is room for one; for the first change, whatever is kept."""
        kept = self.kept if self.budget.tried else 0.0
        return self.budget.room(int(GIVE_UP * self.plan.steps), kept)

    def _over(self, trial: Trial) -> bool:
        """Return True if a trial is to be ended: it learns nothing, or nothing is left to spend."""
        # Where the fault is mended nothing that comes later promises more: on time is fast enough.
        times = 1.0 if self.brought else FAST
        fast = trial.way >= min(ALMOST, times * trial.share)
        kept = 0.0 if fast else self.kept
        # What the diagnosis itself says is the smallest change, and gets the time that it needs.
        slow = creeping(trial) and not self.said
        slow |= self.patient.diagnosis.healthy and standing(trial)
        brought = self.brought and not short_steps(trial.history)  # else a higher rate is next
        patient = PATIENT if brought else int(self.kept == 0.0)
        if slow or thrown(trial) or hopeless(trial, patient=patient):
            return True
        return not self.budget.room(trial.history.steps + trial.block_steps, kept)

    def _follow(self, name: str, tried: Tried, patient: Patient, deeper: int) -> Tried | None:
        """Try what the history of a trial asks for, on top of it."""
        trial = tried.trial
        for following in self.following:
            on_top = replace(patient, given=trial.treatment, diagnosis=tried.after, passed=0.0)
            on_top.history = trial.history
            if not trial.history.steps or not self._worth_a_trial():
                return None
            more = deeper - 1 if following.followed else 0
            chosen = self._attempt(following.within(name), on_top, more)
            if chosen is not None:
                return chosen
        return None

    def _gentler(self, remedy: Remedy, tried: Tried, patient: Patient) -> Tried:
        """Return a lower rate in place of one that reached the goal by steps that are too long.

        What goes far enough for the goal may go no further; a lower one must be about as quick.
        """
        trial = tried.trial
        if not trial.treatment.is_of_training or not long_steps(trial.history):
            return tried
        other = self._follow(remedy.name, tried, patient, 1)
        slower = other is not None and other.trial.history.steps > 2 * trial.history.steps
        return tried if other is None or slower else other

    def _attempt(self, remedy: Remedy, patient: Patient, deeper: int) -> Tried | None:
        """Try a remedy; return what reached the goal, if it did or something on top of it."""
        before = patient.diagnosis
        treatment = remedy.treat(patient)
        if isinstance(treatment, Refusal):
            self.budget.passed += patient.passed
            how: Ended = ""
            if treatment.worth_saying and not any(one.ended == "skipped" for one in self.attempts):
                how = "skipped" if remedy.said else "impossible"
            if treatment.why:
                refused = Attempt(remedy.name, "", False, treatment.why, before, ended=how)
                self.attempts.append(refused)
            return None
        if not treatment.is_of_training and treatment.lines in self.done:
            self.budget.passed += patient.passed
            return None
        after = before if treatment.is_of_training else patient.look(treatment)
        self.budget.passed += patient.passed
        cost = patient.passed / self.batch_size
        done = Attempt(remedy.name, treatment.words, False, "", before, after, passes=cost)
        why, how = "", "no-better"
        if not treatment.is_of_training:
            why = worse(before, after, scaled=treatment.scales, said=remedy.said)
            if not why and not treatment.scales:
                why, how = unreached(after), "out-of-reach"
            if not why and treatment.changes[-1].proposal.waits:
                why, how = high(after, self.plan.goal.guess), "high"
        if not why and not self._worth_a_trial():
            why, how = "no passes are left to train it", "no-passes"
        if why:
            self.attempts.append(replace(done, why=why, ended=how))
            return None
        self.done.add(treatment.lines)
        self.brought = not remedy.said and brings(self.patient.diagnosis, after)
        self.said = remedy.said
        tried = self._train(treatment, done, after)
        trial = tried.trial
        if treatment.scales:
            patient.given, patient.diagnosis, patient.history = treatment, after, trial.history
        failed = self.budget.by_luck(trial) if trial.reached else None
        if trial.reached and failed is None:
            return self._gentler(remedy, tried, patient) if deeper else tried
        if failed is not None:
            done = self.attempts[tried.place]
            cost = done.passes + failed.passed / self.batch_size
            self.attempts[tried.place] = replace(done, why=LUCK, ended="luck", passes=cost)
        healthy = remedy.kinds == TRAINING and self.patient.diagnosis.healthy
        missed = failed is not None or healthy or astray(trial)
        if deeper and missed and not remedy.scales:
            last = tried if failed is None else replace(tried, trial=failed)
            return self._follow(remedy.name, last, patient, deeper)
        return None

    def _train(self, treatment: Treatment, done: Attempt, after: Diagnosis) -> Tried:
        """Train a promising change until the goal is reached, or it is seen that it will not be."""
        best = self.budget.best()
        for one in self.budget.tried:  # the best may be gone on with at the end
            if one is not best:
                one.trial.forget()
        trial = self._trial(treatment)
        tried = Tried(len(self.attempts), trial, after)
        self.budget.tried.append(tried)
        trial.train(self.plan.steps, lambda trial: self._looked(done.name, trial, self._over))
        self.attempts.append(_recorded(done, trial))
        self._looked(done.name, trial, how=self.attempts[-1].why)
        return tried

    def _looked(self, name: str, trial: Trial, over: Over | None = None, how: str = "") -> bool:
        """Tell of a look at a training; return True if it is to be ended."""
        step, loss, _ = trial.points[-1]
        self.tell(Look(name, step, self.plan.steps, loss, self.budget.cost, how))
        return over is not None and over(trial)

    def _go_on(self, best: Tried, *, learning: bool = True) -> Tried | None:
        """Train the best on, as long as it is learning; return it if that reaches the goal."""
        trial, before = best.trial, best.trial.passed

        def over(trial: Trial) -> bool:
            stands = learning and not (trial.moving or trial.on_the_way)
            return stands or not self.budget.room(trial.history.steps + trial.block_steps)

        if trial.reached or not trial.can_go_on or over(trial):
            return None
        done = self.attempts[best.place]
        trial.train(self.plan.steps, lambda trial: self._looked(done.name, trial, over))
        self.attempts[best.place] = _recorded(done, trial, before)
        self._looked(done.name, trial, how=self.attempts[best.place].why)
        return best if trial.reached else None


def _recorded(done: Attempt, trial: Trial, before: float = 0.0) -> Attempt:
    """Write down how a training has ended; `before` rows of it are written down already."""
    (_, *first), (count, *last) = trial.points[0], trial.points[-1]
    pairs = {name: (a, b) for name, a, b in zip(PAIRS, first, last, strict=True)}
    how, why = ended(trial)
    passes = done.passes + (trial.passed - before) / trial.size
    figures = replace(done, loss=pairs["loss"], accuracy=pairs["accuracy"])
    return replace(figures, why=why, ended=how, steps=count, passes=passes)

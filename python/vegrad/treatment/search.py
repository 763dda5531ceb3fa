"""From a sick network to the smallest change that cures it, and the proof by a re-run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.subject import Refusal
from vegrad.treatment.beyond import beyond_cure
from vegrad.treatment.budget import Budget, Tried
from vegrad.treatment.conclusion import about, conclude
from vegrad.treatment.curable import Curable
from vegrad.treatment.goal import Plan
from vegrad.treatment.outcome import PAIRS, Attempt, Ended, Outcome
from vegrad.treatment.promise import creeping, ended, hopeless, rose, standing, thrown, worse
from vegrad.treatment.rates import long_steps, short_steps
from vegrad.treatment.remedies import FOLLOWING, REMEDIES, TRAINING
from vegrad.treatment.remedy import Patient, Remedy, Treatment, kept_for
from vegrad.treatment.trial import Trial

LEAST_ROWS = 8  # to look at, however short a training is
LOOKED_AT = 256  # rows on which loss and accuracy are taken
BATCHES = 4  # and those of a diagnosis, in batches
# What is kept for others may be spent on a trial that has come so much of the way, or so many times
# the share of a training that it has taken.
ALMOST, FAST = 0.9, 3.0
LUCK = "reached the goal, but not with the rows in another order"
FAR = 2.0  # times the loss of the best constant output
GIVE_UP = 0.1  # of a training: less is no trial
DEEP = 3  # changes of the training on top of one of the network


THOROUGH = 12  # passes at most, of a diagnosis that draws weights anew

# Diagnoses a network on a batch as thoroughly; returns what that costs, in rows, too.
Thoroughly = Callable[[Any, Any], tuple[Diagnosis, float]]


class Search:
    """The attempts of one cure.

    Each change is judged by one pass; if that is promising, by a training from the same seed on the
    same rows. What was given is trained too, as far as the comparison needs it.
    """

    def __init__(
        self,
        subject: Curable,
        plan: Plan,
        thoroughly: Thoroughly | None = None,
        remedies: Sequence[Remedy] = REMEDIES,
        following: Sequence[Remedy] = FOLLOWING,
    ) -> None:
        self.plan, self.remedies, self.following = plan, remedies, following
        self.thoroughly = thoroughly
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
        sick = self._trial(self.given)
        self.budget = Budget(plan, self.batch_size, len(self.rows), subject.early, sick)
        self.budget.passed += subject.looking(len(rows)) + before.further * len(rows)
        self.kept = 0.0

    def _trial(self, treatment: Treatment) -> Trial:
        plan = self.plan
        return Trial(treatment, self.rows, plan.goal, self.batch_size, plan.steps, plan.seed)

    def run(self) -> tuple[Outcome, Treatment]:
        """Return the outcome, and the treatment that was chosen: the given one if none was."""
        first = beyond_cure(self.patient.diagnosis)
        problem = about(self.given, self.plan.goal, quick=True)
        if first is not None:
            problem = (f"{first.message}: {first.advice}", *problem)
        if problem:
            return self._conclude(None, problem)
        remedies = self._remedies()
        if not remedies:
            return self._conclude(None)
        self.base = self.patient
        chosen = self._try_all(remedies)
        self.kept, best = 0.0, self.budget.best()
        if chosen is None and best is not None:  # with what is left
            name = self.attempts[best.place].name
            chosen = self._go_on(best) or self._follow(name, best, self.base, DEEP)
            best = self.budget.best()
            if chosen is None and best is not None:
                chosen = self._go_on(best, learning=False)
        return self._conclude(chosen or self.budget.best())

    def _try_all(self, remedies: Sequence[Remedy]) -> Tried | None:
        """Try remedies until one reaches the goal; first with what is kept for others, then all.

        What was kept for skip connections is free where none could be tried.
        """
        left = list[Remedy]()
        for remedy in remedies:
            self.kept = kept_for(remedy, self.patient.reading)
            if not remedy.scales and self.base.history is not self.patient.history:
                chosen = self._follow_scaled()
                if chosen is not None:
                    return chosen
            if not self._worth_a_trial():
                left.append(remedy)
                continue
            chosen = self._try(remedy)
            if chosen is not None:
                return chosen
        self.kept = 0.0
        trained = [self.attempts[tried.place].name for tried in self.budget.tried]
        skips = tuple(remedy.name for remedy in remedies if remedy.skips)
        if any(name.startswith(skips) for name in trained):
            return None
        tried = (self._try(remedy) for remedy in left if self._worth_a_trial())
        return next((chosen for chosen in tried if chosen is not None), None)

    def _follow_scaled(self) -> Tried | None:
        """Try what the training on scaled data asks for, once all is scaled."""
        tried = self.budget.tried[-1]
        name, base = self.attempts[tried.place].name, self.base
        self.base = replace(base, history=self.patient.history)
        return self._follow(name, tried, base, DEEP) if self._astray(tried.trial) else None

    def _try(self, remedy: Remedy) -> Tried | None:
        patient = replace(self.base, passed=0.0)
        chosen = self._attempt(remedy, patient, DEEP)
        if patient.given is not self.base.given:
            self.base = patient  # what was scaled stays so for all that follows
        return chosen

    def _remedies(self) -> list[Remedy]:
        """Return the remedies for what was found; for a healthy network none if it trains.

        If it does not, a thorough diagnosis may find more.
        """
        if not self.patient.diagnosis.healthy:
            return [remedy for remedy in self.remedies if self.patient.kinds & remedy.kinds]
        every = [remedy for remedy in self.remedies if remedy.kinds >= TRAINING]
        of_data = [remedy for remedy in every if remedy.scales]
        others = [remedy for remedy in every if not remedy.scales]
        sick = self.budget.sick
        if all(isinstance(remedy.propose(self.patient), Refusal) for remedy in of_data):
            sick.train(self.plan.steps, lambda trial: hopeless(trial) or creeping(trial))
            if sick.reached:
                return []
            self.patient.history = sick.history
            steps = int(GIVE_UP * self.plan.steps) + THOROUGH
            if self.thoroughly is not None and self.budget.room(steps):
                rows = self.patient.rows[: self.batch_size]
                found, passed = self.thoroughly(*self.given.subject.data.take(rows))
                self.budget.passed += passed
                if not found.healthy:
                    self.patient.diagnosis = found
                    return self._remedies()
        # Where the loss begins far above a guess's, the weights are at fault before the steps.
        above = sick.points[0][1] > FAR * self.plan.goal.guess
        first = [remedy for remedy in others if above and not remedy.skips]
        others = [remedy for remedy in others if remedy not in first]
        return [*of_data, *first, *self.following, *others]

    def _worth_a_trial(self) -> bool:
        """Return True if there is room for one; for the first change, whatever is kept."""
        kept = self.kept if self.budget.tried else 0.0
        return self.budget.room(int(GIVE_UP * self.plan.steps), kept)

    def _over(self, trial: Trial) -> bool:
        """Return True if a trial is to be ended: it learns nothing, or nothing is left to spend."""
        kept = 0.0 if trial.way >= min(ALMOST, FAST * trial.share) else self.kept
        slow = self.patient.diagnosis.healthy and (standing(trial) or creeping(trial))
        if slow or thrown(trial) or hopeless(trial, patient=self.kept == 0.0):
            return True
        return not self.budget.room(trial.history.steps + trial.block_steps, kept)

    # Attempts

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

    def _attempt(self, remedy: Remedy, patient: Patient, deeper: int) -> Tried | None:
        """Try a remedy; return what reached the goal, if it did or something on top of it."""
        before = patient.diagnosis
        treatment = remedy.treat(patient)
        if isinstance(treatment, Refusal):
            self.budget.passed += patient.passed
            how: Ended = "impossible" if treatment.worth_saying else ""
            self.attempts.append(Attempt(remedy.name, "", False, treatment.why, before, ended=how))
            return None
        after = before if treatment.is_of_training else patient.look(treatment)
        self.budget.passed += patient.passed
        cost = patient.passed / self.batch_size
        done = Attempt(remedy.name, treatment.words, False, "", before, after, passes=cost)
        why, how = "", "no-better"
        if not treatment.is_of_training:
            why = worse(before, after, scaled=treatment.scales, said=remedy.said)
        if not why and not self._worth_a_trial():
            why, how = "no passes are left to train it", "no-passes"
        if why:
            self.attempts.append(replace(done, why=why, ended=how))
            return None
        tried = self._train(treatment, done, after)
        trial = tried.trial
        if treatment.scales:
            patient.given, patient.diagnosis, patient.history = treatment, after, trial.history
        failed = self.budget.by_luck(trial) if trial.reached else None
        if trial.reached and failed is None:
            return tried
        if failed is not None:
            done = self.attempts[tried.place]
            cost = done.passes + failed.passed / self.batch_size
            self.attempts[tried.place] = replace(done, why=LUCK, ended="luck", passes=cost)
        healthy = remedy.kinds == TRAINING and self.patient.diagnosis.healthy
        astray = failed is not None or healthy or self._astray(trial)
        if deeper and astray and not remedy.scales:
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
        trial.train(self.plan.steps, self._over)
        self.attempts.append(self._record(done, trial, 0.0))
        return tried

    @staticmethod
    def _astray(trial: Trial) -> bool:
        """Return True if the steps of a training may be to blame that it missed the goal."""
        history = trial.history
        return bool(trial.ended) or rose(trial) or long_steps(history) or short_steps(history)

    def _record(self, done: Attempt, trial: Trial, before: float) -> Attempt:
        """Write down how a training has ended; `before` rows of it are written down already."""
        (_, *first), (count, *last) = trial.points[0], trial.points[-1]
        pairs = {name: (a, b) for name, a, b in zip(PAIRS, first, last, strict=True)}
        how, why = ended(trial)
        passes = done.passes + (trial.passed - before) / self.batch_size
        figures = replace(done, loss=pairs["loss"], accuracy=pairs["accuracy"])
        return replace(figures, why=why, ended=how, steps=count, passes=passes)

    def _go_on(self, best: Tried, *, learning: bool = True) -> Tried | None:
        """Train the best on, as long as it is learning; return it if that reaches the goal."""
        trial, before = best.trial, best.trial.passed

        def over(trial: Trial) -> bool:
            stands = learning and not (trial.moving or trial.on_the_way)
            return stands or not self.budget.room(trial.history.steps + trial.block_steps)

        if not trial.can_go_on or over(trial):
            return None
        trial.train(self.plan.steps, over)
        self.attempts[best.place] = self._record(self.attempts[best.place], trial, before)
        return best if trial.reached else None

    def _conclude(
        self, chosen: Tried | None, problem: tuple[str, ...] = ()
    ) -> tuple[Outcome, Treatment]:
        before = self.patient.diagnosis
        return conclude(self.given, before, self.attempts, self.budget, chosen, problem)

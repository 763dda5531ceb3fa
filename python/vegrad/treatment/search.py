"""From a sick network to the smallest change that cures it, and the proof by a re-run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.subject import Refusal
from vegrad.treatment.budget import Budget, Tried
from vegrad.treatment.conclusion import about, conclude
from vegrad.treatment.curable import Curable
from vegrad.treatment.goal import Plan
from vegrad.treatment.outcome import PAIRS, Attempt, Ended, Outcome
from vegrad.treatment.promise import creeping, ended, hopeless, rose, standing, worse
from vegrad.treatment.rates import long_steps
from vegrad.treatment.remedies import FOLLOWING, REMEDIES, TRAINING
from vegrad.treatment.remedy import Patient, Remedy, Treatment
from vegrad.treatment.trial import Trial

LEAST_ROWS = 8  # to look at, however short a training is
LOOKED_AT = 256  # rows on which loss and accuracy are taken
BATCHES = 4  # and those of a diagnosis, in batches
# What is kept for others may be spent on a trial that has come so much of the way, or so many times
# the share of a training that it has taken.
ALMOST, FAST = 0.9, 3.0
# Layers over their width, beyond which no weights are sure to help: the logarithm of the squared
# gradient varies from draw to draw by 5 times that (Hanin & Nica 2020); and what is then kept, of
# the usual budget, for remedies whose gradient need not pass all layers.
NARROW, FOR_SKIPS = 0.5, 1.25
AGAIN = 3  # times the steps of a cure in which it must do without its luck
LUCK = "reached the goal, but not with the rows in another order"
GIVE_UP = 0.1  # of a training: less is no trial
DEEP = 3  # changes of the training on top of one of the network


class Search:
    """The attempts of one cure.

    Each change is judged by one pass; if that is promising, by a training from the same seed on the
    same rows. What was given is trained too, as far as the comparison needs it.
    """

    def __init__(
        self,
        subject: Curable,
        plan: Plan,
        remedies: Sequence[Remedy] = REMEDIES,
        following: Sequence[Remedy] = FOLLOWING,
    ) -> None:
        self.plan, self.remedies, self.following = plan, remedies, following
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
        self.budget.passed += subject.looking(len(rows))
        self.kept = 0.0

    def _trial(self, treatment: Treatment, order: int = 0) -> Trial:
        plan = self.plan
        return Trial(
            treatment, self.rows, plan.goal, self.batch_size, plan.steps, plan.seed + order
        )

    def run(self) -> tuple[Outcome, Treatment]:
        """Return the outcome, and the treatment that was chosen: the given one if none was."""
        problem = about(self.given, self.plan.goal, quick=True)
        if problem:
            return self._conclude(None, problem)
        if self.patient.diagnosis.healthy:
            remedies = self._without_findings()
            if not remedies:
                return self._conclude(None)
        else:
            remedies = [r for r in self.remedies if self.patient.kinds & r.kinds]
        base = self.patient
        for remedy in remedies:
            self.kept = self._kept(remedy)
            if not self._worth_a_trial():
                continue
            patient = replace(base, passed=0.0)
            chosen = self._attempt(remedy, patient, DEEP)
            if chosen is not None:
                return self._conclude(chosen)
            if patient.given.is_scaled:
                base = replace(patient, passed=0.0)  # the data stay scaled for all that follows
        self.kept, best = 0.0, self.budget.best()
        if best is not None:  # with what is left
            chosen = self._follow(self.attempts[best.place].name, best, base, DEEP)
            if chosen is not None:
                return self._conclude(chosen)
        return self._conclude(self.budget.best())

    def _without_findings(self) -> list[Remedy]:
        """Return the remedies for a network whose gradients are healthy; none if it trains."""
        general = [remedy for remedy in self.remedies if remedy.kinds >= TRAINING]
        of_data = [remedy for remedy in general if not remedy.skips]
        sick = self.budget.sick
        if all(isinstance(remedy.propose(self.patient), Refusal) for remedy in of_data):
            sick.train(self.plan.steps, lambda trial: hopeless(trial) or creeping(trial))
            if sick.reached:
                return []
            self.patient.history = sick.history
        return [*of_data, *self.following, *(remedy for remedy in general if remedy.skips)]

    # What is kept for others

    def _kept(self, remedy: Remedy) -> float:
        """Return the part of the usual budget to leave for larger changes, which are surer.

        Where no larger ones are possible, nothing is kept. A convolution's few channels make no
        narrow layer: chance averages over its positions.
        """
        reading = self.patient.reading
        if reading.chain is None:
            return 0.0
        layers = reading.chain.layers
        narrow = sum(1.0 / layer.width for layer in layers[:-1] if layer.width) > NARROW
        narrow = narrow and all(layer.kind == "linear" for layer in layers)
        return FOR_SKIPS if narrow and not remedy.skips else remedy.kept

    def _worth_a_trial(self) -> bool:
        """Return True if there is room for one; for the first change, whatever is kept."""
        kept = self.kept if self.budget.tried else 0.0
        return self.budget.room(int(GIVE_UP * self.plan.steps), kept)

    def _over(self, trial: Trial) -> bool:
        """Return True if a trial is to be ended: it learns nothing, or nothing is left to spend."""
        kept = 0.0 if trial.way >= min(ALMOST, FAST * trial.share) else self.kept
        slow = self.patient.diagnosis.healthy and (standing(trial) or creeping(trial))
        if slow or hopeless(trial, patient=self.kept == 0.0):
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
            why = worse(before, after, scaled=treatment.is_scaled)
        if not why and not self._worth_a_trial():
            why, how = "no passes are left to train it", "no-passes"
        if why:
            self.attempts.append(replace(done, why=why, ended=how))
            return None
        if treatment.is_scaled:
            patient.given, patient.diagnosis = treatment, after
        tried = self._train(treatment, done, after)
        trial = tried.trial
        failed = self._by_luck(trial) if trial.reached else None
        if trial.reached and failed is None:
            return tried
        if failed is not None:
            done = self.attempts[tried.place]
            cost = done.passes + failed.passed / self.batch_size
            self.attempts[tried.place] = replace(done, why=LUCK, ended="luck", passes=cost)
        healthy = remedy.kinds == TRAINING and self.patient.diagnosis.healthy
        astray = trial.ended or rose(trial) or healthy or long_steps(trial.history)
        if deeper and (failed is not None or astray):
            last = tried if failed is None else replace(tried, trial=failed)
            return self._follow(remedy.name, last, patient, deeper)
        return None

    def _train(self, treatment: Treatment, done: Attempt, after: Diagnosis) -> Tried:
        """Train a promising change until the goal is reached, or it is seen that it will not be."""
        for one in self.budget.tried:  # one network and its optimizer's states are kept at a time
            one.trial.forget()
        trial = self._trial(treatment)
        tried = Tried(len(self.attempts), trial, after)
        self.budget.tried.append(tried)
        trial.train(self.plan.steps, self._over)
        (_, *first), (count, *last) = trial.points[0], trial.points[-1]
        pairs = {name: (a, b) for name, a, b in zip(PAIRS, first, last, strict=True)}
        how, why = ended(trial)
        passes = done.passes + trial.passed / self.batch_size
        figures = replace(done, loss=pairs["loss"], accuracy=pairs["accuracy"])
        self.attempts.append(replace(figures, why=why, ended=how, steps=count, passes=passes))
        return tried

    def _by_luck(self, trial: Trial) -> Trial | None:
        """Train again with the rows in another order; return that if it misses the goal.

        None, too, where nothing is left to spend on it.
        """
        steps = trial.history.steps
        if not self.budget.room(steps):
            return None
        again = self._trial(trial.treatment, order=1)
        self.budget.again.append(again)
        most = max(AGAIN * steps, self.plan.steps // 5)
        again.train(most, lambda trial: hopeless(trial) or not self.budget.room(steps))
        return None if again.reached or not self.budget.room(steps) else again

    def _conclude(
        self, chosen: Tried | None, problem: tuple[str, ...] = ()
    ) -> tuple[Outcome, Treatment]:
        before = self.patient.diagnosis
        return conclude(self.given, before, self.attempts, self.budget, chosen, problem)

"""From a sick network to the smallest change that cures it, and the proof by a re-run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.subject import Refusal
from vegrad.sweeps import Pool
from vegrad.treatment.attempts import GIVE_UP, Attempts
from vegrad.treatment.beyond import beyond_cure
from vegrad.treatment.budget import Tried
from vegrad.treatment.conclusion import about, conclude
from vegrad.treatment.curable import Curable
from vegrad.treatment.foresight import Executor
from vegrad.treatment.goal import Plan
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.progress import Listener
from vegrad.treatment.promise import astray, creeping, hopeless, unreached
from vegrad.treatment.remedies import FLOW, REMEDIES, TRAINING
from vegrad.treatment.remedy import AS_IT_IS, Remedy, Treatment, kept_for
from vegrad.treatment.trial import Trial

FAR = 2.0  # times the loss of the best constant output
AHEAD = 4  # remedies that workers begin to train while one is tried
DEEP = 3  # changes of the training on top of one of the network; 1 of recurrent cells
THOROUGH = 12  # passes at most, of a diagnosis that draws weights anew

# Diagnoses a network on a batch as thoroughly; returns what that costs, in rows, too.
Thoroughly = Callable[[Any, Any], tuple[Diagnosis, float]]


class Search(Attempts):
    """The order in which one cure makes its attempts.

    Each change is judged by one pass; if that is promising, by a training from the same seed on the
    same rows. What was given is trained too, as far as the comparison needs it.
    """

    def __init__(
        self,
        subject: Curable,
        plan: Plan,
        thoroughly: Thoroughly | None = None,
        remedies: Sequence[Remedy] = REMEDIES,
        *,
        tell: Listener = lambda look: None,
        executor: Executor | Pool | None = None,
    ) -> None:
        super().__init__(subject, plan, tell=tell, executor=executor)
        self.thoroughly, self.remedies = thoroughly, remedies
        self.foreseen = set[tuple[str, tuple[str, ...]]]()

    def run(self) -> tuple[Outcome, Treatment]:
        """Return the outcome, and the treatment that was chosen: the given one if none was."""
        try:
            return self._run()
        finally:
            self.foresight.close()

    def _run(self) -> tuple[Outcome, Treatment]:
        problem = (*self._by_hand(), *about(self.given, self.plan.goal, quick=True))
        if problem:
            return self._conclude(None, problem)
        remedies = self._remedies()
        if not remedies:
            return self._conclude(None, self._by_hand())
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

    def _by_hand(self) -> tuple[str, ...]:
        """Say what must be mended in the user's own code before anything else is worth a trial."""
        first = beyond_cure(self.patient.diagnosis)
        return () if first is None else (f"{first.message}: {first.advice}",)

    def _try_all(self, remedies: Sequence[Remedy]) -> Tried | None:
        """Try remedies until one reaches the goal; first with what is kept for others, then all.

        What was kept for skip connections is free where none could be tried.
        """
        left = list[Remedy]()
        for place, remedy in enumerate(remedies):
            self.kept = kept_for(remedy, self.patient.reading)
            if not remedy.scales and self.base.history is not self.patient.history:
                chosen = self._follow_scaled()
                if chosen is not None:
                    return chosen
            if not self._worth_a_trial():
                left.append(remedy)
                continue
            self._foresee(remedies[place + 1 : place + 1 + AHEAD])
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

    def _foresee(self, remedies: Sequence[Remedy]) -> None:
        """Have workers train what these remedies propose, on top of what all others now rest on."""
        for remedy in remedies if self.foresight.wanted else ():
            foreseen = remedy.name, self.base.given.lines
            if foreseen not in self.foreseen:
                self.foreseen.add(foreseen)
                treatment = remedy.treat(replace(self.base, passed=0.0))
                if isinstance(treatment, Treatment) and treatment.lines not in self.done:
                    self.foresight.begin(treatment)

    def _follow_scaled(self) -> Tried | None:
        """Try what the training on scaled data asks for, once all is scaled."""
        tried = self.budget.tried[-1]
        name, base = self.attempts[tried.place].name, self.base
        self.base = replace(base, history=self.patient.history)
        return self._follow(name, tried, base, DEEP) if astray(tried.trial) else None

    def _try(self, remedy: Remedy) -> Tried | None:
        patient = replace(self.base, passed=0.0)
        chosen = self._attempt(remedy, patient, 1 if self.patient.reading.cells else DEEP)
        if patient.given is not self.base.given:
            self.base = patient  # what was scaled stays so for all that follows
        return chosen

    def _remedies(self) -> list[Remedy]:
        """Return the remedies for what was found; for a healthy network none if it trains.

        If it does not, a thorough diagnosis may find more.
        """
        if not self.patient.diagnosis.healthy:
            kinds = self.patient.kinds
            kinds |= set() if kinds <= FLOW else FLOW  # a kind that has no remedies of its own
            return [remedy for remedy in self.remedies if kinds & remedy.kinds]
        every = [remedy for remedy in self.remedies if remedy.kinds >= TRAINING]
        of_data = [remedy for remedy in every if remedy.scales]
        others = [remedy for remedy in every if not remedy.scales]
        sick = self.budget.sick
        if all(isinstance(remedy.propose(self.patient), Refusal) for remedy in of_data):
            sick.train(self.plan.steps, lambda trial: self._looked(AS_IT_IS, trial, _stuck))
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
                    return [] if self._by_hand() else self._remedies()
        # Where the loss begins far above a guess's, or its gradient does not get to what it depends
        # on, the weights are at fault before the steps.
        above = sick.points[0][1] > FAR * self.plan.goal.guess
        above = above or bool(unreached(self.patient.diagnosis))
        first = [remedy for remedy in others if above and not remedy.skips]
        others = [remedy for remedy in others if remedy not in first]
        return [*of_data, *first, *self.following, *others]

    def _conclude(
        self, chosen: Tried | None, problem: tuple[str, ...] = ()
    ) -> tuple[Outcome, Treatment]:
        before = self.patient.diagnosis
        return conclude(self.given, before, self.attempts, self.budget, chosen, problem)


def _stuck(trial: Trial) -> bool:
    return hopeless(trial) or creeping(trial)

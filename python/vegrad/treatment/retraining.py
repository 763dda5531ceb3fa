"""Train again what a training has left where it was: why it stood still, and what does better.

Whatever a finding advises with a number is tried here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import isfinite

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.rules.digest import Digest
from vegrad.diagnosis.rules.penalty import PENALTY
from vegrad.diagnosis.rules.stalled import ENOUGH, STALLED, of_looks
from vegrad.diagnosis.rules.steps import of_history
from vegrad.flow.edits import Edit, LearningRate
from vegrad.flow.finding import Finding
from vegrad.flow.subject import Refusal
from vegrad.treatment.conclusion import about
from vegrad.treatment.curable import Curable
from vegrad.treatment.goal import Plan
from vegrad.treatment.rates import lower_decay
from vegrad.treatment.remedy import Proposal, Treatment
from vegrad.treatment.trial import Trial

LEAST, MOST = 200, 500  # steps of a training
MOST_ROWS = 200_000  # of all its steps
LOOKED_AT = 256  # rows
LOW = "learning-rate-low"
GAINS = 0.1  # of the loss at first, that what is advised must gain beside what was given


def explained(found: Diagnosis, start: Curable, plan: Plan) -> Diagnosis:
    """Return a diagnosis with the cause for which a training stood still, and what helps, tried.

    Args:
        found: of the network as its training left it.
        start: the network as it began, with its data and optimizer.
        plan: the goal, and the length of the training.
    """
    if not isfinite(plan.goal.wanted):
        return found
    first = found.findings[0] if found.findings else None
    again = _Again(start, plan)
    if first is None:
        new = again.ended_early() if plan.steps < ENOUGH else None
    elif first.rule == PENALTY.name:
        new = again.decayed(first)
    elif first.rule == STALLED.name and first.cause in ("", LOW) and "effect" not in first.facts:
        new = again.slow(first)
    else:
        return found
    return found if new is None else replace(found, findings=(new, *found.findings[1:]))


class _Again:
    """Trainings from where one began."""

    def __init__(self, start: Curable, plan: Plan) -> None:
        most = max(min(MOST, MOST_ROWS // plan.batch_size), ENOUGH)
        self.plan = replace(plan, steps=min(plan.steps, most))
        self.given = Treatment(start)
        drawn = np.random.default_rng(plan.seed).permutation(len(start.data))
        self.rows = np.sort(drawn[:LOOKED_AT])
        self.steps = max(self.plan.steps, min(LEAST, most))

    def slow(self, stalled: Finding) -> Finding:
        """Return the finding of a training that stalled with what its steps say, once more."""
        given = self._begun(self.given)
        given.train(self.plan.steps)
        given.look()
        if _lost(given) >= stalled.evidence["fall"] + GAINS:
            return _held(stalled, given)
        seen = stalled if stalled.edit is not None else _looked(stalled, given)
        if seen.edit is not None:
            given.train(self.steps)
            for rate in self._rates(seen):
                tried = self._tried(given, LearningRate(rate))
                if tried is not None:
                    return _told(seen, tried, given)
            seen = replace(stalled, cause="", edit=None)
        told = "; ".join(about(self.given, self.plan.goal, then="train it for longer"))
        return replace(seen, advises="{about}.", facts={**seen.facts, "about": told})

    def ended_early(self) -> Finding | None:
        """Return the finding of a training of too few steps to judge, if its steps lead nowhere."""
        given = self._begun(self.given)
        given.train(ENOUGH)
        found = of_history(given.history)
        seen = next((one for one in found if one.rule == STALLED.name and one.cause == LOW), None)
        if seen is None or seen.edit is None:
            return None
        words = self.given.subject.vocabulary
        told = self.slow(replace(seen, vocabulary=words))
        return told if told.cause else None

    def _rates(self, seen: Finding) -> Iterator[float]:
        wanted, given = seen.evidence["wanted"], seen.evidence["learning_rate"]
        yield from (rate for rate in (wanted, wanted / 10) if rate > given)

    def decayed(self, shrunk: Finding) -> Finding:
        """Return the finding of a penalty with a decay that lets the network learn, if one does."""
        diagnosis = self.given.subject.diagnosed(
            *self.given.subject.data.take(self.rows), theory=False
        )
        lower = None if diagnosis.reading is None else lower_decay(diagnosis.reading)
        given = self._begun(self.given)
        given.train(self.steps)
        tried = None if lower is None else self._tried(given, lower)
        return shrunk if tried is None else _told(shrunk, tried, given)

    def _begun(self, treatment: Treatment) -> Trial:
        plan = self.plan
        size = min(plan.batch_size, len(treatment.subject.data))
        return Trial(treatment, self.rows, plan.goal, size, self.steps, plan.seed)

    def _tried(self, given: Trial, edit: Edit) -> Trial | None:
        """Train with an edit; None if it cannot be done, or is not clearly better."""
        treatment = self.given.then(Proposal(edit), self.rows)
        if isinstance(treatment, Refusal):
            return None
        trial = self._begun(treatment)
        trial.train(self.steps)
        trial.look()
        given.look()
        return trial if _lost(trial) - _lost(given) >= GAINS else None


def _held(stalled: Finding, given: Trial) -> Finding:
    """Return the finding of a training that does better at the rate that it began with."""
    return replace(
        stalled,
        edit=None,
        advises="hold the learning rate as it begins: with {rate:.3g} throughout, from the same "
        "beginning, the loss fell by {fell:.0f} % in {tried:d} steps.",
        evidence={
            **stalled.evidence,
            "rate": float(given.history.learning_rate[0]),
            "fell": 100 * _lost(given),
            "tried": given.history.steps,
        },
    )


def _looked(stalled: Finding, again: Trial) -> Finding:
    """Return the finding with what steps were seen to do when the training was repeated."""
    found = of_history(again.history)
    seen = next((one for one in found if one.rule == STALLED.name), stalled)
    looks = of_looks(Digest(again.history))
    if looks is None or seen is stalled:
        return stalled
    return replace(
        seen,
        says=stalled.says + looks[0],
        facts={**seen.facts, **stalled.facts},
        evidence={**seen.evidence, **stalled.evidence},
        vocabulary=stalled.vocabulary,
    )


def _lost(trial: Trial) -> float:
    """Return the part of its first loss that a training has lost; -inf if that is not finite."""
    first, last = trial.points[0][1], trial.points[-1][1]
    return 1 - last / first if first > 0 and isfinite(last) else -np.inf


def _told(found: Finding, tried: Trial, given: Trial) -> Finding:
    """Return a finding whose advice is the last change of a training that did better."""
    fell, little = (100 * max(_lost(one), 0.0) for one in (tried, given))
    return replace(
        found,
        edit=tried.treatment.changes[-1].edit,
        advises="{edit}: tried from the same beginning, the loss fell by {fell:.0f} % in "
        "{tried:d} steps, and by {little:.1f} % in {given:d} without.",
        evidence={
            **found.evidence,
            "tried": tried.history.steps,
            "fell": fell,
            "given": given.history.steps,
            "little": little,
        },
    )

"""The outcome of a search for a cure: the attempts, the proof, the patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, Protocol, Self

import numpy as np

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS, History
from vegrad.reports import notebook
from vegrad.reports.cure import proof, text
from vegrad.reports.protocols import Comparison
from vegrad.reports.values import count_of
from vegrad.treatment.goal import Goal, Plan

PAIRS = ("loss", "accuracy")
# The way an attempt ended: its training reached the goal, or only with the rows in one order, or
# only by heart, or was too slow, learnt nothing or diverged; or it was not trained, because one
# pass was no better or its loss too high, no passes were left, such a change can never help, or
# what the diagnosis advises cannot be done.
Ended = Literal[
    "",
    "reached",
    "luck",
    "by-heart",
    "slow",
    "learns-nothing",
    "diverged",
    "no-better",
    "out-of-reach",
    "high",
    "no-passes",
    "impossible",
    "skipped",
]


@dataclass(frozen=True)
class Attempt:
    """One remedy: what it changed, what that did, what it cost.

    `before` and `after` are diagnoses, `after` without what theory expects (None where the remedy
    had nothing to change); `loss` and `accuracy` are pairs, before the first step and after the
    last of `steps` (nan where nothing was trained); `passes` counts forward and backward passes of
    one batch.
    """

    name: str
    change: str
    accepted: bool
    why: str
    before: Diagnosis
    after: Diagnosis | None = None
    steps: int = 0
    loss: tuple[float, float] = (np.nan, np.nan)
    accuracy: tuple[float, float] = (np.nan, np.nan)
    passes: float = 0.0
    ended: Ended = ""
    """The way it ended; "" if there was nothing to change."""

    def __repr__(self) -> str:
        mark = "accepted: " if self.accepted else ""
        return f"<Attempt: {self.name}: {mark}{self.why}>"

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types, None where there is no number."""
        content = {name: getattr(self, name) for name in ("name", "change", "accepted", "why")}
        content["verdicts"] = [self.before.verdict, self.after and self.after.verdict]
        content["chain_log10"] = [_chain(self.before), self.after and _chain(self.after)]
        content |= {"steps": self.steps, "passes": self.passes}
        return content | {name: [_plain(v) for v in getattr(self, name)] for name in PAIRS}


class Shown(Protocol):
    """A training, as a proof needs it; `points` are steps, loss and accuracy."""

    history: History
    seed: int
    goal: Goal
    points: list[tuple[int, float, float]]


class Proof(Mapping[str, History]):
    """The same number of steps without and with the cure, from the same seed and on the same rows.

    A mapping with the histories "before" and "after". `loss` and `accuracy` are pairs, before and
    after the cure, at the end of `steps`, on up to 256 of the rows.
    """

    def __init__(self, before: Shown, after: Shown, diagnoses: tuple[Diagnosis, Diagnosis]) -> None:
        self.steps = after.history.steps
        self.seed, self.goal, self.diagnoses = after.seed, after.goal, diagnoses
        self._histories = {"before": _until(before.history, self.steps), "after": after.history}
        ends = (self._end(before), self._end(after))
        self.loss, self.accuracy = ((ends[0][i], ends[1][i]) for i in (1, 2))

    def _end(self, trial: Shown) -> tuple[int, float, float]:
        """Return the point of a training where the proof ends, or the last if it ended before."""
        return next((point for point in trial.points if point[0] >= self.steps), trial.points[-1])

    def __getitem__(self, name: str) -> History:
        return self._histories[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._histories)

    def __len__(self) -> int:
        return len(self._histories)

    def __repr__(self) -> str:
        before, after = self.loss
        steps = count_of(self.steps, "step")
        return f"<Proof: {steps}, loss {before:.3g} without, {after:.3g} with the cure>"

    def __str__(self) -> str:
        return self.text

    @property
    def comparison(self) -> Comparison:
        """The two trainings side by side."""
        words = f"{count_of(self.steps, 'step')} from seed {self.seed}, on the same rows."
        ends = (self.loss, self.accuracy, self.diagnoses)
        return Comparison(self["before"], self["after"], words, *ends)

    @property
    def text(self) -> str:
        """Loss, accuracy and flow, without and with the cure, in lines of at most 80 letters."""
        return "\n".join(proof(self))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """The outcome of a search, whatever it was done to.

    `cost` is in trainings of what was given: forward and backward passes, those of what was given
    included, over `steps`.
    """

    before: Diagnosis
    after: Diagnosis
    attempts: tuple[Attempt, ...]
    proof: Proof | None
    reached: bool
    """True if the goal was reached."""
    goal: Goal
    summary: str
    patch: str
    cost: float
    steps: int
    batch_size: int
    about: tuple[str, ...] = ()
    """Sentences on what is wrong with the data or the network's size, if nothing helped."""

    @classmethod
    def without_a_trial(cls, before: Diagnosis, plan: Plan, why: str, **more: Any) -> Self:
        """Return the outcome where nothing could be run."""
        return cls(
            before=before,
            after=before,
            attempts=(),
            proof=None,
            reached=False,
            goal=plan.goal,
            summary=f"not cured: {before.summary}",
            patch="",
            cost=0.0,
            steps=plan.steps,
            batch_size=plan.batch_size,
            about=(why,),
            **more,
        )

    @property
    def cured(self) -> bool:
        """True if something was wrong that a change has put right."""
        changed = any(attempt.accepted for attempt in self.attempts)
        return self.reached and changed and not self.by_heart

    @property
    def by_heart(self) -> bool:
        """True if a change has reached the goal, but nothing that it learns carries over.

        Trained on some of the rows, the network guesses the others, and plain fits do so too.
        """
        return any(one.accepted and one.ended == "by-heart" for one in self.attempts)

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.summary}>"

    def __str__(self) -> str:
        return text(self)

    def _repr_html_(self) -> str:
        return notebook.cure(self)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types; numbers that are not finite are None."""
        proof = self.proof and {
            "steps": self.proof.steps,
            "loss": [_plain(v) for v in self.proof.loss],
            "accuracy": [_plain(v) for v in self.proof.accuracy],
        }
        content = {n: getattr(self, n) for n in ("reached", "cured", "summary", "patch", "cost")}
        return content | {
            "goal": str(self.goal),
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "attempts": [attempt.to_dict() for attempt in self.attempts],
            "proof": proof,
            "about": list(self.about),
        }


# Figures ---------------------------------------------------------------------------------------


def _until(history: History, steps: int) -> History:
    """Return the first steps of a history, and the blocks that end within them."""
    columns = history.to_dict()
    blocks = int(np.count_nonzero(np.cumsum(history.epoch_steps) <= steps))
    cut = {name: columns[name][:steps] for name in STEPS}
    return History.from_dict(cut | {name: columns[name][:blocks] for name in (*EPOCHS, *LAYERS)})


def _chain(diagnosis: Diagnosis) -> float | None:
    flow = diagnosis.layer_flow
    return None if flow is None else _plain(flow.chain_log10)


def _plain(value: float) -> float | None:
    return float(value) if isfinite(value) else None

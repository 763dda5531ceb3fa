"""A cure as text: what was found, tried and proven, in a screenful."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isnan
from typing import Protocol

from vegrad.flow.wording import power
from vegrad.reports.protocols import ShownDiagnosis

WIDTH = 80
MOST = 8  # attempts shown in full
RESULTS = {  # by how an attempt ended
    "reached": "no better",
    "luck": "by luck",
    "slow": "too slow",
    "learns-nothing": "too slow",
    "diverged": "diverges",
    "out-of-reach": "no reach",
}

Pair = tuple[float, float]  # without and with the cure, or before and after


class ShownAttempt(Protocol):
    """One change that was tried."""

    @property
    def name(self) -> str:
        """The remedy's name."""

    @property
    def accepted(self) -> bool:
        """True if it is the cure."""

    @property
    def why(self) -> str:
        """A sentence that says why it is, or is not."""

    @property
    def ended(self) -> str:
        """The way it ended: one of RESULTS, or "impossible", "no-better", "no-passes", ""."""

    @property
    def after(self) -> ShownDiagnosis | None:
        """The diagnosis of the changed network, if it was changed."""

    @property
    def steps(self) -> int:
        """The number of steps trained."""

    @property
    def loss(self) -> Pair:
        """The loss before and after them; NaN if there were none."""


class ShownProof(Protocol):
    """The same training without and with the cure."""

    @property
    def text(self) -> str:
        """The text that `proof` writes."""


class ShownOutcome(Protocol):
    """The result of a search for a cure."""

    @property
    def before(self) -> ShownDiagnosis:
        """The diagnosis of what was given."""

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""

    @property
    def attempts(self) -> Sequence[ShownAttempt]:
        """Everything that was tried, in order."""

    @property
    def about(self) -> Sequence[str]:
        """Sentences on what is wrong with the data or the network's size."""

    @property
    def proof(self) -> ShownProof | None:
        """The proof, if a change was trained."""

    @property
    def cost(self) -> float:
        """The cost of everything, in trainings."""

    @property
    def steps(self) -> int:
        """The number of steps of a training."""

    @property
    def batch_size(self) -> int:
        """The number of rows of a step."""


def text(outcome: ShownOutcome) -> str:
    """Write the whole outcome: 80 columns, about 25 lines."""
    lines = [*_filled(outcome.before.summary, "before: "), *cost(outcome), ""]
    lines += attempts(outcome.attempts)
    for sentence in outcome.about:
        lines += _filled(sentence, "  → ")
    if outcome.proof is not None:
        lines += [*([""] if outcome.about else []), outcome.proof.text]
    return "\n".join(lines).rstrip()


def cost(outcome: ShownOutcome) -> list[str]:
    """Write the outcome in a sentence, and what it cost to come to it."""
    training = f"one training ({outcome.steps} steps of {outcome.batch_size} rows)"
    paid = f"cost: {outcome.cost:.2f} of {training}, everything included"
    return [*_filled(outcome.summary), paid]


def attempts(tried: Sequence[ShownAttempt]) -> list[str]:
    """Write a row for each attempt that changed something, and why clipping is no cure."""
    rows = [(attempt, attempt.after) for attempt in tried if attempt.after is not None]
    lines, of_chains = [], any(after.flow is not None for _, after in rows)
    if rows:
        first = f"{'tried':<34}{'first/last':>11}" if of_chains else f"{'tried':<45}"
        lines.append(f"{first}{'steps':>7}{'loss':>16}  result")
    shown = rows if len(rows) <= MOST else [*rows[: MOST - 2], *rows[-2:]]
    for place, (attempt, after) in enumerate(shown):
        if len(rows) > MOST and place == MOST - 2:
            lines.append(f"  ⋮  {len(rows) - MOST} more")
        lines.append(_row(attempt, after, of_chains=of_chains))
    for attempt in tried:
        if attempt.ended == "impossible":
            lines += _filled(attempt.why, f"{attempt.name}: ")
    return [*lines, ""] if lines else []


def _row(attempt: ShownAttempt, after: ShownDiagnosis, *, of_chains: bool) -> str:
    """Write an attempt; where no layers form a chain, there is no first and last one to compare."""
    if attempt.accepted:
        result = "✓"
    elif attempt.steps or attempt.ended == "out-of-reach":
        result = RESULTS[attempt.ended]
    else:
        result = "–" if after.healthy else after.verdict
    loss = "" if isnan(attempt.loss[0]) else f"{attempt.loss[0]:.3g} → {attempt.loss[1]:.3g}"
    steps = str(attempt.steps) if attempt.steps else "–"
    name = textwrap.shorten(attempt.name, 33 if of_chains else 44, placeholder="…")
    first = f"{name:<34}{_chain(after):>11}" if of_chains else f"{name:<45}"
    return f"{first}{steps:>7}{loss:>16}  {result}"


def proof(
    steps: int,
    seed: int,
    loss: Pair,
    accuracy: Pair,
    diagnoses: tuple[ShownDiagnosis, ShownDiagnosis],
) -> str:
    """Write loss, accuracy (from 0 to 1, or NaN) and flow without and with the cure."""
    rows = [("loss", [f"{value:.3g}" for value in loss])]
    if not isnan(accuracy[1]):
        rows.append(("accuracy", [_percent(value) for value in accuracy]))
    if any(diagnosis.flow is not None for diagnosis in diagnoses):
        rows.append(("gradient, first layer over last", [_chain(d) for d in diagnoses]))
    head = f"proof: {steps} steps from seed {seed}"
    lines = [f"{head:<46}{'without':>11}{'with':>11}"]
    lines += [f"  {name:<44}{a:>11}{b:>11}" for name, (a, b) in rows]
    return "\n".join(lines)


def _chain(diagnosis: ShownDiagnosis) -> str:
    return "–" if diagnosis.flow is None else power(diagnosis.flow.chain_log10)


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f} %"


def _filled(sentence: str, mark: str = "") -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))

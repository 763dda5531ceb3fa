"""A cure for people: what was found, tried and proven, in a screenful."""

from __future__ import annotations

import textwrap
from math import isnan

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.wording import power
from vegrad.treatment.outcome import Attempt, Outcome, Proof

WIDTH = 80
MOST = 8  # attempts shown in full


def text(cure: Outcome) -> str:
    """The whole: 80 columns, about 25 lines."""
    lines = [*_filled(cure.before.summary, "before: "), *cost(cure), ""]
    lines += attempts(cure.attempts)
    for sentence in cure.about:
        lines += _filled(sentence, "  → ")
    if cure.proof is not None:
        lines += [*([""] if cure.about else []), cure.proof.text]
    return "\n".join(lines).rstrip()


def cost(cure: Outcome) -> list[str]:
    """The verdict, and what it cost to come to it."""
    cost = f"cost: {cure.cost:.2f} of one training ({cure.steps} steps of {cure.batch_size} rows), "
    return [*_filled(cure.summary), cost + "everything included"]


def attempts(tried: tuple[Attempt, ...]) -> list[str]:
    """A row for each that changed something; the rest in a sentence each, if it says much."""
    rows = [attempt for attempt in tried if attempt.after is not None]
    lines = []
    if rows:
        lines.append(f"{'tried':<34}{'first/last':>11}{'steps':>7}{'loss':>16}  {'result'}")
    shown = rows if len(rows) <= MOST else [*rows[: MOST - 2], *rows[-2:]]
    for number, attempt in enumerate(shown):
        if len(rows) > MOST and number == MOST - 2:
            lines.append(f"  ⋮  {len(rows) - MOST} more")
        lines.append(_row(attempt))
    for attempt in tried:
        if attempt.after is None and attempt.name == "clip" and "cannot" in attempt.why:
            lines += _filled(attempt.why, "clip: ")
    return [*lines, ""] if lines else []


def _row(attempt: Attempt) -> str:
    assert attempt.after is not None
    loss = "" if isnan(attempt.loss[0]) else f"{attempt.loss[0]:.3g} → {attempt.loss[1]:.3g}"
    steps = str(attempt.steps) if attempt.steps else "–"
    result = "✓" if attempt.accepted else _short(attempt, attempt.after)
    name = textwrap.shorten(attempt.name, 33, placeholder="…")
    return f"{name:<34}{_chain(attempt.after):>11}{steps:>7}{loss:>16}  {result}"


def _short(attempt: Attempt, after: Diagnosis) -> str:
    """Why it was not it, in a word."""
    if not attempt.steps:
        return "–" if after.healthy else after.verdict
    if "another order" in attempt.why:
        return "by luck"
    if attempt.why.startswith("reached"):
        return "no better"
    if attempt.why.startswith(("learns", "not at")):
        return "too slow"
    return "diverges"


def proof(shown: Proof) -> str:
    """Without and with, side by side."""
    rows = [("loss", [f"{value:.3g}" for value in shown.loss])]
    if not isnan(shown.accuracy[1]):
        rows.append(("accuracy", [_percent(value) for value in shown.accuracy]))
    rows.append(("gradient, first layer over last", [_chain(d) for d in shown.diagnoses]))
    head = f"proof: {shown.steps} steps from seed {shown.seed}"
    lines = [f"{head:<46}{'without':>11}{'with':>11}"]
    lines += [f"  {name:<44}{a:>11}{b:>11}" for name, (a, b) in rows]
    return "\n".join(lines)


def _chain(diagnosis: Diagnosis) -> str:
    return "–" if diagnosis.flow is None else power(diagnosis.flow.chain_log10)


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f} %"


def _filled(sentence: str, mark: str = "") -> list[str]:
    return textwrap.wrap(sentence, WIDTH, initial_indent=mark, subsequent_indent=" " * len(mark))

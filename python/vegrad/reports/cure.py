"""A cure as text: what was found, tried and proven, in a screenful."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from math import isnan
from typing import Protocol

from vegrad.flow.wording import power
from vegrad.reports.protocols import Comparison, ShownDiagnosis
from vegrad.reports.values import count_of

WIDTH = 80
MOST = 8  # attempts shown in full
LOSSES = 16  # letters of the column of losses, at least
DONE, NONE = "✓", "–"
# What was chosen though it was not seen to stay at the goal, or came near it only.
ONCE, BEST, HEART, SKIPPED = "once", "best", "by heart", "skipped"
RESULTS = {  # by how an attempt ended
    "reached": "no better",
    "luck": "by luck",
    "slow": "too slow",
    "learns-nothing": "too slow",
    "diverged": "diverges",
    "out-of-reach": "no reach",
    "high": "high loss",
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
        """The way it ended: of RESULTS, "skipped", "impossible", "no-better", "no-passes" or ""."""

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
    """The same training without and with the cure; pairs are of their ends."""

    @property
    def steps(self) -> int:
        """The number of steps of each."""

    @property
    def seed(self) -> int:
        """The seed of both."""

    @property
    def loss(self) -> Pair:
        """The loss."""

    @property
    def accuracy(self) -> Pair:
        """The accuracy from 0 to 1, or NaN."""

    @property
    def diagnoses(self) -> tuple[ShownDiagnosis, ShownDiagnosis]:
        """The diagnoses of both networks."""

    @property
    def comparison(self) -> Comparison:
        """The two trainings side by side, and what was measured at their ends."""


class ShownOutcome(Protocol):
    """The result of a search for a cure."""

    @property
    def before(self) -> ShownDiagnosis:
        """The diagnosis of what was given."""

    @property
    def summary(self) -> str:
        """The outcome in a sentence."""

    @property
    def reached(self) -> bool:
        """True if the goal was reached."""

    @property
    def by_heart(self) -> bool:
        """True if nothing of what is learnt carries over."""

    @property
    def patch(self) -> str:
        """The change as code, "" if there is none."""

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
    lines = [*_filled(outcome.before.summary, "before: "), *_filled(outcome.summary)]
    about = [line for sentence in outcome.about for line in _filled(sentence, "  → ")]
    return "\n".join([*lines, *details(outcome, about=about)])


def verdict(outcome: ShownOutcome, width: int = WIDTH) -> list[str]:
    """Write the outcome in a sentence, and what is wrong with the data if nothing helped."""
    lines = _filled(outcome.summary, width=width)
    for sentence in outcome.about:
        lines += _filled(sentence, "  → ", width)
    return lines


def details(outcome: ShownOutcome, width: int = WIDTH, *, about: Sequence[str] = ()) -> list[str]:
    """Write what it cost, what was tried, the lines `about` the data, and the proof."""
    length = f"{count_of(outcome.steps, 'step')} of {count_of(outcome.batch_size, 'row')}"
    paid = f"{outcome.cost:.2f} of one training ({length}), everything included"
    lines = [*_filled(paid, "cost: ", width), "", *attempts(outcome.attempts, width), *about]
    if outcome.proof is not None:
        lines += [*([""] if about else []), *proof(outcome.proof, width)]
    return lines if lines[-1] else lines[:-1]


def attempts(tried: Sequence[ShownAttempt], width: int = WIDTH) -> list[str]:
    """Write a row for each attempt that changed something, and why what was skipped is no cure.

    A narrow terminal has no room for the gradient's column and that of the steps. Where no layers
    form a chain, there is no first and last one to compare.
    """
    rows = [row(attempt) for attempt in tried if is_shown(attempt)]
    chains = any(left != NONE for _, left, *_ in rows)
    room = max([LOSSES, *(len(loss) + 2 for *_, loss, _ in rows)])
    lines = []
    if rows:
        head = ("tried", "first/last" if chains else "", "steps", f"{'loss':>{room}}", "result")
        lines.append(_columns(*head, width))
    shown = rows if len(rows) <= MOST else [*rows[: MOST - 2], *rows[-2:]]
    for place, (name, left, steps, loss, result) in enumerate(shown):
        if len(rows) > MOST and place == MOST - 2:
            lines.append(f"  ⋮  {len(rows) - MOST} more")
        left = left if chains else ""
        lines.append(_columns(name, left, steps, f"{loss:>{room}}", result, width))
    for attempt in tried:
        if attempt.ended in ("impossible", SKIPPED):
            lines += _filled(attempt.why, f"{attempt.name}: ", width)
    return [*lines, ""] if lines else []


def is_shown(attempt: ShownAttempt) -> bool:
    """Return True of what was done to the network, and of what the diagnosis advises."""
    return attempt.after is not None or attempt.ended == SKIPPED


def row(attempt: ShownAttempt) -> tuple[str, str, str, str, str]:
    """Return an attempt's name, the gradient's first over last size, steps, loss and result."""
    after = attempt.after
    if attempt.accepted:
        result = {"reached": DONE, "luck": ONCE, "by-heart": HEART}.get(attempt.ended, BEST)
    elif attempt.ended == SKIPPED:
        result = SKIPPED
    elif attempt.steps or attempt.ended in ("out-of-reach", "high"):
        result = RESULTS[attempt.ended]
    else:
        result = "–" if after is None or after.healthy else after.verdict
    loss = "" if isnan(attempt.loss[0]) else f"{attempt.loss[0]:.3g} → {attempt.loss[1]:.3g}"
    steps = str(attempt.steps) if attempt.steps else "–"
    return attempt.name, NONE if after is None else _chain(after), steps, loss, result


def _columns(name: str, chain: str, steps: str, loss: str, result: str, width: int) -> str:
    numbers = f"{chain:>11}{steps:>7}" if chain else f"{steps:>7}"
    numbers = numbers if width >= WIDTH else ""
    room = min(34 if chain else 45, width - len(numbers) - len(loss) - 12)
    name = textwrap.shorten(name, room - 1, placeholder="…")
    return f"{name:<{room}}{numbers}{loss}  {result}"


def proof(shown: ShownProof, width: int = WIDTH) -> list[str]:
    """Write loss, accuracy and flow without and with the cure."""
    rows = [("loss", [f"{value:.3g}" for value in shown.loss])]
    if not isnan(shown.accuracy[1]):
        rows.append(("accuracy", [_percent(value) for value in shown.accuracy]))
    if any(diagnosis.layer_flow is not None for diagnosis in shown.diagnoses):
        rows.append(("gradient, first layer over last", [_chain(d) for d in shown.diagnoses]))
    head = f"proof: {count_of(shown.steps, 'step')} from seed {shown.seed}"
    room = min(46, width - 22)
    lines = [f"{head:<{room}}{'without':>11}{'with':>11}"]
    return lines + [f"  {name:<{room - 2}}{a:>11}{b:>11}" for name, (a, b) in rows]


def _chain(diagnosis: ShownDiagnosis) -> str:
    flow = diagnosis.layer_flow
    return NONE if flow is None else power(flow.chain_log10)


def _percent(share: float) -> str:
    return "–" if isnan(share) else f"{100 * share:.1f} %"


def _filled(sentence: str, mark: str = "", width: int = WIDTH) -> list[str]:
    return textwrap.wrap(sentence, width, initial_indent=mark, subsequent_indent=" " * len(mark))

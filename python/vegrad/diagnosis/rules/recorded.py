"""Rules on a training of which only its steps were recorded, by whatever program.

Losses may be of single batches or means of many, of any kind and scale, logged at every step or at
every thousandth. So levels are medians of many, rises must stand out from the scatter about them,
and of a training by reward, whose loss says nothing of its success, it is not judged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, log10

import numpy as np

from vegrad.diagnosis.rules.course import grown
from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.seen import FEW, SOME, Seen
from vegrad.flow.course import Course
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site

ROSE, BACK = 1.5, 2.2  # times its first level, its lowest: healthy ones come to 1.2 and 1.9
HIGH = 0.5  # of its first level: where a loss that rose from its lowest must be
FLUNG = 10.0  # times its first value: a level that no good training comes to
OUT = 1.2  # times the highest of nine in ten about its lowest: what is no scatter
WINDOWS = 50  # of losses, for each twentieth of the run
GREW = 3.0  # times the gradients' norm: what long steps do to it
BLOWN = 2.0  # decades by which gradients grow, and by which they are as good as gone
GONE = 4.0
FAR, AGAIN = 100.0, 3  # times the usual loss: what is no scatter, if so many are
LEFT = 0.1  # of the first loss: below it little is left to learn

OPTIMIZER, LOSS, MODEL = Site("optimizer"), Site("loss"), Site("model")


def seen_of(reading: Reading) -> Seen | None:
    """Return the figures of the run that a reading is of, if it is of one."""
    watched = reading.watched
    return None if watched is None or watched.recorded is None else Seen(watched.recorded)


def finding_of(
    rule: Rule,
    severity: str,
    says: str,
    advises: str,
    evidence: dict[str, float],
    cause: str = "",
    site: Site = OPTIMIZER,
    kind: str = "",
) -> Finding:
    """Return a finding of a rule; evidence that is not known is left out."""
    return Finding(
        kind=kind or rule.kind,
        severity=severity,
        rule=rule.name,
        cause=cause,
        sites=(site,),
        says=says,
        advises=advises,
        evidence={name: value for name, value in evidence.items() if value == value},
    )


def _noted(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Repeat what was found while the training ran, the first of each cause."""
    seen = seen_of(reading)
    told = set[tuple[str, str]]()
    for one in () if seen is None else seen.run.noted:
        if (one.finding.kind, one.finding.cause) not in told:
            told.add((one.finding.kind, one.finding.cause))
            yield one.finding


# Numbers that are none --------------------------------------------------------------------------


def _nonfinite(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that is no number, and norms of gradients that are none from some step on."""
    seen = seen_of(reading)
    if seen is None or any(one.kind == "nonfinite" for one in earlier):
        return
    run = seen.run
    if "loss" in run.nonfinite:
        yield _lost(seen, rule, run.nonfinite["loss"])
        return
    if "gradient_norm" not in run.nonfinite:
        return
    there = np.flatnonzero(np.isfinite(run.gradient_norm))
    last = run.step[there[-1]] if len(there) else -inf
    count = int((run.step[seen.known] > last).sum())
    # A scaler of the loss skips the first steps, until it has found its factor.
    if count < rule.warning:
        return
    begin = max(run.nonfinite["gradient_norm"], last)
    yield finding_of(
        rule,
        "critical",
        "the gradients' norm is not finite from step {step:.0f} on, in the last {count:d} steps "
        "that were logged: none of them has taught the model anything",
        "look for the first operation that makes a NaN (vegrad.torch.Monitor names it); in "
        "float16, use bfloat16 or a scaler of the loss.",
        {"step": float(begin), "count": count, "loss": float(seen.losses[-1])},
        site=MODEL,
    )


def _lost(seen: Seen, rule: Rule, step: float) -> Finding:
    """Return the finding of a loss that is no number."""
    run = seen.run
    again = bool((run.step[seen.known] > step).any())
    if again:
        says = "the loss was not finite at step {step:.0f}, and was again later"
        advises = "look at that batch, and for an operation that overflows on it."
        return finding_of(rule, "warning", says, advises, {"step": step}, site=LOSS)
    end = int(np.searchsorted(run.step, step))
    empty = np.empty((end, 0))
    course = Course(
        step=run.step[:end],
        loss=run.loss[:end],
        norm=run.gradient_norm[:end],
        rms=empty,
        delta=empty,
    )
    decades = grown(course)
    rate = seen.rates()[0]
    evidence = {"step": step, "decades": decades, "rate": rate}
    if len(seen.losses):
        evidence |= {"first": float(seen.losses[0]), "last": float(seen.losses[-1])}
    if decades < 1:
        says = "the loss is not finite from step {step:.0f} on"
        says += (
            ", where it was {last:.3g} before" if len(seen.losses) else ", the first that has one"
        )
        advises = "look for the first operation that makes a NaN: vegrad.torch.Monitor names it."
        if not len(seen.losses):
            advises = f"look for a NaN among the data; else {advises}"
        return finding_of(rule, "critical", says, advises, evidence, site=LOSS)
    return finding_of(
        rule,
        "critical",
        "loss or gradients grew by {decades:.1f} decades, and from step {step:.0f} on the loss is "
        "not finite: it began at {first:.3g} and was at {last:.3g}",
        "lower the learning rate" + (" from {rate:.3g}" if rate > 0 else "") + ", at first "
        "tenfold, or let it rise over the first steps, and clip the gradients.",
        evidence,
        "learning-rate-high",
    )


# Losses and gradients that grow -----------------------------------------------------------------


def _diverged(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that ends far above where it began, or far above its lowest."""
    seen = seen_of(reading)
    known = any(one.kind in ("nonfinite", "overshooting") for one in earlier)
    if seen is None or known or not seen.means_success or len(seen.losses) < SOME:
        return
    width = max(FEW, len(seen.losses) // SOME)
    apart = max(width // WINDOWS, 1)  # of a long run not every one, which would take its square
    windows = np.lib.stride_tricks.sliding_window_view(seen.losses, width)[::apart]
    middles = np.median(windows, axis=1)
    place = int(np.argmin(middles))
    lowest, late = float(middles[place]), float(np.median(seen.losses[-width:]))
    calm = float(np.quantile(windows[place], 0.9)) * OUT
    floor = float(np.quantile(seen.losses[-width:], 0.25))
    above = late >= ROSE * seen.first and floor > seen.losses[:width].max()
    begin, highest = float(seen.losses[0]), float(middles.max())
    thrown = highest >= FLUNG * begin > 0 and late >= (1 - LEFT) * begin
    # A first batch may happen to have next to no loss, as others have.
    usual = float(np.quantile(seen.losses[-width:], 0.9)) * OUT
    thrown &= highest > usual or seen.losses[len(seen.losses) // 2 :].min() > 2 * begin
    back = late >= BACK * lowest and late >= HIGH * seen.first and floor > calm
    if not (above or back or thrown):
        return
    growth, rate = seen.norm_growth(), seen.rates()[0]
    long = growth >= GREW or thrown
    yield finding_of(
        rule,
        "critical",
        "the loss began at {first:.3g}, was as "
        + ("high as {highest:.3g}" if thrown else "low as {lowest:.3g}")
        + " and is at {late:.3g}"
        + (", and the gradients' norm is {growth:.2g} times its usual" if growth >= GREW else ""),
        "lower the learning rate" + (" from {rate:.3g}" if rate > 0 else "") + ", at first "
        "tenfold, or let it rise over the first steps, and clip the gradients"
        + ("." if long else "; if other data came in at that step, look at them first."),
        {
            "first": begin if thrown else seen.first,
            "lowest": lowest,
            "highest": highest,
            "late": late,
            "growth": growth,
            "rate": rate,
            "step": float(seen.run.step[seen.known[place * apart]]),
        },
        "learning-rate-high" if long else "",
    )


def _blown(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find gradients that have grown by decades though the loss has not fallen."""
    seen = seen_of(reading)
    if seen is None or not seen.means_success or len(seen.norms) < SOME or earlier:
        return
    first, late = (float(np.median(one)) for one in (seen.norms[:FEW], seen.norms[-FEW:]))
    if not 0 < first < inf or not late > 0:
        return
    decades = log10(late / first)
    learns = seen.levels[-1] < (1 - LEFT) * seen.first
    if learns or abs(decades) < BLOWN or (decades < 0 and decades > -GONE):
        return
    yield finding_of(
        rule,
        "critical",
        "the gradients' norm went from {first_norm:.2g} to {last_norm:.2g}, and the loss from "
        "{first:.3g} to {last:.3g}",
        "see which layers it comes from: vegrad.torch.Monitor, or vegrad.torch.diagnose.",
        {
            "first_norm": first,
            "last_norm": late,
            "first": seen.first,
            "last": seen.levels[-1],
            "decades": decades,
        },
        site=MODEL,
        kind="exploding" if decades > 0 else "vanishing",
    )


def _thrown(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find single losses that are decades above all others, again and again."""
    seen = seen_of(reading)
    if seen is None or not seen.means_success or len(seen.losses) < SOME or earlier:
        return
    usual = float(np.median(seen.losses))
    far = np.flatnonzero(seen.losses >= rule.warning * max(usual, seen.first, 0.0))
    if len(far) < AGAIN or usual <= 0:
        return
    yield finding_of(
        rule,
        "warning",
        "{count:.0f} of {entries:.0f} losses that were logged are far beyond the usual "
        "{usual:.3g}: the first is {first:.3g}, at step {step:.0f}, the highest {highest:.3g}",
        "look for what overflows, or is divided by next to nothing, on these batches, and clip the "
        "gradients, so that a batch cannot throw the weights far.",
        {
            "count": float(len(far)),
            "entries": float(len(seen.losses)),
            "usual": usual,
            "first": float(seen.losses[far[0]]),
            "highest": float(seen.losses.max()),
            "step": float(seen.run.step[seen.known[far[0]]]),
        },
        site=LOSS,
    )


# The table --------------------------------------------------------------------------------------

NOTED = Rule(
    name="run-noted",
    kind="overshooting",
    warning=1,
    critical=inf,
    measured="findings that were written into the log while the training ran",
    reason="Whoever watched it knew more of it than its log tells.",
    source="vegrad.torch.Monitor and fit",
    find=_noted,
)
NONFINITE = Rule(
    name="run-nonfinite",
    kind="nonfinite",
    warning=FEW,
    critical=FEW,
    measured="a loss that was logged as NaN or infinity; logged steps on end whose gradients' norm "
    "is not finite",
    reason="A scaler of the loss makes a few steps infinite, and never all of the last.",
    source="PyTorch, GradScaler: 2^16 is halved until it fits",
    find=_nonfinite,
)
DIVERGED = Rule(
    name="run-diverged",
    kind="overshooting",
    warning=ROSE,
    critical=ROSE,
    measured="the level of the last twentieth of the losses over the first and over the lowest "
    f"({BACK}), beyond the scatter about it",
    reason="A loss that falls does not rise above its beginning; 320 healthy trainings: 1.2.",
    source="bench/trainings_torch.py",
    find=_diverged,
)
BLOWN_UP = Rule(
    name="run-blown",
    kind="exploding",
    warning=BLOWN,
    critical=GONE,
    measured="decades between the gradients' first and last norm, while the loss has not fallen",
    reason="Gradients grow and shrink in good trainings too, in which the loss falls.",
    source="Pascanu et al. 2013, arXiv:1211.5063",
    find=_blown,
)
THROWN = Rule(
    name="run-thrown",
    kind="overshooting",
    warning=FAR,
    critical=inf,
    measured=f"losses, {AGAIN} or more, over their median and the first level",
    reason="One batch may be odd. Several that are decades off come of numbers that overflow.",
    source="public logs of Lightning's CSVLogger",
    find=_thrown,
)

"""Rules on gradients that are 0, or next to all of them, where nothing else explains it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf, isfinite

import numpy as np

from vegrad.diagnosis.rules.course import FLUNG, course_of, ends, moved_most, samples_of
from vegrad.diagnosis.rules.divergence import ROSE, STRONG, WHOLE, too_long
from vegrad.diagnosis.rules.modules import DRIFT
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site

MOST = 0.9  # of the elements
SMALLEST = 2.0**-24  # float16's least number: a mean below it is of elements most of which are 0
MATRICES = 0.75  # of the matrices
LEARNT = 1e-6  # of the first loss, below which nothing is left to learn
SAMPLES, STEPS = 3, 10  # that are looked at, the last ones
MODEL = Site("model", "the model")
ADVICE = (
    "scale the loss up before the backward pass and the gradients down again (a GradScaler, with "
    "the parameters in float32), or use bfloat16 or float32."
)
NEXT = "see what {words.loss} does with the output: a clamp or a rounding at it, a factor of 0."


UNKNOWN = "{words.tells_loss}, which says if there is anything left to learn; if there is, " + NEXT


def _stored_as_zero(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find gradients that the dtype has not, though float64 has; else a loss without any."""
    stored = reading.stored
    if stored is None or earlier:
        return
    if not stored.elements and reading.loss and isfinite(reading.loss):
        says = "every gradient is exactly 0, in float64 too, though the loss is {loss:.3g}"
        yield _without_reason(rule, says, {"loss": reading.loss})
    lost = stored.lost / max(stored.elements, 1)
    if lost >= rule.warning:
        yield _too_small(
            rule,
            "{percent:.0f} % of the gradients' elements are exactly 0 in {dtype}, though they are "
            "not in float64: they are too small for it, and nothing is learned where they are 0",
            {"percent": 100 * lost, "dtype": reading.dtype},
            {"lost": lost},
        )


def _in_steps(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that a training's gradients have been 0 from its first step on."""
    course, samples = course_of(reading), samples_of(reading)
    known = [one for one in earlier if not is_effect(one)]
    if course is None or known or course.steps < rule.warning or not course.complete:
        return
    none = bool((course.norm == 0).all() and (course.delta == 0).any(1).all())
    loss = float(course.loss[-1])
    small = len(samples) >= SAMPLES and all(
        one.dtype == "float16" and _is_small([u.gradient for u in one.updates if u.matrix])
        for one in samples
    )
    if small and loss != 0:
        says = "the gradients are exactly 0 at each of {steps:d} steps"
        says = says if none else "nearly all of the gradients' elements are 0 in {steps:d} steps"
        says += ": what is below 6e-8 is stored as 0 in float16"
        yield _too_small(rule, says, {"steps": course.steps}, {"steps": float(course.steps)})
    elif none and isfinite(loss) and loss:
        says = "the gradients are exactly 0 at each of {steps:.0f} steps, though the loss is "
        says += "{loss:.3g}"
        yield _without_reason(rule, says, {"steps": float(course.steps), "loss": loss})


def _of_late(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that gradients are exactly 0 now, however they were before, with something to learn."""
    watched = reading.watched
    if watched is None or watched.zeros < rule.warning:
        return
    losses = [abs(one) for one in watched.losses if isfinite(one)]
    if not all(map(is_effect, earlier)):
        return
    says = "the gradients are exactly 0 at each of the last {steps:.0f} steps"
    numbers = {"steps": float(watched.zeros)}
    if not losses:
        found = _without_reason(rule, says + ": nothing is learned any more", numbers)
        yield replace(found, severity="warning", advises=UNKNOWN)
    elif losses[-1] > LEARNT * losses[0]:
        numbers["loss"] = losses[-1]
        yield _without_reason(rule, says + ", though the loss is {loss:.3g}", numbers)


def _thrown(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that gradients have been 0 since a step was so long that nothing was left of weights."""
    watched, course = reading.watched, course_of(reading)
    if watched is None or course is None or watched.zeros < rule.warning:
        return
    known, living = ends(course), np.flatnonzero(course.norm > 0)
    left = known.get("last", 0.0) > LEARNT * known.get("first", 0.0) > 0
    if not left or not len(living) or not all(map(is_effect, earlier)):
        return
    moved = moved_most(reading, int(course.step[living[-1]]) + 1)
    peak = float(np.nanmax(course.loss))
    flung = peak >= FLUNG * known["first"]
    if moved < (STRONG if flung else WHOLE) and not (flung and moved == 0.0):
        return
    says = ["a step changed weights by {moved:.2g} of their size"] if moved else []
    if peak >= ROSE * known["first"]:
        says.append("the loss went from {first:.3g} up to {peak:.3g}")
    says.append("the gradients are exactly 0 at each of the last {zeros:.0f} steps")
    yield too_long(
        reading,
        rule,
        "critical",
        ", ".join(says[:-1]) + f", and since then {says[-1]}, at a loss of {{last:.3g}}",
        known | {"moved": moved, "peak": peak, "zeros": float(watched.zeros)},
        besides=", and begin with fresh weights: no rate brings these back",
    )


def is_effect(finding: Finding) -> bool:
    """Return True of what gradients that are 0 look like: a drift to 0, or steps too short."""
    return finding.rule == DRIFT.name or finding.cause == "learning-rate-low"


def _is_small(sizes: Sequence[float]) -> bool:
    return bool(sizes) and float(np.mean(np.array(sizes) < SMALLEST)) >= MATRICES


def _too_small(
    rule: Rule, says: str, facts: dict[str, object], evidence: dict[str, float]
) -> Finding:
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="dtype-range",
        sites=(MODEL,),
        says=says,
        advises=ADVICE,
        facts=facts,
        evidence=evidence,
    )


def _without_reason(rule: Rule, says: str, numbers: dict[str, float]) -> Finding:
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        sites=(MODEL,),
        says=says,
        advises=NEXT,
        evidence=numbers,
    )


STORED = Rule(
    name="gradients-stored-as-zero",
    kind="vanishing",
    warning=MOST,
    critical=MOST,
    measured="share of the gradients' elements that are 0 in the dtype and not in float64",
    reason="A parameter whose gradient is 0 stays as it is.",
    source="Micikevicius et al. 2018, arXiv:1710.03740",
    find=_stored_as_zero,
)
NO_GRADIENT = Rule(
    name="course-no-gradient",
    kind="vanishing",
    warning=STEPS,
    critical=STEPS,
    measured="steps from the first on at which gradients are 0, or less than float16 has",
    reason="A parameter whose gradient is 0 stays as it is.",
    source="Micikevicius et al. 2018, arXiv:1710.03740",
    find=_in_steps,
)
THROWN = replace(
    NO_GRADIENT,
    name="gradients-thrown",
    kind="overshooting",
    critical=inf,
    measured="the last steps in a row at which all gradients are exactly 0, after a step that "
    f"changed weights by their size, or one by {STRONG} of it and a loss {FLUNG:g} times the first",
    reason="A step of the weights' own size leaves nothing of them, and of units that are 0 on all "
    "rows no gradient comes back.",
    source="Lu et al. 2020, arXiv:1903.06733 (dying ReLU)",
    find=_thrown,
)
GONE = replace(
    NO_GRADIENT,
    name="gradients-gone",
    measured="the last steps in a row at which all gradients are exactly 0",
    find=_of_late,
)

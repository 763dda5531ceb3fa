"""Rules on the course of a training: what its steps have done to loss, gradients and outputs.

After a divergence the numbers of the last step tell nothing: all is NaN, or dead, or flat. The
steps before it do. They also show a divergence that comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, log10, nan, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.course import Course, smooth
from vegrad.flow.edits import LearningRate, ScaleData
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.watched import Sample

LARGE, SMALL = 30.0, 1e-3  # root mean square of an input far from order 1
PASSED = 10.0  # and of what the first module makes of a large one
FAR = 100.0  # times the outputs' size: targets far from order 1
GROWN = 1.0  # decades by which loss or gradients grow before a step is blamed for a NaN
WHOLE = 1.0  # change of the weights over their size, in one step, that leaves nothing of them
BEGAN = 5  # steps after which a large first step is still the first
ROSE = 1.5  # times its first value: healthy trainings reach 1.2 (median of five)
STRONG = 0.3  # change of the weights over their size in one of the first steps
PROMISE = 2.2  # times the loss that is left, which steps promise to take off
LEFT = 0.05  # of the first loss: below it, all steps promise more than there is
ENOUGH, TINY, STILL = 50, 1e-4, 0.02  # steps; change in one step, and in all of them together
ALIKE, APART = 1e-4, 1e-2  # variation between rows that is none, and that is some
NEAR = 64.0  # the dtype's range over what is near its end


def course_of(reading: Reading) -> Course | None:
    """Return the course of the training that a reading is of, if it has one with steps."""
    course = None if reading.watched is None else reading.watched.course
    return course if course is not None and course.steps else None


# At the start -----------------------------------------------------------------------------------


def _inputs(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare the first batch with order 1, and with what the first module makes of it."""
    course = course_of(reading)
    if course is None or not course.complete or not course.input_column > 0:
        return
    weighted = [place for place, one in enumerate(reading.modules) if one.weighted]
    if not weighted or _is_norm(reading.modules[weighted[0]].kind):
        return
    first, size = weighted[0], course.input_column
    after = reading.modules[first + 1].kind if first + 1 < len(reading.modules) else ""
    made = float(course.rms[0, first])
    large = size >= LARGE and made >= PASSED and not _is_norm(after)
    small = size <= SMALL and _varies(course, 0) < ALIKE
    if not (large or small):
        return
    yield Finding(
        kind="exploding" if large else "vanishing",
        severity="critical" if size >= rule.critical or small else "warning",
        rule=rule.name,
        cause="input-scale",
        sites=(Site("data", "x"), Site("module", reading.modules[first].name, first)),
        says="the inputs are of size {size:.3g} (root mean square of the largest column), and "
        "module {module} makes outputs of size {made:.3g} of them",
        advises="{edit}, with numbers taken from the training data.",
        edit=ScaleData(),
        evidence={"size": size, "made": made},
        facts={"module": reading.modules[first].name},
    )


def _targets(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare the first loss with the outputs, where its gradient says that it is an error's."""
    course = course_of(reading)
    if course is None or not course.complete or not course.outputs:
        return
    weighted = [place for place, one in enumerate(reading.modules) if one.weighted]
    if not weighted:
        return
    last = weighted[-1]
    loss, made, delta = course.loss[0], course.rms[0, last], course.delta[0, last]
    if not (0 < loss < inf and made > 0 and delta > 0):
        return
    # Of a mean square δ is 2(y − t)/n; of a mean absolute error ±1/n.
    norm = delta * sqrt(course.outputs)
    squared = abs(log10(norm / (2 * sqrt(loss)))) < 0.1
    absolute = abs(log10(norm)) < 0.02
    size = sqrt(loss) if squared else float(loss) if absolute else 0.0
    if size < rule.warning or size < FAR * made:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="target-scale",
        sites=(Site("target"), Site("loss")),
        says="the targets are of size {size:.3g}, and the outputs begin at {made:.2g}: the first "
        "loss is {loss:.3g}",
        advises="subtract their mean from the targets and divide them by their standard deviation; "
        "undo it after the model.",
        evidence={"size": size, "made": float(made), "loss": float(loss)},
    )


# After a divergence -----------------------------------------------------------------------------


def _diverged(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Look at what grew before the first number that was not finite."""
    course = course_of(reading)
    if course is None:
        return
    end = _first_lost(course)
    if not end:  # never, or from the beginning
        return
    before = course.until(end)
    decades, moved = _grown(before), _moved(reading, int(course.step[end]))
    if decades < rule.warning and not (end <= BEGAN and moved >= WHOLE):
        return
    near = float(np.nanmax(before.rms[-1], initial=0.0)) * NEAR > course.largest
    at_first = float(np.nanmax(before.rms[0], initial=0.0)) * NEAR**2 > course.largest
    if near and at_first and moved < STRONG:
        yield _range(course, before, rule)
        return
    yield _too_long(
        reading,
        rule,
        "critical",
        "the loss went from {first:.3g} to {last:.3g} and the gradients' norm from "
        "{first_norm:.3g} to {last_norm:.3g} in the steps before step {step:d}, at which numbers "
        "are no longer finite",
        {"decades": decades, "moved": moved, "step": float(course.step[end])} | _ends(before),
        kind="nonfinite",
    )


def _range(course: Course, before: Course, rule: Rule) -> Finding:
    return Finding(
        kind="nonfinite",
        severity="critical",
        rule=rule.name,
        cause="dtype-range",
        sites=(Site("model"),),
        says="outputs are of size {size:.3g}, and the largest number of their dtype is "
        "{largest:.3g}",
        advises="use bfloat16 or float32, or normalize what the layers make.",
        evidence={
            "size": float(np.nanmax(before.rms[-1], initial=0.0)),
            "largest": course.largest,
            "step": float(course.step[before.steps]),
        },
    )


def _overshoots(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that rose far above its first value, by steps that were long."""
    course = course_of(reading)
    if course is None or any(one.cause == "learning-rate-high" for one in earlier):
        return
    losses = smooth(course.loss)
    first = float(np.median(course.loss[:3])) if course.complete else nan
    if not len(losses) or not 0 < first < inf or not isfinite(losses[-1]):
        return
    peak, late = float(losses.max()), float(losses[-1])
    moved = _moved(reading, int(course.step[0]) + BEGAN)
    rose = peak >= rule.warning * first
    long = moved >= STRONG / 3 or _promise(reading, course) >= 1 or _sizes_grew(course)
    flung = moved >= STRONG and late >= 0.7 * first and len(losses) >= 10
    if not (rose and long) and not flung:
        return
    yield _too_long(
        reading,
        rule,
        "critical" if late >= 0.9 * first else "warning",
        "the loss began at {first:.3g}, rose to {peak:.3g} and is at {last:.3g}: steps are too "
        "long"
        + (" (one of the first changed weights by {moved:.2g} of their size)" if moved else ""),
        {"peak": peak, "moved": moved} | _ends(course),
    )


def _promises(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare what steps promise to take off the loss with all that is left of it."""
    course = course_of(reading)
    if course is None or any(one.cause == "learning-rate-high" for one in earlier):
        return
    promise = _promise(reading, course)
    if not promise >= rule.warning:
        return
    yield _too_long(
        reading,
        rule,
        "warning",
        "by its gradient each step would take {promise:.2g} times as much off the loss as there is "
        "left of it: steps are so long that the loss may soon grow",
        {"promise": promise} | _ends(course),
    )


def _too_long(
    reading: Reading,
    rule: Rule,
    severity: str,
    says: str,
    evidence: dict[str, float],
    kind: str = "overshooting",
) -> Finding:
    """Return the finding that steps are too long."""
    samples = reading.watched.samples if reading.watched is not None else ()
    rate = samples[-1].rate if samples else nan
    known = isfinite(rate) and rate > 0
    course = course_of(reading)
    calm = float(np.median(course.norm[:10])) if course is not None else nan
    advises = "lower the learning rate"
    advises += " from {rate:.3g}, at first tenfold" if known else " tenfold"
    advises += ", or let it rise over the first steps"
    advises += ", and clip the gradients' joint norm at {calm:.2g}" if 0 < calm < inf else ""
    return Finding(
        kind=kind,
        severity=severity,
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("optimizer"),),
        says=says,
        advises=advises + ".",
        edit=LearningRate(rate / 10, rate) if known else None,
        evidence={name: one for name, one in evidence.items() if one == one},
        facts={"rate": rate, "calm": calm},
    )


# Steps that go nowhere, outputs that become one -------------------------------------------------


def _goes_nowhere(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find weights that hardly move, though the gradient is what it was."""
    course = course_of(reading)
    if course is None or earlier or course.steps < ENOUGH or not course.complete:
        return
    samples = reading.watched.samples if reading.watched is not None else ()
    ratios = [_ratio(one) for one in samples]
    known = [one for one in ratios if isfinite(one)]
    norms, losses = course.norm, smooth(course.loss)
    if len(known) < 3 or not len(losses):
        return
    ratio = float(np.median(known))
    away = ratio * float(course.step[-1] - course.step[0])
    first, late = float(np.median(norms[:5])), float(np.median(norms[-10:]))
    if not (0 < ratio <= rule.warning and away <= STILL and late >= 0.3 * first):
        return
    if not 0 < 0.75 * losses[0] <= losses[-1]:
        return
    rate = samples[-1].rate
    yield Finding(
        kind=rule.kind,
        severity="warning",
        rule=rule.name,
        cause="learning-rate-low",
        sites=(Site("optimizer"),),
        says="a step changes the weights by {ratio:.2g} of their size, all {steps:d} together by "
        "{away:.2g} at most, and the loss went from {first:.4g} to {last:.4g}",
        advises="raise the learning rate, tenfold at a time, for as long as the loss falls faster"
        + ("; it is {rate:.3g}." if isfinite(rate) else "."),
        evidence={"ratio": ratio, "away": away, "steps": float(course.steps)} | _ends(course),
        facts={"rate": rate},
    )


def _collapsed(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare how much rows vary at first and now."""
    course = course_of(reading)
    if course is None or len(course.looks) < 3 or not course.complete:
        return
    losses = smooth(course.loss)
    if len(losses) and not losses[-1] >= 0.5 * losses[0] > 0:
        return
    alike = np.array([one.alike for one in course.looks])
    first, last = 1 - alike[0], 1 - np.median(alike[-3:], axis=0)
    fell = np.flatnonzero((first >= APART) & (last <= rule.warning))
    if not len(fell):
        return
    place = int(fell[0])
    name = course.looked[place]
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="collapse",
        sites=(Site("module", name), Site("optimizer")),
        says="the rows of {name}'s output have become alike: {was:.2g} of its size differed from "
        "row to row at first, {now:.1g} does now",
        advises="lower the learning rate, or let it rise over the first steps; normalization before "
        "each branch, and a loss that keeps rows apart, help too.",
        evidence={"was": float(first[place]), "now": max(float(last[place]), 0.0)},
        facts={"name": name},
    )


# Numbers ----------------------------------------------------------------------------------------


def _is_norm(kind: str) -> bool:
    return "Norm" in kind


def _varies(course: Course, place: int) -> float:
    """Return the share of an output that differs from row to row, at the first look."""
    return 1 - course.looks[0].alike[place] if course.looks else nan


def _first_lost(course: Course) -> int | None:
    """Return the place of the first step with a number that is not finite; None if there is none.

    A loss or size that is not known is NaN too, so that only one that was known before counts.
    """
    lost = ~np.isfinite(course.norm)
    for column in (course.loss[:, None], course.rms, course.delta):
        known = np.logical_or.accumulate(np.isfinite(column), axis=0)
        lost |= (known & ~np.isfinite(column)).any(1)
        lost |= np.isinf(column).any(1)
    return int(np.argmax(lost)) if lost.any() else None


def _grown(course: Course) -> float:
    """Return by how many decades loss or gradients have grown at the end."""
    found = [0.0]
    for values in (course.loss, course.norm):
        known = values[np.isfinite(values) & (values > 0)]
        if len(known) > 1:
            found.append(log10(known[-10:].max() / np.median(known[: max(len(known) // 2, 1)][:10])))
    return max(found)


def _sizes_grew(course: Course) -> bool:
    """Return True if some module's output has grown tenfold within five steps."""
    with np.errstate(all="ignore"):
        steps = course.rms[5:] / course.rms[:-5]
    return bool(np.nanmax(steps, initial=0.0) >= 10)


def _moved(reading: Reading, until: int) -> float:
    """Return the largest change of weights over their size in the steps that were sampled."""
    samples = reading.watched.samples if reading.watched is not None else ()
    ratios = [_ratio(one) for one in samples if one.step < until]
    return max((one for one in ratios if isfinite(one)), default=0.0)


def _ratio(sample: Sample) -> float:
    """Return the largest change over size of a step's matrices; nan if there is none."""
    ratios = [one.change / one.weight for one in sample.updates if one.matrix and one.weight > 0]
    known = [one for one in ratios if isfinite(one)]
    return max(known) if known else nan


def _promise(reading: Reading, course: Course) -> float:
    """Return what the last sampled steps promise to take off, over the loss: their median."""
    samples = reading.watched.samples if reading.watched is not None else ()
    losses: FloatArray = course.loss
    at = {int(step): float(loss) for step, loss in zip(course.step, losses, strict=True)}
    first = float(np.median(losses[:5]))
    found = [
        one.promise / loss
        for one in samples
        if (loss := at.get(one.step, nan)) > LEFT * first > 0 and isfinite(one.promise)
    ]
    return float(np.median(found[-3:])) if len(found) >= 3 else 0.0


def _ends(course: Course) -> dict[str, float]:
    """Return the loss and the gradients' norm at first and at last."""
    losses, norms = course.loss[np.isfinite(course.loss)], course.norm[np.isfinite(course.norm)]
    found = {}
    if len(losses):
        found |= {"first": float(losses[0]), "last": float(losses[-1])}
    if len(norms):
        found |= {"first_norm": float(norms[0]), "last_norm": float(norms[-1])}
    return found


INPUTS = Rule(
    name="course-inputs",
    kind="exploding",
    warning=LARGE,
    critical=1000.0,
    measured="root mean square of the largest column of the first batch",
    reason="Layers are drawn for inputs of order 1: larger ones flatten or throw them.",
    source="LeCun et al. 1998, Efficient BackProp, 4.3",
    find=_inputs,
)
TARGETS = Rule(
    name="course-targets",
    kind="exploding",
    warning=FAR,
    critical=FAR,
    measured="size of the first error, of a mean square or mean absolute error",
    reason="The gradient has the size of the error, and outputs begin at order 1.",
    source="keras#4563",
    find=_targets,
)
DIVERGED = Rule(
    name="course-diverged",
    kind="nonfinite",
    warning=GROWN,
    critical=GROWN,
    measured="decades by which loss or gradients grew before the first NaN",
    reason="What an operation makes comes at once; what steps make grows from step to step.",
    source="ssd.pytorch#275",
    find=_diverged,
)
OVERSHOOTS = Rule(
    name="course-overshoots",
    kind="overshooting",
    warning=ROSE,
    critical=ROSE,
    measured="the loss (median of five steps) over its first value",
    reason="A loss that falls does not rise above its beginning; 320 healthy trainings: 1.2.",
    source="bench/trainings_torch.py",
    find=_overshoots,
)
PROMISES = Rule(
    name="course-promises",
    kind="overshooting",
    warning=PROMISE,
    critical=inf,
    measured="gradient times change over the loss, median of three steps",
    reason="A step that promises more than there is goes past every minimum (Polyak's step).",
    source="Polyak 1987; Loizou et al. 2021, arXiv:2002.10542; bench/trainings_torch.py",
    find=_promises,
)
GOES_NOWHERE = Rule(
    name="course-stalled",
    kind="stalled",
    warning=TINY,
    critical=0.0,
    measured="change of the weights over their size in a step",
    reason="A thousandth is usual; 320 healthy trainings: at least 5e-4.",
    source="Karpathy, cs231n; bench/trainings_torch.py",
    find=_goes_nowhere,
)
COLLAPSED = Rule(
    name="course-collapsed",
    kind="collapsed",
    warning=ALIKE,
    critical=ALIKE,
    measured="share of an output that differs from row to row",
    reason="Rows that are alike get one answer; they differed before.",
    source="omoindrot/tensorflow-triplet-loss#6; Noci et al. 2022, arXiv:2206.03126",
    find=_collapsed,
)
FIRST = (INPUTS, TARGETS)
RULES = (*FIRST, DIVERGED, OVERSHOOTS, COLLAPSED, PROMISES)
"""GOES_NOWHERE comes last of all, where nothing else was found."""

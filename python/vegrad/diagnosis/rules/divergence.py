"""Rules on the course of a training: what its steps have done to loss, gradients and outputs.

After a divergence the numbers of the last step tell nothing: all is NaN, or dead, or flat. The
steps before it do. They also show a divergence that comes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, log10, nan, sqrt

import numpy as np

from vegrad.diagnosis.rules.course import (
    began,
    course_of,
    ends,
    first_lost,
    grown,
    is_norm,
    is_weighted,
    moved_most,
    promised,
    samples_of,
    sizes_grew,
    varies,
)
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.course import Course, smooth
from vegrad.flow.edits import LearningRate, ScaleData
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site

LARGE, SMALL = 30.0, 1e-3  # root mean square of an input far from order 1
PASSED = 10.0  # and of what the first module makes of a large one
TAMED = 0.3  # times that, at most, is left of it after a normalization
FAR = 100.0  # times the outputs' size: targets far from order 1
GROWN = 1.0  # decades by which loss or gradients grow before a step is blamed for a NaN
WHOLE = 1.0  # change of the weights over their size, in one step, that leaves nothing of them
LATER = 10.0  # times what the first steps moved: it is the last that threw it
THROWN = 100.0  # the same, that a tenth of the learning rate does not mend
BEGAN = 5  # steps after which a large first step is still the first
ROSE = 1.5  # times its first value: healthy trainings reach 1.2 (median of five)
KNOWN = ("learning-rate-high", "weight-decay", "no-zero-grad")
SAID = ("learning-rate-high", "input-scale", "target-scale", "no-zero-grad")
"""Causes for which steps promise much."""
BACK, LOW = 2.2, 0.3  # times its lowest, but not below this share of its first: healthy 1.9
TURNED = 1.5  # decades
NEARLY = 1.1  # times its lowest: a loss that still falls
STRONG = 0.3  # change of the weights over their size in one of the first steps
PROMISE = 1.6  # times the loss that is left, which steps promise to take off: healthy 1.5
ALIKE = 1e-4  # variation between rows that is none
NEAR = 64.0  # the dtype's range over what is near its end


# At the start -----------------------------------------------------------------------------------


def _inputs(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare the first batch with order 1, and with what the first module makes of it."""
    course = course_of(reading)
    if course is None or not course.complete:
        return
    weighted = [place for place, one in enumerate(reading.modules) if one.chained]
    if not weighted or is_norm(reading.modules[weighted[0]].kind):
        return
    first, size = weighted[0], course.input_column
    module = reading.modules[first].name
    within = not size >= LARGE and course.entry[0] == module and course.entry[1] >= LARGE
    size = course.entry[1] if within else size
    if not size > 0:
        return
    after = reading.modules[first + 1].kind if first + 1 < len(reading.modules) else ""
    made = float(course.rms[0, first])
    tamed = is_norm(after) and not course.rms[0, first + 1] >= TAMED * made
    large = size >= LARGE and made >= PASSED and not tamed
    small = size <= SMALL and varies(course, 0) < ALIKE
    if not (large or small):
        return
    yield Finding(
        kind="exploding" if large else "vanishing",
        severity="critical" if size >= rule.critical or small else "warning",
        rule=rule.name,
        cause="input-scale",
        sites=(Site("data", "x"), Site("module", module, first)),
        says=("what module {module} is given is" if within else "the inputs are")
        + " of size {size:.3g} (root mean square of the largest column), and "
        + ("it" if within else "module {module}")
        + " makes outputs of size {made:.3g} of them",
        advises="scale it to mean 0 and standard deviation 1: a count, as of steps, by the largest "
        "that there is."
        if within
        else "{edit}, with numbers taken from the training data.",
        edit=None if within else ScaleData(),
        evidence={"size": size, "made": made},
        facts={"module": module},
    )


def _targets(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare the first loss with the outputs, where its gradient says that it is an error's."""
    course = course_of(reading)
    if course is None or not course.complete or not course.outputs:
        return
    weighted = [place for place, one in enumerate(reading.modules) if one.chained]
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


def _negative(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a binary cross-entropy below 0, which no targets within 0 and 1 give."""
    course = course_of(reading)
    if course is None or course.loss_kind != "binary_cross_entropy":
        return
    lowest = float(np.nanmin(course.loss, initial=inf))
    if not lowest < rule.warning:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="target-range",
        sites=(Site("target"), Site("loss")),
        says="the binary cross-entropy went down to {lowest:.3g}: it is below 0 only for targets "
        "outside of 0 and 1, and then has no lower end",
        advises="give it targets of 0 and 1, or use a cross-entropy with one output a class.",
        evidence={"lowest": lowest},
    )


# After a divergence -----------------------------------------------------------------------------


def _diverged(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Look at what grew before the first number that was not finite."""
    course = course_of(reading)
    if course is None:
        return
    end = first_lost(course)
    if not end:  # never, or from the beginning
        return
    before = course.until(end)
    decades, moved = grown(before), moved_most(reading, int(course.step[end]))
    if decades < rule.warning and not (end <= BEGAN and moved >= WHOLE):
        return
    near = float(np.nanmax(before.rms[-1], initial=0.0)) * NEAR > course.largest
    at_first = float(np.nanmax(before.rms[0], initial=0.0)) * NEAR**2 > course.largest
    if near and at_first and moved < STRONG:
        yield _range(course, before, rule)
        return
    says = "the loss went from {first:.3g} to {last:.3g} and the gradients' norm from "
    says += "{first_norm:.3g} to {last_norm:.3g} in the steps before step {step:d}, at which "
    if decades < rule.warning:
        says = "the loss was {last:.3g} and the gradients' norm {last_norm:.3g} before step "
        says += "{step:d}, and a step changed weights by {moved:.2g} of their size; then "
    yield too_long(
        reading,
        rule,
        "critical",
        f"{says}numbers are no longer finite",
        {"decades": decades, "moved": moved, "step": float(course.step[end])} | ends(before),
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
    if course is None or any(one.cause in KNOWN for one in earlier):
        return
    course = _without_new_targets(course)
    losses = smooth(course.loss)
    if is_weighted(course.loss):
        return
    first = began(course.loss) if len(losses) and course.complete else nan
    if not 0 < first < inf or not isfinite(losses[-1]):
        return
    late = float(losses[-1])
    moved = moved_most(reading, int(course.step[0]) + BEGAN)
    # What is small beside the targets fits them, however much smaller it was before.
    least = LOW * np.nan_to_num(course.of_zero) if len(course.of_zero) else 0.0
    seen = np.maximum(course.loss, least)
    calm, begun = smooth(seen, 8), began(seen)
    back = len(calm) > 8 and calm[-1] >= BACK * max(float(calm.min()), LOW * begun)
    rose = float(smooth(seen).max()) >= rule.warning * begun or back
    long = moved >= STRONG / 3 or promised(reading, course) >= 0.5 or sizes_grew(course)
    falls = late <= NEARLY * float(losses.min()) < 0.9 * first
    stays = (late >= 0.7 * first and not falls) or (late >= LOW * first and _turned(course))
    flung = moved >= STRONG and stays and len(losses) >= 5
    if not (rose and long) and not flung:
        return
    lowest, known = float(losses.min()), ends(course)
    most = moved_most(reading, int(course.step[-1]) + 1)
    later = most >= LATER * moved  # as after a rate that was raised
    which, told = ("last", most) if later else ("first", moved)
    each = course.loss[np.isfinite(course.loss)]  # where verdicts rest on medians
    yield too_long(
        reading,
        rule,
        "critical" if late >= 0.9 * first else "warning",
        "the loss began at {first:.3g}, "
        + ("fell to {lowest:.3g}, " if lowest < known["first"] else "")
        + "was as high as {peak:.3g} and is at {last:.3g}: steps are too long"
        + (f" (one of the {which} changed weights by {{moved:.2g}} of their size)" if told else ""),
        {"peak": each.max(), "lowest": each.min(), "moved": told} | known,
    )


def _without_new_targets(course: Course) -> Course:
    """Leave out the steps whose loss has risen because their targets were larger than at first.

    It is no more than an output of 0 would have cost then: the task has changed, as where a reward
    is found, and no step is to blame. Outputs that grow with the targets are not excused.
    """
    if not course.complete or len(course.of_zero) != course.steps or sizes_grew(course):
        return course
    began = course.of_zero[:BEGAN]
    usual = float(np.median(began)) if len(began) == BEGAN else nan
    with np.errstate(invalid="ignore"):
        larger = (course.of_zero >= ROSE * usual) & (course.loss <= ROSE * course.of_zero)
    return course.only(~larger) if usual > 0 and larger.any() else course


def _turned(course: Course) -> bool:
    """Return True if δ at the first module, beside that at the last, is another than at first."""
    known = np.flatnonzero(np.isfinite(course.delta).all(0))
    if len(known) < 2:
        return False
    with np.errstate(all="ignore"):
        ratios = np.log10(course.delta[:, known[0]] / course.delta[:, known[-1]])
    if not isfinite(ratios[0]):
        return False  # as below a last layer that begins at 0
    change = np.median(ratios[-5:]) - ratios[0]
    return bool(abs(change) >= TURNED or change != change)


def _promises(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare what steps promise to take off the loss with all that is left of it."""
    course = course_of(reading)
    if course is None or any(one.cause in SAID for one in earlier):
        return
    promise = promised(reading, course)
    if not promise >= rule.warning:
        return
    yield too_long(
        reading,
        rule,
        "warning",
        "by its gradient each step would take {promise:.2g} times as much off the loss as there is "
        "left of it: steps are so long that the loss may soon grow",
        {"promise": promise} | ends(course),
    )


def too_long(
    reading: Reading,
    rule: Rule,
    severity: str,
    says: str,
    evidence: dict[str, float],
    kind: str = "overshooting",
    besides: str = "",
) -> Finding:
    """Return the finding that steps are too long, with what is advised besides."""
    samples = samples_of(reading)
    rate = samples[-1].rate if samples else nan
    known = isfinite(rate) and rate > 0
    course = course_of(reading)
    calm = float(np.median(course.norm[:10])) if course is not None else nan
    advises = "lower the learning rate"
    advises += " from {rate:.3g}, at first tenfold" if known else " tenfold"
    advises += ", or let it rise over the first steps"
    advises += ", and clip the gradients' joint norm at {calm:.2g}" if 0 < calm < inf else ""
    if evidence.get("moved", 0.0) >= THROWN and evidence.get("decades") == 0:
        advises = (
            "clip the gradients' joint norm at 1, as a tenth of the learning rate would throw "
        )
        advises += "the weights too; a diagnosis before the first step says what makes it so large"
    return Finding(
        kind=kind,
        severity=severity,
        rule=rule.name,
        cause="learning-rate-high",
        sites=(Site("optimizer"),),
        says=says,
        advises=f"{advises}{besides}.",
        edit=LearningRate(rate / 10, rate) if known else None,
        evidence={name: one for name, one in evidence.items() if one == one},
        facts={"rate": rate, "calm": calm},
    )


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
    source="keras#4563: targets of hundreds of thousands",
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
NEGATIVE = Rule(
    name="course-negative",
    kind="exploding",
    warning=-1e-6,
    critical=-1e-6,
    measured="the lowest binary cross-entropy",
    reason="Minus the logarithm of a probability is at least 0.",
    source="datascience.stackexchange 38604",
    find=_negative,
)
FIRST = (INPUTS, TARGETS, NEGATIVE)
RULES = (*FIRST, DIVERGED, OVERSHOOTS)

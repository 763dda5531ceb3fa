"""Rules on a training that goes nowhere: steps that are too small, rows that have become alike."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, sqrt

import numpy as np

from vegrad.diagnosis.rules.course import course_of, ends, ratio_of, samples_of
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.course import smooth
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.watched import Sample

ENOUGH, TINY, STILL = 50, 1e-4, 0.02  # steps; change in one step, and in all of them together
LEAST = 3  # samples
ALIKE, APART = 1e-4, 1e-2  # variation between rows that is none, and that is some
SMOOTH, FULL = 0.015, 1.2  # variation after many layers; size of matrices that are not small
SQUASHING = ("Sigmoid", "Tanh", "Hardsigmoid", "Softsign", "Hardtanh", "Softmax")


def _goes_nowhere(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find weights that hardly move, though the gradient is what it was."""
    course = course_of(reading)
    if course is None or earlier or course.steps < ENOUGH or not course.complete:
        return
    samples = samples_of(reading)
    if samples and all(one.rate == 0 for one in samples) and np.any(course.norm > 0):
        yield _without_change(rule, course.steps, at_no_rate=True)
        return
    if len(samples) >= LEAST and _is_still(samples) and np.any(course.norm > 0):
        yield _without_change(rule, course.steps, at_no_rate=False)
        return
    ratios = [ratio_of(one) for one in samples]
    known = [one for one in ratios if isfinite(one)]
    moved = [one for one in known if one > 0]  # where gradients are gathered, few steps do
    norms, losses = course.norm, smooth(course.loss)
    if len(moved) < LEAST or not len(losses):
        return
    ratio = float(np.median(moved))
    away = ratio * len(moved) / len(known) * float(course.step[-1] - course.step[0])
    first, late = float(np.median(norms[:5])), float(np.median(norms[-10:]))
    if not (ratio <= rule.warning and away <= STILL and late >= 0.3 * first):
        return
    if not 0 < 0.75 * losses[0] <= losses[-1]:
        return
    rate = samples[-1].rate
    if rate > samples[-3].rate:  # it is on its way up
        return
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
        evidence={"ratio": ratio, "away": away, "steps": float(course.steps)} | ends(course),
        facts={"rate": rate},
    )


def _is_still(samples: Sequence[Sample]) -> bool:
    """Return True if no step that was sampled changed a weight, nor any other step since."""
    every = [one for sample in samples for one in sample.updates]
    return bool(every) and all(one.change == 0 and one.weight == one.first for one in every)


def _without_change(rule: Rule, steps: int, *, at_no_rate: bool) -> Finding:
    says = "none of {steps:.0f} steps has changed a weight, though there are gradients"
    looks = "what schedules it, masks it or gathers gradients before it steps"
    if at_no_rate:
        says = "the learning rate was 0 in all {steps:.0f} steps, so that none changed a weight"
        looks = "what schedules it"
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="learning-rate-low",
        sites=(Site("optimizer"),),
        says=says,
        advises=f"give the optimizer a learning rate above 0, and look at {looks}.",
        evidence={"steps": float(steps)} | ({"rate": 0.0} if at_no_rate else {}),
    )


def _smoothed_out(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find rows that become alike from module to module, though no weights are small."""
    course = course_of(reading)
    if course is None or not course.complete or len(course.looks) < 3:
        return
    if any(one.kind in SQUASHING for one in reading.modules) or any(
        one.cause == "collapse" for one in earlier
    ):
        return
    losses, places = smooth(course.loss), np.arange(len(course.looked) - 2)
    varied = 1 - np.array([one.alike for one in course.looks])
    first, last = varied[0][places], np.median(varied[-3:], axis=0)[places]
    if len(places) < 3 or not first[0] >= 0.1 or not last[0] >= 0.1:
        return
    if not (float(first[-1]) <= SMOOTH and float(last[-1]) <= SMOOTH):
        return
    if not len(losses) or not losses[-1] >= 0.9 * losses[0] > 0 or _through(reading) < FULL:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="collapse",
        sites=(Site("module", course.looked[int(places[-1])]),),
        says="rows become alike on their way through the network: {was:.2g} of the output of "
        "{entry} differs from row to row, and {now:.1g} of that of {name}",
        advises="use fewer such layers, or skip connections around them.",
        evidence={"was": float(last[0]), "now": float(last[-1])},
        facts={"entry": course.looked[0], "name": course.looked[int(places[-1])]},
    )


def _through(reading: Reading) -> float:
    """Return the median size of what the matrices make of an input of size 1."""
    samples = samples_of(reading)
    sizes = [one.first * sqrt(one.inputs) for one in (samples[0].updates if samples else ())
             if one.matrix]  # fmt: skip
    return float(np.median(sizes)) if sizes else 0.0


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
    kinds = {one.name: one.kind for one in reading.modules}
    looks_up = np.array(["Embedding" in kinds.get(name, "") for name in course.looked])
    # What a table is asked for may happen to be alike, as the ends of sequences are.
    fell = np.flatnonzero((first >= APART) & (last <= rule.warning) & ~looks_up)
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
        advises="lower the learning rate, or let it rise over the first steps; normalization "
        "before each branch, and a loss that keeps rows apart, help too.",
        evidence={"was": float(first[place]), "now": max(float(last[place]), 0.0)},
        facts={"name": name},
    )


GOES_NOWHERE = Rule(
    name="course-stalled",
    kind="stalled",
    warning=TINY,
    critical=inf,
    measured="change of the weights over their size in a step, which is below the limit",
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
SMOOTHED = Rule(
    name="course-smoothed",
    kind="collapsed",
    warning=SMOOTH,
    critical=SMOOTH,
    measured="share of an output that differs from row to row, deep in the network",
    reason="Each averaging over neighbours leaves less; weights drawn for ReLU alone leave more.",
    source="Li et al. 2018, arXiv:1801.07606; Oono & Suzuki 2020, arXiv:1905.10947",
    find=_smoothed_out,
)
RULES = (COLLAPSED, SMOOTHED)

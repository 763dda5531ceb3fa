"""The numbers of a training's course that rules compare."""

from __future__ import annotations

from math import isfinite, log10, nan, sqrt
from typing import Protocol

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.course import Course, smooth
from vegrad.flow.reading import Reading
from vegrad.flow.watched import Sample

BEGINS = 3  # steps before which an adaptive optimizer's steps are of another size
ROUGH, WARM = 2.2, 20  # of such steps, and the number of those that are longer yet
LEAST = 0.3  # what a matrix makes of an input of size 1: half of what PyTorch's default does
LEFT = 0.1  # of the first loss: below it, all steps promise more than there is
SOME, SWINGS = 20, 0.2  # losses; share of the steps at which one about 0 changes its sign
FLUNG = 10.0  # times its first value: a loss that no good training comes to


def course_of(reading: Reading) -> Course | None:
    """Return the course of the training that a reading is of, if it has one with steps."""
    course = None if reading.watched is None else reading.watched.course
    return course if course is not None and course.steps else None


def samples_of(reading: Reading) -> tuple[Sample, ...]:
    """Return the steps of which changes were sampled."""
    return () if reading.watched is None else reading.watched.samples


def is_norm(kind: str) -> bool:
    """Return True for the class of a normalization."""
    return "Norm" in kind


def varies(course: Course, place: int) -> float:
    """Return the share of an output that differs from row to row, at the first look."""
    return 1 - course.looks[0].alike[place] if course.looks else nan


def first_lost(course: Course) -> int | None:
    """Return the place of the first step with a number that is not finite; None if there is none.

    A loss or size that is not known is NaN too, so that only one that was known before counts.
    """
    lost = ~np.isfinite(course.norm)
    for column in (course.loss[:, None], course.rms, course.delta):
        known = np.logical_or.accumulate(np.isfinite(column), axis=0)
        lost |= (known & ~np.isfinite(column)).any(1)
        lost |= np.isinf(column).any(1)
    return int(np.argmax(lost)) if lost.any() else None


def grown(course: Course) -> float:
    """Return by how many decades loss or gradients have grown at the end."""
    found = [0.0]
    for values in (course.loss, course.norm):
        known = values[np.isfinite(values) & (values > 0)]
        if len(known) > 1:
            found.append(
                log10(known[-10:].max() / np.median(known[: max(len(known) // 2, 1)][:10]))
            )
    return max(found)


def began(losses: FloatArray) -> float:
    """Return what a loss began at: the median of three steps, unless the first has thrown it."""
    middle = float(np.median(losses[:3]))
    return float(losses[0]) if middle >= FLUNG * losses[0] > 0 else middle


def is_weighted(losses: FloatArray) -> bool:
    """Return True of a loss that goes back and forth about 0, as a sum of weighted rewards does.

    It does not say how much is left to learn, unless it has become far larger than it was.
    """
    known = losses[np.isfinite(losses)]
    sizes = np.abs(known)
    if len(sizes) < 5:
        return False
    usual = max(float(sizes[0]), float(np.median(sizes[:SOME])))
    if smooth(sizes).max() >= FLUNG * usual:
        return False
    return float(np.diff(np.signbit(known)).mean()) >= SWINGS


def sizes_grew(course: Course) -> bool:
    """Return True if some module's output has grown tenfold within five steps."""
    with np.errstate(all="ignore"):
        steps = course.rms[5:] / course.rms[:-5]
    return bool(np.nanmax(steps, initial=0.0) >= 10)


def moved_most(reading: Reading, until: int) -> float:
    """Return the largest change of weights over their size in the steps that were sampled.

    Weights that are next to 0, as those of last layers that begin there, count as if they were of
    half the usual size: what moves those far throws nothing.
    """
    samples = samples_of(reading)
    ratios = [ratio_of(one, LEAST) for one in samples if one.step < until]
    return max((one for one in ratios if isfinite(one)), default=0.0)


def ratio_of(sample: Sample, least: float = 0.0) -> float:
    """Return the largest change over size of a step's matrices; nan if there is none.

    `least` is what a matrix is taken to make of an input of size 1 if it makes less.
    """
    ratios = [
        one.change / max(one.weight, least / sqrt(one.inputs))
        for one in sample.updates
        if one.matrix and one.weight > 0
    ]
    known = [one for one in ratios if isfinite(one)]
    return max(known) if known else nan


class Step(Protocol):
    """A sampled step, as far as its promise matters."""

    @property
    def step(self) -> int:
        """Its number."""

    @property
    def rough(self) -> bool:
        """True if it is not averaged over steps; see `Sample`."""

    @property
    def promise(self) -> float:
        """The most that it would take off the loss, by its gradient."""


def promise_of(sample: Step) -> float:
    """Return what a step promises to take off the loss, of rough steps in units of averaged ones.

    The gradient of one batch is in the step that is made of it, and the more so the less other
    batches are: of RMSprop's steps, healthy trainings promise 1.9 times the loss, of others 1.5;
    the first of them, whose mean square is not settled, promise more.
    """
    if sample.rough:
        return sample.promise / ROUGH if sample.step >= WARM else 0.0
    return sample.promise


def promised(reading: Reading, course: Course) -> float:
    """Return what the last sampled steps promise to take off, over the loss: their median.

    Next to nothing is left of a loss that was learned, or that is small beside the targets: steps
    there promise nothing.
    """
    samples = samples_of(reading)
    losses: FloatArray = course.loss
    targets = course.of_zero if len(course.of_zero) else np.zeros(course.steps)
    sizes = dict(zip(course.step.astype(int).tolist(), targets.tolist(), strict=True))
    at = {int(step): float(loss) for step, loss in zip(course.step, losses, strict=True)}
    if is_weighted(losses):
        return 0.0
    first = float(np.median(losses[:5]))
    found = [
        promise_of(one) / loss if loss > LEFT * max(first, sizes.get(one.step, 0.0)) else 0.0
        for one in samples
        if one.step >= BEGINS
        and isfinite(loss := at.get(one.step, nan))
        and first > 0
        and isfinite(one.promise)
    ]
    return float(np.median(found[-3:])) if len(found) >= 3 else 0.0


def ends(course: Course) -> dict[str, float]:
    """Return the loss and the gradients' norm at first and at last."""
    losses, norms = course.loss[np.isfinite(course.loss)], course.norm[np.isfinite(course.norm)]
    found = dict[str, float]()
    if len(losses):
        found |= {"first": float(losses[0]), "last": float(losses[-1])}
    if len(norms):
        found |= {"first_norm": float(norms[0]), "last_norm": float(norms[-1])}
    return found

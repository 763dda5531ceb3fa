"""Rules on a training of which only its steps were recorded, and that stands still."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from math import inf, nan, sqrt

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.rules.loop import CUT
from vegrad.diagnosis.rules.recorded import GONE, LEFT, MODEL, finding_of, seen_of
from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.seen import FEW, MANY
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.wording import DECADE

FLAT = 0.01  # of the loss: a change that is none
FALLS = -2.0  # a slope over its error: what is a fall, however slow
DEEP, STEADY = 5, 0.9  # weights, and the correlation of their gradients' ranks with their places
ZERO = -1100.0  # log2 of what stands for a gradient of exactly 0
REST = 0.1  # share of the steps at a learning rate of 0
LOOK = "see what comes to the layers: vegrad.torch.Monitor, or vegrad.torch.diagnose"
RATE = "; if that is well, try a larger learning rate than {rate:.3g}."


def _no_gradient(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find gradients of exactly 0 in all of the last steps, with a loss that has not gone."""
    seen = seen_of(reading)
    lost = any(one.kind == "nonfinite" for one in earlier)  # of which a clip makes 0
    if seen is None or lost or seen.run.about.get("rewarded") or len(seen.norms) < 2 * FEW:
        return
    zeros = int(np.argmax(np.append(seen.norms[::-1] != 0, True)))
    learned = len(seen.losses) and float(seen.losses[-1]) <= LEFT * seen.first
    if zeros < rule.warning or learned:
        return
    yield finding_of(
        rule,
        "critical",
        "the gradients are exactly 0 in the last {count:d} steps that were logged: nothing is "
        "learned any more",
        "see where they stop: vegrad.torch.Monitor, or vegrad.torch.diagnose.",
        {"count": float(zeros)},
        site=MODEL,
    )


def _no_rate(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a learning rate of 0 in the last part of the training."""
    seen = seen_of(reading)
    names = {} if seen is None else seen.run.about.get("names", {})
    if seen is None or "/pg" in str(isinstance(names, dict) and names.get("learning_rate")):
        return  # other groups of parameters may have others
    there = np.flatnonzero(np.isfinite(seen.run.learning_rate))
    rates = seen.run.learning_rate[there]
    zeros = int(np.argmax(np.append(rates[::-1] != 0, True)))
    if zeros < max(rule.warning, REST * len(rates)):
        return
    yield finding_of(
        rule,
        "critical",
        "the learning rate is 0 from step {step:.0f} on, in the last {count:d} steps that were "
        "logged: they have changed nothing",
        "give the schedule as many steps as the training takes.",
        {"step": float(seen.run.step[there[-zeros]]), "count": float(zeros)},
        "learning-rate-low",
    )


def _stalled(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that stands where it began, and has never been lower."""
    seen = seen_of(reading)
    if seen is None or earlier or not seen.means_success or len(seen.losses) < MANY:
        return
    fallen = 1 - min(seen.levels) / seen.levels[0]
    if fallen >= rule.warning or 1 - min(seen.levels) / seen.first >= rule.warning:
        return
    if _slope(seen.losses) <= FALLS:
        return
    run = seen.run
    with np.errstate(divide="ignore", invalid="ignore"):
        left = run.clipped_norm / run.gradient_norm
    left = left[np.isfinite(left)]
    cut = float(np.median(left)) if len(left) >= FEW else nan
    clipped = cut < CUT
    rate = seen.rates()[0]
    yield finding_of(
        rule,
        "warning",
        "the loss has not fallen: it was {first:.4g} at first and is {last:.4g}, after "
        "{steps:.0f} steps"
        + (", and the clip leaves {left:.2g} of the gradients" if clipped else ""),
        "raise the clip's limit." if clipped else LOOK + (RATE if rate > 0 else "."),
        {
            "first": seen.levels[0],
            "last": seen.levels[-1],
            "steps": float(run.step[-1] - run.step[0] + 1),
            "fall": fallen,
            "rate": rate,
            "left": cut,
        },
        "clip-too-small" if clipped else "",
    )


def _faded(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find gradients of weights that fade by decades towards the input, while the loss stands."""
    seen = seen_of(reading)
    if seen is None or earlier or not seen.means_success or len(seen.losses) < MANY:
        return
    names = [n for n, name in enumerate(seen.run.modules) if name.endswith("weight")]
    learns = min(seen.levels) < (1 - LEFT) * seen.levels[0]
    if learns or len(names) < DEEP:
        return
    sizes = seen.run.gradient_log2[:, names]
    sizes = np.maximum(sizes[~np.isnan(sizes).any(axis=1)][-FEW:], ZERO)
    if not len(sizes) or not np.isfinite(sizes).all():
        return
    last = np.median(sizes, axis=0) / DECADE
    ranks = np.argsort(np.argsort(last, kind="stable"), kind="stable")
    even = np.corrcoef(ranks, np.arange(len(ranks)))[0, 1]
    decades = float(last[-1] - last[0])
    if decades < rule.warning or even < STEADY:
        return
    found = finding_of(
        rule,
        "critical",
        "the gradients of the {count:.0f} weights that were logged fade by {decades:.1f} decades "
        "towards the input, from {upper:.2g} for {last_name} to {lower:.2g} for {first_name}, and "
        "the loss stands: it was {first:.4g} at first and is {last:.4g}",
        "see which layers lose it, and what mends it: vegrad.torch.diagnose, vegrad.torch.cure.",
        {
            "count": float(len(names)),
            "decades": decades,
            "lower": 10.0 ** float(last[0]),
            "upper": 10.0 ** float(last[-1]),
            "first": seen.levels[0],
            "last": seen.levels[-1],
        },
        site=MODEL,
    )
    ends = {"first_name": names[0], "last_name": names[-1]}
    facts = {name: seen.run.modules[place] for name, place in ends.items()}
    yield replace(found, facts={**found.facts, **facts})


def _slope(values: FloatArray) -> float:
    """Return the slope of numbers over its standard error."""
    x = np.arange(len(values)) - (len(values) - 1) / 2
    y = np.clip(values, *np.quantile(values, [0.05, 0.95]))
    y = y - y.mean()
    spread = float(x @ x)
    slope = float(x @ y) / spread
    rest = y - slope * x
    error = sqrt(float(rest @ rest) / max(len(values) - 2, 1) / spread)
    return slope / error if error > 0 else (0.0 if slope == 0 else inf * slope)


# The table --------------------------------------------------------------------------------------

NO_GRADIENT = Rule(
    name="run-no-gradient",
    kind="vanishing",
    warning=FEW,
    critical=FEW,
    measured="logged steps on end at which the gradients' norm is exactly 0",
    reason="Without a gradient nothing is learned.",
    source="an arithmetic fact",
    find=_no_gradient,
)
NO_RATE = Rule(
    name="run-no-rate",
    kind="stalled",
    warning=FEW,
    critical=FEW,
    measured="logged steps on end at which the learning rate is exactly 0, a tenth of all at least",
    reason="Schedules end at 0, and a training that goes on after its end changes nothing.",
    source="an arithmetic fact",
    find=_no_rate,
)
FADED = Rule(
    name="run-faded",
    kind="vanishing",
    warning=GONE,
    critical=GONE,
    measured=f"decades between the gradients of the first weight and the last, of {DEEP} or more "
    "that rise evenly, while the loss has not fallen by a tenth",
    reason="Layers far from the output learn nothing if their gradients are as good as gone.",
    source="Glorot and Bengio 2010",
    find=_faded,
)
STALLED = Rule(
    name="run-stalled",
    kind="stalled",
    warning=FLAT,
    critical=1.0,
    measured="part of its first level that the loss has lost in the best tenth of the training, "
    f"where it has {MANY} entries or more and no slope downwards",
    reason="Trained networks that are tuned lose little, but they lose it.",
    source="public logs of Hugging Face's Trainer",
    find=_stalled,
)

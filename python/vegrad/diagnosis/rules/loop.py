"""Rules on a training's loop and its optimizer: calls in the wrong order, steps that do nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from math import isfinite
from statistics import median
from typing import TypeAlias

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.watched import LoopStep, Sample, Update, Watched

FEW = 4  # steps that have to show a trouble in the order of calls
MOST = 0.75  # share of the last steps that have to
OPTIMIZER = Site("optimizer", "optimizer")
SAMPLES = 3  # samples in a row that have to show a trouble of steps
NOTHING = 3e-5  # ‖change‖/‖weights‖ of a step that does all but nothing
CUT = 1e-3  # limit over norm of a clip that leaves all but nothing
FEW_LOSSES = 6  # from which the last are compared with the first
STILL = 0.9  # share of elements that a step does not change in their dtype
SHRUNK = 0.1  # size of decayed weights beside what they began with
BETTER = 0.9  # loss beside the first, from which on the training is none that decay has stopped
BELOW = 0.95  # share of the elements below ε from which ε sets the steps
Find: TypeAlias = Callable[[Reading, Rule, Sequence[Finding]], Iterator[Finding]]


def _loops(reading: Reading) -> tuple[tuple[LoopStep, ...], ...]:
    """Return the last steps of each optimizer that has taken a few."""
    watched = reading.watched
    return () if watched is None else tuple(one for one in watched.loops if len(one) >= FEW)


def _mostly(steps: Sequence[LoopStep], shown: Sequence[bool]) -> bool:
    """Return True if the trouble shows in the last steps, and in most of all that are kept."""
    lately = shown[-2 * FEW :]
    return sum(lately) >= FEW and sum(lately) >= MOST * len(lately)


def _kept(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    loops = _loops(reading)
    each = [_took_again(steps) for steps in loops]
    wrong = [n for n, kept in enumerate(each) if _mostly(loops[n], kept)]
    for steps, kept in ((loops[n], each[n]) for n in wrong[:1]):
        since = kept[kept.index(True) :]
        ever = "never" if all(kept) else "no longer" if all(since) else "seldom"
        holds = steps[-1].holds
        one_of = len(wrong) < len(loops) and bool(holds)  # another's may be emptied instead
        of = " of {first}" + " to {last} ({held} in all)" * (len(holds) > 1)
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="no-zero-grad",
            sites=(OPTIMIZER, *(Site("parameter", name) for name in holds if one_of)),
            says="the gradients" + of * one_of + " are {ever} emptied: in {share:.0%} of the last "
            "{count:.0f} steps those that had been stepped already were still there when the "
            "backward pass began, and it was added to them; "
            + ("every step takes" if all(kept) else "these steps take")
            + " the sum of all so far",
            advises="{words.empties}" + ", of the optimizer that holds {first}" * one_of + ".",
            facts={"ever": ever}
            | ({"held": len(holds), "first": holds[0], "last": holds[-1]} if one_of else {}),
            evidence={
                "share": sum(kept) / len(kept),
                "count": float(len(kept)),
                "norm": steps[-1].norm,
            },
        )


def _took_again(steps: Sequence[LoopStep]) -> list[bool]:
    """Return for each of the last steps, looked at or not, if it took what was left."""
    # Nothing can be left at the first step.
    known = [one for one in steps if one.step > steps[0].step or steps[0].kept]
    return [kept for one in known for kept in (*one.passed, one.kept)][-len(steps) :]


def _emptied(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for steps in _loops(reading):
        emptied = [one.emptied for one in steps]
        if not _mostly(steps, emptied):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="zero-grad-before-step",
            sites=(OPTIMIZER,),
            says="the gradients are emptied after the backward pass and before the step, which "
            "has none to take: so it was at {count:.0f} of the last {steps:.0f} steps",
            advises="{words.empties}, and step right after it.",
            evidence={"count": float(sum(emptied)), "steps": float(len(emptied))},
        )
        return


def _dropped(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for steps in _loops(reading):
        lost = steps[-1].dropped
        wrong = [one.dropped == lost for one in steps]
        if not lost or not _mostly(steps, wrong):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="zero-grad-before-step",
            sites=(OPTIMIZER,),
            says="of the {passes:.0f} backward passes before a step only the last counts: the "
            "gradients of the others were emptied before it took them, at {count:.0f} of the last "
            "{steps:.0f} steps",
            advises="{words.empties}, not before each of the passes that are to make it.",
            evidence={
                "passes": float(lost + 1),
                "count": float(sum(wrong)),
                "steps": float(len(steps)),
            },
        )
        return


def _clip_order(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for steps in _loops(reading):
        for kind, cause in (("scaled", "clip-before-unscale"), ("before", "clip-before-backward")):
            scaled = kind == "scaled"
            wrong = [one for one in steps if one.clip == kind and (one.scale > 1 or not scaled)]
            if not _mostly(steps, [one in wrong for one in steps]):
                continue
            last = wrong[-1]
            beyond = any(one.norm > 1.01 * one.limit for one in wrong if not one.by_value)
            yield Finding(
                kind="stalled" if scaled else rule.kind,
                severity="critical" if scaled or beyond else "warning",
                rule=rule.name,
                cause=cause,
                sites=(OPTIMIZER,),
                says=SCALED if scaled else EARLY if beyond else IN_VAIN,
                advises="{words.unscales}."
                if scaled
                else "clip after the backward pass, right before the step.",
                evidence={
                    "limit": last.limit,
                    "norm": max((one.norm for one in wrong if isfinite(one.norm)), default=0.0),
                    "scale": last.scale,
                    "left": last.limit / last.scale,
                },
            )
            return


SCALED = (
    "the gradients are clipped at {limit:.3g} while they are still {scale:.0f} times too large: "
    "of what is left the step takes {left:.2g} at most"
)
IN_VAIN = (
    "the gradients are clipped before the backward pass has made them, so that the clip does "
    "nothing"
)
EARLY = IN_VAIN + ": their norm at the step was up to {norm:.3g}, beyond its limit of {limit:.3g}"


def _sampled(watched: Watched) -> list[Sequence[Sample]]:
    """Return the last samples of each optimizer's steps, its first ones left out."""
    later = [one for one in watched.samples if one.step >= FEW]
    numbers = dict.fromkeys(one.optimizer for one in later)
    several = [[one for one in later if one.optimizer == number] for number in numbers]
    return [one[-SAMPLES:] for one in several if len(one) >= SAMPLES]


def _moved(updates: Sequence[Update]) -> float:
    """Return ‖change‖/‖weights‖ of all together."""
    weights = sum(one.weight**2 for one in updates) ** 0.5
    return sum(one.change**2 for one in updates) ** 0.5 / weights if weights else 0.0


def _matrices(sample: Sample) -> list[Update]:
    return [one for one in sample.updates if one.matrix]


def _is_steady(samples: Sequence[Sample]) -> bool:
    """Return True if the rate is the training's own: neither warmed up nor nearly run down."""
    return 0 < samples[-1].rate <= samples[0].rate and 2 * samples[-1].rate >= samples[-1].peak


def _clip_small(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or any(one.kind == "stalled" for one in earlier):
        return
    moves = [[_moved(one.updates) for one in samples] for samples in _sampled(watched)]
    if not moves or not all(one < NOTHING for several in moves for one in several):
        return
    for steps in _loops(reading):
        done = [one for one in steps if one.clip == "done"]
        cut = [one.limit / one.before for one in done if one.before > 0 and not one.by_value]
        if len(cut) < FEW or sum(one < CUT for one in cut) < MOST * len(steps):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="clip-too-small",
            sites=(OPTIMIZER,),
            says="the clip leaves {left:.2g} of the gradients (their norm is {before:.3g}, its "
            "limit {limit:.3g}), and a step changes the weights by {moved:.1g} of their size",
            advises="raise the limit of the clip to about {before:.2g}, the usual norm.",
            evidence={
                "left": median(cut),
                "before": median(one.before for one in done if one.before > 0),
                "limit": done[-1].limit,
                "moved": moves[0][-1],
            },
        )
        return


def _still(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find steps that change nothing, while there is something left to learn."""
    watched = reading.watched
    if watched is None or any(one.kind == "stalled" for one in earlier):
        return
    losses = [one for one in watched.losses if isfinite(one)]
    if len(losses) > FEW_LOSSES and 0 <= median(losses[-3:]) < median(losses[:3]) / 2:
        return
    for samples in _sampled(watched):
        shares = [
            [one.still for one in _matrices(sample) if isfinite(one.still)] for sample in samples
        ]
        if not all(shares) or not _is_steady(samples):
            continue
        if any(median(several) < STILL for several in shares):
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="learning-rate-low",
            sites=(OPTIMIZER,),
            says="steps at a learning rate of {rate:.2g} are too small for {dtype}: {share:.0%} of "
            "the weights that have a gradient are the same after a step as before it",
            advises="keep the weights that are trained in a wider dtype (float32), or raise the "
            "learning rate.",
            facts={"dtype": samples[-1].dtype or "the weights' dtype"},
            evidence={"rate": samples[-1].rate, "share": median(shares[-1])},
        )
        return


def _epsilon(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or any(one.kind == "stalled" for one in earlier):
        return
    for samples in _sampled(watched):
        below = [
            [one.below_epsilon for one in _matrices(sample) if isfinite(one.below_epsilon)]
            for sample in samples
        ]
        if not all(below) or not _is_steady(samples):
            continue
        moved = max(_moved(_matrices(sample)) for sample in samples)
        gradients = any(one.gradient > 0 for one in samples[-1].updates)
        if moved >= NOTHING or not gradients or min(median(one) for one in below) < BELOW:
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="optimizer-eps",
            sites=(OPTIMIZER,),
            says="the gradients are smaller than the optimizer's ε, which is what they are divided "
            "by then: a step changes the weights by {moved:.1g} of their size",
            advises="scale the loss up, or lower the optimizer's eps.",
            evidence={"share": median(below[-1]), "moved": moved},
        )
        return


def _decay(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find weights that their decay has driven to 0, against gradients that are smaller."""
    watched = reading.watched
    if watched is None:
        return
    for samples in _sampled(watched):
        decayed = [one for one in _matrices(samples[-1]) if one.decay > 0 and one.first > 0]
        shrunk = [
            one
            for one in decayed
            if one.weight < SHRUNK * one.first
            and one.decay > (one.change / 2 if one.decoupled else one.gradient)
        ]
        gone = [one for one in decayed if one.weight < 1e-3 * one.first]
        shrunk += [one for one in gone if one not in shrunk]
        known = [loss for loss in watched.losses if isfinite(loss)]
        learns = bool(known) and median(known[-5:]) < BETTER * median(known[:3])
        if len(shrunk) < 2 / 3 * len(decayed) or not shrunk or learns:
            continue
        worst = min(shrunk, key=lambda one: one.weight / one.first)
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="weight-decay",
            sites=(OPTIMIZER, *(Site("parameter", one.name) for one in shrunk)),
            says="weight decay drives the weights to 0: {worst} and {others:.0f} more have less "
            "than {limit:.0%} of the size that they began with, their decay is larger than their "
            "gradient, and the loss does not fall",
            advises="lower the weight decay; 0.0005 is usual with SGD, 0.01 with AdamW.",
            facts={"worst": worst.name},
            evidence={
                "others": float(len(shrunk) - 1),
                "limit": SHRUNK,
                "left": worst.weight / worst.first,
            },
        )
        return


REPORTED = "reported troubles of many; see the page of the cause"


_row = partial(Rule, warning=MOST, critical=MOST, source=REPORTED)
RULES = (
    _row(
        name="loop-kept-gradients",
        kind="overshooting",
        measured="share of the last steps that took the gradients of earlier steps again",
        reason="One step may be a slip of the first lines of a program; most are the loop's.",
        find=_kept,
    ),
    _row(
        name="loop-emptied-gradients",
        kind="stalled",
        measured="share of the last steps whose gradients were emptied before them",
        reason="A step without gradients does nothing.",
        find=_emptied,
    ),
    _row(
        name="loop-dropped-gradients",
        kind="stalled",
        measured="share of the last steps that took the last of several backward passes alone",
        reason="Passes of other data, at the same weights, are to add up to one step.",
        find=_dropped,
    ),
    _row(
        name="loop-clip-order",
        kind="idle",
        measured="share of the last steps whose clip came before backward pass or unscaling",
        reason="Such a clip cuts what is not there yet, or not yet of its size.",
        find=_clip_order,
    ),
    _row(
        name="optimizer-decay",
        kind="vanishing",
        measured="share of the matrices that weight decay has made a tenth of what they were",
        reason="A decay that only regularizes is outweighed by the gradient long before.",
        find=_decay,
    ),
    _row(
        name="optimizer-clip",
        kind="stalled",
        measured="share of the last steps whose clip left less than a thousandth of the gradient",
        reason="A limit is there for the few gradients that are too large.",
        find=_clip_small,
    ),
    _row(
        name="optimizer-epsilon",
        kind="stalled",
        measured="share of the weights whose gradients are below the optimizer's ε",
        reason="ε is to keep a division by 0 from happening, not to set the size of steps.",
        find=_epsilon,
    ),
    _row(
        name="optimizer-still",
        kind="stalled",
        measured="share of the weights with a gradient that a step does not change in their dtype",
        reason="Below half the distance of two neighbouring numbers a change is rounded away.",
        find=_still,
    ),
)

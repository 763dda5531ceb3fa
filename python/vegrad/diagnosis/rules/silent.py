"""Rules on steps that change nothing: no gradient, other parameters, or weights set back."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from math import inf

from vegrad.diagnosis.rules.loop import MOST, OPTIMIZER, REPORTED
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.flow.site import Site
from vegrad.flow.watched import Sample, Update

LEAST = 10  # steps without a gradient
SHOWN = 3  # parameters that a message names
PASSES = 20  # backward passes without a step
BACK = 90  # steps that began with the same weights; many tasks may share a step of theirs


def _without(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or watched.without < rule.warning:
        return
    says = "no parameter has got a gradient in {steps:.0f} steps: "
    if watched.passes:
        says += "backward passes were made, but none came back to this model"
        advises = "look between the model's output and {words.loss} for {words.cuts}; if it is "
        advises += "another model that is trained, do not step this one's optimizer."
    else:
        says += "the optimizer steps, but no backward pass was made"
        advises = "take the gradient of {words.loss} before each step: a backward pass from it."
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="detached" if watched.passes else "",
        sites=(OPTIMIZER,),
        says=says,
        advises=advises,
        evidence={"steps": float(watched.without)},
    )


def _idle(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or not watched.idle or watched.without:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="detached",
        sites=tuple(Site("parameter", name) for name in watched.idle),
        says="no gradient comes back to {first}"
        + " to {last} ({count:.0f} in all)" * (len(watched.idle) > 1)
        + ", which an optimizer of their own steps in vain: they run, and have never changed",
        advises="look between their output and {words.loss} for {words.cuts}.",
        facts={"first": watched.idle[0], "last": watched.idle[-1]},
        evidence={"count": float(len(watched.idle))},
    )


def _strayed(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or not watched.strayed:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="not-in-optimizer",
        sites=tuple(Site("parameter", name) for name in watched.strayed),
        says="backward passes were seen, but no optimizer that has this model's parameters has "
        "stepped: {count:.0f} parameters have gradients and have never changed",
        advises="give the optimizer the parameters of this very model, after it was copied, moved "
        "or made anew.",
        evidence={"count": float(len(watched.strayed))},
    )


def _in_copies(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or watched.in_copies < rule.warning:
        return
    yield Finding(
        kind=rule.kind,
        severity="warning",
        rule=rule.name,
        cause="not-in-optimizer",
        sites=(OPTIMIZER,),
        says="a copy of this model is trained, not the model itself: the copy was run before "
        "{steps:.0f} steps of its optimizer, and this model's parameters have never changed",
        advises="watch the copy, or give the optimizer the parameters of this very model.",
        evidence={"steps": float(watched.in_copies)},
    )


def _unheld(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None:
        return
    for names, cause, says, advises in (
        (
            watched.unregistered,
            "unregistered",
            "{names} {get} a gradient, but the model does not list {them} among its parameters, "
            "so that no optimizer was given {them}",
            "{words.registers}.",
        ),
        (
            watched.unheld,
            "not-in-optimizer",
            "{names} {get} a gradient at every step, but no optimizer has {them}: {they} "
            "never changed",
            "{words.holds}.",
        ),
    ):
        if names:
            more = len(names) - SHOWN
            one = len(names) == 1
            yield Finding(
                kind=rule.kind,
                severity="warning",
                rule=rule.name,
                cause=cause,
                sites=tuple(Site("parameter", name) for name in names),
                says=says,
                advises=advises,
                facts={
                    "names": ", ".join(names[:SHOWN]) + (f" and {more} more" if more > 0 else ""),
                    "get": "gets" if one else "get",
                    "them": "it" if one else "them",
                    "they": "it has" if one else "they have",
                },
                evidence={"count": float(len(names))},
            )


def _unstepped(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    if watched is None or watched.unstepped < rule.warning:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="no-step",
        sites=(OPTIMIZER,),
        says="{passes:.0f} backward passes have made gradients, and the optimizer that holds this "
        "model's parameters has never stepped: none of them has changed",
        advises="{words.steps}.",
        evidence={"passes": float(watched.unstepped)},
    )


def _undone(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find weights that are set back after each step: all begin with the very same ones."""
    samples = () if reading.watched is None else reading.watched.samples
    for number in dict.fromkeys(one.optimizer for one in samples):
        own = [one for one in samples if one.optimizer == number]
        begun = {tuple((of.name, of.weight) for of in one.updates) for one in own}
        moved = [max((of.change / of.weight for of in _moved(one)), default=0.0) for one in own]
        if own[-1].step - own[0].step < rule.warning or len(begun) > 1 or not min(moved):
            continue
        # Weights that swing between two places are the same at every second step, or in size.
        apart = {two.step - one.step for one, two in pairwise(own)}
        if max(moved) > 1 or not any(steps % 2 for steps in apart):
            continue
        if len({one.rate for one in own}) > 1:  # rates that are tried, one after another
            continue
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="steps-undone",
            sites=(OPTIMIZER,),
            says="the steps are undone: at step {first:.0f}, at step {last:.0f} and at all {count} "
            "looked at from the one to the other the weights were the same before the step, though "
            "each changed them by up to {moved:.1g} of their size",
            advises="{words.keeps}.",
            facts={"count": str(len(own))},
            evidence={"first": own[0].step, "last": own[-1].step, "moved": max(moved)},
        )
        return


def _moved(sample: Sample) -> list[Update]:
    return [one for one in sample.updates if one.weight > 0 and one.change > 0]


UNHELD = Rule(
    name="optimizer-parameters",
    kind="idle",
    warning=MOST,
    critical=MOST,
    measured="parameters that get a gradient and that no optimizer steps",
    reason="Their gradient is work for nothing: either they are to be trained, or need none.",
    source=REPORTED,
    find=_unheld,
)
WITHOUT = Rule(
    name="loop-without-gradients",
    kind="stalled",
    warning=LEAST,
    critical=LEAST,
    measured="the last steps in a row at which no parameter had a gradient",
    reason="Where two models take turns each gets a gradient within a few steps.",
    source="reported troubles of many: the output detached, the backward pass forgotten",
    find=_without,
)
IDLE = Rule(
    name="loop-idle-optimizer",
    kind="stalled",
    warning=1,
    critical=1,
    measured="parameters of one of several optimizers, of which none has got a gradient",
    reason="An optimizer whose parameters have no gradient steps in vain.",
    source="reported troubles of many: a generator's output detached in its own loss",
    find=_idle,
)
STRAYED = Rule(
    name="loop-other-parameters",
    kind="idle",
    warning=1,
    critical=1,
    measured="parameters with gradients, in a model of which no optimizer has any",
    reason="All steps that are taken are those of other parameters, such as a copy's.",
    source="reported troubles of many: a model that was copied after its optimizer was made",
    find=_strayed,
)
IN_COPIES = Rule(
    name="loop-copy",
    kind="idle",
    warning=PASSES,
    critical=inf,
    measured="steps of a copy of the model, while the model itself was never run nor changed",
    reason="A copy that follows a model, or that it is compared with, is not trained in its place.",
    source="reported troubles of many: a model that was copied between watching and training it",
    find=_in_copies,
)
UNSTEPPED = Rule(
    name="loop-no-step",
    kind="stalled",
    warning=PASSES,
    critical=PASSES,
    measured="backward passes before any step of the optimizer, each of which replaced the last",
    reason="Gradients that are to make one step together are added up, not replaced.",
    source="reported troubles of many: optimizer.step() forgotten, or behind a wrong condition",
    find=_unstepped,
)
UNDONE = Rule(
    name="loop-undone",
    kind="stalled",
    warning=BACK,
    critical=BACK,
    measured="steps, of which all that were sampled began with the very same weights",
    reason="What a step has changed is never exactly so again, unless somebody sets it back.",
    source="reported troubles of many: a state that is loaded, or drawn anew, within the loop",
    find=_undone,
)
RULES = (UNHELD, WITHOUT, IDLE, STRAYED, IN_COPIES, UNSTEPPED, UNDONE)

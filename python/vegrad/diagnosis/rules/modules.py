"""Rules on modules that were watched: the sizes of their outputs and of the gradients there."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import pairwise
from math import inf, isfinite, log10, nan
from typing import NamedTuple

from vegrad.diagnosis.rules.chain import BY_SIGN
from vegrad.diagnosis.rules.course import course_of, moved_most, samples_of
from vegrad.diagnosis.rules.nonfinite import PASS, WORDS
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Redraw
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Module, Reading
from vegrad.flow.site import Site
from vegrad.flow.watched import FirstNonFinite, Watched

SIGMOIDS, TANHS = ("Sigmoid", "Hardsigmoid"), ("Tanh", "Softsign", "Hardtanh")
STRONG = 0.3  # change of weights over their size in one step, that throws a network
LEAST = 0.05  # of a derivative, where outputs are next to ±1
TINY = 1e-20  # δ from which nothing gets to 0 at once by its dtype
OTHERS = 0.25  # of a drift in decades, up to which it is that of one module alone
GREW = 10.0  # growth over the steps before, from which what is too large is the steps' work
TOO_LARGE = {"overflow", "dtype-range"}
NEEDED = {
    "forward": "look at the input of this module and at the operations before it: a division, a "
    "logarithm or an exponential of what the data of this sample make.",
    "loss": "look at {words.loss} and at the target: a division, a logarithm, a mean over nothing.",
    "backward": "look for an operation whose derivative has no finite value there: a square root "
    "or a logarithm at 0, a where() with an unused infinite branch.",
    "gradient": "look at what this parameter is multiplied with, and at the size of the loss.",
    "elsewhere": "see what the monitors of the other processes say: report(together=True), called "
    "in all of them.",
    "unseen": "give the monitor what torch.compile returned, or diagnose the model as it was "
    "before on this batch: that looks at the data, the weights and each operation.",
}
SLOWER = "lower the learning rate, to a tenth at first, and clip the gradients' joint norm at 1."


def _nonfinite(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    watched = reading.watched
    first = None if watched is None else watched.nonfinite
    if watched is None or first is None:
        return
    if first.parameter:
        yield _of_weights(first, watched, reading, rule)
        return
    found = _second(first, rule)
    cause = first.cause or ("" if found is None else found.cause)
    if watched.growth >= GREW and (not cause or cause in TOO_LARGE):
        yield _said(first, reading, rule, "learning-rate-high", GROWN, SLOWER, watched.growth)
    elif first.cause:
        why, advises = WORDS.get(cause, OF_TARGET)
        yield _said(
            first, reading, rule, cause, f"{{first}}. It comes from {{operation}}: {why}", advises
        )
    elif found is not None:
        yield found
    else:
        yield _said(first, reading, rule, "", "{first}", NEEDED[first.seen_in])


GROWN = (
    "{first}. Before that the training grew {growth:.2g}-fold within a few steps: its steps are "
    "too large"
)
OF_TARGET = (
    "the target has values that are not finite; what is left out of the loss is not left out of "
    "the gradient (0 · NaN is NaN)",
    "take out the rows or elements that are known before anything is computed with the target.",
)


def _second(first: FirstNonFinite, rule: Rule) -> Finding | None:
    """Return what the second look at the model tells, if it knows an operation or the data."""
    again = first.reading
    if not isinstance(again, Reading):
        return None
    for found in PASS.find(again, PASS, ()):
        if "operation" in found.facts or found.cause.startswith("nonfinite-"):
            return replace(
                found,
                rule=rule.name,
                says=f"at step {first.step} {found.says}",
                evidence={**found.evidence, "step": float(first.step)},
            )
    return None


def _of_weights(first: FirstNonFinite, watched: Watched, reading: Reading, rule: Rule) -> Finding:
    """Say what has made a parameter that is not finite: a step, ε or nothing that was seen."""
    epsilon = first.epsilon
    if epsilon == epsilon:
        says = (
            "{first}. The step before made it so, of finite gradients: the optimizer's ε of "
            "{epsilon:.0e} is 0 in the parameter's dtype, and a gradient of 0 is divided by it"
        )
        advises = (
            "keep the weights and the optimizer's state in float32 (with autocast), or set its eps "
            "to a number that the dtype has: 1e-4 in float16."
        )
        said = _said(first, reading, rule, "optimizer-eps", says, advises)
        return replace(said, facts={**said.facts, "epsilon": epsilon})
    if first.step and watched.growth >= GREW:
        return _said(first, reading, rule, "learning-rate-high", GROWN, SLOWER, watched.growth)
    advises = "draw or load {parameter} again; if training made it so, lower the learning rate by "
    advises += "a factor of 10 and clip the gradients' joint norm at 1."
    said = _said(first, reading, rule, "nonfinite-weights", "{first}", advises)
    return replace(said, edit=Redraw((first.parameter,)))


def _said(
    first: FirstNonFinite,
    reading: Reading,
    rule: Rule,
    cause: str,
    says: str,
    advises: str,
    growth: float = nan,
) -> Finding:
    names = [module.name for module in reading.modules]
    place = names.index(first.module) if first.module in names else None
    sites = [Site("loss", "loss") if first.cause else Site("module", first.module, place)]
    if first.parameter:
        sites.insert(0, Site("parameter", first.parameter))
    evidence = {"step": float(first.step)}
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=tuple(sites),
        says=says,
        advises=advises,
        facts={
            "first": first.message,
            "operation": first.operation,
            "parameter": Site("parameter", first.parameter),
        },
        evidence=evidence | ({"growth": growth} if growth == growth else {}),
    )


def _drift(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Compare δ at the first module with weights and at the last."""
    modules = reading.modules
    chain = [(n, one.delta) for n, one in enumerate(modules) if one.chained and one.delta < inf]
    if len(chain) < 2 or chain[-1][1] == 0:
        return
    (first, start), (last, end) = chain[0], chain[-1]
    decades = log10(start / end) if start else -inf
    kind = "vanishing" if decades < 0 else "exploding"
    limits = BY_SIGN[-1 if decades < 0 else 1]
    if abs(decades) < abs(limits.warning):
        return
    by = _by_steps(reading, first, last)
    if by:
        yield _thrown(reading, rule, decades, by, first)
        return
    worst = _steepest(chain, kind)
    if kind == "vanishing" and (modules[worst].begun or _is_opening(modules, chain, decades)):
        return  # what lies below gets its gradient through weights that were 0
    cut = not start and dict(chain)[worst] > TINY
    if cut and any(one.activation_rms == 0 for one in modules[first : worst + 1]):
        return  # outputs of 0 pass nothing back, and are told as dead
    cause = "detached" if cut else _cause(modules[first : last + 1], decades)
    if cause == "weight-scale-all" and (alone := _alone(modules, chain, worst, decades)):
        yield _of_one(alone, modules[worst], worst, rule, limits.severity(decades))
        return
    reach = "10^{decades:.1f}" if isfinite(decades) else "0"
    reach += "" if isfinite(decades) or cut else " (too small for its dtype)"
    yield Finding(
        kind=kind,
        severity=limits.severity(decades),
        rule=rule.name,
        cause=cause,
        sites=(Site("module", modules[first].name, first), Site("module", modules[worst].name)),
        says=f"the gradient that reaches module {{site}} is {reach} of the one at module {{last}}, "
        "the last of {count} with weights; it changes most in passing module {worst_module}",
        advises=_advice(kind, any(one.kind in SIGMOIDS for one in reading.modules), cut=cut),
        facts={
            "last": modules[last].name,
            "he": "he_normal",
            "lecun": "lecun_normal",
            "count": len(chain),
            "worst_module": modules[worst].name,
        },
        evidence={"decades": decades, "worst": float(worst)},
    )


class Alone(NamedTuple):
    """A module that changes a gradient where all others together leave it as it is: log10."""

    passed: float
    others: float
    made: float
    """The size of its output over that of its input, which its weights have changed as much."""


def _alone(
    modules: Sequence[Module], chain: Sequence[tuple[int, float]], worst: int, decades: float
) -> Alone | None:
    """Return what one module does if a drift is its own, and its outputs tell the same."""
    above = next(delta for place, delta in chain if place == worst)
    below = [delta for place, delta in chain if place < worst]
    given, made = (modules[place].activation_rms for place in (worst - 1, worst))
    if not below or not all(0 < one < inf for one in (above, below[-1], given, made)):
        return None
    found = Alone(log10(below[-1] / above), decades - log10(below[-1] / above), log10(made / given))
    same = found.made * found.passed > 0 and abs(found.made) >= abs(found.passed) / 2
    return found if same and abs(found.others) < OTHERS * abs(decades) else None


def _of_one(alone: Alone, module: Module, place: int, rule: Rule, severity: str) -> Finding:
    return Finding(
        kind="vanishing" if alone.passed < 0 else "exploding",
        severity=severity,
        rule=rule.name,
        cause="weight-scale",
        sites=(Site("module", module.name, place),),
        says="the gradient is multiplied by {passed:power} in passing module {site}, and by "
        "{others:power} in passing all others together; what module {site} makes is {made:power} "
        "times as large as what it gets",
        advises="draw the weights of module {site} again, as those of the others.",
        facts=alone._asdict(),
        evidence={"decades": alone.passed, "worst": float(place)},
    )


def _is_opening(
    modules: Sequence[Module], chain: Sequence[tuple[int, float]], decades: float
) -> bool:
    """Return True if a drift is that in passing the modules that began at 0."""
    lost = sum(
        min(log10(a / b), 0.0)
        for (_, a), (place, b) in pairwise(chain)
        if modules[place].begun and a > 0 and b > 0
    )
    return decades - lost > -abs(BY_SIGN[-1].warning)


def _by_steps(reading: Reading, first: int, last: int) -> str:
    """Return the cause if steps have made a drift that was not there at first; "" if not."""
    course = course_of(reading)
    if course is None or not course.complete or course.steps < 2:
        return ""
    start, end = (float(course.delta[0, place]) for place in (first, last))
    if not (0 < start < inf and 0 < end < inf):
        return ""
    began = log10(start / end)
    moved = moved_most(reading, int(course.step[-1]) + 1)
    if abs(began) >= abs(BY_SIGN[-1 if began < 0 else 1].warning) or moved < STRONG:
        return ""
    decays = [
        one.decay > (one.change / 2 if one.decoupled else one.gradient)
        for one in samples_of(reading)[-1].updates
        if one.matrix and one.weight > 0
    ]
    return "weight-decay" if decays and 2 * sum(decays) > len(decays) else "learning-rate-high"


def _thrown(reading: Reading, rule: Rule, decades: float, cause: str, first: int) -> Finding:
    """Return the finding that steps have made the first modules' gradients so small, or large."""
    course = course_of(reading)
    last = 0 if course is None else int(course.step[-1])
    decay = cause == "weight-decay"
    return Finding(
        kind="vanishing" if decades < 0 else "exploding",
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=(Site("optimizer"), Site("module", reading.modules[first].name, first)),
        says="the gradient that reaches the first module is {reach} of the one at the last, which "
        "it was not at the first step: a step has changed weights by {moved:.2g} of their size"
        + (", most of it by weight decay" if decay else ""),
        advises="lower the weight decay; 0.0005 is usual with SGD, 0.01 with AdamW."
        if decay
        else SLOWER,
        facts={"reach": f"10^{decades:.1f}" if isfinite(decades) else "0"},
        evidence={
            "decades": decades,
            "moved": moved_most(reading, last + 1),
            "worst": float(first),
        },
    )


def _cause(modules: Sequence[Module], decades: float) -> str:
    """Return activation-derivative if the activations' derivatives account for half of it."""
    shrinks = sum(
        log10(max(0.25 if one.kind in SIGMOIDS else 1 - one.activation_rms**2, LEAST))
        for one in modules
        if one.kind in SIGMOIDS or (one.kind in TANHS and one.activation_rms < inf)
    )
    return "activation-derivative" if shrinks < 0 and shrinks <= decades / 2 else "weight-scale-all"


def _steepest(chain: Sequence[tuple[int, float]], kind: str) -> int:
    """Return the module in passing which δ changes most."""
    steps = [
        (place, log10(b / a) if a and b else inf if b else 0.0)
        for (_, a), (place, b) in pairwise(chain)
    ]
    return max(steps, key=lambda step: step[1] if kind == "vanishing" else -step[1])[0]


def _advice(kind: str, sigmoids: bool, *, cut: bool) -> str:
    if cut:
        return (
            "look at {worst_module} and what stands before it: weights that are 0 (the first step "
            "changes them), activations that are flat for every input, {words.cuts}."
        )
    if kind == "vanishing":
        return (
            "use an initialization that keeps variances for your activation ({he:scheme} for "
            "ReLU, {lecun:scheme} for tanh), normalization or skip connections"
            + "; each sigmoid shrinks the gradient at least fourfold" * sigmoids
            + "."
        )
    return (
        "clip the gradients' joint norm, and scale the weights down: each module should pass about "
        "1×; skip connections add up unless each branch is scaled by 1/√depth."
    )


def _dead(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    dead = [n for n, one in enumerate(reading.modules) if one.activation_rms == 0 and not one.begun]
    if not dead:
        return
    names = [reading.modules[place].name for place in dead]
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="dead-units",
        sites=tuple(Site("module", name, place) for name, place in zip(names, dead, strict=True)),
        says="every output of module {names} is 0",
        advises="look at what it attends to: a mask that hides every step leaves outputs of 0."
        if all("Attention" in reading.modules[place].kind for place in dead)
        else "draw the weights before it again, lower the learning rate, or use a leaky "
        "activation.",
        facts={"names": ", ".join(names[:3]) + (" and others" if len(names) > 3 else "")},
        evidence={"count": float(len(dead))},
    )


NONFINITE = Rule(
    name="modules-nonfinite",
    kind="nonfinite",
    warning=1,
    critical=1,
    measured="the first NaN or infinity that a monitor saw",
    reason="One is enough: the next step spreads it to every parameter.",
    source="all tools; naming the first place: pytorch#86362, #160016",
    find=_nonfinite,
)
DEAD = Rule(
    name="modules-dead",
    kind="dead",
    warning=1,
    critical=1,
    measured="modules whose output is 0 for every input",
    reason="Nothing passes through them, forward or back.",
    source="all tools of this kind",
    find=_dead,
)
DRIFT = replace(
    BY_SIGN[-1],
    name="modules-drift",
    measured="log10 of δ at the first module with weights over that at the last",
    find=_drift,
)
RULES = (NONFINITE, DRIFT, DEAD)

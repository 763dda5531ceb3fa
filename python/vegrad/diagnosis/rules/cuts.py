"""Rules on ways that end: parameters to which no gradient comes back, whatever the loss is."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf

from vegrad.diagnosis.rules.culprits import CUTS, site_of, taken_by
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import INPUT, MAPS, Operation, Reading
from vegrad.flow.site import Site

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "floordiv", "heaviside"}
DETACHES = {"detach", "get"}
STAYS = (
    "leave out {words.cuts} between them and the loss, or {words.freezing} if they are meant to "
    "stay as they are."
)


def _unregistered(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    names = reading.unregistered
    if names:
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause="unregistered",
            sites=tuple(Site("parameter", name) for name in names),
            says="the model uses and trains {sites}, which its parameters() do not have: an "
            "optimizer that is given those never changes them",
            advises="{words.keeping}.",
            evidence={"count": len(names)},
        )


def _detached(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find what cuts parameters off from a loss that other parameters learn from."""
    everything = reading.everything
    blocked = {one.name for one in reading.parameters.values() if one.trained and not one.reached}
    by_cut: dict[int, list[str]] = {}
    for place, one in enumerate(reading.operations):
        ours = [name for name in one.parameters if name in blocked]
        cut = _first_cut(reading, place) if ours else None
        if ours and cut is None:
            cut = _begun_anew(reading, place)
        if cut is not None:
            by_cut.setdefault(cut, []).extend(ours)
    whole = all(not one.reached for one in reading.parameters.values() if one.trained)
    off: dict[int, list[str]] = {}
    for cut, several in by_cut.items():
        one = everything[cut]
        feeds = _feeds_trained(reading, cut) or _joins(reading, cut) or _leaves(reading, cut)
        if not whole and one.edge in CUTS and not feeds:
            continue  # a target, as that of a teacher
        if _runs_without(one):
            off[cut] = several
        else:
            yield _cut_off(reading, rule, cut, several)
    if off:
        yield _switched_off(reading, rule, off)


def _cut_off(reading: Reading, rule: Rule, cut: int, several: Sequence[str]) -> Finding:
    """Return the finding that one operation cuts parameters off."""
    one = reading.everything[cut]
    names = list(dict.fromkeys(several))
    stops, advises = "{operation} ends the graph there", STAYS
    if one.edge not in CUTS:
        stops = "what {operation} takes was made outside the graph"
    if one.edge == "no-derivative":
        stops = "{operation} has no derivative"
        advises = "use something that has a derivative in its place: a softmax for an argmax, "
        advises += "a sigmoid for a comparison, or a straight-through estimator."
    cause = one.edge if one.edge in CUTS else "detached"
    return _stopped(reading, rule, cut, names, cause, stops, advises)


def _stopped(
    reading: Reading,
    rule: Rule,
    place: int,
    names: Sequence[str],
    cause: str,
    stops: str,
    advises: str,
) -> Finding:
    """Return the finding that the gradient of these parameters stops at an operation."""
    one, between = reading.everything[place], site_of(reading, place)
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause=cause,
        sites=(*(Site("parameter", name) for name in names), between),
        says=f"no gradient comes back to {{parameters}}: {stops}",
        advises=advises,
        facts={
            "operation": f"{_plainly(one)} in {between.name or between.kind}",
            "parameters": tuple(Site("parameter", name) for name in names),
        },
        evidence={"count": len(names)},
    )


def _switched_off(reading: Reading, rule: Rule, off: Mapping[int, Sequence[str]]) -> Finding:
    """Return the finding that parameters ran where gradients are switched off."""
    names = tuple(dict.fromkeys(name for several in off.values() for name in several))
    between = dict.fromkeys(site_of(reading, cut) for cut in off)
    parameters = tuple(Site("parameter", name) for name in names)
    themselves = all(reading.everything[cut].parameters for cut in off)
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="detached",
        sites=tuple(dict.fromkeys((*parameters, *between))),
        says="no gradient comes back to {parameters}: "
        + ("they ran" if themselves else "what they make is used")
        + " under {words.off}, where no graph is made",
        advises=STAYS,
        facts={"parameters": parameters},
        evidence={"count": len(names)},
    )


def _runs_without(one: Operation) -> bool:
    """Return True of an operation that ends the graph though it is made to go on with it."""
    return one.edge == "detached" and one.kind not in DETACHES


def _plainly(one: Operation) -> str:
    return "a detach" if one.edge == "detached" and one.kind in DETACHES else one.kind


def _first_cut(reading: Reading, start: int) -> int | None:
    """Return the first operation above one, or itself, at which the graph ends."""
    above, everything = taken_by(reading), reading.everything
    ahead, seen, found = [start], set[int](), list[int]()
    while ahead:
        place = ahead.pop()
        if place in seen:
            continue
        seen.add(place)
        if everything[place].edge in CUTS:
            found.append(place)
        else:
            ahead += above.get(place, [])
    found = [place for place in found if place < len(reading.operations)] or found
    return min(found, key=lambda n: (everything[n].edge != "detached", n), default=None)


def _begun_anew(reading: Reading, place: int) -> int | None:
    """Return a map after one that takes nothing of what was seen, as if from a list of numbers."""
    later = enumerate(reading.operations[place + 1 :], place + 1)
    return next((n for n, one in later if one.kind in MAPS and not one.below), None)


def _feeds_trained(reading: Reading, cut: int) -> bool:
    """Return True if what comes after a cut goes through a map that is trained."""
    above, everything = taken_by(reading), reading.everything
    ahead, seen = [cut], set[int]()
    while ahead:
        place = ahead.pop()
        for n in above.get(place, []):
            names = (reading.parameters.get(name) for name in everything[n].parameters)
            if any(one is not None and one.trained and one.reached for one in names):
                return True
            if n not in seen:
                seen.add(n)
                ahead.append(n)
    return False


def _joins(reading: Reading, cut: int) -> bool:
    """Return True if what is cut off goes, with what is not, into an output that has a target."""
    given = [one.place for one in reading.compared if one.given and one.target_place is None]
    above, ahead, seen = taken_by(reading), [cut], set[int]()
    while ahead:
        for n in above.get(ahead.pop(), []):
            if n > max(given, default=-1):
                continue
            if -inf < reading.everything[n].delta_log2 < inf:
                return True
            if n not in seen:
                seen.add(n)
                ahead.append(n)
    return False


def _leaves(reading: Reading, cut: int) -> bool:
    """Return True if all that is made below a detach goes into it, and on to where nobody sees."""
    above, one = taken_by(reading), reading.everything[cut]
    alone = all(above.get(n) == [cut] for n in one.below if n != INPUT)
    return one.kind in DETACHES and not above.get(cut) and alone and bool(one.below)


def _steps(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find roundings and the like, whose derivative is 0, on the only way to parameters.

    So does what overflows to infinity, as the division by it gives 0.
    """
    for place, one in enumerate(reading.everything):
        beyond = one.lost and one.edge in ("overflow", "dtype-range") and one.delta_log2 == -inf
        step = one.kind in STEPS and -inf < one.delta_log2 < inf
        names = _below_without_gradient(reading, place) if step or beyond else ()
        if not names:
            continue
        stops, advises = "the derivative of {operation} is 0", "use a straight-through estimator, "
        advises += "or a smooth function in its place."
        if beyond:
            stops = "what {operation} makes of finite values is beyond the largest of its dtype"
            advises = "scale down what comes into {operation}, or use a wider dtype for it."
        cause = one.edge if beyond else "no-derivative"
        yield _stopped(reading, rule, place, names, cause, stops, advises)


def _below_without_gradient(reading: Reading, place: int) -> list[str]:
    """Return the parameters below an operation if none of what they are in gets a gradient."""
    everything, ahead, seen, found = reading.everything, [place], set[int](), list[str]()
    while ahead:
        for n in everything[ahead.pop()].below:
            if n == INPUT or n in seen:
                continue
            seen.add(n)
            if everything[n].delta_log2 > -inf:
                return []
            found += [p for p in everything[n].parameters if _is_trained(reading, p)]
            ahead.append(n)
    return list(dict.fromkeys(reversed(found)))


def _is_trained(reading: Reading, name: str) -> bool:
    one = reading.parameters.get(name)
    return one is not None and one.trained


UNREGISTERED = Rule(
    name="unregistered",
    kind="idle",
    warning=1,
    critical=1,
    measured="parameters in the graph that the model's parameters() do not have",
    reason="No optimizer is given them, so that they stay as they are.",
    source="pytorch.org, nn.ModuleList",
    find=_unregistered,
)
DETACHED = Rule(
    name="detached",
    kind="vanishing",
    warning=1,
    critical=1,
    measured="parameters that the graph does not lead back to, and the operation at which it ends",
    reason="They stay as they are, and what lies above learns from features that never improve.",
    source="speechbrain#1396",
    find=_detached,
)
STEP_FUNCTIONS = Rule(
    name="step-functions",
    kind="vanishing",
    warning=1,
    critical=1,
    measured="δ of exactly 0 below a rounding or a sign, on the only way to parameters",
    reason="Such functions are flat wherever they have a derivative.",
    source="Bengio et al. 2013, arXiv:1308.3432 (straight-through estimator)",
    find=_steps,
)
RULES = (UNREGISTERED, DETACHED, STEP_FUNCTIONS)

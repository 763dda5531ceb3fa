"""Rules on operations that let nothing pass, though every number is finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, isnan, nan

from vegrad.diagnosis.rules.culprits import CUTS, measured_below, site_of, taken_by
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import INPUT, MAPS, Operation, Parameter, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE

STEPS = {"round", "floor", "ceil", "trunc", "fix", "sign", "sgn", "floordiv", "heaviside"}


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
        cut = (_first_cut(reading, place) or _begun_anew(reading, place)) if ours else None
        if cut is not None:
            by_cut.setdefault(cut, []).extend(ours)
    whole = all(not one.reached for one in reading.parameters.values() if one.trained)
    for cut, several in by_cut.items():
        if not whole and everything[cut].edge in CUTS and not _feeds_trained(reading, cut):
            continue  # a target, as that of a teacher
        names = list(dict.fromkeys(several))
        one = everything[cut]
        between = site_of(reading, cut)
        stops = "{operation} ends the graph there"
        if one.edge not in CUTS:
            stops = "what {operation} takes was made outside the graph"
        advises = "leave out {words.cuts} between them and the loss, or {words.freezing} if they "
        advises += "are meant to stay as they are."
        if one.edge == "no-derivative":
            stops = "{operation} has no derivative"
            advises = "use something that has a derivative in its place: a softmax for an argmax, "
            advises += "a sigmoid for a comparison, or a straight-through estimator."
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause=one.edge if one.edge in CUTS else "detached",
            sites=(*(Site("parameter", name) for name in names), between),
            says=f"no gradient comes back to {{parameters}}: {stops}",
            advises=advises,
            facts={
                "operation": f"{_plainly(one)} in {between.name or between.kind}",
                "parameters": tuple(Site("parameter", name) for name in names),
            },
            evidence={"count": len(names)},
        )


def _plainly(one: Operation) -> str:
    return "a detach" if one.edge == "detached" and one.kind in ("detach", "get") else one.kind


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
        between = site_of(reading, place)
        stops, advises = "the derivative of {operation} is 0", "use a straight-through estimator, "
        advises += "or a smooth function in its place."
        if beyond:
            stops = "what {operation} makes of finite values is beyond the largest of its dtype"
            advises = "scale down what comes into {operation}, or use a wider dtype for it."
        yield Finding(
            kind=rule.kind,
            severity="critical",
            rule=rule.name,
            cause=one.edge if beyond else "no-derivative",
            sites=(*(Site("parameter", name) for name in names), between),
            says=f"no gradient comes back to {{parameters}}: {stops}",
            advises=advises,
            facts={
                "operation": f"{one.kind} in {between.name or between.kind}",
                "parameters": tuple(Site("parameter", name) for name in names),
            },
            evidence={"count": len(names)},
        )


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


def _alignment(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that leaves out every row, as none has an alignment."""
    for place, one in enumerate(reading.everything):
        if one.edge == "infeasible-alignment" and not one.lost:
            yield Finding(
                kind=rule.kind,
                severity="critical",
                rule=rule.name,
                cause="infeasible-alignment",
                sites=(site_of(reading, place),),
                says="every label is longer than its frames (one that repeats needs one more "
                "between), so that {operation} leaves out every row",
                advises="give more frames (less stride), or shorten the labels.",
                facts={"operation": one.kind},
                evidence={"rows": 1.0},
            )


# One element ------------------------------------------------------------------------------------


def _of_one(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    operations = reading.operations
    several = [n for n, one in enumerate(operations) if one.edge == rule.name and one.below]
    if not several:
        return
    sites = tuple(dict.fromkeys(site_of(reading, place) for place in several))
    modules = tuple(dict.fromkeys(Site("module", reading.operations[n].name) for n in several))
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="norm-of-one",
        sites=tuple(dict.fromkeys((*modules, *sites))),
        says="{operation} in {site} normalizes over a single element, which it subtracts from or "
        "divides by itself: what it makes does not depend on its input, and no gradient passes",
        advises="normalize over more than one element (fewer groups, another axis, a larger "
        "input), or leave {site} out.",
        facts={"operation": reading.operations[several[0]].kind},
        evidence={"elements": 1.0},
    )


# Two zeros --------------------------------------------------------------------------------------


def _gates(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find parameters that are exactly 0 one above the other, and get no gradient from each other.

    The upper one's inputs are all 0, and so is δ at the lower one. If all is 0, there is no gate to
    speak of.
    """
    known, everything = reading.parameters, reading.everything
    zero = {name for name, one in known.items() if one.trained and one.rms_log2 == -inf}
    if len(zero) < 2 or all(one.name in zero for one in known.values() if one.is_matrix):
        return
    uses = dict[str, list[int]]()
    for place, one in enumerate(everything):
        if not isnan(one.delta_log2):
            for name in zero.intersection(one.parameters):
                uses.setdefault(name, []).append(place)
    lower = {n for n, at in uses.items() if all(everything[m].delta_log2 == -inf for m in at)}
    upper = {
        name
        for name, at in uses.items()
        if all(_takes_zeros(reading, n) and -inf < everything[n].delta_log2 < inf for n in at)
    }
    for name in sorted(upper, key=list(known).index):
        below = _parameters_below(reading, uses[name]) & lower
        below = {one for one in below if _is_factor(known[one], everything[uses[one][0]])}
        if below and _is_factor(known[name], everything[uses[name][0]]):
            yield _closed((*sorted(below, key=list(known).index), name), rule)


def _takes_zeros(reading: Reading, place: int) -> bool:
    """Return True if all that an operation takes beside its parameters is exactly 0."""
    everything, ahead, sizes = reading.everything, [place], list[float]()
    while ahead:
        for n in everything[ahead.pop()].below:
            size = nan if n == INPUT else everything[n].rms_log2
            if n == INPUT or not isnan(size):
                sizes.append(size)
            elif not everything[n].parameters:  # no view of one
                ahead.append(n)
    return bool(sizes) and all(size == -inf for size in sizes)


def _parameters_below(reading: Reading, places: Sequence[int]) -> set[str]:
    everything, ahead, seen = reading.everything, list(places), set[int]()
    while ahead:
        below = {n for n in everything[ahead.pop()].below if n != INPUT} - seen
        seen |= below
        ahead += below
    return {name for n in seen for name in everything[n].parameters}


def _is_factor(one: Parameter, operation: Operation) -> bool:
    """Return True of what an input is multiplied with, and not of what is added."""
    return one.is_matrix or operation.kind in ("mul", "rmul", "imul") or one.role == "norm"


def _closed(names: Sequence[str], rule: Rule) -> Finding:
    return Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="closed-gates",
        sites=tuple(Site("parameter", name) for name in names),
        says="{sites} are factors of one product and all exactly 0: the gradient of each is a "
        "multiple of the other, which is 0, so that none of them ever moves",
        advises="draw {first} from the default initialization, and let only {last} begin at 0.",
        facts={"first": Site("parameter", names[0]), "last": Site("parameter", names[-1])},
        evidence={"count": len(names)},
    )


# Rows of zeros ----------------------------------------------------------------------------------


def _zero_rows(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find rows of 0 that a normalization divides by their size, which is next to nothing.

    Those that are parameters have a rule of their own.
    """
    everything, known = reading.everything, reading.parameters.values()
    if any(one.rms_log2 == -inf and one.is_matrix and one.role in ("", "table") for one in known):
        return
    for place, one in enumerate(everything):
        if one.edge != "zero-vectors" or not isfinite(one.delta_log2):
            continue
        # Embeddings leave the gradient of their padding out.
        inputs = [everything[n] for n in measured_below(reading, place)]
        below = [one.delta_log2 for one in inputs if not one.kind.startswith("embedding")]
        grows = max((size for size in below if isfinite(size)), default=-inf) - one.delta_log2
        if isnan(grows) or grows / DECADE < rule.warning:
            continue
        yield Finding(
            kind=rule.kind,
            severity=rule.severity(grows / DECADE),
            rule=rule.name,
            cause="zero-vectors",
            sites=(site_of(reading, place),),
            says="rows that are exactly 0 go into {operation} in {site}, which divides by their "
            "size: its input gets {gradient:times} the gradient that its output gets",
            advises="leave such rows out, or use an ε that is not tiny beside usual rows "
            "(x / (x.square().sum(-1, keepdim=True) + 1e-4).sqrt()).",
            facts={"operation": one.kind},
            evidence={"gradient": 2.0**grows},
        )


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
NORM_OF_ONE = Rule(
    name="norm-of-one",
    kind="dead",
    warning=1,
    critical=1,
    measured="elements that a normalization has to normalize over",
    reason="One element less its own mean is 0, whatever it is.",
    source="pytorch#19250",
    find=_of_one,
)
CLOSED_GATES = Rule(
    name="closed-gates",
    kind="dead",
    warning=1,
    critical=1,
    measured="two factors of a product that are exactly 0, as are their gradients",
    reason="Each one's gradient is a multiple of the other.",
    source="LAVT-RIS#25",
    find=_gates,
)
ZERO_ROWS = Rule(
    name="zero-rows",
    kind="exploding",
    warning=5,
    critical=8,
    measured="log10 of δ below a normalization over that above it, where rows of its input are 0",
    reason="The gradient of a row of 0 is divided by ε: 1e12 in normalize().",
    source="pytorch#184575",
    find=_zero_rows,
)
ALIGNMENT = Rule(
    name="alignment",
    kind="dead",
    warning=1,
    critical=1,
    measured="lengths of labels, with what repeats counted twice, beside those of their frames",
    reason="A row without an alignment has a loss of infinity, or none.",
    source="Graves et al. 2006 (connectionist temporal classification)",
    find=_alignment,
)
RULES = (UNREGISTERED, ALIGNMENT, DETACHED, STEP_FUNCTIONS, NORM_OF_ONE, CLOSED_GATES, ZERO_ROWS)

"""Rules on operations that let nothing pass, though every number is finite."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, isnan, nan

from vegrad.diagnosis.rules.culprits import (
    is_objective,
    measured_below,
    site_of,
)
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.finding import Finding
from vegrad.flow.reading import INPUT, Operation, Parameter, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE


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


def _normalizer(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a loss that is divided by next to nothing."""
    for place, one in enumerate(reading.everything):
        tiny = one.edge == "loss-normalizer" and not one.lost
        if tiny and (place >= len(reading.operations) or is_objective(reading, place)):
            yield Finding(
                kind=rule.kind,
                severity="critical",
                rule=rule.name,
                cause="loss-normalizer",
                sites=(site_of(reading, place),),
                says="{operation} in {site} divides by a number that is next to 0, which makes the "
                "loss {loss:.3g}",
                advises="clamp what it divides by: .clamp(min=1) for a count.",
                facts={"operation": one.kind},
                evidence={"loss": nan if reading.loss is None else reading.loss},
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


# No key -----------------------------------------------------------------------------------------


def _masked(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find attention whose mask hides every key from every query, which then makes 0."""
    operations = reading.operations
    several = [
        n
        for n, one in enumerate(operations)
        if one.edge == "masked-row" and not one.lost and -inf < one.delta_log2 < inf
    ]
    if not several:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="masked-row",
        sites=tuple(dict.fromkeys(_module_of(reading, place) for place in several)),
        says="the mask of attention in {sites} hides every key from every query: what it makes "
        "does not depend on its input, and its queries, keys and values get no gradient",
        advises="leave keys open that are to be seen. The mask may be the wrong way round: in some "
        "functions True leaves a key out, in others it lets it in.",
        evidence={"count": float(len(several))},
    )


def _module_of(reading: Reading, place: int) -> Site:
    one = reading.operations[place]
    return Site("module", one.name) if one.name else Site("model", "the model")


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
    if not lower:
        return
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
MASKED = Rule(
    name="attention-masked",
    kind="dead",
    warning=1,
    critical=1,
    measured="share of the rows of attention from which a mask hides all keys",
    reason="A row that is padding sees nothing by right; not all of them are padding.",
    source="pytorch#103963; pytorch#131060 makes such rows 0 where they were NaN",
    find=_masked,
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
NORMALIZER = Rule(
    name="loss-normalizer",
    kind="exploding",
    warning=1e4,
    critical=1e4,
    measured="what a constant number that is next to 0 divides in the loss, over that number",
    reason="Each gradient grows by as much: a step of any rate overshoots.",
    source="OpenRLHF#583, pytorch#75181 (counts of 0, and an ε added to them)",
    find=_normalizer,
)
RULES = (ALIGNMENT, NORMALIZER, NORM_OF_ONE, MASKED, CLOSED_GATES, ZERO_ROWS)

"""Rules on what has become alike: units that are copies of each other, and rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isnan, log10, sqrt

from vegrad.diagnosis.rules.outputs import above
from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Redraw
from vegrad.flow.finding import Finding
from vegrad.flow.reading import INPUT, MAPS, Operation, Reading
from vegrad.flow.site import Site
from vegrad.flow.ways import heads

MIXES = {"matmul", "mm", "bmm", "spmm", "index_add", "scatter_add", "scatter_reduce", "addmm"}
ROUNDS = 4  # of averaging, fewer of which are a pooling
LEAST = 1e-4  # of what varies, below which float32 measures nothing


def _copies(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find units that get the same and pass on the same, so that they stay copies."""
    known = reading.parameters
    weights = [known[name] for name in reading.maps if name in known and known[name].trained]
    nothing = all(one.rms_log2 == -inf for one in weights)
    found = list[str]()
    for one in reading.operations:
        weight = known.get(one.parameters[0]) if one.kind in MAPS and one.parameters else None
        if weight is None or not weight.copies[1] or not weight.trained:
            continue
        for below in one.below:
            _, maps = above(reading, below, tuple(MAPS))
            for n in sorted(maps):
                under = known.get(next(iter(reading.operations[n].parameters), ""))
                if under is None or not under.copies[0] or not under.trained:
                    continue
                if nothing or max(under.rms_log2, weight.rms_log2) > -inf:  # else a closed gate
                    found += [under.name, weight.name]
    names = tuple(dict.fromkeys([*found, *_of_cells(reading)]))
    if len(names) < 2 + nothing:
        return
    yield Finding(
        kind=rule.kind,
        severity="critical",
        rule=rule.name,
        cause="symmetry",
        sites=tuple(Site("parameter", name) for name in names),
        says="all units between {sites} are copies of each other: the same weights come in and go "
        "out, so that they get the same gradient and stay copies",
        advises="{edit}: random numbers make units different.",
        evidence={"weights": float(len(names))},
        edit=Redraw(names),
    )


def _of_cells(reading: Reading) -> Iterator[str]:
    """Yield the matrices of recurrent layers whose units are copies, and that which reads them."""
    known = reading.parameters
    for over in reading.operations:
        reads = known.get(over.parameters[0]) if over.parameters else None
        if reads is None or not reads.copies[1]:
            continue
        for one in (reading.operations[n] for n in over.below if n != INPUT):
            under = [known[name] for name in one.parameters if name in known]
            if under and under[0].role == "recurrent" and under[0].copies[0]:
                yield from (each.name for each in under if len(each.shape) > 1)
                yield reads.name


def _varies(one: Operation) -> float:
    """Return log10 of the share of an output that differs between rows; nan if that is unknown."""
    if isnan(one.alike):
        return one.alike
    return log10(max(sqrt(max(1 - one.alike**2, 0.0)), LEAST))


def _collapse(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find rows that have been averaged with each other until they are the same."""
    if any(one.cause == "symmetry" for one in earlier):
        return
    last = heads(reading)
    ends = [
        one
        for one in reading.operations
        if one.kind in MAPS and one.parameters[:1] and one.parameters[0] in last
    ]
    for end in ends:
        below = next((n for n in end.below if n != INPUT), INPUT)
        if below == INPUT:
            continue
        total, mixed, depth = _lost(reading, below)
        if total > rule.warning or mixed > total / 2 or depth < ROUNDS:
            continue
        yield Finding(
            kind=rule.kind,
            severity=rule.severity(total),
            rule=rule.name,
            cause="collapse",
            sites=(Site("module", reading.operations[below].name), Site("module", end.name)),
            says="after {depth:.0f} rounds of averaging over each other all rows are alike: what "
            "differs between them is {share:.2g} of their size",
            advises="use fewer rounds (two or three), or keep each row's own by skip connections.",
            facts={"share": 10.0**total},
            evidence={"decades": total, "depth": float(depth)},
        )
        return


def _lost(reading: Reading, place: int) -> tuple[float, float, int]:
    """Return decades of variation at a place, those lost in mixing rows, and how many mixings."""
    everything = reading.operations
    here = _varies(everything[place])
    mixed, count, now = 0.0, 0, place
    while now != INPUT:
        one = everything[now]
        below = [n for n in one.below if n != INPUT]
        if not below:
            break
        under = max(below)
        if one.kind in MIXES and not one.parameters:
            step = _varies(one) - _known(reading, under)
            if not isnan(step):
                mixed, count = mixed + min(step, 0.0), count + 1
        now = under
    return (0.0 if isnan(here) else here), mixed, count


def _known(reading: Reading, place: int) -> float:
    """Return the variation at a place, or at the next one below where it was measured."""
    while place != INPUT:
        found = _varies(reading.operations[place])
        if not isnan(found):
            return found
        place = max(reading.operations[place].below, default=INPUT)
    return 0.0


SYMMETRY = Rule(
    name="symmetry",
    kind="collapsed",
    warning=1,
    critical=1,
    measured="rows of a weight, and columns of the next one, that are equal to the bit",
    reason="Equal units with equal gradients take equal steps.",
    source="Goodfellow et al. 2016, Deep Learning, 8.4",
    find=_copies,
)
COLLAPSE = Rule(
    name="collapse",
    kind="collapsed",
    warning=-1.8,
    critical=-2,
    measured="log10 of the share of the head's input that differs between rows",
    reason="Averaging over neighbours makes nodes alike, exponentially in its rounds.",
    source="Li et al. 2018, arXiv:1801.07606; Oono & Suzuki 2020, arXiv:1905.10947",
    find=_collapse,
)
RULES = (SYMMETRY, COLLAPSE)

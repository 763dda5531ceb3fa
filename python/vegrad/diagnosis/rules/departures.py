"""Rules on parameters that are far from what an initialization makes them, proven by a what-if.

A parameter's size is compared with what the common initializations give at that place, and with
others of its kind in the same network: whoever agrees with one of these is no suspect, so that a
model with an initialization of its own is not judged by somebody else's. A suspect is found guilty
only if gradients change by decades once it is as large as its like: the network is run forward and
back like that. What begins closed by design (weights that are 0 at a branch's end, small heads and
layer scales) is no suspect.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, isnan

from vegrad.diagnosis.rules.rule import Rule
from vegrad.diagnosis.rules.suspect import Suspect
from vegrad.diagnosis.rules.suspects import ROW_NORMS, Suspects
from vegrad.flow.edits import Edit, Scale, parts
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Effect, Reading
from vegrad.flow.site import Site
from vegrad.flow.ways import entries
from vegrad.flow.wording import DECADE, exp10

CHANGED = 1.5  # decades by which some matrix's gradient must change in the what-if
MOST = 8  # suspects that are looked at


def _single(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find parameters that are far from their like, and change gradients by that."""
    known = {name for finding in earlier for name in _blamed(finding)}
    suspects = [one for one in Suspects(reading).single() if known.isdisjoint(one.names)]
    yield from _guilty(suspects, reading, rule)


def _whole(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find that all weights are far from any usual size."""
    for finding in _guilty(Suspects(reading).whole(), reading, rule):
        small = finding.cause == "weight-scale-all" and finding.evidence["apart"] < 1
        if not small or _is_no_design(finding.edit, reading):
            yield finding


def _inputs(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find inputs that are far too large."""
    yield from _guilty(Suspects(reading).inputs(), reading, rule)


def _is_no_design(edit: Edit | None, reading: Reading) -> bool:
    """Return True if weights that are all small are none that somebody has chosen.

    A network that draws its weights by itself says what was chosen. What branches add to a stream
    that is normalized is measured beside rows of size 1. In all others small weights do no harm
    where a sum or a direct way to the output passes gradients by them.
    """
    normalized = any(one.kind in ROW_NORMS for one in reading.operations)
    return reading.draws_itself or normalized or (edit is not None and _reaches_none(edit, reading))


def _reaches_none(edit: Edit, reading: Reading) -> bool:
    """Return True if no weights that the inputs come to first get what they should."""
    what_if = reading.what_if
    now = None if what_if is None else what_if.effect(None)
    then = None if what_if is None else what_if.effect(edit)
    if now is None or then is None:
        return False
    first = [one.parameters[0] for one in entries(reading)]
    first += [name for name, one in reading.parameters.items() if one.role == "table"]
    gained = [
        then.gradients_log2[name] - now.gradients_log2[name]
        for name in first
        if isfinite(then.gradients_log2.get(name, -inf))
    ]
    return bool(gained) and min(gained) >= CHANGED * DECADE


def _blamed(finding: Finding) -> Iterator[str]:
    """Yield the parameters that a finding blames by themselves."""
    single = finding.is_departure or finding.cause in ("recurrent-weights", "gate-bias")
    for part in parts(finding.edit) if finding.edit is not None and single else ():
        yield from getattr(part, "parameters", ())


def _guilty(suspects: Sequence[Suspect], reading: Reading, rule: Rule) -> Iterator[Finding]:
    """Put right what each suspect is about, and keep those that gradients depend on."""
    what_if = reading.what_if
    if not suspects or what_if is None:
        return
    if any(one.nonfinite for one in reading.parameters.values()):
        return
    now = what_if.effect(None)
    if now is None:
        return
    guilty = []
    for suspect in suspects[:MOST]:
        then = what_if.effect(suspect.edit)
        starves = suspect.off == -inf or suspect.cause == "dead-units"
        change = None if then is None else Change.between(now, then, reading, only_gains=starves)
        if change is not None and change.matters:
            guilty.append((suspect, change))
    for suspect, change in sorted(guilty, key=lambda one: -one[1].weight):
        yield _finding(suspect, change, reading, rule)


@dataclass(frozen=True)
class Change:
    """The difference that an edit makes to loss and gradients."""

    decades: float
    """By which the gradient of `at` is larger after the edit; inf if it was 0."""
    at: str
    before: float
    after: float
    """The loss."""

    @classmethod
    def between(
        cls, now: Effect, then: Effect, reading: Reading, only_gains: bool = False
    ) -> Change:
        """Compare gradients of matrices and of normalizations, where they are finite.

        Args:
            now: before the edit.
            then: after it.
            reading: of the network.
            only_gains: look for gradients that the edit makes larger, or finite. What is 0, or
                moves units out of their range, does harm only to those that it takes something
                from; where it has a large one itself, the first step moves it.
        """
        worst, at = 0.0, ""
        for name, after in then.gradients_log2.items():
            one = reading.parameters.get(name)
            before = now.gradients_log2.get(name, -inf)
            counts = one is not None and (one.is_matrix or one.role == "norm")
            if not counts or isnan(after) or after in (inf, -inf):
                continue
            away = inf if before == -inf else (after - before) / DECADE
            away = -inf if isnan(before) or before == inf else away
            if only_gains and -inf < away < 0:
                continue
            if abs(away) > abs(worst):
                worst, at = away, name
        return cls(worst, at, now.loss, then.loss)

    @property
    def matters(self) -> bool:
        """True if the edit makes a difference worth a finding, and leaves a loss."""
        return isfinite(self.after) and abs(self.decades) >= CHANGED

    @property
    def weight(self) -> float:
        """How much it matters, beside others."""
        return min(abs(self.decades), 1e3) + (1e3 if not isfinite(self.before) else 0.0)


# What is said -----------------------------------------------------------------------------------


def _finding(suspect: Suspect, change: Change, reading: Reading, rule: Rule) -> Finding:
    """Say what is off and what it does to the gradient of which matrix."""
    data = suspect.cause == "input-scale"
    if not isfinite(change.before):
        says = "{what}; with that put right the loss is finite"
    elif change.decades == inf:
        says = "{what}, and {at} gets no gradient at all for that"
    elif change.decades == -inf:
        says = "{what}; with that put right the gradient of {at} is finite"
    else:
        says = "{what}; with that put right the gradient of {at} would be {change:times} what it is"
    evidence = {
        "apart": _apart(suspect),
        "decades": -change.decades,
        "loss": change.before,
        "loss_after": change.after,
    }
    if isinstance(suspect.edit, Scale):
        evidence["factor"] = suspect.edit.factor
    first = reading.parameters.get(suspect.names[0])
    off = tuple(site_of(name, reading, suspect.rows) for name in suspect.names)
    return Finding(
        kind=_kind(suspect, change),
        severity=rule.severity(min(abs(change.decades), 99.0)),
        rule=rule.name,
        cause=suspect.cause,
        sites=tuple(
            Site("data", name) if data else site
            for name, site in zip(suspect.names, off, strict=True)
        )
        + _modules(suspect.names, reading),
        says=says.replace("{what}", _what(suspect, off)),
        advises="{edit}.",
        facts={
            "off": off,
            "at": Site("parameter", change.at),
            "change": exp10(min(max(change.decades, -300.0), 300.0)),
            "mean": 0.0 if first is None else first.mean,
            "rms": next((one.rms for one in reading.inputs if one.name in suspect.names), 0.0),
        },
        evidence=evidence,
        blame="weights",
        edit=suspect.edit,
    )


def _apart(suspect: Suspect) -> float:
    """Return how large it is beside what it should be: what its factor makes up for."""
    first = parts(suspect.edit)[0]
    if isinstance(first, Scale):
        return 1.0 / first.factor
    return exp10(suspect.off) if isfinite(suspect.off) else 0.0


def _kind(suspect: Suspect, change: Change) -> str:
    """Return what is seen of the gradient, whatever the size of what it comes from.

    Large weights saturate units, and small ones are made up for by a normalization.
    """
    if not isfinite(change.before) or change.decades == -inf:
        return "nonfinite"
    if suspect.cause == "dead-units":
        return "dead" if change.decades == inf else "saturated"
    return "vanishing" if change.decades > 0 else "exploding"


def site_of(name: str, reading: Reading, rows: tuple[int, int] | None = None) -> Site:
    """Return the site of a parameter: of a chain's layer, if it is its weights."""
    for place, layer in enumerate(reading.chain.layers if reading.chain is not None else ()):
        if name == layer.weight:
            return Site("weights", layer.name, place)
    return Site("parameter", name, rows=rows)


def _modules(names: Sequence[str], reading: Reading) -> tuple[Site, ...]:
    """Return the rows of a report that parameters belong to, each module once."""
    own = {name.rpartition(".")[0] for name in names}
    rows = {one.name: place for place, one in reversed([*enumerate(reading.modules)])}
    known = {name: place for name, place in rows.items() if name in own}
    return tuple(Site("module", name, known[name]) for name in sorted(known, key=known.__getitem__))


def _what(suspect: Suspect, off: Sequence[Site]) -> str:
    """Write the template of what is off."""
    are = "are" if len(off) > 1 or off[0].kind == "weights" else "is"
    if suspect.cause == "weight-scale-all":
        return (
            f"the {len(suspect.names)} weights of the network are {{apart:times}} as large as "
            "any initialization makes them"
        )
    if suspect.cause == "input-scale":
        return "the values of {site} have a root mean square of {rms:.3g}, not about 1"
    if suspect.cause == "dead-units":
        return (
            "the values of {off} have a mean of {mean:.3g}, which moves units out of "
            "the range where they pass a gradient"
        )
    if suspect.off == -inf:
        return f"{{off}} {are} 0"
    beside = {
        "running-statistics": "the variance of the batch or of others",
        "normalization-weight": "others of its kind",
    }.get(suspect.cause, "is usual there")
    return f"{{off}} {are} {{apart:times}} as large as {beside}"


SINGLE = Rule(
    name="departure",
    kind="exploding",
    warning=CHANGED,
    critical=3,
    measured="log10 of what putting a parameter back to the size of its like makes of the gradient "
    "of some matrix",
    reason="An initialization of one's own is not off; a size that none makes is, if gradients "
    "depend on it by decades.",
    source="the common initializations; the what-if is a measurement of this network",
    find=_single,
)
WHOLE = replace(SINGLE, name="departure-all", measured="the same of all weights", find=_whole)
INPUTS = replace(SINGLE, name="departure-inputs", measured="the same of the inputs", find=_inputs)

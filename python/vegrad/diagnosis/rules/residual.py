"""Rules on residual streams, x + f(x): a branch that drowns the stream, or adds nothing.

Behind a normalization nothing is too large: a branch that writes thousands of times what the others
do is divided by its own size, and with it the gradient of all that comes later.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from math import inf, isfinite

import numpy as np

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.edits import Scale
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Branch, Parameter, Reading
from vegrad.flow.site import Site
from vegrad.flow.wording import DECADE, exp2

OFF = 1.5  # decades beyond branches that are alike: a bias that they share hides some of it
DROWNS = 1.0  # decades beyond the stream: what came before is a tenth of what goes on
CLOSED = -3.0  # decades below branches that are alike
FAINT = -2.0  # decades below the stream: what all branches add where they are to begin small
ALIKE = 2  # compare with at least this many similar branches, else with all


def _drowning(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for place, off in _off(reading.branches):
        if off > 0:
            yield _drowned(place, off, reading, rule)


def _closed(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    for place, off in _off(reading.branches):
        if off < 0:
            yield _shut(place, off, reading, rule)


@lru_cache(maxsize=1)  # two rules ask
def _off(branches: tuple[Branch, ...]) -> list[tuple[int, float]]:
    """Find the branches that are off, and by how many decades.

    A branch drowns the stream if it adds 10 times what it is added to, and 30 times what others
    like it add; it is closed if it adds a thousandth of what they do, and not exactly nothing,
    which is how some begin. Where a stream grows from block to block, so does what branches add:
    a branch is off only if it is beside its own stream too, as others are beside theirs.
    """
    drowned, found = False, []
    for place, branch in enumerate(branches):
        alike = _alike(branch, branches)
        others = alike if len(alike) >= ALIKE else [one for one in branches if one is not branch]
        off, over = _beyond("size", branch, others), (branch.size - branch.stream) / DECADE
        over = min(over, _beyond("size", branch, others, beside=True))
        if off >= OFF and (over >= DROWNS or drowned):
            drowned = True
            found.append((place, off))
        elif len(alike) >= ALIKE:
            off = max(_beyond("varies", branch, alike, beside=beside) for beside in (False, True))
            if off <= CLOSED:
                found.append((place, off))
    return found


def _drowned(place: int, off: float, reading: Reading, rule: Rule) -> Finding:
    branch = reading.branches[place]
    over = (branch.size - branch.stream) / DECADE
    name, factor = _to_blame(branch, off, reading.parameters)
    evidence = {"branch": 10.0**off, "stream": 10.0**over, "factor": factor}
    says = "the branch with {site} adds {branch:times} what others like it add and {stream:times} "
    says += "what it is added to, so that all before it is drowned"
    above = _above(place, reading)
    if above is not None:
        says += ", and layers after it get {gradient:times} the gradient of those before"
        evidence["gradient"] = exp2(above)
    return of_branch(rule, rule.severity(over), name, branch.trail, says, evidence)


def _shut(place: int, off: float, reading: Reading, rule: Rule) -> Finding:
    branch = reading.branches[place]
    over = (branch.size - branch.stream) / DECADE
    name, factor = _to_blame(branch, off, reading.parameters)
    evidence = {"branch": 10.0**off, "stream": 10.0**over, "factor": factor}
    says = "the branch with {site} adds {branch:times} what others like it add"
    within = _within(branch, reading)
    if within is not None:
        says += ", and the weights before its last get {gradient:times} the gradient of theirs"
        evidence["gradient"] = exp2(within)
    finding = of_branch(rule, "warning", name, branch.trail, says, evidence)
    return replace(finding, advises="{edit}, unless it is meant to begin closed.")


def of_branch(
    rule: Rule,
    severity: str,
    parameter: str,
    branch: Iterable[str],
    says: str,
    evidence: Mapping[str, float],
) -> Finding:
    """Return the finding that a parameter of a branch should be scaled by evidence["factor"].

    Its first site is that parameter; the others are those of the branch, in their order.
    """
    return Finding(
        kind=rule.kind,
        severity=severity,
        rule=rule.name,
        cause="branch-scale" if rule.name.startswith("branch") else "embedding-scale",
        sites=(Site("parameter", parameter), *(Site("parameter", name) for name in branch)),
        says=says,
        evidence=evidence,
        blame="weights",
        edit=Scale((parameter,), evidence["factor"]),
    )


def faint(branches: Sequence[Branch]) -> set[str]:
    """Return the parameters of branches, if these add little by design (LayerScale, ReZero).

    Their gradients are as much smaller than those of what stands below and above all branches.
    """
    over = [one.size - one.stream for one in branches if isfinite(one.stream)]
    if not over or np.median(over) > FAINT * DECADE:
        return set()
    return {name for one in branches for name in one.trail}


@lru_cache(maxsize=4096)
def kind_of(name: str) -> str:
    """Drop the numbers of blocks: layers.3.linear2.weight is a layers.#.linear2.weight."""
    *path, module, parameter = ("." + name).split(".")
    module = "#" if module.isdigit() else module
    return ".".join([*(re.sub(r"\d+", "#", one) for one in path), module, parameter])


def _alike(branch: Branch, branches: Sequence[Branch]) -> list[Branch]:
    kind = [kind_of(name) for name in branch.trail]
    return [
        one
        for one in branches
        if one is not branch and [kind_of(name) for name in one.trail] == kind
    ]


def _beyond(what: str, branch: Branch, others: Sequence[Branch], *, beside: bool = False) -> float:
    """Return the decades between a size and the others' median; 0 where it cannot be said.

    `beside` compares what is left when each has been divided by its own stream.
    """
    own, *sizes = (getattr(one, what) - beside * one.stream for one in (branch, *others))
    sizes = [size for size in sizes if isfinite(size)]
    return float(own - np.median(sizes)) / DECADE if sizes and isfinite(own) else 0.0


def _to_blame(branch: Branch, off: float, parameters: Mapping[str, Parameter]) -> tuple[str, float]:
    """Return the parameter of the branch that is furthest off, that way, and its factor.

    If none explains half of it, the last matrix is named, whose factor makes up for it too.
    """
    known = [name for name in branch.trail if name in parameters]
    last = [name for name in known if parameters[name].is_matrix][-1]
    away = {name: apart(name, parameters) for name in known}
    worst = max(away, key=lambda name: away[name] / off)
    if away[worst] / off < 0.5:
        return last, 10.0**-off
    alike = sum(kind_of(name) == kind_of(worst) for name in parameters) > ALIKE
    return worst, 10.0 ** -(away[worst] if alike else off)


def apart(name: str, parameters: Mapping[str, Parameter]) -> float:
    """Return the decades between a parameter and those of the same name but for numbers.

    Where these are too few, a matrix is compared with all, by what it makes of an input of size 1,
    and a normalization's weights with those of all others.
    """
    own = parameters[name]
    like = {n: one for n, one in parameters.items() if n != name and one.is_matrix == own.is_matrix}
    among = [one.rms_log2 for n, one in like.items() if kind_of(n) == kind_of(name)]
    among, size = [one for one in among if isfinite(one)], own.rms_log2
    if len(among) < ALIKE:
        if not own.is_matrix and not name.endswith("weight"):
            return 0.0
        others = [one for n, one in like.items() if own.is_matrix or n.endswith("weight")]
        among = [one.through_log2 if own.is_matrix else one.rms_log2 for one in others]
        among = [one for one in among if isfinite(one)]
        size = own.through_log2 if own.is_matrix else own.rms_log2
    return (size - float(np.median(among))) / DECADE if among and isfinite(size) else 0.0


def _gradients(branch: Branch, reading: Reading) -> list[float]:
    """Return log2 of the gradients of a branch's matrices, as far as there are some."""
    known = [reading.parameters[name] for name in branch.trail if name in reading.parameters]
    return [one.gradient_log2 for one in known if one.is_matrix and not np.isnan(one.gradient_log2)]


def _within(branch: Branch, reading: Reading) -> float | None:
    """Return log2 of the gradient of its first matrix, over those of branches that are alike."""

    def first(one: Branch) -> float:
        known = _gradients(one, reading)
        return known[0] if len(known) > 1 else -inf

    others = [size for one in _alike(branch, reading.branches) if isfinite(size := first(one))]
    return first(branch) - float(np.median(others)) if others and isfinite(first(branch)) else None


def _above(place: int, reading: Reading) -> float | None:
    """Return log2 of the gradients of matrices in branches above one, over those below it."""

    def middle(some: Sequence[Branch]) -> float:
        sizes = [size for one in some for size in _gradients(one, reading) if isfinite(size)]
        return float(np.median(sizes)) if sizes else inf

    apart = middle(reading.branches[place + 1 :]) - middle(reading.branches[:place])
    return apart if isfinite(apart) else None


REASON = (
    "In 114 fresh models (GPT-2, LLaMA, BERT, ViT, ResNet; 4 to 48 blocks) no branch that was "
    "larger than its stream added more than 1.8 times what others like it did, and none less than "
    "0.2 times."
)
DROWNING = Rule(
    name="branch-drowns",
    kind="exploding",
    warning=DROWNS,
    critical=3,
    measured="log10 of what a branch adds over the stream that it is added to",
    reason=REASON,
    source="Liu et al. 2020, arXiv:2004.08249 (amplification in residual branches)",
    find=_drowning,
)
CLOSED_BRANCH = Rule(
    name="branch-closed",
    kind="vanishing",
    warning=CLOSED,
    critical=inf,
    measured="log10 of what a branch adds over what others like it add",
    reason=REASON,
    source="Liu et al. 2020, arXiv:2004.08249",
    find=_closed,
)

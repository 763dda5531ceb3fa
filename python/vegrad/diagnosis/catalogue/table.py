"""The table of causes, joined, and what asks it by name."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from vegrad.arrays.checks import did_you_mean
from vegrad.arrays.shown import shown
from vegrad.diagnosis.catalogue.cause import Cause
from vegrad.diagnosis.catalogue.data import DATA
from vegrad.diagnosis.catalogue.graph import GRAPH
from vegrad.diagnosis.catalogue.loop import LOOP
from vegrad.diagnosis.catalogue.operations import OPERATIONS
from vegrad.diagnosis.catalogue.weights import WEIGHTS
from vegrad.flow.finding import Finding

SECTIONS: dict[str, tuple[Cause, ...]] = {
    "Weights and activations": WEIGHTS,
    "The graph": GRAPH,
    "Data, targets and loss": DATA,
    "Operations": OPERATIONS,
    "The optimizer and the loop": LOOP,
}
CAUSES: dict[str, Cause] = {cause.name: cause for section in SECTIONS.values() for cause in section}


def cause_of(name: str, what: str = "cause") -> Cause:
    """Return a cause by its name.

    Raises:
        ValueError: there is none of this name; the message begins with `what` the name is, and
            suggests the nearest one.
    """
    if name not in CAUSES:
        hint = did_you_mean(name, CAUSES)
        raise ValueError(f"{what} must be one that `vegrad explain` lists, not {shown(name)}{hint}")
    return CAUSES[name]


def as_ignored(ignore: Collection[str]) -> tuple[str, ...]:
    """Return the names of causes to leave out, each once, checked.

    Raises:
        TypeError: for a single string, or what is no collection of strings.
        ValueError: for a name that no cause has.
    """
    if isinstance(ignore, str) or not isinstance(ignore, Collection):
        what = "a string" if isinstance(ignore, str) else type(ignore).__name__
        raise TypeError(f'ignore must be names of causes, as ("{next(iter(CAUSES))}",), not {what}')
    for name in ignore:
        if not isinstance(name, str):
            raise TypeError(f"ignore must have names of causes, not {type(name).__name__}")
        cause_of(name, "every cause in ignore")
    return tuple(dict.fromkeys(ignore))


def without(findings: Sequence[Finding], ignored: Collection[str]) -> tuple[Finding, ...]:
    """Return the findings whose cause is none of those ignored."""
    return tuple(finding for finding in findings if finding.cause not in ignored)

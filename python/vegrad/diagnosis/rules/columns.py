"""Rules on the columns of the inputs, which tell by themselves that they are not scaled."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isfinite, log10

from vegrad.diagnosis.rules.rule import Rule
from vegrad.flow.data import Columns, Input
from vegrad.flow.edits import ScaleData
from vegrad.flow.finding import Finding
from vegrad.flow.reading import INPUT, Reading
from vegrad.flow.site import Site
from vegrad.flow.ways import entries

FAR = 3.0  # root mean square, below which values lie near 0 whatever they have in common


def _taken(reading: Reading) -> tuple[Input, Columns] | None:
    """Return the only inputs, if weights take them as they are: nothing makes up for them there."""
    if len(reading.inputs) != 1 or reading.tables:
        return None
    found = entries(reading)
    one = reading.inputs[0]
    if one.columns is None or not found or any(INPUT not in entry.below for entry in found):
        return None
    return one, one.columns


def _offset(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find inputs that lie far from 0, beside what they tell rows apart by."""
    taken = _taken(reading)
    if earlier or taken is None:
        return
    one, columns = taken
    if not columns.offset >= rule.warning or not one.rms >= FAR or not isfinite(columns.offset):
        return
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(columns.offset),
        rule=rule.name,
        cause="input-scale",
        sites=(Site("data", one.name),),
        says="the columns of {site} lie at {rms:.3g}, {offset:.3g} times as far from 0 as they "
        "spread: the gradient of the first weights is that of what all rows have in common",
        evidence={"offset": columns.offset, "rms": one.rms},
        edit=ScaleData(),
    )


def _narrow(reading: Reading, rule: Rule, earlier: Sequence[Finding]) -> Iterator[Finding]:
    """Find a column that spreads next to nothing beside another one."""
    taken = _taken(reading)
    if earlier or taken is None:
        return
    one, columns = taken
    apart = log10(columns.narrow_std) - log10(columns.wide_std)
    if not apart <= rule.warning:
        return
    yield Finding(
        kind=rule.kind,
        severity=rule.severity(apart),
        rule=rule.name,
        cause="input-scale",
        sites=(Site("data", one.name),),
        says="column {narrow:d} of {site} has a standard deviation of {narrow_std:.3g}, beside "
        "{wide_std:.3g} of column {wide:d}: its weights get a gradient smaller by as much",
        evidence={"narrow_std": columns.narrow_std, "wide_std": columns.wide_std},
        facts={"narrow": columns.narrow, "wide": columns.wide},
        edit=ScaleData(),
    )


SOURCE = "LeCun et al. 1998, Efficient BackProp (inputs of mean 0 and variance 1)"
OFFSET = Rule(
    name="inputs-offset",
    kind="exploding",
    warning=8,
    critical=100,
    measured="root mean square of the columns' means over that of their standard deviations, of "
    f"inputs whose size is {FAR:g} or more",
    reason="The loss is steeper by the square of it in the direction of what all rows have in "
    "common. MLPs of 2 hidden layers of 32 that learn three spirals to 100 % reach 54 to 63 % at "
    "18, 59 to 84 % at 9 (Adam, 100 epochs).",
    source=SOURCE,
    find=_offset,
)
NARROW = Rule(
    name="inputs-column",
    kind="vanishing",
    warning=-2.7,
    critical=-5,
    measured="log10 of the least standard deviation of a column over the largest, of those whose "
    "values differ in half the rows or more",
    reason="A weight's gradient is as large as its input. The same MLPs come to 73 or 74 % with "
    "one of two columns times 0.001, and to 99 % with 0.01.",
    source=SOURCE,
    find=_narrow,
)
RULES = (OFFSET, NARROW)

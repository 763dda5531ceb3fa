"""Two runs or two diagnoses side by side: in words, as a page, and in a notebook."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby, pairwise
from math import inf, isfinite, isnan

from vegrad.arrays.shown import escape, visible
from vegrad.flow.wording import DECADE, listed, power
from vegrad.reports import comparison_charts, parts, tables
from vegrad.reports import page as pages
from vegrad.reports.shown_comparison import ShownComparison, ShownDeparture
from vegrad.reports.text import WIDTH
from vegrad.reports.values import count_of

MOST = 10  # departures that are told
COLUMNS = {
    "loss": "the loss",
    "validation_loss": "the validation loss",
    "gradient_norm": "the norm of the gradients",
    "clipped_norm": "the norm after the clip",
    "update_ratio": "the update over the weights",
    "learning_rate": "the learning rate",
}
NOTHING = "nothing that both have recorded can be compared"


# Words -------------------------------------------------------------------------------------------


def headline(one: ShownComparison) -> str:
    """Say in a clause what parted first."""
    if one.departures:
        first = one.departures[0]
        where = "from the loss back, " if first.step is None else f"from step {first.step} on "
        return f"{where}{departure(first, one.names)}"
    return _alike(one)


def _alike(one: ShownComparison) -> str:
    if one.steps is None:
        if not one.sizes:
            return NOTHING
        layers = count_of(len(one.sizes), "gradient")
        return f"the {layers} that both have do not differ by a factor of two"
    steps = count_of(one.steps[2], "step")
    if isnan(one.same_until) and not one.sizes:
        return NOTHING
    if one.same_until == inf:
        return f"loss and gradient of the {steps} that both have are the same to the last bit"
    return f"in the {steps} that both have no number departs by more than noise"


def departure(one: ShownDeparture, names: tuple[str, str]) -> str:
    """Say how a number of two runs differs, without the step."""
    a, b = one.values
    of = {"layer": "at layer ", "time": ""}.get(one.what, "of ")
    what = COLUMNS.get(one.what, f"the gradient {of}{one.name}")
    for value, other, name, beside in ((b, a, names[1], names[0]), (a, b, names[0], names[1])):
        if not isfinite(value):
            beside = "" if isnan(other) else f", and {_number(other)} in {beside}"
            return f"{what} is not finite in {name}{beside}"
    for value, other, name, beside in ((b, a, names[1], names[0]), (a, b, names[0], names[1])):
        if value == 0 and one.what != "learning_rate":
            return f"{what} is 0 in {name}, and {_number(other)} in {beside}"
    if isnan(one.times_log2):
        return f"{what} is {_number(a)} in {names[0]}, and {_number(b)} in {names[1]}"
    times = power(one.times_log2 / DECADE, 1)
    pair = f"{_number(b)}, not {_number(a)}"
    return f"{what} is {times} times as large in {names[1]} as in {names[0]} ({pair})"


def told(one: ShownComparison, most: int = MOST) -> list[tuple[int | None, str]]:
    """Return steps and what departs there, the first few; modules of one step are counted."""
    found = []
    for step, group in groupby(one.departures, key=lambda each: each.step):
        several = list(group)
        if step is None:
            found += [(None, departure(each, one.names)) for each in _telling(several)]
            continue
        modules = [each for each in several if each.what == "module"]
        if modules:
            others = count_of(len(modules) - 1, "other module")
            more = f"; {others} part{'s' * (len(modules) == 2)} there too" * (len(modules) > 1)
            found.append((step, departure(modules[0], one.names) + more))
        found += [(step, departure(each, one.names)) for each in several if each.what != "module"]
    left = len(found) - most
    return [*found[:most], *[(None, f"and {count_of(left, 'further difference')}")] * (left > 0)]


def _telling(several: Sequence[ShownDeparture]) -> list[ShownDeparture]:
    """Return the first of the layers at which a ratio changes, the one where most, and the last."""
    ratios = [0.0, *(each.times_log2 for each in several)]
    jumps = [abs(b - a) if isfinite(a) and isfinite(b) else inf for a, b in pairwise(ratios)]
    places = sorted({0, jumps.index(max(jumps)), len(several) - 1})
    return [several[place] for place in places]


def remarks(one: ShownComparison) -> list[str]:
    """Return what is to be known of a comparison: what was compared, and what could not be."""
    said = []
    if one.steps is not None:
        first, last, count = one.steps
        said.append(f"compared are the {count} steps from {first:.0f} to {last:.0f} that both have")
        if isfinite(one.same_until):
            until = f"before step {one.same_until:.0f} they are the same to the last bit"
            said += [until] if one.same_until > first + 1 else []
    for name, only in zip(one.names, one.only, strict=True):
        if only:
            said.append(f"only {name} has {listed(list(only))}")
    if any(one.only) and not one.sizes:
        said.append("the models differ: no gradient of a module is compared")
    elif any(one.only):
        noun = "gradients" if one.steps is None else "modules"
        said.append(f"the models differ: of their {noun} the {len(one.sizes)} are compared that "
                    "both have")  # fmt: skip
    return said


def findings(one: ShownComparison) -> list[tuple[str, str, str]]:
    """Return causes that are not in both alike, and where each came up."""
    found = []
    for each in one.findings:
        if one.steps is None:
            cells = ["–" if step is None else "found" for step in each.steps]
        else:
            cells = ["–" if step is None else f"step {step}" for step in each.steps]
        found.append((each.cause, cells[0], cells[1]))
    return found


def _number(value: float) -> str:
    return "–" if isnan(value) else f"{value:.3g}"


def _value(value: object) -> str:
    said = f"{value:.6g}" if isinstance(value, float) else " ".join(str(value).split())
    return visible(textwrap.shorten(said, 60, placeholder="…"))


def _settings(one: ShownComparison) -> list[tuple[str, str, str]]:
    return [(visible(str(n)), _value(a), _value(b)) for n, (a, b) in one.settings.items()]


# Text --------------------------------------------------------------------------------------------


def text(one: ShownComparison, width: int = WIDTH) -> str:
    """Write what parted first, what follows, findings and settings, and numbers of both."""
    lines = [f"{one.names[0]} and {one.names[1]}", "", *_wrapped("", headline(one), width)]
    rest = told(one)[1:]
    if rest:
        lines.append("")
        for step, said in rest:
            lines += _wrapped("" if step is None else f"step {step}: ", said, width, "  ")
    for title, rows in (
        ("settings that differ", _settings(one)),
        ("findings", findings(one)),
        ("numbers", [(n, _number(a), _number(b)) for n, (a, b) in one.figures.items()]),
    ):
        if rows:
            lines += ["", *_table(title, one.names, rows)]
    lines += ["", *(line for said in remarks(one) for line in _wrapped("! ", said, width, "  "))]
    return "\n".join(lines).rstrip()


def _wrapped(mark: str, said: str, width: int, indent: str = "") -> list[str]:
    return textwrap.wrap(
        said, width, initial_indent=f"{indent}{mark}", subsequent_indent=f"{indent}    "
    )


def _table(
    title: str, names: tuple[str, str], rows: Sequence[tuple[str, str, str]]
) -> Iterator[str]:
    columns = list(zip((title, *names), *rows, strict=True))
    wide = [max(map(len, column)) for column in columns]
    for head, a, b in zip(*columns, strict=True):
        yield f"{head:<{wide[0]}}  {a:>{wide[1]}}  {b:>{wide[2]}}".rstrip()


# Pages -------------------------------------------------------------------------------------------


def page(one: ShownComparison) -> str:
    """Write the page of a comparison."""
    found = [head(one, "h1"), "<main>", *parts_of(one).values(), "</main>"]
    found += [pages.footer("vegrad-comparison"), pages.embedded(one.to_dict(), "vegrad-comparison")]
    return pages.document(f"{one.names[0]} and {one.names[1]}", found)


def head(one: ShownComparison, heading: str = "p") -> str:
    """Write what parted first, in large letters."""
    look = "warning" if one.differ else "healthy"
    below = f"{one.names[0]} and {one.names[1]}"
    return parts.headed(look, "Comparison", headline(one), below, heading=heading)


def parts_of(one: ShownComparison) -> dict[str, str]:
    """Return the parts of a comparison's page or output, by what to call each."""
    rest = told(one)[1:]
    steps = "".join(
        f"<li>{parts.sentence(said if step is None else f'step {step}: {said}')}</li>"
        for step, said in rest
    )
    figures = [(n, _number(a), _number(b)) for n, (a, b) in one.figures.items()]
    return {
        "what follows": f'<h2>Then</h2><ol class="told">{steps}</ol>' if rest else "",
        "the settings": _section("Settings that differ", "setting", one, _settings(one)),
        "the findings": _section("Findings that differ", "cause", one, findings(one)),
        "the charts": comparison_charts.charts(one),
        "the numbers": _section("Numbers of both", "", one, figures),
        "the remarks": "".join(
            f'<p class="soft">{parts.sentence(said)}.</p>' for said in remarks(one)
        ),
    }


def _section(
    title: str, head: str, one: ShownComparison, rows: Iterable[tuple[str, str, str]]
) -> str:
    rows = list(rows)
    if not rows:
        return ""
    return f"<h2>{escape(title)}</h2>{tables.pairs(title, (head, *one.names), rows)}"

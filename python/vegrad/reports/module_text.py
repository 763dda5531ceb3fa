"""A model that is no chain as text: the tables of its modules."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import inf, isnan, log2, log10
from typing import TypedDict

from vegrad.arrays.shown import visible
from vegrad.flow.wording import times
from vegrad.reports.protocols import ShownDiagnosis
from vegrad.reports.text import chosen, indented, remarks, verdict, with_gaps

MODULE_ENDS = 11  # modules shown at either end of a model with many


class ModuleRow(TypedDict):
    """A module's numbers in one pass; NaN where there is none."""

    module: str
    activation_rms: float
    delta_norm: float
    gradient_norm: float
    note: str
    weighted: bool


class TimeRow(TypedDict):
    """The gradient's way back through time at a recurrent weight, and at a fresh draw of it."""

    parameter: str
    gain: float
    """Factor of ‖δ‖ a step."""
    reach: int
    """Steps that the gradient reaches."""
    steps: int
    fresh_gain: float
    fresh_reach: int


def text_of_modules(
    diagnosis: ShownDiagnosis,
    rows: Sequence[ModuleRow],
    in_time: Sequence[TimeRow] = (),
    notes: Iterable[str] = (),
    *,
    all_layers: bool = False,
) -> str:
    """Write the same for a model whose modules are no chain; `config["model"]` is the first line.

    Args:
        diagnosis: its verdict, findings and advice are shown.
        rows: one a module, in the order of the model.
        in_time: one a recurrent weight.
        notes: sentences that stand below the advice.
        all_layers: show the middle modules of a large model too.
    """
    tables = [*modules(rows, all_layers=all_layers), *through_time(in_time)]
    lines = [
        visible(diagnosis.config["model"], 200),
        "",
        *tables,
        "",
        verdict(diagnosis),
        *remarks(diagnosis),
    ]
    return "\n".join([*lines, *(indented("! ", note) for note in notes)])


def modules(rows: Sequence[ModuleRow], *, all_layers: bool = False) -> list[str]:
    """Write the table of modules; large models lose those in the middle, unless `all_layers`."""
    names = [visible(row["module"]) for row in rows]
    wide = max(map(len, ["module", *names]))

    def line(place: int) -> str:
        row = rows[place]
        rms = "" if isnan(row["activation_rms"]) else f"{row['activation_rms']:.3g}"
        sizes = f"{log10_of(row['delta_norm']):>7}  {log10_of(row['gradient_norm']):>14}"
        return f"{names[place]:<{wide}}  {rms:>14}  {sizes}  {row['note']}".rstrip()

    return [
        f"{'module':<{wide}}  activation rms  δ log10  gradient log10",
        *with_gaps(
            module_places(rows, all_layers=all_layers),
            line,
            lambda count: f"{'⋮':<{wide}}  {count} modules not shown",
        ),
    ]


def module_places(
    rows: Sequence[ModuleRow], ends: int = MODULE_ENDS, *, all_layers: bool = False
) -> list[int]:
    """Choose the modules to show: all, or both ends and a few between that are remarkable."""
    remarkable = (place for place, row in enumerate(rows) if row["note"])
    return chosen(len(rows), all_layers, ends=ends, picked=remarkable)


def through_time(rows: Sequence[TimeRow]) -> list[str]:
    """Write the table of recurrent weights below an empty line; nothing if there are none."""
    if not rows:
        return []
    names = [visible(row["parameter"]) for row in rows]
    wide = max(map(len, ["through time", *names]))
    lines = ["", f"{'through time':<{wide}}  a step back  reaches the last    weights drawn anew"]
    for name, row in zip(names, rows, strict=True):
        own, fresh = (times(log2(g) if g > 0 else -inf) for g in (row["gain"], row["fresh_gain"]))
        line = f"{name:<{wide}}  {own:>11}  {row['reach']:>7} of {row['steps']} steps"
        lines.append(f"{line:<{wide + 37}}{fresh:>8}, {row['fresh_reach']} steps")
    return lines


def log10_of(norm: float) -> str:
    """Write log10 of a norm, "" if there is none."""
    return "" if isnan(norm) else f"{log10(norm):.2f}" if 0 < norm < inf else f"{norm:g}"

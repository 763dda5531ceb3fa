"""Reports of several processes as one: the same on each of them.

Every process has looked at its own part of the batch, or of the model, and sends a few numbers a
module and its findings. No parameter, gradient or activation leaves its process.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

import numpy as np
from torch import distributed

from vegrad.arrays.checks import FloatArray
from vegrad.flow.finding import Finding
from vegrad.reports.module_text import ModuleRow
from vegrad.torch.monitor.report import Report, rows_of

Size: TypeAlias = Literal["activation_rms", "delta_norm", "gradient_norm"]
SIZES: tuple[Size, ...] = ("activation_rms", "delta_norm", "gradient_norm")


def several() -> bool:
    """Return True in one of several processes of torch.distributed."""
    there = distributed.is_available() and distributed.is_initialized()
    return there and distributed.get_world_size() > 1


def together(report: Report) -> Report:
    """Return the report of all processes; all of them must call this.

    A size is the root mean square of those of the processes that have one. Findings are those of
    all, each once, as the first process says it that has it; so are the notes.

    Raises:
        ValueError: the processes' models have different modules.
    """
    if not several():
        return report
    own = (report.rows, report.findings, report.notes, report.looked_at, report.loss)
    everyone: list[tuple[Sequence[ModuleRow], tuple[Finding, ...], tuple[str, ...], str, float]]
    everyone = [own] * distributed.get_world_size()  # type: ignore[list-item]
    distributed.all_gather_object(everyone, own)
    _check([[row["module"] for row in rows] for rows, *_ in everyone])
    findings = _each_once(one for _, found, *_ in everyone for one in found)
    notes = tuple(dict.fromkeys(note for *_, said, _, _ in everyone for note in said))
    rows = report.rows if report.reading is None else rows_of(report.reading, findings)
    for name in SIZES:
        sizes = _mean(np.array([[row[name] for row in one] for one, *_ in everyone]))
        rows = tuple({**row, name: size} for row, size in zip(rows, sizes, strict=True))  # type: ignore[misc]
    _, _, _, looked_at, loss = everyone[0]
    return replace(
        report, rows=rows, findings=findings, notes=notes, looked_at=looked_at, loss=loss
    )


def _check(names: list[list[str]]) -> None:
    for rank, other in enumerate(names):
        if other != names[0]:
            raise ValueError(
                "the model must have the same modules on all ranks, which run in the same order: "
                f"rank {rank} has {len(other)}, rank 0 {len(names[0])}"
            )


def _each_once(found: Iterable[Finding]) -> tuple[Finding, ...]:
    """Return findings without those that another process has said, what is critical first.

    Where a value is not finite, one process may have the part of a parameter that is to blame, or
    the row; of the others, which got it with the gradients, nothing more is said then.
    """
    once: dict[tuple[str, str, object], Finding] = {}
    for one in found:
        where = (one.sites, repr(one.facts)) if one.kind == "nonfinite" else None
        once.setdefault((one.kind, one.cause, where), one)
    known = any(one.kind == "nonfinite" and one.cause for one in once.values())
    told = [one for one in once.values() if one.kind != "nonfinite" or one.cause or not known]
    return tuple(sorted(told, key=lambda one: one.severity != "critical"))


def _mean(sizes: FloatArray) -> list[float]:
    """Return the root mean square of each column (P, M), without NaN."""
    there = ~np.isnan(sizes)
    count = there.sum(axis=0)
    most = np.max(np.where(there, sizes, 0.0), axis=0)
    scale = np.where((most > 0) & np.isfinite(most), most, 1.0)
    squares = np.where(there, (sizes / scale) ** 2, 0.0).sum(axis=0)
    found = np.where(count > 0, scale * np.sqrt(squares / np.maximum(count, 1)), np.nan)
    alike = np.where(there, sizes, most).min(axis=0) == most  # to the bit what all have
    return [float(size) for size in np.where((count > 0) & alike, most, found)]

"""The figures of a run on the architectures, as tables in Markdown."""

from __future__ import annotations

import importlib.metadata
import statistics
from collections.abc import Iterable
from typing import Any

from architectures.faults import FAULTS

Record = dict[str, Any]
LIBRARIES = ("transformers", "timm", "pytorchcv", "diffusers", "monai", "torch_geometric")
LONG = 0.01  # seconds of a pass; in shorter ones most is Python, in those of a diagnosis too
SMALL_MB = 32  # of a training step; below, what the memory rises by says little


def libraries() -> dict[str, str | None]:
    """Return the versions of the libraries, None for one that is not installed."""
    found: dict[str, str | None] = {}
    for name in LIBRARIES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def share(answers: Iterable[bool]) -> str:
    """Format a share, as in "97.3 % (73 of 75)"."""
    known = list(answers)
    count = sum(known)
    return f"{100 * count / len(known):.1f} % ({count} of {len(known)})" if known else "–"


def percentile(values: list[float], share_of_all: float) -> float:
    """Return the smallest value that so large a share of all does not exceed."""
    return sorted(values)[min(int(share_of_all * len(values)), len(values) - 1)]


def line(record: Record) -> str:
    """Say in a line what a record found."""
    what = ("cure of " if record.get("cure") else "") + record["fault"]
    findings = record.get("findings", [])
    said = findings[0]["message"] if findings else "no finding"
    if "unbuilt" in record:
        said = f"left out: {record['unbuilt']}"
    elif "unfit" in record:
        said = f"left out: {record['unfit']}"
    elif "crash" in record:
        said = f"crash: {record['crash']}"
    elif record.get("cure"):
        said = "cured" if record["cured"] else "not cured"
    elif record["fault"]:
        state = "sick" if record["sick"] else "not sick"
        placed = {True: "right: ", False: "elsewhere: "}.get(record.get("right"), "")
        said = f"{state}; {placed}{said}"
    return f"{record['model']:48s} {what:26s} {said[:130]}"


class Parts:
    """The records of a run by what they are."""

    def __init__(self, records: list[Record]) -> None:
        built = [r for r in records if "unbuilt" not in r and "unfit" not in r]
        self.unbuilt = [r for r in records if "unbuilt" in r]
        self.fresh = [r for r in built if not r["fault"]]
        self.cures = [r for r in built if r.get("cure")]
        self.planted = [r for r in built if r["fault"] and not r.get("cure")]
        self.healthy = [r for r in self.fresh if r.get("trains") and "crash" not in r]
        self.slow = [r for r in self.fresh if r.get("trains") is False and "crash" not in r]
        self.sick = [r for r in self.planted if r.get("sick")]
        self.found = [r for r in self.sick if r["findings"]]
        self.placed = [r for r in self.found if r["about"] != "loss"]


def figures(parts: Parts) -> list[tuple[str, str, str]]:
    """Return the name, the measured and the asked value of each figure."""
    normed = [r for r in parts.placed if r["about"] == "norm"]
    applied = [r for r in parts.found if r.get("applied")]
    runs = [r for r in parts.fresh if r.get("pass_seconds") and "seconds" in r]
    passes = [r["seconds"] / r["pass_seconds"] for r in runs]
    long = [p for p, r in zip(passes, runs, strict=True) if r["pass_seconds"] >= LONG]
    memory = [r["mb"] / r["step_mb"] for r in runs if (r["step_mb"] or 0) >= SMALL_MB]
    crashes = [share("crash" in r for r in some) for some in (parts.fresh, parts.planted)]
    rows = [
        ("false alarms, of those that train", share(bool(r["findings"]) for r in parts.healthy)),
        (
            "planted faults found, of those that are sick",
            share(bool(r["findings"]) for r in parts.sick),
        ),
        ("right place in the first finding", share(r["right"] for r in parts.placed)),
        ("the same, normalizations and biases", share(r["right"] for r in normed)),
        ("advice that `apply` could do", share(bool(r.get("applied")) for r in parts.found)),
        ("of these: mended", share(bool(r.get("mended")) for r in applied)),
        ("crashes, as they come", crashes[0]),
        ("crashes, with a fault", crashes[1]),
        ("changed by the diagnosis", str(sum(r.get("untouched") is False for r in parts.fresh))),
        (
            "cured, of those that a fault keeps from training",
            share(bool(r.get("cured")) for r in parts.cures),
        ),
    ]
    for words, some in (("", passes), (f", where a pass takes {LONG} s or more", long)):
        if some:
            rows += [
                (f"passes that a diagnosis costs: median{words}", f"{statistics.median(some):.1f}"),
                (f"the same, 95th percentile{words}", f"{percentile(some, 0.95):.1f}"),
            ]
    if memory:
        rows.append(
            (
                f"peak memory over a training step's ({SMALL_MB} MB or more): median, largest",
                f"{statistics.median(memory):.2f}, {max(memory):.2f} ({len(memory)} models)",
            )
        )
    return [(name, value, ASKED.get(name, "")) for name, value in rows]


ASKED = {
    "false alarms, of those that train": "≤ 1 %",
    "planted faults found, of those that are sick": "≥ 95 %",
    "right place in the first finding": "≥ 95 %",
    "the same, normalizations and biases": "≥ 90 %",
    "advice that `apply` could do": "≥ 85 %",
    "of these: mended": "≥ 90 %",
    "crashes, as they come": "0",
    "crashes, with a fault": "0",
    "changed by the diagnosis": "0",
    "cured, of those that a fault keeps from training": "≥ 90 %",
    "the same, 95th percentile": "≤ 12",
}


def by_library(parts: Parts) -> list[tuple[str, ...]]:
    """Return a row for each library: architectures, false alarms, found, right."""
    names = dict.fromkeys(r["model"].partition("/")[0] for r in parts.fresh)
    rows = []
    for name in names:

        def own(records: list[Record], name: str = name) -> list[Record]:
            return [r for r in records if r["model"].partition("/")[0] == name]

        alarms = [bool(r["findings"]) for r in own(parts.healthy)]
        rows.append(
            (
                name,
                str(len(own(parts.fresh))),
                f"{sum(alarms)} of {len(alarms)}",
                share(bool(r["findings"]) for r in own(parts.sick)),
                share(r["right"] for r in own(parts.placed)),
            )
        )
    return rows


def by_fault(parts: Parts) -> list[tuple[str, ...]]:
    """Return a row for each kind of fault: planted, sick, found, right, mended."""
    rows = []
    for fault in FAULTS:
        planted = [r for r in parts.planted if r["fault"] == fault]
        sick = [r for r in planted if r.get("sick")]
        found = [r for r in sick if r["findings"]]
        applied = [r for r in found if r.get("applied")]
        right = [r["right"] for r in found]
        counts = (
            f"{sum(right)} of {len(right)}",
            f"{sum(bool(r.get('mended')) for r in applied)} of {len(applied)}",
        )
        rows.append((fault, str(len(planted)), str(len(sick)), str(len(found)), *counts))
    return rows


def misses(parts: Parts) -> list[tuple[str, ...]]:
    """Return the kind of miss, the architecture, the fault and what was said for every miss."""
    rows = [
        ("crash", r["model"], r["fault"], r["crash"])
        for r in (*parts.fresh, *parts.planted, *parts.cures)
        if "crash" in r
    ]
    for r in parts.healthy:
        rows += [("false alarm", r["model"], "", one["message"]) for one in r["findings"][:1]]
    for r in parts.sick:
        where = f"{', '.join(r['names'][:1])}; gradients change by {r['apart']:.1f} decades"
        if "crash" in r:
            continue
        if not r["findings"]:
            rows.append(("missed", r["model"], r["fault"], where))
        elif not r["right"]:
            said = f"{where}; {r['findings'][0]['message']}"
            rows.append(("place", r["model"], r["fault"], said))
        if r.get("applied") and not r["mended"]:
            rows.append(("advice", r["model"], r["fault"], r["findings"][0]["advice"]))
    for r in parts.cures:
        if r.get("cured") is False:
            rows.append(("cure", r["model"], r["fault"], " ".join(r["said"][:3])))
    return rows


def slow(parts: Parts) -> str:
    """Say which architectures do not train as they come, and what is said of them."""
    said = [
        f"{r['model']} ({r['findings'][0]['kind'] if r['findings'] else 'no finding'})"
        for r in parts.slow
    ]
    names = ", ".join(said) or "none"
    return f"In no figure, as plain Adam does not train them as they come: {names}."


def markdown(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Render a table in Markdown."""
    cells = [[one.replace("|", "\\|").replace("\n", " ") for one in row] for row in rows]
    lines = [list(head), ["---"] * len(head), *cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def tables(results: Record) -> str:
    """Render all figures and misses in Markdown."""
    parts = Parts(results["records"])
    versions = results["versions"]
    used = ("vegrad", "torch", *LIBRARIES)
    about = ", ".join(f"{name} {versions[name]}" for name in used if versions.get(name))
    left = "; ".join(f"{r['model']}: {r['unbuilt']}" for r in parts.unbuilt)
    sections = [
        "# Public models",
        f"Made by `python bench/models.py` on {results['date']}; what is measured, and how: "
        "[bench](../README.md#public-models).",
        f"{len(parts.fresh)} architectures, {len(parts.planted)} planted faults, of which "
        f"{len(parts.sick)} make the model sick. {results['machine']['cpu']}, one thread; {about}.",
        markdown(("figure", "measured", "asked"), figures(parts)),
        slow(parts),
        *([f"Left out: {left}."] if left else []),
        markdown(
            ("library", "architectures", "false alarms", "found", "right place"), by_library(parts)
        ),
        markdown(("fault", "planted", "sick", "found", "right place", "mended"), by_fault(parts)),
        "Every miss:",
        markdown(("miss", "architecture", "fault", "what was said"), misses(parts)),
    ]
    return "\n\n".join(sections)

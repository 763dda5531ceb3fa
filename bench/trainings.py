"""Measure how far a training's findings can be relied on: healthy, sick and diverging trainings.

    python bench/trainings.py              the figures of the held-out half, a few minutes
    python bench/trainings.py --half tuning    of the half that limits were chosen on
    python bench/trainings.py --quick      a smoke run
    python bench/trainings.py --markdown   the table of the last complete run

Exit code 1 if a figure falls short of what is asked. What is measured: `docs/explanation/truth.md`.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import report
import training_cases as cases

HEALTHY, SICK, DIVERGING = 330, 50, 120
AHEAD, FIRST = 5, 10  # steps before the loss has doubled; the first step at which that may be
KINDS = {
    "vanishing": {"vanishing"},
    "exploding": {"exploding", "saturated"},
    "dead": {"dead"},
    "rate x100": {"overshooting"},
    "rate /1000": {"stalled"},
    "data x100": {"exploding", "saturated"},
}
"""The kinds of which the first finding must be one; bounded activations saturate."""


@dataclass
class Line:
    """A figure: how many there were, how many were as they should be, and what is asked."""

    name: str
    asked: float
    most: bool = False
    """True if the share may be that high at most, else it must be."""
    count: int = 0
    hits: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)

    def add(self, name: str, hit: bool) -> None:
        """Count a training, and keep the name of one that is not as it should be."""
        self.count += 1
        self.hits += hit
        if hit == self.most:
            self.wrong.append(name)

    @property
    def share(self) -> float:
        """The share of the trainings that count."""
        return self.hits / self.count if self.count else float("nan")

    @property
    def holds(self) -> bool:
        """True if it is as asked."""
        return self.share <= self.asked if self.most else self.share >= self.asked


Training = Callable[..., dict[str, Any]]
"""As `training_cases.run`: trains a case, and calls `on_finding` when something is found."""


def of_healthy(run: Training, half: str, count: int) -> Iterator[Line]:
    """Yield the figures of trainings that reached their goal."""
    alarms = Line("healthy trainings with an alarm", 0.01, most=True)
    rates = Line("healthy trainings with a rate ≤ 0 in an advice", 0.0, most=True)
    for case in cases.healthy(half, count):
        said: list[Any] = []
        result = run(case, on_finding=said.append)
        if not result["reached"]:
            alarms.left_out["goal not reached"] += 1
            continue
        said += result["findings"]
        alarms.add(f"{case.name}: {[one.cause for one in said]}", bool(said))
        low = [one for one in said if not one.evidence.get("wanted", 1.0) > 0]
        rates.add(case.name, bool(low))
    yield alarms
    yield rates


def of_sick(run: Training, half: str, count: int) -> Iterator[Line]:
    """Yield the figures of trainings with a fault that kept them from their goal."""
    whole = Line("sick trainings whose history names the kind first", 0.95)
    lines = {fault: Line(f"of them {fault}", 0.0) for fault in cases.FAULTS}
    for case in cases.sick(half, count):
        result = run(case, on_finding=lambda finding: None)
        if result["reached"]:
            lines[case.fault].left_out["goal reached nevertheless"] += 1
            whole.left_out["goal reached nevertheless"] += 1
            continue
        kinds = [one.kind for one in result["findings"]]
        hit = bool(kinds) and kinds[0] in KINDS[case.fault]
        whole.add(f"{case.name}: {kinds}", hit)
        lines[case.fault].add(case.name, hit)
    yield whole
    yield from lines.values()


def of_diverging(run: Training, half: str, count: int) -> Iterator[Line]:
    """Yield the figures of trainings that were about to diverge."""
    foretold = Line("divergences foretold 5 steps before the loss has doubled", 0.70)
    parts = {kind: Line(f"of them with a {kind} rate", 0.0) for kind in cases.DIVERGENCES}
    for case in cases.diverging(half, count):
        for at in cases.harder(case):
            result = run(at, on_finding=lambda finding: None)
            # The steps that had been taken when something was found, whatever step it blames.
            said = [one.step for one in result["history"].noted]
            doubled = doubled_at(result["loss"])
            if doubled is None or result["reached"]:
                continue
            if doubled < FIRST:
                foretold.left_out[f"doubled before step {FIRST}"] += 1
                break
            hit = bool(said) and min(said) <= doubled - AHEAD
            foretold.add(f"{at.name} ×{at.factor:.3g}: doubled at {doubled}, said at {said}", hit)
            parts[case.fault].add(at.name, hit)
            break
        else:
            foretold.left_out["no divergence"] += 1
    yield foretold
    yield from parts.values()


def doubled_at(loss: Any) -> int | None:
    """Return the first step at which a mean of three losses is twice that of the beginning."""
    values = np.where(np.isfinite(loss), loss, 1e300)
    if len(values) < 5:
        return None
    start = max(values[0], min(np.median(values[:5]), 2 * values[0]))
    means = np.convolve(np.minimum(values, 1e300), np.ones(3) / 3, "valid")
    places = np.flatnonzero(means >= 2 * start)
    return int(places[0]) + 2 if len(places) else None


def table(results: dict[str, Any]) -> str:
    """Write the figures as a table."""
    rows = ["| figure | trainings | share | asked |", "|---|--:|--:|--:|"]
    for line in results["lines"]:
        asked = f"{'≤' if line['most'] else '≥'} {100 * line['asked']:.0f} %"
        asked = asked if line["asked"] or line["most"] else "–"
        share = f"{line['hits']} of {line['count']}: {100 * line['share']:.1f} %"
        rows.append(f"| {line['name']} | {line['count']} | {share} | {asked} |")
    left = [
        f"{line['name']}: {count} left out ({why})"
        for line in results["lines"]
        for why, count in line["left_out"].items()
        if line["asked"]
    ]
    head = f"{results['date']}, {results['half']} half, vegrad.MLP."
    return "\n".join([head, "", *rows, "", *(f"- {one}" for one in left)])


def main() -> int:
    """Run the command line; return 1 if a figure falls short."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--quick", action="store_true", help="a smoke run, a tenth of the trainings")
    add("--half", choices=cases.HALVES, default=cases.HALVES[1], help="which trainings")
    add("--json", type=Path, metavar="FILE", help="write the results there")
    add("--markdown", action="store_true", help="print the last complete run, run nothing")
    options = parser.parse_args()
    if options.markdown:
        print(table(report.load(report.RESULTS / "trainings.json")))
        return 0
    part = 10 if options.quick else 1
    lines = [
        *of_healthy(cases.run, options.half, HEALTHY // part),
        *of_sick(cases.run, options.half, SICK // part),
        *of_diverging(cases.run, options.half, DIVERGING // part),
    ]
    entries = [
        vars(line) | {"share": line.share, "left_out": dict(line.left_out)} for line in lines
    ]
    results = report.description() | {"half": options.half, "lines": entries}
    print(table(results))
    for line in lines:
        for name in line.wrong if line.asked or line.most else ():
            print(f"  {line.name}: {name}", file=sys.stderr)
    if options.json:
        report.write(results, options.json)
    elif not options.quick and options.half == cases.HALVES[1]:
        report.write(results, report.RESULTS / "trainings.json")
    return 0 if all(line.holds for line in lines) else 1


if __name__ == "__main__":
    sys.exit(main())

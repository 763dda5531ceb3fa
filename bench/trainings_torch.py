"""Watch trainings with `vegrad.torch.Monitor`: healthy ones, sick ones, and ones that will diverge.

    python bench/trainings_torch.py            all of them; bench/results/trainings_torch.json
    python bench/trainings_torch.py --quick    one in eleven; nothing is written
    python bench/trainings_torch.py --markdown the table of the last complete run

Every training is small, of real data, and judged by itself first, by its loss on fixed rows: a
healthy one counts if it has fallen to 0.6 of its first value; a sick one if it stays half as high
again as its healthy sibling's; a divergence if it doubles for good, not before the twelfth step nor
within five of a bad batch. What a Monitor says while they run is counted then: an alarm is any
finding at all. The limits of the rules were chosen on one half of the trainings; the other half
("held") stands beside it. Exits 1 below the bars.
"""

import argparse
import json
import sys
from collections import defaultdict
from dataclasses import asdict, dataclass, replace
from math import inf, isfinite
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
from vegrad.benchmark.machine import machine, versions
from watched_trainings import SIZES, coming, healthy, sick

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "trainings_torch.json"
AHEAD, FIRST = 5, 12  # steps from a warning to the doubling; the earliest doubling
HEALTHY, NAMED, FORETOLD = 0.01, 0.95, 0.70  # the bars


# Truth and what was said ------------------------------------------------------------------------

ACCEPTED = {
    "vanishing": {"activation-derivative", "weight-scale", "weight-scale-all"},
    "exploding": {"weight-scale", "weight-scale-all", "logits-scale"},
    "dead": {"dead-units"},
    "rate ×100": {"learning-rate-high"},
    "rate ÷1000": {"learning-rate-low"},
    "data ×100": {"input-scale"},
}


@dataclass
class Seen:
    """What became of a training, and what a Monitor said of it."""

    name: str
    kind: str
    held: bool
    bad: int | None
    first: float
    end: float
    doubled: int | None
    """The step at which the loss had doubled for good."""
    recovered: bool
    """True if it was lower later than it had been before."""
    alarms: list
    said: list
    """The causes of the report, the first first."""


def watched(training):
    """Run a training, and note what became of it and what was said."""
    torch.set_num_threads(1)
    losses, monitor, alarms = training.run()
    losses = np.where(np.isfinite(losses), losses, inf)
    said = [one.cause for one in monitor.report().findings]
    at = doubled(losses)
    recovered = at is not None and losses[at:].min() <= losses[:at].min()
    return Seen(
        training.name,
        training.kind,
        training.held,
        training.bad,
        losses[0],
        losses[-1],
        at,
        recovered,
        alarms,
        said,
    )


def doubled(losses):
    """Return the step from which on the loss is twice what it was, for ten steps; None if never.

    What is below a quarter of the first loss is not far enough up to count.
    """
    lowest = np.minimum.accumulate(losses)
    for step in range(1, len(losses)):
        level = max(2 * lowest[step - 1], losses[0] / 4)
        if losses[step] > level and np.median(losses[step : step + 10]) > level:
            return step
    return None


def counted(group, one, sibling):
    """Return True or False for what is counted of a training; None if it is not of its kind."""
    if group == "healthy":
        return None if not one.end <= 0.6 * one.first else bool(one.alarms or one.said)
    if group == "sick":
        learned = isfinite(one.end) and one.end <= 1.5 * sibling.end
        return None if learned else bool(one.said) and one.said[0] in ACCEPTED[one.kind]
    earliest = max(FIRST, one.bad + AHEAD + 1 if one.bad is not None else 0)
    if one.doubled is None or one.recovered or one.doubled < earliest:
        return None
    return any(step <= one.doubled - AHEAD for step, _ in one.alarms)


def measure(quick, jobs):
    """Run all trainings; return the figures by group, kind and half, and what was seen."""
    groups = {"healthy": healthy, "sick": sick, "coming": coming}
    every = 11 if quick else 1
    figures, seen = {}, {}
    siblings = {}
    for group, make in groups.items():
        trainings = list(make())
        trainings = trainings[::every]  # not a multiple of any loop's length
        if group == "sick":
            others = {sibling_of(one) for one in trainings} - siblings.keys()
            missing = [one for one in healthy() if one.name in others]
            siblings |= {one.name: one for one in run(missing, jobs)}
        found = run(trainings, jobs)
        if group == "healthy":
            siblings |= {one.name: one for one in found}
        counts = defaultdict(lambda: [0, 0])
        for training, one in zip(trainings, found, strict=True):
            hit = counted(group, one, siblings.get(sibling_of(training)))
            for key in (
                ("all", "held" if one.held else "chosen", one.kind) if hit is not None else ()
            ):
                counts[key][0] += hit
                counts[key][1] += 1
            seen[one.name] = asdict(one) | {"counted": hit}
        figures[group] = dict(counts)
    return figures, seen


def sibling_of(training):
    """Return the name of the same training with nothing wrong."""
    size = training.size if training.size in SIZES else "deep"
    return replace(training, kind="healthy", size=size, rate=1.0, scale=1.0, make=None).name


def run(trainings, jobs):
    """Run trainings in so many processes."""
    if jobs == 1:
        return list(map(watched, trainings))
    with get_context("fork").Pool(jobs) as pool:
        return pool.map(watched, trainings, chunksize=4)


SAYS = {
    "healthy": "healthy trainings with an alarm",
    "sick": "sick trainings whose Monitor names the kind",
    "coming": "divergences foretold five steps before the loss has doubled",
}


def table(figures):
    """Yield the lines of a table in markdown."""
    yield "| trainings | all | held out | by kind |"
    yield "|---|---:|---:|---|"
    for group, counts in figures.items():
        shares = {key: f"{hit} of {of}" for key, (hit, of) in counts.items()}
        halves = ("all", "held", "chosen", "healthy")
        kinds = ", ".join(f"{key} {one}" for key, one in shares.items() if key not in halves)
        whole, held = (percent(counts.get(half, (0, 0))) for half in halves[:2])
        yield f"| {SAYS[group]} | {whole} ({shares.get('all', '0 of 0')}) | {held} | {kinds} |"


def percent(counts):
    """Write a share."""
    hit, of = counts
    return f"{100 * hit / of:.1f} %" if of else "–"


def main():
    """Measure, print and save; return True at or above the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one training in eleven")
    parser.add_argument(
        "--markdown", action="store_true", help="the table of the last complete run"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes that run trainings")
    parser.add_argument("--wrong", action="store_true", help="list what falls short")
    options = parser.parse_args()
    if options.markdown:
        print("\n".join(table(json.loads(RESULTS.read_text())["figures"])))
        return True
    figures, seen = measure(options.quick, options.jobs)
    print("\n".join(table(figures)))
    for one in seen.values() if options.wrong else ():
        bad = one["counted"] is (one["kind"] == "healthy")
        if bad:
            print(
                one["name"],
                "doubled",
                one["doubled"],
                "alarms",
                one["alarms"],
                "said",
                one["said"],
                f"{one['first']:.3g} {one['end']:.3g}",
            )
    if not options.quick:
        RESULTS.write_text(
            json.dumps({"machine": machine(), "versions": versions(), "figures": figures}, indent=1)
            + "\n"
        )
    alarms, named, foretold = (
        hit / max(of, 1) for hit, of in (counts.get("all", (0, 0)) for counts in figures.values())
    )
    return alarms <= HEALTHY and named >= NAMED and foretold >= FORETOLD


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

"""Watch trainings with `vegrad.torch.Monitor`: healthy ones, sick ones, and ones that will diverge.

    python bench/trainings_torch.py            all of them; bench/results/trainings_torch.json
    python bench/trainings_torch.py --quick    one in ten; nothing is written
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
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from math import inf, isfinite
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from vegrad.benchmark.machine import environment
from vegrad.torch import Monitor

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results" / "trainings_torch.json"
DATA = ("digits", "breast_cancer", "wine", "diabetes")
BATCH, STEPS, FIXED = 32, 150, 256
AHEAD, FIRST, BAD = (
    5,
    12,
    60,
)  # steps between a warning and the doubling; the earliest that is foretold
HEALTHY, NAMED, FORETOLD = 0.01, 0.95, 0.70  # the bars


# Networks and optimizers ------------------------------------------------------------------------


def stack(inputs, widths, outputs, act, draw=None, between=()):
    """Return Linear layers with activations between; `draw` draws the weights anew."""
    sizes, layers = (inputs, *widths), []
    for a, b in pairwise(sizes):
        layers += [nn.Linear(a, b), *(make(b) for make in between), act()]
    model = nn.Sequential(*layers, nn.Linear(sizes[-1], outputs))
    for one in model if draw else ():
        if isinstance(one, nn.Linear):
            draw(one.weight)
            nn.init.zeros_(one.bias)
    return model


def he(weight):
    """Draw weights for ReLU."""
    nn.init.kaiming_normal_(weight, nonlinearity="relu")


SIZES = {
    "shallow": lambda i, o: stack(i, (32,), o, nn.ReLU),
    "deep": lambda i, o: stack(i, (64,) * 4, o, nn.ReLU, he),
    "tanh": lambda i, o: stack(i, (48,) * 6, o, nn.Tanh, nn.init.xavier_normal_),
    "normed": lambda i, o: stack(
        i, (64, 64), o, nn.GELU, between=(nn.BatchNorm1d, lambda _: nn.Dropout(0.1))
    ),
}
OPTIMIZERS = {
    "sgd": (lambda p, lr: torch.optim.SGD(p, lr), 0.05),
    "momentum": (lambda p, lr: torch.optim.SGD(p, lr, momentum=0.9), 0.01),
    "adam": (lambda p, lr: torch.optim.Adam(p, lr), 1e-3),
    "adamw": (lambda p, lr: torch.optim.AdamW(p, lr), 2e-3),
    "rmsprop": (lambda p, lr: torch.optim.RMSprop(p, lr), 1e-3),
}


def rows(name):
    """Return x and y of a data set, columns (and a regression's target) standardized."""
    data = getattr(datasets, f"load_{name}")()
    x = torch.tensor((data.data - data.data.mean(0)) / (data.data.std(0) + 1e-8))
    y = torch.tensor(data.target)
    if name == "diabetes":
        y = ((y - y.mean()) / y.std())[:, None].float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    return x.float()[order], y[order]


# Trainings --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """One training: what is built, how its steps go, and what is wrong with it."""

    kind: str
    data: str
    size: str = "deep"
    optimizer: str = "adam"
    seed: int = 0
    rate: float = 1.0
    """Times the usual one."""
    steps: int = STEPS
    make: Callable[[int, int], nn.Module] | None = None
    scale: float = 1.0
    """Of the data."""
    options: dict[str, Any] = field(default_factory=dict)
    """Of the optimizer, for its groups."""
    warmup: int = 0
    bad: int | None = None
    """The step whose batch is 8 times too large."""
    half: bool = False

    @property
    def name(self) -> str:
        """All that tells it from others."""
        more = f" ×{self.rate:g}" if self.rate != 1 else ""
        return f"{self.kind} {self.data} {self.size} {self.optimizer}{more} {self.seed}"

    @property
    def held(self) -> bool:
        """True if the limits were not chosen on it."""
        return sum(map(ord, self.name)) % 2 == 1

    def run(self):
        """Train; return the losses on fixed rows, before each step and at the end, and the Monitor.

        With them come the step and the cause of each alarm.
        """
        torch.manual_seed(self.seed)
        x, y = rows(self.data)
        x = x * self.scale
        outputs = 1 if y.is_floating_point() else int(y.max()) + 1
        model = (self.make or SIZES[self.size])(x.shape[1], outputs)
        if self.half:
            model, x = model.half(), x.half()
            y = y.half() if y.is_floating_point() else y
        loss_fn = nn.MSELoss() if y.is_floating_point() else nn.CrossEntropyLoss()
        build, rate = OPTIMIZERS[self.optimizer]
        rate *= self.rate
        optimizer = build(model.parameters(), rate)
        for group in optimizer.param_groups:
            group.update(self.options)
        random, seen, alarms = torch.Generator().manual_seed(self.seed), [], []
        monitor = Monitor(model, on_finding=lambda one: alarms.append((len(seen) - 1, one.cause)))
        for step in range(self.steps):
            seen.append(self.fixed(model, loss_fn, x, y))
            index = torch.randint(0, len(x), (BATCH,), generator=random)
            for group in optimizer.param_groups:
                group["lr"] = rate * min(1.0, (step + 1) / self.warmup) if self.warmup else rate
            optimizer.zero_grad()
            batch = x[index] * (8 if step == self.bad else 1)
            loss = loss_fn(model(batch), y[index])
            loss.backward()
            optimizer.step()
        seen.append(self.fixed(model, loss_fn, x, y))
        monitor.remove()
        return np.array(seen), monitor, alarms

    @staticmethod
    def fixed(model, loss_fn, x, y):
        """Return the loss on fixed rows, as in evaluation but with the batch's statistics."""
        drops = [one for one in model.modules() if isinstance(one, nn.Dropout | nn.BatchNorm1d)]
        for one in drops:
            one.track_running_stats, one.training = False, isinstance(one, nn.BatchNorm1d)
        with torch.no_grad():
            loss = float(loss_fn(model(x[:FIXED]), y[:FIXED]))
        for one in drops:
            one.track_running_stats, one.training = isinstance(one, nn.BatchNorm1d), True
        return loss


def healthy() -> Iterator[Training]:
    """Yield trainings with usual settings."""
    for data in DATA:
        for size in SIZES:
            for optimizer in OPTIMIZERS:
                for seed in range(4):
                    yield Training("healthy", data, size, optimizer, seed)


def large(factor):
    """Return a maker of deep networks whose weights are too large or too small."""
    return lambda i, o: stack(
        i,
        (64,) * 8,
        o,
        nn.ReLU,
        lambda w: nn.init.normal_(w, 0.0, factor * (2 / w.shape[1]) ** 0.5),
    )


def dead(i, o):
    """Return a network of which one layer's ReLUs are below 0 for all rows."""
    model = stack(i, (64,) * 4, o, nn.ReLU, he)
    nn.init.constant_(model[4].bias, -50.0)
    return model


def sick() -> Iterator[Training]:
    """Yield trainings with one thing wrong each."""
    for data in DATA:
        for optimizer in OPTIMIZERS:
            for seed in range(2):
                one = Training("", data, "deep", optimizer, seed)
                yield replace(
                    one,
                    kind="vanishing",
                    size="sigmoid",
                    make=lambda i, o: stack(i, (48,) * 9, o, nn.Sigmoid),
                )
                yield replace(one, kind="vanishing", size="small", make=large(0.35))
                yield replace(one, kind="exploding", size="large", make=large(3.0))
                yield replace(one, kind="dead", size="bias", make=dead)
                size = ("shallow", "deep", "tanh", "normed")[(seed * 2 + len(optimizer)) % 4]
                for other in (size, "deep"):
                    yield replace(one, kind="rate ×100", size=other, rate=100.0)
                    yield replace(one, kind="rate ÷1000", size=other, rate=1e-3)
                    yield replace(one, kind="data ×100", size=other, scale=100.0)


def coming() -> Iterator[Training]:
    """Yield trainings of which some will diverge; which, only their loss tells."""
    for data in DATA:
        for seed in range(1):
            for size in ("deep", "tanh", "shallow"):
                for optimizer in ("sgd", "momentum", "adam", "rmsprop"):
                    one = Training("rate", data, size, optimizer, seed)
                    for rate in (12.0, 25.0, 50.0):
                        yield replace(one, rate=rate)
                        yield replace(one, kind="warm-up", rate=rate, warmup=100)
                    for rate in (1.0, 3.0, 6.0):
                        yield replace(one, kind="bad batch", rate=rate, bad=BAD)
                for rate in (3.0, 10.0):
                    yield replace(
                        one,
                        kind="β₂",
                        optimizer="adam",
                        rate=rate,
                        options={"betas": (0.9, 0.99999)},
                        steps=250,
                    )
                    yield replace(
                        one,
                        kind="β₂",
                        optimizer="adam",
                        rate=rate,
                        options={"betas": (0.9, 0.99999)},
                        steps=250,
                        bad=80,
                    )
                for rate in (2.0, 5.0, 10.0):
                    yield replace(one, kind="float16", optimizer="sgd", rate=rate, half=True)


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
    """Return True or False for what is to be counted of a training, None if it is not of its kind."""
    if group == "healthy":
        return None if not one.end <= 0.6 * one.first else bool(one.alarms or one.said)
    if group == "sick":
        learned = isfinite(one.end) and one.end <= 1.5 * sibling.end
        return None if learned else bool(one.said) and one.said[0] in ACCEPTED[one.kind]
    earliest = max(FIRST, BAD + AHEAD + 1 if "bad" in one.name else 0)
    if one.doubled is None or one.recovered or one.doubled < earliest:
        return None
    return any(step <= one.doubled - AHEAD for step, _ in one.alarms)


def measure(quick, jobs):
    """Run all trainings; return the figures by group, kind and half, and what was seen."""
    groups = {"healthy": healthy, "sick": sick, "coming": coming}
    every = 10 if quick else 1
    figures, seen = {}, {}
    siblings = {}
    for group, make in groups.items():
        trainings = list(make())
        trainings = trainings[::every]
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
        kinds = [
            f"{key} {share}"
            for key, share in shares.items()
            if key not in ("all", "held", "chosen", "healthy")
        ]
        yield f"| {SAYS[group]} | {percent(counts['all'])} ({shares['all']}) | {percent(counts.get('held', (0, 0)))} | {', '.join(kinds)} |"


def percent(counts):
    """Write a share."""
    hit, of = counts
    return f"{100 * hit / of:.1f} %" if of else "–"


def main():
    """Measure, print and save; return True at or above the bars."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="one training in ten")
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
        RESULTS.write_text(json.dumps(environment() | {"figures": figures}, indent=1) + "\n")
    alarms, named, foretold = (
        hit / max(of, 1) for hit, of in (counts["all"] for counts in figures.values())
    )
    return alarms <= HEALTHY and named >= NAMED and foretold >= FORETOLD


if __name__ == "__main__":
    sys.exit(0 if main() else 1)

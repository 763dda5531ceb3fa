"""Trainings with `torch`, healthy ones and others, which `trainings_torch.py` watches."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn import datasets
from torch import nn
from vegrad.torch import Monitor

DATA = ("digits", "breast_cancer", "wine", "diabetes")
BATCH, STEPS, FIXED = 32, 150, 256
BAD = 60  # the step of a bad batch


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
        more += " with a bad batch" if self.bad is not None else ""
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
                for rate in (10.0, 30.0, 60.0):
                    slow = replace(
                        one,
                        kind="β₂",
                        optimizer="adam",
                        rate=rate,
                        options={"betas": (0.9, 0.9999)},
                        warmup=150,
                        steps=250,
                    )
                    yield slow
                    yield replace(slow, bad=80)
                for rate in (10.0, 20.0, 40.0):
                    for optimizer in ("sgd", "momentum"):
                        yield replace(
                            one,
                            kind="float16",
                            optimizer=optimizer,
                            rate=rate,
                            warmup=100,
                            half=True,
                        )

"""Trainings to judge: healthy ones, sick ones, and some that are going to diverge.

What a case is called says how it was made; how it went is told by its loss and accuracy alone. The
two halves differ in seeds, sizes, activations and optimizers: limits were chosen on the first, and
figures are of the second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

import numpy as np
from vegrad import MLP, clipping, datasets, optim

HALVES = ("tuning", "held out")
SEEDS = {"tuning": 0, "held out": 2}  # 1 was held out before limits were last changed
# What a training must reach on rows that it has not seen: a share of them, or a mean square.
GOALS = {"digits": 0.92, "breast_cancer": 0.92, "wine": 0.9, "diabetes": 0.75}
SIZES: dict[str, tuple[list[int], list[int]]] = {
    "tuning": ([16, 32, 64, 128], [1, 2, 3]),
    "held out": ([20, 40, 80, 144], [1, 2, 3, 5]),
}
ACTIVATIONS = {
    "tuning": [("relu", "he_normal"), ("tanh", "glorot_uniform"), ("gelu", "he_normal")],
    "held out": [
        ("relu", "he_uniform"),
        ("leaky_relu", "he_normal"),
        ("silu", "he_normal"),
        ("elu", "lecun_normal"),
        ("tanh", "lecun_normal"),
    ],
}
# Each with learning rates that are usual for it.
OPTIMIZERS: dict[str, list[tuple[str, dict[str, Any], list[float]]]] = {
    "tuning": [
        ("SGD", {}, [0.03, 0.1]),
        ("SGD", {"momentum": 0.9}, [0.005, 0.02]),
        ("Adam", {}, [1e-3, 3e-3]),
        ("AdamW", {}, [1e-3, 3e-3]),
        ("Lion", {}, [1e-4, 5e-4]),
    ],
    "held out": [
        ("SGD", {}, [0.05, 0.15]),
        ("SGD", {"momentum": 0.9, "nesterov": True}, [0.01, 0.03]),
        ("SGD", {"momentum": 0.8}, [0.01, 0.03]),
        ("Adam", {"betas": (0.9, 0.99)}, [7e-4, 2e-3, 5e-3]),
        ("Adam", {"amsgrad": True}, [2e-3]),
        ("AdamW", {"weight_decay": 0.1}, [7e-4, 2e-3, 5e-3]),
        ("Lion", {"weight_decay": 0.01}, [2e-4, 4e-4]),
    ],
}
FAULTS = ("vanishing", "exploding", "dead", "rate x100", "rate /1000", "data x100")
DIVERGENCES = ("constant", "rising")


@dataclass(frozen=True)
class Case:
    """A training, ready to be run."""

    half: str
    number: int
    fault: str
    data: str
    network: dict[str, Any]
    optimizer: tuple[str, dict[str, Any]]
    rate: float
    schedule: str
    clip: float | None
    batch_size: int
    epochs: int
    factor: float = 1.0
    """Of the rate, beside what is usual."""
    extra: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """A line that describes it."""
        name, options = self.optimizer
        words = [self.data, *self.network["hidden"], self.network["activation"], name, options]
        return " ".join(map(str, [*words, self.rate, self.schedule, self.clip, self.fault]))


def healthy(half: str, count: int) -> Iterator[Case]:
    """Yield trainings with settings that are usual."""
    for number in range(count):
        yield _drawn(half, number, "")


def sick(half: str, count: int) -> Iterator[Case]:
    """Yield trainings with a fault each, `count` for every one."""
    for place, fault in enumerate(FAULTS):
        for number in range(count):
            yield _spoilt(_drawn(half, 10000 * (place + 1) + number, fault))


def diverging(half: str, count: int) -> Iterator[Case]:
    """Yield trainings with a rate that is a little too high, or becomes so; not all diverge."""
    for number in range(count):
        case = _drawn(half, 100000 + number, DIVERGENCES[number % len(DIVERGENCES)])
        yield replace(case, clip=None, schedule="constant")


def harder(case: Case) -> Iterator[Case]:
    """Yield a case with higher and higher rates: the first that diverges is a little too high."""
    factor = 1.0
    while factor < 1000:
        yield replace(case, factor=factor)
        factor *= 1.3 if case.fault == "constant" else 3.0


def _drawn(half: str, number: int, fault: str) -> Case:
    random = np.random.default_rng([SEEDS[half], number])

    def one(options: Any) -> Any:
        return options[int(random.integers(len(options)))]

    data = one(sorted(GOALS))
    widths, depths = SIZES[half]
    activation, init = one(ACTIVATIONS[half])
    name, options, rates = one(OPTIMIZERS[half])
    network = {
        "hidden": [one(widths)] * one(depths),
        "activation": activation,
        "init": init,
        "seed": 1000 * SEEDS[half] + number,
    }
    batch = one([16, 32, 64])
    epochs = {"digits": 8, "breast_cancer": 15, "wine": 30, "diabetes": 15}[data]
    return Case(
        half,
        number,
        fault,
        data,
        network,
        (name, options),
        rate=one(rates),
        schedule=one(["constant", "constant", "cosine", "warmup"]),
        clip=one([None, None, 1.0]),
        batch_size=batch,
        epochs=epochs * one([1, 2]),
    )


def _spoilt(case: Case) -> Case:
    """Plant the fault of a case."""
    random = np.random.default_rng(case.number + 77)
    network, hidden = dict(case.network), case.network["hidden"][0]
    if case.fault == "vanishing":
        activation, init, sigma = (
            ("sigmoid", "glorot_uniform", None),
            ("tanh", "normal", float(random.uniform(0.3, 0.6))),
            ("relu", "normal", float(random.uniform(0.4, 0.8))),
            ("gelu", "normal", float(random.uniform(0.4, 0.8))),
        )[int(random.integers(4))]
        depth = int(random.integers(15, 40))
        network |= {"hidden": [hidden] * depth, "activation": activation, "init": init}
        network |= {} if sigma is None else {"sigma_w": sigma}
    elif case.fault == "exploding":
        sigma = float(random.uniform(2.8, 5.0))
        depth = int(random.integers(8, 25))
        network |= {"hidden": [hidden] * depth, "init": "normal", "sigma_w": sigma}
        network["activation"] = ("relu", "leaky_relu", "tanh")[int(random.integers(3))]
        network["sigma_w"] = sigma * (1.5 if network["activation"] == "tanh" else 1.0)
    elif case.fault == "dead":
        network |= {"activation": "relu", "init": "he_normal"}
        depth = len(network["hidden"])
        extra = {"layer": int(random.integers(depth)), "bias": -float(random.uniform(8, 40))}
        return replace(case, network=network, extra=extra)
    elif case.fault == "rate x100":
        return replace(case, factor=100.0)
    elif case.fault == "rate /1000":
        return replace(case, factor=1e-3)
    return replace(case, network=network)


@cache
def _rows(name: str) -> tuple[Any, Any, Any, Any, str, int]:
    data = datasets.load(name)
    order = np.random.default_rng(0).permutation(len(data.x))
    held, learn = np.split(order, [len(order) // 5])
    target = data.target(data.loss)
    outputs = data.outputs(data.loss)
    return data.x, target, learn, held, data.loss, outputs


def run(case: Case, **options: Any) -> dict[str, Any]:
    """Train a case; return its history, why it ended, and whether it reached its goal.

    `options` are passed on to `fit`.
    """
    x, target, learn, held, loss, outputs = _rows(case.data)
    x = x * (100.0 if case.fault == "data x100" else 1.0)
    settings = dict(case.network)
    hidden = settings.pop("hidden")
    network = MLP([x.shape[1], *hidden, outputs], loss=loss, **settings)
    if "bias" in case.extra:
        network.parameters[f"layers.{case.extra['layer']}.bias"][:] = case.extra["bias"]
    steps = case.epochs * -(-len(learn) // case.batch_size)
    name, arguments = case.optimizer
    clip = None if case.clip is None else clipping.GlobalNorm(case.clip)
    optimizer = getattr(optim, name)(_rate(case, steps), **arguments, clip=clip)
    fit = partial(network.fit, x[learn], target[learn], optimizer=optimizer, epochs=case.epochs)
    fit = partial(fit, batch_size=case.batch_size, seed=case.number, progress=False)
    ended = ""
    try:
        history = fit(validation=(x[held], target[held]), **options)
    except ValueError as error:
        history, ended = error.history, type(error).__name__  # type: ignore[attr-defined]
    return {
        "history": history,
        "loss": history.loss,
        "findings": history.findings,
        "ended": ended,
        "reached": _reached(case, history),
    }


def _rate(case: Case, steps: int) -> Any:
    rate = case.rate * case.factor
    if case.fault == "rising":  # from a usual one to ten times the one that is drawn
        growth = (10 * case.factor) ** (1 / steps)
        return lambda step: case.rate * growth**step
    warm = steps // 10
    return {
        "constant": lambda: rate,
        "cosine": lambda: optim.cosine(rate, steps, warmup=warm),
        "warmup": lambda: optim.warmup(rate, warm),
    }[case.schedule]()


def _reached(case: Case, history: Any) -> bool:
    """Return True if the goal was reached in the end."""
    if not history.epochs or not np.isfinite(history.loss).all():
        return False
    if case.data == "diabetes":
        return bool(history.epoch_loss[-1] < GOALS[case.data])
    return bool(history.validation_accuracy[-1] >= GOALS[case.data])

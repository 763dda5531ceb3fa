"""What remedies get and give: a patient, a treatment, and the code that leads to it."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.networks.diagnosis import diagnose
from vegrad.networks.mlp import MLP
from vegrad.optim import Optimizer

Scaling = tuple[Array, Array]
AS_IT_IS = "as it is"


@dataclass(frozen=True)
class Treatment:
    """A network to be trained, and how it came to be.

    `code` are the lines of Python that lead to it from what the user has; `scaling` is the shift
    and the scale (I,) that x is to be put through, (x - shift)/scale.
    """

    words: str
    network: MLP
    optimizer: Optimizer
    code: tuple[str, ...] = ()
    scaling: Scaling | None = None

    def prepared(self, x: Array) -> Array:
        """The inputs as the network shall see them."""
        return x if self.scaling is None else (x - self.scaling[0]) / self.scaling[1]


@dataclass
class Patient:
    """What a remedy may look at: the data, the network so far, what is known of it.

    `history` is of the training that has failed, if there was one. `passed` counts the rows that
    went forward and back (a third of one if only forward).
    """

    given: Treatment
    x: Array
    target: Array
    rows: Array
    """Which rows are looked at: all, or a draw."""
    diagnosis: Diagnosis
    seed: int
    history: History | None = None
    passed: float = 0.0

    def look(self, treatment: Treatment) -> Diagnosis:
        """Diagnose a treatment's network on the rows to look at."""
        self.passed += len(self.rows)
        x, target = self.sample(treatment), self.target[self.rows]
        return diagnose(treatment.network, x, target, resamples=0, theory=False)

    def sample(self, treatment: Treatment) -> Array:
        """The rows to look at, as the treatment wants them."""
        return treatment.prepared(self.x[self.rows])

    @property
    def kinds(self) -> set[str]:
        """What was found."""
        return {finding.kind for finding in self.diagnosis.findings}


@dataclass(frozen=True)
class Remedy:
    """One row of `REMEDIES`: for what it is tried, and the function that makes the change.

    While it is tried, `kept` of the usual budget is left for those that come after it. `skips`
    says that its network has skip connections, `followed` that its training's history may ask for
    another change on top of it.
    """

    name: str
    kinds: frozenset[str]
    apply: Callable[[Patient], Treatment | str]
    kept: float = 0.7
    skips: bool = False
    followed: bool = True


def clone(network: MLP) -> MLP:
    """A copy, to the bit."""
    twin = MLP(**(network.config | {"seed": network.config["seed"] or 0}))
    twin.config["seed"] = network.config["seed"]
    for name, array in network.parameters.items():
        twin.parameters[name][...] = array
    return twin


def renewed(optimizer: Optimizer, *, factor: float = 1.0, **changes: Any) -> Optimizer:
    """The optimizer as it began, its learning rate times `factor`."""
    lr: Any = optimizer.lr
    if factor != 1.0:
        schedule = lr
        lr = (lambda step: factor * schedule(step)) if callable(schedule) else factor * schedule
    arguments: dict[str, Any] = {"clip": copy.deepcopy(optimizer.clip)} | optimizer._arguments
    return type(optimizer)(lr, **(arguments | changes))


# Code ------------------------------------------------------------------------------------------


def written(network: MLP) -> str:
    """The call that makes a network like this."""
    sizes, texts = network.config["sizes"], []
    start = 0
    while start < len(sizes):
        end = start
        while end < len(sizes) and sizes[end] == sizes[start]:
            end += 1
        run = end - start
        texts += [f"*[{sizes[start]}] * {run}"] if run > 3 else [str(sizes[start])] * run
        start = end
    return f"vegrad.MLP([{', '.join(texts)}], {_changed(MLP, network.config, ('sizes',))})"


def written_optimizer(optimizer: Optimizer) -> str:
    """The call that makes an optimizer like this."""
    arguments = dict(optimizer._arguments)
    lr = "schedule" if callable(optimizer.lr) else f"{optimizer.lr:.6g}"
    more = _changed(type(optimizer), arguments, ())
    clip = "" if optimizer.clip is None else f", clip=vegrad.clipping.{optimizer.clip!r}"
    return f"vegrad.{type(optimizer).__name__}({lr}{', ' if more else ''}{more}{clip})"


def _changed(function: Any, arguments: dict[str, Any], without: Sequence[str]) -> str:
    defaults = {k: v.default for k, v in inspect.signature(function).parameters.items()}
    shown = {k: v for k, v in arguments.items() if k not in without and defaults.get(k) != v}
    return ", ".join(f'{k}="{v}"' if isinstance(v, str) else f"{k}={v!r}" for k, v in shown.items())


def plain(layers: Sequence[int]) -> str:
    """Layers as code: a range if they are one."""
    first, last = layers[0], layers[-1]
    whole = len(layers) > 2 and list(layers) == list(range(first, last + 1))
    return f"range({first}, {last + 1})" if whole else f"{list(layers)}"

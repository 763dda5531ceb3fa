"""Optimizers for weights in any kind of buffer, with clipping inside the step.

`step(params, grads)` changes the weights in place and leaves the gradients as they are; it reads
them once for the norm of the clip and once for the step. Weights are float32 or float64 buffers:
NumPy arrays or CPU tensors of any shape and strides, one alone, a sequence or a mapping, nested as
`vegrad.measure` takes them. Gradients may have any dtype that `vegrad.clipping` takes. The
optimizer's state, such as momenta, has the dtype of the weights. A parameter whose gradient is None
is passed over, and so are all that lie where the gradients have None. Names, defaults and formulas
are those of torch.optim.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import cos, pi
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad._core import Clipped
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers, FloatArray
from vegrad.clipping.rules import Learn, Request, Rule

Rate = float | Callable[[int], float]


class Trainer(Protocol):
    """Stepper of a training: the core's `Trainer`, or something like it."""

    @property
    def done(self) -> int:
        """How many steps the last run made."""

    @property
    def taken(self) -> int:
        """The same without those that were skipped."""

    @property
    def clipped(self) -> _core.Clipped:
        """Result of the clip in the last step."""

    def run(
        self,
        optimizer: _core.Optimizer,
        order: npt.NDArray[np.int64],
        rates: npt.NDArray[np.float64],
        records: npt.NDArray[np.float64],
        seconds: float,
        gauge: tuple[int, int],
        rule: str,
        limit: object,
        ord: float,
        nonfinite: str,
        eps: float,
    ) -> None:
        """Take a step for each record, on batches of rows in this order."""


class Optimizer:
    """The base class of all optimizers."""

    _kind: ClassVar[str]

    def __init__(self, lr: Rate, clip: Rule | None, arguments: dict[str, Any]) -> None:
        if clip is not None and not isinstance(clip, Rule):
            raise TypeError(
                "clip must be a rule of vegrad.clipping, as GlobalNorm(1.0), or None, not "
                f"{type(clip).__name__}"
            )
        self.lr: Rate = lr if callable(lr) else checks.as_limit("lr", lr)
        self.clip = clip
        self.steps = 0
        """The number of steps taken so far."""
        self._arguments = arguments
        self._core = self._make()

    def _make(self) -> _core.Optimizer:
        a = self._arguments
        flags = {name: bool(a.get(name, False)) for name in ("nesterov", "amsgrad", "maximize")}
        numbers: dict[str, Any] = {
            name: a[name] for name in ("momentum", "dampening", "eps", "weight_decay") if name in a
        }
        if "betas" in a:
            numbers |= {"beta1": a["betas"][0], "beta2": a["betas"][1]}
        decoupled = isinstance(self, AdamW | Lion)
        return _core.Optimizer(kind=self._kind, decoupled=decoupled, **numbers, **flags)

    def __repr__(self) -> str:
        arguments = {"lr": self.lr, **self._arguments, "clip": self.clip}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    def rate(self, step: int | None = None) -> float:
        """Return the learning rate of a step, counted from 0; by default that of the next step."""
        if not callable(self.lr):
            return self.lr
        return checks.as_limit("lr", self.lr(self.steps if step is None else step))

    def step(self, params: Buffers, grads: Buffers) -> Clipped:
        """Take one step in place, and return what the clip found and did.

        Args:
            params: the weights.
            grads: gradients with the same names (or number), nesting and shapes; they are never
                written.

        Raises:
            TypeError, ValueError: the buffers do not fit, or two have the same name once theirs are
                joined by dots; nothing has changed.
            NonFiniteGradientError: a gradient is not finite and the rule of the clip wants this
                error; nothing has changed. Without a clip nothing looks for NaN and inf.
        """
        rate = self.rate()
        grads, request, learn = self._prepare(grads)
        clipped = self._core.step(params, grads, rate, *request)
        if learn is not None:
            learn(clipped)
        self.steps += not clipped.skipped
        return clipped

    def run(
        self,
        trainer: Trainer,
        grads: Buffers,
        order: npt.NDArray[np.int64],
        records: FloatArray,
        *,
        rows: int,
        gauge: tuple[int, int],
        seconds: float,
    ) -> None:
        """Train for about `seconds` on batches of `rows` rows, in the `order` given; for `fit`.

        There is a step for each row of `records`, one a batch or as many as the trainer takes on
        it, and each of the trainer.done steps fills its row. If the rule of the clip learns from
        its results, only one step is taken. `gauge` says which steps are gauged: the first of
        them, counted from here, and the distance to the next; 0 for none.
        """
        _, request, learn = self._prepare(grads)
        if learn is not None:
            order, records = order[:rows], records[:1]
        rates = np.empty(len(records))
        rates[:] = (
            [self.rate(self.steps + step) for step in range(len(records))]
            if callable(self.lr)
            else self.lr
        )
        try:
            trainer.run(self._core, order, rates, records, seconds, gauge, *request)
        finally:
            self.steps += trainer.taken
        if learn is not None:
            learn(trainer.clipped)

    def _prepare(self, grads: Buffers) -> tuple[Any, Request, Learn | None]:
        if self.clip is None:
            return grads, ("none", None, 2.0, "propagate", 0.0), None
        return self.clip.prepare(grads)

    def state_dict(self) -> dict[str, Any]:
        """Return arguments, steps, and copies of the state of each buffer.

        `state["state"]` has them by the names that `vegrad.measure` gives: "layers.0.weight".
        """
        return {
            "optimizer": type(self).__name__,
            "arguments": {"lr": None if callable(self.lr) else self.lr, **self._arguments},
            "steps": self.steps,
            "state": self._core.state(),
            "clip": None if self.clip is None else self.clip.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a state; ValueError, and no change, if it is broken or of another optimizer.

        The arguments become those of the state, including the learning rate unless that was a
        function, which a state cannot hold.
        """
        checks.check_state(state, "optimizer", self.state_dict())
        if (state["clip"] is None) != (self.clip is None):
            raise ValueError("state and optimizer must both have a clip, or neither")
        try:
            arguments = dict(state["arguments"])
            lr = arguments.pop("lr")
            fresh = type(self)(lr=self.lr if lr is None else lr, clip=self.clip, **arguments)
            fresh.steps = checks.as_count("steps", state["steps"])
            fresh._core.load(dict(state["state"]))
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"state must be as state_dict() gave it: {error}") from error
        if self.clip is not None:
            self.clip.load_state_dict(state["clip"])
        vars(self).update(vars(fresh))


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    g += weight_decay · p; buf = momentum · buf + (1 - dampening) · g, or g at the first step;
    p -= lr · buf, or lr · (g + momentum · buf) if nesterov.
    """

    _kind = "sgd"

    def __init__(
        self,
        lr: Rate = 1e-3,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "momentum": checks.as_limit("momentum", momentum),
            "dampening": checks.as_limit("dampening", dampening),
            "weight_decay": checks.as_limit("weight_decay", weight_decay),
            "nesterov": _flag("nesterov", nesterov),
            "maximize": _flag("maximize", maximize),
        }
        if nesterov and (momentum == 0 or dampening != 0):
            raise ValueError(
                "nesterov must come with a momentum and without dampening, not with"
                f" momentum={momentum} and dampening={dampening}"
            )
        super().__init__(lr, clip, arguments)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2014, arXiv:1412.6980); weight decay is added to the gradient.

    m += (1 - β1)(g - m); v = β2 v + (1 - β2) g²; p -= lr/(1 - β1^t) · m/(√v/√(1 - β2^t) + eps).
    With amsgrad, the largest v so far stands for v.
    """

    _kind = "adam"

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "betas": _betas(betas),
            "eps": checks.as_limit("eps", eps),
            "weight_decay": checks.as_limit("weight_decay", weight_decay),
            "amsgrad": _flag("amsgrad", amsgrad),
            "maximize": _flag("maximize", maximize),
        }
        super().__init__(lr, clip, arguments)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101).

    First p *= 1 - lr · weight_decay, then the step of Adam.
    """

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        super().__init__(lr, betas, eps, weight_decay, amsgrad, maximize=maximize, clip=clip)


class Lion(Optimizer):
    """Lion (Chen et al. 2023, arXiv:2302.06675).

    u = β1 m + (1 - β1) g; p ← p (1 - lr · weight_decay) - lr · sign(u); m = β2 m + (1 - β2) g.
    """

    _kind = "lion"

    def __init__(
        self,
        lr: Rate = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "betas": _betas(betas),
            "weight_decay": checks.as_limit("weight_decay", weight_decay),
            "maximize": _flag("maximize", maximize),
        }
        super().__init__(lr, clip, arguments)


def warmup(lr: float, steps: int) -> Callable[[int], float]:
    """Return a rate that rises linearly to `lr` over the first `steps` steps and then stays."""
    top, count = checks.as_limit("lr", lr), checks.as_count("steps", steps)
    return lambda step: top * min(1.0, (step + 1) / max(count, 1))


def cosine(lr: float, steps: int, *, final: float = 0.0, warmup: int = 0) -> Callable[[int], float]:
    """Return a rate that rises for `warmup` steps, then falls by a cosine to `final` at `steps`.

    Source: Loshchilov & Hutter 2016, arXiv:1608.03983, without restarts.
    """
    top, last, rise = (
        checks.as_limit("lr", lr),
        checks.as_count("steps", steps),
        checks.as_count("warmup", warmup),
    )
    bottom = checks.as_limit("final", final)
    if rise > last:
        raise ValueError(f"warmup must be at most steps, {steps}, not {warmup}")

    def rate(step: int) -> float:
        if step < rise:
            return top * (step + 1) / rise
        done = min(1.0, (step - rise) / max(last - rise, 1))
        return bottom + (top - bottom) * (1 + cos(pi * done)) / 2

    return rate


def _betas(betas: object) -> tuple[float, float]:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, not {betas!r}")
    return checks.as_fraction("betas[0]", betas[0]), checks.as_fraction("betas[1]", betas[1])


def _flag(argument: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, not {value!r}")
    return value

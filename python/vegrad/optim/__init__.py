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
from copy import deepcopy
from functools import partial
from typing import Any, ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad._core import Clipped
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers, FloatArray, Number
from vegrad.arrays.shown import shown
from vegrad.clipping.rules import Loss, Prepared, Rule, as_known
from vegrad.optim.schedules import cosine, warmup

__all__ = ["SGD", "Adam", "AdamW", "Lion", "Optimizer", "cosine", "warmup"]

Rate = Number | Callable[[int], float]


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


def _argument(name: str) -> property:
    return property(
        lambda self: self._arguments[name],
        lambda self, value: self._change(name, value),
        doc="Argument that may be changed between steps, and is checked again then.",
    )


class Optimizer:
    """The base class of all optimizers.

    Arguments may be changed between steps, such as `optimizer.weight_decay = 0.0`: they are checked
    as when the optimizer is made, and count from the next step. Copies and pickles have a state of
    their own.
    """

    __slots__ = ("__weakref__", "_arguments", "_clip", "_core", "_lr", "steps")

    _kind: ClassVar[str]
    steps: int
    """The number of steps taken so far."""
    _lr: float | Callable[[int], float]
    maximize = _argument("maximize")

    def __init__(self, lr: Rate, clip: Rule | None, arguments: dict[str, Any]) -> None:
        self.lr = lr
        self.clip = clip
        self.steps = 0
        self._arguments = arguments
        self._core = self._make()

    @property
    def lr(self) -> float | Callable[[int], float]:
        """The learning rate, or a function that gives it for each step."""
        return self._lr

    @lr.setter
    def lr(self, lr: Rate) -> None:
        self._lr = lr if callable(lr) else checks.as_finite("lr", lr)

    @property
    def clip(self) -> Rule | None:
        """The rule that clips the gradients before each step."""
        return self._clip

    @clip.setter
    def clip(self, clip: Rule | None) -> None:
        if clip is not None and not isinstance(clip, Rule):
            wanted = "a rule of vegrad.clipping, as GlobalNorm(1.0), or None"
            raise TypeError(f"clip must be {wanted}, not {type(clip).__name__}")
        self._clip = clip

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

    def _change(self, name: str, value: object) -> None:
        """Go on with another argument from the same state."""
        fresh = type(self)(self._lr, clip=self._clip, **(self._arguments | {name: value}))
        state = self._core.state()
        if name == "momentum" and not self._arguments[name]:
            state = {}  # it has only numbers of steps, and momentum begins with the next gradient
        if name == "amsgrad" and value:
            for one in state.values():
                one.setdefault("largest_square", np.zeros_like(one["square"]))
        fresh._core.load(state)
        self._arguments, self._core = fresh._arguments, fresh._core

    def __copy__(self) -> Optimizer:
        return deepcopy(self)

    def __reduce__(self) -> tuple[object, ...]:
        made = partial(type(self), **self._arguments)
        return made, (self._lr,), (self._clip, self.steps, self._core.state())

    def __setstate__(self, state: tuple[Rule | None, int, dict[str, Any]]) -> None:
        self.clip, self.steps, kept = state
        self._core.load(kept)

    def __repr__(self) -> str:
        arguments = {"lr": self.lr, **self._arguments, "clip": self.clip}
        return f"{type(self).__name__}({', '.join(f'{k}={v!r}' for k, v in arguments.items())})"

    def rate(self, step: int | None = None) -> float:
        """Return the learning rate of a step, counted from 0; by default that of the next step."""
        lr = self._lr
        if not callable(lr):
            return lr
        return checks.as_finite("lr", lr(self.steps if step is None else step))

    def step(self, params: Buffers, grads: Buffers, *, loss: Number | None = None) -> Clipped:
        """Take one step in place, and return what the clip found and did.

        Without a clip the result has the norm and its `nonfinite` is 0, as nothing looks for NaN
        and inf. A tensor that requires gradients is changed as under `torch.no_grad()`, but
        PyTorch's version counter does not count it: run a backward pass before the step, not after
        it. (`vegrad.torch` counts.)

        Args:
            params: the weights.
            grads: gradients with the same names (or number), nesting and shapes; they are never
                written.
            loss: of this step, for a clip that judges by it: `vegrad.clipping.SkipSpike`.

        Raises:
            TypeError, ValueError: the buffers do not fit, or two have the same name once theirs are
                joined by dots; nothing has changed.
            NonFiniteGradientError: a gradient is not finite and the rule of the clip wants this
                error; nothing has changed.
        """
        rate, known = self.rate(), as_known(loss)
        grads, request, learn = self._prepare(grads, known)
        clipped = self._core.step(params, grads, rate, *request)
        if learn is not None:
            learn(clipped)
        self.steps += not clipped.skipped
        return clipped

    def _run(
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
        # The trainer notes the loss of a step before it asks for the limit.
        _, request, learn = self._prepare(grads, lambda: float(records[0, 0]))
        if learn is not None:
            order, records = order[:rows], records[:1]
        rates = np.empty(len(records))
        rates[:] = (
            [self.rate(self.steps + step) for step in range(len(records))]
            if callable(self._lr)
            else self._lr
        )
        try:
            trainer.run(self._core, order, rates, records, seconds, gauge, *request)
        finally:
            self.steps += trainer.taken
        if learn is not None:
            learn(trainer.clipped)

    def _prepare(self, grads: Buffers, loss: Loss | None) -> Prepared:
        if self._clip is None:
            return grads, ("none", None, 2.0, "propagate", 0.0), None
        return self._clip.prepare(grads, loss)

    def state_dict(self) -> dict[str, Any]:
        """Return arguments, steps, and copies of the state of each buffer.

        `state["state"]` has them by the names that `vegrad.measure` gives, "layers.0.weight", with
        the shapes of the weights. A learning rate that is a function is None in it.
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

        The arguments become those of the state, including the learning rate. If that was a
        function, which a state cannot hold, this optimizer's must be one too, and stays.
        """
        checks.check_state(state, "optimizer", self.state_dict())
        if (state["clip"] is None) != (self.clip is None):
            raise ValueError("state and optimizer must both have a clip, or neither")
        try:
            arguments = dict(state["arguments"])
            lr = arguments.pop("lr")
            if lr is None and not callable(self.lr):
                said = (
                    f"its lr was a function, and the optimizer's is {self.lr:g}: make it with the "
                )
                raise ValueError(f"{said}function, or with one such as lambda step: {self.lr:g}")
            fresh = type(self)(lr=self.lr if lr is None else lr, clip=self.clip, **arguments)
            fresh.steps = checks.as_count("steps", state["steps"], most=2**63 - 1)
            fresh._core.load(dict(state["state"]))
            if self.clip is not None:
                self.clip.load_state_dict(state["clip"])
        except (TypeError, ValueError, KeyError, RuntimeError) as error:
            raise ValueError(f"state must be as state_dict() gave it: {error}") from error
        self._lr, self.steps = fresh._lr, fresh.steps
        self._arguments, self._core = fresh._arguments, fresh._core


class SGD(Optimizer):
    """Stochastic gradient descent with momentum.

    g += weight_decay · p; buf = momentum · buf + (1 - dampening) · g, or g at the first step;
    p -= lr · buf, or lr · (g + momentum · buf) if nesterov.
    """

    __slots__ = ()

    _kind: ClassVar = "sgd"
    momentum, dampening = _argument("momentum"), _argument("dampening")
    weight_decay, nesterov = _argument("weight_decay"), _argument("nesterov")

    def __init__(
        self,
        lr: Rate = 1e-3,
        momentum: Number = 0.0,
        dampening: Number = 0.0,
        weight_decay: Number = 0.0,
        nesterov: bool = False,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "momentum": checks.as_finite("momentum", momentum),
            "dampening": checks.as_finite("dampening", dampening),
            "weight_decay": checks.as_finite("weight_decay", weight_decay),
            "nesterov": checks.as_flag("nesterov", nesterov),
            "maximize": checks.as_flag("maximize", maximize),
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

    __slots__ = ()

    _kind: ClassVar = "adam"
    betas, eps = _argument("betas"), _argument("eps")
    weight_decay, amsgrad = _argument("weight_decay"), _argument("amsgrad")

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 0.0,
        amsgrad: bool = False,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "betas": _betas(betas),
            "eps": checks.as_finite("eps", eps),
            "weight_decay": checks.as_finite("weight_decay", weight_decay),
            "amsgrad": checks.as_flag("amsgrad", amsgrad),
            "maximize": checks.as_flag("maximize", maximize),
        }
        super().__init__(lr, clip, arguments)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2017, arXiv:1711.05101).

    First p *= 1 - lr · weight_decay, then the step of Adam.
    """

    __slots__ = ()

    def __init__(
        self,
        lr: Rate = 1e-3,
        betas: tuple[Number, Number] = (0.9, 0.999),
        eps: Number = 1e-8,
        weight_decay: Number = 1e-2,
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

    __slots__ = ()

    _kind: ClassVar = "lion"
    betas, weight_decay = _argument("betas"), _argument("weight_decay")

    def __init__(
        self,
        lr: Rate = 1e-4,
        betas: tuple[Number, Number] = (0.9, 0.99),
        weight_decay: Number = 0.0,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        arguments = {
            "betas": _betas(betas),
            "weight_decay": checks.as_finite("weight_decay", weight_decay),
            "maximize": checks.as_flag("maximize", maximize),
        }
        super().__init__(lr, clip, arguments)


def _betas(betas: object) -> tuple[float, float]:
    if not isinstance(betas, tuple | list) or len(betas) != 2:
        raise TypeError(f"betas must be two numbers, not {shown(betas)}")
    return checks.as_fraction("betas[0]", betas[0]), checks.as_fraction("betas[1]", betas[1])

"""The changes that an optimizer's steps make to a model's weights, in samples of their elements.

In the beginning samples come at fixed steps, later at some of those that are looked at. A sampled
step costs two copies of a few elements of each parameter. They stay on the parameters'
device until they are asked for.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from math import inf, isnan, nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from vegrad.arrays.cached import cached_property
from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.watched import Sample, Update
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.monitor.scaling import factor_of
from vegrad.torch.optimizer_state import CoreState
from vegrad.torch.optimizer_step import Group

ELEMENTS = 64  # of a parameter
FIRST, BEGINNING = 3, 24  # samples that are kept; steps of which every second one is sampled
EVERY, LATE, RARELY = 5, 300, 10  # one in so many steps is sampled then, and after step LATE
RAISED = 2.0  # times the rate of the last sample: a step at such a rate is sampled at once
KEEP = 8
SQUARES = ("exp_avg_sq", "square_avg", "sum")  # states under a root, beside ε


class _Setting(NamedTuple):
    """The numbers of a parameter's group, as they were at a step."""

    rate: float
    decay: float
    decoupled: bool
    epsilon: float
    second: float
    """β₂; nan where there is none."""
    rough: bool
    """True of RMSprop's and Adagrad's without momentum: divided by a size, but not averaged."""


@dataclass(eq=False)
class Taken:
    """A sampled step: elements of each parameter, on its device until they are asked for."""

    step: int
    optimizer: int
    settings: list[_Setting]
    peak: float
    places: list[int]
    counts: list[int]
    """Elements of each parameter."""
    before: Tensor
    """Weights of all before the step, and then their gradients."""
    new: Tensor | None = None
    squares: dict[int, tuple[Tensor, object]] = field(default_factory=dict)
    """The running square of each gradient and its number of steps, by the parameter's place."""

    @property
    def rough(self) -> bool:
        """True if the steps are divided by the gradients' size, but are not averaged over steps."""
        return all(one.rough for one in self.settings)

    @cached_property
    def arrays(self) -> FloatArray:
        """The weights before the step and after it, and the gradients, in numbers, (3, E)."""
        before = self.before.double().cpu().numpy().reshape(2, -1)
        new = before[:1] if self.new is None else self.new.double().cpu().numpy()[None]
        return np.concatenate([before[:1], new, before[1:]])

    @cached_property
    def sizes(self) -> FloatArray:
        """Root mean squares of each one's weights, of their change and of its gradient, (3, P)."""
        old, new, grads = self.arrays
        with np.errstate(over="ignore", invalid="ignore"):
            squares = np.square(np.stack([old, new - old, grads]))
            return np.sqrt(_sums(squares, self.parts) / self.parts)

    @property
    def parts(self) -> list[int]:
        """Elements of each parameter that were taken."""
        return [min(one, ELEMENTS) for one in self.counts]

    @property
    def promise(self) -> float:
        """The most that the step would take off the loss, by its gradient."""
        _, change, gradient = self.sizes
        with np.errstate(over="ignore", invalid="ignore"):
            return float(np.asarray(self.counts) @ (change * gradient))

    @property
    def ratio(self) -> float:
        """The largest change of a matrix over its size; nan if there is none."""
        return float(np.max(self._ratios)) if self._ratios.size else nan

    @property
    def middle(self) -> float:
        """The median of these ratios; nan if there is none."""
        return float(np.median(self._ratios)) if self._ratios.size else nan

    @cached_property
    def _ratios(self) -> FloatArray:
        weight, change, _ = self.sizes
        known = (weight > 0) & np.isfinite(change)
        return change[known] / weight[known]


class Updates:
    """Samples of an optimizer's steps, for the matrices among one model's parameters.

    Args:
        parameters: returns the model's parameters.
        names: returns their names.
    """

    def __init__(
        self, parameters: Callable[[], list[Tensor]], names: Callable[[], list[str]]
    ) -> None:
        self._parameters, self._names = parameters, names
        self._seen: weakref.WeakKeyDictionary[Optimizer, list[int]] = weakref.WeakKeyDictionary()
        """The number of each optimizer, how many of its steps were seen, and the last sampled."""
        self._taken: Taken | None = None
        self._is_fresh = False
        self._first: dict[int, float] = {}
        self._peaks: dict[int, float] = {}
        self._rates: dict[int, float] = {}
        self._early: list[Taken] = []
        self._late: deque[Taken] = deque(maxlen=KEEP)
        self._digested: weakref.WeakKeyDictionary[Taken, Sample] = weakref.WeakKeyDictionary()

    @staticmethod
    def wants(count: int, looked: bool) -> bool:
        """Return True if the step of this number, from 1 on, may have a sample."""
        return looked or (count <= LATE and not count % _interval(count))

    @torch.no_grad()
    def before(self, optimizer: Optimizer, step: int, count: int) -> None:
        """Take a sample, if this step is to have one: the optimizer is about to step.

        `count` is the number of steps so far, with this one and those that were not looked at.
        """
        seen = self._seen.setdefault(optimizer, [len(self._seen), 0, 0])
        seen[1] += 1
        self._taken = None
        rate = optimizer.param_groups[0]["lr"]
        raised = type(rate) is float and rate >= RAISED * self._rates.get(seen[0], inf)
        is_time = count // _interval(count) != seen[2] // _interval(count)
        if seen[1] > FIRST and not is_time and not raised:
            return
        self._rates[seen[0]] = rate if type(rate) is float and rate > 0 else inf
        seen[2] = count
        known = self._parameters()
        place_of = {id(one): place for place, one in enumerate(known)}
        settings, places, old, grads = [], [], [], []
        for group in optimizer.param_groups:
            setting = _setting(group)
            for one in group["params"]:
                grad = one.grad if one.ndim > 1 else None  # rules compare matrices
                if grad is None or (place := place_of.get(id(one))) is None:
                    continue
                if can_be_sampled(one) and can_be_sampled(grad):
                    settings.append(setting)
                    places.append(place)
                    old.append(few(one))
                    grads.append(few(grad))
        if places:
            peak = max(*(one.rate for one in settings), self._peaks.get(seen[0], 0.0))
            self._peaks[seen[0]] = peak
            self._taken = Taken(
                step,
                seen[0],
                settings,
                peak,
                places,
                [known[place].numel() for place in places],
                _joined([*old, *grads]),
            )
            if (factor := factor_of(optimizer)) != 1:
                self._taken.before[len(self._taken.before) // 2 :] /= factor

    @torch.no_grad()
    def after(self, optimizer: Optimizer) -> None:
        """Take the other half of the sample: the optimizer has stepped."""
        taken, self._taken = self._taken, None
        if taken is None:
            return
        parameters = self._parameters()
        taken.new = _joined([few(parameters[place]) for place in taken.places])
        shown = optimizer._shown if isinstance(optimizer, CoreState) else optimizer.state
        for place in taken.places:
            state = shown.get(parameters[place], {})
            square = state.get("exp_avg_sq")
            if isinstance(square, Tensor) and can_be_sampled(square):
                taken.squares[place] = few(square).clone(), state.get("step")
        (self._early if len(self._early) < FIRST else self._late).append(taken)
        self._is_fresh = True

    @property
    def is_taking(self) -> bool:
        """True within a step that is sampled."""
        return self._taken is not None

    @property
    def is_fresh(self) -> bool:
        """True if there is a sample that nobody has asked for."""
        return self._is_fresh

    def fresh(self) -> Taken | None:
        """Return the last sample, if it was not returned before."""
        is_fresh, self._is_fresh = self._is_fresh, False
        return (self._late or self._early)[-1] if is_fresh else None

    def samples(self) -> tuple[Sample, ...]:
        """Return the first few samples and the last, as numbers."""
        return tuple(map(self._digest, (*self._early, *self._late)))

    def _digest(self, taken: Taken) -> Sample:
        """Return a sample as numbers."""
        if (found := self._digested.get(taken)) is not None:
            return found
        names, parameters = self._names(), self._parameters()
        old, new, grads = taken.arrays
        weight, change, gradient = (one.tolist() for one in taken.sizes)
        with_gradient = np.isfinite(grads) & (grads != 0)
        moving, still = (
            _sums(one, taken.parts).tolist()
            for one in (with_gradient, with_gradient & (old == new))
        )
        updates = []
        for n, (place, setting) in enumerate(zip(taken.places, taken.settings, strict=True)):
            parameter, square = parameters[place], taken.squares.get(place)
            decay = setting.decay * weight[n] * (setting.rate if setting.decoupled else 1.0)
            updates.append(
                Update(
                    name=names[place],
                    matrix=True,
                    weight=weight[n],
                    change=change[n],
                    gradient=gradient[n],
                    first=self._first.setdefault(place, weight[n]),
                    count=taken.counts[n],
                    inputs=taken.counts[n] // len(parameter),
                    still=still[n] / moving[n] if moving[n] else nan,
                    decay=decay,
                    decoupled=setting.decoupled,
                    below_epsilon=nan if square is None else _below_epsilon(*square, setting),
                )
            )
        dtypes = {str(parameters[place].dtype).removeprefix("torch.") for place in taken.places}
        found = self._digested[taken] = Sample(
            step=taken.step,
            optimizer=taken.optimizer,
            rate=max(setting.rate for setting in taken.settings),
            peak=taken.peak,
            dtype=dtypes.pop() if len(dtypes) == 1 else "",
            updates=tuple(updates),
            rough=taken.rough,
        )
        return found


def _interval(step: int) -> int:
    """Return the number of steps, about this one, of which one is sampled."""
    return 2 if step < BEGINNING else EVERY if step <= LATE else RARELY


def can_be_sampled(one: Tensor) -> bool:
    """Return True if elements can be picked by their place in memory."""
    if not one.numel() or one.is_meta or one.layout is not torch.strided or is_distributed(one):
        return False
    return one.is_floating_point() and one.is_contiguous()


def few(one: Tensor) -> Tensor:
    """Return up to `ELEMENTS` elements, spread over a contiguous tensor, without a copy.

    Gradients are to be off.
    """
    return one.as_strided(*_spread(one.numel()))


@lru_cache(maxsize=1024)
def _spread(count: int) -> tuple[tuple[int], tuple[int]]:
    """Return how many elements of so many are taken, and the stride from one to the next."""
    # An odd stride does not meet the same column in every row of a matrix of 64 columns.
    return (min(count, ELEMENTS),), (max(count // ELEMENTS - (count // ELEMENTS + 1) % 2, 1),)


def _joined(parts: list[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.cat([one if one.device == device else one.to(device) for one in parts])


def _array(one: Tensor) -> FloatArray:
    return one.double().cpu().numpy()


def _sums(values: Array, sizes: Sequence[int]) -> FloatArray:
    """Return the sums, along the last axis, of parts of so many elements, one after another."""
    begins = np.cumsum([0, *sizes[:-1]])
    return np.add.reduceat(values, begins, axis=-1, dtype=np.float64)


def _setting(group: Group) -> _Setting:
    decay, epsilon, betas = group.get("weight_decay"), group.get("eps"), group.get("betas")
    return _Setting(
        float(group.get("lr", nan)),
        float(decay) if isinstance(decay, float | int) else 0.0,
        bool(group.get("decoupled_weight_decay", False)),
        float(epsilon) if isinstance(epsilon, float | int) else nan,
        float(betas[-1]) if isinstance(betas, tuple | list) else nan,
        ("alpha" in group or "lr_decay" in group) and betas is None and not group.get("momentum"),
    )


def _below_epsilon(square: Tensor, step: object, setting: _Setting) -> float:
    """Return the share of elements whose running size is below ε."""
    if not isinstance(step, Tensor | float | int) or isnan(setting.second + setting.epsilon):
        return nan
    unbiased = _array(square) / (1 - setting.second ** float(step))
    return float(np.mean(np.sqrt(unbiased) < setting.epsilon))


def lost_epsilon(optimizers: Iterable[Optimizer], parameter: Tensor) -> float:
    """Return the ε of the parameter's optimizer if it is 0 in its dtype; nan otherwise.

    That divides by 0 where the gradients' running square is 0 too, as it must be somewhere.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            epsilon = group.get("eps")
            if not isinstance(epsilon, float) or not any(
                one is parameter for one in group["params"]
            ):
                continue
            shown = optimizer._shown if isinstance(optimizer, CoreState) else optimizer.state
            squares = [one for name, one in shown.get(parameter, {}).items() if name in SQUARES]
            if bool(torch.tensor(epsilon, dtype=parameter.dtype)) or epsilon == 0:
                continue
            if any(bool((one == 0).any()) for one in squares):
                return epsilon
    return nan

"""The changes that an optimizer's steps make to a model's weights, in samples of their elements.

A sampled step costs two copies of a few elements of each matrix. They stay on its device until they
are asked for.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import isnan, nan
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from vegrad.arrays.checks import FloatArray
from vegrad.flow.watched import Sample, Update
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.optimizer_state import CoreState
from vegrad.torch.optimizer_step import Group

ELEMENTS = 64  # of a parameter
EVERY = 10  # steps that are looked at, for one that is sampled; the first few all are
FIRST = 3
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


@dataclass
class _Taken:
    """A sampled step: elements of each parameter, still on its device."""

    step: int
    optimizer: int
    peak: float
    settings: list[_Setting]
    places: list[int]
    old: Tensor
    grads: Tensor
    new: Tensor | None = None
    square_places: list[int] = field(default_factory=list)
    squares: Tensor | None = None
    """The running squares of the gradients of the parameters at these places."""
    count: object = None
    """How many steps are in them."""
    sample: Sample | None = None


class Updates:
    """Samples of an optimizer's steps, for the parameters of one model.

    Args:
        parameters: returns the model's parameters.
        names: returns their names.
    """

    def __init__(
        self, parameters: Callable[[], list[Tensor]], names: Callable[[], list[str]]
    ) -> None:
        self._parameters, self._names = parameters, names
        self._seen: weakref.WeakKeyDictionary[Optimizer, list[int]] = weakref.WeakKeyDictionary()
        """The number of each optimizer, and how many of its steps were seen."""
        self._optimizers = 0
        self._peaks: dict[int, float] = {}
        self._start: dict[int, _Taken] = {}
        """The first sample of each optimizer."""
        self._first: dict[int, float] = {}
        self._last: _Taken | None = None
        self._early: list[_Taken] = []
        self._taken: deque[_Taken] = deque(maxlen=KEEP)

    @torch.no_grad()
    def before(self, optimizer: Optimizer, step: int) -> None:
        """Take a sample, if this step is to have one: the optimizer is about to step."""
        if (seen := self._seen.get(optimizer)) is None:
            seen = self._seen[optimizer] = [self._optimizers, 0]
            self._optimizers += 1
        seen[1] += 1
        if seen[1] > FIRST and seen[1] % EVERY:
            return
        place_of = {id(one): place for place, one in enumerate(self._parameters())}
        settings, places, old, grads = [], [], [], []
        for group in optimizer.param_groups:
            setting = _setting(group)
            for one in group["params"]:
                place, grad = place_of.get(id(one)), one.grad
                if place is None or grad is None or one.ndim < 2:
                    continue
                if can_be_sampled(one) and can_be_sampled(grad):
                    settings.append(setting)
                    places.append(place)
                    old.append(few(one))
                    grads.append(few(grad))
        if places:
            number, rate = seen[0], max(one.rate for one in settings)
            self._peaks[number] = peak = max(rate, self._peaks.get(number, 0.0))
            taken = _Taken(step, number, peak, settings, places, _joined(old), _joined(grads))
            self._last = taken
            (self._early if len(self._early) < FIRST else self._taken).append(taken)
            self._start.setdefault(number, taken)

    @torch.no_grad()
    def after(self, optimizer: Optimizer) -> None:
        """Take the other half of the sample: the optimizer has stepped."""
        taken = self._last
        if taken is None or taken.new is not None:
            return
        parameters = self._parameters()
        taken.new = _joined([few(parameters[place]) for place in taken.places])
        shown = optimizer._shown if isinstance(optimizer, CoreState) else optimizer.state
        squares = []
        for place in taken.places:
            state = shown.get(parameters[place], {})
            square = state.get("exp_avg_sq")
            if isinstance(square, Tensor) and can_be_sampled(square):
                taken.square_places.append(place)
                squares.append(few(square))
                taken.count = state.get("step")
        if squares:
            taken.squares = _joined(squares)
            if isinstance(taken.count, Tensor):
                taken.count = taken.count.clone()

    def samples(self) -> tuple[Sample, ...]:
        """Return the first few samples and the last, as numbers."""
        for start in self._start.values():
            sizes = _parts(start.old, start.places, self._parameters())
            for place, part in sizes.items():
                self._first.setdefault(place, _rms(part))
        found = []
        for taken in (*self._early, *self._taken):
            if taken.sample is None and taken.new is not None:
                taken.sample = self._digested(taken)
            if taken.sample is not None:
                found.append(taken.sample)
        return tuple(found)

    def _digested(self, taken: _Taken) -> Sample:
        """Turn a sample into numbers."""
        assert taken.new is not None
        names, parameters = self._names(), self._parameters()
        old, new, grads = (
            _parts(one, taken.places, parameters) for one in (taken.old, taken.new, taken.grads)
        )
        squares = taken.squares
        known = {} if squares is None else _parts(squares, taken.square_places, parameters)
        updates = []
        for place, setting in zip(taken.places, taken.settings, strict=True):
            weight = _rms(old[place])
            with_gradient = np.isfinite(grads[place]) & (grads[place] != 0)
            stays = (old[place] == new[place])[with_gradient]
            below = _below_epsilon(known[place], taken.count, setting) if place in known else nan
            updates.append(
                Update(
                    name=names[place],
                    weight=weight,
                    change=_rms(new[place] - old[place]),
                    gradient=_rms(grads[place]),
                    first=self._first.get(place, weight),
                    count=parameters[place].numel(),
                    inputs=parameters[place].numel() // max(len(parameters[place]), 1),
                    still=float(stays.mean()) if stays.size else nan,
                    decay=setting.decay * weight * (setting.rate if setting.decoupled else 1.0),
                    decoupled=setting.decoupled,
                    below_epsilon=below,
                )
            )
        dtypes = {str(parameters[place].dtype).removeprefix("torch.") for place in taken.places}
        return Sample(
            step=taken.step,
            optimizer=taken.optimizer,
            rate=max(setting.rate for setting in taken.settings),
            peak=taken.peak,
            dtype=dtypes.pop() if len(dtypes) == 1 else "",
            updates=tuple(updates),
        )


def _parts(
    joined: Tensor, places: Sequence[int], parameters: Sequence[Tensor]
) -> dict[int, FloatArray]:
    """Return the elements of each parameter, by its place."""
    values, begin, found = _array(joined), 0, dict[int, FloatArray]()
    for place in places:
        end = begin + min(ELEMENTS, parameters[place].numel())
        found[place] = values[begin:end]
        begin = end
    return found


def can_be_sampled(one: Tensor) -> bool:
    """Return True if elements can be picked by their place in memory."""
    if not one.numel() or one.is_meta or one.layout is not torch.strided or is_distributed(one):
        return False
    return one.is_floating_point() and one.is_contiguous()


def few(one: Tensor) -> Tensor:
    """Return up to `ELEMENTS` elements, spread over the tensor, without a copy."""
    count = one.numel()
    return one.detach().as_strided((min(count, ELEMENTS),), (max(count // ELEMENTS, 1),))


def _joined(parts: list[Tensor]) -> Tensor:
    device = parts[0].device
    return torch.cat([one if one.device == device else one.to(device) for one in parts])


def _array(one: Tensor) -> FloatArray:
    return one.double().cpu().numpy()


def _rms(values: FloatArray) -> float:
    return float(np.sqrt(np.mean(values * values))) if values.size else nan


def _setting(group: Group) -> _Setting:
    decay, epsilon, betas = group.get("weight_decay"), group.get("eps"), group.get("betas")
    return _Setting(
        float(group.get("lr", nan)),
        float(decay) if isinstance(decay, float | int) else 0.0,
        bool(group.get("decoupled_weight_decay", False)),
        float(epsilon) if isinstance(epsilon, float | int) else nan,
        float(betas[-1]) if isinstance(betas, tuple | list) else nan,
    )


def _below_epsilon(square: FloatArray, step: object, setting: _Setting) -> float:
    """Return the share of elements whose running size is below ε."""
    if not isinstance(step, Tensor | float | int) or isnan(setting.second + setting.epsilon):
        return nan
    unbiased = square / (1 - setting.second ** float(step))
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

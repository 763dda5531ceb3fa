"""Closer looks of a monitor: how alike the rows of a few outputs are, and the size of the input.

They take passes of PyTorch over the outputs, so that only every tenth step has one, of a few
modules.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from math import inf, nan

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad import _core
from vegrad.flow.course import Look
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.models import state
from vegrad.torch.monitor.modules import Hook, Hooked, tensor_in

EVERY, KEEP = 10, 400  # steps from look to look; looks that are kept beside the first few
FIRST = 5
FEW = 6  # modules that are looked at, and the model itself
ROWS, ELEMENTS = 64, 1 << 12  # of an output that are looked at


class Looks:
    """Closer looks at a model's outputs.

    Args:
        model: the model.
        modules: those with weights of their own, by name.
        watch: what reads plain outputs.
    """

    def __init__(
        self, model: Module, modules: Sequence[tuple[str, Module]], watch: _core.Watch
    ) -> None:
        self._watch = watch
        chosen = _spread(modules)
        self.names = (*(name for name, _ in chosen), type(model).__name__)
        self._modules = [weakref.ref(one) for one in (*(one for _, one in chosen), model)]
        self.on = True
        self.first: list[Look] = []
        self.last: list[Look] = []
        self.input_rms = self.input_column = nan
        self.entry = "", nan
        """The module that ran first, and the largest column of what it was given."""
        self.outputs = 0
        self.largest = inf
        self._begin()
        self._turn = -1
        self._hooked = Hooked()
        for place, one in enumerate([*(one for _, one in chosen), model]):
            self._hooked.after(one, Hook(_Ran(self, place)))

    def _begin(self) -> None:
        self._alike = [nan] * len(self.names)

    def end(self, step: int, following: int, *, looked: bool) -> None:
        """End a step, and begin another by its number; `looked` says if that is looked at."""
        if self.on:
            if any(one == one for one in self._alike):
                look = Look(step=step, alike=tuple(self._alike))
                (self.first if len(self.first) < FIRST else self.last).append(look)
                del self.last[:-KEEP]
            self._begin()
        self.on = looked and (following < FIRST or following // EVERY != self._turn)
        if self.on:
            self._turn = following // EVERY
        self._hooked.put(self.on)

    @property
    def all(self) -> tuple[Look, ...]:
        """The looks that were kept, the oldest first."""
        return (*self.first, *self.last)

    def remove(self) -> None:
        """Take the hooks off the model."""
        self._hooked.remove()

    @torch.no_grad()
    def ran(self, place: int, module: Module, inputs: tuple[object, ...], made: object) -> None:
        """Look at the output of a module, and at the model's input in the first step."""
        if state.on or module is not self._modules[place]():
            return
        output = tensor_in(made)
        if output is None or not _is_readable(output):
            return
        self.largest = min(self.largest, torch.finfo(output.dtype).max)
        found = self._watch.alike(output, ROWS, ELEMENTS)
        self._alike[place] = alike(output) if found is None else found
        if place < len(self.names) - 1 and not self.entry[0]:
            source = tensor_in(inputs)
            known = source is not None and _is_readable(source)
            self.entry = self.names[place], _sizes(source)[1] if known else nan
        if place == len(self.names) - 1 and not self.outputs:
            self.outputs = output.numel()
            source = tensor_in(inputs)
            if source is not None and _is_readable(source):
                self.input_rms, self.input_column = _sizes(source)


class _Ran:
    """A forward hook that does not keep the looks, and with them the model, alive."""

    def __init__(self, looks: Looks, place: int) -> None:
        self._looks, self._place = weakref.ref(looks), place

    def __call__(self, module: Module, inputs: tuple[object, ...], output: object) -> None:
        looks = self._looks()
        if looks is not None and looks.on and _wants_gradient(output):
            looks.ran(self._place, module, inputs, output)


def alike(output: Tensor) -> float:
    """Return the share of an output's mean square that all rows have in common; nan of one row."""
    if output.ndim < 2 or len(output) < 2 or not output.numel():
        return nan
    rows = output.detach()[:ROWS].flatten(1)
    few = rows[:, :: max(rows.numel() // ELEMENTS, 1) | 1].cpu().double().numpy()
    flat = few.ravel()
    with np.errstate(invalid="ignore", over="ignore"):
        means, whole = few.sum(0) / len(few), float(flat @ flat) / flat.size
    return float(means @ means) / (len(means) * whole) if 0 < whole < inf else nan


def _sizes(source: Tensor) -> tuple[float, float]:
    """Return the root mean square of an input and of its largest column."""
    few = source.detach()[: max(1, ELEMENTS // max(source[:1].numel(), 1))].double()
    squares = few.square()
    columns = (
        squares.reshape(-1, squares.shape[-1]).mean(0) if squares.ndim == 2 else squares.mean()
    )
    return float(squares.mean().sqrt()), float(columns.max().sqrt())


def _is_readable(one: Tensor) -> bool:
    return not (one.is_meta or is_distributed(one) or one.layout is not torch.strided) and bool(
        one.numel()
    )


def _wants_gradient(output: object) -> bool:
    """Return True if a gradient will come back, so that it is no evaluation."""
    found = tensor_in(output)
    return found is not None and found.requires_grad


def _spread(modules: Sequence[tuple[str, Module]]) -> list[tuple[str, Module]]:
    """Return up to `FEW` of the modules, evenly spread."""
    count = len(modules)
    places = {round(place * (count - 1) / max(FEW - 1, 1)) for place in range(FEW)} if count else ()
    return [modules[place] for place in sorted(places)]

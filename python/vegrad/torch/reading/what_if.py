"""Run a model as if something in it were changed, and leave it as it was.

The values of parameters and buffers are put into copies, edited there by the very code that a patch
shows, and taken out again: no copy of the whole model is made, so that models run that cannot be
copied, and memory stays that of a training step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import inf

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.flow.edits import Edit, Initialize, ScaleData, parts
from vegrad.flow.reading import Effect, Reading
from vegrad.flow.subject import Refusal
from vegrad.torch import models
from vegrad.torch.editor import ModelEditor
from vegrad.torch.reading import passes
from vegrad.torch.reading.gradients import gradients
from vegrad.torch.trainer import ModelData

Again = Callable[[passes.Task], Reading]


@dataclass
class WhatIf:
    """Passes of a task with something changed, all with the same random numbers."""

    task: passes.Task
    again: Again
    """Reads a task."""
    seed: int

    def __post_init__(self) -> None:
        self.random = torch.get_rng_state()
        self.passes = 0

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done; None if it cannot be."""
        with self._edited(edit) as task:
            return None if task is None else self._measured(task)

    def reading(self, edit: Edit) -> Reading | None:
        """Read the model as if this had been done."""
        with self._edited(edit) as task:
            return None if task is None else self.again(task)

    @contextmanager
    def _edited(self, edit: Edit | None) -> Iterator[passes.Task | None]:
        task, done = self.task, parts(edit) if edit is not None else ()
        if any(isinstance(one, ScaleData) for one in done):
            task = task._replace(x=_scaled(task.x))
        values = [one for one in done if not isinstance(one, ScaleData)]
        with models.untouched(task.model, task.loss_fn), borrowed(_touched(task.model, values)):
            torch.set_rng_state(self.random)
            editor = ModelEditor(task.model, None, ModelData(None, None), None, self.seed)
            refused = any(isinstance(editor.do(one), Refusal) for one in values)
            torch.set_rng_state(self.random)
            self.passes += 1
            yield None if refused else task

    def _measured(self, task: passes.Task) -> Effect | None:
        loss = task.loss_fn(models.called(task.model, task.x), task.target)
        wanted = {n: p for n, p in task.model.named_parameters() if p.requires_grad}
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            return None
        found = gradients(loss, list(wanted.values()))
        sizes = {
            name: -inf if one is None else models.size_log2(one)
            for name, one in zip(wanted, found, strict=True)
        }
        return Effect(float(loss.detach()), sizes)


@contextmanager
def borrowed(tensors: Iterable[Tensor]) -> Iterator[None]:
    """Put copies of the values into parameters or buffers, and take them out at the end."""
    chosen = tuple(tensors)
    before = [(one, one.data) for one in chosen]
    with torch.autograd._unsafe_preserve_version_counter(chosen):
        try:
            for one in chosen:
                one.data = one.data.clone()
            yield
        finally:
            for one, values in before:
                one.data = values


def _touched(model: Module, edits: Iterable[Edit]) -> list[Tensor]:
    """Return the parameters and buffers that edits may change."""
    known = dict(model.named_parameters()) | dict(model.named_buffers())
    chosen = list[Tensor]()
    for edit in edits:
        if isinstance(edit, Initialize):
            return list(known.values())
        chosen += [known[name] for name in getattr(edit, "parameters", ()) if name in known]
    return list({id(one): one for one in chosen}.values())


def _scaled(value: object) -> object:
    """Return inputs with each column, or channel, of mean 0 and standard deviation 1."""
    if isinstance(value, Tensor):
        if not value.is_floating_point() or value.ndim < 2:
            return value
        axes = (0, *range(2, value.ndim))
        std, mean = torch.std_mean(value.double(), axes, correction=0, keepdim=True)
        return ((value - mean) / torch.where(std > 0, std, 1.0)).to(value.dtype)
    if isinstance(value, Mapping):
        return {name: _scaled(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return tuple(_scaled(one) for one in value)
    return value

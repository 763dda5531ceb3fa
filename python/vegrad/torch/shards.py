"""Diagnose models of which each process has a part: FSDP2's shards, and tensor parallelism.

Their weights are never whole, so that nothing is asked of them that needs a matrix: one pass runs
as in training, on all processes, and a monitor reads its sizes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.diagnosis.history import History
from vegrad.torch import models
from vegrad.torch.gradient_norms import is_distributed
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.monitor.report import Report
from vegrad.torch.reading.losses import Loss
from vegrad.torch.together import together


def is_sharded(model: Module) -> bool:
    """Return True if processes have a part of some parameter each."""
    return any(map(is_distributed, model.parameters()))


def diagnosed(
    model: Module,
    loss_fn: Loss,
    x: object,
    target: object,
    *,
    history: History | None,
    memory: int,
    ignored: Collection[str],
) -> Report:
    """Judge one forward and backward pass of all processes, which must all call this.

    The report is the same on all of them. The model is left as it was.
    """
    monitor = Monitor(model, every=1, budget=1.0, on_finding=None)
    try:
        with _as_it_was(model, loss_fn):
            loss = loss_fn(models.called(model, x), target)
            _check(loss)
            loss.backward()
            monitor.step(float(loss.detach()))
            found = monitor.report()
    finally:
        monitor.remove()
    about = f"{monitor.kind}, of which each process has a part"
    found.config["model"] = about  # type: ignore[index]
    return together(_more(found, history, memory)).ignoring(ignored)


def _more(found: Report, history: History | None, memory: int) -> Report:
    """Return the report with what a training's history, and what a task needs, say besides."""
    if found.reading is None or (history is None and not memory):
        return found
    again = Report.of_modules(replace(found.reading, memory=memory), history)
    return replace(
        found, findings=again.findings, rows=again.rows, looked_at=again.looked_at,
        reading=again.reading,
    )  # fmt: skip


def _check(loss: object) -> None:
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        got = f"of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(f"the loss must be a single number, not {got}")


@contextmanager
def _as_it_was(model: Module, loss_fn: object) -> Iterator[None]:
    """Restore gradients, buffers and the random generators at the end."""
    both = [model, loss_fn] if isinstance(loss_fn, Module) else [model]
    gradients = [(one, one.grad) for one in model.parameters()]
    for parameter, _ in gradients:
        parameter.grad = None
    try:
        rng = torch.random.fork_rng(devices=models.gpus(model))
        with models.buffers_kept(both), rng, torch.enable_grad():
            yield
    finally:
        for parameter, gradient in gradients:
            parameter.grad = gradient

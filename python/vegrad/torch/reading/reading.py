"""Read a PyTorch model: run it forward and back, and write down what that tells as a `Reading`."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite, log2, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.reading import (
    MAPS,
    Chain,
    Layer,
    NonFiniteData,
    NonFiniteValue,
    Operation,
    Parameter,
    Reading,
)
from vegrad.flow.reading import Module as ModuleSizes
from vegrad.flow.resampling import resampled
from vegrad.torch import models
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.monitor.report import modules_of, watched_by
from vegrad.torch.reading import cells, passes, redraw
from vegrad.torch.reading.gradients import recorded
from vegrad.torch.reading.initialization import fans, initialization
from vegrad.torch.reading.trace import Trace
from vegrad.torch.vocabulary import TorchVocabulary


def read(
    model: Module, loss_fn: passes.Loss, x: object, target: object, *, resamples: int, seed: int
) -> Reading:
    """Run a model forward and back, which leaves it as it was, and read what that tells.

    Args:
        model: the model, without wrappers.
        loss_fn: called with the model's output and the target.
        x: the inputs.
        target: whatever the loss takes.
        resamples: number of batches drawn with replacement whose gains are measured too.
        seed: seed of these batches, and of weights drawn anew.
    """
    problem = not_finite("data", "x", x) or not_finite("target", "target", target)
    if problem is not None:
        about = {"model": type(model).__name__}
        return Reading(vocabulary=TorchVocabulary(), about=about, problem=problem)
    task = passes.Task(model, loss_fn, x, target)
    with models.untouched(model, loss_fn):
        with cells.heard(model) as calls:
            run = passes.forward(*task)
        if not run.path:
            recurrent = cells.recurrences(model, calls, seed)
            return _of_modules(task, run.trace, recurrent)
        reading, path = _of_chain(task, run, resamples, seed)
        del run  # The pass's memory is free before the resampled batches are run.
        assert reading.chain is not None
        batches = _resampled(task, path, resamples, seed)
        return replace(reading, chain=replace(reading.chain, batches=batches))


# A chain ----------------------------------------------------------------------------------------


def _of_chain(
    task: passes.Task, run: passes.Pass, resamples: int, seed: int
) -> tuple[Reading, list[int]]:
    """Read a model whose layers follow each other; return the places of these layers too."""
    before = list(run.path)
    gradients = passes.backward(run)
    passes.on_path(run)
    gradients = [gradients[before.index(place)] for place in run.path]
    drawing = initialization(run.layers)
    about = passes.config_of(run, drawing)
    chain = _chain(run, gradients, about)
    expected = passes.expected_of(run, drawing, task.x)
    drawn = expected is None and resamples > 0
    if drawn:
        expected = redraw.expected(task, run, drawing, seed)
    weights = [layer.weight for layer in chain.layers]
    sizes = dict(zip(weights, chain.flow.gradient_log2.tolist(), strict=True))
    reading = Reading(
        vocabulary=TorchVocabulary(),
        about=about,
        dtype=about["dtype"],
        loss=float(run.loss.detach()),
        loss_kind=run.loss_kind,
        operations=_operations(run),
        parameters=_parameters(task.model, sizes, _drawn(run.trace)),
        tables=frozenset(run.trace.tables),
        branches=tuple(run.trace.branches),
        chain=replace(chain, expected=expected, drawn=drawn and expected is not None),
    )
    return reading, list(run.path)


def _chain(run: passes.Pass, gradients: list[Tensor | None], about: Mapping[str, Any]) -> Chain:
    """Measure the flow along the chain."""
    flow = passes.flow_of(run, gradients)
    under, over = _lost(run, gradients, flow.gradient_log2)
    return Chain(
        layers=_layers(run),
        flow=flow,
        activation=about["activation"],
        output=about["output"],
        norm=about["norm"],
        residual=about["residual"],
        underflowed=under,
        overflowed=over,
        begun=tuple(passes.begun_at_zero(run, gradients)),
        cut=min((n for n, place in enumerate(run.path) if place in run.sizes), default=0),
        exact=False,
    )


def _layers(run: passes.Pass) -> tuple[Layer, ...]:
    """Name the layers of the chain and their parameters."""
    names = run.trace.names
    return tuple(
        Layer(
            layer.name,
            names.get(id(layer.weight), f"the weights of {layer.name}"),
            None if layer.bias is None else names.get(id(layer.bias)),
            layer.norm,
            fans(layer)[3],
            layer.kind,
        )
        for layer in run.layers
    )


def _operations(run: passes.Pass) -> tuple[Operation, ...]:
    """Write down what ran, with δ where it was measured, and the loss at the end."""
    found = list(run.trace.operations)
    deltas = {run.trace.layers[place].name: size for place, size in run.sizes.items()}
    for place, one in enumerate(found):
        if one.name in deltas and one.kind in MAPS:
            found[place] = replace(one, delta_log2=deltas[one.name])
    return (*found, Operation(run.loss_kind or "loss", "loss", (len(found) - 1,)))


def _lost(
    run: passes.Pass, gradients: Sequence[Tensor | None], sizes: FloatArray
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers whose true gradient is finite, but 0 or inf in the model's dtype."""
    under, over = [], []
    for number in np.flatnonzero(np.isfinite(sizes)).tolist():
        shift = run.shifts.get(run.path[number], 0.0)
        stored = passes.shifted(gradients[number], shift, run.layers[number].weight)
        if not stored.any():
            under.append(number)
        elif bool(np.isinf(stored).any()):
            over.append(number)
    return tuple(under), tuple(over)


def _resampled(task: passes.Task, path: list[int], count: int, seed: int) -> FloatArray:
    """Return gains (count, L - 1) of batches drawn with replacement, if there are rows to draw."""
    take = passes.rows_of(task.x, task.target)

    def gains(rows: Array) -> FloatArray:
        assert take is not None
        run = passes.forward(task.model, task.loss_fn, *take(rows))
        passes.backward(run)
        run.path[:] = path
        return passes.gains(run)

    rows = passes.row_count(task.x, task.target)
    return resampled(gains, rows, len(path) - 1, count, seed)


def _parameters(
    model: Module, gradients: Mapping[str, float], drawn: Collection[str] = ()
) -> dict[str, Parameter]:
    """Read the sizes of all parameters.

    Args:
        model: the model.
        gradients: log2 of the norms of gradients, by name.
        drawn: names of matrices of which rules will ask how they were drawn.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if not models.is_measurable(parameter):
            found[name] = Parameter(name, ())
            continue
        size, values = models.size_log2(parameter), parameter.detach()
        # A frozen parameter may be a mask of infinities.
        judged = parameter.requires_grad or name in gradients
        found[name] = Parameter(
            name,
            tuple(values.shape),
            size - log2(max(values.numel(), 1)) / 2 if isfinite(size) else -inf,
            kurtosis=_kurtosis(values) if name in drawn else nan,
            gradient_log2=gradients.get(name, nan),
            nonfinite=_first_nonfinite(values) if judged and not size < inf else None,
        )
    return found


def _drawn(trace: Trace) -> Collection[str]:
    """Return the matrices beside residual streams, of which rules ask how they were drawn."""
    if not trace.branches:
        return ()
    return {trace.names[id(one.weight)] for one in trace.layers if id(one.weight) in trace.names}


def _kurtosis(matrix: Tensor) -> float:
    squares = matrix.double().square()
    return float(squares.square().mean() / squares.mean() ** 2)


def _first_nonfinite(values: Tensor) -> NonFiniteValue | None:
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return None
    first = tuple(int(n) for n in bad.nonzero()[0])
    value = values[first]
    return NonFiniteValue(
        first, float(value.abs() if value.is_complex() else value), int(bad.sum())
    )


# Any other model --------------------------------------------------------------------------------


def _of_modules(task: passes.Task, trace: Trace, recurrent: Sequence[cells.Recurrence]) -> Reading:
    """Read a model by a monitor's sizes of modules and by its parameters' gradients."""
    model = task.model
    monitor = Monitor(model, details=1)
    kept = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        monitor.probing = True
        loss = task.loss_fn(models.called(model, task.x), task.target)
        wanted = [parameter for parameter, _ in kept if parameter.requires_grad]
        given = torch.autograd.grad(loss, wanted, allow_unused=True)
        for parameter, gradient in zip(wanted, given, strict=True):
            parameter.grad = gradient
        monitor.step()
        named = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        gradients = recorded(model, named, trace)
    finally:
        monitor.remove()
        for parameter, gradient in kept:
            parameter.grad = gradient
    modules = modules_of(monitor)
    sizes = {name: models.size_log2(one) for name, one in named.items() if one.ndim > 1}
    why = f"no chain of layers: {trace.foreign}" if trace.foreign else "no chain of layers"
    about = {
        "model": f"{type(model).__name__} ({why}), loss {float(loss.detach()):.4g}",
        "parameters": len(kept),
        "chain": list(gradients.chain),
    }
    return Reading(
        vocabulary=TorchVocabulary(),
        about=about,
        loss=float(loss.detach()),
        operations=tuple(trace.operations),
        parameters=_parameters(model, sizes, _drawn(trace)),
        tables=frozenset(trace.tables),
        branches=tuple(trace.branches),
        cells=tuple(recurrent),
        modules=modules,
        watched=watched_by(monitor),
        gradients=gradients,
        fresh_drift=partial(_fresh_drift, task, modules, recurrent),
    )


def _fresh_drift(
    task: passes.Task, modules: Sequence[ModuleSizes], recurrent: Sequence[cells.Recurrence]
) -> float:
    """Return log10 of δ at the first module over the last, with recurrent modules drawn anew."""
    weighted = [one for one in modules if one.weighted]
    first = next(one.name for one in weighted if one.delta < inf)
    drawn = sorted({one.module for one in recurrent})
    with models.untouched(task.model, task.loss_fn):
        return redraw.decades(task, drawn, (first, weighted[-1].name))


# Data -------------------------------------------------------------------------------------------


def not_finite(kind: str, name: str, value: object) -> NonFiniteData | None:
    """Return the first number that is not finite; None if all are.

    Args:
        kind: "data" or "target".
        name: name of the argument.
        value: a tensor, or a sequence or mapping of several; all else is passed over.
    """
    several = {name: value}
    if isinstance(value, tuple | list):
        several = {f"{name}[{n}]": one for n, one in enumerate(value)}
    elif isinstance(value, Mapping):
        several = {f"{name}[{key!r}]": one for key, one in value.items()}
    for where, tensor in several.items():
        if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
            continue
        first = _first_nonfinite(tensor)
        if first is not None:
            bad = ~torch.isfinite(torch.atleast_1d(tensor))
            rows = int(bad.reshape(len(bad), -1).any(1).sum())
            return NonFiniteData(kind, where, first, rows=rows, of=len(bad))
    return None

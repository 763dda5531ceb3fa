"""Read a PyTorch model: run it forward and back, and write down what that tells as a `Reading`."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from math import inf, isfinite, isnan, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module
from torch.utils.checkpoint import CheckpointError

from vegrad.arrays.checks import FloatArray
from vegrad.flow.data import Columns, Input, Mixing, NonFiniteData, same
from vegrad.flow.reading import Chain, Layer, Operation, Reading
from vegrad.flow.recurrence import Recurrence
from vegrad.torch import checkpoints, models, schemes
from vegrad.torch.reading import cells, passes, precise, redraw, resample
from vegrad.torch.reading.compared import RefusedError
from vegrad.torch.reading.data import named_inputs, no_tensors, not_finite
from vegrad.torch.reading.gradients import gradients, recorded
from vegrad.torch.reading.graph import Graph
from vegrad.torch.reading.hooks import Hooks
from vegrad.torch.reading.initialization import fans, initialization
from vegrad.torch.reading.losses import Loss
from vegrad.torch.reading.mixing import proven
from vegrad.torch.reading.modules import modules_of
from vegrad.torch.reading.parameters import read_parameters
from vegrad.torch.reading.trace import Trace, graph_of
from vegrad.torch.reading.undefined import undefined
from vegrad.torch.reading.unregistered import names_of_strangers
from vegrad.torch.reading.what_if import WhatIf
from vegrad.torch.vocabulary import TorchVocabulary

SAFE = 90.0  # log2 of a norm: below, no gradient of any size is all 0 or inf in a wide dtype
WIDE = {torch.bfloat16, torch.float32, torch.float64}


def read(
    model: Module, loss_fn: Loss, x: object, target: object, *, resamples: int, seed: int
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
    task = passes.Task(model, loss_fn, x, target)
    bad = not_finite("data", "x", x), not_finite("target", "target", target)
    data = tuple(one for one in bad if one is not None)
    try:
        return _whole(task, resamples, seed, data)
    except CheckpointError:
        with checkpoints.as_they_are():
            return _whole(task, resamples, seed, data)
    except (TypeError, AttributeError) as error:
        if message := no_tensors(x, target):
            raise TypeError(message) from error
        raise


def _whole(
    task: passes.Task, resamples: int, seed: int, data: tuple[NonFiniteData, ...]
) -> Reading:
    with models.untouched(task.model, task.loss_fn):
        found = _read(task, resamples, seed, data)
        stored = precise.stored(task) if precise.may_be_lost(found) else None
        mixing = _mixing(task, found) if found.mixing else ()
        return replace(found, stored=stored, mixing=mixing)


def _mixing(task: passes.Task, found: Reading) -> tuple[Mixing, ...]:
    """Return the operations that do mix the rows of the batch."""
    model, _, x, target = task
    take, count = passes.rows_of(x, target), passes.row_count(x, target)
    return proven(found.mixing, model, take, count, target)


def _read(
    task: passes.Task, resamples: int, seed: int, data: tuple[NonFiniteData, ...] = ()
) -> Reading:
    what_if = WhatIf(task, partial(_read, resamples=0, seed=seed), seed)
    resamples = 0 if data else resamples
    hooked = Hooks()
    graph = graph_of(task.model, hooked.on_output)
    try:
        with cells.heard(task.model) as calls:
            run = passes.forward(task, graph, hooked)
    except Exception as error:
        found = interrupted(task.model, graph, error, data)
        if found is None:
            raise
        return found
    more: dict[str, Any] = {
        "what_if": what_if,
        "data": data,
        "unregistered": names_of_strangers(task.model, graph.strangers),
        "mixing": tuple(graph.mixing),
    }
    if not run.path:
        recurrent = () if data else tuple(cells.recurrences(task.model, calls, seed))
        reading = _of_graph(task, run, recurrent)
        if recurrent:
            reading = replace(reading, lags=cells.lags(task.model, calls, task.target))
        return replace(reading, **more)
    reading = _of_chain(task, run, resamples, seed)
    assert reading.chain is not None
    resamples = resamples if isfinite(reading.loss or 0.0) else 0
    batches, again = resample.batches(task, run, resamples, seed)
    chain = replace(reading.chain, batches=batches, resample=again)
    return replace(reading, chain=chain, **more)


def interrupted(
    model: Module, graph: Graph, error: Exception, data: tuple[NonFiniteData, ...]
) -> Reading | None:
    """Read a pass that raised an error, if it may have done so for the numbers that it met."""
    if graph.end < 0:
        graph.end_model()
    operations = tuple(graph.with_deltas({}))
    parameters = read_parameters(model, graph, {})
    made = any(one.lost and (one.edge or isnan(one.rms_log2)) for one in operations)
    compared = (error.compared,) if isinstance(error, RefusedError) else ()
    refused = undefined(error)
    known = bool(made or data or compared or refused)
    if not known and all(one.nonfinite is None for one in parameters.values()):
        return None
    said = str(error).partition("\n")[0]
    return Reading(
        vocabulary=TorchVocabulary(),
        about={"model": type(model).__name__, "parameters": len(parameters)},
        dtype=_dtype(model.parameters()),
        loss=nan,
        operations=operations[: graph.end + 1],
        loss_operations=operations[graph.end + 1 :],
        compared=compared,
        parameters=parameters,
        data=data,
        raised=f"{type(error).__name__}: {said:.80}",
        undefined=refused,
    )


def _dtype(parameters: Iterable[Tensor]) -> str:
    """Return the name of the dtype of the first parameter that is trained."""
    trained = (one for one in parameters if one.requires_grad)
    return str(next(trained).dtype).removeprefix("torch.")


# A chain ----------------------------------------------------------------------------------------


def _of_chain(task: passes.Task, run: passes.Pass, resamples: int, seed: int) -> Reading:
    """Read a model whose layers follow each other."""
    before = list(run.path)
    gradients = passes.backward(run)
    passes.on_path(run)
    gradients = [gradients[before.index(place)] for place in run.path]
    drawing = initialization(run.layers)
    about = passes.config_of(run, drawing)
    chain = _chain(run, gradients, about)
    expected = passes.expected_of(run, drawing, task.x)
    draw = partial(redraw.expected, task, run, drawing, seed) if resamples else None
    weights = [layer.weight for layer in chain.layers]
    operations, within = _operations(run)
    sizes = dict(zip(weights, chain.flow.gradient_log2.tolist(), strict=True))
    return Reading(
        vocabulary=TorchVocabulary(),
        about=about,
        dtype=about["dtype"],
        loss=float(run.loss.detach()),
        loss_kind=run.loss_kind,
        losses=run.losses,
        compared=run.compared,
        operations=operations,
        loss_operations=within,
        parameters=read_parameters(task.model, run.trace.graph, sizes, _drawn(run.trace)),
        inputs=_inputs(task.x),
        draws_itself=schemes.has_own(task.model),
        tables=frozenset(run.trace.tables),
        branches=tuple(run.trace.branches),
        chain=replace(chain, expected=expected, draw=None if expected is not None else draw),
    )


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
        cut=min((n for n, place in enumerate(run.path) if run.size(place) > -inf), default=0),
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
            layer.rescaled,
        )
        for layer in run.layers
    )


def _operations(run: passes.Pass) -> tuple[tuple[Operation, ...], tuple[Operation, ...]]:
    """Write down what ran, with δ where it was measured: in the model, and within the loss."""
    graph = run.trace.graph
    found = graph.with_deltas(run.hooks.sizes)
    found[graph.end] = replace(found[graph.end], kind=run.loss_kind or "loss")
    return tuple(found[: graph.end + 1]), tuple(found[graph.end + 1 :])


def _inputs(x: object) -> tuple[Input, ...]:
    """Measure the numbers among a model's inputs."""
    found = []
    for name, one in named_inputs("x", x).items():
        if one.is_floating_point() and one.numel():
            rms = models.rms(one)
            mean = float(one.detach().double().mean())
            rows = one.detach().cpu().double().numpy() if one.ndim == 2 else None
            columns = None if rows is None else Columns.of(rows)
            found.append(Input(name, rms, mean, 0 if rows is None else same(rows), columns))
    return tuple(found)


def _lost(
    run: passes.Pass, gradients: Sequence[Tensor | None], sizes: FloatArray
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers whose true gradient is finite, but 0 or inf in the model's dtype."""
    under, over = [], []
    for number in np.flatnonzero(np.isfinite(sizes)).tolist():
        one = gradients[number]
        if one is not None and one.dtype in WIDE and abs(sizes[number]) < SAFE:
            continue  # without copies in float64 of what may be large
        shift = run.shift(run.path[number])
        stored = passes.shifted(gradients[number], shift, run.layers[number].weight)
        if not stored.any():
            under.append(number)
        elif bool(np.isinf(stored).any()):
            over.append(number)
    return tuple(under), tuple(over)


def _drawn(trace: Trace) -> Collection[str]:
    """Return the matrices beside residual streams, of which rules ask how they were drawn."""
    if not trace.branches:
        return ()
    return {trace.names[id(one.weight)] for one in trace.layers if id(one.weight) in trace.names}


# Any other model --------------------------------------------------------------------------------


def _of_graph(task: passes.Task, run: passes.Pass, recurrent: tuple[Recurrence, ...]) -> Reading:
    """Read a model by the graph of its pass and by its parameters' gradients."""
    model, trace = task.model, run.trace
    wanted = {n: p for n, p in model.named_parameters() if p.requires_grad}
    named = _gradients(run, wanted)
    gradients, loss = recorded(model, named), float(run.loss.detach())
    norms, (operations, within) = gradients.norms_log2, _operations(run)
    if isfinite(loss) and _are_lost(model, norms):
        norms, (operations, within) = _precisely(task, wanted) or (norms, (operations, within))
    parameters = read_parameters(model, trace.graph, norms)
    for name, size in gradients.norms_log2.items():
        if not size < inf:  # in the model's own dtype
            parameters[name] = replace(parameters[name], lost=True)
    why = f"no chain of layers: {trace.foreign}" if trace.foreign else "no chain of layers"
    about = {
        "model": f"{type(model).__name__} ({why}), loss {loss:.4g}",
        "parameters": len(list(model.parameters())),
    }
    return Reading(
        vocabulary=TorchVocabulary(),
        about=about,
        dtype=_dtype(wanted.values()),
        loss=loss,
        loss_kind=run.loss_kind,
        losses=run.losses,
        compared=run.compared,
        operations=operations,
        loss_operations=within,
        parameters=parameters,
        inputs=_inputs(task.x),
        draws_itself=schemes.has_own(task.model),
        tables=frozenset(trace.tables),
        branches=tuple(trace.branches),
        cells=recurrent,
        modules=modules_of(type(model).__name__, operations, wanted, norms),
        gradients=gradients,
    )


def _gradients(run: passes.Pass, wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    given = gradients(run.loss, list(wanted.values()))
    return {n: g for n, g in zip(wanted, given, strict=True) if g is not None}


def _are_lost(model: Module, norms: Mapping[str, float]) -> bool:
    """Return True if gradients are 0 or not finite that may be neither in float64.

    Those below weights that begin at 0 are 0 in truth.
    """
    known = dict(model.named_parameters())
    if any(size > -inf and not bool(known[name].any()) for name, size in norms.items()):
        return False
    return any(not isfinite(size) for name, size in norms.items() if known[name].ndim > 1)


def _precisely(
    task: passes.Task, wanted: Mapping[str, Tensor]
) -> tuple[dict[str, float], tuple[tuple[Operation, ...], tuple[Operation, ...]]] | None:
    """Measure gradients and operations in float64; None if the model does not run like that."""
    try:
        model = precise.in_float64(task.model)
        double = task._replace(
            model=model, x=precise.doubled(task.x), target=precise.doubled(task.target)
        )
        hooked = Hooks()
        run = passes.forward(double, graph_of(model, hooked.on_output), hooked)
        named = _gradients(run, {n: p for n, p in model.named_parameters() if n in wanted})
        return {n: models.size_log2(g) for n, g in named.items()}, _operations(run)
    except Exception:  # a model may do anything, and is not always to be copied
        return None

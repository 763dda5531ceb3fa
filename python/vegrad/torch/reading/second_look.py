"""Look again at a step that made what is not finite: run the model once more, under the trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.flow.data import NonFiniteData
from vegrad.flow.reading import Reading
from vegrad.torch import models
from vegrad.torch.reading.edges import is_finite
from vegrad.torch.reading.gradients import has_reentrant
from vegrad.torch.reading.hooks import Hooks
from vegrad.torch.reading.losses import Heard
from vegrad.torch.reading.parameters import read_parameters
from vegrad.torch.reading.reading import interrupted, not_finite
from vegrad.torch.reading.tensors import tensors_in
from vegrad.torch.reading.trace import graph_of
from vegrad.torch.vocabulary import TorchVocabulary


def second_look(
    model: Module, args: tuple[object, ...], kwargs: Mapping[str, object], delta: Tensor | None
) -> Reading | None:
    """Run a model again on what it was given, and back from the gradient that came to its output.

    The model, its buffers, `.grad` and the random generators are left as they were. Dropout draws
    other masks than the step that is looked at.

    Args:
        model: the model, without wrappers.
        args: what it was called with.
        kwargs: what it was called with by name.
        delta: the gradient of the loss with respect to its output, of the output's shape, or to the
            first output of several; None to look at the forward pass only. If it is not finite
            itself, the loss is to blame.

    Returns:
        A reading without a chain, whose operations have sizes, δ and edges. Its loss is nan where
        what the model returns is not finite. None if the model cannot be run again.
    """
    hooked = Hooks()
    graph = graph_of(model, hooked.on_output)
    data = _not_finite(args, kwargs)
    with models.untouched(model):
        try:
            graph.begin(list(tensors_in((args, dict(kwargs)))))
            with graph.following(model), Heard(graph):
                output = model(*args, **kwargs)
            graph.end_model()
            outputs = [one for one in tensors_in(output) if one.is_floating_point()]
            graph.end_loss(*outputs)
            hooked.on_delta = graph.values.came
            hooked.begin()
            sizes = _back(model, outputs[0], delta) if delta is not None and outputs else {}
        except Exception as error:
            return interrupted(model, graph, error, data)
        parameters = read_parameters(model, graph, sizes)
        operations = graph.with_deltas(hooked.sizes)
        if delta is not None and not is_finite(delta):
            operations[graph.end] = replace(
                operations[graph.end], edge="loss-domain", delta_log2=0.0
            )
        lost = not is_finite(outputs)
    return Reading(
        vocabulary=TorchVocabulary(),
        about={"model": type(model).__name__, "parameters": len(parameters)},
        dtype=str(next(model.parameters()).dtype).removeprefix("torch."),
        loss=float("nan") if lost else None,
        operations=tuple(operations[: graph.end + 1]),
        parameters={name: replace(one, reached=True) for name, one in parameters.items()},
        data=data,
    )


def _back(model: Module, output: Tensor, delta: Tensor) -> dict[str, float]:
    """Return log2 of the norms of the gradients that a gradient at the output leads to."""
    wanted = {name: one for name, one in model.named_parameters() if one.requires_grad}
    if not output.requires_grad or output.shape != delta.shape:
        return {}
    if has_reentrant(output):
        torch.autograd.backward(output, delta)
        found = [one.grad for one in wanted.values()]
    else:
        found = list(torch.autograd.grad(output, list(wanted.values()), delta, allow_unused=True))
    several = zip(wanted, found, strict=True)
    return {name: models.size_log2(one) for name, one in several if one is not None}


def _not_finite(
    args: tuple[object, ...], kwargs: Mapping[str, object]
) -> tuple[NonFiniteData, ...]:
    """Return what is not finite among the inputs; one that stands alone is called x."""
    given = args[0] if len(args) == 1 else args
    several = not_finite("data", "x", given), not_finite("data", "x", dict(kwargs))
    return tuple(one for one in several if one is not None)

"""Look again at a step that a monitor has seen: run the model once more, under the trace.

`second_look` is for a step that made what is not finite, `full_look` for one whose sizes are odd.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn import Module

from vegrad.flow.data import NonFiniteData
from vegrad.flow.reading import Reading
from vegrad.torch import models
from vegrad.torch.reading.data import not_finite
from vegrad.torch.reading.edges import is_finite
from vegrad.torch.reading.gradients import has_reentrant
from vegrad.torch.reading.hooks import Hooks
from vegrad.torch.reading.losses import Heard, Loss
from vegrad.torch.reading.parameters import read_parameters
from vegrad.torch.reading.reading import interrupted, read
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
            graph.begin(tensors_in((args, dict(kwargs))))
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


def passes_again(
    model: Module, args: tuple[object, ...], kwargs: Mapping[str, object], delta: Tensor | None
) -> None:
    """Run a model again on what it was given, for the hooks that are on it; as `second_look`."""
    with models.untouched(model):
        try:
            outputs = [one for one in tensors_in(model(*args, **kwargs)) if one.is_floating_point()]
            if delta is not None and outputs:
                _back(model, outputs[0], delta)
        except Exception:  # a model may do anything, and its training is not to be disturbed
            return


def full_look(
    model: Module,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    loss_fn: Loss,
    target: object,
    *,
    further: bool = False,
) -> Reading | None:
    """Read a model again on what it was given, as a diagnosis does, but without further passes.

    The model, its buffers, `.grad` and the random generators are left as they were.

    Args:
        model: the model, without wrappers.
        args: what it was called with.
        kwargs: what it was called with by name.
        loss_fn: the loss, or a stand-in that has its gradient at the model's output.
        target: what the loss takes beside the output.
        further: True for a reading that can be asked what other weights would give.

    Returns:
        A reading; None if the model cannot be
        run again.
    """
    try:
        x = _joined(model, args, kwargs)
        with torch.inference_mode(False):
            found = read(model, loss_fn, x, target, resamples=0, seed=0)
    except Exception:  # a model may do anything, and its training is not to be disturbed
        return None
    return found if further else replace(found, what_if=None)


def _joined(model: Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Return arguments as `models.called` takes them.

    Raises:
        TypeError: for arguments that cannot all be given by name.
    """
    if not kwargs:
        plain = len(args) == 1 and isinstance(args[0], Tensor)
        return args[0] if plain else args
    if not args:
        return dict(kwargs)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    if bound.args and len(bound.args) != len(args):
        return bound.args if not bound.kwargs else dict(bound.arguments)
    return dict(bound.arguments)


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

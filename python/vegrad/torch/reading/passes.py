"""Run a model forward and back, and measure the gradient at each layer of its chain.

`forward` runs the model and its loss within a `Trace`, and hangs a hook at the output of each
layer (`hooks.py`). `backward` runs autograd, on which the hooks measure δ, the gradient of the loss
with respect to that output. `flow_of` then takes the gains apart, layer by layer, as
`vegrad.flow.Flow` has them, `config_of` describes the chain in the words of `vegrad.MLP`, and
`expected_of` asks theory what gains to expect.

Sizes must be right where the model's dtype underflows or overflows. So the hooks multiply δ by
powers of two on its way down, and each layer's `shift` says by how much. The true gradients of
weights are what autograd returns, times 2^-shift. The parameters' own `.grad` is never written.

How a model without formulas behaves with other weights is asked in `redraw.py`, and models whose
layers are no chain are measured by a monitor instead (`reading.py`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import Array, FloatArray
from vegrad.flow.data import Compared, KnownLoss
from vegrad.reports.flow import Flow
from vegrad.theory.expected import ExpectedFlow, flow_through
from vegrad.theory.propagation import Shape
from vegrad.torch.models import called, rms, size_log2
from vegrad.torch.reading.gradients import has_reentrant
from vegrad.torch.reading.graph import Graph
from vegrad.torch.reading.hooks import Hooks, nodes_from
from vegrad.torch.reading.initialization import Drawing, drawn_as, fans
from vegrad.torch.reading.losses import Heard, Loss, known_losses
from vegrad.torch.reading.rows_alone import row_sizes, rows_are_alone
from vegrad.torch.reading.trace import Layer, Replay, Trace

FAR = 60.0  # log2 of a size of δ, beyond which squares may leave the range of float32


class Task(NamedTuple):
    """A model, its loss, and a batch of data."""

    model: Module
    loss_fn: Loss
    x: object
    target: object


@dataclass
class Pass:
    """One forward and backward pass of a model."""

    trace: Trace
    hooks: Hooks
    path: list[int]
    """Places of the layers that make up the chain; [] if there is none."""
    output: Tensor
    loss: Tensor
    losses: tuple[KnownLoss, ...]
    compared: tuple[Compared, ...]
    trainable: list[Tensor]
    """Parameters and inputs of the model that require a gradient."""
    alone: bool = False
    """True if each row goes its own way."""

    @property
    def loss_kind(self) -> str:
        """The first known loss that was called; "" if none was."""
        return self.losses[0].kind if self.losses else ""

    @property
    def layers(self) -> list[Layer]:
        """Layers of the chain, from the input to the output."""
        return [self.trace.layers[place] for place in self.path]

    def size(self, place: int) -> float:
        """Return log2 ‖δ‖ of a layer; -inf if none came back to it."""
        operation = self.trace.layers[place].operation
        return -inf if operation is None else self.hooks.sizes.get(operation, -inf)

    def shift(self, place: int) -> float:
        """Return log2 of what the gradient was multiplied by on its way to a layer."""
        operation = self.trace.layers[place].operation
        return 0.0 if operation is None else self.hooks.shifts.get(operation, 0.0)


def forward(task: Task, graph: Graph, hooked: Hooks) -> Pass:
    """Run the model and the loss, with hooks that will measure δ on the way back.

    Args:
        task: what to run.
        graph: of the model, in which nothing has run yet; it is written down there, also where
            something raises.
        hooked: new hooks, to which the graph hands its outputs.

    Raises:
        ValueError: for a batch without rows, for a loss that is no single number, and for a loss
            that does not depend on the parameters.
    """
    model, loss_fn, x, target = task
    inputs = inputs_of(x)
    if inputs and not any(one.numel() for one in inputs):
        raise ValueError(f"x must have at least one row, not the shape {tuple(inputs[0].shape)}")
    trace = Trace(graph.names, inputs, graph)
    with graph.following(model), trace:
        output = called(model, x)
    chain = trace.path(output)
    graph.end_model(target)
    heard = Heard(graph, target)
    with heard:
        loss = checked(loss_fn(output, target))
    # Autograd computes no gradient below the lowest parameter that is trained.
    path = [
        place
        for place in chain
        if (operation := trace.layers[place].operation) is not None and hooked.reaches(operation)
    ]
    reentrant = has_reentrant(loss)
    path = [] if reentrant or loss.grad_fn is None else path
    graph.end_loss(loss)
    if not reentrant:
        graph.reached = {id(getattr(one, "variable", None)) for one in nodes_from(loss.grad_fn)}
    hooked.begin()
    chosen = {trace.layers[place].operation: trace.layers[place] for place in path}
    if path:
        hooked.find_cuts(loss.grad_fn)

    alone, rows = bool(path) and rows_are_alone(graph), row_count(x, target)

    def on_delta(place: int, delta: Tensor) -> None:
        graph.values.came(place, delta)
        if (layer := chosen.get(place)) is not None:
            _pass_through(layer, delta)
            layer.row_sizes = row_sizes(delta, rows)

    hooked.on_delta = on_delta
    trainable = [one for one in (*model.parameters(), *trace.inputs) if one.requires_grad]
    losses, compared = known_losses(heard.calls), tuple(heard.compared)
    return Pass(trace, hooked, path, output, loss, losses, compared, trainable, alone)


def checked(loss: object) -> Tensor:
    """Return the loss; raise ValueError if it is no single number that depends on parameters."""
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"loss_fn must return a tensor of one element, not {what:.80}")
    if not loss.requires_grad:
        raise ValueError("loss_fn must return a loss that depends on the model's parameters")
    return loss


def backward(run: Pass) -> list[Tensor | None]:
    """Run autograd, so that the hooks fill in δ.

    Returns:
        The gradients of the chain's weights, each times 2 to the layer's shift; None of weights
        that are not trained or not reached.
    """
    wanted = [layer.weight for layer in run.layers]
    found: list[Tensor | None] = [None] * len(wanted)
    some = [place for place, weight in enumerate(wanted) if weight.requires_grad]
    needed = [wanted[place] for place in some]
    if len(some) < len(wanted):
        # δ must come down to the lowest of all that is trained, biases and inputs too.
        needed += run.trainable
    given = torch.autograd.grad(run.loss, needed, allow_unused=True)
    for place, gradient in zip(some, given, strict=False):
        found[place] = gradient
    return found


def replayed(task: Task, run: Pass, *, deep: bool) -> tuple[FloatArray, list[float], Tensor] | None:
    """Run the task again and measure only δ and the inputs of the layers of a run's chain.

    Args:
        task: the same model, with other values or another batch.
        run: the pass whose chain is followed.
        deep: True if δ leaves the range of its dtype on the way down.

    Returns:
        log2 ‖δ‖ and the root mean square of the input of each layer, and the output; None if the
        model runs other layers than before.
    """
    hooked = Hooks()
    replay = Replay(set(run.path), hooked)
    with replay:
        output = called(task.model, task.x)
    loss = checked(task.loss_fn(output, task.target))
    if replay.count != len(run.trace.layers) or not isinstance(output, Tensor):
        return None
    hooked.begin()
    if deep:
        hooked.find_cuts(loss.grad_fn)
    assert replay.lowest is not None
    torch.autograd.grad(loss, replay.lowest, allow_unused=True)
    sizes = np.array([hooked.sizes.get(place, -inf) for place in run.path])
    return sizes, [replay.inputs[place] for place in run.path], output


def on_path(run: Pass) -> None:
    """Take layers off the chain whose δ is 0 though one below has some: skips go round them."""
    seen = [isfinite(size) for size in _sizes(run)]
    run.path[:] = [place for n, place in enumerate(run.path) if seen[n] or not any(seen[:n])]


def is_deep(run: Pass) -> bool:
    """Return True if δ left the range in which any dtype is safe."""
    sizes = _sizes(run)
    return bool((np.abs(sizes[np.isfinite(sizes)]) > FAR).any()) or not np.isfinite(sizes).all()


def _sizes(run: Pass) -> FloatArray:
    """Return log2 ‖δ‖ along the chain, -inf where none came."""
    return np.array([run.size(place) for place in run.path])


def begun_at_zero(run: Pass, gradients: list[Tensor | None]) -> dict[int, str]:
    """Find layers whose weights are exactly 0 and change with the first step.

    Only the last layer and layers beside others (adapters) are looked at: elsewhere, weights of 0
    are a fault and not a way to begin.

    Returns:
        The names of these weights by the number of the layer in the chain.
    """
    found = {}
    for number, (place, gradient) in enumerate(zip(run.path, gradients, strict=True)):
        layer = run.trace.layers[place]
        alone = any(above.below == {place} for above in run.trace.layers)
        trained = gradient is not None and bool(gradient.any())
        if trained and not alone and not bool(layer.weight.detach().any()):
            found[number] = f"{layer.name}.weight"
    return found


def flow_of(run: Pass, gradients: list[Tensor | None]) -> Flow:
    """Return the measured flow; `gradients` are those that `backward` returned."""
    layers, sizes = run.layers, _sizes(run)
    # Gains of weights are nan where a skip connection goes round layers between the two.
    steps = zip(run.path, layers[1:], strict=False)
    weight_gains = np.array(
        [layer.passed if place in layer.below else nan for place, layer in steps]
    )
    gradient = [
        -inf if one is None else size_log2(one) - run.shift(place)
        for one, place in zip(gradients, run.path, strict=True)
    ]
    with np.errstate(invalid="ignore"):
        activation = sizes[:-1] - sizes[1:] - weight_gains
    return Flow(
        np.array([*(rms(layer.x) for layer in layers[1:]), rms(run.output)]),
        np.array([layer.mean for layer in layers]),
        np.array([layer.std for layer in layers]),
        np.array([layer.flat for layer in layers]),
        np.array([layer.dead for layer in layers]),
        sizes,
        np.array(gradient),
        weight_gains,
        activation,
    )


def _pass_through(layer: Layer, delta: Tensor) -> None:
    """Note log2 ‖δ W‖/‖δ‖ of a layer; a convolution's transpose takes the place of W."""
    weight, delta = layer.weight.detach(), delta.detach()
    dtype = torch.promote_types(weight.dtype, delta.dtype)
    if layer.kind == "linear":
        passed = delta.to(dtype) @ weight.to(dtype)
    else:
        with torch.enable_grad(), torch.autocast(delta.device.type, enabled=False):
            x = layer.x.detach().to(dtype).requires_grad_()
            (passed,) = torch.autograd.grad(layer.again(x), x, delta.to(dtype))
    layer.passed = size_log2(passed) - size_log2(delta)


# The chain in the words of the MLP and of theory --------------------------------------------------


def config_of(run: Pass, drawing: Drawing) -> dict[str, Any]:
    """Return the arguments of `vegrad.MLP` that come nearest to the chain."""
    layers, hidden = run.layers, run.layers[:-1]
    kinds = Counter(layer.activation for layer in hidden).most_common(1)
    norms = Counter(layer.norm if layer.plain_norm else None for layer in hidden).most_common(1)
    return {
        "sizes": [fans(layers[0])[2], *(fans(layer)[3] for layer in layers)],
        "activation": kinds[0][0] if kinds else "identity",
        "output": layers[-1].activation,
        "loss": run.loss_kind or "a loss of its own",
        **drawing._asdict(),
        "norm": norms[0][0] if norms else None,
        "residual": any(layer.skips or len(layer.below) > 1 for layer in layers),
        "dtype": str(layers[0].weight.dtype).removeprefix("torch."),
        "seed": None,
    }


def expected_of(run: Pass, drawing: Drawing, x: object) -> ExpectedFlow | None:
    """Return what theory expects of a chain with weights drawn like this; None if it cannot say."""
    layers = run.layers
    if not isinstance(x, Tensor) or x.ndim != 2 or layers[0].x is not x:
        return None
    if any(layer.kind != "linear" or not _is_known(run, n) for n, layer in enumerate(layers)):
        return None
    shapes = []
    for place, layer in enumerate(layers):
        fan_in, fan_out, *_ = fans(layer)
        variance, sigma_b, row = drawn_as(layer, drawing)
        shapes.append(
            Shape(
                fan_in,
                fan_out,
                variance,
                sigma_b,
                layer.activation,
                layer.norm if place < len(layers) - 1 else None,
                layer.skips,
                row is not None and row.orthogonal,
            )
        )
    loss = run.loss_kind or "cross_entropy"
    try:
        return flow_through(shapes, loss, x.detach().double().cpu().numpy())
    except ValueError:  # Theory has no formulas for inputs that are all zero, or too large.
        return None


def _is_known(run: Pass, place: int) -> bool:
    """Return True if theory knows the layer and the way from it to the next one."""
    layer = run.layers[place]
    last = place + 1 == len(run.path)
    after = run.trace.origin(run.output) if last else run.layers[place + 1].below
    below = layer.below if layer.skips else frozenset()
    plain = layer.norm is None or layer.plain_norm
    return layer.known and plain and after == below | {run.path[place]}


# Data and gradients -------------------------------------------------------------------------------


def inputs_of(x: object) -> list[Tensor]:
    """Return the tensors among a model's inputs."""
    values: Iterable[object] = [x]
    if isinstance(x, tuple | list):
        values = x
    elif isinstance(x, Mapping):
        values = x.values()
    return [one for one in values if isinstance(one, Tensor)]


def shifted(gradient: Tensor | None, shift: float, like: Tensor) -> Array:
    """Return the gradient as the model's own pass stores it, with the 0 and inf of its dtype."""
    if gradient is None:
        return np.zeros(tuple(like.shape), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        true = np.ldexp(gradient.detach().double().cpu().numpy(), -round(shift))
    stored: Array = torch.from_numpy(true).to(gradient.dtype).double().numpy()
    return stored


def row_count(x: object, target: object) -> int:
    """Return the number of rows that inputs and target share; 0 if they have none in common."""
    tensors = inputs_of(x)
    if not isinstance(target, Tensor) or not target.ndim or not tensors:
        return 0
    return len(target) if all(one.ndim and len(one) == len(target) for one in tensors) else 0


def rows_of(x: object, target: object) -> Callable[[Array], tuple[Any, Any]] | None:
    """Return a function that takes rows, by their numbers, of all inputs and of the target.

    None if they have no rows in common.
    """
    if not row_count(x, target):
        return None

    def chosen(value: object, rows: Array) -> object:
        if isinstance(value, Tensor):
            return value[torch.from_numpy(rows).to(value.device)]
        if isinstance(value, Mapping):
            return {name: chosen(one, rows) for name, one in value.items()}
        if isinstance(value, tuple | list):
            return tuple(chosen(one, rows) for one in value)
        return value

    return lambda rows: (chosen(x, rows), chosen(target, rows))

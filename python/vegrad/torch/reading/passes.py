"""A model whose layers are a chain, factor by factor, as `vegrad.network.Flow` has it."""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, isfinite, nan
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.flow import Flow
from vegrad.theory.expected import ExpectedFlow, flow_through
from vegrad.theory.propagation import Shape
from vegrad.torch.models import called, rms, size_log2
from vegrad.torch.reading.initialization import drawn_as, fans, initialization
from vegrad.torch.reading.trace import Layer, Trace, names_of

LOSSES = {"mse_loss": "mse", "cross_entropy": "cross_entropy", "nll_loss": "cross_entropy",
          "binary_cross_entropy_with_logits": "binary_cross_entropy",
          "binary_cross_entropy": "binary_cross_entropy"}  # fmt: skip


@dataclass
class Pass:
    """One forward and backward pass of a model."""

    trace: Trace
    path: list[int]
    """Places of the layers that make the chain; [] if there is none."""
    output: Tensor
    loss: Tensor
    loss_kind: str
    shifts: dict[int, float]
    """log2 by which the gradient was multiplied on its way to the layers' weights."""
    sizes: dict[int, float]
    """log2 ‖δ‖ of layers."""
    trainable: list[Tensor]
    """The model's parameters and inputs that require a gradient."""

    @property
    def layers(self) -> list[Layer]:
        """Those of the chain, the layer nearest the input first."""
        return [self.trace.layers[place] for place in self.path]


def forward(model: Module, loss_fn: Any, x: Any, target: Any) -> Pass:
    """A pass up to the loss, with hooks that read δ on the way back."""
    hooked, inputs = _Backward(), _inputs(x)
    if inputs and not any(one.numel() for one in inputs):
        raise ValueError(f"x must have at least one row, not the shape {tuple(inputs[0].shape)}")
    trace = Trace(names_of(model), inputs, on_output=hooked.on_output)
    with trace:
        output = called(model, x)
    heard = _Names()
    with heard:
        loss = loss_fn(output, target)
    kind = next((LOSSES[name] for name in heard.names if name in LOSSES), "")
    if not isinstance(loss, Tensor) or loss.numel() != 1:
        what = f"one of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else repr(loss)
        raise ValueError(f"loss_fn must return a tensor of one element, not {what:.80}")
    if not loss.requires_grad:
        raise ValueError("loss_fn must return a loss that depends on the model's parameters")
    # Below the lowest parameter that is trained no gradient is wanted.
    path = [place for place in trace.path(output) if hooked.reaches(place)]
    hooked.layers = trace.layers
    if path:
        hooked.find_cuts(loss.grad_fn)
    trainable = [one for one in (*model.parameters(), *trace.inputs) if one.requires_grad]
    return Pass(trace, path, output, loss, kind, hooked.shifts, hooked.sizes, trainable)


class _Backward:
    """Hooks on the outputs of layers and of sums: they measure δ and keep it near 1.

    What comes from above is linear in δ. So where all ways down go through one tensor, a power of
    two may be taken out for all that lies below, and sizes are right where the dtype would
    underflow or overflow. In a plain chain that is each layer's output, with skip connections the
    sums between the blocks.
    """

    def __init__(self) -> None:
        self.layers: list[Layer] = []
        self.shifts: dict[int, float] = {}
        self.sizes: dict[int, float] = {}
        self._places: dict[Any, int | None] = {}  # of layers, by node of autograd's graph
        self._nodes: list[Any] = []
        self._above: dict[Any, int] = {}  # how many cuts there are down to a node, it included
        self._cuts: set[Any] = set()
        self._totals = [0.0]  # log2 taken out, by that number

    def on_output(self, place: int | None, output: Tensor) -> None:
        """Of a layer; of a sum if the place is None."""
        if output.requires_grad:
            came, number = weakref.WeakMethod(self._came), len(self._nodes)

            # Refers to neither us nor the node: a cycle through autograd's graph is never freed.
            def hook(gradient: Tensor) -> Tensor:
                alive = came()
                return alive(number, gradient) if alive else gradient

            self._nodes.append(output.grad_fn)
            self._places[output.grad_fn] = place
            output.register_hook(hook)

    def reaches(self, place: int) -> bool:
        """Whether there is a way back to the output of this layer."""
        return place in self._places.values()

    def find_cuts(self, root: Any) -> None:
        """From the loss down: nodes that all ways to the layers below them go through."""
        wanted = {node for node, place in self._places.items() if place is not None}
        order, leading = _downwards(root, wanted)
        ahead, count = {root}, 0
        for node in order:
            if node in self._places and ahead == {node}:
                self._cuts.add(node)
                count += 1
            self._above[node] = count
            ahead.discard(node)
            ahead |= {below for below, _ in node.next_functions if below in leading}

    def _came(self, number: int, gradient: Tensor) -> Tensor:
        node = self._nodes[number]
        size, above = size_log2(gradient), self._above.get(node, 0)
        if node in self._cuts:
            by = 0.0
            if isfinite(size):
                by = float(min(max(-round(size), -100), 100))
                gradient, size = gradient * 2.0**by, size + by
            self._totals.append(self._totals[-1] + by)
        place, shift = self._places[node], self._totals[above]
        if place is not None:
            self.layers[place].delta = gradient
            self.shifts[place], self.sizes[place] = shift, size - shift
        return gradient


def _downwards(root: Any, wanted: set[Any]) -> tuple[list[Any], set[Any]]:
    """Nodes that lead to some that are wanted, each after all above it; the same as a set."""
    order: list[Any] = []
    leading: set[Any] = set()
    seen, stack = set(), [(root, False)]
    while stack:
        node, left = stack.pop()
        below = [one for one, _ in node.next_functions if one is not None]
        if left:
            if node in wanted or any(one in leading for one in below):
                leading.add(node)
                order.append(node)
        elif node not in seen:
            seen.add(node)
            stack.append((node, True))
            stack += [(one, False) for one in below if one not in seen]
    return order[::-1], leading


class _Names(torch.overrides.TorchFunctionMode):
    """The names of the functions that were called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.names.append(getattr(function, "__name__", ""))
        return function(*args, **(kwargs or {}))


def backward(run: Pass) -> list[Tensor | None]:
    """Fills in δ; the gradients of the chain's weights, times 2 to the layer's shift."""
    wanted = [layer.weight for layer in run.layers]
    found: list[Tensor | None] = [None] * len(wanted)
    some = [place for place, weight in enumerate(wanted) if weight.requires_grad]
    needed = [wanted[place] for place in some]
    if len(some) < len(wanted):  # δ goes as far down as the lowest of all that are trained
        needed += run.trainable
    given = torch.autograd.grad(run.loss, needed, allow_unused=True)
    for place, gradient in zip(some, given, strict=False):
        found[place] = gradient
    return found


def on_path(run: Pass) -> None:
    """Takes layers off the chain whose δ is 0 while one below has some: skips go round them."""
    seen = [isfinite(run.sizes.get(place, -inf)) for place in run.path]
    alive = [place for n, place in enumerate(run.path) if seen[n] or not any(seen[:n])]
    run.path[:] = alive


def begun_at_zero(run: Pass, gradients: list[Tensor | None]) -> dict[int, str]:
    """Numbers and weights of layers that are exactly 0 and that the first step changes.

    Of the last layer and of those beside others (adapters): elsewhere zeros are no beginning.
    """
    found = {}
    for number, (place, gradient) in enumerate(zip(run.path, gradients, strict=True)):
        layer = run.trace.layers[place]
        alone = any(above.below == {place} for above in run.trace.layers)
        trained = gradient is not None and bool(gradient.any())
        if trained and not alone and not bool(layer.weight.detach().any()):
            found[number] = f"{layer.name}.weight"
    return found


def gains(run: Pass) -> FloatArray:
    """log2 ‖δ_l‖/‖δ_{l+1}‖ along the chain."""
    sizes = np.array([run.sizes.get(place, -inf) for place in run.path])
    with np.errstate(invalid="ignore"):
        found: FloatArray = sizes[:-1] - sizes[1:]
    return found


def flow_of(run: Pass, gradients: list[Tensor | None]) -> Flow:
    """What was measured; gradients of the chain's weights as `backward` gave them."""
    layers = run.layers
    sizes = np.array([run.sizes.get(place, -inf) for place in run.path])
    weight_gains = np.array([  # nan where a skip goes round layers between the two
        _through(layer) if place in layer.below else nan
        for place, layer in zip(run.path, layers[1:], strict=False)
    ])  # fmt: skip
    gradient = [
        -inf if one is None else size_log2(one) - run.shifts.get(place, 0.0)
        for one, place in zip(gradients, run.path, strict=True)
    ]
    with np.errstate(invalid="ignore"):
        activation = gains(run) - weight_gains
    return Flow(
        np.array(output_rms(run)),
        np.array([layer.mean for layer in layers]),
        np.array([layer.std for layer in layers]),
        np.array([layer.flat for layer in layers]),
        np.array([layer.dead for layer in layers]),
        sizes,
        np.array(gradient),
        weight_gains,
        activation,
    )


def output_rms(run: Pass) -> list[float]:
    """Of what comes to the next layer, or out of the model."""
    return [rms(layer.x) for layer in run.layers[1:]] + [rms(run.output)]


def _through(layer: Layer) -> float:
    """log2 of ‖δ W‖/‖δ‖, for a convolution of its transpose's gain."""
    if layer.delta is None:
        return -inf
    delta = layer.delta.detach()
    if layer.kind == "linear":
        passed = delta @ layer.weight.detach().to(delta.dtype)
    else:
        with torch.enable_grad():
            x = layer.x.detach().requires_grad_()
            (passed,) = torch.autograd.grad(layer.again(x), x, delta)
    return size_log2(passed) - size_log2(delta)


# What it is made of -----------------------------------------------------------------------------


def config_of(run: Pass) -> dict[str, Any]:
    """The chain as the arguments of `vegrad.MLP` that come nearest."""
    layers, hidden = run.layers, run.layers[:-1]
    kinds = Counter(layer.activation for layer in hidden).most_common(1)
    norms = Counter(layer.norm if layer.plain_norm else None for layer in hidden).most_common(1)
    init, sigma_w, sigma_b = initialization(layers)
    return {
        "sizes": [fans(layers[0])[2], *(fans(layer)[3] for layer in layers)],
        "activation": kinds[0][0] if kinds else "identity",
        "output": layers[-1].activation,
        "loss": run.loss_kind or "a loss of its own",
        "init": init,
        "sigma_w": sigma_w,
        "sigma_b": sigma_b,
        "norm": norms[0][0] if norms else None,
        "residual": any(layer.skips for layer in layers)
        or any(len(layer.below) > 1 for layer in layers),
        "dtype": str(layers[0].weight.dtype).removeprefix("torch."),
        "seed": None,
    }


def expected_of(run: Pass, config: dict[str, Any], x: Any) -> ExpectedFlow | None:
    """What theory expects of the chain with its weights' own sizes; None where it has no say."""
    layers = run.layers
    if not isinstance(x, Tensor) or x.ndim != 2 or layers[0].x is not x:
        return None
    if any(layer.kind != "linear" or not _is_known(run, n) for n, layer in enumerate(layers)):
        return None
    shapes = []
    for place, layer in enumerate(layers):
        fan_in, fan_out, *_ = fans(layer)
        variance, sigma_b, row = drawn_as(layer, config)
        hidden = place < len(layers) - 1
        orthogonal = row is not None and row.orthogonal
        shapes.append(Shape(fan_in, fan_out, variance, sigma_b, layer.activation,
                            layer.norm if hidden else None, layer.skips, orthogonal))  # fmt: skip
    loss = run.loss_kind or "cross_entropy"
    try:
        return flow_through(shapes, loss, x.detach().double().cpu().numpy())
    except ValueError:  # of inputs that are all zero, or too large, theory says nothing
        return None


def _is_known(run: Pass, place: int) -> bool:
    """Whether layer and connections are as theory knows them."""
    layer = run.layers[place]
    after = run.layers[place + 1].below if place + 1 < len(run.path) else run.trace.origin(
        run.output)  # fmt: skip
    below = layer.below if layer.skips else frozenset()
    plain = layer.norm is None or layer.plain_norm
    return layer.known and plain and after == below | {run.path[place]}


def _inputs(x: Any) -> list[Tensor]:
    values = x.values() if isinstance(x, Mapping) else x
    several = values if isinstance(x, tuple | list) or values is not x else [x]
    return [one for one in several if isinstance(one, Tensor)]


def shifted(gradient: Tensor | None, shift: float, like: Tensor) -> Any:
    """A gradient as the model's own pass would have it: an array, with the dtype's 0 and inf."""
    if gradient is None:
        return np.zeros(tuple(like.shape), np.float32)
    with np.errstate(over="ignore", under="ignore"):
        true = np.ldexp(gradient.detach().double().cpu().numpy(), -round(shift))
    return torch.from_numpy(true).to(gradient.dtype).double().numpy()


def rows_of(x: Any, target: Any) -> Callable[[Any], tuple[Any, Any]] | None:
    """What takes rows of both, of all tensors of several inputs; None where they have none."""
    tensors = _inputs(x)
    if not isinstance(target, Tensor) or not target.ndim or not tensors:
        return None
    if not all(one.ndim and len(one) == len(target) for one in tensors):
        return None

    def chosen(value: Any, rows: Any) -> Any:
        if isinstance(value, Tensor):
            return value[torch.from_numpy(rows).to(value.device)]
        if isinstance(value, Mapping):
            return {name: chosen(one, rows) for name, one in value.items()}
        several = isinstance(value, tuple | list)
        return tuple(chosen(one, rows) for one in value) if several else value

    return lambda rows: (chosen(x, rows), chosen(target, rows))

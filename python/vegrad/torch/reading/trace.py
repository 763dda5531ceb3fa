"""Record a forward pass: its layers, and which of them each tensor comes from.

A `Trace` is a `TorchFunctionMode`: PyTorch hands it each function that the model calls, with its
arguments, and the trace calls the function itself. It writes down three things at once:

- `layers`: each call of a linear map or a convolution, with the activation and the normalization
  that follow it, and with the layers whose outputs reach its input without another in between;
- `operations`: every operation on what comes from the inputs, as a graph in order of time, with
  the module that each ran in and the size of what it made;
- `branches`: the sums x + f(x) of residual streams (see `branches.py`).

Tensors are told apart by `id`, which is forgotten when a tensor is freed, since Python may give it
to a new one. The trace must not change what the model computes, it keeps nothing alive beyond the
layers' inputs, and it copies values only where an activation overwrites its input.

It does not decide whether the layers form a chain that the diagnosis can follow from layer to
layer: `path` finds the longest one, and gives up at functions that no chain has (`foreign`).
The way back is not followed here: `passes.py` hangs its hooks where `on_output` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from math import inf, log2, nan
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from vegrad.arrays.checks import FloatArray
from vegrad.flow.reading import INPUT, Branch
from vegrad.flow.reading import MAPS as LAYERS
from vegrad.flow.wording import exp2
from vegrad.torch.activations import FUNCTIONS
from vegrad.torch.reading.branches import Branches
from vegrad.torch.reading.call import (
    ADDS,
    BATCH_NORM,
    CONVOLUTION,
    NORMS,
    PRODUCTS,
    QUESTIONS,
    SHAPES,
    TRANSPOSED,
    Call,
)
from vegrad.torch.reading.graph import SAFE, Graph, rms_log2
from vegrad.torch.reading.hooks import Hooks
from vegrad.torch.reading.slopes import slopes_of
from vegrad.torch.reading.tensors import ByTensor, is_transformed

NEAR = 2.0  # log2 of a running variance over the batch's own, within which they are alike


@dataclass
class Layer:
    """A linear map or convolution, as it was called."""

    name: str
    """Path of the weight without ".weight"."""
    kind: str
    weight: Tensor
    bias: Tensor | None
    x: Tensor
    below: frozenset[int]
    """Places of the layers whose outputs reach this input through no other layer, or INPUT."""
    again: Callable[[Tensor], Tensor]
    """The same map, to be applied to another input."""
    mean: float
    std: float
    operation: int | None
    """Its place among the operations."""
    activation: str = "identity"
    known: bool = True
    """True if the activation is the one that vegrad calls by this name."""
    norm: str | None = None
    plain_norm: bool = True
    """True if the normalization stands between the layer and its activation."""
    rescaled: bool = False
    """True if it divides what the layer makes by its size in the batch."""
    skips: bool = False
    """True if the layer's own input is added to its activation's output."""
    flat: float = 0.0
    dead: float = 0.0
    passed: float = -inf
    """log2 ‖δ W‖/‖δ‖; a convolution's transpose takes the place of W."""
    row_sizes: FloatArray | None = None
    """‖δ‖ of each row, times 2 to the layer's shift, where rows go their own ways."""


@dataclass(eq=False)
class Trace(TorchFunctionMode):
    """A record of what a model does within `with trace:`."""

    names: dict[int, str]
    """Names of the parameters by id."""
    inputs: list[Tensor]
    graph: Graph
    """All operations on what comes from the inputs, in the order in which they ran."""
    layers: list[Layer] = field(default_factory=list)
    foreign: str = ""
    """Name of the first operation that no chain of layers has."""

    def __post_init__(self) -> None:
        super().__init__()
        self._from: ByTensor[frozenset[int]] = ByTensor()
        self._outputs: ByTensor[int] = ByTensor()  # The layer whose output it follows directly.
        for one in self.inputs:
            self._from[one] = frozenset([INPUT])
        self.graph.begin(self.inputs)
        self._branches = Branches(self.names)
        self._branches.begin(self.inputs)

    @property
    def branches(self) -> list[Branch]:
        """Sums of a residual stream and a branch, in the order in which they were made."""
        return self._branches.found

    @property
    def tables(self) -> set[str]:
        """Names of the embeddings' matrices."""
        return self._branches.tables

    def origin(self, tensor: object) -> frozenset[int]:
        """Return the places of the layers that a tensor comes from."""
        return self._from.get(tensor) or frozenset()

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        if getattr(function, "__name__", "") in QUESTIONS:
            answer = function(*args, **(kwargs or {}))
            if not isinstance(answer, Tensor):
                return answer
        call = Call(function, args, kwargs or {})
        if any(map(is_transformed, call.tensors)):
            self.foreign = self.foreign or call.name
            return function(*args, **call.kwargs)
        # What the function may overwrite is read before it runs.
        before = call.activated()
        factors = self.graph.factors.of(call)
        given = call.tensors
        if factors:
            left_out = set(map(id, factors))
            given = [one for one in given if id(one) not in left_out]
        origin = frozenset[int]().union(*map(self.origin, given))
        way = self._branches.added(*args[:2]) if call.adds else None
        way = way or self._branches.of(given)
        out, made, operation = self.graph.run(call, factors)
        for one in made:
            self._branches.made(one, way)
        if call.name.startswith("embedding"):
            self.tables.update(self.names[id(t)] for t in call.tensors if id(t) in self.names)
        if call.name in LAYERS and isinstance(out, Tensor):
            self._layer(call, out, operation)
            return out
        if before is not None:
            self._activation(call, before, out)
        elif call.name in NORMS:
            self._norm(call, out)
        elif call.adds:
            self._add(args[0], args[1])
        elif origin:
            self._other(call, given, origin, out)
        for one in made:
            self._from[one] = origin
        return out

    def _layer(self, call: Call, out: Tensor, operation: int | None) -> None:
        """Append a layer; from here on, what is made of its output comes from this layer only."""
        place, kind = len(self.layers), call.name
        argument_names = TRANSPOSED if "transpose" in kind else CONVOLUTION
        given = dict(zip(argument_names, call.args, strict=False)) | dict(call.kwargs)
        x, weight, bias = given.pop("input"), given["weight"], given.setdefault("bias", None)
        mean, std = _moments(out)
        self.layers.append(
            Layer(
                name=self._name(weight, f"{kind} {place}"),
                kind=kind,
                weight=weight,
                bias=bias,
                x=x,
                below=self.origin(x),
                again=lambda other: call.function(other, **given),
                mean=mean,
                std=std,
                operation=operation,
            )
        )
        self._from[out] = frozenset([place])
        self._outputs[out] = place

    def _name(self, weight: Tensor, otherwise: str) -> str:
        """Return the path of a layer; of weights made of others, that of the module that runs."""
        name = self.names.get(id(weight), "").removesuffix(".weight")
        return name or self.graph.module or otherwise

    def _activation(self, call: Call, before: Tensor, out: object) -> None:
        """Note the activation of the layer that its input comes from, if that has none yet."""
        place = max(self.origin(call.source), default=INPUT)
        if place == INPUT or self.layers[place].activation != "identity":
            return
        layer, name = self.layers[place], call.name
        row = FUNCTIONS.get(name)
        wanted = row.arguments if row is not None else {}
        got = dict(zip(wanted, call.args[1:], strict=False)) | dict(call.kwargs)
        if name == "hardtanh" and got.get("min_val", -1.0) >= 0:
            # PyTorch implements ReLU6 by this function, but it has only one flat side.
            name, row = "relu6", None
        direct = self._outputs.get(call.source) is not None
        same = row is not None and all(got.get(k, value) == value for k, value in wanted.items())
        layer.activation = name if row is None else row.ours
        layer.known = same and direct
        layer.flat, layer.dead = slopes_of(call, before, out)
        if direct and isinstance(out, Tensor):
            self._outputs[out] = place

    def _norm(self, call: Call, out: object) -> None:
        """Note the normalization of the layer that its input comes from."""
        place = max(self.origin(call.source), default=INPUT)
        if place == INPUT:
            return
        layer = self.layers[place]
        direct = self._outputs.get(call.source) is not None and layer.activation == "identity"
        layer.norm = NORMS[call.name]
        layer.plain_norm = direct and call.name in ("layer_norm", "rms_norm")
        layer.rescaled = direct and (
            call.name != "batch_norm" or _by_batch(call, self.graph.variances)
        )
        if direct and isinstance(out, Tensor):
            self._outputs[out] = place

    def _add(self, first: object, second: object) -> None:
        """Note skip connections round a single layer."""
        for one, other in ((first, second), (second, first)):
            place = self._outputs.get(one)
            if place is not None and other is self.layers[place].x:
                self.layers[place].skips = True

    def _other(
        self, call: Call, given: Sequence[Tensor], origin: frozenset[int], out: object
    ) -> None:
        """Note functions that theory does not know, and those that no chain of layers has."""
        place = max(origin)
        if place != INPUT and isinstance(out, Tensor) and call.name not in SHAPES:
            self.layers[place].known = False
        operands = sum(bool(self.origin(one)) for one in given)
        mixing = call.name in PRODUCTS and operands > 1 and place != INPUT
        weighted = any(id(one) in self.names and one.ndim > 1 for one in call.tensors)
        if (mixing or weighted) and call.name != "embedding" and not self.foreign:
            self.foreign = call.name

    def path(self, output: Tensor) -> list[int]:
        """Return the longest chain of layers that ends at the output; [] if there is none."""
        if self.foreign or not self.layers:
            return []
        if len({id(layer.weight) for layer in self.layers}) < len(self.layers):
            return []
        longest: dict[int, list[int]] = {INPUT: []}
        for place, layer in enumerate(self.layers):
            below = max((longest.get(one, []) for one in layer.below), key=len, default=[])
            longest[place] = [*below, place]
        chain = max((longest.get(one, []) for one in self.origin(output)), key=len, default=[])
        return chain if len(chain) >= 0.6 * len(self.layers) else []


class Replay(TorchFunctionMode):
    """A second run of a model of which the layers are known: measures some of these again."""

    def __init__(self, wanted: Collection[int], hooks: Hooks) -> None:
        super().__init__()
        self.wanted, self.hooks = wanted, hooks
        self.count = 0
        """How many layers have run."""
        self.inputs: dict[int, float] = {}
        """The root mean squares of the inputs of the layers wanted, by place."""
        self.lowest: Tensor | None = None
        """The output of the first layer wanted, down to which δ must come."""

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        out = function(*args, **(kwargs or {}))
        name = getattr(function, "__name__", "")
        if name in LAYERS and isinstance(out, Tensor):
            if self.count in self.wanted:
                x = args[0] if args else (kwargs or {})["input"]
                self.inputs[self.count] = exp2(rms_log2(x))
                self.hooks.on_output(self.count, out, True, False)
                self.lowest = out if self.lowest is None else self.lowest
            self.count += 1
        elif name in ADDS and isinstance(out, Tensor) and len(args) > 1:
            self.hooks.on_output(-1, out, False, True)
        return out


def _moments(tensor: Tensor) -> tuple[float, float]:
    """Return mean and standard deviation of the elements; 0 of none, as an expert may get none."""
    values = tensor.detach()
    if not values.numel():
        return 0.0, 0.0
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.dtype is torch.float32:
        std, mean = (float(one) for one in torch.std_mean(values, correction=0))
        if SAFE[0] < std < SAFE[1]:
            return mean, std
    std, mean = (float(one) for one in torch.std_mean(values.double(), correction=0))
    return mean, std


def _by_batch(call: Call, variances: Mapping[int, float]) -> bool:
    """Return True if a batch norm divides by what the batch itself gives, or nearly that."""
    given = dict(zip(BATCH_NORM, call.args, strict=False)) | dict(call.kwargs)
    running = given.get("running_var")
    if running is None or given.get("training"):
        return True
    own, mean = variances.get(id(running), nan), float(running.double().mean())
    return mean > 0 and abs(own - log2(mean)) < NEAR


def names_of(model: Module) -> dict[int, str]:
    """Return the names of a model's parameters by id."""
    return {id(parameter): name for name, parameter in model.named_parameters()}


def graph_of(model: Module, outputs: Callable[[int, Tensor, bool, bool], None]) -> Graph:
    """Return a graph of a model in which nothing has run yet."""
    return Graph(names_of(model), frozenset(map(id, model.buffers())), outputs=outputs)

"""Record a forward pass: its layers, and which of them each tensor comes from.

A `Trace` is a `TorchFunctionMode`: PyTorch hands it each function that the model calls, with its
arguments, and the trace calls the function itself. It writes down three things at once:

- `layers`: each call of a linear map or a convolution, with the activation and the normalization
  that follow it, and with the layers whose outputs reach its input without another in between;
- `operations`: every operation on what comes from the inputs, as a graph in order of time;
- `branches`: the sums x + f(x) of residual streams (see `branches.py`).

Tensors are told apart by `id`, so a trace keeps alive all those that it has numbered: else Python
could give the id of a tensor that was freed to a new one. The trace must not change what the model
computes, and it copies values only where an activation overwrites its input.

It does not decide whether the layers form a chain that the diagnosis can follow from layer to
layer: `path` finds the longest one, and gives up at functions that no chain has (`foreign`).
The way back is not followed here: `passes.py` hangs its hooks where `on_output` is called.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn import Module
from torch.overrides import TorchFunctionMode

from vegrad.flow.reading import INPUT, Branch, Operation
from vegrad.flow.reading import MAPS as LAYERS
from vegrad.torch.activations import FUNCTIONS, OTHERS
from vegrad.torch.reading.branches import Branches

NORMS = {
    "layer_norm": "layer",
    "rms_norm": "rms",
    "batch_norm": "batch",
    "group_norm": "group",
    "instance_norm": "instance",
}
PRODUCTS = {
    "matmul",
    "bmm",
    "baddbmm",
    "einsum",
    "__matmul__",
    "scaled_dot_product_attention",
    "addmm",
    "mm",
}
SHAPES = {
    "flatten",
    "view",
    "reshape",
    "contiguous",
    "to",
    "clone",
    "__get__",
    "squeeze",
    "unsqueeze",
    "float",
    "double",
}
ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = (*CONVOLUTION[:5], "output_padding", "groups", "dilation")
ACTIVATIONS = FUNCTIONS.keys() | OTHERS
FLAT = 0.05  # An element is saturated if |φ′| there is below this share of the largest.


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
    activation: str = "identity"
    known: bool = True
    """True if the activation is the one that vegrad calls by this name."""
    norm: str | None = None
    plain_norm: bool = True
    """True if the normalization stands between the layer and its activation."""
    skips: bool = False
    """True if the layer's own input is added to its activation's output."""
    flat: float = 0.0
    dead: float = 0.0
    delta: Tensor | None = None


@dataclass(frozen=True)
class Call:
    """A function of PyTorch with the arguments that it was called with."""

    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @cached_property
    def raw(self) -> str:
        """Name of the function, with the underscores of in-place functions."""
        return getattr(self.function, "__name__", "")

    @cached_property
    def name(self) -> str:
        """Name of the function without the underscore at the end of in-place functions."""
        return self.raw if self.raw.startswith("__") else self.raw.rstrip("_")

    @cached_property
    def tensors(self) -> list[Tensor]:
        """All tensors among the arguments."""
        return list(_tensors((self.args, self.kwargs)))

    @property
    def source(self) -> object:
        """First argument."""
        return self.args[0] if self.args else self.kwargs.get("input")

    @property
    def adds(self) -> bool:
        """True for the sum of two terms."""
        return self.raw in ADDS and len(self.args) > 1

    def activated(self) -> Tensor | None:
        """Return the values that an activation is about to be applied to; None for others."""
        source = self.source
        if self.name not in ACTIVATIONS or not isinstance(source, Tensor):
            return None
        flags = (*self.args[1:], self.kwargs.get("inplace"))
        inplace = self.raw.endswith("_") or any(one is True for one in flags)
        return source.detach().clone() if inplace else source.detach()


@dataclass(eq=False)
class Trace(TorchFunctionMode):
    """A record of what a model does within `with trace:`."""

    names: dict[int, str]
    """Names of the parameters by id."""
    inputs: list[Tensor]
    layers: list[Layer] = field(default_factory=list)
    foreign: str = ""
    """Name of the first operation that no chain of layers has."""
    on_output: Callable[[int | None, Tensor], None] | None = None
    """Called with each layer's place and output, and with None and the result of each sum."""
    operations: list[Operation] = field(default_factory=list)
    """All operations on what comes from the inputs, in the order in which they ran."""

    def __post_init__(self) -> None:
        super().__init__()
        self._from: dict[int, frozenset[int]] = {}
        self._outputs: dict[int, int] = {}  # The layer, by id of what follows it directly.
        self._made_by: dict[int, int] = {}  # The place of the operation, by id of its result.
        self._alive: list[Tensor] = list(self.inputs)
        for one in self.inputs:
            self._from[id(one)] = frozenset([INPUT])
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
        return self._from.get(id(tensor), frozenset())

    def __torch_function__(
        self,
        function: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> object:
        call = Call(function, args, kwargs or {})
        # What the function may overwrite is read before it runs.
        before = call.activated()
        origin = frozenset[int]().union(*map(self.origin, call.tensors))
        way = self._branches.added(*args[:2]) if call.adds else None
        way = way or self._branches.of(call.tensors)
        out = function(*args, **call.kwargs)
        made = list(_tensors(out))
        self._alive += [one for one in made if self._branches.made(one, way)]
        self._operation(call, made)
        if call.name.startswith("embedding"):
            self.tables.update(self._parameters(call))
        if call.name in LAYERS and isinstance(out, Tensor):
            self._layer(call, out)
            return out
        if before is not None:
            self._activation(call, before, out)
        elif call.name in NORMS:
            self._norm(call, out)
        elif call.adds:
            self._add(args[0], args[1], out)
        elif origin:
            self._other(call, origin, out)
        for one in made:
            self._from[id(one)] = origin
        self._alive += made
        return out

    def _parameters(self, call: Call) -> tuple[str, ...]:
        return tuple(self.names[id(one)] for one in call.tensors if id(one) in self.names)

    def _operation(self, call: Call, made: list[Tensor]) -> None:
        """Append an operation, unless it has nothing to do with inputs and parameters."""
        parameters = self._parameters(call)
        known = {self._made_by[id(one)] for one in call.tensors if id(one) in self._made_by}
        inputs = any(INPUT in self.origin(one) for one in call.tensors)
        if not made or not (parameters or known or inputs):
            return
        below = tuple(sorted(known)) or ((INPUT,) if inputs else ())
        path = parameters[0].rpartition(".")[0] if parameters else ""
        for one in made:
            self._made_by[id(one)] = len(self.operations)
        self.operations.append(Operation(call.name.strip("_"), path, below, parameters))

    def _layer(self, call: Call, out: Tensor) -> None:
        """Append a layer; from here on, what is made of its output comes from this layer only."""
        place, kind = len(self.layers), call.name
        argument_names = TRANSPOSED if "transpose" in kind else CONVOLUTION
        given = dict(zip(argument_names, call.args, strict=False)) | dict(call.kwargs)
        x, weight, bias = given.pop("input"), given["weight"], given.setdefault("bias", None)
        values = out.detach().double()
        some = values.numel() > 0  # A mixture's expert may get no rows.
        self.layers.append(
            Layer(
                name=self.names.get(id(weight), f"{kind} {place}").removesuffix(".weight"),
                kind=kind,
                weight=weight,
                bias=bias,
                x=x,
                below=self.origin(x),
                again=lambda other: call.function(other, **given),
                mean=float(values.mean()) if some else 0.0,
                std=float(values.std(correction=0)) if some else 0.0,
            )
        )
        self._from[id(out)] = frozenset([place])
        self._outputs[id(out)] = place
        self._alive.append(out)
        if self.on_output is not None:
            self.on_output(place, out)

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
        direct = id(call.source) in self._outputs
        same = row is not None and all(got.get(k, value) == value for k, value in wanted.items())
        layer.activation = name if row is None else row.ours
        layer.known = same and direct
        layer.flat, layer.dead = _flatness(call, before)
        if direct:
            self._outputs[id(out)] = place

    def _norm(self, call: Call, out: object) -> None:
        """Note the normalization of the layer that its input comes from."""
        place = max(self.origin(call.source), default=INPUT)
        if place == INPUT:
            return
        layer = self.layers[place]
        direct = id(call.source) in self._outputs and layer.activation == "identity"
        layer.norm = NORMS[call.name]
        layer.plain_norm = direct and call.name in ("layer_norm", "rms_norm")
        if direct:
            self._outputs[id(out)] = place

    def _add(self, first: object, second: object, out: object) -> None:
        """Note skip connections round a single layer."""
        if self.on_output is not None and isinstance(out, Tensor):
            self.on_output(None, out)
        for one, other in ((first, second), (second, first)):
            place = self._outputs.get(id(one))
            if place is not None and other is self.layers[place].x:
                self.layers[place].skips = True

    def _other(self, call: Call, origin: frozenset[int], out: object) -> None:
        """Note functions that theory does not know, and those that no chain of layers has."""
        place = max(origin)
        if place != INPUT and isinstance(out, Tensor) and call.name not in SHAPES:
            self.layers[place].known = False
        operands = sum(bool(self.origin(one)) for one in call.tensors)
        mixing = call.name in PRODUCTS and operands > 1
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


def _tensors(values: object) -> Iterator[Tensor]:
    """Yield all tensors in nested tuples, lists and mappings."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for one in values:
            yield from _tensors(one)
    elif isinstance(values, dict):
        for one in values.values():
            yield from _tensors(one)


def _same(tensor: Tensor) -> Tensor:
    """Keep a tensor as it is.

    As the hook for saved tensors it takes the place of a checkpoint's, which counts what is saved.
    """
    return tensor


def _flatness(call: Call, y: Tensor) -> tuple[float, float]:
    """Return the shares of saturated elements and of dead units of an activation's inputs y.

    An element is saturated if |φ′| is under 5 % of the largest; a unit is dead if φ′ = 0 for all
    rows of the batch.
    """
    args = tuple(one for one in call.args[1:] if one is not True)  # without inplace
    kwargs = {k: value for k, value in call.kwargs.items() if k not in ("inplace", "input")}

    def slope(at: Tensor) -> Tensor:
        at = at.double().requires_grad_()
        value = call.function(at.clone(), *args, **kwargs)
        found: Tensor = torch.autograd.grad(value.sum(), at)[0]
        return found

    try:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            slopes = slope(y.detach())
            far = torch.linspace(-8, 8, 1601, dtype=torch.float64, device=y.device)
            largest = slope(far).abs().max()
    except (RuntimeError, TypeError):  # An activation with weights, of another dtype.
        return 0.0, 0.0
    flat = (slopes.abs() < FLAT * largest).double().mean()
    zero = slopes == 0
    if slopes.ndim == 3:  # (batch, time, units), or the channels of a one-dimensional convolution
        zero = zero.flatten(0, 1)
    elif slopes.ndim > 1:
        zero = zero.movedim(1, -1).flatten(0, -2)
    return float(flat), float(zero.reshape(-1, zero.shape[-1]).all(0).double().mean())


def names_of(model: Module) -> dict[int, str]:
    """Return the names of a model's parameters by id."""
    return {id(parameter): name for name, parameter in model.named_parameters()}

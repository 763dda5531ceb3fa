"""One forward pass written down: its layers, and which of them each tensor comes from."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
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

NORMS = {"layer_norm": "layer", "rms_norm": "rms", "batch_norm": "batch", "group_norm": "group",
         "instance_norm": "instance"}  # fmt: skip
PRODUCTS = {"matmul", "bmm", "baddbmm", "einsum", "__matmul__", "scaled_dot_product_attention",
            "addmm", "mm"}  # fmt: skip
SHAPES = {"flatten", "view", "reshape", "contiguous", "to", "clone", "__get__", "squeeze",
          "unsqueeze", "float", "double"}  # fmt: skip
ADDS = {"add", "__add__", "__radd__", "__iadd__", "add_"}
FLAT = 0.05  # of the largest derivative: less is saturated


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
    """Places of the layers that its input comes from, by way of no other; INPUT too."""
    again: Callable[[Tensor], Tensor]
    """The same map of another input."""
    mean: float
    std: float
    activation: str = "identity"
    known: bool = True
    """Whether the activation is vegrad's of this name."""
    norm: str | None = None
    plain_norm: bool = True
    """Whether the normalization stands between the layer and its activation."""
    skips: bool = False
    """Whether its own input is added to its activation's output."""
    flat: float = 0.0
    dead: float = 0.0
    delta: Tensor | None = None


@dataclass(eq=False)
class Trace(TorchFunctionMode):
    """What was done between `with` and its end."""

    names: dict[int, str]
    """Of the parameters, by id."""
    inputs: list[Tensor]
    layers: list[Layer] = field(default_factory=list)
    foreign: str = ""
    """The first operation that no chain of layers has."""
    on_output: Callable[[int | None, Tensor], None] | None = None
    """Called with a layer's place and its output, and with None and a sum."""
    operations: list[Operation] = field(default_factory=list)
    """All that was done to what comes from the inputs, in the order in which it ran."""

    def __post_init__(self) -> None:
        super().__init__()
        self._from: dict[int, frozenset[int]] = {}
        self._outputs: dict[int, int] = {}  # by id of what normalization and activation made
        self._made_by: dict[int, int] = {}  # by id of tensors: the place of an operation
        self._alive: list[Any] = list(self.inputs)  # so that no id is given twice
        for one in self.inputs:
            self._from[id(one)] = frozenset([INPUT])
        self._branches = Branches(self.names)
        self._branches.begin(self.inputs)

    @property
    def branches(self) -> list[Branch]:
        """The sums of a stream and a branch, the first first."""
        return self._branches.found

    @property
    def tables(self) -> set[str]:
        """Names of embeddings."""
        return self._branches.tables

    def origin(self, tensor: Any) -> frozenset[int]:
        """The layers that a tensor comes from."""
        return self._from.get(id(tensor), frozenset())

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        raw = getattr(function, "__name__", "")
        name = raw.rstrip("_") if not raw.startswith("__") else raw
        source = args[0] if args else kwargs.get("input")
        before = None
        if _is_activation(name) and isinstance(source, Tensor):
            inplace = raw.endswith("_") or kwargs.get("inplace") is True or True in args[1:]
            before = source.detach().clone() if inplace else source.detach()
        found = list(_tensors((args, kwargs)))
        origin = frozenset[int]().union(*(self.origin(one) for one in found))
        way = self._branches.added(*args[:2]) if raw in ADDS and len(args) > 1 else None
        way = way or self._branches.of(found)
        out = function(*args, **kwargs)
        self._alive += [one for one in _tensors(out) if self._branches.made(one, way)]
        self._note(name, found, out)
        if name.startswith("embedding"):
            self.tables.update(self.names[id(one)] for one in found if id(one) in self.names)
        if name in LAYERS and isinstance(out, Tensor):
            self._layer(function, name, args, kwargs, out)
            return out
        if before is not None:
            self._activation(function, name, args[1:], kwargs, source, before, out)
        elif name in NORMS:
            self._norm(name, kwargs, args, source, out)
        elif raw in ADDS and len(args) > 1:
            self._add(args, out)
        elif origin:
            self._other(name, found, origin, out)
        for one in _tensors(out):
            self._from[id(one)] = origin
            self._alive.append(one)
        return out

    def _note(self, name: str, found: list[Tensor], out: Any) -> None:
        """Write down an operation, unless it made no tensor of what we follow."""
        made = list(_tensors(out))
        parameters = tuple(self.names[id(one)] for one in found if id(one) in self.names)
        known = {self._made_by[id(one)] for one in found if id(one) in self._made_by}
        inputs = any(INPUT in self.origin(one) for one in found)
        if not made or not (parameters or known or inputs):
            return
        below = tuple(sorted(known | ({INPUT} if inputs and not known else set())))
        path = parameters[0].rpartition(".")[0] if parameters else ""
        for one in made:
            self._made_by[id(one)] = len(self.operations)
        self.operations.append(Operation(name.strip("_"), path, below, parameters))

    def _layer(self, function: Any, kind: str, args: Any, kwargs: Any, out: Tensor) -> None:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
        x, weight = given.pop("input"), given["weight"]
        rest, place = args[3:], len(self.layers)
        given = {name: value for name, value in given.items() if name in ("weight", *kwargs)}
        bias = args[2] if len(args) > 2 else kwargs.get("bias")
        given["bias"] = bias
        extra = _named_rest(kind, rest)
        own = {**extra, **given}
        name = self.names.get(id(weight), f"{kind} {place}").removesuffix(".weight")
        values = out.detach()
        values = values if values.dtype is torch.float64 else values.float()
        some = values.numel() > 0  # an expert may get no rows
        mean = float(values.double().mean()) if some else 0.0
        std = float(values.double().std(correction=0)) if some else 0.0
        self.layers.append(
            Layer(name, kind, weight, bias, x, self.origin(x),
                  lambda other: function(other, **own), mean, std)
        )  # fmt: skip
        self._from[id(out)] = frozenset([place])
        self._outputs[id(out)] = place
        self._alive.append(out)
        if self.on_output is not None:
            self.on_output(place, out)

    def _activation(
        self, function: Any, name: str, args: Any, kwargs: Any, source: Any, y: Tensor, out: Any
    ) -> None:
        place = max(self.origin(source), default=INPUT)
        if place == INPUT or self.layers[place].activation != "identity":
            return
        layer = self.layers[place]
        row = FUNCTIONS.get(name)
        wanted = row.arguments if row is not None else {}
        got = dict(zip(wanted, args, strict=False)) | kwargs
        if name == "hardtanh" and got.get("min_val", -1.0) >= 0:
            name, row = "relu6", None  # which is called so by PyTorch, but has one flat side
        layer.activation = name if row is None else row.ours
        layer.known = row is not None and all(got.get(k, v) == v for k, v in wanted.items())
        layer.known = layer.known and id(source) in self._outputs
        layer.flat, layer.dead = _flatness(function, args, kwargs, y)
        if id(source) in self._outputs:
            self._outputs[id(out)] = place

    def _norm(self, name: str, kwargs: Any, args: Any, source: Any, out: Any) -> None:
        place = max(self.origin(source), default=INPUT)
        if place == INPUT:
            return
        layer = self.layers[place]
        direct = id(source) in self._outputs and layer.activation == "identity"
        layer.norm = NORMS[name]
        layer.plain_norm = direct and name in ("layer_norm", "rms_norm")
        if direct:
            self._outputs[id(out)] = place

    def _add(self, args: Any, out: Any) -> None:
        if self.on_output is not None and isinstance(out, Tensor):
            self.on_output(None, out)
        for one, other in (args[:2], args[1::-1]):
            place = self._outputs.get(id(one))
            if place is not None and other is self.layers[place].x:
                self.layers[place].skips = True

    def _other(self, name: str, found: list[Tensor], origin: frozenset[int], out: Any) -> None:
        place = max(origin)
        if place != INPUT and isinstance(out, Tensor) and name not in SHAPES:
            self.layers[place].known = False
        mixing = name in PRODUCTS and sum(bool(self.origin(one)) for one in found) > 1
        weighted = any(id(one) in self.names and one.ndim > 1 for one in found)
        if (mixing or weighted) and name != "embedding" and not self.foreign:
            self.foreign = name

    def path(self, output: Tensor) -> list[int]:
        """The longest chain of layers that ends at the output; [] if there is none to follow."""
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


def _is_activation(name: str) -> bool:
    return name in FUNCTIONS or name in OTHERS


def _tensors(values: Any) -> Iterator[Tensor]:
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, tuple | list):
        for one in values:
            yield from _tensors(one)
    elif isinstance(values, dict):
        for one in values.values():
            yield from _tensors(one)


def _named_rest(kind: str, rest: Any) -> dict[str, Any]:
    names = ("stride", "padding", "dilation", "groups")
    if "transpose" in kind:
        names = ("stride", "padding", "output_padding", "groups", "dilation")  # type: ignore[assignment]
    return dict(zip(names, rest, strict=False))


def _same(tensor: Tensor) -> Tensor:
    """Instead of a checkpoint's hook, which counts what is saved within it."""
    return tensor


def _flatness(function: Any, args: Any, kwargs: Any, y: Tensor) -> tuple[float, float]:
    """Of its elements those with |φ′| under 5 % of the largest, of its units those with φ′ = 0."""
    kwargs = {name: value for name, value in kwargs.items() if name not in ("inplace", "input")}
    args = tuple(one for one in args if one is not True)

    def slope(at: Tensor) -> Tensor:
        at = at.double().requires_grad_()
        value = function(at.clone(), *args, **kwargs)
        found: Tensor = torch.autograd.grad(value.sum(), at)[0]
        return found

    try:
        with torch.enable_grad(), saved_tensors_hooks(_same, _same):
            slopes = slope(y.detach())
            far = torch.linspace(-8, 8, 1601, dtype=torch.float64, device=y.device)
            largest = slope(far).abs().max()
    except (RuntimeError, TypeError):  # one with weights, of another dtype
        return 0.0, 0.0
    flat = (slopes.abs() < FLAT * largest).double().mean()
    units = (slopes == 0).movedim(1, -1).flatten(0, -2) if slopes.ndim > 1 else slopes == 0
    if slopes.ndim == 3:  # (batch, time, units), or the channels of a one-dimensional convolution
        units = (slopes == 0).flatten(0, 1)
    return float(flat), float(units.reshape(-1, units.shape[-1]).all(0).double().mean())


def names_of(model: Module) -> dict[int, str]:
    """Of its parameters, by id."""
    return {id(parameter): name for name, parameter in model.named_parameters()}

"""nn.Sequential of Linear and activation layers, run by the passes of vegrad.MLP's core.

The parameters stay the modules' own, but lie in the core's memory, so that both see every change.
"""

from __future__ import annotations

import struct
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.nn.modules.module import _has_any_global_hook as any_global_hook

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.torch.activations import MODULES
from vegrad.torch.fused.conditions import (
    DTYPES,
    NotFusedError,
    as_array,
    as_kind,
    dtype_of,
    is_plain_run,
    refuse,
)
from vegrad.torch.fused.gradients import Block, Handover, Node

# The attributes that a FusedMLP has beside those of a Sequential; copies make theirs anew.
_PASS = {
    "_network",
    "_sizes",
    "_dtype",
    "_named",
    "_own",
    "_places",
    "_handover",
    "_anchor",
    "_joint",
    "_layers",
    "_numbers",
    "direct",
}


def fused(module: nn.Sequential, direct: bool) -> FusedMLP:
    """Return a module with the forward() of nn.Sequential as a FusedMLP, or raise NotFusedError."""
    found = FusedMLP(*module, direct=direct)
    for name, value in vars(module).items():
        if name not in (*_PASS, "_compiled_call_impl"):
            own = name in ("_modules", "_parameters", "_buffers")
            found.__dict__[name] = value.copy() if own else value
    return found


class FusedMLP(nn.Sequential):
    """A Sequential that runs all its layers in one pass; `fuse` makes it.

    Its own hooks are called, those of its layers are not. Where the pass does not fit (under
    autocast, after layers were moved, converted or exchanged, for inputs of another dtype or
    device, while there are hooks of all modules) the layers run one by one. torch.jit.script
    compiles the layers, and leaves them in place of a FusedMLP in the model that it was given. Of
    gradients it takes one at a time: batches of them (is_grads_batched) are a RuntimeError.
    """

    def __init__(self, *layers: nn.Module, direct: bool = False) -> None:
        super().__init__(*layers)
        self._bind(direct)

    @torch.inference_mode(False)
    def _bind(self, direct: bool) -> None:
        """Make the pass for the layers as they are now."""
        self._layers: list[nn.Module] | None = list(self)
        sizes, activation, output, dtype, linear = _described(self._layers)
        # The arguments of the activations that the pass takes for granted, to be looked at again.
        self._numbers = [
            (vars(layer), name, value)
            for layer in self._layers
            if type(layer) in MODULES
            for name, value in MODULES[type(layer)].arguments.items()
        ]
        self._network = _core.Network(sizes, activation, output, "given", None, False, dtype)
        self._sizes, self._dtype = sizes, linear[0].weight.dtype
        self._named = [(one._parameters, name) for one in linear for name in ("weight", "bias")]
        self._own = [one for layer in linear for one in (layer.weight, layer.bias)]
        with torch.no_grad():
            for parameter, array in zip(
                self._own, self._network.parameters().values(), strict=True
            ):
                shared = torch.from_numpy(array)
                shared.copy_(parameter)
                parameter.data = shared
        self._places = struct.pack(f"={len(self._own)}Q", *map(Tensor.data_ptr, self._own))
        self.direct = direct
        gradients = self._network.gradients().values()
        places = [one.ctypes.data // one.itemsize for one in gradients]
        self._handover = Handover(self._own, [place - places[0] for place in places])
        self._anchor = torch.zeros((), requires_grad=True)
        self._joint: tuple[bytes, Tensor] | None = None

    def __getstate__(self) -> dict[str, Any]:
        rest = {name: value for name, value in vars(self).items() if name not in _PASS}
        return rest | {"direct": self.direct}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        try:
            self._bind(self.direct)
        except NotFusedError:  # the layers had been exchanged before the copy
            self._layers = None

    def __prepare_scriptable__(self) -> nn.Sequential:
        return as_kind(self, nn.Sequential, _PASS)

    def __getitem__(self, idx: int | slice) -> nn.Module:
        if isinstance(idx, slice):
            return nn.Sequential(OrderedDict(list(self._modules.items())[idx]))
        return super().__getitem__(idx)

    def _fits(self, x: Tensor) -> bytes | None:
        """Return a byte for each parameter, 1 if it needs a gradient; None if the pass is unfit."""
        fits = (
            list(self._modules.values()) == self._layers
            and x.ndim >= 2
            and x.dtype is self._dtype
            and x.device.type == "cpu"
            and x.layout is torch.strided
            and x.shape[-1] == self._sizes[0]
            and x.numel() > 0
            and is_plain_run()
            and not any_global_hook()
            and all(given.get(name, value) == value for given, name, value in self._numbers)
        )
        return _core.unmoved(self._own, self._named, self._places) if fits else None

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (…, O) for inputs (…, I)."""
        if type(x) is not Tensor or torch.compiler.is_compiling():
            return super().forward(x)
        needed = self._fits(x)
        if needed is None:
            return super().forward(x)
        rows = x if x.ndim == 2 else x.reshape(-1, self._sizes[0])
        if not rows.is_contiguous():
            rows = rows.contiguous()
        out: Tensor
        if torch.is_grad_enabled():
            out = _apply(self, rows, self._parameters_as_one(needed), needed)
        else:
            out = torch.from_numpy(self._network.forward(rows.numpy()))
        return out if x.ndim == 2 else out.reshape(*x.shape[:-1], self._sizes[-1])

    def _parameters_as_one(self, needed: bytes) -> Tensor:
        """Return the input of the graph that stands for the parameters."""
        if self.direct and 1 in needed:
            return self._anchor
        if self._joint is None or self._joint[0] != needed:
            self._joint = needed, self._handover.joint()
        return self._joint[1]


class _Pass(Function):
    """One fused pass in autograd's graph."""

    @staticmethod
    def forward(ctx: Node, fused: FusedMLP, x: Tensor, joint: Tensor, needed: bytes) -> Tensor:
        kept = fused._network.forward_kept(x.numpy())
        assert kept is not None  # `_fits` has made sure of that
        ctx.fused, ctx.number, ctx.needed = fused, kept[1], needed
        ctx.versions = _core.versions(fused._own)  # cheaper than saving a hundred tensors
        ctx.save_for_backward(x, joint)
        return torch.from_numpy(kept[0])

    @staticmethod
    def backward(ctx: Node, gradient: Tensor) -> tuple[Tensor | None, ...]:
        second, (x, joint) = torch.is_grad_enabled(), ctx.saved_tensors
        with torch.no_grad():
            delta, block = _Pass.run(ctx, x, gradient)
            fused, (_, wanted, joint_wanted, _) = ctx.fused, ctx.needs_input_grad
            below = torch.from_numpy(delta) @ fused._own[0].detach() if wanted else None
        flat = block.flat if joint_wanted else None
        if second:
            below = None if below is None else refuse("FusedMLP", below, x, joint, gradient)
            flat = None if flat is None else refuse("FusedMLP", flat, x, joint, gradient)
        handover = fused._handover
        if fused.direct and flat is not None:
            handover.leave(handover.cut(flat) if second else block.pieces, ctx.needed)
            flat = None
        handover.give_back(block)
        return None, below, flat, None

    @staticmethod
    def run(ctx: Node, x: Tensor, gradient: Tensor) -> tuple[Array, Block]:
        """Return the gradients of the first layer's pre-activations and of the parameters."""
        fused = ctx.fused
        if ctx.versions != _core.versions(fused._own):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a parameter of a FusedMLP, after its forward pass"
            )
        array = as_array(gradient, "FusedMLP")
        block = fused._handover.take()
        delta = fused._network.backward_kept(
            ctx.number, x.numpy(), array, ctx.needs_input_grad[1], block.array
        )
        assert delta is not None  # `_fits` has made sure of that
        return delta, block


FORWARDS = (nn.Sequential.forward, FusedMLP.forward)

# Function.apply first searches the arguments for wrappers that only torch.func makes, which takes
# time; the method that it then calls does the work.
_apply: Any = super(Function, _Pass).apply


class _Network(NamedTuple):
    """Layers as the core's network."""

    sizes: list[int]
    activation: str
    output: str
    dtype: str
    linear: list[nn.Linear]


def _described(layers: Iterable[nn.Module]) -> _Network:
    """Describe layers as the core's network, or raise if they are no such network."""
    linear: list[nn.Linear] = []
    activations: list[str] = []
    for place, layer in enumerate(layers):
        if type(layer) is nn.Linear:
            if layer.bias is None:
                raise NotFusedError(f"layer {place} must have a bias")
            linear.append(layer)
            activations.append("identity")
        elif type(layer) is nn.Identity and linear:
            continue
        elif type(layer) in MODULES and linear and activations[-1] == "identity":
            row = MODULES[type(layer)]
            for argument, value in row.arguments.items():
                if getattr(layer, argument, value) != value:
                    raise NotFusedError(f"{argument} of layer {place} must be {value}")
            activations[-1] = row.ours
        else:
            raise NotFusedError(
                f"layer {place} must be a Linear or the activation of one, not {layer}"
            )
    if not linear:
        raise NotFusedError("there must be a Linear layer")
    if len(set(activations[:-1])) > 1:
        kinds = ", ".join(sorted(set(activations[:-1])))
        raise NotFusedError(f"the activations between the layers must be of one kind, not {kinds}")
    parameters = [one for layer in linear for one in (layer.weight, layer.bias)]
    if len(set(map(id, parameters))) < len(parameters):
        raise NotFusedError("no two layers may share a parameter")
    dtype = dtype_of(parameters)
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
    if sizes[:-1] != [layer.in_features for layer in linear]:
        raise NotFusedError("each layer must take what the one before gives")
    between = activations[0] if len(linear) > 1 else "identity"
    return _Network(sizes, between, activations[-1], DTYPES[dtype], linear)

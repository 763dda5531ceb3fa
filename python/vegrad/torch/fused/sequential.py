"""nn.Sequential of Linear and activation layers, run by the passes of vegrad.MLP's core.

The parameters stay the modules' own, but lie in the core's memory, so that both see every change.
"""

from __future__ import annotations

import struct
import warnings
from collections import OrderedDict
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd import Function, forward_ad

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.torch.activations import MODULES
from vegrad.torch.fused.gradients import Block, Handover, Node
from vegrad.torch.models import state

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}
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


def fuse(module: nn.Sequential, *, direct: bool = False) -> nn.Sequential:
    """Return the same network, run in one fused pass forward and one backward.

    The layers must be Linear layers with biases, all of float32 or all of float64 on the CPU, with
    one kind of activation between them and any or none after the last.

    Args:
        module: the network.
        direct: leave the parameters out of autograd's graph, where each is a node that takes as
            long to reach as a small layer takes to compute. `backward()` does the same, but no hook
            of a parameter is called (DistributedDataParallel has such hooks), and
            torch.autograd.grad does not know the parameters.

    Returns:
        A FusedMLP with the module's own layers (the same parameters and state_dict), mode and
        hooks. Or, with a warning that says why, the module itself.

    Raises:
        TypeError: if `module` is not a torch.nn.Module.
    """
    if not isinstance(module, nn.Module):
        raise TypeError(f"module must be a torch.nn.Sequential, not {type(module).__name__}")
    try:
        forward = getattr(module.forward, "__func__", None)
        if forward not in (nn.Sequential.forward, FusedMLP.forward):
            raise _NotFusedError("the module's forward() must be that of nn.Sequential")
        fused = FusedMLP(*module, direct=direct)
    except _NotFusedError as reason:
        warnings.warn(f"not fused: {reason}", stacklevel=2)
        return module
    for name, value in vars(module).items():
        if name not in (*_PASS, "_compiled_call_impl"):
            own = name in ("_modules", "_parameters", "_buffers")
            fused.__dict__[name] = value.copy() if own else value
    return fused


class FusedMLP(nn.Sequential):
    """A Sequential that runs all its layers in one pass; `fuse` makes it.

    Its own hooks are called, those of its layers are not. Where the pass does not fit (under
    autocast, after layers were moved, converted or exchanged, for inputs of another dtype or
    device) the layers run one by one.
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
        except _NotFusedError:  # the layers had been exchanged before the copy
            self._layers = None

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
            and not torch.is_autocast_enabled("cpu")
            and not state.on  # a diagnosis wants to see the layers run
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0
            and not torch._C._len_torch_dispatch_stack()
            and torch._C._get_tracing_state() is None  # torch.jit.trace
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
            below = None if below is None else _refuse(below, x, joint, gradient)
            flat = None if flat is None else _refuse(flat, x, joint, gradient)
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
        block = fused._handover.take()
        gradient = gradient.contiguous()
        delta = fused._network.backward_kept(
            ctx.number, x.numpy(), gradient.numpy(), ctx.needs_input_grad[1], block.array
        )
        assert delta is not None  # `_fits` has made sure of that
        return delta, block


class _Refusal(Function):
    """A gradient in a graph that leads back to its sources, but raises an error when followed."""

    @staticmethod
    def forward(_: Node, gradient: Tensor, *sources: Tensor) -> Tensor:
        return gradient.view_as(gradient)

    @staticmethod
    def backward(_: Node, *gradients: Tensor) -> None:
        raise RuntimeError(
            "a FusedMLP has no second derivatives: its gradients cannot be differentiated"
        )


# Function.apply first searches the arguments for wrappers that only torch.func makes, which takes
# time; the method that it then calls does the work.
_apply: Any = super(Function, _Pass).apply
_refuse: Any = _Refusal.apply


class _NotFusedError(Exception):
    """The reason why a module is left as it is."""


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
                raise _NotFusedError(f"layer {place} must have a bias")
            linear.append(layer)
            activations.append("identity")
        elif type(layer) is nn.Identity and linear:
            continue
        elif type(layer) in MODULES and linear and activations[-1] == "identity":
            row = MODULES[type(layer)]
            for argument, value in row.arguments.items():
                if getattr(layer, argument, value) != value:
                    raise _NotFusedError(f"{argument} of layer {place} must be {value}")
            activations[-1] = row.ours
        else:
            raise _NotFusedError(
                f"layer {place} must be a Linear or the activation of one, not {layer}"
            )
    if not linear:
        raise _NotFusedError("there must be a Linear layer")
    if len(set(activations[:-1])) > 1:
        kinds = ", ".join(sorted(set(activations[:-1])))
        raise _NotFusedError(f"the activations between the layers must be of one kind, not {kinds}")
    parameters = [one for layer in linear for one in (layer.weight, layer.bias)]
    if len(set(map(id, parameters))) < len(parameters):
        raise _NotFusedError("no two layers may share a parameter")
    found = {(one.dtype, one.device.type, type(one)) for one in parameters}
    dtype, device, kind = next(iter(found))
    if len(found) > 1 or dtype not in _DTYPES or device != "cpu" or kind is not nn.Parameter:
        raise _NotFusedError("all parameters must be float32, or all float64, on the CPU")
    if any(one.is_inference() for one in parameters):
        raise _NotFusedError("the parameters must not be made in inference mode")
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
    if sizes[:-1] != [layer.in_features for layer in linear]:
        raise _NotFusedError("each layer must take what the one before gives")
    between = activations[0] if len(linear) > 1 else "identity"
    return _Network(sizes, between, activations[-1], _DTYPES[dtype], linear)

"""nn.Sequential of Linear and activation layers, run by the passes of vegrad.MLP's core.

The parameters stay the modules' own; their memory becomes the core's, so both see every change.
"""

from __future__ import annotations

import warnings
from functools import partial
from operator import attrgetter
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import Function
from torch.autograd.function import once_differentiable

from vegrad import _core
from vegrad.torch.activations import MODULES
from vegrad.torch.probe import state

_DTYPES = {torch.float32: "float32", torch.float64: "float64"}


def fuse(module: nn.Sequential, *, direct: bool = False) -> nn.Sequential:
    """The same network, run in one fused pass forward and one backward.

    Takes Linear layers with biases, all of float32 or all of float64 on the CPU, with one kind of
    activation between them and any or none after the last.

    Args:
        module: the network.
        direct: the backward pass leaves the gradients in the parameters' `.grad` itself, without
            autograd, which takes as long to hand over small ones as the core to make them. They add
            up as always, but lie in the core's memory (clone what shall outlive the next backward
            pass), no hook of a parameter is called (DistributedDataParallel has such), and
            torch.autograd.grad does not know the parameters.

    Returns:
        A FusedMLP with the module's own layers (the same parameters and state_dict), or, with a
        warning that says why, the module itself.
    """
    try:
        return FusedMLP(*module, direct=direct)
    except _NotFusedError as reason:
        warnings.warn(f"not fused: {reason}", stacklevel=2)
        return module


class FusedMLP(nn.Sequential):
    """What `fuse` makes. Layers' own hooks are not called; its own are.

    Where its pass does not fit (under autocast, after the layers were moved or converted, for
    inputs of another dtype or device) the layers run one by one.
    """

    def __init__(self, *layers: nn.Module, direct: bool = False) -> None:
        sizes, activation, output, dtype, linear = _described(layers)
        super().__init__(*layers)
        self._network = _core.Network(sizes, activation, output, "given", None, False, dtype)
        self._sizes, self._dtype = sizes, linear[0].weight.dtype
        memory = self._network.parameters()
        self._own = [one for layer in linear for one in (layer.weight, layer.bias)]
        with torch.no_grad():
            for parameter, array in zip(self._own, memory.values(), strict=True):
                shared = torch.from_numpy(array)
                shared.copy_(parameter)
                parameter.data = shared
        self._places = [one.data_ptr() for one in self._own]
        gradients = [torch.from_numpy(one) for one in self._network.gradients().values()]
        self.direct, self._gradients = direct, gradients
        self._anchor = torch.zeros((), requires_grad=True)
        self._block, self._pieces, self._chosen = _block_of(gradients)
        self._spare: Tensor | None = None

    def __deepcopy__(self, memo: Any) -> nn.Sequential:
        import copy

        copied = FusedMLP(*copy.deepcopy(list(self), memo), direct=self.direct)
        copied.train(self.training)
        return copied

    def __reduce__(self) -> Any:
        return partial(fuse, direct=self.direct), (nn.Sequential(*self),)

    def _fits(self, x: Tensor) -> bool:
        return (
            x.ndim >= 2
            and x.dtype is self._dtype
            and x.device.type == "cpu"
            and x.shape[-1] == self._sizes[0]
            and x.numel() > 0
            and not torch.is_autocast_enabled("cpu")
            and not state.on  # a diagnosis looks at the layers
            and [one.data_ptr() for one in self._own] == self._places
        )

    def forward(self, x: Tensor) -> Tensor:
        """The output (…, O) for inputs (…, I)."""
        if type(x) is not Tensor or torch.compiler.is_compiling() or not self._fits(x):
            return super().forward(x)
        rows = x.reshape(-1, self._sizes[0]).contiguous()
        out: Tensor
        if torch.is_grad_enabled():
            if self.direct and any(one.requires_grad for one in self._own):
                out = _applied(_DirectPass, self, rows, self._anchor)
            else:
                out = _applied(_Pass, self, rows, *self._own)
        else:
            out = torch.from_numpy(self._network.forward(rows.numpy()))
        return out.reshape(*x.shape[:-1], self._sizes[-1])

    def _back(self, ctx: Any, gradient: Tensor) -> Tensor | None:
        """The core's backward pass; returns the gradient of the input, if it is wanted."""
        (x,) = ctx.saved_tensors
        if ctx.versions != list(map(_version, self._own)):
            raise RuntimeError(
                "one of the variables needed for gradient computation has been modified by an "
                "inplace operation: a parameter of a FusedMLP, after its forward pass"
            )
        wanted = ctx.needs_input_grad[1]
        delta = self._network.backward_kept(
            ctx.number, x.numpy(), gradient.contiguous().numpy(), wanted
        )
        assert delta is not None  # _fits has seen to it
        return torch.from_numpy(delta) @ self._own[0].detach() if wanted else None

    def _handed_out(self) -> list[Tensor]:
        """The gradients as tensors of their own: the next pass writes the core's memory again.

        The copy before is written once more if nobody has a gradient of it any longer: fresh memory
        takes as long to be had as a pass over it.
        """
        if self._spare is None or _holders(self._spare) != 1:
            self._spare = self._block.clone()
        else:
            self._spare.copy_(self._block)
        # One call; to split and reshape takes as long as a layer.
        pieces = torch._C._nn.unflatten_dense_tensors(self._spare.detach(), self._pieces)
        return [pieces[place] for place in self._chosen]


def _holders(tensor: Tensor) -> int:
    """How many tensors there are of its memory; 0 if that cannot be told."""
    if _use_count is None:
        return 0
    storage = tensor.untyped_storage()
    found: int = _use_count(storage._cdata) - 1  # that one holds it too
    return found


def _applied(function: Any, *arguments: Any) -> Any:
    """`function.apply`, which looks at each argument for what only torch.func makes."""
    if torch._C._are_functorch_transforms_active():
        return function.apply(*arguments)
    return super(Function, function).apply(*arguments)


_use_count = getattr(torch._C, "_storage_Use_Count", None)
_version = attrgetter("_version")


class _DirectPass(Function):
    @staticmethod
    def forward(ctx: Any, fused: FusedMLP, x: Tensor, anchor: Tensor) -> Tensor:
        return _Pass.forward(ctx, fused, x, *fused._own)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        fused = ctx.fused
        before = [one.grad for one in fused._own]
        if fresh := all(grad is None for grad in before):
            below = fused._back(ctx, gradient)
        else:  # which may lie where the core writes
            before = [None if grad is None else grad.clone() for grad in before]
            below = fused._back(ctx, gradient)
        for parameter, found, old in zip(fused._own, fused._gradients, before, strict=True):
            if parameter.requires_grad:
                parameter.grad = found if fresh or old is None else found.add_(old)
        return None, below, None


class _Pass(Function):
    @staticmethod
    def forward(ctx: Any, fused: FusedMLP, x: Tensor, *parameters: Tensor) -> Tensor:
        kept = fused._network.forward_kept(x.numpy())
        assert kept is not None  # _fits has seen to it
        ctx.fused, ctx.number = fused, kept[1]
        ctx.versions = list(map(_version, parameters))  # cheaper than to save a hundred tensors
        ctx.save_for_backward(x)
        return torch.from_numpy(kept[0])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Any:
        fused, wanted = ctx.fused, ctx.needs_input_grad
        below = fused._back(ctx, gradient)
        pieces = fused._handed_out()
        if all(wanted[2:]):
            return None, below, *pieces
        found = [one if needed else None for one, needed in zip(pieces, wanted[2:], strict=True)]
        return None, below, *found


class _NotFusedError(Exception):
    """Why a module is left as it is."""


def _described(layers: Any) -> tuple[list[int], str, str, str, list[nn.Linear]]:
    """Sizes, activation between layers and after the last, dtype, and the Linear layers."""
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
    sizes = [linear[0].in_features, *(layer.out_features for layer in linear)]
    if sizes[:-1] != [layer.in_features for layer in linear]:
        raise _NotFusedError("each layer must take what the one before gives")
    return (
        sizes,
        (activations[0] if len(linear) > 1 else "identity"),
        activations[-1],
        _DTYPES[dtype],
        linear,
    )


def _block_of(views: list[Tensor]) -> tuple[Tensor, list[Tensor], list[int]]:
    """All the memory that views cover; tensors shaped as its pieces; which of them are the views.

    The other pieces are the gaps between them.
    """
    size = views[0].element_size()
    starts = [(one.data_ptr() - views[0].data_ptr()) // size for one in views]
    ends = [start + one.numel() for start, one in zip(starts, views, strict=True)]
    flat = np.lib.stride_tricks.as_strided(views[0].numpy().reshape(-1), (ends[-1],), (size,))
    pieces: list[Tensor] = []
    chosen = []
    for view, end, after in zip(views, ends, [*starts[1:], ends[-1]], strict=True):
        chosen.append(len(pieces))
        pieces.append(view)
        if after > end:
            pieces.append(torch.empty(1, dtype=view.dtype).expand(after - end))
    return torch.from_numpy(flat), pieces, chosen

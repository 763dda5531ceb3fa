"""`fuse`: modules of PyTorch, run by the core's fused passes."""

from __future__ import annotations

import warnings
from typing import TypeVar

from torch import nn

from vegrad.torch.fused import recurrent, sequential
from vegrad.torch.fused.conditions import NotFusedError

Module = TypeVar("Module", bound=nn.Module)


def fuse(module: Module, *, direct: bool = False) -> Module:
    """Return the same network, run in fused passes forward and backward.

    An nn.Sequential takes one pass for all its layers, which must be Linear layers with biases, all
    of float32 or all of float64 on the CPU, with one kind of activation between them and any or
    none after the last. An nn.LSTM, nn.GRU or nn.RNN takes one pass for each layer and direction;
    its parameters must be all of float32 or all of float64 on the CPU, and there may be no
    projections (`proj_size`).

    Args:
        module: the network.
        direct: of an nn.Sequential, leave the parameters out of autograd's graph, where each is a
            node that takes as long to reach as a small layer takes to compute. `backward()` does
            the same, but no hook of a parameter is called (DistributedDataParallel has such hooks),
            and torch.autograd.grad does not know the parameters.

    Returns:
        A FusedMLP, FusedLSTM, FusedGRU or FusedRNN with the module's own layers and parameters (the
        same objects and state_dict), mode and hooks. Or, with a warning that says why, the module
        itself.

    Raises:
        TypeError: if `module` is not a torch.nn.Module.
        ValueError: if `direct` is True and the module is recurrent.
    """
    if not isinstance(module, nn.Module):
        kinds = "torch.nn.Sequential, LSTM, GRU or RNN"
        raise TypeError(f"module must be a {kinds}, not {type(module).__name__}")
    forward = getattr(module.forward, "__func__", None)
    if direct and forward in recurrent.FORWARDS:
        raise ValueError(f"direct=True is for an nn.Sequential, not for {type(module).__name__}")
    try:
        fused: nn.Module
        if isinstance(module, nn.Sequential) and forward in sequential.FORWARDS:
            fused = sequential.fused(module, direct)
        elif isinstance(module, nn.RNNBase) and forward in recurrent.FORWARDS:
            fused = recurrent.fused(module)
        else:
            raise NotFusedError(
                "the module's forward() must be that of nn.Sequential, LSTM, GRU or RNN"
            )
    except NotFusedError as reason:
        warnings.warn(f"not fused: {reason}", stacklevel=2)
        return module
    return fused

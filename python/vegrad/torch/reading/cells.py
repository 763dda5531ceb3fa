"""Hand recurrent modules over to be looked at step by step: their weights, and what goes in.

PyTorch runs an LSTM, a GRU or an RNN as one function, so that nothing between its steps can be
seen from outside. So each layer and direction is run again by `vegrad.flow.recurrence`.

Guaranteed: the model and its random generators stay as they were (weights are copied in float64 to
the CPU). Left out: dropout between layers, states that are passed in at the first call, and modules
other than those of `torch.nn`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.lags import Lags
from vegrad.flow.recurrence import (
    LEAST_STEPS,
    MOST_ROWS,
    MOST_STEPS,
    PARTS,
    Recurrence,
    Weights,
)
from vegrad.torch.models import called

Recurrent: TypeAlias = nn.RNNBase | nn.RNNCellBase


@dataclass
class Call:
    """One call of a recurrent module."""

    given: object
    """Its input."""
    goes_on: bool
    """True if a state was passed too."""
    entered: FloatArray | None = None
    """Size of the gradient that came to the output of each step (steps,), where one did."""


Calls: TypeAlias = dict[str, list[Call]]
"""The calls of each module, by its name."""


@contextmanager
def heard(model: Module) -> Iterator[Calls]:
    """Record what a model's recurrent modules are given while the context is open."""
    calls: Calls = {}

    def hear(
        name: str,
        module: Module,
        args: tuple[object, ...],
        kwargs: dict[str, object],
        output: object,
    ) -> None:
        given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        call = Call(given.get("input"), given.get("hx") is not None)
        calls.setdefault(name, []).append(call)
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(first, Tensor) and first.requires_grad:
            first.register_hook(partial(_came, module, call))

    hooks = [
        module.register_forward_hook(partial(hear, name), with_kwargs=True)
        for name, module in model.named_modules()
        if _mode(module)
    ]
    try:
        yield calls
    finally:
        for one in hooks:
            one.remove()


def _came(module: Module, call: Call, gradient: Tensor | None) -> None:
    """Note the sizes of what has come to the outputs of each step."""
    assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
    steps = _laid_out(module, gradient)
    if steps is not None:
        call.entered = _plain(steps.detach().double().flatten(1).norm(dim=1))


def _mode(module: Module) -> str:
    """Return the name of a recurrent module's formulas; "" of other modules."""
    if isinstance(module, nn.RNNBase):
        return str(module.mode).removeprefix("RNN_").lower()
    if isinstance(module, nn.RNNCell):
        return module.nonlinearity
    kinds = {nn.LSTMCell: "lstm", nn.GRUCell: "gru"}
    return next((mode for kind, mode in kinds.items() if isinstance(module, kind)), "")


def recurrences(model: Module, calls: Calls, seed: int = 0) -> list[Recurrence]:
    """Measure all layers and directions of the modules that were called."""
    found: list[Recurrence] = []
    for name, several in calls.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        given = _steps(module, several)
        if given is None or len(given[0]) < LEAST_STEPS or not given[0].size:
            continue
        x, length = given
        for suffixes in _suffixes(module):
            outputs: list[FloatArray] = []
            for suffix in suffixes:
                one = _recurrence(module, name, suffix, x, length)
                if one is not None:
                    output = one.look(seed)
                    outputs.append(output[::-1] if suffix.endswith("_reverse") else output)
                    found.append(one)
            if len(outputs) < len(suffixes):
                break  # A layer with inf or nan cannot be measured, nor can those above it.
            x = np.concatenate(outputs, axis=-1)
    return found


def lags(model: Module, calls: Calls, target: object) -> Lags | None:
    """Return the inputs of the only recurrent module beside targets of one a sequence.

    Asked after a backward pass, which tells at which steps a gradient enters.
    """
    if len(calls) != 1 or not isinstance(target, Tensor) or target.is_complex():
        return None
    ((name, several),) = calls.items()
    module = model.get_submodule(name)
    assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
    x = _joined(module, several)
    if x is None or any(isinstance(one.given, nn.utils.rnn.PackedSequence) for one in several):
        return None
    entering = np.zeros(len(x))  # where the loss is one of the state after the last step
    entering[-1] = 1.0
    if any(one.entered is not None for one in several):
        sizes = [np.zeros(1) if one.entered is None else one.entered for one in several]
        entering = np.concatenate(sizes)
    if len(entering) != len(x):
        return None
    return Lags.of(_plain(x.transpose(0, 1)), target.detach().cpu().numpy(), entering)


def lags_of_rows(model: Module, x: object, target: object) -> Lags | None:
    """Run a model forward on some rows, for what these tell of the steps that targets depend on."""
    with heard(model) as calls, torch.no_grad():
        called(model, x)
    return lags(model, calls, target)


def _suffixes(module: Recurrent) -> list[list[str]]:
    """Return the ends of the parameters' names, layer by layer, direction by direction."""
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ends = ["", "_reverse"] if module.bidirectional else [""]
    return [[f"_l{layer}{end}" for end in ends] for layer in range(module.num_layers)]


def _steps(module: Recurrent, several: Sequence[Call]) -> tuple[FloatArray, int] | None:
    """Return some rows of a module's last inputs (steps, rows, inputs), and how many steps."""
    x = _joined(module, several)
    if x is None:
        return None
    rows = np.linspace(0, x.shape[1] - 1, min(MOST_ROWS, x.shape[1])).astype(np.intp)
    return _plain(x[-MOST_STEPS:, torch.from_numpy(rows).to(x.device)]), len(x)


def _joined(module: Recurrent, several: Sequence[Call]) -> Tensor | None:
    """Return a module's inputs (steps, rows, inputs); calls that go on are joined."""
    parts: list[Tensor] = []
    for call in several:
        part = _laid_out(module, call.given)
        if part is None or (parts and (not call.goes_on or part.shape[1:] != parts[0].shape[1:])):
            break
        parts.append(part)
    return torch.cat(parts) if parts else None


def _laid_out(module: Recurrent, given: object) -> Tensor | None:
    """Return an input as (steps, rows, inputs), of a packed batch the longer half of the rows."""
    if isinstance(given, nn.utils.rnn.PackedSequence):
        padded, lengths = nn.utils.rnn.pad_packed_sequence(given)
        steps = int(lengths.median())
        return padded[:steps, lengths.to(padded.device) >= steps]
    if not isinstance(given, Tensor):
        return None
    if not isinstance(module, nn.RNNBase):
        return given.reshape(1, -1, given.shape[-1])
    x = given if given.ndim == 3 else given.unsqueeze(0 if module.batch_first else 1)
    return x.transpose(0, 1) if module.batch_first else x


def _plain(tensor: Tensor) -> FloatArray:
    return np.array(tensor.detach().double().cpu().numpy())


def _recurrence(
    module: Recurrent, name: str, suffix: str, x: FloatArray, length: int
) -> Recurrence | None:
    """Return a layer and direction with its weights; None if something is not finite."""
    names, own = dict[str, str](), Weights()
    for part, start in PARTS.items():
        tensor = getattr(module, start + suffix, None)
        if tensor is not None:
            names[part] = f"{name}.{start}{suffix}" if name else start + suffix
            own[part] = _plain(tensor)
    if not all(np.isfinite(one).all() for one in (*own.values(), x)):
        return None
    x = x[::-1] if suffix.endswith("_reverse") else x
    return Recurrence(name, _mode(module), names, own, x, length)

"""Recurrent modules: how far back through time the gradient goes, step by step.

A gradient of the last output is carried back through each layer and direction. Beside it go weights
drawn anew, as PyTorch draws them, on the same inputs: what an LSTM forgets, fresh ones forget too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from math import inf, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.edits import Edit, Scale, Zero
from vegrad.flow.reading import Gate
from vegrad.torch.models import rms

DRAWS = 4
WIDE, FEWER = 256, 2  # units from which chance matters less, and time more
MOST_ROWS, MOST_STEPS = 8, 64
LEAST_STEPS = 3
IN_TIME = 2 * (1 + DRAWS) * MOST_ROWS  # rows that a look costs: in float64, step by step

Weights = dict[str, Tensor]  # ih, hh, b_ih, b_hh, hr
PARTS = {"ih": "weight_ih", "hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh",
         "hr": "weight_hr"}  # fmt: skip


def _lstm(z: Tensor, h: Tensor, state: list[Tensor], p: Weights) -> list[Tensor]:
    i, f, g, o = (z + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    out = o.sigmoid() * c.tanh()
    return [out @ p["hr"].mT if "hr" in p else out, c]


def _gru(z: Tensor, h: Tensor, state: list[Tensor], p: Weights) -> list[Tensor]:
    (r, u, n), (hr, hu, hn) = z.chunk(3, -1), h.chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return [torch.lerp(new, state[0], (u + hu).sigmoid())]


def _tanh(z: Tensor, h: Tensor, state: list[Tensor], p: Weights) -> list[Tensor]:
    return [(z + h).tanh()]


def _relu(z: Tensor, h: Tensor, state: list[Tensor], p: Weights) -> list[Tensor]:
    return [(z + h).relu()]


# From the input's part of the pre-activations, the last output's, and the state (h, then an LSTM's
# c) to the next state.
CELLS: dict[str, Callable[[Tensor, Tensor, list[Tensor], Weights], list[Tensor]]] = {
    "LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu,
}  # fmt: skip
GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}
TANH, SIGMOID = 2.178, 4.357  # beyond, a derivative is under 5 % of its largest
FLAT = {"LSTM": (SIGMOID, SIGMOID, TANH, SIGMOID), "GRU": (SIGMOID, SIGMOID, TANH),
        "RNN_TANH": (TANH,), "RNN_RELU": (inf,)}  # fmt: skip


@dataclass
class Recurrence:
    """One layer and direction of a recurrent module, and what goes into it."""

    module: str
    mode: str
    names: dict[str, str]
    """Of the parameters, by part."""
    own: Weights
    units: int
    x: Tensor
    """(steps, rows, inputs), in the direction's order."""
    widths: list[int]
    """Of the state: of h and, of an LSTM, c."""
    sizes: FloatArray = field(default_factory=lambda: np.zeros((0, 1)))
    """log2 of the gradient's size, (steps back, sets): its own weights, then those drawn anew."""
    flat: FloatArray = field(default_factory=lambda: np.zeros(1))
    """Share of its gates' elements, over all steps, that are saturated; of the same sets."""

    @property
    def bound(self) -> float:
        """Of weights and biases drawn anew, which are uniform within ± it."""
        return 1.0 / sqrt(self.units)

    @property
    def label(self) -> str:
        """How it is called in words: the module, its layer and direction."""
        _, _, suffix = self.names["hh"].rpartition("weight_hh")
        layer = f" (layer {suffix[2:].replace('_', ', ')})" if suffix else ""
        return f"{self.module or self.mode}{layer}"

    @property
    def input_rms(self) -> float:
        """Root mean square of what goes in."""
        return rms(self.x)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """The sizes of its parameters, gate by gate."""
        found = []
        for part, tensor in self.own.items():
            of = ("",) if part == "hr" else GATES.get(self.mode, ("",))
            blocks = tensor.chunk(len(of))
            for n, (gate, block) in enumerate(zip(of, blocks, strict=True)):
                rows = n * len(blocks[0]), (n + 1) * len(blocks[0])
                found.append(Gate(self.names[part], part, gate, rows, rms(block)))
        return tuple(found)

    def if_changed(self, trials: Sequence[Sequence[Edit]]) -> tuple[FloatArray, FloatArray]:
        """Return sizes (steps back, trials) and shares that are flat, had these been done."""
        sizes, flat, _ = self.through([self._changed(edits) for edits in trials])
        return sizes, flat

    def _changed(self, edits: Sequence[Edit]) -> Weights:
        parts = {name: part for part, name in self.names.items()}
        weights = dict(self.own)
        for edit in edits:
            if not isinstance(edit, Scale | Zero):
                raise TypeError(f"a cell can be scaled or set to 0, not {type(edit).__name__}")
            for name in edit.parameters:
                weights[parts[name]] = weights[parts[name]].clone()
                factor = edit.factor if isinstance(edit, Scale) else 0.0
                weights[parts[name]][slice(*edit.rows or (None,))] *= factor
        return weights

    def look(self, seed: int) -> Tensor:
        """Fills in `sizes`; the outputs (steps, rows, outputs) with its own weights."""
        random = torch.Generator().manual_seed(seed + 0x7EC0)
        drawn = [
            {part: torch.empty_like(one).uniform_(-self.bound, self.bound, generator=random)
             for part, one in self.own.items()}
            for _ in range(DRAWS if self.units < WIDE else FEWER)
        ]  # fmt: skip
        self.sizes, self.flat, outputs = self.through([self.own, *drawn])
        return outputs

    def through(self, several: Sequence[Weights]) -> tuple[FloatArray, FloatArray, Tensor]:
        """Sizes (steps back, sets) with these weights, shares that are flat, the first's outputs.

        A size is the norm of the gradient at a step's pre-activations, by which the parameters
        learn from it, over the norm of that at the last output.
        """
        p = {part: torch.stack([one[part] for one in several]) for part in self.own}
        cell, zero = CELLS[self.mode], torch.zeros((), dtype=self.x.dtype)
        b_ih, b_hh = (p[b].unsqueeze(1) if b in p else zero for b in ("b_ih", "b_hh"))
        count, rows, width = self.x.shape
        # Of all steps at once: wide weights are read once, and not at every step.
        parts = (
            (self.x.reshape(-1, width) @ p["ih"].mT + b_ih).unflatten(1, (count, rows)).unbind(1)
        )
        now = [self.x.new_zeros(len(several), rows, width) for width in self.widths]
        steps, flat = [], torch.zeros(len(several), dtype=self.x.dtype)
        limits = torch.tensor(FLAT[self.mode]).repeat_interleave(self.units)
        with torch.enable_grad():
            for part in parts:
                z = part.detach().requires_grad_()
                before = [one.detach().requires_grad_() for one in now]
                h = before[0] @ p["hh"].mT + b_hh
                flat += ((z + h).detach().abs() > limits).double().mean((1, 2))
                now = cell(z, h, before, p)
                steps.append((z, before, now))
        random = torch.Generator().manual_seed(0)
        last = torch.randn(now[0].shape[1:], generator=random, dtype=self.x.dtype)
        given = [(last / last.norm()).expand_as(now[0]), *map(torch.zeros_like, now[1:])]
        total, found = torch.zeros(len(several), dtype=self.x.dtype), []
        for z, before, after in reversed(steps):
            at, *given = torch.autograd.grad(after, [z, *before], given)
            found.append(_norm([at]).log2() + total)
            # A power of two is taken out, so that sizes are right beyond the dtype.
            by = _norm(given).log2().round().nan_to_num(0.0, 0.0, 0.0)
            given = [one * torch.exp2(-by)[:, None, None] for one in given]
            total = total + by
        outputs = torch.stack([after[0][0].detach() for *_, after in steps])
        return torch.stack(found).numpy(), (flat / len(steps)).numpy(), outputs


def _norm(several: Sequence[Tensor]) -> Tensor:
    """Of all, for each set of weights."""
    return torch.stack([one.flatten(1).norm(dim=1) for one in several]).norm(dim=0)


# What goes into them ---------------------------------------------------------------------------


@contextmanager
def heard(model: Module) -> Iterator[dict[str, list[Any]]]:
    """What recurrent modules were given, by name: of each call the input, and whether a state."""
    calls: dict[str, list[Any]] = {}
    hooks = []
    for name, module in model.named_modules():
        if isinstance(module, nn.RNNBase | nn.RNNCellBase) and _mode(module) in CELLS:

            def hook(one: Module, args: Any, kwargs: Any, name: str = name) -> None:
                given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
                call = given.get("input"), given.get("hx") is not None
                calls.setdefault(name, []).append(call)

            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield calls
    finally:
        for one in hooks:
            one.remove()


def _mode(module: Any) -> str:
    if isinstance(module, nn.RNNBase):
        return str(module.mode)
    kinds = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
    if isinstance(module, nn.RNNCell):
        return f"RNN_{module.nonlinearity.upper()}"
    return next((mode for kind, mode in kinds.items() if isinstance(module, kind)), "")


def recurrences(model: Module, calls: dict[str, list[Any]], seed: int = 0) -> list[Recurrence]:
    """All layers and directions of the modules that were called, looked at."""
    found: list[Recurrence] = []
    modules: dict[str, Any] = dict(model.named_modules())
    for name, several in calls.items():
        module = modules[name]
        x = _steps(module, several)
        if x is None or len(x) < LEAST_STEPS or not x.numel():
            continue
        for suffixes in _suffixes(module):
            outputs: list[Tensor] = []
            for suffix in suffixes:
                one = _recurrence(module, name, suffix, x)
                if one is not None:
                    came = one.look(seed)
                    outputs.append(came.flip(0) if suffix.endswith("_reverse") else came)
                    found.append(one)
            if len(outputs) < len(suffixes):
                break  # of what is not finite nothing can be said, nor of what follows
            x = torch.cat(outputs, -1)
    return found


def _suffixes(module: Any) -> list[list[str]]:
    """Of parameters' names, layer by layer, direction by direction."""
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ends = ["", "_reverse"] if module.bidirectional else [""]
    return [[f"_l{layer}{end}" for end in ends] for layer in range(module.num_layers)]


def _steps(module: Any, several: list[Any]) -> Tensor | None:
    """Some rows of the last steps (steps, rows, inputs), of all calls that go on from a state."""
    parts: list[Tensor] = []
    for given, goes_on in several:
        part = _laid_out(module, given)
        if part is None or (parts and (not goes_on or part.shape[1:] != parts[0].shape[1:])):
            break
        parts.append(part)
    if not parts:
        return None
    x = torch.cat(parts)
    rows = np.linspace(0, x.shape[1] - 1, min(MOST_ROWS, x.shape[1])).astype(np.intp)
    return _plain(x[-MOST_STEPS:, torch.from_numpy(rows).to(x.device)])


def _laid_out(module: Any, given: Any) -> Tensor | None:
    """(steps, rows, inputs); of a packed batch as many steps as half of its rows have."""
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


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _recurrence(module: Any, name: str, suffix: str, x: Tensor) -> Recurrence | None:
    """None where something is not finite."""
    names = {part: of + suffix for part, of in PARTS.items()
             if getattr(module, of + suffix, None) is not None}  # fmt: skip
    own = {part: _plain(getattr(module, of)) for part, of in names.items()}
    if not all(bool(torch.isfinite(one).all()) for one in (*own.values(), x)):
        return None
    outputs, mode = getattr(module, "proj_size", 0) or module.hidden_size, _mode(module)
    widths = [outputs, module.hidden_size][: 2 if mode == "LSTM" else 1]
    path = f"{name}." if name else ""
    return Recurrence(name, mode, {part: path + of for part, of in names.items()}, own,
                      module.hidden_size, x.flip(0) if suffix.endswith("_reverse") else x,
                      widths)  # fmt: skip

"""Measure how far back through time the gradient goes in recurrent modules.

PyTorch runs an LSTM, a GRU or an RNN as one function, so that nothing between its steps can be
seen from outside. So each layer and direction is run again here, step by step, with the formulas of
PyTorch's documentation, and a gradient of the last output is carried back through the steps. Its
size at each step tells how much the parameters learn from what lies that far back.

An LSTM forgets by design, so a size alone is neither healthy nor ill. It is compared with the sizes
that fresh weights give, drawn as PyTorch draws them, on the same inputs: `Recurrence.sizes` has
both beside each other. The same pass answers what changed weights would do (`if_changed`), which a
cure asks.

Guaranteed: the model and its random generators stay as they were (weights are copied in float64 to
the CPU), and sizes are right far beyond what float64 can hold. To keep the cost small, only a few
rows and the last steps are run. Left out: dropout between layers, states that are passed in at the
first call, and modules other than those of `torch.nn`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import inf, sqrt
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.edits import Edit, Scale, Zero
from vegrad.flow.reading import Gate
from vegrad.torch.models import rms

DRAWS = 4
# From this number of units, fresh weights differ less from each other, and take longer to run.
WIDE, FEWER = 256, 2
MOST_ROWS, MOST_STEPS = 8, 64
LEAST_STEPS = 3
IN_TIME = 2 * (1 + DRAWS) * MOST_ROWS  # The cost of a look in rows: in float64, step by step.

Weights: TypeAlias = dict[str, Tensor]  # by part: ih, hh, b_ih, b_hh, hr
Recurrent: TypeAlias = nn.RNNBase | nn.RNNCellBase
Calls: TypeAlias = dict[str, list[tuple[object, bool]]]
"""The input of each call of a module, and whether a state was passed too, by the module's name."""
PARTS = {
    "ih": "weight_ih",
    "hh": "weight_hh",
    "b_ih": "bias_ih",
    "b_hh": "bias_hh",
    "hr": "weight_hr",
}


# The formulas of the cells ----------------------------------------------------------------------


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


Cell: TypeAlias = Callable[[Tensor, Tensor, list[Tensor], Weights], list[Tensor]]
CELLS: dict[str, Cell] = {"LSTM": _lstm, "GRU": _gru, "RNN_TANH": _tanh, "RNN_RELU": _relu}
"""Functions that take the parts of the pre-activations that come from the input and from the last
output, and the state (h, and of an LSTM c), to the next state."""
GATES = {"LSTM": ("input", "forget", "cell", "output"), "GRU": ("reset", "update", "new")}
TANH, SIGMOID = 2.178, 4.357  # where the derivative is 5 % of its largest
FLAT = {
    "LSTM": (SIGMOID, SIGMOID, TANH, SIGMOID),
    "GRU": (SIGMOID, SIGMOID, TANH),
    "RNN_TANH": (TANH,),
    "RNN_RELU": (inf,),
}
"""Sizes of pre-activations, gate by gate, beyond which an element counts as saturated."""


@dataclass
class Recurrence:
    """One layer and direction of a recurrent module, and what goes into it."""

    module: str
    mode: str
    names: dict[str, str]
    """Names of the parameters by part."""
    own: Weights
    units: int
    x: Tensor
    """Inputs (steps, rows, inputs), in the order in which the direction reads them."""
    widths: list[int]
    """Widths of the state: of h and, in an LSTM, of c."""
    sizes: FloatArray = field(default_factory=lambda: np.zeros((0, 1)))
    """log2 of the gradient's size (steps back, sets): with own weights, then with fresh ones."""
    flat: FloatArray = field(default_factory=lambda: np.zeros(1))
    """Share of the gates' elements, over all steps, that are saturated (sets,)."""

    @property
    def bound(self) -> float:
        """Bound of fresh weights and biases, which PyTorch draws uniformly within ± it."""
        return 1.0 / sqrt(self.units)

    @property
    def label(self) -> str:
        """Name for messages: the module, its layer and direction."""
        _, _, suffix = self.names["hh"].rpartition("weight_hh")
        layer = f" (layer {suffix[2:].replace('_', ', ')})" if suffix else ""
        return f"{self.module or self.mode}{layer}"

    @property
    def input_rms(self) -> float:
        """Root mean square of the inputs."""
        return rms(self.x)

    @cached_property
    def gates(self) -> tuple[Gate, ...]:
        """Sizes of the parameters, gate by gate."""
        found = []
        for part, tensor in self.own.items():
            gates = ("",) if part == "hr" else GATES.get(self.mode, ("",))
            blocks = tensor.chunk(len(gates))
            for n, (gate, block) in enumerate(zip(gates, blocks, strict=True)):
                rows = n * len(blocks[0]), (n + 1) * len(blocks[0])
                found.append(Gate(self.names[part], part, gate, rows, rms(block)))
        return tuple(found)

    def if_changed(self, trials: Sequence[Sequence[Edit]]) -> tuple[FloatArray, FloatArray]:
        """Return the sizes (steps back, trials) and saturated shares that edited weights give."""
        return self.through([self._changed(edits) for edits in trials])[:2]

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
        """Fill in `sizes` and `flat`; return the outputs (steps, rows, outputs)."""
        random = torch.Generator().manual_seed(seed + 0x7EC0)
        several = [self.own]
        for _ in range(DRAWS if self.units < WIDE else FEWER):
            fresh = {part: torch.empty_like(one) for part, one in self.own.items()}
            for one in fresh.values():
                one.uniform_(-self.bound, self.bound, generator=random)
            several.append(fresh)
        self.sizes, self.flat, outputs = self.through(several)
        return outputs

    def through(self, several: Sequence[Weights]) -> tuple[FloatArray, FloatArray, Tensor]:
        """Run all steps with several sets of weights, and carry a gradient back through them.

        A size is the norm of the gradient at a step's pre-activations, by which the parameters
        learn from that step, over the norm of the gradient at the last output.

        Returns:
            log2 of the sizes (steps back, sets), the saturated shares (sets,), and the outputs
            (steps, rows, outputs) with the first set.
        """
        weights = {part: torch.stack([one[part] for one in several]) for part in self.own}
        steps, flat = self._forward(weights)
        outputs = torch.stack([step.after[0][0].detach() for step in steps])
        return _sizes_back(steps).numpy(), (flat / len(steps)).numpy(), outputs

    def _forward(self, weights: Weights) -> tuple[list[_Step], Tensor]:
        """Run all steps; return them, and the saturated shares of all steps together (sets,)."""
        cell, zero = CELLS[self.mode], torch.zeros((), dtype=self.x.dtype)
        b_ih, b_hh = (weights[b].unsqueeze(1) if b in weights else zero for b in ("b_ih", "b_hh"))
        count, rows, width = self.x.shape
        sets = len(weights["hh"])
        # The inputs' part of all steps is computed at once: wide weights are then read only once.
        parts = self.x.reshape(-1, width) @ weights["ih"].mT + b_ih
        state = [self.x.new_zeros(sets, rows, width) for width in self.widths]
        steps, flat = list[_Step](), torch.zeros(sets, dtype=self.x.dtype)
        limits = torch.tensor(FLAT[self.mode]).repeat_interleave(self.units)
        with torch.enable_grad():
            for part in parts.unflatten(1, (count, rows)).unbind(1):
                z = part.detach().requires_grad_()
                before = [one.detach().requires_grad_() for one in state]
                h = before[0] @ weights["hh"].mT + b_hh
                flat += ((z + h).detach().abs() > limits).double().mean((1, 2))
                state = cell(z, h, before, weights)
                steps.append(_Step(z, before, state))
        return steps, flat


class _Step(NamedTuple):
    """One step of a recurrence, of several sets of weights at once."""

    z: Tensor
    """The inputs' part of the pre-activations (sets, rows, units of all gates)."""
    before: list[Tensor]
    after: list[Tensor]


def _sizes_back(steps: Sequence[_Step]) -> Tensor:
    """Carry a random gradient of norm 1 back; return log2 of its norm at each z (steps, sets)."""
    last = steps[-1].after
    sets, *shape = last[0].shape
    random = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=random, dtype=last[0].dtype)
    given = [(start / start.norm()).expand_as(last[0]), *map(torch.zeros_like, last[1:])]
    total, found = torch.zeros(sets, dtype=start.dtype), []
    for z, before, after in reversed(steps):
        at, *given = torch.autograd.grad(after, [z, *before], given)
        found.append(_norm([at]).log2() + total)
        # A power of two is taken out, so that sizes are right beyond the dtype.
        by = _norm(given).log2().round().nan_to_num(0.0, 0.0, 0.0)
        given = [one * torch.exp2(-by)[:, None, None] for one in given]
        total = total + by
    return torch.stack(found)


def _norm(several: Sequence[Tensor]) -> Tensor:
    """Return the norm of several tensors together, for each set of weights."""
    return torch.stack([one.flatten(1).norm(dim=1) for one in several]).norm(dim=0)


# What goes into them ---------------------------------------------------------------------------


@contextmanager
def heard(model: Module) -> Iterator[Calls]:
    """Record what a model's recurrent modules are given while the context is open."""
    calls: Calls = {}

    def hear(
        name: str, module: Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> None:
        given = dict(zip(("input", "hx"), args, strict=False)) | kwargs
        calls.setdefault(name, []).append((given.get("input"), given.get("hx") is not None))

    hooks = [
        module.register_forward_pre_hook(partial(hear, name), with_kwargs=True)
        for name, module in model.named_modules()
        if _mode(module) in CELLS
    ]
    try:
        yield calls
    finally:
        for one in hooks:
            one.remove()


def _mode(module: Module) -> str:
    """Return the name of a recurrent module's formulas; "" of other modules."""
    if isinstance(module, nn.RNNBase):
        return str(module.mode)
    if isinstance(module, nn.RNNCell):
        return f"RNN_{module.nonlinearity.upper()}"
    kinds = {nn.LSTMCell: "LSTM", nn.GRUCell: "GRU"}
    return next((mode for kind, mode in kinds.items() if isinstance(module, kind)), "")


def recurrences(model: Module, calls: Calls, seed: int = 0) -> list[Recurrence]:
    """Measure all layers and directions of the modules that were called."""
    found: list[Recurrence] = []
    for name, several in calls.items():
        module = model.get_submodule(name)
        assert isinstance(module, nn.RNNBase | nn.RNNCellBase)
        x = _steps(module, several)
        if x is None or len(x) < LEAST_STEPS or not x.numel():
            continue
        for suffixes in _suffixes(module):
            outputs: list[Tensor] = []
            for suffix in suffixes:
                one = _recurrence(module, name, suffix, x)
                if one is not None:
                    output = one.look(seed)
                    outputs.append(output.flip(0) if suffix.endswith("_reverse") else output)
                    found.append(one)
            if len(outputs) < len(suffixes):
                break  # A layer with inf or nan cannot be measured, nor can those above it.
            x = torch.cat(outputs, -1)
    return found


def _suffixes(module: Recurrent) -> list[list[str]]:
    """Return the ends of the parameters' names, layer by layer, direction by direction."""
    if not isinstance(module, nn.RNNBase):
        return [[""]]
    ends = ["", "_reverse"] if module.bidirectional else [""]
    return [[f"_l{layer}{end}" for end in ends] for layer in range(module.num_layers)]


def _steps(module: Recurrent, several: Sequence[tuple[object, bool]]) -> Tensor | None:
    """Return some rows of the last steps (steps, rows, inputs) of a module's inputs.

    Calls that go on from the state of the call before are joined.
    """
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


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().double().cpu()


def _recurrence(module: Recurrent, name: str, suffix: str, x: Tensor) -> Recurrence | None:
    """Return a layer and direction with its weights; None if something is not finite."""
    names, own = dict[str, str](), Weights()
    for part, start in PARTS.items():
        tensor = getattr(module, start + suffix, None)
        if tensor is not None:
            names[part] = f"{name}.{start}{suffix}" if name else start + suffix
            own[part] = _plain(tensor)
    if not all(bool(torch.isfinite(one).all()) for one in (*own.values(), x)):
        return None
    mode, units = _mode(module), module.hidden_size
    outputs = getattr(module, "proj_size", 0) or units
    return Recurrence(
        name,
        mode,
        names,
        own,
        units,
        x.flip(0) if suffix.endswith("_reverse") else x,
        [outputs, units] if mode == "LSTM" else [outputs],
    )

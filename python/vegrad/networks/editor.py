"""Edits of own networks, as the code that does them: what a patch shows is what was run."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import inf, isfinite, sqrt
from typing import Any, cast

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.clipping import Rule
from vegrad.flow.edits import (
    ARCHITECTURE,
    AddSkips,
    Edit,
    Initialize,
    Lsuv,
    Normalize,
    Redraw,
    Scale,
    SetActivation,
    Shift,
    Zero,
)
from vegrad.flow.subject import Refusal
from vegrad.networks.mlp import MLP
from vegrad.optim import Optimizer
from vegrad.treatment.script import LEAST, Editor, Script

TOLERANCE = 0.05  # of LSUV
INFINITE = 'float("inf")'
WEIGHTS = {"critical": "weights at the critical point", "orthogonal": "orthogonal weights"}


@dataclass(frozen=True)
class Times:
    """A schedule of the learning rate, times a factor."""

    schedule: Callable[[int], float]
    factor: float

    def __call__(self, step: int) -> float:
        """Return the rate of a step."""
        return self.factor * self.schedule(step)


def clone(network: Any) -> Any:
    """Return a copy, to the bit."""
    twin = type(network)(**(network.config | {"seed": network.config["seed"] or 0}))
    twin.config["seed"] = network.config["seed"]
    for name, array in network.parameters.items():
        twin.parameters[name][...] = array
    twin.preparation = network.preparation
    return twin


class NetworkEditor(Editor):
    """Edits one network, in place as long as its shape stays.

    Args:
        network: what is edited.
        x: all inputs (N, I), if there are some.
        rows: which of them may be run.
        seed: of new weights, where the network has no seed of its own, and of the draw of `rows`.
    """

    rebuilding = (*ARCHITECTURE, Initialize)

    def __init__(self, network: MLP, x: Array | None, rows: Array | None, seed: int) -> None:
        super().__init__(Script(np=np, vegrad=sys.modules["vegrad"], network=network, x=x))
        self.network, self.seed = network, seed
        self._x = None if rows is None else x
        self._rows = np.arange(0) if rows is None else rows

    @property
    def known(self) -> Collection[str]:
        """The names of the network's parameters."""
        return self.network.parameters.keys()

    def digest(self, name: str) -> bytes:
        """Return a digest of a parameter's values."""
        return blake2b(self.network.parameters[name].data).digest()

    def _run(self, *lines: str) -> None:
        with np.errstate(all="ignore"):
            self.script.run(*lines)

    # Values of parameters

    def do(self, edit: Edit) -> str | Refusal:
        """Do a single edit of values; return the words for it, "" if its own say it all."""
        match edit:
            case Scale(names, factor, rows):
                self._each(names, f"*= {factor!r}", rows)
            case Zero(names, rows):
                self._each(names, "= 0.0", rows)
            case Shift(names, amount, rows):
                self._each(names, f"+= {amount!r}", rows)
            case Redraw(names):
                self._run(f"fresh = {written(self._with_seed())}")
                self._each(names, "= fresh.parameters[{name}]")
            case Lsuv(orthogonal):
                return self._lsuv(orthogonal=orthogonal)
            case _:
                return Refusal(f"a network cannot be edited like this: {type(edit).__name__}")
        return ""

    def _each(self, names: Sequence[str], does: str, rows: tuple[int, int] | None = None) -> None:
        part = "..." if rows is None else f"{rows[0]}:{rows[1]}"
        if len(names) == 1:
            name = f'"{names[0]}"'
            self._run(f"network.parameters[{name}][{part}] {does.format(name=name)}")
        else:
            self._run(
                f"for name in {_listed(names)}:",
                f"    network.parameters[name][{part}] {does.format(name='name')}",
            )

    def _lsuv(self, *, orthogonal: bool) -> str | Refusal:
        normalized = self.network.config["norm"] is not None
        if orthogonal and normalized:  # the normalization undoes any scaling
            return self.rebuild((Initialize("orthogonal"),))
        if normalized:
            return Refusal("the normalization undoes any scaling of the weights")
        if self._x is None:
            return Refusal("there are no data to scale the weights on")
        if orthogonal:
            self._made(self._with_seed() | _drawn("lsuv"))
        self.passed += len(self._rows) / 3
        rows = ""
        if len(self._rows) < len(self._x):
            draw = f"np.random.default_rng({self.seed}).permutation(len(x))"
            self._run(f"rows = {draw}[:{len(self._rows)}]")
            rows = "[rows]"
        try:
            self._run(f"factors = vegrad.lsuv_(network, x{rows}, tolerance={TOLERANCE})")
        except ValueError as error:
            return Refusal(str(error), self.passed)
        if orthogonal:
            return "draw all weights again, orthogonal, and scale them on the data (LSUV)"
        factors = cast(Array, self.script.names["factors"])
        return (
            f"scale each layer's weights by {factors.min():.3g} to {factors.max():.3g}, to "
            "pre-activations of standard deviation 1 (vegrad.lsuv_)"
        )

    # Another network

    def rebuild(self, edits: Sequence[Edit]) -> str | Refusal:
        """Make another network by one call, which also draws its weights; return the words."""
        config = self._with_seed()
        said: list[str] = []
        scheme = ""
        for edit in edits:
            match edit:
                case Initialize(scheme):
                    config |= _drawn(scheme)
                case SetActivation(name):
                    config["activation"] = name
                    said.append(f"use {name}")
                case Normalize(on):
                    config["norm"] = "layer" if on else None
                    said += ["normalize the pre-activations of hidden layers"] if on else []
                case AddSkips():
                    config["residual"] = True
                case _:
                    return Refusal(f"{type(edit).__name__} cannot be done with another network")
        if any(isinstance(edit, Normalize) and edit.on for edit in edits):
            had = self.network.config
            skips = any(isinstance(edit, AddSkips) for edit in edits)
            if had["norm"] and len(edits) == 1:
                return Refusal("the network has a normalization")
            if had["norm"] and had["residual"] and skips and len(edits) == 2:
                return Refusal("the network has both normalization and skip connections")
        if config["residual"] and any(isinstance(edit, AddSkips) for edit in edits):
            branches = self._with_skips(config)
            if isinstance(branches, Refusal):
                return branches
            said.append(branches)
        else:
            self._made(config)
        if not said and scheme == "critical":
            return "draw all weights again at the critical point, where gradients keep their size"
        if not said:
            return f"draw all weights again ({scheme})"
        weights = WEIGHTS.get(scheme, f"weights ({scheme})")
        return ", ".join([*said, f"with new {weights}"] if scheme else said)

    def _made(self, config: Mapping[str, Any]) -> None:
        """Make the network anew; one of the same shape keeps its memory."""
        old = self.network
        self._run(f"network = {written(config)}")
        new = cast(MLP, self.script.names["network"])
        shapes = [{n: a.shape for n, a in one.parameters.items()} for one in (old, new)]
        kept = ("activation", "output", "loss", "norm", "residual", "dtype")
        if shapes[0] == shapes[1] and all(old.config[k] == new.config[k] for k in kept):
            for name, array in new.parameters.items():
                old.parameters[name][...] = array
            old.config.update(new.config)
            self.script.names["network"] = new = old
        new.preparation = old.preparation
        self.network = new

    def _with_skips(self, config: Mapping[str, Any]) -> str | Refusal:
        """Make it with skip connections whose branches add up to a factor of about e.

        So they do if each is scaled by 1/√depth (Zhang et al. 2019, arXiv:1901.09321).
        """
        sizes = config["sizes"]
        square = [i for i in range(len(sizes) - 2) if sizes[i] == sizes[i + 1]]
        if not square:
            return Refusal("no two neighbouring layers are equally wide")
        self._made(config)
        factor = float(f"{1 / sqrt(len(square)):.3g}")
        self._each([f"layers.{layer}.weight" for layer in square], f"*= {factor!r}")
        if self._x is not None:
            self.passed += len(self._rows) / 3
            output = self.network.forward(self._x[self._rows])
            size = float(np.std(output, dtype=np.float64))
            if isfinite(size) and size > 1.0:  # the stream has grown with the depth
                shrink = float(f"{max(1 / size, LEAST):.3g}")
                self._each([f"layers.{len(sizes) - 2}.weight"], f"*= {shrink!r}")
        branches = "branch" if len(square) == 1 else f"{len(square)} branches"
        return f"add skip connections, the weights of the {branches} times {factor:g}"

    def _with_seed(self) -> dict[str, Any]:
        config = dict(self.network.config)
        return config | {"seed": self.seed if config["seed"] is None else config["seed"]}


def _drawn(scheme: str) -> dict[str, Any]:
    return {"init": scheme, "sigma_w": None, "sigma_b": None}


# Code -------------------------------------------------------------------------------------------


def written(config: Mapping[str, Any]) -> str:
    """Write the call that makes a network with this config."""
    sizes, texts = config["sizes"], []
    start = 0
    while start < len(sizes):
        end = start
        while end < len(sizes) and sizes[end] == sizes[start]:
            end += 1
        run = end - start
        texts += [f"*[{sizes[start]}] * {run}"] if run > 3 else [str(sizes[start])] * run
        start = end
    return f"vegrad.MLP([{', '.join(texts)}], {changed_arguments(MLP, config, ('sizes',))})"


def written_optimizer(optimizer: Optimizer) -> str:
    """Write the call that makes an optimizer like this; `schedule` is the user's own, if any."""
    match optimizer.lr:
        case Times(_, factor):
            lr = f"lambda step: {factor:.6g} * schedule(step)"
        case float() as rate:
            lr = f"{rate:.6g}"
        case _:
            lr = "schedule"
    more = changed_arguments(type(optimizer), optimizer._arguments, ())
    clip = "" if optimizer.clip is None else _written_clip(optimizer.clip)
    parts = ", ".join(part for part in (lr, more, clip) if part)
    return f"vegrad.{type(optimizer).__name__}({parts})"


def _written_clip(clip: Rule) -> str:
    """Write the argument for a clip like this; nothing for one whose limit is never reached."""
    if getattr(clip, clip._limit) == inf:
        return ""
    name, arguments = type(clip).__name__, clip._values("nonfinite")
    return f"clip=vegrad.clipping.{name}({changed_arguments(type(clip), arguments, ())})"


def changed_arguments(
    function: Callable[..., object], arguments: Mapping[str, object], without: Sequence[str]
) -> str:
    """Write the arguments that are not those by default."""
    defaults = {k: v.default for k, v in inspect.signature(function).parameters.items()}
    shown = {k: v for k, v in arguments.items() if k not in without and defaults.get(k) != v}
    quoted = {k: f'"{v}"' if isinstance(v, str) else repr(v) for k, v in shown.items()}
    return ", ".join(f"{k}={INFINITE if v == inf else quoted[k]}" for k, v in shown.items())


def _listed(names: Sequence[str]) -> str:
    """Write names of parameters; a comprehension if they are numbered one after the other."""
    first, last = (name.split(".") for name in (names[0], names[-1]))
    if len(names) > 3 and first[1].isdigit() and last[1].isdigit():
        start, end = int(first[1]), int(last[1]) + 1
        if list(names) == [f"layers.{n}.{first[2]}" for n in range(start, end)]:
            return f'[f"layers.{{n}}.{first[2]}" for n in range({start}, {end})]'
    return f"{list(names)}"

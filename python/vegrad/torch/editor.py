"""Edits of PyTorch models, as the code that does them: what a patch shows is what was run."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from hashlib import blake2b
from math import isfinite
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import Array
from vegrad.arrays.shown import visible
from vegrad.flow.edits import (
    AddSkips,
    Chrono,
    Edit,
    Initialize,
    Lsuv,
    Normalize,
    Orthogonal,
    Redraw,
    Scale,
    SetActivation,
    SetCell,
    Shift,
    Steady,
    Zero,
)
from vegrad.flow.reading import Chain
from vegrad.flow.subject import Refusal
from vegrad.flow.wording import FEW
from vegrad.theory.meanfield import CRITICAL_SIGMA_B
from vegrad.torch import architecture, models, recurrent, schemes
from vegrad.torch.activations import MODULES
from vegrad.torch.trainer import ModelData
from vegrad.treatment.script import LEAST, Editor, Script, quoted

LOOKED_AT = 256  # rows, for what is scaled on the data


class ValueEditor(Editor):
    """Edits the values of one model's parameters by running lines of code, which it keeps.

    Args:
        model: what is edited, in place.
        chain: what is known of its layers, if they are one.
        data: that it is trained with.
        rows: which of them may be run; None if there are none.
        seed: of new weights.
    """

    noun = "model"

    def __init__(
        self,
        model: Module,
        chain: Chain | None,
        data: ModelData,
        rows: Array | None,
        seed: int,
    ) -> None:
        vegrad = sys.modules["vegrad"]
        super().__init__(Script(torch=torch, nn=nn, vegrad=vegrad, model=model, x=data.x))
        self.model, self.chain, self.seed = model, chain, seed
        self._data, self._rows = data, rows
        self._count = 0 if rows is None else len(rows)

    @property
    def known(self) -> Collection[str]:
        """The names of the model's parameters and buffers."""
        return self._tensors.keys()

    @property
    def _tensors(self) -> dict[str, Tensor]:
        # A parameter that two modules share has the names of both.
        found = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = self.model.named_buffers(remove_duplicate=False)
        found = {name: one for name, one in found.items() if models.is_measurable(one)}
        return {**dict(buffers), **found}

    def digest(self, name: str) -> bytes:
        """Return a digest of a parameter's or buffer's values."""
        values = self._tensors[name].detach().cpu()
        values = values.to_dense() if values.layout is not torch.strided else values
        values = torch.view_as_real(values) if values.is_complex() else values
        return blake2b(values.contiguous().reshape(-1).view(torch.uint8).numpy()).digest()

    def _run(self, *lines: str) -> None:
        with torch.random.fork_rng(devices=models.gpus(self.model)):
            self.script.run(*lines)

    # Values of parameters

    def do(self, edit: Edit) -> str | Refusal:
        """Do a single edit of values; return the words for it, "" if its own say it all."""
        match edit:
            case Scale(names, factor, rows):
                self._each(names, f"mul_({float(f'{factor:.4g}')!r})", rows)
            case Zero(names, rows):
                self._each(names, "zero_()", rows)
            case Shift(names, amount, rows):
                self._each(names, f"add_({amount!r})", rows)
            case Orthogonal() | Chrono() | Steady():
                self._run(*recurrent.drawn(self.model, edit, self.seed))
            case Redraw(names):
                return self._redraw(names)
            case Lsuv(orthogonal):
                return self._lsuv(orthogonal=orthogonal)
            case Initialize(scheme):
                return self._initialize(scheme)
            case _:
                return Refusal(f"a model cannot be edited like this: {type(edit).__name__}")
        return ""

    def _each(self, names: Sequence[str], does: str, rows: tuple[int, int] | None = None) -> None:
        at = "" if rows is None else f"[{rows[0]}:{rows[1]}]"
        buffers = dict(self.model.named_buffers(remove_duplicate=False))
        for get, several in (
            ("model.get_parameter", [name for name in names if name not in buffers]),
            ("model.get_buffer", [name for name in names if name in buffers]),
        ):
            lines = [f"    {get}({quoted(name)}){at}.{does}" for name in several]
            if len(several) > FEW:
                lines = [f"    for name in {several!r}:", f"        {get}(name){at}.{does}"]
            self._run(*(["with torch.no_grad():", *lines] if lines else []))

    def _activations(self, *kinds: type[Module]) -> list[str]:
        """Return the names of activations within; where no rows may be run, of all."""
        x = None if self._rows is None else self._data.take(self._rows)[0]
        self.passed += self._count / 3
        return architecture.activations(self.model, x, kinds)

    def _kinds(self, names: Sequence[str]) -> list[str]:
        return sorted({type(self.model.get_submodule(name)).__name__ for name in names})

    def _redraw(self, names: Sequence[str]) -> str | Refusal:
        """Draw parameters again as their modules do it; what else these have is kept."""
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        buffers = [name for name in names if name not in parameters]
        if buffers:
            return Refusal(f"{visible(buffers[0])} is a buffer, which is not drawn")
        paths = list(dict.fromkeys(name.rpartition(".")[0] for name in names))
        paths = [path for path in paths if schemes.has_reset(self.model.get_submodule(path))]
        kept = [
            name
            for path in paths
            for part, _ in self.model.get_submodule(path).named_parameters()
            if (name := f"{path}.{part}".removeprefix(".")) not in names
        ]
        lines = [f"torch.manual_seed({self.seed})"]
        if paths:
            lines += [f"for name in {paths!r}:", *schemes.reset("model.get_submodule(name)")]
        for name in names:
            if name.rpartition(".")[0] not in paths:
                lines += schemes.alone(self.model, name)
        if kept:
            keep = f"kept = {{name: model.get_parameter(name).clone() for name in {kept!r}}}"
            lines = [keep, *lines, *schemes.KEPT]
        self._run(*lines)
        return f"draw {_shown(paths if paths and not kept else names)} again"

    def _lsuv(self, *, orthogonal: bool) -> str | Refusal:
        if orthogonal:
            return Refusal("the weights at the critical point are orthogonal, too")
        if architecture.has_norm(self.model):
            return Refusal("the normalization undoes any scaling of the weights")
        if self._rows is None:
            return Refusal("there are no data to scale the weights on")
        count = len(self._data)
        every = -(-count // LOOKED_AT) if isinstance(self._data.x, Tensor) else 1
        self.passed += count / every * 2 / 3  # each layer about twice
        try:
            self._run(f"vegrad.torch.lsuv_(model, {f'x[::{every}]' if every > 1 else 'x'})")
        except (ValueError, RuntimeError) as error:  # it may need gradients to be run at all
            return Refusal(str(error), self.passed)
        return "scale each layer's weights to outputs of standard deviation 1 on the data (LSUV)"

    def _initialize(self, scheme: str) -> str | Refusal:
        if scheme != "critical":
            lines = schemes.initialized(self.model, scheme, self.seed)
            if lines is None:
                return Refusal(f"PyTorch has no initialization {scheme}")
            return self._drawn_by(lines)
        if self.chain is not None:
            activation = self.chain.activation
        else:
            found = {one.lower() for one in self._kinds(self._activations())}
            activation = found.pop() if len(found) == 1 else ""
            if activation not in CRITICAL_SIGMA_B:
                return Refusal("the model has no one activation that has a critical point")
        self._run(*schemes.drawn(activation, self.seed))
        return f"draw all weights again, orthogonal, at {activation}'s critical point"

    def _drawn_by(self, lines: Sequence[str]) -> str | Refusal:
        """Run code that calls the model's own, which may fail: then nothing has changed."""
        before = {name: one.detach().clone() for name, one in self._tensors.items()}
        try:
            self._run(*lines)
        except Exception as error:  # of a reset_parameters() that the model's author has written
            now = self._tensors
            with torch.no_grad():
                for name, values in before.items():
                    now[name].copy_(values)
            return Refusal(f"the model cannot be drawn again: {error}")
        return ""


class ModelEditor(ValueEditor):
    """Edits one model, its architecture too."""

    def rebuild(self, edits: Sequence[Edit]) -> str | Refusal:
        """Put other modules in place of layers; return the words for it."""
        done = self._rebuild(edits)
        pasted = self.script.names.get("Residual")
        architecture.importable(self.model, cast("type[Module] | None", pasted))
        return done

    def _rebuild(self, edits: Sequence[Edit]) -> str | Refusal:
        """Put other modules in place of layers; with skips or another activation, new weights."""
        if any(isinstance(edit, SetCell) for edit in edits):
            return Refusal("how the model takes the cells' state stands in its own code")
        names = self._layers()
        if self.chain is None and self._rows is not None:
            return self._without_sigmoids(edits)
        if self.chain is None or not names or self._rows is None:
            return Refusal("the layers do not form one chain")
        used, code, words = self.chain.activation, list[str](), list[str]()
        skips = new = any(isinstance(edit, AddSkips) for edit in edits)
        for edit in edits:
            match edit:
                case SetActivation(name):
                    wanted = architecture.module_of(name)
                    places = self._activations(*MODULES, nn.Softmax)
                    found = self._kinds(places)
                    if found == [wanted]:
                        continue
                    if not found and self.chain.activation != "identity":
                        return Refusal("the activations are no modules of the model", self.passed)
                    used, new = name, True
                    if found:
                        code += architecture.activated(places, wanted)
                        words.append(f"use {wanted} in place of {', '.join(found)}")
                    else:
                        code += architecture.followed(names, f"nn.{wanted}()")
                        words.append(f"use {wanted} after each hidden layer, which has none")
                case Normalize(True):
                    if architecture.has_norm(self.model):
                        return Refusal("the model has a normalization already")
                    code += architecture.normalized(self.model, names)
                    words.append("normalize each row after each hidden layer")
        if new:
            code += schemes.drawn(used, self.seed)
        if skips:
            branches = self._skipped(names)
            if isinstance(branches, Refusal):
                return branches
            code += branches[0]
            words.append(branches[1])
        if new:
            at = (
                "weights at the critical point"
                if used in CRITICAL_SIGMA_B
                else "orthogonal weights"
            )
            words.append(f"with new {at}")
        normalized = any(isinstance(edit, Normalize) and edit.on for edit in edits)
        try:
            self._run(*code)
            if skips or normalized:
                self._tame(self._output(), shrink=skips)
        except AttributeError as error:  # the model asks a layer for what only the layer has
            why = f"a layer cannot be put into another module: {error}"
            return Refusal(why, self.passed)
        return ", ".join(words)

    def _without_sigmoids(self, edits: Sequence[Edit]) -> str | Refusal:
        """Put another activation in place of the sigmoids within a model that is no chain."""
        match edits:
            case [SetActivation(name)]:
                places = self._activations(nn.Sigmoid)
                if not places:
                    return Refusal("no sigmoid within is a module of the model", self.passed)
                wanted = architecture.module_of(name)
                self._run(*architecture.activated(places, wanted))
                return f"use {wanted} in place of {len(places)} sigmoids"
        return Refusal("the layers do not form one chain")

    def _layers(self) -> list[str]:
        """Return the names of hidden layers that are modules of the model."""
        modules = dict(self.model.named_modules())
        hidden = () if self.chain is None else self.chain.names[:-1]
        return [name for name in hidden if isinstance(modules.get(name), architecture.LAYERS)]

    def _skipped(self, names: list[str]) -> tuple[tuple[str, ...], str] | Refusal:
        """Return the code for skip connections round these layers, and the words."""
        assert self.chain is not None
        if self.chain.residual:
            return Refusal("the model has skip connections")
        x = self._sample()
        self.passed += self._count / 3
        units = architecture.units_of(self.model, names, x)
        if units:
            scale = architecture.branch_scale(sum(map(len, units.values())))
            words = f"add skip connections, the branches times {scale:g}"
            return architecture.skipped(units), words
        # What follows a layer stands in a forward() that no patch can change.
        square = architecture.square_layers(self.model, names, x)
        if not square:
            return Refusal("no layer has outputs shaped as its inputs", self.passed)
        scale = architecture.branch_scale(len(square))
        words = f"add skip connections round single layers, which are times {scale:g}"
        return architecture.skipped_layers(square), words

    def _sample(self) -> Any:
        assert self._rows is not None
        return self._data.take(self._rows)[0]

    def _output(self) -> Any:
        self.passed += self._count / 3
        with models.untouched(self.model):  # with gradients, which it may need inside
            return models.called(self.model, self._sample())

    def _tame(self, output: Any, *, shrink: bool) -> None:
        """Make the outputs smaller, if the stream has grown with the depth."""
        size = float(output.detach().double().std()) if isinstance(output, Tensor) else 1.0
        if shrink and isfinite(size) and size > 1.0:
            self._run(*architecture.shrunk(float(f"{max(1 / size, LEAST):.3g}")))


def _shown(names: Sequence[str]) -> str:
    return ", ".join(map(visible, names[:FEW])) + (" …" if len(names) > FEW else "")

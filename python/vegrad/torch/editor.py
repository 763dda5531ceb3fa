"""What can be done to a torch model, smallest change first: each is code, run on a copy.

A remedy gets a `Case` and returns a `Change`, or a sentence that says why it cannot help here. What
is tried is the very code that the patch of a cure shows.
"""

from __future__ import annotations

import copy
import re
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import vegrad.torch
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.theory.meanfield import CRITICAL_SIGMA_B
from vegrad.torch import architecture, models
from vegrad.torch.diagnosis import diagnose
from vegrad.torch.reading.branches import OfBranch
from vegrad.torch.reading.cells import IN_TIME
from vegrad.torch.reading.through_time import OfTime
from vegrad.treatment.remedies import (
    FAR,
    FLOW,
    LEAST,
    ROUNDS,
    TRAINING,
    after,
    wanted_limit,
    wanted_rate,
)
from vegrad.treatment.remedy import Patient, Remedy, Treatment

LOOKED_AT = 256  # rows, for what is scaled on the data
LOOKING = 4 / 3  # of a forward and backward pass: a diagnosis goes through the weights once more


def looking(network: Any, rows: int) -> float:
    """What a diagnosis costs, in rows that go forward and back."""
    recurrent = any(isinstance(one, nn.RNNBase | nn.RNNCellBase) for one in network.modules())
    return LOOKING * rows + (IN_TIME if recurrent else 0)


@dataclass(frozen=True)
class Change(Treatment):
    """A model to be trained, and the code that leads to it; `optimizer` makes one of parameters.

    `rate` and `clip` are what it is to be trained with (None: as it was).
    """

    network: Any
    optimizer: Any
    same_shape: bool = True
    """Whether the parameters keep their names and shapes, so that it can be done in place."""
    rate: float | None = None
    clip: float | None = None


@dataclass
class Case(Patient):
    """A model with what is known of it; `x` are `trial.Data`."""

    given: Any
    x: Any
    loss_fn: Any = None

    def look(self, treatment: Treatment) -> Diagnosis:
        """Diagnose a change's model on the rows to look at."""
        self.passed += looking(treatment.network, len(self.rows))
        x, target = self.x.take(self.rows)
        x = treatment.prepared(x)
        return diagnose(treatment.network, self.loss_fn, x, target, resamples=0)

    @property
    def names(self) -> list[str]:
        """The chain's modules, of which those with weights are layers."""
        modules = dict(self.given.network.named_modules())
        found = getattr(self.diagnosis, "modules", ())
        return [name if name in modules else "" for name in found]

    def changed(self, words: str, *code: str, same_shape: bool = True, again: str = "") -> Change:
        """What these lines make of a copy; what was changed before and begins with `again` is gone.

        Args:
            words: what they do.
            code: may speak of `model`, `x`, `torch`, `nn` and `vegrad`.
            same_shape: whether parameters keep their names and shapes.
            again: how the words of a change begin that this one takes the place of.
        """
        network = copy.deepcopy(self.given.network)
        names = {"torch": torch, "nn": nn, "vegrad": vegrad, "model": network,
                 "x": self.given.prepared(self.x.x)}  # fmt: skip
        with torch.random.fork_rng(devices=[]):
            exec("\n".join(code), names)
        architecture.importable(network, names.get("Residual"))
        change: Change = replace(
            self.given, words=after(self, words, again or words), network=network,
            code=self.given.code + code, same_shape=same_shape and self.given.same_shape,
        )  # fmt: skip
        return change


# What is done to the data ----------------------------------------------------------------------


def _scale_data(case: Case) -> Change | str:
    x = case.x.x
    if case.given.scaling is not None:
        return "the data are scaled"
    if not isinstance(x, Tensor) or not x.is_floating_point() or not case.x.by_rows or x.ndim < 2:
        return "the inputs are no rows of numbers"
    axes = (0, *range(2, x.ndim))  # of each column, or each channel
    rows = x.detach().double()
    mean, std = rows.mean(axes, keepdim=True), rows.std(axes, correction=0, keepdim=True)
    varies = rows.amax(axes, keepdim=True) > rows.amin(axes, keepdim=True)
    if not bool(varies.any()):
        return "the columns of x are constant: there is nothing to scale"
    typical = float(std[varies].median())
    off = float((mean.abs() / std)[varies].median())
    if 1 / FAR <= typical <= FAR and off <= FAR / 3:
        return f"the data are of a fit size: standard deviation {typical:.3g}"
    std = torch.where(varies, std, 1.0)
    what = "column" if x.ndim == 2 else "channel"
    words = f"subtract from each {what} of x its mean and divide by its standard deviation"
    code = (
        f"mean, std = x.mean({axes}, keepdim=True), x.std({axes}, correction=0, keepdim=True)",
        f"varies = x.amax({axes}, keepdim=True) > x.amin({axes}, keepdim=True)",
        "x = (x - mean) / torch.where(varies, std, 1.0)",
    )
    change: Change = replace(
        case.given, words=after(case, f"{words} (median {typical:.3g})", words),
        network=copy.deepcopy(case.given.network), code=case.given.code + code,
        scaling=(mean.to(x.dtype), std.to(x.dtype)),
    )  # fmt: skip
    return change


# What is done to the weights -------------------------------------------------------------------


def _scale_layers(case: Case) -> Change | str:
    factors: dict[str, float] = {}
    diagnosis = case.diagnosis
    for _ in range(ROUNDS):
        known = {name for name, _ in case.given.network.named_parameters()}
        new = {n: f for n, f in _factors(diagnosis).items() if n in known}
        if not new:
            break
        for name, factor in new.items():
            factors[name] = float(f"{factors.get(name, 1.0) * factor:.4g}")
        change = case.changed(_multiplied(factors), *_scaled(factors))
        diagnosis = case.look(change)
    return change if factors else "no single layer is to blame"


def _recurrent(case: Case) -> Change | str:
    """Recurrent parameters, as the findings through time say it."""
    diagnosis, words, code = case.diagnosis, list[str](), list[str]()
    for _ in range(ROUNDS):
        found = [f for f in diagnosis.findings if isinstance(f, OfTime) and f.code]
        if not found:
            break
        words += [f.change for f in found]
        code += [f"    {line}" for f in found for line in f.code]
        change = case.changed("; ".join(words[:4]) + (" …" if len(words) > 4 else ""),
                              "with torch.no_grad():", *code)  # fmt: skip
        diagnosis = case.look(change)
    return change if code else "no recurrent parameter is to blame"


def _multiplied(factors: dict[str, float]) -> str:
    shown = [f"{name} by {factor:.3g}" for name, factor in factors.items()]
    return "multiply " + ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")


def _scaled(factors: dict[str, float]) -> tuple[str, ...]:
    lines = [f'    model.get_parameter("{name}").mul_({factor!r})'
             for name, factor in factors.items()]  # fmt: skip
    return ("with torch.no_grad():", *lines)


def _factors(diagnosis: Diagnosis) -> dict[str, float]:
    """By the names of parameters."""
    names = [f"{name}.weight" for name in getattr(diagnosis, "modules", ())]
    found: dict[str, float] = {}
    recorded = diagnosis.config.get("chain", [])
    for finding in diagnosis.findings:
        e = finding.evidence
        if isinstance(finding, OfBranch):
            found[finding.parameter] = e["factor"]
        elif {"gain", "usual_gain"} <= e.keys() and e["gain"] > 0:
            if names and finding.blame == "weights":
                found[names[finding.layers[0]]] = e["usual_gain"] / e["gain"]
            elif not names and recorded:
                name = recorded[finding.layers[0]]
                if f"between {name} and" in finding.message:  # not of biases
                    found[name] = e["usual_gain"] / e["gain"]
        elif "factor" in e and "worst" in e and abs(np.log2(e["factor"])) > 6 and not found:
            named = re.match(r"multiply (\S+) by", finding.advice)
            if named:
                found[named[1]] = e["factor"]
        flow = diagnosis.flow
        if finding.kind == "saturated" and flow is not None and names:
            for layer in finding.layers:
                std = float(flow.preactivation_std[layer])
                if isfinite(std) and std > max(1.5, abs(float(flow.preactivation_mean[layer]))):
                    found.setdefault(names[layer], 1.0 / std)
                    break  # those above may only be what this one makes of them
    return {name: f for name, f in found.items() if isfinite(f) and f > 0}


def _reset_biases(case: Case) -> Change | str:
    names = case.names
    sick = [layer for f in case.diagnosis.findings if f.kind in ("saturated", "dead")
            or f.blame == "activation" for layer in f.layers]  # fmt: skip
    chosen = []
    for layer in sorted(set(sick)) if names else []:
        module = case.given.network.get_submodule(names[layer]) if names[layer] else None
        bias = getattr(module, "bias", None)
        if bias is not None and bool(bias.detach().any()):
            chosen.append(f"{names[layer]}.bias")
    if not chosen:
        return "no bias is to blame"
    words = f"set {', '.join(chosen[:3])}{' …' if len(chosen) > 3 else ''} to 0"
    lines = (f"for name in {chosen!r}:", "    nn.init.zeros_(model.get_parameter(name))")
    return case.changed(words, *lines)


def _draw_layers(case: Case) -> Change | str:
    """Layers that no factor can bring back: dead, not finite, or letting nothing through."""
    names, layers = case.names, set[int]()
    for finding in case.diagnosis.findings:
        e = finding.evidence
        if finding.kind in ("dead", "nonfinite"):
            layers |= set(finding.layers)
        elif "usual_gain" in e and (e["gain"] == 0 or finding.blame == "activation"):
            layers |= {finding.layers[0]}
    chosen = [names[n] for n in sorted(layers) if n < len(names) and names[n]]
    modules = [case.given.network.get_submodule(name) for name in chosen]
    if not chosen or not all(hasattr(one, "reset_parameters") for one in modules):
        return "no layer is dead or not finite"
    words = f"draw {', '.join(chosen[:3])}{' …' if len(chosen) > 3 else ''} again"
    lines = (f"torch.manual_seed({case.seed})", f"for name in {chosen!r}:",
             "    model.get_submodule(name).reset_parameters()")  # fmt: skip
    return case.changed(words, *lines)


def _lsuv(case: Case) -> Change | str:
    if architecture.has_norm(case.given.network):
        return "the normalization undoes any scaling of the weights"
    every = -(-len(case.x) // LOOKED_AT) if isinstance(case.x.x, Tensor) else 1
    rows = f"x[::{every}]" if every > 1 else "x"
    case.passed += len(case.x) / every * 2 / 3  # each layer about twice
    words = "scale each layer's weights to outputs of standard deviation 1 on the data (LSUV)"
    try:
        return case.changed(words, f"vegrad.torch.lsuv_(model, {rows})")
    except ValueError as error:
        return str(error)


def _reinitialize(case: Case) -> Change | str:
    activation = case.diagnosis.config.get("activation")
    if case.diagnosis.flow is None or activation is None:
        return "the layers are no chain"
    if activation not in CRITICAL_SIGMA_B:
        return f"{activation} has no critical point: no weights keep its gradient"
    words = f"draw all weights again, orthogonal, at {activation}'s critical point"
    return case.changed(words, *architecture.drawn(activation, case.seed))


# New architecture ------------------------------------------------------------------------------


def _rebuilt(
    case: Case, *, activation: str = "", norm: bool = False, skips: bool = False
) -> Change | str:
    """One of them or several, with new weights; a sentence if one cannot be done."""
    model, names = case.given.network, case.names
    layers = [
        n for n in names[:-1] if n and isinstance(model.get_submodule(n), architecture.LAYERS)
    ]
    if case.diagnosis.flow is None or not layers:
        return "the layers are no chain"
    words: list[str] = []
    code: tuple[str, ...] = ()
    found, used = architecture.activations_of(model), str(case.diagnosis.config["activation"])
    if activation and found != [activation]:
        if not found:
            return "the activations are no modules of the model"
        used = activation.lower()
        code += architecture.activated(found, activation)
        words.append(f"use {activation} in place of {', '.join(found)}")
    if norm:
        if architecture.has_norm(model):
            return "there is a normalization"
        code += architecture.normalized(model, layers)
        words.append("normalize each row after each hidden layer")
    if activation or skips:
        code += architecture.drawn(used, case.seed)
    if skips:
        if case.diagnosis.config["residual"]:
            return "the model has skip connections"
        x, _ = case.x.take(case.rows)
        case.passed += len(case.rows) / 3
        units = architecture.units_of(model, layers, case.given.prepared(x))
        if units:
            scale = architecture.branch_scale(sum(map(len, units.values())))
            code += architecture.skipped(units)
            words.append(f"add skip connections, the branches times {scale:g}")
        else:  # what follows a layer stands in a forward() that no patch can change
            square = architecture.square_layers(model, layers, case.given.prepared(x))
            if not square:
                return "no layer has outputs shaped as its inputs"
            scale = architecture.branch_scale(len(square))
            code += architecture.skipped_layers(square)
            words.append(f"add skip connections round single layers, which are times {scale:g}")
    if activation or skips:
        at = "weights at the critical point" if used in CRITICAL_SIGMA_B else "orthogonal weights"
        words.append(f"with new {at}")
    change = case.changed(", ".join(words), *code, same_shape=False)
    try:
        output = _output(case, change) if norm or skips else None
        return _tamed(case, change, output, ", ".join(words), code) if skips else change
    except AttributeError as error:  # the model asks a layer for what only the layer has
        return f"a layer cannot be put into another module: {error}"


def _output(case: Case, change: Change) -> Any:
    case.passed += len(case.rows) / 3
    x, _ = case.x.take(case.rows)
    with models.untouched(change.network), torch.no_grad():
        return models.called(change.network, change.prepared(x))


def _tamed(case: Case, change: Change, output: Any, words: str, code: tuple[str, ...]) -> Change:
    """With smaller outputs, if the stream has grown with the depth."""
    size = float(output.detach().double().std()) if isinstance(output, Tensor) else 1.0
    if not isfinite(size) or size <= 1.0:
        return change
    factor = float(f"{max(1 / size, LEAST):.3g}")
    return case.changed(words, *code, *architecture.shrunk(factor), same_shape=False)


def _skips(case: Case) -> Change | str:
    return _rebuilt(case, skips=True)


def _normalize(case: Case) -> Change | str:
    return _rebuilt(case, norm=True)


def _normalized_skips(case: Case) -> Change | str:
    return _rebuilt(case, norm=True, skips=True)


def _activation(case: Case) -> Change | str:
    tanh = architecture.activations_of(case.given.network) == ["Tanh"]
    return _rebuilt(case, activation="ReLU" if tanh else "Tanh")


def _tanh_skips(case: Case) -> Change | str:
    return _rebuilt(case, activation="Tanh", skips=True)


def _everything(case: Case) -> Change | str:
    return _rebuilt(case, activation="Tanh", norm=True, skips=True)


# What is done to the training ------------------------------------------------------------------


def _learning_rate(case: Case) -> Change | str:
    wanted = wanted_rate(case.history)
    if isinstance(wanted, str):
        return wanted
    rate, why = wanted
    words = f"set the learning rate to {rate:g} ({why})"
    change: Change = replace(case.given, words=after(case, words, "set the learning"), rate=rate)
    return change


def _clip(case: Case) -> Change | str:
    limit = wanted_limit(case.history)
    if isinstance(limit, str):
        return limit
    words = f"clip the gradients' joint norm at {limit:g}"
    change: Change = replace(case.given, words=after(case, words, "clip"), clip=limit)
    return change


# The tables ------------------------------------------------------------------------------------


SCALE_DATA = Remedy("scale the data", FLOW | TRAINING, _scale_data)  # type: ignore[arg-type]
REMEDIES = (
    SCALE_DATA,
    *(
        Remedy(name, kinds, apply, kept, skips="skip" in name)  # type: ignore[arg-type]
        for name, kinds, apply, kept in (
            ("scale layers", FLOW, _scale_layers, 0.7),
            ("recurrent parameters", FLOW, _recurrent, 0.7),
            ("biases", FLOW, _reset_biases, 0.7),
            ("draw layers again", FLOW, _draw_layers, 0.7),
            ("LSUV", FLOW, _lsuv, 0.7),
            ("draw again", FLOW, _reinitialize, 0.7),
            ("skip connections", FLOW, _skips, 0.8),
            ("normalize", FLOW, _normalize, 0.7),
            ("normalize, with skip connections", FLOW, _normalized_skips, 0.8),
            ("activation", FLOW, _activation, 0.7),
            ("activation, with skip connections", FLOW | TRAINING, _tanh_skips, 0.5),
            ("activation, normalize, skip connections", FLOW | TRAINING, _everything, 0.0),
        )
    ),
)
FOLLOWING = (
    Remedy("learning rate", TRAINING, _learning_rate),  # type: ignore[arg-type]
    Remedy("clip", TRAINING, _clip, followed=False),  # type: ignore[arg-type]
)

"""What can be done to a torch model, smallest change first: each is code, run on a copy.

A remedy gets a `Case` and returns a `Change`, or a sentence that says why it cannot help here. What
is tried is the very code that the patch of a cure shows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite, sqrt
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import Module

import vegrad.torch
from vegrad.diagnosis import Diagnosis
from vegrad.history import History
from vegrad.meanfield import CRITICAL_SIGMA_B, critical_point
from vegrad.remedies import first_landing
from vegrad.torch.activations import MODULES

ROUNDS = 4  # of single layers: one that is put right may show the next
MOST = 100.0  # by which the learning rate is changed at once
KINDS = tuple(MODULES)


@dataclass(frozen=True)
class Change:
    """What is done to a model and its training."""

    words: str = ""
    code: tuple[str, ...] = ()
    same_shape: bool = True
    """Whether the parameters keep their names and shapes, so that it can be done in place."""
    rate: float | None = None
    clip: float | None = None

    def and_then(self, words: str, *code: str, **options: Any) -> Change:
        """This, and more."""
        same = options.pop("same_shape", True) and self.same_shape
        words = "; ".join(part for part in (self.words, words) if part)
        return replace(self, words=words, code=self.code + code, same_shape=same, **options)

    def applied(self, model: Module, x: Any) -> Module:
        """A changed copy."""
        changed = copy.deepcopy(model)
        names = {"torch": torch, "nn": nn, "vegrad": vegrad, "model": changed, "x": x}
        with torch.random.fork_rng(devices=[]):
            exec("\n".join(self.code), names)
        return changed


@dataclass
class Case:
    """A model with what is known of it."""

    model: Module
    x: Any
    seed: int
    diagnosis: Diagnosis
    look: Callable[[Module], Diagnosis]
    done: Change = Change()
    history: History | None = None
    rate: float = 0.0
    """The learning rate that the history was made with."""


def _scale_layers(case: Case) -> Change | str:
    factors: dict[str, float] = {}
    model, diagnosis = case.model, case.diagnosis
    for _ in range(ROUNDS):
        new = _factors(diagnosis)
        if not new:
            break
        for name, factor in new.items():
            factors[name] = float(f"{factors.get(name, 1.0) * factor:.4g}")
        model = case.done.and_then("", *_scaled(factors)).applied(case.model, case.x)
        diagnosis = case.look(model)
    if not factors:
        return "no single layer is to blame"
    shown = [f"{name}.weight by {factor:.3g}" for name, factor in factors.items()]
    words = "multiply " + ", ".join(shown[:4]) + (" …" if len(shown) > 4 else "")
    return case.done.and_then(words, *_scaled(factors))


def _scaled(factors: dict[str, float]) -> tuple[str, ...]:
    lines = [f'    model.get_parameter("{name}.weight").mul_({factor!r})'
             for name, factor in factors.items()]  # fmt: skip
    return ("with torch.no_grad():", *lines)


def _factors(diagnosis: Diagnosis) -> dict[str, float]:
    """By the names of modules."""
    names, found = list(getattr(diagnosis, "modules", ())), {}
    rows, recorded = getattr(diagnosis, "rows", ()), diagnosis.config.get("chain", [])
    for finding in diagnosis.findings:
        e = finding.evidence
        if {"gain", "usual_gain"} <= e.keys() and e["gain"] > 0:
            if names and finding.blame == "weights":
                found[names[finding.layers[0]]] = e["usual_gain"] / e["gain"]
            elif not names and recorded:
                name = recorded[finding.layers[0]].removesuffix(".weight")
                found[name] = e["usual_gain"] / e["gain"]
        elif "factor" in e and "worst" in e and abs(np.log2(e["factor"])) > 6 and not found:
            found[rows[int(e["worst"])]["module"]] = e["factor"]
        flow = diagnosis.flow
        if finding.kind == "saturated" and flow is not None and names:
            for layer in finding.layers:
                std = float(flow.preactivation_std[layer])
                if isfinite(std) and std > max(1.5, abs(float(flow.preactivation_mean[layer]))):
                    found.setdefault(names[layer], 1.0 / std)
                    break  # those above may only be what this one makes of them
    return {name: f for name, f in found.items() if isfinite(f) and f > 0}


def _reset_biases(case: Case) -> Change | str:
    names = getattr(case.diagnosis, "modules", ())
    sick = [layer for f in case.diagnosis.findings if f.kind in ("saturated", "dead")
            or f.blame == "activation" for layer in f.layers]  # fmt: skip
    chosen = []
    for layer in sorted(set(sick)) if names else []:
        bias = getattr(case.model.get_submodule(names[layer]), "bias", None)
        if bias is not None and bool(bias.detach().any()):
            chosen.append(f"{names[layer]}.bias")
    if not chosen:
        return "no bias is to blame"
    words = f"set {', '.join(chosen[:3])}{' …' if len(chosen) > 3 else ''} to 0"
    lines = (f"for name in {chosen!r}:", "    nn.init.zeros_(model.get_parameter(name))")
    return case.done.and_then(words, *lines)


def _lsuv(case: Case) -> Change | str:
    if case.diagnosis.config.get("norm"):
        return "the normalization undoes any scaling of the weights"
    change = case.done.and_then(
        "scale each layer's weights to outputs of standard deviation 1 on the data (LSUV)",
        "vegrad.torch.lsuv_(model, x)",
    )
    try:
        change.applied(case.model, case.x)
    except ValueError as error:
        return str(error)
    return change


def _drawn(case: Case, activation: str) -> tuple[str, ...]:
    """Code that draws weights (orthogonal) and biases as the activation needs them."""
    sigma_b = CRITICAL_SIGMA_B.get(activation, 0.0)
    point = critical_point(activation, sigma_b)
    sigma_w = point.sigma_w if point is not None else sqrt(2.0)
    return (
        f"torch.manual_seed({case.seed})",
        "layers = [one for one in model.modules() if isinstance(one, (nn.Linear, nn.Conv1d,"
        " nn.Conv2d, nn.Conv3d))]",
        "for layer in layers:",
        f"    sigma_w, sigma_b = (1.0, 0.0) if layer is layers[-1] else ({sigma_w:.6g}, "
        f"{sigma_b:.6g})",
        "    fan_in = layer.weight[0].numel()",
        "    wide = max(fan_in, len(layer.weight)) / fan_in",
        "    nn.init.orthogonal_(layer.weight, gain=sigma_w * wide**0.5)",
        "    if layer.bias is not None:",
        "        nn.init.normal_(layer.bias, std=sigma_b)",
    )


def _reinitialize(case: Case) -> Change | str:
    activation = case.diagnosis.config.get("activation")
    if case.diagnosis.flow is None or activation is None:
        return "the layers are no chain"
    if activation not in CRITICAL_SIGMA_B:
        return f"{activation} has no critical point: no weights keep its gradient"
    words = f"draw all weights again, orthogonal, at {activation}'s critical point"
    return case.done.and_then(words, *_drawn(case, activation))


def _normalize(case: Case) -> Change | str:
    names = list(getattr(case.diagnosis, "modules", ()))[:-1]
    linear = [n for n in names if isinstance(case.model.get_submodule(n), nn.Linear)]
    if case.diagnosis.config.get("norm") or not linear:
        return "there is a normalization" if linear else "there is no chain of Linear layers"
    lines = (
        f"for name in {linear!r}:",
        "    layer = model.get_submodule(name)",
        "    model.set_submodule(name, nn.Sequential(layer, nn.LayerNorm(layer.out_features)))",
    )
    return case.done.and_then("add a LayerNorm after each hidden Linear", *lines, same_shape=False)


def _activation(case: Case) -> Change | str:
    found = {type(one).__name__ for one in case.model.modules() if isinstance(one, KINDS)}
    if not found or case.diagnosis.flow is None:
        return "the activations are no modules of the model"
    new, name = ("ReLU", "relu") if found == {"Tanh"} else ("Tanh", "tanh")
    kinds_text = ", ".join(f"nn.{kind}" for kind in sorted(found))
    lines = (
        "for name, module in list(model.named_modules()):",
        f"    if isinstance(module, ({kinds_text},)):",
        f"        model.set_submodule(name, nn.{new}())",
        *_drawn(case, name),
    )
    words = f"use {new} in place of {', '.join(sorted(found))}, with weights at its critical point"
    return case.done.and_then(words, *lines, same_shape=False)


def _both(case: Case) -> Change | str:
    change = _activation(case)
    if isinstance(change, str):
        return change
    more = _normalize(replace(case, done=change))
    return more


def learning_rate(case: Case) -> Change | str:
    """To the minimum along the step, as the gauge saw it; a tenth where the loss left its range."""
    history = case.history
    if history is None or not history.steps:
        return "no training has been looked at"
    finding = next((f for f in history.findings if "wanted" in f.evidence), None)
    if not np.isfinite(history.loss).all() or history.loss[-1] > 1.5 * history.loss[0]:
        # The gauge's other steps are from where the first long one has thrown the weights.
        wanted, why = min(case.rate / 10, first_landing(history)), "the loss rose"
        wanted = max(wanted, case.rate / MOST)
    elif finding is not None:
        wanted = min(max(finding.evidence["wanted"], case.rate / MOST), case.rate * MOST)
        why = f"{finding.kind}: α {finding.evidence['alpha']:+.2g}"
    else:
        return "the steps are neither too long nor too short"
    if case.rate / 1.5 <= wanted <= 2 * case.rate:
        return f"the steps are about as long as they may be ({why})"
    wanted = float(f"{wanted:.2g}")
    return case.done.and_then(f"set the learning rate to {wanted:g} ({why})", rate=wanted)


def clip(case: Case) -> Change | str:
    """At the lowest quarter of the norms, where they vary and steps went too far."""
    history = case.history
    if history is None or not history.steps:
        return "no training has been looked at"
    norms = history.gradient_norm[np.isfinite(history.gradient_norm)]
    far = {f.kind for f in history.findings} & {"overshooting", "oscillating"}
    if not norms.size or (not far and np.isfinite(history.loss).all()):
        return "no step went too far"
    limit = float(f"{float(np.quantile(norms, 0.25)):.2g}")
    if limit <= 0 or (norms.size == history.steps and norms.max() < 4 * limit):
        return "the gradient's norm hardly varies: clipping would only lower the learning rate"
    return case.done.and_then(f"clip the gradients' joint norm at {limit:g}", clip=limit)


REMEDIES: tuple[tuple[str, Callable[[Case], Change | str]], ...] = (
    ("scale layers", _scale_layers),
    ("biases", _reset_biases),
    ("LSUV", _lsuv),
    ("draw again", _reinitialize),
    ("normalize", _normalize),
    ("activation", _activation),
    ("activation and norm", _both),
)

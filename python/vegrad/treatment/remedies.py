"""The remedies for sick gradients: one function and one row of `REMEDIES` each, smallest first.

A remedy gets a `Patient` and returns a `Treatment`, a copy of the network with one change, or a
sentence that says why it cannot help here. It never touches the network that it was given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, sqrt
from typing import Any

import numpy as np

from vegrad.clipping import GlobalNorm
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.wording import named
from vegrad.networks.lsuv import lsuv_
from vegrad.networks.mlp import MLP
from vegrad.theory.meanfield import CRITICAL_SIGMA_B
from vegrad.treatment.remedy import (
    AS_IT_IS,
    Patient,
    Remedy,
    Treatment,
    clone,
    plain,
    renewed,
    written,
)

RISEN = 1.5  # times the first loss
MOST = 100.0  # by which the learning rate is changed at once
CREEPING = -0.97  # median α: a thirtieth of the way to the minimum along the step
LANDING = -0.3  # median α: momentum carries such steps beyond the minimum
SHORTER = 5.0  # times, then, and where the loss left its range; its square if the first step made
JUMP = 1e4  # times the loss: on a parabola that is 50 times beyond the longest step that descends
LEAST = 0.1  # times the last layer's weights: less would be a layer that stops gradients
FAR = 10.0  # from a standard deviation of 1, where data count as not scaled
ROUNDS = 4  # of single layers: one that is put right may show the next


# What is done to the data ----------------------------------------------------------------------


def _scale_data(p: Patient) -> Treatment | str:
    mean, std = p.x.mean(axis=0, dtype=np.float64), p.x.std(axis=0, dtype=np.float64)
    varies = np.ptp(p.x, axis=0) > 0
    if p.given.scaling is not None:
        return "the data are scaled"
    if not varies.any():
        return "the columns of x are constant: there is nothing to scale"
    typical = float(np.median(std[varies]))
    off = float(np.median(np.abs(mean[varies]) / std[varies]))
    if 1 / FAR <= typical <= FAR and off <= FAR / 3:
        return f"the data are of a fit size: standard deviation {typical:.3g}"
    scaling = mean, np.where(varies, std, 1.0)
    dtype = p.given.network.config["dtype"]
    scaling = scaling[0].astype(dtype), scaling[1].astype(dtype)
    words = "subtract from each column of x its mean and divide by its standard deviation"
    words += f" (median {typical:.3g})"
    code = ("scale = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1.0)",
            "x = (x - x.mean(axis=0)) / scale")  # fmt: skip
    scaled = replace(p.given, words=words, scaling=scaling, code=p.given.code + code)
    return replace(scaled, network=clone(p.given.network))


# What is done to the weights -------------------------------------------------------------------


def _scale_layers(p: Patient) -> Treatment | str:
    """Single layers, by the factor that the diagnosis gives; again if that shows others."""
    network, diagnosis = clone(p.given.network), p.diagnosis
    factors: dict[int, float] = {}
    for _ in range(ROUNDS):
        new = _factors(diagnosis)
        if not new or diagnosis.flow is None:
            break
        for layer, factor in new.items():
            network.parameters[f"layers.{layer}.weight"][...] *= factor
            factors[layer] = factors.get(layer, 1.0) * factor
        diagnosis = p.look(replace(p.given, network=network))
    if not factors:
        return "no single layer is to blame"
    parts = [f"layer {layer} by {factor:.3g}" for layer, factor in sorted(factors.items())]
    shown = ", ".join(parts[:4]) + (f" and {len(parts) - 4} more" if len(parts) > 4 else "")
    code = tuple(
        f'network.parameters["layers.{layer}.weight"][...] *= {factor!r}'
        for layer, factor in sorted(factors.items())
    )
    return _edited(p, f"multiply the weights of {shown}", network, code)


def _factors(diagnosis: Diagnosis) -> dict[int, float]:
    factors = {}
    for finding in diagnosis.findings:
        e = finding.evidence
        if {"gain", "usual_gain"} <= e.keys() and finding.blame == "weights" and e["gain"] > 0:
            factors[finding.layers[0]] = e["usual_gain"] / e["gain"]
        if finding.kind == "exploding" and "std" in e:  # what enters is too large
            factors[finding.layers[0]] = 1.0 / e["std"]
        flow = diagnosis.flow
        if finding.kind == "saturated" and flow is not None:
            for layer in finding.layers:
                std = float(flow.preactivation_std[layer])
                if isfinite(std) and std > max(1.5, abs(float(flow.preactivation_mean[layer]))):
                    factors.setdefault(layer, 1.0 / std)
                    break  # those above may only be what this one makes of them
    return {layer: f for layer, f in factors.items() if isfinite(f) and f > 0}


def _reset_biases(p: Patient) -> Treatment | str:
    parameters, flow = p.given.network.parameters, p.diagnosis.flow
    sick = [i for f in p.diagnosis.findings if f.kind in ("saturated", "dead") for i in f.layers]
    sick += [i for f in p.diagnosis.findings if f.blame == "activation" for i in f.layers]
    layers = [i for i in sorted(set(sick)) if parameters[f"layers.{i}.bias"].any()]
    if not layers or flow is None:
        return "the biases of the layers in question are 0"
    network = clone(p.given.network)
    for layer in layers:
        network.parameters[f"layers.{layer}.bias"][...] = 0.0
    code = (f"for layer in {plain(layers)}:",
            '    network.parameters[f"layers.{layer}.bias"][...] = 0.0')  # fmt: skip
    means = flow.preactivation_mean[layers]
    mean = float(means[np.argmax(np.abs(means))])
    words = f"set the biases of {named(layers)} to 0 (pre-activations of mean up to {mean:.3g})"
    return _edited(p, words, network, code)


def _draw_layers(p: Patient) -> Treatment | str:
    """Layers that no factor can bring back: dead, not finite, or letting nothing through."""
    layers = {i for f in p.diagnosis.findings if f.kind in ("dead", "nonfinite") for i in f.layers}
    for finding in p.diagnosis.findings:
        if "usual_gain" in finding.evidence and (
            finding.evidence["gain"] == 0 or finding.blame == "activation"
        ):
            layers |= {finding.layers[0]}
    if not layers:
        return "no layer is dead or not finite"
    network, source = clone(p.given.network), _fresh(p)
    for layer in layers:
        for part in ("weight", "bias"):
            name = f"layers.{layer}.{part}"
            network.parameters[name][...] = source.parameters[name]
    chosen = sorted(layers)
    code = (f"fresh = {written(source)}", f"for layer in {plain(chosen)}:",
            '    for part in ("weight", "bias"):',
            '        name = f"layers.{layer}.{part}"',
            "        network.parameters[name][...] = fresh.parameters[name]")  # fmt: skip
    return _edited(p, f"draw {named(chosen)} again", network, code)


def _lsuv(p: Patient) -> Treatment | str:
    network, x = clone(p.given.network), p.sample(p.given)
    if network.config["norm"] is not None:
        return "the normalization undoes any scaling of the weights"
    p.passed += len(x) / 3
    try:
        with np.errstate(all="ignore"):
            factors = lsuv_(network, x, tolerance=0.05)
    except ValueError as error:
        return str(error)
    words = f"scale each layer's weights by {factors.min():.3g} to {factors.max():.3g}, to "
    words += "pre-activations of standard deviation 1 (vegrad.lsuv_)"
    return _edited(p, words, network, _lsuv_code(p))


def _lsuv_code(p: Patient) -> tuple[str, ...]:
    call = "vegrad.lsuv_(network, x{}, tolerance=0.05)"
    if len(p.rows) == len(p.x):
        return (call.format(""),)
    draw = f"np.random.default_rng({p.seed}).permutation(len(x))[:{len(p.rows)}]"
    return (f"rows = {draw}", call.format("[rows]"))


def _edited(p: Patient, words: str, network: MLP, code: Sequence[str]) -> Treatment:
    words = after(p, words, words)
    return replace(p.given, words=words, network=network, code=p.given.code + tuple(code))


# New weights, new architecture -----------------------------------------------------------------


def _reinitialize(p: Patient) -> Treatment | str:
    activation = p.given.network.config["activation"]
    if activation in CRITICAL_SIGMA_B:
        words = "draw all weights again at the critical point, where gradients keep their size"
        return _rebuilt(p, words, init="critical")
    return f"{activation} has no critical point: no weights keep its gradient"


def _orthogonal(p: Patient) -> Treatment | str:
    words = "draw all weights again, orthogonal, and scale them on the data (LSUV)"
    network = _fresh(p, init="lsuv")
    if network.config["norm"] is not None:
        return _rebuilt(p, "draw all weights again, orthogonal", init="orthogonal")
    p.passed += len(p.rows) / 3
    try:
        lsuv_(network, p.sample(p.given), tolerance=0.05)
    except ValueError as error:
        return str(error)
    return _edited(p, words, network, (f"network = {written(network)}", *_lsuv_code(p)))


def _residual(p: Patient) -> Treatment | str:
    """Branches scaled by 1/√depth, so that they add up to a factor of about e (Zhang 2019)."""
    return _with_skips(p, "add skip connections", _best_init(p))


def _normalize(p: Patient) -> Treatment | str:
    config = p.given.network.config
    if config["norm"] is not None:
        return "the network has a normalization"
    return _rebuilt(p, "normalize the pre-activations of hidden layers (layer norm)", norm="layer")


def _activation(p: Patient) -> Treatment | str:
    """Orthogonal tanh at its critical point trains deepest; ReLU's gradient varies with width."""
    if p.given.network.config["activation"] == "tanh":
        return _rebuilt(p, "use ReLU with He's weights", activation="relu", init="he_normal")
    return _rebuilt(p, "use tanh at its critical point", activation="tanh", init="critical")


def _normalized_residual(p: Patient) -> Treatment | str:
    if p.given.network.config["residual"] and p.given.network.config["norm"]:
        return "the network has both"
    words = "normalize the pre-activations and add skip connections"
    return _with_skips(p, words, {"norm": "layer"})


def _tanh_skips(p: Patient) -> Treatment | str:
    words = "use tanh with skip connections"
    return _with_skips(p, words, {"activation": "tanh", "init": "orthogonal", "norm": None})


def _everything(p: Patient) -> Treatment | str:
    words = "use tanh with skip connections and normalized pre-activations"
    options = {"activation": "tanh", "init": "critical", "norm": "layer"}
    return _with_skips(p, words, options)


def _with_skips(p: Patient, words: str, options: dict[str, Any]) -> Treatment | str:
    config = p.given.network.config
    sizes = config["sizes"]
    square = [i for i in range(len(sizes) - 2) if sizes[i] == sizes[i + 1]]
    if not square:
        return "no two neighbouring layers are equally wide"
    if config["residual"] and not options:
        return "the network has skip connections"
    treated = _rebuilt(p, words, residual=True, **options)
    factor = float(f"{1 / sqrt(len(square)):.3g}")
    for layer in square:
        treated.network.parameters[f"layers.{layer}.weight"][...] *= factor
    code: tuple[str, ...] = (f"for layer in {plain(square)}:",
            f'    network.parameters[f"layers.{{layer}}.weight"][...] *= {factor!r}')  # fmt: skip
    last = f"layers.{len(sizes) - 2}.weight"
    p.passed += len(p.rows) / 3
    out = float(np.std(treated.network.forward(p.sample(treated)), dtype=np.float64))
    if isfinite(out) and out > 1.0:  # the stream has grown with the depth
        shrink = float(f"{max(1 / out, LEAST):.3g}")
        treated.network.parameters[last][...] *= shrink
        code += (f'network.parameters["{last}"][...] *= {shrink!r}',)
    words = f"{treated.words}, the weights of the {len(square)} branches times {factor:g}"
    return replace(treated, words=words, code=treated.code + code)


def _best_init(p: Patient) -> dict[str, Any]:
    known = p.given.network.config["activation"] in CRITICAL_SIGMA_B
    return {"init": "critical" if known else "orthogonal"}


def _fresh(p: Patient, **options: Any) -> MLP:
    config = dict(p.given.network.config)
    if "init" in options:
        config |= {"sigma_w": None, "sigma_b": None}
    if config["seed"] is None:
        config["seed"] = p.seed
    return MLP(**(config | options))


def _rebuilt(p: Patient, words: str, **options: Any) -> Treatment:
    network = _fresh(p, **options)
    return _edited(p, words, network, (f"network = {written(network)}",))


# What is done to the training ------------------------------------------------------------------


def _learning_rate(p: Patient) -> Treatment | str:
    wanted = wanted_rate(p.history)
    if isinstance(wanted, str):
        return wanted
    rate, why = wanted
    words = f"set the learning rate to {rate:g} ({why})"
    assert p.history is not None
    optimizer = renewed(p.given.optimizer, factor=rate / float(p.history.learning_rate[-1]))
    return replace(p.given, words=after(p, words, "set the"), optimizer=optimizer)


def wanted_rate(history: History | None) -> tuple[float, str] | str:
    """To the minimum along the step, as the gauge saw it; a fifth or less if the loss overflows."""
    if history is None or not history.steps:
        return "no training has been looked at"
    rate = float(history.learning_rate[-1])
    finding = next((f for f in history.findings if "wanted" in f.evidence), None)
    tenth = max(1, history.steps // 10)
    if not np.isfinite(history.loss).all():
        far = (history.loss_after[:1] > JUMP * history.loss[:1]).any()
        wanted, why = rate / (SHORTER**2 if far else SHORTER), "the loss left its range"
    elif np.mean(history.loss[-tenth:]) > RISEN * history.loss[0]:
        wanted, why = rate / 10, "the loss rose"  # the gauge sees steps from where it was thrown
    elif finding is not None:
        wanted = finding.evidence["wanted"]
        if finding.kind == "overshooting":
            wanted = min(wanted, first_landing(history))
            if finding.severity == "critical":  # it has learnt nothing: the gauge sees ruins
                wanted = min(wanted, rate / 10)
        wanted = min(max(wanted, rate / MOST), rate * MOST)
        why = f"{finding.kind}: α {finding.evidence['alpha']:+.2g}"
        longer = finding.kind == "stalled"
        if not (wanted > 2 * rate if longer else wanted < rate / 1.5):
            return f"the steps are about as long as they may be ({why})"
    elif median_alpha(history) < CREEPING:
        wanted = rate / max(1.0 + median_alpha(history), 1.0 / MOST)
        why = f"baby steps: α {median_alpha(history):+.3f}"
    elif long_steps(history):
        wanted, why = rate / SHORTER, f"long steps: α {median_alpha(history):+.2f}"
    else:
        return "the steps are neither too long nor too short"
    return float(f"{wanted:.2g}"), why


def after(p: Patient, words: str, same: str) -> str:
    """What was changed before, but for what this changes again, and this."""
    earlier = [part for part in p.given.words.split("; ") if not part.startswith(same)]
    return "; ".join([*(part for part in earlier if part != AS_IT_IS), words])


def median_alpha(history: History) -> float:
    """Of the steps that the gauge looked at; 0 if there are none."""
    alpha = history.alpha[~np.isnan(history.alpha)]
    return float(np.median(alpha)) if alpha.size else 0.0


def long_steps(history: History) -> bool:
    """Whether the gauge says that steps end near the minimum along them, or beyond it."""
    return bool((~np.isnan(history.alpha)).any()) and median_alpha(history) > LANDING


def first_landing(history: History) -> float:
    """The rate that would have led to the minimum along the first step after which the loss rose.

    Later steps start from where that one has thrown the weights.
    """
    climbs = np.flatnonzero(history.loss_after > history.loss)
    if not climbs.size:
        return np.inf
    first = climbs[0]
    slope = float(history.slope[first] * history.step_length[first])
    rise = float(history.loss_after[first] - history.loss[first])
    rate = float(history.learning_rate[first])
    return rate * slope / (2.0 * (slope - rise)) if slope < 0 else rate / 10.0


def _clip(p: Patient) -> Treatment | str:
    if "vanishing" in p.kinds and p.history is None:
        return "clipping makes gradients smaller, it cannot bring back those that vanish"
    limit = wanted_limit(p.history)
    if isinstance(limit, str):
        return limit
    assert p.history is not None
    words = f"clip the joint norm at {limit:g}, the lowest quarter of {p.history.steps} measured"
    clip = GlobalNorm(limit, nonfinite="skip")
    return replace(
        p.given, words=after(p, words, "clip"), optimizer=renewed(p.given.optimizer, clip=clip)
    )


def wanted_limit(history: History | None) -> float | str:
    """For a clip: the lowest quarter of the norms, where they vary and steps went too far."""
    if history is None or not history.steps:
        return "no training has been looked at"
    found = {finding.kind for finding in history.findings}
    if not found & {"overshooting", "oscillating"} and np.isfinite(history.loss).all():
        return "no step went too far"
    norms = history.gradient_norm
    norms = norms[np.isfinite(norms) & (norms > 0)]
    if not norms.size:
        return "no norm was finite"
    limit = float(f"{float(np.quantile(norms, 0.25)):.2g}")
    if norms.size == history.steps and norms.max() < 4 * limit:
        return "the gradient's norm hardly varies: clipping would only lower the learning rate"
    return limit


# The table -------------------------------------------------------------------------------------

FLOW = frozenset({"vanishing", "exploding", "saturated", "dead", "nonfinite"})
TRAINING = frozenset({"training"})
SCALE_DATA = Remedy("scale the data", FLOW | TRAINING, _scale_data)
REMEDIES = (
    SCALE_DATA,
    Remedy("scale single layers", FLOW, _scale_layers),
    Remedy("reset biases", FLOW, _reset_biases),
    Remedy("draw layers again", FLOW, _draw_layers),
    Remedy("scale every layer", FLOW, _lsuv),
    Remedy("clip", FLOW, _clip),
    Remedy("initialize at the critical point", FLOW, _reinitialize),
    Remedy("initialize orthogonally", FLOW, _orthogonal),
    Remedy("skip connections", FLOW, _residual, 0.8, skips=True),
    Remedy("normalize", FLOW, _normalize),
    Remedy("normalize, with skip connections", FLOW, _normalized_residual, 0.8, skips=True),
    Remedy("activation", FLOW, _activation),
    Remedy("activation, with skip connections", FLOW | TRAINING, _tanh_skips, 0.5, skips=True),
    Remedy(
        "activation, normalize, skip connections", FLOW | TRAINING, _everything, 0.0, skips=True
    ),
)
# What the history of a training that failed asks for, on top of what was trained.
FOLLOWING = (
    Remedy("learning rate", TRAINING, _learning_rate),
    Remedy("clip", TRAINING, _clip, followed=False),
)

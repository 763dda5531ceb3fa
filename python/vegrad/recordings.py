"""Diagnoses from what was recorded: gradients of any framework's network, or a history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf, isfinite, log2
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.measurement import Measurement, measure
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.diagnosis.rules.table import RULES, Rule
from vegrad.diagnosis.trend import Measured, Trend
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, exp2, power, times


def diagnose_gradients(
    gradients: Any, parameters: Any = None, order: Sequence[Any] | None = None
) -> Diagnosis:
    """Judge gradients that were recorded anywhere, without the network that they belong to.

    The chain goes through the weights (buffers of two and more axes, or all, if there is none),
    from the layer nearest the input. Compared are logarithms of norms between neighbouring layers,
    never sizes, so that neither the loss's scale nor the batch matters; norms are exact beyond the
    range of float64. A weight's gradient is the product of δ and the layer's input: where one grows
    as the other shrinks it shows nothing, so the biases' gradients, sums of δ, are looked at too.
    Which factor of a layer is at fault cannot be seen from gradients alone: `diagnose` tells.

    Args:
        gradients: buffers, as everywhere: a mapping, a sequence or one; None entries are passed
            over.
        parameters: buffers of the same names (or number): then what a step moves, relative to the
            weights, is part of the evidence.
        order: names, or positions, from input to output, of the buffers that make the chain; the
            order given, if None.

    Returns:
        A Diagnosis with `measurement`, without `flow`.

    Raises:
        TypeError, ValueError: for what is no buffer; an order of unknown names; parameters of
            other names. NaN and inf are a finding.
    """
    names, values = _named(gradients)
    measurement = measure(dict(zip(names, values, strict=True)))
    chain = _chain(names, values, order)
    sizes = np.array([measurement.buffers[names.index(name)].norm_log2 for name in chain])
    findings = [*_nonfinite(measurement), *_zero(measurement, chain)]
    trend = None
    if not any(finding.kind == "nonfinite" for finding in findings):
        found, trend = _along(sizes, chain, "weights")
        biases = [name for name in names if name.endswith("bias")] if order is None else []
        if not found and len(biases) > 1:
            of_biases = [measurement.buffers[names.index(name)].norm_log2 for name in biases]
            found, _ = _along(np.array(of_biases), biases, "biases")
        findings += found
    if parameters is not None:
        ratios = _ratios(names, measurement, parameters)
        findings = [_beside(finding, ratios, chain) for finding in findings]
    return _diagnosis(findings, sizes, trend, measurement, {"chain": chain})


def diagnose_history(history: History) -> Diagnosis:
    """Judge a training from its history: its steps, and the weights' gradients in its last epoch.

    Raises:
        TypeError: if it is no History.
    """
    if not isinstance(history, History):
        raise TypeError(f"history must be a vegrad.History, not {type(history).__name__}")
    of_steps = list(history.findings)
    first = [finding for finding in of_steps if finding.kind == "overshooting"]
    findings, trend, sizes = [], None, np.zeros(0)
    if history.epochs:
        sizes = history.gradient_log2[-1]
        chain = [f"layers.{layer}.weight" for layer in range(len(sizes))]
        lost = np.flatnonzero(np.isnan(sizes) | (sizes == inf))
        if lost.size:
            message = f"the gradient of {chain[lost[0]]} was not finite in the last epoch"
            advice = "lower the learning rate by a factor of 10 and clip the global norm at 1."
            layers = tuple(lost.tolist())
            evidence = {"count": float(lost.size)}
            findings = [Finding("nonfinite", "critical", layers, message, advice, evidence)]
        else:
            findings, trend = _along(sizes, chain, "weights")
    findings = first + findings + [finding for finding in of_steps if finding not in first]
    return _diagnosis(findings, sizes, trend, None, {"epochs": history.epochs})


def _diagnosis(
    findings: list[Finding],
    sizes: FloatArray,
    trend: Trend | None,
    measurement: Measurement | None,
    config: dict[str, Any],
) -> Diagnosis:
    if findings:
        summary = f"{findings[0].kind}: {findings[0].message}"
    elif trend is None:
        summary = "healthy: there is no chain of gradients to compare"
    else:
        reach = power(float(sizes[0] - sizes[-1]) / DECADE)
        summary = f"healthy: the weights' gradients change {times(trend.gain)} a layer, from last "
        summary += f"to first to {reach} of their size"
    return Diagnosis(tuple(findings), summary, config, trend=trend, measurement=measurement)


def _named(gradients: Any) -> tuple[list[str], list[Any]]:
    if isinstance(gradients, Mapping):
        pairs = [(str(name), value) for name, value in gradients.items() if value is not None]
    elif hasattr(gradients, "__dlpack__") or not hasattr(gradients, "__iter__"):
        pairs = [("0", gradients)]
    else:
        pairs = [(str(n), value) for n, value in enumerate(gradients) if value is not None]
    return [name for name, _ in pairs], [value for _, value in pairs]


def _chain(names: list[str], values: list[Any], order: Sequence[Any] | None) -> list[str]:
    if order is not None:
        chain = [str(name) for name in order]
        unknown = [name for name in chain if name not in names]
        if unknown or len(set(chain)) < len(chain):
            what = f"unknown: {unknown[0]!r}" if unknown else "one twice"
            raise ValueError(f"order must be of names of gradients, each once; {what}")
        return chain
    weights = [n for n, value in zip(names, values, strict=True) if len(np.shape(value)) > 1]
    return weights or list(names)


# Findings --------------------------------------------------------------------------------------


def _nonfinite(measurement: Measurement) -> list[Finding]:
    bad = [n for n, s in enumerate(measurement.buffers) if s.infs + s.nans > 0]
    if not bad:
        return []
    name, one = measurement.names[bad[0]], measurement.buffers[bad[0]]
    message = f"{name}{list(one.first_nonfinite or ())} is the first of {one.infs + one.nans} "
    message += f"elements of {name} that are {'NaN' if not one.infs else 'inf or NaN'}"
    message += f"; {len(bad)} of {len(measurement.buffers)} gradients have such elements"
    advice = 'skip this step (nonfinite="skip"), and look for the first layer of the forward pass '
    advice += "whose activations are not finite."
    count = float(sum(s.infs + s.nans for s in measurement.buffers))
    return [Finding("nonfinite", "critical", tuple(bad), message, advice, {"count": count})]


def _zero(measurement: Measurement, chain: list[str]) -> list[Finding]:
    zero = [n for n, name in enumerate(chain)
            if measurement.buffers[measurement.names.index(name)].norm_log2 == -inf]  # fmt: skip
    if not zero:
        return []
    dtype = measurement.total.dtype
    share = f"{len(zero)} of {len(chain)} gradients are exactly 0: {chain[zero[0]]}"
    share += f" to {chain[zero[-1]]}" if len(zero) > 1 else ""
    if len(zero) == len(chain):
        advice = "the loss does not depend on these parameters, or a layer above them is dead."
        return [Finding("dead", "critical", tuple(zero), share, advice, {"count": len(zero)})]
    first = zero == list(range(len(zero)))  # from the input on: it got smaller and smaller
    kind = "vanishing" if first else "dead"
    advice = f"record them in float64, or with vegrad.MLP: what {dtype} stores as 0 may be 1e-50."
    if not first:
        advice = "look for units whose derivative is 0 on the whole batch just above them."
    return [Finding(kind, "critical", tuple(zero), share, advice, {"count": float(len(zero))})]


def _along(sizes: FloatArray, chain: list[str], of: str) -> tuple[list[Finding], Trend | None]:
    """What the norms (log2) of a chain say: its trend, a stretch of it, single steps."""
    known = np.flatnonzero(np.isfinite(sizes))
    if known.size < 2:
        return [], None
    logs, names = sizes[known], [chain[place] for place in known]
    gains = logs[:-1] - logs[1:]  # from each layer to the one below
    flow = SimpleNamespace(
        gain_log2=gains, weight_gain_log2=gains, activation_gain_log2=np.zeros(gains.size)
    )
    network, shift = (
        SimpleNamespace(config={"norm": None}),
        abs(_rule("vanishing").warning) * DECADE,
    )
    m = Measured(network, 0.0, cast("Flow", flow), shift, np.zeros((0, gains.size)), None)
    findings = []
    for sign, kind in ((1, "exploding"), (-1, "vanishing")):
        rule = _rule(kind)
        found = m.chain(sign, abs(rule.warning))
        if found is None:
            continue
        trend, stretch = found
        part = range(gains.size) if stretch is None else stretch
        findings.append(_chain_finding(rule, sign, trend, part, logs, known, names, of))
    for place, usual in m.broken.items():
        gain = float(gains[place])
        rule = _rule("exploding" if gain > usual else "vanishing")
        message = f"between {names[place + 1]} and {names[place]} below it the gradient "
        message += f"{'grows' if gain > usual else 'shrinks'} {times(gain)}, and {times(usual)} "
        message += "between other layers"
        advice = f"look at {names[place + 1]}, through which it passes there: multiplied by "
        advice += f"{exp2(usual - gain):.3g} it would be as the others are."
        evidence = {"gain": exp2(gain), "usual_gain": exp2(usual)}
        severity = rule.severity((gain - usual) / DECADE)
        layers = (int(known[place + 1]),)
        findings.append(Finding(rule.kind, severity, layers, message, advice, evidence))
    return findings, m.trend


def _chain_finding(
    rule: Rule,
    sign: int,
    trend: Trend,
    part: range,
    logs: FloatArray,
    known: Any,
    names: list[str],
    of: str,
) -> Finding:
    low, high = part[0], part[-1] + 1
    layers = tuple(known[low : high + 1].tolist())
    message = f"the {of}' gradient {'shrinks' if sign < 0 else 'grows'} {times(trend.gain)} a "
    message += f"layer and reaches {names[low]} at {power(float(logs[low] - logs[high]) / DECADE)} "
    message += f"{'of' if sign < 0 else 'times'} {names[high]}'s"
    each = exp2(-trend.gain)
    if sign < 0:
        advice = f"each layer should pass {each:.3g} times as much: larger initial weights, an "
        advice += "activation with a larger derivative, normalization or skip connections; a clip "
        advice += "does not help."
    else:
        advice = f"multiply the initial weights of each layer by about {each:.3g}"
        if of == "weights":
            norm = exp2(float(logs[high]) + 0.5 * log2(len(names)))
            advice += f"; until then clip the global norm at {norm:.2g}, what it would be if all "
            advice += "layers were as the last"
        advice += "."
    evidence = {"gain": exp2(trend.gain), "gain_low": exp2(trend.low)}
    evidence |= {"gain_high": exp2(trend.high), "decades": trend.decades}
    return Finding(rule.kind, rule.severity(trend.decades), layers, message, advice, evidence)


def _ratios(names: list[str], measurement: Measurement, parameters: Any) -> dict[str, float]:
    """log10 of ‖gradient‖/‖parameter‖ by name."""
    theirs, values = _named(parameters)
    missing = [name for name in names if name not in theirs]
    if missing:
        raise ValueError(f"parameters must have those of gradients; there is no {missing[0]!r}")
    weights = measure(dict(zip(theirs, values, strict=True)))
    return {
        name: (one.norm_log2 - weights.buffers[theirs.index(name)].norm_log2) / DECADE
        for name, one in zip(names, measurement.buffers, strict=True)
    }


def _beside(finding: Finding, ratios: dict[str, float], chain: list[str]) -> Finding:
    """The finding with log10 ‖gradient‖/‖parameter‖ of the chain's ends in its evidence."""
    more = {"first_ratio_log10": ratios[chain[0]], "last_ratio_log10": ratios[chain[-1]]}
    more = {name: value for name, value in more.items() if isfinite(value)}
    return Finding(**{**vars(finding), "evidence": finding.evidence | more})


def _rule(kind: str) -> Rule:
    return next(rule for rule in RULES if rule.kind == kind)

"""What is to blame where the weights of layers are not: those of what stands between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from math import log10
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import Module

from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, times
from vegrad.torch.reading.branches import Branch, OfBranch, apart
from vegrad.torch.vocabulary import PARTS

Names = list[str]
Signed = tuple[list[str], float]

EXPLAINS = 0.5  # of the decades by which a gain is off, at least, what is to blame is off


def blamed(
    findings: Sequence[Finding],
    model: Module,
    names: Sequence[str],
    branches: Sequence[Branch],
    drawn: bool,
) -> tuple[tuple[Finding, ...], list[OfBranch]]:
    """Findings without those of which a parameter is to blame that is no layer's, and these."""
    named: dict[str, OfBranch] = {}
    left = list(findings)
    for where in (_between, _below, _inside):  # what stands between two layers explains the most
        kept = []
        for finding in left:
            one = _blamed(finding, dict(model.named_parameters()), names, branches, where)
            if one is None:
                kept.append(finding)
            else:
                named.setdefault(one.parameter, one)
        left = kept
    if drawn:
        left = [_beside_the_weights(finding, model, names) for finding in left]
    return tuple(left), list(named.values())


def _between(place: int, names: Sequence[str], known: Names, branches: Sequence[Branch]) -> Signed:
    """What gradients pass on their way: its size makes them larger."""
    return _others(names[place], names[place + 1], names, known), 1.0


def _below(place: int, names: Sequence[str], known: Names, branches: Sequence[Branch]) -> Signed:
    """What makes activations, which a normalization above divides by their size."""
    return _others(names[place - 1], names[place], names, known) if place else [], -1.0


def _inside(place: int, names: Sequence[str], known: Names, branches: Sequence[Branch]) -> Signed:
    """A branch that begins between two layers: the smaller it is, the less reaches the upper."""
    here, above = (f"{name}.weight" for name in names[place : place + 2])
    begun = [one for one in branches if above in one.trail and here not in one.trail]
    matrices = {f"{name}.weight" for name in names}
    return [name for one in begun for name in one.trail if name not in matrices], -1.0


def _blamed(
    finding: Finding,
    parameters: dict[str, Tensor],
    names: Sequence[str],
    branches: Sequence[Branch],
    where: Callable[[int, Sequence[str], Names, Sequence[Branch]], Signed],
) -> OfBranch | None:
    """With the parameter that is as far from its kin as the gain is from others, if any is."""
    e = finding.evidence
    if finding.blame != "activation" or not e.get("gain") or not e.get("usual_gain"):
        return None
    off = log10(e["gain"] / e["usual_gain"])
    place = finding.layers[0]
    some, sign = where(place, names, list(parameters), branches)
    away = {name: apart(name, parameters) for name in some}
    worst = max(away, key=lambda name: sign * away[name] / off, default="") if off else ""
    if not worst or sign * away[worst] / off < EXPLAINS:
        return None
    factor = 10.0 ** -away[worst]
    advice = f"multiply {worst} by {factor:.3g}: it is {times(away[worst] * DECADE)} as large as "
    advice += "others of its kind."
    whole = next((one.trail for one in branches if worst in one.trail), ())
    here, above = (f"{name}.weight" for name in names[place : place + 2])
    return OfBranch(
        finding.kind, finding.severity, finding.layers, finding.message, advice,
        {**e, "factor": factor}, "weights", worst, (*whole, here, worst, above),
    )  # fmt: skip


def _beside_the_weights(finding: Finding, model: Module, names: Sequence[str]) -> Finding:
    """What to look at where a layer passes what it passes with new weights too."""
    e = finding.evidence
    if finding.blame != "activation" or not {"gain", "expected_gain"} <= e.keys() or not e["gain"]:
        return finding
    if not 0.5 < e["expected_gain"] / e["gain"] < 2.0:
        return finding
    here, above = names[finding.layers[0] : finding.layers[0] + 2]
    others = _others(here, above, names, [name for name, _ in model.named_parameters()])
    advice = f"new weights would not change it: look at what stands between {here} and {above}"
    advice += f", first at {', '.join(others[:3])}." if others else "."
    return replace(finding, advice=advice)


def _others(here: str, above: str, names: Sequence[str], known: Names) -> list[str]:
    """Parameters that a model has between two layers' weights, and that are no layer's."""
    ends = [f"{name}.weight" for name in (here, above)]
    first, last = (known.index(name) if name in known else 0 for name in ends)
    own = {f"{name}.{part}" for name in names for part in PARTS.values()}
    return [name for name in known[first:last] if name not in own]


def causes(findings: tuple[Finding, ...], layers: list[Any]) -> tuple[Finding, ...]:
    """Without what a normalization makes of weights that are off: it undoes their size.

    Then the gradient shrinks by the weights as it grows by the normalization, or the other way.
    """
    own = {f.layers: f.kind for f in findings if "usual_gain" in f.evidence
           and f.blame == "weights" and layers[f.layers[0]].norm is not None}  # fmt: skip
    return tuple(f for f in findings if "usual_gain" not in f.evidence or f.blame == "weights"
                 or own.get(f.layers, f.kind) == f.kind)  # fmt: skip


def outside(
    findings: tuple[Finding, ...], flow: Flow, names: Names, loss: str
) -> tuple[Finding, ...]:
    """What is not finite though all layers' outputs are is made by what is no layer.

    Args:
        findings: in PyTorch's words.
        flow: of the chain.
        names: of its layers.
        loss: the name of a known one, "" of one's own.
    """
    lost = np.flatnonzero(~(flow.delta_log2 < np.inf)).tolist()
    first = findings[0] if findings else None
    if first is None or first.kind != "nonfinite":
        return findings
    if not np.isfinite(flow.activation_rms).all() or first.message.startswith("the parameter"):
        return findings
    if lost and lost[-1] + 1 < len(names):
        advice = f"what stands between {names[lost[-1]]} and {names[lost[-1] + 1]} has no finite "
        advice += "derivative there: a square root, a norm or a logarithm at 0, or a where() with "
        advice += "an unused infinite branch."
        return (replace(first, advice=advice), *findings[1:])
    if loss and not lost:
        return findings
    message = "the loss makes what is not finite of an output that is"
    advice = "look at loss_fn (a division, a root, a norm or a logarithm at 0) and at the target."
    return (replace(first, message=message, advice=advice), *findings[1:])


def detached(findings: tuple[Finding, ...], below: int, names: Names) -> tuple[Finding, ...]:
    """Says of a layer to which there is no way back that it is so, not that it shrinks something.

    `below` is how many layers, from the first on, are cut off.
    """
    if not below or below == len(names):
        return findings
    message = f"no gradient comes back to {names[below - 1]}: there is no way from the loss to it"
    advice = f"look between {names[below - 1]} and {names[below]} for a detach(), .data, item() or "
    advice += "no_grad(), or a function without a derivative (argmax, round, a comparison)."
    here = [f.layers == (below - 1,) and f.evidence.get("gain") == 0 for f in findings]
    return tuple(replace(f, message=message, advice=advice) if at else f
                 for f, at in zip(findings, here, strict=True))  # fmt: skip

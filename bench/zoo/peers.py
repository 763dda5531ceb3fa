"""The published rules of other tools, applied to the reference's gradients.

They follow the definitions of SageMaker Debugger's built-in rules, AUTOTRAINER (Zhang et al. 2021),
DeepDiagnosis (Wardat et al. 2022) and torchmortem (2026). As there, limits on gradients apply to
those of the weights. Rules that need several epochs are left out; the others are asked before the
first step, and again after the reference's training.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from zoo.reference import Passed

BOUNDED = ("sigmoid", "tanh", "hard_tanh", "erf")


def verdicts(
    config: dict[str, Any], passed: Passed, scale: float, accuracy: float
) -> dict[str, str]:
    """Return the verdict of each tool on one pass, with the loss times `scale`."""
    with np.errstate(all="ignore"):
        weights = [scale * weight.astype(np.float64) for weight, _ in passed.gradients]
        weights = [w.astype(np.float32).astype(np.float64) for w in weights]  # as tools see them
        facts = {
            "finite": all(np.isfinite(w).all() for w in weights) and np.isfinite(passed.loss),
            "mean": [float(np.mean(np.abs(w))) for w in weights],
            "norm": [float(np.linalg.norm(w)) for w in weights],
            "zeros": float(np.mean(np.concatenate([w.ravel() == 0 for w in weights]))),
            "accuracy": accuracy,
            "activation": config["activation"],
            "z": passed.z[:-1],
            "h": passed.h[1:-1],
        }
        return {name: rule(facts) for name, rule in PEERS.items()}


def _sagemaker(f: dict[str, Any]) -> str:
    if not f["finite"]:
        return "exploding"
    if min(f["mean"]) < 1e-7:
        return "vanishing"
    bounds = {"tanh": (-9.4999, 9.4999), "sigmoid": (-23.0, 17.0)}.get(f["activation"])
    for z in f["z"] if bounds else ():
        if np.mean((z < bounds[0]) | (z > bounds[1])) > 0.5:
            return "saturated"
    for h in f["h"] if f["activation"] == "relu" else ():
        if np.mean(np.mean(h > 0, axis=0) < 0.01) > 0.5:
            return "dead"
    return "healthy"


def _autotrainer(f: dict[str, Any]) -> str:
    if not f["finite"]:
        return "exploding"
    if f["accuracy"] > 0.7:
        return "healthy"
    first, last = f["norm"][0], f["norm"][-1]
    ratio = first / last if last > 0 else np.inf
    if ratio < 1e-3 and first < 1e-4:
        return "vanishing"
    if ratio > 70:
        return "exploding"
    return "dead" if f["zeros"] >= 0.7 else "healthy"


def _deepdiagnosis(f: dict[str, Any]) -> str:
    if not f["finite"]:
        return "exploding"
    if any(np.mean(h <= 0) >= 0.7 for h in f["h"]) and f["activation"] == "relu":
        return "dead"
    if f["activation"] in BOUNDED and any(np.mean(np.abs(z) > 5) > 0.5 for z in f["z"]):
        return "saturated"
    return "vanishing" if min(f["mean"]) < 1e-7 else "healthy"


def _torchmortem(f: dict[str, Any]) -> str:
    if not f["finite"] or max(f["norm"]) > 1000:
        return "exploding"
    first, last = f["norm"][0], f["norm"][-1]
    if last >= 100 * first:
        return "vanishing"
    if any(np.mean(np.all(h == 0, axis=0)) > 0.5 for h in f["h"]):
        return "dead"
    return "healthy"


PEERS = {
    "SageMaker Debugger": _sagemaker,
    "AUTOTRAINER": _autotrainer,
    "DeepDiagnosis": _deepdiagnosis,
    "torchmortem": _torchmortem,
}

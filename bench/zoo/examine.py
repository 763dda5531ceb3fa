"""The examination of one specimen: its label, the verdicts of vegrad and its peers, the cure."""

from __future__ import annotations

import runpy
import time
import warnings
from math import isfinite
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import vegrad
from vegrad.theory import expected_flow

from zoo import reference
from zoo.families import TARGETS, Specimen, build
from zoo.peers import verdicts

STEPS, BATCH, ROWS = 400, 32, 128
DECADES = 3.0  # of the reference's δ from which a network that does not train is called sick
LAYERED = ("weak", "strong", "dead", "biased")


def label(specimen: Specimen, decades: tuple[float, float], reached: bool) -> str:
    """Label a specimen by the reference's gradients and training, and by its planted fault.

    It is healthy if the plain training reaches the target, no fault was planted, and the gradient
    stays within 3 decades. It is sick if the training misses the target, and either a fault was
    planted, which gives the name, or some layer's δ is more than 3 decades from the last layer's.
    Else it is unclear.
    """
    vanishes, explodes = -decades[0] >= DECADES, decades[1] >= DECADES
    fault = specimen["fault"]
    if reached:
        return "unclear" if fault or vanishes or explodes else "healthy"
    if fault:
        return str(fault["kind"])
    if vanishes or explodes:
        return "vanishing" if -decades[0] >= decades[1] else "exploding"
    return "unclear"


def examine(specimen: Specimen) -> dict[str, Any]:
    """Examine a specimen; return all that the tables need, in plain JSON types."""
    vegrad.set_num_threads(1)
    start = time.perf_counter()
    warnings.filterwarnings("ignore")
    with np.errstate(all="ignore"):
        record = _examine(specimen)
    return record | {"seconds": round(time.perf_counter() - start, 3)}


def _examine(specimen: Specimen) -> dict[str, Any]:
    network, x, target = build(specimen)
    layers, wanted = _layers(network), TARGETS[specimen["data"]]
    rows = np.random.default_rng(specimen["number"]).permutation(len(x))[:ROWS]
    x64 = x.astype(np.float64)
    before = reference.run(network.config, layers, x64[rows], target[rows])
    trained = reference.train(
        network.config,
        layers,
        x64,
        target,
        optimizer=specimen["optimizer"],
        target_score=wanted,
        steps=STEPS,
        batch=BATCH,
        seed=specimen["number"],
    )
    chain = np.array(before.delta_log10) - before.delta_log10[-1]
    decades = (float(np.nanmin(chain)), float(np.nanmax(chain)))
    record: dict[str, Any] = {
        "number": specimen["number"],
        "specimen": specimen,
        "label": label(specimen, decades, trained.reached),
        "decades": [_plain(v) for v in decades],
        "reached": trained.reached,
        "score": _plain(trained.score),
        "steps": trained.steps,
    }
    after = reference.run(network.config, trained.layers, x64[rows], target[rows])
    kind, scale = network.config["loss"], specimen["loss_scale"]
    record["peers"] = []
    for passed in (before, after):
        accuracy = max(reference.score(kind, passed.output, target[rows]), 0.0)
        record["peers"].append(verdicts(network.config, passed, scale, accuracy))
    record |= _diagnosed(specimen, network, x, target, rows, record["label"])
    if record["label"] not in ("healthy", "unclear"):
        record["cure"] = _cured(specimen, network, x, target)
    return record


def _diagnosed(
    specimen: Specimen, network: vegrad.MLP, x: Any, target: Any, rows: Any, label: str
) -> dict[str, Any]:
    diagnosis = vegrad.diagnose(network, x[rows], target[rows])
    found = [
        {
            "kind": f.kind,
            "severity": f.severity,
            "layers": list(f.layers),
            "worst": f.evidence.get("layer"),
            "decades": _plain(f.evidence.get("decades")),
            "message": f.message,
        }
        for f in diagnosis.findings
    ]
    result: dict[str, Any] = {"verdict": diagnosis.verdict, "findings": found, "trend": 0.0}
    if diagnosis.trend is not None and diagnosis.trend.significant:
        result["trend"] = _plain(diagnosis.trend.decades)
    if label == "unclear":
        return result
    if diagnosis.healthy:
        twin, _, _ = build(specimen)
        history = twin.fit(
            x,
            target,
            optimizer=_optimizer(specimen),
            batch_size=BATCH,
            seed=1,
            epochs=max(1, round(STEPS * BATCH / len(x))),
            progress=False,
            gauge_every=10,
        )
        result["history"] = [f.kind for f in history.findings if f.severity == "critical"]
    if not specimen["fault"] and specimen["width"] >= 128:
        apart = expected_flow(network, x[rows]).deviations(diagnosis.flow)
        result["within"] = float(np.mean(np.abs(apart) <= 2))
    return result


def _cured(specimen: Specimen, network: vegrad.MLP, x: Any, target: Any) -> dict[str, Any]:
    wanted, kind = TARGETS[specimen["data"]], network.config["loss"]
    goal = (1 - wanted) * float(np.mean(np.var(target, axis=0))) if kind == "mse" else wanted
    cure = vegrad.cure(
        network,
        x,
        target,
        goal=goal,
        optimizer=_optimizer(specimen),
        steps=STEPS,
        batch_size=BATCH,
        seed=1,
    )
    healed = x if cure.scaling is None else (x - cure.scaling[0]) / cure.scaling[1]
    if cure.target_scaling is not None:  # the score, a share of the variance, has no unit
        shift, scale = cure.target_scaling
        target = (target - shift) / scale
    clip = cure.optimizer.clip
    optimizer = specimen["optimizer"] | {
        "lr": cure.optimizer.rate(0),
        "clip": None if clip is None else clip.max_norm,
    }
    again = reference.train(
        cure.network.config,
        _layers(cure.network),
        healed.astype(np.float64),
        target,
        optimizer=optimizer,
        target_score=wanted,
        steps=STEPS,
        batch=BATCH,
        seed=specimen["number"],
    )
    broken = _run_as_file(cure.patch, build(specimen)) if cure.patch else ""
    accepted = [attempt for attempt in cure.attempts if attempt.accepted]
    return {
        "cured": again.reached,
        "said": cure.reached,
        "cost": cure.cost,
        "patch_raised": broken,
        "remedy": accepted[0].name if accepted else None,
        "score": _plain(again.score),
        "change": accepted[0].change if accepted else cure.summary,
        "tried": [a.name for a in cure.attempts if a.after is not None],
    }


def _run_as_file(patch: str, built: tuple[vegrad.MLP, Any, Any]) -> str:
    """Run a patch as its user does, on what was given; return what it raised, "" if nothing."""
    network, x, target = built
    with TemporaryDirectory() as folder:
        file = Path(folder) / "patch.py"
        file.write_text(patch, encoding="utf-8")
        try:
            runpy.run_path(str(file), {"network": network, "x": x, "target": target})
        except Exception as problem:
            return f"{type(problem).__name__}: {problem}"[:160]
    return ""


def _optimizer(specimen: Specimen) -> vegrad.SGD | vegrad.Adam:
    o = specimen["optimizer"]
    return vegrad.SGD(o["lr"], o["momentum"]) if o["name"] == "sgd" else vegrad.Adam(o["lr"])


def _layers(network: vegrad.MLP) -> reference.Layers:
    p = network.parameters
    return [
        (p[f"layers.{i}.weight"].astype(np.float64), p[f"layers.{i}.bias"].astype(np.float64))
        for i in range(network.depth)
    ]


def _plain(value: float | None) -> float | None:
    """Make a number that JSON can hold; infinities become ±1e9."""
    if value is None or np.isnan(value):
        return None
    return float(value) if isfinite(value) else float(np.copysign(1e9, value))

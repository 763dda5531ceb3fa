"""The examination of an architecture: as its library makes it, with faults, and cured."""

from __future__ import annotations

import copy
import re
import traceback
from collections.abc import Callable, Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
import vegrad.torch
from vegrad.diagnosis.diagnosis import Diagnosis

from architectures import truth
from architectures.faults import EVALUATED, RARE, Planted, module_of, order, plant
from architectures.registry import build
from architectures.tasks import Case

FAULTS, MOST_RARE = 4, 1  # in one architecture
MENDED = 0.5  # decades within which all gradients are as they were
NOT_ALONE = 4  # places; a finding that names more has found none of them
WHOLE = ("Initialize", "Lsuv", "AddSkips", "Normalize", "SetActivation", "ScaleData")
Record = dict[str, Any]


def examine(name: str, done: list[Record], faults: int = FAULTS) -> Iterator[Record]:
    """Yield the records of an architecture that are not done yet.

    Before each there is {"begins": …}: what is being done, should the process not survive it.
    """
    health = next((record for record in done if record["fault"] == ""), None)
    if health is None:
        yield {"begins": ""}
        health = {"model": name, "fault": ""} | healthy(name)
        yield health
    if not health.get("trains"):  # or it could not be built, or the process died
        return
    known = [record["fault"] for record in done if not record.get("cure")]
    cured = any(record.get("cure") for record in done)
    for fault in order(name):
        rare = sum(one in RARE for one in known)
        if fault in known or (fault in RARE and rare >= MOST_RARE):
            continue
        if sum(one != "" for one in known) >= faults:
            break
        yield {"begins": fault}
        record = planted(name, fault, health)
        if record is None:
            continue
        known.append(fault)
        yield {"model": name, "fault": fault} | record
        if not cured and record.get("trains") is False and fault != "loss NaN":
            cured = True
            yield {"begins": fault, "cure": True}
            yield {"model": name, "fault": fault, "cure": True} | cure(name, fault, health)


def healthy(name: str) -> Record:
    """Examine an architecture as it comes."""
    try:
        case = build(name)
        loss, _ = truth.gradients(case)
    except ImportError as error:
        return {"unbuilt": f"needs {error.name or error}"}
    except Exception as error:
        return {"unbuilt": f"{type(error).__name__}: {error}"[:200]}
    record: Record = {"loss": loss, "parameters": sum(p.numel() for p in case.model.parameters())}
    record["step_mb"] = truth.megabytes_of(
        lambda: truth.step(case, torch.optim.Adam(case.model.parameters()))
    )
    trains, goal, rate = truth.learnt(lambda: build(name))
    record |= {"trains": trains, "goal": goal if isfinite(goal) else None, "rate": rate}
    record["pass_seconds"] = truth.seconds_of(lambda: truth.step(case), 5)
    case = build(name)
    before = {n: value.detach().clone() for n, value in case.model.state_dict().items()}
    state = torch.get_rng_state()
    record |= diagnosed(case)[0]
    if "crash" not in record:
        record["mb"] = truth.megabytes_of(lambda: diagnosed(case))
    after = case.model.state_dict()
    same = all(torch.equal(after[n], value) or value.isnan().any() for n, value in before.items())
    same &= torch.equal(state, torch.get_rng_state())
    return record | {"untouched": same and all(p.grad is None for p in case.model.parameters())}


def diagnosed(case: Case) -> tuple[Record, Diagnosis | None]:
    """Diagnose a case; return what is found, or what it crashed with."""
    x, target = case.first()
    found: list[Diagnosis] = []

    def work() -> None:
        found.append(vegrad.torch.diagnose(case.model, case.loss, x, target))

    try:
        seconds = truth.seconds_of(work)
        text, content = str(found[0]), found[0].to_dict()
    except Exception as error:
        return crash(error), None
    findings = [
        {key: one[key] for key in ("kind", "rule", "cause", "sites", "edit", "message", "advice")}
        for one in content["findings"]
    ]
    return {"seconds": seconds, "findings": findings, "letters": len(text)}, found[0]


def crash(error: Exception) -> Record:
    """Record an error, with where it was raised."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    where = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}"
    return {"crash": f"{type(error).__name__}: {error}"[:200] + f" ({where})", "findings": []}


def planted(name: str, fault: str, health: Record) -> Record | None:
    """Examine an architecture with a fault; None if it has no place for it."""

    def healthy_case() -> Case:
        case = build(name)
        if fault == EVALUATED:
            case.model.eval()
        return case

    case = healthy_case()
    _, sizes = truth.gradients(case)
    seen = truth.seen(case, sizes)

    def make() -> Case:
        return plant(fault, name, healthy_case(), seen)[0]

    case, fault_is = plant(fault, name, case, seen)
    if fault_is is None:
        return None
    try:
        loss, now = truth.gradients(case)
    except (RuntimeError, ValueError) as error:
        return {"unfit": f"{type(error).__name__}: {error}"[:200]}
    apart = truth.apart(sizes, now, case) if isfinite(loss) else 99.0
    record: Record = {"names": fault_is.names, "about": fault_is.about, "apart": apart}
    # Evaluation mode trains otherwise than the healthy training whose goal this would be.
    goal = None if fault == EVALUATED else health["goal"]
    record["sick"] = apart >= truth.DECADES or fault_is.about == "loss"
    if goal is not None and fault_is.about != "loss":
        record["trains"] = truth.reaches(make, goal, health["rate"])
        record["sick"] |= not record["trains"]
    found, diagnosis = diagnosed(case)
    record |= found
    if diagnosis is not None and diagnosis.findings:
        record["right"] = is_right(fault_is, found["findings"][0], case)
        record |= applied(diagnosis, make, sizes, goal, health["rate"])
    return record


def applied(
    diagnosis: Diagnosis,
    make: Callable[[], Case],
    sizes: dict[str, float],
    goal: float | None,
    rate: float,
) -> Record:
    """Do what the first finding advises; record if it could be done, and if that mends it."""

    def changed() -> Case:
        case = make()
        diagnosis.apply(case.model)
        return case

    try:
        case = make()
        if diagnosis.apply(case.model) is None:
            return {"applied": False}
        _, now = truth.gradients(case)
    except Exception as error:
        return {"applied": False} | crash(error)
    mended = truth.apart(sizes, now, case) <= MENDED
    if not mended and goal is not None:
        mended = truth.reaches(changed, goal, rate)
    return {"applied": True, "mended": mended}


def cure(name: str, fault: str, health: Record) -> Record:
    """Let vegrad cure an architecture with a fault that keeps it from training."""
    case = build(name)
    seen = truth.seen(case, truth.gradients(case)[1])
    case, _ = plant(fault, name, case, seen)
    rate = health["rate"]
    try:
        found = vegrad.torch.cure(
            case.model,
            case.loss,
            case.x,
            case.target,
            optimizer=lambda parameters: torch.optim.Adam(parameters, rate),
            batch_size=case.batch if case.rows else len(case.target),
            in_place=False,
        )
        said = str(found).splitlines()[:6]
        case.x = scaled(case, found.patch)
    except Exception as error:
        return crash(error)
    case.model = found.model
    cured = truth.reaches(lambda: case, health["goal"], found.learning_rate or rate)
    return {"cured": cured, "said": said, "cost": found.cost}


def scaled(case: Case, patch: str | None) -> Any:
    """Return the inputs as a patch makes them, by running it on a copy of the model."""
    if not patch or not re.search(r"^x\b.*=", patch, re.M):
        return case.x
    model = copy.deepcopy(case.model)
    optimizer = torch.optim.Adam(model.parameters())
    scope = {"x": case.x, "model": model, "optimizer": optimizer, "torch": torch, "vegrad": vegrad}
    exec(patch, scope)
    return scope["x"]


# The place ------------------------------------------------------------------------------------


def edited(edit: Record | None) -> list[str]:
    """Return the parameters that an edit changes."""
    if edit is None:
        return []
    inner = [name for one in edit.get("edits", ()) for name in edited(one)]
    return [*edit.get("parameters", ()), *inner]


def kinds(edit: Record | None) -> list[str]:
    """Return the names of the edits that an edit consists of."""
    if edit is None:
        return []
    return [edit["edit"], *(name for one in edit.get("edits", ()) for name in kinds(one))]


def is_right(fault: Planted, finding: Record, case: Case) -> bool:
    """Return True if a finding names the module at fault, or the whole where that is at fault.

    The module must be among the first places that the finding names, or be what its edit changes
    with few others.
    """
    sites, changed = finding["sites"], edited(finding["edit"])
    if fault.about == "loss":
        return all(site["kind"] in ("loss", "target") for site in sites)
    if fault.about == "whole":
        matrices = [name for name, one in case.model.named_parameters() if one.ndim > 1]
        about_all = any(site["kind"] in ("model", "data") for site in sites)
        named = {site["name"] for site in sites} | set(changed)
        most = sum(n in named or module_of(n) in named for n in matrices) > len(matrices) / 2
        return about_all or most or any(one in WHOLE for one in kinds(finding["edit"]))
    few = changed if len({module_of(name) for name in changed}) <= NOT_ALONE else []
    places = [site["name"] for site in sites[:NOT_ALONE]] + few
    values = dict(case.model.named_parameters()) | dict(case.model.named_buffers())
    modules = {module_of(place) if place in values else place for place in places}
    return not fault.modules.isdisjoint(modules - {""})

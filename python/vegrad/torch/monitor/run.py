"""The record of a monitor as a run."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, log2, nan

import numpy as np
import torch

from vegrad.arrays.checks import FloatArray
from vegrad.diagnosis.noted import Noted
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spike
from vegrad.runs.thin import kept_places
from vegrad.torch.monitor.steps import StepHooks
from vegrad.torch.monitor.track import Track


def run_of(
    monitor: StepHooks, track: Track, noted: Sequence[Noted], spikes: Sequence[Spike]
) -> Run:
    """Return the steps of a monitor as a run.

    Sizes of gradients are those before a clip of the joint norm of all gradients that was heard,
    and of any other kind those after it.
    """
    every, empty = monitor.history.numbers, np.zeros(0)
    about = {
        "model": monitor.kind,
        "parameters": len(monitor.parameters),
        "source": "vegrad.torch.Monitor",
        "settings": settings_of(monitor, track),
    }
    if not len(every):
        return Run(
            step=empty,
            loss=empty,
            gradient_norm=empty,
            clipped_norm=empty,
            learning_rate=empty,
            update_ratio=empty,
            validation_loss=empty,
            about=about,
        )
    marked = [one.step for one in noted] + [step.step for one in spikes for step in one.window]
    (step, norm, loss), norms = monitor.history.sizes(kept_places(every, marked))
    tracks = track.columns(step, norm)
    modules, sizes = _by_module(monitor, norms)
    with np.errstate(divide="ignore", invalid="ignore"):
        clip = np.where(norm > 0, tracks.before / norm, 1.0)
        sizes = np.log2(sizes) + np.log2(np.where(np.isfinite(clip), clip, 1.0))[:, None]
    return Run(
        step=step,
        loss=loss,
        gradient_norm=tracks.before,
        clipped_norm=tracks.after,
        learning_rate=tracks.rate,
        update_ratio=tracks.update,
        validation_loss=np.full(len(step), nan),
        modules=modules,
        gradient_log2=sizes,
        floor_log2=floor_of(monitor),
        noted=tuple(noted),
        spikes=tuple(spikes),
        nonfinite=_nonfinite(monitor, step, loss, norm),
        about=about,
    )


def _by_module(monitor: StepHooks, norms: FloatArray) -> tuple[tuple[str, ...], FloatArray]:
    """Return the modules that have got a gradient, in run order, and its norm, (S, M)."""
    places = {name: place for place, name in enumerate(monitor.parameters)}
    names, found = [], []
    for one in by_depth(monitor.run_order, monitor.ran):
        own = [places[name] for name in monitor.own[one] if name in places]
        known = norms[:, own]
        there = ~np.isnan(known).all(axis=1)
        if own and there.any():
            sizes = np.sqrt(np.nansum(np.square(known), axis=1))
            names.append(monitor.modules[one])
            found.append(np.where(there, sizes, nan))
    return tuple(names), np.array(found, np.float64).reshape(len(found), len(norms)).T


def by_depth(order: Sequence[int], ran: int) -> list[int]:
    """Return the places of modules by depth: each that was never run follows the one before it.

    Such are parts of a module that uses their weights itself.
    """
    found = list(order[:ran])
    for one in sorted(order[ran:]):
        found.insert(found.index(one - 1) + 1 if one else 0, one)
    return found


def _nonfinite(
    monitor: StepHooks, step: FloatArray, loss: FloatArray, norm: FloatArray
) -> dict[str, float]:
    """Return the first step at which a number was NaN or infinite, by its column's name.

    Gradients of a step that a GradScaler has skipped do not count. A loss that is nan may be one
    that nobody has given, unless the gradients are not finite either.
    """
    if monitor.nonfinite is None:
        return {}
    wrong = ~np.isfinite(norm) & (step >= monitor.nonfinite.step)
    columns = {"loss": (wrong & np.isnan(loss)) | np.isinf(loss), "gradient_norm": wrong}
    return {name: float(step[there][0]) for name, there in columns.items() if there.any()}


def floor_of(monitor: StepHooks) -> float:
    """Return log2 of the smallest normal number of the parameters' dtypes, the largest of them."""
    dtypes = {one.dtype for one in monitor._params if one.is_floating_point()}
    return max((log2(torch.finfo(one).smallest_normal) for one in dtypes), default=-inf)


def settings_of(monitor: StepHooks, track: Track) -> dict[str, object]:
    """Return the settings of a model's optimizers and of its clip, as plain JSON types."""
    found: dict[str, object] = {}
    for place, settings in enumerate(track.settings):
        said = f"optimizer {place}" if len(track.settings) > 1 else "optimizer"
        found |= {f"{said}{name}": value for name, value in settings.items()}
    limits = {
        step.limit
        for steps in monitor.loop.steps.facts()
        for step in steps
        if step.clip == "done" and step.limit == step.limit
    }
    if limits:
        found["clip"] = limits.pop() if len(limits) == 1 else "changes"
    return found

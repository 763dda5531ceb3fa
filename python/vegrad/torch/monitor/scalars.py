"""The last step of a monitor as named numbers, for loggers."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, isnan, nan

import numpy as np

from vegrad.torch.monitor.steps import StepHooks


def scalars(
    monitor: StepHooks, counts: Mapping[str, float], *, everything: bool = False
) -> dict[str, float]:
    """Return a dozen numbers of a monitor's last step, or also those of each module; {} before it.

    Those of modules are of the last step that was looked at, whose number is `last_look`; `counts`
    are further numbers. The worst module is that whose output has changed most in size
    since the first step.
    """
    if not len(monitor.history):
        return {}
    looked = monitor.history.looked
    now, last, first = monitor.history[-1], looked[-1], looked[0]
    found = {"loss": now.loss, "gradient_norm": now.gradient_norm, "last_look": float(last.step)}
    weighted = [place for place in monitor.run_order if monitor.own[place]]
    for title, place in zip(("first", "last"), (weighted[:1], weighted[-1:]), strict=True):
        for one in place:
            found[f"activation_rms/{title}_module"] = float(last.activation_rms[one])
            found[f"delta_norm/{title}_module"] = float(last.delta_norms[one])
    found["activation_change/worst_module"] = _worst(first.activation_rms, last.activation_rms)
    found["update_ratio"], found["clipped_share"] = _update(monitor), _clipped(monitor)
    found |= {f"subnormal_share/{phase}": share for phase, share in monitor.subnormals.items()}
    found |= counts
    found["nonfinite"] = float(monitor.nonfinite is not None)
    found = {name: value for name, value in found.items() if not isnan(value)}
    for title, names, values in (
        ("gradient_norm", monitor.parameters, now.gradient_norms),
        ("activation_rms", monitor.modules, last.activation_rms),
        ("delta_norm", monitor.modules, last.delta_norms),
    ):
        if everything:
            pairs = zip(names, values.tolist(), strict=True)
            found |= {f"{title}/{name}": value for name, value in pairs if value == value}
    return found


def _worst(first: np.ndarray, last: np.ndarray) -> float:
    """Return the factor by which some module's output has changed most in size."""
    known = (first > 0) & (last > 0) & np.isfinite(first) & np.isfinite(last)
    logs = np.log(last[known] / first[known])
    return float(np.exp(logs[np.argmax(np.abs(logs))])) if logs.size else nan


def _update(monitor: StepHooks) -> float:
    """Return the median of ‖Δw‖/‖w‖ over the matrices at the last step that was sampled."""
    samples = monitor.updates.samples()
    ratios = [
        one.change / one.weight
        for one in (samples[-1].updates if samples else ())
        if one.matrix and one.weight > 0 and isfinite(one.change)
    ]
    return float(np.median(ratios)) if ratios else nan


def _clipped(monitor: StepHooks) -> float:
    """Return the share of the last steps whose gradients a clip made smaller; nan without one."""
    steps = [
        one
        for loop in monitor.loop.steps.facts()
        for one in loop
        if one.clip and one.before == one.before
    ]
    return float(np.mean([one.before > one.limit for one in steps])) if steps else nan

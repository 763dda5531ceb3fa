"""Gradients that do not come, as a monitor has seen it: none, zeros, or none to some."""

from __future__ import annotations

import numpy as np

from vegrad.torch.monitor.steps import StepHooks

FEW = 4  # steps at each of which a parameter must have had a gradient, to miss it elsewhere
LATELY = 20  # looks in which an optimizer's parameters get no gradient


def without_gradient(monitor: StepHooks) -> int:
    """Return the last steps in a row at which the model ran and no backward pass came to it."""
    history, steps = monitor.history, zeros(monitor)
    ran = any(np.isfinite(size) for size in history.looked[-1].activation_rms[_weighted(monitor)])
    if not ran or not steps or not any(one.requires_grad for one in monitor._params):
        return 0
    since = history[-steps].step
    taken = [one for each in monitor.loop.steps.facts() for one in each if one.step >= since]
    return 0 if not taken or any(one.backwards for one in taken) else steps


def idle(monitor: StepHooks) -> tuple[str, ...]:
    """Return what one of several optimizers steps though it never gets a gradient, but runs."""
    loops, names = monitor.loop.steps.facts(monitor.parameters), monitor.parameters
    looked = monitor.history.looked
    lately = [looked[place] for place in range(-min(len(looked), LATELY), 0)]
    norms = [one.gradient_norms for one in lately if len(one.gradient_norms) == len(names)]
    if len(loops) < 2 or len(norms) < LATELY or not any(one.gradient_norm > 0 for one in lately):
        return ()
    trained = {n for n, one in zip(names, monitor._params, strict=False) if one.requires_grad}
    for steps in loops:
        held = trained.intersection(steps[-1].holds) if steps else set()
        places = [place for place, name in enumerate(names) if name in held]
        modules = [place for place, own in enumerate(monitor.own) if held.intersection(own)]
        ran = sum(bool(np.isfinite(one.activation_rms[modules]).any()) for one in lately)
        if not places or len(steps) < LATELY // 2 or ran < FEW:
            continue
        still = all(monitor.owners.is_still(monitor._params[place]) for place in places)
        if still and np.isnan(norms)[:, places].all():
            return tuple(names[place] for place in places)
    return ()


def zeros(monitor: StepHooks) -> int:
    """Return the last steps in a row at which the gradients were exactly 0, or none was there."""
    some = np.flatnonzero(monitor.history.gradient_norm[::-1] != 0)
    return int(some[0]) if len(some) else len(monitor.history)


def zeros_there(monitor: StepHooks) -> int:
    """Return the same if parameters that are trained have a gradient, which is 0."""
    norms = monitor.history.looked[-1].gradient_norms
    trained = [bool(one.requires_grad) for one in monitor._params]
    return zeros(monitor) if bool((norms[: len(trained)][trained[: len(norms)]] == 0).any()) else 0


def _weighted(monitor: StepHooks) -> list[int]:
    return [place for place, own in enumerate(monitor.own) if own]

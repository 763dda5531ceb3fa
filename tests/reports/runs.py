"""Runs that are made up, to be drawn, compared and read."""

from typing import Any

import numpy as np
from vegrad.diagnosis.noted import Noted
from vegrad.flow.finding import Finding
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spikes, SpikeStep


def finding(cause: str = "learning-rate-high", **options: Any) -> Finding:
    words = {"says": "the loss grows", "advises": "halve the learning rate"} | options
    return Finding(
        kind="overshooting", severity="warning", cause=cause, evidence={"rate": 1.0}, **words
    )


def made_up(steps: int = 200, modules: int = 12, seed: int = 0, **columns: Any) -> Run:
    """Return a run whose loss falls, whose gradients vanish with depth, with a clip at 1."""
    rng = np.random.default_rng(seed)
    step = np.arange(float(steps))
    noise = np.exp(0.05 * rng.standard_normal(steps))
    depth = -2.0 * np.arange(modules)[::-1]
    sizes = depth + 0.1 * rng.standard_normal((steps, modules)) - step[:, None] / max(steps, 1)
    norm = np.sqrt(np.sum(4.0**sizes, axis=1))
    update = np.where(step % 5 == 0, 1e-3, np.nan)
    found: dict[str, Any] = {
        "step": step,
        "loss": (0.5 + 2.0 * np.exp(-step / 50)) * noise,
        "gradient_norm": norm,
        "clipped_norm": np.minimum(norm, 1.0),
        "learning_rate": np.linspace(0.1, 0.01, steps),
        "update_ratio": update,
        "validation_loss": np.full(steps, np.nan),
        "modules": tuple(f"block.{n}.linear" for n in range(modules)),
        "gradient_log2": sizes,
        "floor_log2": -126.0,
        "about": {"name": "made up", "model": "Blocks", "settings": {"optimizer": "SGD"}},
    }
    return Run(**found | columns)


def with_a_spike(place: int = 120, module: int = 3, times: float = 64.0, batch: Any = None) -> Run:
    """Return the same with a spike of the loss; one module's gradient grows two steps before."""
    run = made_up()
    loss, sizes = run.loss.copy(), run.gradient_log2.copy()
    loss[place] *= times
    sizes[place - 2 : place + 1, module] += np.log2(times)
    spikes = Spikes()
    for n in range(len(loss)):
        name = n if batch is None else batch
        spikes.see(SpikeStep(n, name, loss[n], float(run.gradient_norm[n]), np.nan))
    noted = (Noted(place + 4, finding()),)
    return made_up(loss=loss, gradient_log2=sizes, spikes=spikes.all, noted=noted)

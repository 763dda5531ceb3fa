"""The cost of a training's log: what a step takes more with it, and what reading it takes.

    python bench/logged.py

A small transformer is trained with a monitor that writes a log, and the processor's time within the
methods that write it is taken: differences between whole steps with and without are lost in their
scatter.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch import nn
from torch.nn import functional
from vegrad.runs.log import RunLog
from vegrad.torch import Monitor
from vegrad.watching.follower import Follower

STEPS = 1000
LONG = 1_000_000
MODULES = 50


def model_of() -> nn.Module:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(96, 4, 192, 0.0, batch_first=True, norm_first=True)
    return nn.Sequential(nn.Linear(16, 96), nn.TransformerEncoder(layer, 4), nn.Linear(96, 16))


def timed(method: Callable[..., object], spent: list[float]) -> Callable[..., object]:
    """Return a method that adds the seconds that it takes."""

    def call(*arguments: object) -> object:
        begin = time.process_time()
        try:
            return method(*arguments)
        finally:
            spent.append(time.process_time() - begin)

    return call


def cost(folder: Path) -> None:
    """Print what the log of a monitor costs."""
    model = model_of()
    # Past its beginning, in which sizes are written more often.
    monitor = Monitor(model, log=folder / "run.jsonl", on_finding=None, first_step=1 << 16)
    optimizer, spent = torch.optim.AdamW(model.parameters(), lr=1e-4), list[float]()
    for name in ("stepped", "ended", "given"):
        setattr(monitor._journal, name, timed(getattr(monitor._journal, name), spent))
    empty = list[float]()  # what the clock itself takes
    nothing = timed(lambda: None, empty)
    begin = time.process_time()
    for step in range(STEPS):
        x = torch.randn(8, 32, 16)
        optimizer.zero_grad()
        functional.mse_loss(model(x), x).backward()
        optimizer.step()
        monitor.step(batch=step)
        for _ in range(3):
            nothing()
    whole = 1e6 * (time.process_time() - begin) / STEPS
    log = 1e6 * (sum(spent) - sum(empty)) / STEPS
    size = (folder / "run.jsonl").stat().st_size / STEPS
    weighted = sum(map(bool, monitor.own))
    print(f"{weighted} modules: of a step of {whole:.0f} µs, {log:.1f} µs are the log's")
    print(f"that is {100 * log / whole:.2f} % of it; {size:.0f} bytes a step")


def alone(folder: Path) -> None:
    """Print what the writer itself takes, and the size of a long file."""
    sizes = torch.randn(MODULES).tolist()
    with RunLog(folder / "long.jsonl", modules=[f"block.{n}" for n in range(MODULES)]) as log:
        begin = time.process_time()
        for step in range(LONG):
            log.step(step, 2.345678, 0.512345, 0.4, 0.001, 0.00123456)
            log.sizes(step, sizes)
        took = time.process_time() - begin
    size = (folder / "long.jsonl").stat().st_size
    print(f"the writer takes {1e6 * took / LONG:.1f} µs a step; {LONG} steps, {MODULES} modules: "
          f"{size / 1e6:.0f} MB")  # fmt: skip


def following(folder: Path) -> None:
    """Print what a look at the long file takes, as `vegrad watch` takes it."""
    follower, times = Follower(folder / "long.jsonl"), list[float]()
    while not times or follower.behind:
        begin = time.perf_counter()
        follower.poll()
        times.append(1e3 * (time.perf_counter() - begin))
    print(f"{len(times)} looks until all is read: {median(times):.0f} ms, {max(times):.0f} at most")


if __name__ == "__main__":
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        cost(Path(name))
        alone(Path(name))
        following(Path(name))

"""The truth about a model by plain PyTorch: its gradients, and a training with Adam."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import re
import statistics
import time
from collections.abc import Callable, Iterator
from itertools import count
from math import inf, isfinite, log10, nan
from pathlib import Path

import torch
from torch import Tensor, nn

from architectures.faults import RECTIFIERS, Seen
from architectures.tasks import Case, of_a_constant, take

STEPS, SECONDS = 120, 15.0  # of a training, at most
LEARNT = 0.25  # the share of the first loss (or of a constant output's) that a training takes off
RATES = (1.0, 0.3, 3.0)  # times a case's own
AVERAGED = 10  # losses
DECADES = 2.0  # by which a fault must change the gradient of a matrix to be one


@contextlib.contextmanager
def untouched(model: nn.Module) -> Iterator[None]:
    """Put the model's buffers back afterwards, and begin with the same random numbers."""
    kept = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    torch.manual_seed(7)
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in kept:
                buffer.copy_(value)


def log_norm(gradient: Tensor | None) -> float:
    """Compute log10 of a gradient's norm: -inf for 0 or none, nan where it is not finite."""
    if gradient is None:
        return -inf
    dense = gradient.to_dense() if gradient.is_sparse else gradient
    size = float(dense.detach().abs().double().norm())
    return log10(size) if 0 < size < inf else (-inf if size == 0 else nan)


def gradients(case: Case) -> tuple[float, dict[str, float]]:
    """Return the first batch's loss, and log10 of the norm of every parameter's gradient."""
    x, target = case.first()
    named = [(name, one) for name, one in case.model.named_parameters() if one.requires_grad]
    with untouched(case.model):
        loss = case.loss(case.output(x), target)
        found = torch.autograd.grad(loss, [one for _, one in named], allow_unused=True)
    sizes = {name: log_norm(one) for (name, _), one in zip(named, found, strict=True)}
    return float(loss.detach()), sizes


def seen(case: Case, sizes: dict[str, float]) -> Seen:
    """Look at a forward pass: which modules run, and whose outputs go through a ReLU."""
    ran: list[str] = []
    made: dict[int, tuple[str, Tensor]] = {}  # by the tensor's identity; kept, so that it stays
    rectified: list[str] = []

    def looks(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, x: tuple[object, ...], output: object) -> None:
            ran.append(path)
            if isinstance(module, RECTIFIERS) and x and id(x[0]) in made:
                rectified.append(made[id(x[0])][0])
            if isinstance(output, Tensor) and not list(module.children()):
                made[id(output)] = (path, output)

        return hook

    hooks = [
        module.register_forward_hook(looks(path)) for path, module in case.model.named_modules()
    ]
    with untouched(case.model):
        case.output(case.first()[0])
    for hook in hooks:
        hook.remove()
    return Seen(sizes, tuple(ran), tuple(dict.fromkeys(rectified)))


def apart(before: dict[str, float], after: dict[str, float], case: Case) -> float:
    """Return by how many decades the gradient of some matrix has changed, 99 if it is lost."""
    matrices = {name for name, one in case.model.named_parameters() if one.ndim > 1}
    changes = [
        abs(after[name] - size) if isfinite(after.get(name, nan)) else 99.0
        for name, size in before.items()
        if isfinite(size) and name in matrices
    ]
    return max(changes, default=0.0)


def is_below(losses: list[float], goal: float) -> bool:
    """Return True if the last losses are below a goal on average."""
    last = losses[-AVERAGED:]
    return len(last) == AVERAGED and sum(last) / AVERAGED < goal


def train(case: Case, rate: float, goal: float | None = None) -> tuple[list[float], float]:
    """Train with Adam until the loss is below a goal; change the model.

    Returns:
        The losses, and the goal: the given one, or what a training from here should reach.
    """
    torch.manual_seed(0)
    generator, order = torch.Generator().manual_seed(0), torch.empty(0, dtype=torch.long)
    optimizer = torch.optim.Adam([p for p in case.model.parameters() if p.requires_grad], rate)
    losses: list[float] = []
    start = time.process_time()
    for step in count(1):
        x, target = case.x, case.target
        if case.rows:
            if len(order) < case.batch:
                order = torch.randperm(len(target), generator=generator)
            x, target = take(x, order[: case.batch]), take(target, order[: case.batch])
            order = order[case.batch :]
        loss = case.loss(case.output(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if goal is None and step == 3:
            base = min(sum(losses) / 3, of_a_constant(case))
            goal = base - LEARNT * abs(base)
        ended = step == STEPS or time.process_time() - start > SECONDS
        if ended or not isfinite(losses[-1]) or (goal is not None and is_below(losses, goal)):
            return losses, nan if goal is None else goal
    raise AssertionError("unreachable")


def learnt(make: Callable[[], Case]) -> tuple[bool, float, float]:
    """Train a case with some rates; return if one of them works, the goal and the rate."""
    for factor in RATES:
        case = make()
        rate = factor * case.rate
        losses, goal = train(case, rate)
        if is_below(losses, goal):
            return True, goal, rate
    return False, goal, rate


def reaches(make: Callable[[], Case], goal: float, rate: float) -> bool:
    """Train a case; return True if it gets below a goal. What raises an error does not."""
    try:
        return is_below(train(make(), rate, goal)[0], goal)
    except (RuntimeError, ValueError, ArithmeticError):
        return False


# The costs -----------------------------------------------------------------------------------


def step(case: Case, optimizer: torch.optim.Optimizer | None = None) -> None:
    """Do one forward and backward pass of the first batch, and a step."""
    x, target = case.first()
    case.loss(case.output(x), target).backward()
    if optimizer is not None:
        optimizer.step()
    case.model.zero_grad()


def seconds_of(work: Callable[[], object], times: int = 1) -> float:
    """Return the processor's time that something takes, the median of some times."""
    found = []
    for _ in range(times):
        start = time.process_time()
        work()
        found.append(time.process_time() - start)
    return statistics.median(found)


def megabytes_of(work: Callable[[], object]) -> float | None:
    """Return what the resident memory rises by at most while something is done again, in MB.

    None where the system is not Linux.
    """
    status, forget = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not forget.exists():
        return None

    def megabytes(field: str) -> float:
        found = re.search(rf"^{field}:\s+(\d+) kB", status.read_text(), re.M)
        assert found is not None
        return int(found[1]) / 1e3

    work()  # what is loaded for it is no memory of its own
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    forget.write_text("5")  # the peak so far: see proc(5)
    before = megabytes("VmRSS")
    work()
    return megabytes("VmHWM") - before

"""Nothing that a step does grows with the number of steps: counted, not timed.

VEGRAD_STEPS says how many steps are taken; `nox -s long` takes a million.
"""

import copy
import gc
import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping
from vegrad.clipping.percentiles import BINS

STEPS = int(os.environ.get("VEGRAD_STEPS", "30000"))

RULES: dict[str, Callable[[], clipping.Rule]] = {
    "Value": partial(clipping.Value, 0.5),
    "Norm": partial(clipping.Norm, 0.5),
    "GlobalNorm": partial(clipping.GlobalNorm, 0.5),
    "BlockRMS": partial(clipping.BlockRMS, 0.2),
    "Adaptive": clipping.Adaptive,
    "AutoClip": partial(clipping.AutoClip, 50),
    "ZClip": clipping.ZClip,
    "ZClip-percentile": partial(clipping.ZClip, mode="percentile", max_grad_norm=None),
    "AdaGC": clipping.AdaGC,
    "SkipSpike": partial(clipping.SkipSpike, 3),
}


def norms() -> Iterator[float]:
    """Norms of a training, which come back after some thousands of steps."""
    some = np.random.default_rng(0).lognormal(0, 0.5, 5003)
    some[::100] *= 1000
    while True:
        yield from some.tolist()


def calls(action: Callable[[], object]) -> int:
    """Count the calls of functions, in Python and in C, that an action makes."""
    count = 0

    def note(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def numbers(state: object) -> int:
    """Count the numbers in a state, those of arrays included."""
    if isinstance(state, dict):
        return sum(map(numbers, state.values()))
    if isinstance(state, list | tuple):
        return sum(map(numbers, state))
    return state.size if isinstance(state, np.ndarray) else 1


def assert_flat(step: Callable[[float], object], state: Callable[[], object], steps: int) -> None:
    """Take steps, and count what Python holds, the size of a state, and the calls of a step."""
    seen = []
    source = norms()
    for _ in range(3):
        for _ in range(steps // 3):
            step(next(source))
        gc.collect()
        blocks, size = sys.getallocatedblocks(), numbers(state())
        # The most of a few: a cycle of steps may have rare ones.
        seen.append((blocks, size, max(calls(partial(step, next(source))) for _ in range(20))))
    (_, early_size, early_calls), (blocks, _, _), (late_blocks, size, many) = seen
    assert late_blocks - blocks < 100 + steps // 3000, seen
    assert size <= early_size + 20, seen
    assert many <= early_calls + 20, seen


@pytest.mark.parametrize("rule", RULES)
def test_rules(rule: str) -> None:
    mine, grad, weight = RULES[rule](), np.ones(1), np.ones(1)

    def step(norm: float) -> None:
        grad[0] = norm
        mine.apply_(grad, weight, loss=norm)

    assert_flat(step, mine.state_dict, STEPS)


def test_autoclip_of_norms_that_never_come_back() -> None:
    """Its state has at most 1024 numbers for each doubling of the norms."""
    rule, grad = clipping.AutoClip(), np.ones(1)
    for norm in np.random.default_rng(1).lognormal(0, 1, STEPS):
        grad[0] = norm
        rule.apply_(grad)
    assert sum(rule.counts) == STEPS
    octaves = np.log2(rule.norms[-1] / rule.norms[0]) + 2
    assert len(rule.norms) <= octaves * BINS
    again = clipping.AutoClip()
    again.load_state_dict(rule.state_dict())
    assert again.state_dict() == rule.state_dict() == copy.deepcopy(rule).state_dict()


@pytest.mark.parametrize(
    "maker", [partial(vegrad.SGD, momentum=0.9), vegrad.Adam, vegrad.AdamW, vegrad.Lion]
)
def test_optimizers(maker: Any) -> None:
    optimizer = maker(vegrad.optim.cosine(1e-3, STEPS), clip=clipping.AutoClip(90))
    weight, grad = np.ones(3), np.ones(3)

    def step(norm: float) -> None:
        grad[:] = norm
        optimizer.step(weight, grad)

    assert_flat(step, optimizer.state_dict, STEPS)
    assert optimizer.steps > STEPS


@pytest.mark.parametrize("clip", [None, clipping.AutoClip(50)], ids=["many steps", "one step"])
def test_fit(clip: clipping.Rule | None) -> None:
    """A training that does not get on is judged by all its steps: ever more seldom."""
    x = np.random.default_rng(0).standard_normal((40, 3))
    net = vegrad.MLP([3, 4, 2], loss="mse", seed=0)
    epochs, counts = STEPS // 50, np.zeros(STEPS // 50 + 1)

    def count(frame: object, event: str, argument: object) -> None:
        if event in ("call", "c_call"):
            counts[history.epochs if history else 0] += 1

    history: vegrad.History | None = None

    def note(_: vegrad.MLP, seen: vegrad.History) -> None:
        nonlocal history
        history = seen

    before = sys.getprofile()
    sys.setprofile(count)
    try:
        optimizer = vegrad.SGD(1e-9, clip=copy.deepcopy(clip))
        net.fit(
            x, x[:, :2], optimizer=optimizer, epochs=epochs, batch_size=2, shuffle=False,
            progress=False, on_finding=None, callbacks=[note]
        )  # fmt: skip
    finally:
        sys.setprofile(before)
    third = epochs // 3
    assert counts[2 * third : -1].mean() < 1.5 * counts[third : 2 * third].mean()


def test_torch_optimizers() -> None:
    torch = pytest.importorskip("torch")
    from vegrad.torch import optim

    for kind in (optim.SGD, optim.Adam, optim.AdamW, optim.Lion):
        weight = torch.nn.Parameter(torch.ones(3))
        weight.grad = torch.ones(3)
        optimizer = kind([weight], 1e-3, clip=clipping.SkipSpike())

        def step(norm: float, optimizer: Any = optimizer, grad: Any = weight.grad) -> None:
            grad.fill_(norm)
            optimizer.step()

        assert_flat(step, optimizer.state_dict, STEPS // 12)


def test_a_monitor() -> None:
    torch = pytest.importorskip("torch")
    import vegrad.torch as ours

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    x, y = torch.randn(2, 8, 4), torch.randn(2, 8, 1)
    # As often as the budget ever allows: how often it does is a matter of the machine's speed.
    monitor = ours.Monitor(model, every=4, optimizer=optimizer, keep=100, on_finding=None)
    count = 0

    def step(_: float) -> None:
        nonlocal count
        count += 1
        optimizer.zero_grad()
        loss = (model(x[count % 2]) - y[count % 2]).square().mean()
        loss.backward()
        optimizer.step()
        monitor.step(loss)

    seen = []
    for steps in (4500, STEPS // 30, STEPS // 30):  # by then it has all the looks that it keeps
        for _ in range(steps):
            step(0)
        gc.collect()
        seen.append((sys.getallocatedblocks(), max(calls(partial(step, 0)) for _ in range(20))))
    (_, early), (blocks, _), (late, many) = seen
    assert late - blocks < 200, seen
    assert many <= 1.5 * early, seen
    monitor.remove()

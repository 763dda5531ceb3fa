"""Monitor's budget: which steps are looked at, and what is seen in the others."""

from collections.abc import Callable
from itertools import count
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import AdamW, Monitor  # noqa: E402
from vegrad.torch.monitor.schedule import ALL, KEPT, Schedule  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),
]


BAD = 106  # a step that is not looked at


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.time = 0.0

    def __call__(self) -> float:
        return self.time


def planned(
    steps: int, cost: float, norm: float = 0.0, budget: float = 0.02, after: float = 0.0
) -> Schedule:
    """Return a schedule after steps that take 1 s, and `norm` to read.

    Those with a look take `cost` more, and those after them `after`.
    """
    clock = Clock()
    schedule = Schedule(None, budget, clock)
    looked = False
    for step in range(steps):
        looked, was = schedule.wants(step, 0), looked
        schedule.begins()
        clock.time += 1 + cost * looked + after * (was and not looked)
        schedule.took(looked)
        schedule.read(norm)
        schedule.ended(looked)
    return schedule


def test_the_first_steps_are_looked_at_and_half_as_many_of_each_doubling() -> None:
    schedule = Schedule(None, 0.02, lambda: 0.0)
    schedule.took(True)
    looked = [step for step in range(1, 1000) if schedule.wants(step, 0)]
    assert looked[: ALL - 1] == list(range(1, ALL))
    for begin in (ALL, 2 * ALL, 4 * ALL, 8 * ALL):
        assert sum(begin <= step < 2 * begin for step in looked) == ALL // 2


@pytest.mark.parametrize(
    ("cost", "interval"), [(0.0, 4), (0.03, 4), (0.045, 8), (0.07, 8), (0.1, 16), (1.5, 256)]
)
def test_more_are_looked_at_where_looks_are_cheap(cost: float, interval: int) -> None:
    schedule = planned(300, cost)
    assert schedule.interval == interval  # half the budget is for looks, of a fourth at most
    late = [step for step in range(4096, 4096 + 512) if schedule.wants(step, 0)]
    assert len(late) == 512 // interval


def test_what_a_look_costs_the_step_after_it_is_of_its_cost() -> None:
    assert planned(300, 0.07).interval == 8
    assert planned(300, 0.07, after=0.05).interval == 16
    assert planned(300, 0.0, after=0.12).interval == 16


@pytest.mark.parametrize(("norm", "part"), [(0.001, 1), (0.005, 1), (0.006, 2), (0.06, 16)])
def test_a_norm_that_is_dear_is_read_in_part(norm: float, part: int) -> None:
    assert planned(100, 0.1, norm).part == part


def test_a_machine_that_grows_slow_or_fast_does_not_hide_what_a_look_costs() -> None:
    clock = Clock()
    schedule = Schedule(None, 0.02, clock)
    for step in range(600):
        looked = schedule.wants(step, 0)
        schedule.begins()
        clock.time += (1 + 0.1 * looked) * (3 if 200 < step < 400 else 1)
        schedule.took(looked)
        schedule.read(0.0)
        schedule.ended(looked)
    assert schedule.interval == 16


def test_one_slow_step_changes_nothing() -> None:
    quiet = planned(200, 0.07)
    loud = planned(200, 0.07)
    for times in (loud._plain, loud._extra):
        times[KEPT // 2] = 50.0
    loud._decide()
    assert loud.interval == quiet.interval == 8


def trained(
    steps: int = 150,
    change: Callable[[int, nn.Module, torch.Tensor], Any] = lambda *_: None,
    make: Any = torch.optim.SGD,
    model: nn.Module | None = None,
    **options: Any,
) -> Any:
    torch.manual_seed(0)
    layers = [one for _ in range(3) for one in (nn.Linear(16, 16), nn.Tanh())]
    model = model or nn.Sequential(*layers, nn.Linear(16, 4))
    optimizer = make(model.parameters(), lr=0.01)
    monitor = Monitor(model, **{"on_finding": None, **options})
    for step in range(steps):
        x = torch.randn(8, 16)
        change(step, model, x)
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
    return monitor


@pytest.mark.parametrize("make", [torch.optim.SGD, AdamW])
def test_all_steps_have_their_loss_and_norms(make: Any) -> None:
    closely, sparse = trained(make=make, every=1), trained(make=make)
    for name in ("step", "loss", "gradient_norm", "gradient_norms"):
        pair = (getattr(one.history, name) for one in (closely, sparse))
        np.testing.assert_allclose(*pair, rtol=1e-6)
    looked = sparse.history.looked
    assert len(looked) < 75
    places = looked.step.astype(int)
    for name in ("activation_rms", "delta_norms"):
        right = getattr(closely.history, name)
        np.testing.assert_allclose(getattr(looked, name), right[places], rtol=1e-12)
        assert np.isnan(np.delete(getattr(sparse.history, name), places, axis=0)).all()
    assert sparse.scalars()["last_look"] == places[-1]
    np.testing.assert_allclose(sparse.run.learning_rate, closely.run.learning_rate)
    np.testing.assert_allclose(sparse.run.gradient_log2, closely.run.gradient_log2, rtol=1e-6)


def test_hooks_are_there_only_in_steps_that_are_looked_at() -> None:
    found = {}

    def note(step: int, model: Any, x: torch.Tensor) -> None:
        found[step] = [len(one._forward_hooks) for one in model]

    monitor = trained(change=note)
    looked = set(monitor.history.looked.step.tolist())
    assert all(any(hooks) == (step in looked) for step, hooks in found.items())


def test_a_clock_that_ticks_gives_the_same_again() -> None:
    runs = []
    for _ in range(2):
        ticks = count()
        runs.append(trained(clock=lambda ticks=ticks: next(ticks) / 1000))
    assert len({tuple(one.history.looked.step) for one in runs}) == 1


def poison(step: int, model: Any, x: torch.Tensor) -> None:
    if step == BAD:
        x[3] = torch.nan


def test_a_nan_in_a_step_that_is_not_looked_at_is_named() -> None:
    monitor = trained(change=poison)
    first = monitor.nonfinite
    assert (first.step, first.phase, first.module, first.batch_index) == (BAD, "forward", "0", 3)
    assert BAD not in monitor.history.looked.step
    assert [one.cause for one in monitor.findings] == ["nonfinite-input"]


class Unit(nn.Module):
    """Each row over its length, whose gradient at 0 is NaN."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x / x.square().sum(1, keepdim=True).sqrt().clamp(min=1e-12)


def test_a_nan_of_a_backward_pass_that_is_not_looked_at_is_named() -> None:
    def empty(step: int, model: Any, x: torch.Tensor) -> None:
        if step == BAD:
            x[3] = 0

    monitor, right = (
        trained(
            change=empty,
            model=nn.Sequential(nn.Linear(16, 16, bias=False), Unit(), nn.Linear(16, 4)),
            every=one,
        )
        for one in (None, 1)
    )
    assert monitor.nonfinite is not None
    assert monitor.nonfinite.step == right.nonfinite.step
    assert monitor.nonfinite.message == right.nonfinite.message
    assert [one.cause for one in monitor.findings] == [one.cause for one in right.findings]


def test_gradients_that_nobody_empties_are_noticed_late_too() -> None:
    torch.manual_seed(0)
    model = nn.Linear(16, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-4)
    monitor = Monitor(model, on_finding=None)
    for step in range(500):
        if step < 100:
            optimizer.zero_grad()
        model(torch.randn(8, 16)).square().mean().backward()
        optimizer.step()
    steps = [one for one in monitor.loop.steps.facts()[0] if one.step > 40]
    assert [one.kept for one in steps] == [one.step >= 100 for one in steps]

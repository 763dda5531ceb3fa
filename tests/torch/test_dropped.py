"""Monitor of loops that make several backward passes before a step: wanted ones, and lost ones."""

from collections.abc import Callable, Iterator

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import clip_grad_norm_  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

from tests.torch.test_loops import Data  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]
STEPS, PARTS = 24, 4


def parts() -> Iterator[slice]:
    return (slice(16 * n, 16 * n + 16) for n in range(PARTS))


def lost(data: Data, clips: bool = False, to_none: bool = True) -> Monitor:
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        for rows in parts():
            optimizer.zero_grad(to_none)
            (data.loss(rows) / PARTS).backward()
            if clips:
                clip_grad_norm_(data.model.parameters(), 0.01)
        optimizer.step()
    return monitor


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("clips", [False, True])
def test_parts_of_a_step_whose_gradients_are_emptied_are_told_of(
    clips: bool, to_none: bool
) -> None:
    report = lost(Data(), clips, to_none).report()
    assert [one.cause for one in report.findings] == ["zero-grad-before-step"], str(report)
    assert report.findings[0].evidence["passes"] == PARTS
    assert "before each of the passes" in report.findings[0].advice


def test_data_may_be_a_slice() -> None:
    data = Data()
    data.x = torch.cat([data.x, data.x], 1)[:, : data.x.shape[1]]
    assert not data.x.is_contiguous()
    assert [one.cause for one in lost(data).report().findings] == ["zero-grad-before-step"]


@pytest.mark.parametrize(("way", "told"), [("/ 2", True), ("* 0.5", True), ("whole", False)])
def test_one_of_two_parts_is_told_of_if_their_losses_are_halved(way: str, told: bool) -> None:
    """Else its gradient may have been read, as to compare it with the step's own."""
    data, halves = Data(), (slice(0, 32), slice(32, 64))
    monitor, optimizer = Monitor(data.model), data.sgd()
    for _ in range(STEPS):
        for rows in halves:
            optimizer.zero_grad()
            loss = data.loss(rows)
            (loss / 2 if way == "/ 2" else loss * 0.5 if way == "* 0.5" else loss).backward()
        optimizer.step()
    causes = [one.cause for one in monitor.report().findings]
    assert causes == ["zero-grad-before-step"] * told


def added_up(data: Data, optimizer: torch.optim.Optimizer) -> None:
    for rows in parts():
        (data.loss(rows) / PARTS).backward()
    optimizer.step()


def summed_by_hand(data: Data, optimizer: torch.optim.Optimizer) -> None:
    """Clip each part by itself, and put the sum where the last one was."""
    sums = [torch.zeros_like(one) for one in data.model.parameters()]
    for rows in parts():
        optimizer.zero_grad()
        data.loss(rows).backward()
        for total, one in zip(sums, data.model.parameters(), strict=True):
            total += one.grad / PARTS
    for total, one in zip(sums, data.model.parameters(), strict=True):
        one.grad.data.copy_(total)
    optimizer.step()


def attacked(data: Data, optimizer: torch.optim.Optimizer) -> None:
    moved = data.x.clone()
    for _ in range(PARTS):
        optimizer.zero_grad()
        moved = moved.detach().requires_grad_()
        nn.functional.cross_entropy(data.model(moved), data.y).backward()
        moved = moved + 0.001 * moved.grad.sign()
    optimizer.zero_grad()
    nn.functional.cross_entropy(data.model(moved.detach()), data.y).backward()
    optimizer.step()


def attacked_from_outside(data: Data, optimizer: torch.optim.Optimizer) -> None:
    delta = torch.zeros_like(data.x, requires_grad=True)
    for last in (False,) * PARTS + (True,):
        optimizer.zero_grad()
        nn.functional.cross_entropy(data.model(data.x + delta), data.y).backward()
        delta.data += 0.001 * delta.grad.sign() * (not last)
    optimizer.step()


def sharpest(data: Data, optimizer: torch.optim.Optimizer) -> None:
    """Take the gradients at weights that were moved uphill on other parts, as SAM does."""
    before = [one.detach().clone() for one in data.model.parameters()]
    for rows in parts():
        optimizer.zero_grad()
        data.loss(rows).backward()
        for one in data.model.parameters():
            one.data += 0.01 * one.grad
    for one, old in zip(data.model.parameters(), before, strict=True):
        one.data.copy_(old)
    optimizer.step()


def compared(data: Data, optimizer: torch.optim.Optimizer) -> None:
    """Take a gradient on other data first, to see if the step's own goes against it."""
    nn.functional.cross_entropy(data.model(data.x[:16]), data.y[:16]).backward()
    optimizer.zero_grad()
    (data.loss() / 2).backward()
    optimizer.step()


def of_the_same_data(data: Data, optimizer: torch.optim.Optimizer) -> None:
    """Let statistics be taken of some passes, as second-order optimizers do."""
    for _ in range(PARTS):
        optimizer.zero_grad()
        data.loss().backward()
    optimizer.step()


def of_one_call(data: Data, optimizer: torch.optim.Optimizer) -> None:
    loss = data.loss()
    for _ in range(PARTS):
        optimizer.zero_grad()
        loss.backward(retain_graph=True)
    optimizer.step()


def closure(data: Data, optimizer: torch.optim.Optimizer) -> None:
    def evaluate() -> torch.Tensor:
        optimizer.zero_grad()
        loss = data.loss()
        loss.backward()
        return loss

    optimizer.step(evaluate)


def as_many_as_there_are(data: Data, optimizer: torch.optim.Optimizer) -> None:
    """Leave out steps whose gradient is too large, of which there are some."""
    for rows in parts():
        optimizer.zero_grad()
        data.loss(rows).backward()
        if clip_grad_norm_(data.model.parameters(), torch.inf) < data.limit:
            optimizer.step()
            return
        data.limit *= 1.1
    data.limit *= 0.8


HEALTHY = [
    added_up,
    summed_by_hand,
    attacked,
    attacked_from_outside,
    sharpest,
    compared,
    of_the_same_data,
]
HEALTHY += [of_one_call, closure, as_many_as_there_are]


@pytest.mark.parametrize("loop", HEALTHY, ids=lambda one: one.__name__)
def test_passes_that_serve_for_something_are_not_lost(loop: Callable[..., None]) -> None:
    data = Data()
    monitor, optimizer = Monitor(data.model), data.sgd(0.01)
    data.limit = 0.5
    for _ in range(STEPS):
        optimizer.zero_grad()
        loop(data, optimizer)
    report = monitor.report()
    assert "zero-grad-before-step" not in [one.cause for one in report.findings], str(report)


@pytest.mark.parametrize("watched", ["both", "first"])
def test_gradients_for_another_optimizer_are_not_lost(watched: str) -> None:
    """The second model's passes fill the gradients of the first, which has a turn of its own."""
    data, judge = Data(), nn.Linear(3, 1)
    both = nn.Sequential(data.model, judge)
    monitor = Monitor(both if watched == "both" else data.model)
    optimizer, other = data.sgd(0.01), torch.optim.SGD(judge.parameters(), 0.01)
    for _ in range(STEPS):
        for rows in parts():
            both.zero_grad()
            judge(data.model(data.x[rows])).square().mean().backward()
            other.step()
        both.zero_grad()
        data.loss().backward()
        optimizer.step()
    assert "zero-grad-before-step" not in [one.cause for one in monitor.report().findings]


def test_a_closure_is_called_again_and_again() -> None:
    data = Data()
    monitor = Monitor(data.model)
    optimizer = torch.optim.LBFGS(data.model.parameters(), 0.1, max_iter=4)
    for _ in range(STEPS):
        closure(data, optimizer)
    assert monitor.report().healthy

"""Monitor of loops that set the weights back after each step."""

import copy

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import FindingWarning, Monitor  # noqa: E402

from tests.torch.test_monitor import mlp  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def train(way: str, steps: int = 120) -> Monitor:
    """Train on inputs drawn anew; `way` says what happens to the weights between steps."""
    torch.manual_seed(0)
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), 0.0 if way == "rate 0" else 0.01)
    monitor, saved = Monitor(model), copy.deepcopy(model.state_dict())
    total = [torch.zeros_like(one) for one in model.parameters()]
    for step in range(steps):
        x = torch.randn(32, 16)
        optimizer.zero_grad()
        (model(x).mean(1) - x[:, 0].sin()).square().mean().backward()
        if way == "rates are tried":
            optimizer.param_groups[0]["lr"] = 0.01 * 1.01**step
        optimizer.step()
        if way in ("loaded", "rates are tried") or (way == "tasks" and step % 32 < 31):
            for kept, one in zip(total, model.parameters(), strict=True):
                kept += one.detach()
            model.load_state_dict(saved)
        elif way == "tasks":  # they share one step of the weights that they all began with
            with torch.no_grad():
                for kept, one in zip(total, model.parameters(), strict=True):
                    one.copy_(kept / 31)
                    kept.zero_()
            saved = copy.deepcopy(model.state_dict())
        if way == "folds" and step % 40 == 39:
            model.load_state_dict(saved)
        if way == "clamped":
            with torch.no_grad():
                for one in model.parameters():
                    one.clamp_(-0.2, 0.2)
    return monitor


def test_steps_that_are_undone_are_told() -> None:
    with pytest.warns(FindingWarning, match="the weights were the same before the step"):
        monitor = train("loaded")
    (found,) = monitor.report().findings
    assert (found.kind, found.cause) == ("stalled", "steps-undone")
    assert "load_state_dict" in found.advice


@pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")
@pytest.mark.parametrize("way", ["", "rates are tried", "tasks", "folds", "clamped", "rate 0"])
def test_weights_that_are_set_otherwise_are_no_undone_steps(way: str) -> None:
    assert "steps-undone" not in {one.cause for one in train(way).report().findings}


@pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")
def test_weights_that_swing_are_no_undone_steps() -> None:
    model = nn.Linear(4, 4, bias=False)
    nn.init.constant_(model.weight, 0.5)
    optimizer, monitor = torch.optim.SGD(model.parameters(), 1.0), Monitor(model)
    for _ in range(120):
        optimizer.zero_grad()
        model.weight.square().sum().backward()  # from 0.5 to -0.5, and back again
        optimizer.step()
    assert "steps-undone" not in {one.cause for one in monitor.report().findings}

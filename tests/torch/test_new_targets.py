"""Trainings whose targets change, whose inputs are raw within the model, or whose loss is a sum."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from vegrad.torch import Monitor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def causes_told(monitor: Any, told: list[str]) -> list[str]:
    """Return the causes that were told, which are those of the report."""
    assert told == [one.cause for one in monitor.report().findings]
    return told


def rewards(size: float, later: float, rate: float) -> list[str]:
    """Learn values of one size, from the twentieth step on of another."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 1))
    told: list[str] = []
    monitor = Monitor(model, on_finding=lambda one: told.append(one.cause))
    optimizer = torch.optim.Adam(model.parameters(), rate)
    for step in range(60):
        x = torch.randn(64, 8)
        y = (size if step < 20 else later) * (x[:, :1] > 0).float()
        loss = F.smooth_l1_loss(model(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return causes_told(monitor, told)


@pytest.mark.parametrize(
    ("size", "later", "rate", "wanted"),
    [(0.05, 1.0, 2e-3, []), (1.0, 1.0, 2e-3, []), (1.0, 1.0, 0.5, ["learning-rate-high"])],
)
def test_a_loss_that_rises_with_its_targets_blames_no_step(
    size: float, later: float, rate: float, wanted: list[str]
) -> None:
    assert rewards(size, later, rate)[:1] == wanted


class Timed(nn.Module):
    """Takes a point and a number of steps, which it divides by some number."""

    def __init__(self, unit: float) -> None:
        super().__init__()
        self.unit = unit
        self.body = nn.Sequential(nn.Linear(3, 32), nn.ReLU(), nn.Linear(32, 2))

    def forward(self, x: Any, step: Any) -> Any:
        return self.body(torch.cat([x, step[:, None] / self.unit], 1))


@pytest.mark.parametrize(("unit", "wanted"), [(1.0, ["input-scale"]), (1000.0, [])])
def test_raw_numbers_that_a_model_joins_to_its_inputs(unit: float, wanted: list[str]) -> None:
    torch.manual_seed(0)
    model, told = Timed(unit), list[str]()
    monitor = Monitor(model, on_finding=lambda one: told.append(one.cause))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(12):
        x = torch.randn(64, 2)
        loss = F.mse_loss(model(x, torch.randint(1000, (64,))), x)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert causes_told(monitor, told) == wanted


@pytest.mark.parametrize("ends", [nn.Sigmoid, nn.Identity])
def test_a_sum_of_losses_is_looked_at_term_by_term(ends: type[nn.Module]) -> None:
    torch.manual_seed(0)
    judge = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1), ends())
    told: list[str] = []
    monitor = Monitor(judge, on_finding=lambda one: told.append(one.cause))
    optimizer, loss_fn = torch.optim.Adam(judge.parameters()), nn.BCEWithLogitsLoss()
    for _ in range(12):
        real, made = torch.randn(32, 2) + 1, torch.randn(32, 2) - 1
        loss = loss_fn(judge(real), torch.ones(32, 1)) + loss_fn(judge(made), torch.zeros(32, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = ["double-softmax"] if ends is nn.Sigmoid else []
    assert causes_told(monitor, told) == wanted


def test_a_finding_of_a_report_alone_is_told_and_kept() -> None:
    told: list[str] = []
    model = nn.Linear(4, 4)
    monitor = Monitor(model, on_finding=lambda one: told.append(one.cause))
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    for step in range(40):  # the last steps are not judged while it runs
        loss = F.mse_loss(model(torch.randn(16, 4)), torch.randn(16, 4))
        optimizer.zero_grad()
        loss.backward()
        if step > 35:
            model.weight.grad[0, 0] = torch.nan
        optimizer.step()
    assert causes_told(monitor, told) == [one.cause for one in monitor.findings]
    assert monitor.report().findings
    assert len(told) == len(set(told))

"""Gradients that are exactly 0, all or nearly all of them: never healthy."""

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from vegrad.torch import FindingWarning, Monitor, diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def task(dtype: torch.dtype) -> tuple[nn.Module, Tensor, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 64), nn.Tanh(), nn.Linear(64, 1024))
    x = torch.randn(64, 16)
    y = (0.02 * x @ torch.randn(16, 1024)).tanh()
    return model.to(dtype), x.to(dtype), y.to(dtype)


def loss_of(weight: float):
    return lambda output, target: nn.functional.mse_loss(output, target) * weight


@pytest.mark.parametrize(
    ("dtype", "weight", "causes"),
    [
        (torch.float16, 1e-4, ["dtype-range"]),
        (torch.float16, 1e-3, ["dtype-range"]),
        (torch.float16, 1.0, []),
        (torch.bfloat16, 1e-4, []),
        (torch.float32, 1e-4, []),
        (torch.float32, 1e-45, ["dtype-range"]),
    ],
)
def test_what_the_dtype_stores_as_zero(
    dtype: torch.dtype, weight: float, causes: list[str]
) -> None:
    model, x, y = task(dtype)
    found = diagnose(model, loss_of(weight), x, y)
    assert [one.cause for one in found.findings] == causes
    assert found.healthy == (not causes)


def test_a_loss_without_a_gradient_is_not_called_too_small() -> None:
    model, x, y = task(torch.float32)
    found = diagnose(model, lambda output, target: loss_of(0.0)(output, target) + 1, x, y)
    assert not found.healthy
    assert "in float64 too" in found.summary
    assert found.findings[0].cause != "dtype-range"


@pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")
@pytest.mark.parametrize(
    ("dtype", "weight", "causes"),
    [
        (torch.float16, 1e-4, ["dtype-range"]),
        (torch.float16, 1e-3, ["dtype-range"]),
        (torch.float16, 1.0, []),
        (torch.bfloat16, 1e-4, ["learning-rate-low"]),
    ],
)
def test_a_monitor_tells_of_it(dtype: torch.dtype, weight: float, causes: list[str]) -> None:
    model, x, y = task(dtype)
    monitor = Monitor(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(12):
        optimizer.zero_grad()
        loss_of(weight)(model(x), y).backward()
        optimizer.step()
    assert [one.cause for one in monitor.findings] == causes
    assert [one.cause for one in monitor.report().findings] == causes


def test_a_monitor_names_no_dtype_where_it_is_the_loss() -> None:
    model, x, y = task(torch.float32)
    monitor = Monitor(model)
    optimizer = torch.optim.SGD(model.parameters(), 0.1)

    def step() -> None:
        optimizer.zero_grad()
        (loss_of(0.0)(model(x), y) + 1).backward()
        optimizer.step()

    for _ in range(9):
        step()
    with pytest.warns(FindingWarning, match="exactly 0 at each of 10 steps, though the loss is 1"):
        step()
    assert not monitor.report().healthy

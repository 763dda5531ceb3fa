"""Batch normalizations in evaluation mode, and what is said of a model of few trained layers."""

from itertools import pairwise
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812
from vegrad.torch import Monitor, diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def normalized(*widths: int) -> Any:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), nn.BatchNorm1d(b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(widths[-1], 4))


def batch(scale: float) -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(1)
    return scale * torch.randn(64, 16, generator=random), torch.arange(64) % 4


@pytest.mark.parametrize(
    ("scale", "depth", "mode", "wanted"),
    [
        (200.0, 3, "evaluated", ["running-statistics"]),
        (1.0, 8, "evaluated", ["running-statistics"]),
        (200.0, 3, "training", []),
        (1.0, 8, "training", []),
        (200.0, 3, "settled", []),
        (1.0, 2, "evaluated", []),
    ],
)
def test_normalizations_that_have_seen_no_batch(
    scale: float, depth: int, mode: str, wanted: list[str]
) -> None:
    model, (x, y) = normalized(16, *[32] * depth), batch(scale)
    if mode == "settled":  # as it is fine-tuned
        for _ in range(60):
            model(x)
    model.train(mode == "training")
    found = diagnose(model, F.cross_entropy, x, y).findings
    assert [one.cause for one in found] == wanted
    told: list[str] = []
    Monitor(model, on_finding=lambda one: told.append(one.cause))
    optimizer = torch.optim.SGD(model.parameters(), 1e-4)
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert told[:1] == wanted


def test_an_interval_that_says_nothing_is_not_shown() -> None:
    few, many = normalized(16, 32, 32), nn.Sequential(
        *[part for _ in range(8) for part in (nn.Linear(16, 16), nn.Tanh())], nn.Linear(16, 4)
    )  # fmt: skip
    assert "95 %" not in diagnose(few, F.cross_entropy, *batch(100.0)).summary
    assert "95 %" in diagnose(many, F.cross_entropy, *batch(1.0)).summary


class Adapted(nn.Module):
    """A frozen layer with a low-rank adapter beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.frozen = nn.Linear(16, 16).requires_grad_(False)
        self.down = nn.Parameter(torch.randn(4, 16) / 4)
        self.up = nn.Parameter(torch.zeros(16, 4))

    def forward(self, x: Any) -> Any:
        return self.frozen(x) + x @ self.down.T @ self.up.T


def test_one_layer_is_not_all_where_adapters_are_trained() -> None:
    model = nn.Sequential(Adapted(), nn.ReLU(), nn.Linear(16, 4))
    assert "there is one layer" not in diagnose(model, F.cross_entropy, *batch(1.0)).summary
    model[0].requires_grad_(False)
    assert "there is one layer" in diagnose(model, F.cross_entropy, *batch(1.0)).summary

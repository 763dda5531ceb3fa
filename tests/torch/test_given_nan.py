"""Data that are not finite, and come to a model's layers by views and casts."""

from collections.abc import Callable
from math import inf, nan

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]
WAYS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "as it is": lambda x: x,
    "view": lambda x: x.view(len(x), -1),
    "flatten": lambda x: x.flatten(1),
    "slice": lambda x: x[:, :8],
    "two views": lambda x: x[:, None].squeeze(1),
    "requires_grad_": lambda x: x.requires_grad_(),
    "detach_": lambda x: x.detach_(),
    "float": lambda x: x.float(),
    "to": lambda x: x.to("cpu"),
}


class Given(nn.Module):
    """A network that first does something to what it is given."""

    def __init__(self, way: str, reentrant: bool | None = None) -> None:
        super().__init__()
        self.way, self.reentrant = way, reentrant
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = WAYS[self.way](x)
        if self.reentrant is None:
            return self.head(self.first(x).relu())
        return self.head(checkpoint(self.first, x, use_reentrant=self.reentrant).relu())


def batch(value: float = nan) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    x = torch.randn(16, 8)
    x[3, 2] = value
    return x, torch.randint(0, 3, (16,))


@pytest.mark.parametrize("value", [nan, inf])
@pytest.mark.parametrize("way", WAYS)
def test_a_diagnosis_blames_the_data(way: str, value: float) -> None:
    x, y = batch(value)
    report = diagnose(Given(way), nn.functional.cross_entropy, x, y)
    assert [one.cause for one in report.findings] == ["nonfinite-input"], str(report)
    assert "x[3, 2]" in report.summary


CALLS = [*((way, None) for way in WAYS), ("requires_grad_", True), ("view", False)]


@pytest.mark.parametrize(("way", "reentrant"), CALLS)
def test_a_monitor_blames_the_data(
    way: str, reentrant: bool | None, recwarn: pytest.WarningsRecorder
) -> None:
    model, (x, y) = Given(way, reentrant), batch()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    for step in range(3):
        optimizer.zero_grad()
        given = x.clone() if step == 1 else torch.randn(16, 8)
        nn.functional.cross_entropy(model(given), y).backward()
        optimizer.step()
    assert [one.cause for one in monitor.report().findings] == ["nonfinite-input"]
    assert not [one for one in recwarn if one.category is UserWarning]


def test_what_a_view_leaves_out_is_not_blamed() -> None:
    """A NaN beyond the slice, and a root of a negative number after it."""

    class Root(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x[:, :4]).sqrt()

    x, _ = batch()
    x[:, 2], x[3, 6] = 0.0, nan
    report = diagnose(Root(4, 1), lambda out, _: out.sum(), x, torch.zeros(16))
    assert [one.cause for one in report.findings] == ["domain-edge"], str(report)


def test_a_mask_that_a_model_is_given_is_no_data_to_blame() -> None:
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scores = nn.Linear(8, 8)

        def forward(self, x: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return (self.scores(x) + mask[None].expand(1, 16, 8)[0]).softmax(-1)

    x, mask = batch(0.0)[0], torch.zeros(16, 8)
    mask[5] = -inf
    report = diagnose(Masked(), lambda out, _: out.square().sum(), (x, mask), torch.zeros(1))
    assert [one.cause for one in report.findings] == ["masked-row"], str(report)

"""Monitor of a softmax that is taken over the rows of the batch."""

import pytest

torch = pytest.importorskip("torch")
from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Classes(nn.Module):
    def __init__(self, axis: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body, self.axis = nn.Sequential(nn.Linear(20, 32), nn.ReLU(), nn.Linear(32, 5)), axis

    def forward(self, x: Tensor) -> Tensor:
        return functional.log_softmax(self.body(x), self.axis)


@pytest.mark.parametrize(("axis", "wrong"), [(0, True), (-2, True), (1, False), (-1, False)])
def test_a_softmax_over_rows_is_told_at_once(axis: int, wrong: bool) -> None:
    model, told = Classes(axis), []
    x = torch.randn(64, 20)
    y = x[:, :5].argmax(1)
    monitor = Monitor(model, on_finding=lambda one: told.append(one.cause))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(12):
        optimizer.zero_grad()
        functional.nll_loss(model(x), y).backward()
        optimizer.step()
    assert told == ["wrong-reduction"] * wrong
    assert [one.cause for one in monitor.report().findings] == told
    assert diagnose(model, functional.nll_loss, x, y).healthy != wrong

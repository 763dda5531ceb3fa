"""`vegrad.torch.diagnose(ignore=…)`: of a chain, and of any other model."""

import pytest

torch = pytest.importorskip("torch")

import vegrad.torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.functional import mse_loss  # noqa: E402


def chain() -> nn.Module:
    layers = [nn.Sequential(nn.Linear(16, 16), nn.Sigmoid()) for _ in range(20)]
    return nn.Sequential(*layers, nn.Linear(16, 1))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.RNN(16, 16, nonlinearity="relu", batch_first=True)
        self.head = nn.Linear(16, 1)
        nn.init.normal_(self.rnn.weight_hh_l0, std=2.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = x[:, None].expand(-1, 30, -1)
        return self.head(self.rnn(steps)[0][:, -1])


@pytest.mark.parametrize("make", [chain, Recurrent])
def test_causes_are_left_out(make: type[nn.Module]) -> None:
    torch.manual_seed(0)
    model, x, target = make(), torch.randn(32, 16), torch.randn(32, 1)
    found = vegrad.torch.diagnose(model, mse_loss, x, target)
    causes = {finding.cause for finding in found.findings}
    assert causes
    assert "" not in causes
    kept = vegrad.torch.diagnose(model, mse_loss, x, target, ignore=causes)
    assert type(kept) is type(found)
    assert kept.healthy
    assert all(count > 0 for count in kept.ignored.values())
    assert "left out, as asked: " in kept.summary
    assert "left out, as asked: " in " ".join(str(kept).split())


def test_names_are_checked_before_anything_runs() -> None:
    def loss(*_: object) -> torch.Tensor:
        raise AssertionError("the model was run")

    with pytest.raises(ValueError, match=r"not 'kollapse' \(did you mean collapse"):
        vegrad.torch.diagnose(nn.Linear(2, 1), loss, None, None, ignore=("kollapse",))

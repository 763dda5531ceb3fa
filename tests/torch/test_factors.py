"""Diagnose networks with a second input that only multiplies, which is no skip connection."""

from collections.abc import Callable

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import Tensor, nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
Step = Callable[[nn.Module, Tensor, Tensor], Tensor]
DEPTH, WIDTH, ROWS = 16, 16, 48
SIDE = (torch.eye(ROWS) + torch.eye(ROWS).roll(4, 0)) / 2
MASK = (torch.arange(ROWS * WIDTH).reshape(ROWS, WIDTH) % 31 > 0).float()
STEPS: dict[str, tuple[Step, Tensor]] = {
    "adjacency before": (lambda layer, x, a: torch.relu(layer(a @ x)), SIDE),
    "adjacency after": (lambda layer, x, a: torch.relu(a @ layer(x)), SIDE),
    "einsum": (lambda layer, x, a: torch.relu(torch.einsum("ij,jk->ik", a, layer(x))), SIDE),
    "mask": (lambda layer, x, m: torch.relu(layer(x)) * m, MASK),
    "mask that is turned": (lambda layer, x, m: m.T.T * torch.relu(layer(x)), MASK),
    "padding": (lambda layer, x, m: torch.relu(layer(x)) * (m > 0), MASK),
    "where": (lambda layer, x, m: torch.where(m > 0, torch.relu(layer(x)), 0), MASK),
    "hidden": (lambda layer, x, m: torch.relu(layer(x)).masked_fill(m <= 0, 0), MASK),
    "scale and shift": (lambda layer, x, m: torch.relu(layer(x) * m + 0.01 * m), MASK),
    "position": (lambda layer, x, m: torch.relu(layer(x)) + 0.01 * m, MASK),
}
LABELS = torch.arange(ROWS) % 4


class Twice(nn.Module):
    """Layers, each beside a second input."""

    def __init__(self, step: Step, *, he: bool, skips: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(WIDTH, WIDTH) for _ in range(DEPTH)])
        self.head, self.step, self.skips = nn.Linear(WIDTH, 4), step, skips
        for layer in self.layers if he else ():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, second: Tensor) -> Tensor:
        for layer in self.layers:
            made = self.step(layer, x, second)
            x = x + 0.2 * made if self.skips else made
        return self.head(x)


def _diagnosed(model: nn.Module, second: Tensor) -> vegrad.Diagnosis:
    torch.manual_seed(1)
    x = torch.randn(ROWS, WIDTH)
    return ours.diagnose(model, nn.functional.cross_entropy, (x, second), LABELS)


@pytest.mark.parametrize("kind", STEPS)
def test_what_multiplies_is_no_way_round_layers(kind: str) -> None:
    step, second = STEPS[kind]
    found = _diagnosed(Twice(step, he=False), second)
    assert found.findings[0].cause == "weight-scale-all"
    assert found.verdict == "vanishing"
    assert found.config["residual"] is (kind in ("scale and shift", "position"))
    assert _diagnosed(Twice(step, he=True), second).healthy


@pytest.mark.parametrize("kind", ["adjacency after", "mask", "hidden"])
def test_true_skips_keep_their_verdict(kind: str) -> None:
    step, second = STEPS[kind]
    found = _diagnosed(Twice(step, he=True, skips=True), second)
    assert found.healthy
    assert found.config["residual"]


def _crossed(layer: nn.Module, x: Tensor, first: Tensor) -> Tensor:
    return first * layer(x) + x


def test_inputs_that_a_layer_has_taken_are_data_wherever_they_multiply() -> None:
    """Of a cross network (DCN): x₀ ⊙ (W x + b) + x."""

    class Crossed(Twice):
        def forward(self, x: Tensor, second: Tensor) -> Tensor:
            return super().forward(x, x)

    found = _diagnosed(Crossed(_crossed, he=False), MASK)
    assert found.healthy
    assert found.config["residual"]


def test_a_monitor_finds_what_the_adjacency_does_not_bring_round() -> None:
    model = Twice(STEPS["adjacency after"][0], he=False)
    monitor = ours.Monitor(model, on_finding=None)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    for _ in range(4):
        loss = nn.functional.cross_entropy(model(torch.randn(ROWS, WIDTH), SIDE), LABELS)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert monitor.report().findings[0].cause == "weight-scale-all"
    monitor.remove()

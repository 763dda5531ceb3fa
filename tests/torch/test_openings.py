"""Monitor of models in which weights begin at 0 by design, in several places in line."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
silent = pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")


class Added(nn.Module):
    """What a layer makes, or passes on, and a branch of two layers, the last of which is 0."""

    def __init__(self, base: nn.Module, width: int, activation: nn.Module) -> None:
        super().__init__()
        self.base, self.act = base.requires_grad_(False), activation
        self.a, self.b = nn.Linear(32, width), nn.Linear(width, 32)
        nn.init.zeros_(self.b.weight)
        nn.init.zeros_(self.b.bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.b(self.act(self.a(x)))


def closed(kind: str) -> nn.Sequential:
    """Return a model of which the branches and the head begin at 0."""
    torch.manual_seed(0)
    branches: list[nn.Module] = []
    for _ in range(2):
        if kind == "adapters":
            branches += [Added(nn.Linear(32, 32), 4, nn.Identity()), nn.GELU()]
        else:
            branches += [Added(nn.Identity(), 32, nn.SiLU())]
    model = nn.Sequential(nn.Linear(16, 32), *branches, nn.Linear(32, 4))
    nn.init.zeros_(model[-1].weight)
    nn.init.zeros_(model[-1].bias)
    return model


def trained(model: nn.Module, count: int, on_finding: str = "raise", blank: int = 0) -> Monitor:
    """Train so many steps, the first few of them on inputs of 0."""
    monitor = Monitor(model, on_finding=on_finding)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], 1e-3)
    centres = torch.randn(4, 16)
    for step in range(count):
        y = torch.randint(0, 4, (32,))
        x = (centres[y] + 0.3 * torch.randn(32, 16)) * (step >= blank)
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return monitor


@pytest.mark.parametrize("kind", ["branches", "adapters"])
def test_what_begins_closed_in_several_places_is_healthy(kind: str) -> None:
    monitor = trained(closed(kind), 1)
    assert monitor.report().healthy
    assert not trained(closed(kind), 40).report().findings


def test_what_is_frozen_at_0_or_dead_besides_is_told_at_once() -> None:
    for weight in (0.0, None):
        model = closed("branches")
        layer = model[1].b
        if weight is None:
            layer = nn.Sequential(nn.Linear(32, 32), nn.ReLU())
            nn.init.constant_(layer[0].bias, -100.0)
            model[1].b = layer
        layer.requires_grad_(False)
        with pytest.raises(RuntimeError, match="step 0, dead"):
            trained(model, 1)


@silent
def test_what_stays_closed_is_told_once_it_should_have_opened() -> None:
    for count, causes in ((3, []), (20, ["closed-gates"])):
        model = closed("branches")
        nn.init.zeros_(model[1].a.weight)
        nn.init.zeros_(model[1].a.bias)
        model[1].act = nn.Identity()
        monitor = trained(model, count, "warn")
        assert [one.cause for one in monitor.report().findings] == causes


@silent
def test_modules_that_seemed_dead_and_are_not_leave_the_verdict() -> None:
    model = nn.Sequential(nn.Linear(16, 32, bias=False), nn.Tanh(), nn.Linear(32, 4))
    monitor = trained(model, 2, "warn", blank=2)
    assert monitor.report().verdict == "dead"
    later = trained(model, 60, "warn", blank=2)
    assert [one.cause for one in later.findings] == ["dead-units"]
    assert later.report().healthy

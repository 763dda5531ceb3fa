"""Parameters that no gradient comes back to, as they ran where gradients are switched off."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor, diagnose  # noqa: E402

ROWS = 48


class Body(nn.Module):
    """Layers, the first of which may run without gradients, or have what they make used so."""

    def __init__(self, layers: int, off: str) -> None:
        super().__init__()
        self.body = nn.ModuleList([nn.Linear(8, 8) for _ in range(layers)])
        self.head, self.off = nn.Linear(8, 3), off

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.off != "body"):
            for one in self.body:
                x = one(x).relu()
        with torch.set_grad_enabled(self.off != "after"):
            x = x.exp()
        return self.head(x)


def data() -> tuple[Tensor, Tensor]:
    x = torch.randn(ROWS, 8, generator=torch.Generator().manual_seed(0))
    return x, x[:, :3].argmax(1)


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("off", ["body", "after"])
def test_all_of_a_body_under_no_grad_is_named(layers: int, off: str) -> None:
    torch.manual_seed(0)
    (found,) = diagnose(Body(layers, off), functional.cross_entropy, *data()).findings
    names = [site.name for site in found.sites if site.kind == "parameter"]
    assert found.cause == "detached"
    assert names == [f"body.{n}.{kind}" for n in range(layers) for kind in ("weight", "bias")]
    assert ("they ran under no_grad()" in found.message) == (off == "body")


@pytest.mark.parametrize("layers", [1, 2])
def test_a_body_that_is_frozen_or_trained_is_left_alone(layers: int) -> None:
    torch.manual_seed(0)
    frozen, trained = Body(layers, "body"), Body(layers, "")
    frozen.body.requires_grad_(False)
    for model in (frozen, trained):
        assert diagnose(model, functional.cross_entropy, *data()).healthy


@pytest.mark.parametrize(("off", "wanted"), [("body", ["detached"]), ("", [])])
def test_a_monitor_names_what_the_optimizer_has_and_no_gradient_reaches(
    off: str, wanted: list[str]
) -> None:
    torch.manual_seed(0)
    model, (x, y) = Body(1, off), data()
    monitor, optimizer = Monitor(model, on_finding=None), torch.optim.Adam(model.parameters())
    for _ in range(20):
        optimizer.zero_grad()
        functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    assert [one.cause for one in monitor.report().findings] == wanted


def test_one_layer_is_healthy_in_words_of_its_own() -> None:
    assert (
        "there is one layer" in diagnose(nn.Linear(8, 3), functional.cross_entropy, *data()).summary
    )

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


class Towers(nn.Module):
    """Two towers whose outputs are multiplied; the first may be cut off."""

    def __init__(self, how: str) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.u = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.i = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 16))
        self.how = how

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.how != "no_grad"):
            u = self.u(a)
        if self.how == "detach":
            u = u.detach()
        if self.how == "numpy":
            u = torch.tensor(u.detach().numpy())
        if self.how == "looked at":
            self.largest = u.detach().amax()
        return (u * self.i(b)).sum(1)


HOWS = [("detach", True), ("no_grad", True), ("numpy", True), ("looked at", False), ("", False)]


@pytest.mark.parametrize(("how", "cut"), HOWS)
def test_a_branch_that_is_cut_off_beside_one_that_learns(how: str, cut: bool) -> None:
    model, (a, b) = Towers(how), torch.randn(2, 64, 12)
    y = ((a * b).sum(1) > 0).float()
    loss = functional.binary_cross_entropy_with_logits
    found = diagnose(model, loss, (a, b), y)
    assert [one.cause for one in found.findings] == ["detached"] * cut
    monitor, optimizer = Monitor(model, on_finding=None), torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        optimizer.zero_grad()
        loss(model(a, b), y).backward()
        optimizer.step()
    assert [one.cause for one in monitor.findings] == ["detached"] * cut
    if cut:
        names = {site.name for site in found.findings[0].sites if site.kind == "parameter"}
        assert names == {f"u.{n}.{kind}" for n in (0, 2) for kind in ("weight", "bias")}


class Teacher(nn.Module):
    """A student that learns what a teacher makes, which is cut off, as it is to be."""

    def __init__(self, within: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.student, self.teacher, self.within = nn.Linear(8, 4), nn.Linear(8, 4), within
        self.pooler = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        self.pooler(x)
        made, wanted = self.student(x), self.teacher(x).detach()
        return (made - wanted).square().mean() if self.within else (made, wanted)


@pytest.mark.parametrize("within", [False, True])
def test_a_teacher_is_meant_to_be_cut_off(within: bool) -> None:
    def loss(out: tuple[Tensor, Tensor] | Tensor) -> Tensor:
        return functional.mse_loss(*out) if isinstance(out, tuple) else out

    found = diagnose(Teacher(within), loss, data()[0])
    assert found.healthy
    assert "first module" not in found.summary

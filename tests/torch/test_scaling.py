"""Monitor beside a GradScaler: skips at its beginning, fused steps, and a factor that goes to 0."""

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import FindingWarning, Monitor  # noqa: E402
from vegrad.torch.monitor.scaling import FEW, LEAST  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Odd(nn.Module):
    """A network whose gradient is NaN once it is to be."""

    def __init__(self) -> None:
        super().__init__()
        self.below, self.above = nn.Linear(16, 16), nn.Linear(16, 4)
        self.is_lost = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits."""
        x = self.below(x).relu()
        return self.above(x + (0 * x).sum().sqrt() if self.is_lost else x)


def train(
    steps: int = 60,
    *,
    scale: float = 2.0**16,
    fused: bool = False,
    half: bool = False,
    lost: int = 1000,
    parts: int = 1,
) -> tuple[Monitor, torch.amp.GradScaler]:
    """Train with a GradScaler; the gradient is NaN from step `lost` on."""
    torch.manual_seed(0)
    model, x = Odd(), torch.randn(256, 16)
    target = x[:, :4].argmax(1)
    optimizer = torch.optim.AdamW(model.parameters(), 0.01, fused=fused)
    monitor, scaler = Monitor(model), torch.amp.GradScaler("cpu", init_scale=scale)
    for step in range(steps):
        model.is_lost = step >= lost
        optimizer.zero_grad()
        for _ in range(parts):
            rows = torch.randint(256, (32,))
            with torch.autocast("cpu", torch.float16, enabled=half):
                loss = nn.functional.cross_entropy(model(x[rows]), target[rows]) / parts
            scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    return monitor, scaler


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("parts", [1, 2])
def test_a_factor_that_is_large_is_none_of_the_losses(fused: bool, parts: int) -> None:
    """A loss that only the factor has made infinite is finite, and so are its gradients."""
    monitor, scaler = train(scale=2.0**127, fused=fused, parts=parts)
    assert scaler.get_scale() == 2.0**127
    report = monitor.report()
    assert not report.findings, str(report)
    losses = monitor.history.losses
    assert losses[-1] < losses[0] < 2


@pytest.mark.parametrize("parts", [1, 2])
def test_gradients_that_a_fused_step_scales_back_have_their_own_size(parts: int) -> None:
    plain, fused = (train(fused=one, parts=parts)[0] for one in (False, True))
    assert not fused.report().findings
    assert fused.history.gradient_norm == pytest.approx(plain.history.gradient_norm, rel=1e-3)
    for one, two in zip(fused.updates.samples(), plain.updates.samples(), strict=True):
        got, want = ([update.gradient for update in each.updates] for each in (one, two))
        assert got == pytest.approx(want, rel=1e-3)


def test_losses_that_were_scaled_before_their_backward_passes_are_known() -> None:
    model, x = nn.Linear(8, 1), torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    monitor, scaler = Monitor(model), torch.amp.GradScaler("cpu")
    for _ in range(5):
        optimizer.zero_grad()
        out = model(x)
        first, second = scaler.scale(out.square().mean()), scaler.scale((out - 1).square().mean())
        first.backward(retain_graph=True)
        second.backward()
        scaler.step(optimizer)
        scaler.update()
        want = (out.square() + (out - 1).square()).mean().item()
        assert monitor.history.losses[-1] == pytest.approx(want)


@pytest.mark.parametrize("fused", [False, True])
def test_steps_that_are_skipped_at_the_beginning_are_no_trouble(fused: bool) -> None:
    monitor, scaler = train(scale=2.0**40, fused=fused, half=True)
    assert LEAST < scaler.get_scale() < 2.0**30
    report = monitor.report()
    assert not report.findings, str(report)
    assert monitor.steps < 60 - FEW


def test_a_step_that_is_taken_after_some_were_skipped_has_its_loss() -> None:
    model, x = nn.Linear(8, 1), torch.randn(16, 8)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    monitor, scaler = Monitor(model), torch.amp.GradScaler("cpu")
    for step in range(60):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        lost = 33 <= step < 32 + FEW
        scaler.scale(loss + (0 * model.weight).sum().sqrt() if lost else loss).backward()
        scaler.step(optimizer)
        scaler.update()
    losses = monitor.history.losses
    assert len(losses) == 60 - FEW + 1
    assert all(one > 0 for one in losses)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("lost", [0, 33])
def test_a_factor_that_goes_to_0_is_told_while_no_step_is_taken(fused: bool, lost: int) -> None:
    with pytest.warns(FindingWarning, match="makes a gradient that is not finite"):
        monitor, _ = train(lost + 30, fused=fused, lost=lost)
    assert monitor.report().verdict == "nonfinite"
    assert monitor.nonfinite is not None
    assert monitor.nonfinite.step == lost

"""A monitor's record of a training as a run."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch import SGD, Monitor, clip_grad_norm_, clip_grad_value_  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def trained(clip: Any = None, steps: int = 30, **options: Any) -> Any:
    """Return a monitor of a training, and the norms before the clip."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 1))
    optimizer = options.pop("optimizer", torch.optim.SGD)(model.parameters(), lr=0.01)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    monitor, norms = Monitor(model, on_finding=None, **options), []
    for _ in range(steps):
        x = torch.randn(16, 8)
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x), x.sum(1, keepdim=True)).backward()
        norms.append(float(torch.cat([p.grad.flatten() for p in model.parameters()]).norm()))
        if clip is not None:
            clip(model.parameters())
        optimizer.step()
        schedule.step()
    return monitor, norms


@pytest.mark.parametrize(
    "clip", [lambda p: nn.utils.clip_grad_norm_(p, 2.0), lambda p: clip_grad_norm_(p, 2.0)]
)
def test_norms_before_a_clip_and_after_it(clip: Any) -> None:
    monitor, norms = trained(clip)
    run = monitor.run
    np.testing.assert_allclose(run.gradient_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(run.clipped_norm, np.minimum(norms, 2.0), rtol=1e-5)
    assert (run.clipped_norm < run.gradient_norm - 1e-3).any()
    joint = np.sqrt(np.sum(4.0**run.gradient_log2, axis=1))
    np.testing.assert_allclose(joint, norms, rtol=1e-5)
    assert run.about["settings"]["clip"] == 2.0


def test_norms_of_an_optimizer_that_clips_by_itself() -> None:
    rule = vegrad.clipping.GlobalNorm(2.0)
    monitor, norms = trained(optimizer=lambda p, lr: SGD(p, lr, clip=rule))
    run = monitor.run
    np.testing.assert_allclose(run.gradient_norm, norms, rtol=1e-5)
    np.testing.assert_allclose(run.clipped_norm, np.minimum(norms, 2.0), rtol=1e-5)
    assert "2.0" in str(run.about["settings"]["optimizer: clip"])


def test_a_clip_of_a_part_or_by_value_is_no_clip_of_the_joint_norm() -> None:
    for clip in (
        lambda p: clip_grad_norm_(list(p)[:2], 0.1),
        lambda p: clip_grad_value_(p, 0.1),
        None,
    ):
        monitor, norms = trained(clip)
        run = monitor.run
        np.testing.assert_array_equal(run.gradient_norm, run.clipped_norm)
        np.testing.assert_array_equal(run.gradient_norm, monitor.history.gradient_norm)
        assert (run.gradient_norm <= np.array(norms) * (1 + 1e-6)).all()


def test_the_columns() -> None:
    monitor, _ = trained()
    run = monitor.run
    assert run.modules == ("0", "2")
    assert run.step.tolist() == list(range(30))
    np.testing.assert_array_equal(run.loss, monitor.history.loss)
    np.testing.assert_allclose(run.learning_rate, 0.01 * 0.9 ** np.arange(30))
    assert np.isfinite(run.update_ratio[:3]).all()
    sizes = np.hypot(*monitor.history.gradient_norms[:, :2].T)
    np.testing.assert_allclose(2.0 ** run.gradient_log2[:, 0], sizes)
    assert run.floor_log2 == -126
    assert run.about["settings"]["optimizer"] == "SGD"
    assert monitor.report().run.steps == 30


def test_no_step_and_many() -> None:
    monitor = Monitor(nn.Linear(2, 2))
    assert monitor.run.steps == 0
    assert monitor.run.gradient_log2.shape == (0, 0)
    monitor, _ = trained(steps=2300, every=2)
    run = monitor.run
    assert run.steps <= 1000 + 21 * len(run.spikes) + len(run.noted)
    assert (monitor.history.looked.step % 2 == 0).all()
    assert np.isfinite(run.update_ratio).any()


def test_modules_without_a_gradient_are_left_out_and_0_is_minus_infinity() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 1))
    model[0].requires_grad_(False)
    monitor = Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model[1:].parameters(), lr=0.1)
    for step in range(3):
        optimizer.zero_grad()
        (model(torch.randn(8, 4)).mean() * (step > 0)).backward()
        optimizer.step()
    run = monitor.run
    assert run.modules == ("1", "3")
    assert (run.gradient_log2[0] == -np.inf).all()
    assert np.isfinite(run.gradient_log2[1:]).all()


def test_loggers_get_both_norms_where_a_clip_was_heard() -> None:
    monitor, norms = trained(lambda p: clip_grad_norm_(p, 2.0))
    numbers = monitor.scalars()
    assert numbers["norm_before_clip"] == pytest.approx(norms[-1])
    assert numbers["norm_after_clip"] == pytest.approx(min(norms[-1], 2.0))
    assert "norm_before_clip" not in trained()[0].scalars()


def test_a_number_that_is_not_finite() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    monitor = Monitor(model, on_finding=None)
    for step in range(8):
        optimizer.zero_grad()
        loss = model(torch.randn(8, 8)).square().mean()
        (loss / (0 if step == 5 else 1)).backward()
        optimizer.step()
    run = monitor.run
    assert run.nonfinite == {"loss": 5.0, "gradient_norm": 5.0}
    assert vegrad.compare(trained()[0], run).first.step <= 5


def test_steps_that_a_scaler_skips_are_no_fault() -> None:
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**126)
    monitor = Monitor(model, on_finding=None)
    for _ in range(12):
        optimizer.zero_grad()
        scaler.scale(model(100 * torch.randn(8, 4)).square().mean()).backward()
        scaler.step(optimizer)
        scaler.update()
    assert monitor.run.nonfinite == {}

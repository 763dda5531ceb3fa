"""The log of a monitor: what it has seen is in the file, also after a kill and a resume."""

from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402


def model_of(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))


def train(
    monitor: Monitor, model: nn.Module, steps: int, *, rate: float = 0.1, clip: float | None = None
) -> list[float]:
    optimizer = torch.optim.SGD(model.parameters(), lr=rate)
    losses = []
    for step in range(steps):
        x = torch.randn(16, 6)
        loss = functional.cross_entropy(model(x), x[:, :3].argmax(1))
        optimizer.zero_grad()
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        monitor.step(batch=step)
        losses.append(float(loss.detach()))
    return losses


def test_steps_are_as_the_monitor_has_them(tmp_path: Path) -> None:
    model, path = model_of(), tmp_path / "run.jsonl"
    monitor = Monitor(model, log=path)
    losses = train(monitor, model, 100, clip=0.2)
    monitor.remove()
    run, kept = vegrad.read_run(path), monitor.run
    assert np.allclose(run.loss, losses, rtol=1e-5)
    assert np.allclose(run.gradient_norm, kept.gradient_norm, rtol=1e-5)
    assert np.allclose(run.clipped_norm, kept.clipped_norm, rtol=1e-5)
    assert run.clipped_norm.max() <= 0.2001
    assert (run.learning_rate == 0.1).all()
    assert run.modules == kept.modules == ("0", "2", "4")
    known = np.isfinite(run.gradient_log2[:, 0])
    assert known[:64].all()
    assert known.sum() == 64 + 18
    assert np.allclose(run.gradient_log2[known], kept.gradient_log2[known], atol=0.006)
    known = np.isfinite(run.update_ratio)
    assert np.allclose(run.update_ratio[known], kept.update_ratio[known], rtol=1e-5)
    assert known.sum() > 20
    assert run.floor_log2 == -126
    assert run.about["settings"]["optimizer"] == "SGD"


def test_modules_are_in_the_order_in_which_they_run(tmp_path: Path) -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last, self.first = nn.Linear(4, 3), nn.Linear(6, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.last(self.first(x).tanh())

    model = Turned()
    monitor = Monitor(model, log=tmp_path / "run.jsonl")
    train(monitor, model, 3)
    run = vegrad.read_run(tmp_path / "run.jsonl")
    assert run.modules == ("first", "last")
    assert np.allclose(run.gradient_log2, monitor.run.gradient_log2, atol=0.006)


def test_a_resumed_training_goes_on_in_its_log(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    model = model_of()
    monitor = Monitor(model, log=path)
    train(monitor, model, 30)
    monitor.remove()
    again = Monitor(model, log=path, first_step=20)
    losses = train(again, model, 15)
    assert again.steps == 35
    again.remove()
    run = vegrad.read_run(path)
    assert run.step.tolist() == list(range(35))
    assert np.allclose(run.loss[20:], losses, rtol=1e-5)


def test_a_log_of_another_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Monitor(model_of(), log=path).remove()
    with pytest.raises(ValueError, match="whose modules must be 3"):
        Monitor(nn.Sequential(nn.Linear(6, 3)), log=path)
    one = Monitor(model_of(), log=path)
    with pytest.raises(ValueError, match="is being written by process"):
        Monitor(model_of(), log=path)
    one.remove()
    with pytest.raises(TypeError, match="log must be the path of a file, not int"):
        Monitor(model_of(), log=3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="first_step must be at least 0"):
        Monitor(model_of(), first_step=-1)


def test_findings_and_spikes_are_in_the_log(tmp_path: Path) -> None:
    path, model = tmp_path / "run.jsonl", model_of()
    monitor = Monitor(model, log=path, on_finding=None)
    train(monitor, model, 30)
    with torch.no_grad():
        model[4].weight.mul_(1000)
    train(monitor, model, 20, rate=50.0)
    assert monitor.findings
    run = vegrad.read_run(path)
    told = [(one.finding.kind, one.finding.cause) for one in run.noted]
    assert told == [(one.kind, one.cause) for one in monitor.findings]
    assert [one.step for one in run.spikes] == [one.step for one in monitor.spikes]
    assert len(run.spikes[0].window) == len(monitor.spikes[0].window)
    assert not vegrad.diagnose_run(run).healthy


def test_a_finding_that_is_raised_is_in_the_log(tmp_path: Path) -> None:
    path, model = tmp_path / "run.jsonl", model_of()
    monitor = Monitor(model, log=path, on_finding="raise")
    with torch.no_grad():
        model[0].weight.mul_(float("nan"))
    with pytest.raises(vegrad.FindingError):
        train(monitor, model, 3)
    assert vegrad.read_run(path).noted[0].finding.kind == "nonfinite"


def test_losses_that_are_given_later(tmp_path: Path) -> None:
    path, model = tmp_path / "run.jsonl", nn.Linear(3, 2)
    monitor = Monitor(model, log=path)
    for step in range(4):
        model.zero_grad()
        model(torch.ones(2, 3)).backward(torch.ones(2, 2))  # whose loss nobody knows
        monitor.step(float(step) if step != 2 else None)
    monitor.remove()
    run = vegrad.read_run(path)
    assert run.loss[[0, 1, 3]].tolist() == [0, 1, 3]
    assert np.isnan(run.loss[2])
    assert run.nonfinite == {}


def test_steps_that_are_not_looked_at_have_a_line_too(tmp_path: Path) -> None:
    path, model = tmp_path / "run.jsonl", model_of()
    monitor = Monitor(model, every=5, log=path)
    train(monitor, model, 21)
    run = vegrad.read_run(path)
    assert run.step.tolist() == list(range(21))
    assert np.isfinite(run.gradient_norm).all()

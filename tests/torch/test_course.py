"""What a monitor says of the course of a training: while it runs, and after it went wrong."""

import math
import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import vegrad.diagnosis.alarms

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.runs.spikes import Spikes, SpikeStep  # noqa: E402
from vegrad.torch import FindingError, FindingWarning, Monitor  # noqa: E402
from vegrad.torch.monitor.looks import alike  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def network(*widths: int, act: type[nn.Module] = nn.ReLU, gain: float = 1.0) -> Any:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b), act()]
        nn.init.kaiming_normal_(layers[-2].weight)
        nn.init.zeros_(layers[-2].bias)
        layers[-2].weight.data.mul_(gain)
    return nn.Sequential(*layers[:-1])


def train(
    model: Any,
    rate: float = 0.05,
    steps: int = 40,
    scale: float = 1.0,
    target_scale: float = 1.0,
    optimizer: Any = torch.optim.SGD,
    **options: Any,
) -> Any:
    monitor, made = Monitor(model, **options), optimizer(model.parameters(), rate)
    random = torch.Generator().manual_seed(1)
    for step in range(steps):
        x = torch.randn(32, 8, generator=random)
        y = target_scale * (x[:, :1] + x[:, 1:2] * x[:, 2:3])
        made.zero_grad()
        loss = (model(scale * x) - y).square().mean()
        loss.backward()
        made.step()
        monitor.step(loss, batch=f"batch {step}")
        if monitor.stopped:
            break
    return monitor


def causes(monitor: Any) -> list[str]:
    return [one.cause for one in monitor.report().findings]


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"rate": 0.5}, "learning-rate-high"),
        ({"rate": 1e-6, "steps": 80}, "learning-rate-low"),
        ({"scale": 200.0}, "input-scale"),
        ({"target_scale": 1e4, "rate": 1e-3}, "target-scale"),
        ({"rate": 3.0, "optimizer": torch.optim.Adam}, "learning-rate-high"),
    ],
)
def test_the_steps_show_the_cause(options: dict[str, Any], cause: str) -> None:
    monitor = train(network(8, 32, 32, 1), on_finding=None, **options)
    assert causes(monitor)[:1] == [cause]
    assert cause in str([one.cause for one in monitor.findings])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": 1e-3, "optimizer": torch.optim.Adam},
        {"scale": 5.0, "rate": 1e-3, "optimizer": torch.optim.Adam},
        {"target_scale": 20.0, "rate": 1e-2, "optimizer": torch.optim.Adam},
        {"rate": 2e-4, "steps": 80},
    ],
)
def test_what_is_nearly_wrong_is_healthy(options: dict[str, Any]) -> None:
    assert causes(train(network(8, 32, 32, 1), **options)) == []


def test_a_divergence_is_not_blamed_on_an_operation() -> None:
    monitor = train(network(8, 32, 32, 32, 1), 1.0, on_finding=None)
    assert monitor.nonfinite is not None
    found = monitor.report().findings
    assert [one.cause for one in found] == ["learning-rate-high"]
    assert found[0].edit.rate == pytest.approx(0.1)
    assert "division" not in found[0].message + found[0].advice


def test_a_nan_out_of_the_blue_is_no_divergence() -> None:
    model = network(8, 32, 1)
    monitor, made = (
        Monitor(model, on_finding=None),
        torch.optim.SGD(model.parameters(), 0.05),
    )
    for step in range(20):
        x = torch.randn(32, 8)
        made.zero_grad()
        (model(x).square().mean() * (torch.nan if step == 12 else 1.0)).backward()
        made.step()
    assert "learning-rate-high" not in causes(monitor)


def test_rows_that_become_one_have_collapsed() -> None:
    model = network(8, 32, 16)
    monitor = Monitor(model, on_finding=None)
    for _ in range(60):
        model.zero_grad()
        out = model(torch.randn(32, 8))
        (out - out.detach().mean(0)).square().mean().add(1.0).backward()
        monitor.step()
        with torch.no_grad():
            model[0].weight.mul_(0.7)
            model[0].bias.add_(0.1)
    assert "collapse" in causes(monitor)


def test_each_cause_is_said_once_and_at_its_step() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        train(network(8, 32, 32, 1), 0.5)
    said = [one for one in caught if issubclass(one.category, FindingWarning)]
    assert len(said) == 1
    assert said[0].filename == __file__
    assert "learning-rate-high" in str(said[0].message)
    assert str(said[0].message).startswith("step ")
    assert said[0].message.finding.cause == "learning-rate-high"  # type: ignore[union-attr]


def test_a_finding_is_given_raised_or_stops() -> None:
    heard: list[Any] = []
    train(network(8, 32, 32, 1), 0.5, on_finding=heard.append)
    assert [one.cause for one in heard] == ["learning-rate-high"]
    with pytest.raises(FindingError, match="learning-rate-high") as raised:
        train(network(8, 32, 32, 1), 0.5, on_finding="raise")
    assert raised.value.finding.cause == "learning-rate-high"
    monitor = train(network(8, 32, 32, 1), 0.5, on_finding="stop")
    assert monitor.stopped
    assert monitor.steps < 40
    silent = train(network(8, 32, 32, 1), 0.5, ignore=("learning-rate-high",))
    assert "learning-rate-high" not in causes(silent)


def test_wrong_answers_to_findings() -> None:
    for wrong, error in (("shout", ValueError), (3, TypeError)):
        with pytest.raises(error, match="on_finding must be a function"):
            Monitor(network(8, 1), on_finding=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="ignore must be names of causes"):
        Monitor(network(8, 1), ignore="collapse")


def test_the_steps_around_a_spike_are_kept() -> None:
    model = network(8, 32, 1)
    monitor = Monitor(model, on_finding=None)
    made = torch.optim.SGD(model.parameters(), 1e-4)
    for step in range(40):
        made.zero_grad()
        loss = model(torch.ones(32, 8) * (50 if step == 20 else 1)).square().mean()
        loss.backward()
        made.step()
        monitor.step(loss, batch=step + 100)
    (spike,) = monitor.spikes
    assert (spike.step, spike.batch) == (20, 120)
    assert spike.loss_times > 100
    assert [one.step for one in spike.window] == list(range(10, 31))
    assert spike.window[0].batch == 110
    assert np.isfinite([one.loss for one in spike.window]).all()
    sampled = [one.update for one in spike.window if one.update == one.update]
    assert len(sampled) >= 4
    assert all(0 < one < 1 for one in sampled)


def test_a_loss_that_is_nan_is_a_spike_too_and_one_that_falls_is_none() -> None:
    spikes = Spikes()
    losses = [*np.geomspace(10, 0.1, 30), math.nan]
    seen = [spikes.see(SpikeStep(n, None, loss, 1.0, math.nan)) for n, loss in enumerate(losses)]
    assert seen == [False] * 30 + [True]


def test_fit_and_monitors_warn_with_the_same_class() -> None:
    assert vegrad.diagnosis.alarms.FindingWarning is FindingWarning
    assert vegrad.diagnosis.alarms.FindingError is FindingError


@pytest.mark.parametrize(("apart", "wanted"), [(0.0, 1.0), (1.0, 0.5), (100.0, 0.0)])
def test_what_rows_have_in_common_is_a_share_of_their_size(apart: float, wanted: float) -> None:
    torch.manual_seed(0)
    output = torch.ones(600, 40) + apart * torch.randn(600, 40)
    assert alike(output) == pytest.approx(wanted, abs=0.05)


def test_a_dozen_scalars_or_all() -> None:
    monitor = train(network(8, 32, 32, 1))
    few, every = monitor.scalars(), monitor.scalars(all=True)
    assert len(few) <= 16
    assert {"loss", "gradient_norm", "update_ratio", "findings", "spikes"} <= few.keys()
    assert few.keys() < every.keys()
    assert "gradient_norm/0.weight" in every
    assert all(type(value) is float for value in every.values())


def test_a_binary_cross_entropy_below_zero_is_the_targets() -> None:
    for top, wanted in ((4.0, ["target-range"]), (1.0, [])):
        model = network(8, 32, 1)
        monitor = Monitor(model, on_finding=None)
        made = torch.optim.SGD(model.parameters(), 0.05)
        for _ in range(60):
            x = torch.randn(32, 8)
            y = top * (x[:, :1] > 0)
            made.zero_grad()
            nn.functional.binary_cross_entropy_with_logits(model(x), y).backward()
            made.step()
        assert causes(monitor) == wanted


def test_a_rate_that_was_raised_is_the_one_that_is_named() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    monitor = Monitor(model, on_finding=None)
    x = torch.randn(64, 8)
    for step in range(50):
        if step == 43:  # of which no sample would be taken
            optimizer.param_groups[0]["lr"] = 5.0
        loss = (model(x) - x.sum(1, keepdim=True)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    (one,) = [one for one in monitor.findings if one.cause == "learning-rate-high"]
    assert one.advice.startswith("lower the learning rate from 5,")
    assert "one of the last changed weights by" in one.message
    assert one.evidence["moved"] > 1

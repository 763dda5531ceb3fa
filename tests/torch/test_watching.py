"""Monitor in real loops: several optimizers, outputs of all kinds, saved models."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from typing import Any, NamedTuple

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.torch import AdamW, Monitor  # noqa: E402

from tests.torch.test_monitor import mlp, train  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("make", [torch.optim.SGD, AdamW])
def test_optimizers_that_share_a_step(make: Any, every: int) -> None:
    model, plain = mlp(), mlp()
    one = train(plain, torch.ones(8, 16), 5, every=every)
    monitor = Monitor(model, every=every)
    optimizers = [make(model[n].parameters(), lr=0.01) for n in (0, 2, 4)]
    for step in range(5):
        for optimizer in optimizers:
            optimizer.zero_grad()
        model(torch.ones(8, 16)).square().mean().backward()
        for optimizer in optimizers[: 1 + step]:  # not all of them at every step
            optimizer.step()
    assert (monitor.steps, len(monitor.history)) == (one.steps, len(one.history))
    assert not np.isnan(monitor.history.looked.activation_rms).any()
    np.testing.assert_allclose(
        monitor.history.gradient_norms[0], one.history.gradient_norms[0], rtol=1e-6
    )


@pytest.mark.parametrize("every", [1, 2])
def test_optimizers_in_turns_have_steps_of_their_own(every: int) -> None:
    model = mlp()
    monitor = Monitor(model, every=every)
    for _ in range(2):
        for part in (model[0], model[2]):
            optimizer = torch.optim.SGD(part.parameters(), 0.01)
            model(torch.ones(8, 16)).square().mean().backward()
            optimizer.step()
    assert monitor.steps == 4


@dataclass
class Of:
    values: Any
    extra: Any = None


class Named(NamedTuple):
    values: Any
    keys: Any


class Wrapped(nn.Module):
    def __init__(self, wrap: Callable[[Any], Any]) -> None:
        super().__init__()
        self.weight, self.wrap = nn.Parameter(torch.eye(16)), wrap

    def forward(self, x: torch.Tensor) -> Any:
        return self.wrap(x @ self.weight)


@pytest.mark.parametrize(
    ("wrap", "take"),
    [
        (Of, lambda out: out.values),
        (lambda y: Of(None, [y]), lambda out: out.extra[0]),
        (lambda y: Named(y, 1), lambda out: out.values),
        (lambda y: {"a": 0, "b": y}, lambda d: d["b"]),
        (lambda y: [(y.argmax(1), y)], lambda out: out[0][1]),
    ],
)
def test_outputs_of_all_kinds_are_read(wrap: Any, take: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), Wrapped(wrap))
    monitor = train(model, torch.ones(8, 16), 1, lambda out: take(out).square().mean())
    last = monitor.history[0]
    assert last.activation_rms[1] == pytest.approx(last.activation_rms[0])
    assert last.delta_norms[1] > 0


class Unpicked:
    values = 3  # not a method


def test_outputs_that_hold_no_tensor_are_left_alone() -> None:
    model = nn.Sequential(nn.Linear(16, 16), Wrapped(lambda y: Unpicked()))
    monitor = Monitor(model)
    model(torch.ones(8, 16))
    monitor.step()
    assert np.isnan(monitor.history[0].activation_rms[1])


def test_a_watched_model_can_be_pickled() -> None:
    model = mlp()
    monitor = Monitor(model)
    kept = pickle.loads(pickle.dumps(model))
    kept(torch.full((8, 16), 1e9)).sum().backward()
    model(torch.ones(8, 16)).sum().backward()
    monitor.step()
    assert (monitor.history[0].activation_rms < 10).all()
    for name, parameter in kept.named_parameters():
        assert torch.equal(parameter, model.get_parameter(name))


def test_steps_that_are_measured_are_not_looked_at() -> None:
    model = mlp()
    monitor = train(model, torch.ones(8, 16), 1)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)

    def step() -> None:
        model(torch.ones(8, 16)).sum().backward()
        optimizer.step()

    for wrong, error, words in (
        ((3,), TypeError, "step must be a function that does a step, not int"),
        ((step, 0), ValueError, "repeats must be at least 1, not 0"),
    ):
        with pytest.raises(error, match=words):
            monitor.measure_flush(*wrong)
    assert monitor.measure_flush(step, 2) > 0
    assert (monitor.steps, len(monitor.history)) == (7, 1)
    step()
    assert (monitor.steps, len(monitor.history)) == (8, 2)


def test_wrong_arguments_leave_the_model_alone() -> None:
    model = mlp()
    for name in ("every", "details", "keep"):
        for wrong, error, words in (
            (0, ValueError, f"{name} must be at least 1, not 0"),
            (-1, ValueError, f"{name} must be at least 1, not -1"),
            (2.5, TypeError, f"{name} must be an integer, not float"),
            ("3", TypeError, f"{name} must be an integer, not str"),
        ):
            with pytest.raises(error, match=words):
                Monitor(model, **{name: wrong})
    for name in ("details", "keep"):
        with pytest.raises(TypeError, match=f"{name} must be an integer, not NoneType"):
            Monitor(model, **{name: None})
    for wrong, error, words in (
        (2, ValueError, "budget must be a share of the steps' time, 0.02 for 2 %, not 2"),
        (-1, ValueError, "budget must be at least 0, not -1"),
        ("2%", TypeError, "budget must be a real number, not str"),
    ):
        with pytest.raises(error, match=words):
            Monitor(model, budget=wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="optimizer must be a torch optimizer, not str"):
        Monitor(model, optimizer="adam")  # type: ignore[arg-type]
    assert not any(module._forward_hooks for module in model)
    assert len(Monitor(model, keep=10**30).history) == 0


class Adapter(nn.Module):
    """A frozen layer with a layer of low rank beside it that begins at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16).requires_grad_(False)
        self.down, self.up = nn.Linear(16, 2, bias=False), nn.Linear(2, 16, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> Any:
        return self.layer(x) + self.up(self.down(x))


def test_what_begins_at_zero_is_no_finding() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(Adapter(), nn.Tanh(), Adapter(), nn.Tanh(), nn.Linear(16, 4))
    for steps in (1, 2, 5):
        torch.manual_seed(0)
        report = train(model, torch.randn(8, 16), steps).report()
        assert report.healthy, report.summary
        for part in (model[0], model[2]):
            nn.init.zeros_(part.up.weight)
    report = train(nn.Sequential(*mlp(3, nn.ReLU)[:-1]), torch.zeros(8, 16), 1).report()
    assert report.healthy


def test_a_gradient_that_is_cut_off_is_not_too_small_for_its_dtype() -> None:
    model = mlp(5, nn.ReLU)
    nn.init.constant_(model[2].bias, -100.0)
    report = train(model, torch.randn(8, 16), 1).report()
    assert [finding.kind for finding in report.findings] == ["dead"]  # which is why
    assert "too small" not in str(report)
    model = mlp(60, nn.Sigmoid)
    report = train(model, torch.randn(8, 16), 1).report()
    assert "too small for its dtype" in " ".join(str(report).split())


@pytest.mark.filterwarnings("error")
def test_outputs_are_saved_without_a_word() -> None:
    model = nn.Sequential(*mlp()[:-1])
    monitor = Monitor(model)
    output = model(torch.ones(8, 16))
    torch.save(output, BytesIO())
    output.sum().backward()
    monitor.step()
    assert monitor.history[0].delta_norms[4] > 0

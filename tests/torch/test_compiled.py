"""Monitors of models, and of whole training steps, that torch.compile compiles."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch.nn import functional  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

from tests.torch.test_monitor import mlp, train  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore"),
]


def watched(before: bool) -> tuple[torch.nn.Module, Monitor]:
    model = mlp()
    if before:
        monitor = Monitor(model)
        return torch.compile(model, backend="eager"), monitor
    model = torch.compile(model, backend="eager")
    return model, Monitor(model)


def step(model: torch.nn.Module, optimizer: torch.optim.Optimizer, x: torch.Tensor) -> None:
    optimizer.zero_grad()
    model(x).square().mean().backward()
    optimizer.step()


@pytest.mark.parametrize("before", [True, False])
def test_gradients_of_compiled_models(before: bool) -> None:
    plain = train(mlp(), torch.ones(8, 16)).history.gradient_norms
    model, monitor = watched(before)
    assert monitor.parameters[0] == "0.weight"
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(3):
        step(model, optimizer, torch.ones(8, 16))
    np.testing.assert_allclose(monitor.history.gradient_norms, plain, rtol=1e-5)
    assert str(monitor.report()).startswith("Sequential, step 2")


@pytest.mark.parametrize("steps", [3, 45])  # looked at or not
@pytest.mark.parametrize("sick", ["weight", "input"])
def test_a_nan_is_named_where_calls_are_heard(sick: str, steps: int) -> None:
    model, monitor = watched(before=False)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        step(model, optimizer, torch.ones(8, 16))
    x = torch.ones(8, 16)
    if sick == "weight":
        dict(model.named_parameters())["_orig_mod.2.weight"].data[0, 0] = np.nan
    else:
        x[5, 3] = np.nan
    step(model, optimizer, x)
    found = monitor.report().findings[0]
    said = {"weight": "parameter 2.weight[0, 0]", "input": "x[5, 3] is nan"}[sick]
    assert found.cause == {"weight": "nonfinite-weights", "input": "nonfinite-input"}[sick]
    assert said in found.message


def test_nothing_is_said_of_modules_that_nobody_saw() -> None:
    model, monitor = watched(before=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    step(model, optimizer, torch.full((8, 16), np.nan))
    found = monitor.report().findings[0]
    assert "no module was seen" in found.message
    assert "through the modules" not in found.message


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_training_step_that_is_compiled_as_a_whole(backend: str) -> None:
    losses = []
    for watch in (False, True):
        model = mlp()
        monitor = Monitor(model) if watch else None
        optimizer = torch.optim.Adam(model.parameters(), 1e-3)

        @torch.compile(backend=backend)
        def whole(x: torch.Tensor) -> torch.Tensor:
            optimizer.zero_grad()  # noqa: B023
            loss = functional.mse_loss(model(x), x)  # noqa: B023
            loss.backward()
            optimizer.step()  # noqa: B023
            return loss.detach()

        torch.manual_seed(1)
        losses.append([float(whole(torch.randn(8, 16))) for _ in range(20)])
    assert losses[0] == losses[1]
    assert monitor is not None
    assert monitor.steps == 20
    np.testing.assert_allclose(monitor.history.loss, losses[1], rtol=1e-6)
    assert monitor.report().healthy

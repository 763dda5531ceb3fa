"""The module that Monitor names as the origin of the first NaN or inf."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from vegrad.torch import Monitor  # noqa: E402

from tests.torch.test_monitor import mlp, train  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


class Root(nn.Module):
    """A model with a square root, whose derivative at 0 is infinite."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.at = 0.0

    def forward(self, x: torch.Tensor) -> Any:
        return self.second(torch.sqrt(self.first(x).abs() * self.at))


def test_a_forward_pass_that_makes_nan() -> None:
    model, x = mlp(), torch.randn(8, 16)
    monitor = train(model, x, 2)
    with torch.no_grad():
        model[2].weight[3, 4] = torch.nan
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(2):
        model(x).square().mean().backward()
        optimizer.step()
    first = monitor.nonfinite
    assert (first.module, first.phase, first.step, first.batch_index) == ("2", "forward", 2, 0)
    assert str(first) == (
        "NaN at step 2, sample 0 of the batch: the output of 2 (Linear) is not finite; its weight "
        "is not"
    )
    assert monitor.report().verdict == "nonfinite"
    assert monitor.scalars()["nonfinite"] == 1.0


def test_data_that_are_not_finite() -> None:
    x = torch.randn(8, 16)
    x[5, 3] = torch.inf
    first = train(mlp(), x, 1).nonfinite
    assert (first.module, first.phase, first.batch_index) == ("0", "forward", 5)
    assert "neither is its input" in str(first)


@pytest.mark.parametrize("steps", [1, 45])  # looked at or not
@pytest.mark.parametrize("reentrant", [True, False])
def test_a_checkpoint_takes_no_operation_of_ours_for_its_own(reentrant: bool, steps: int) -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList(nn.Sequential(nn.Linear(16, 16), nn.ReLU()) for _ in "ab")

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = checkpoint(layer, x, use_reentrant=reentrant)
            return x

    model = Kept()
    monitor = train(model, torch.randn(8, 16, requires_grad=True), steps)
    x = torch.randn(8, 16)
    x[5, 3] = torch.nan
    model(x.requires_grad_()).square().mean().backward()
    torch.optim.SGD(model.parameters(), 0.01).step()
    assert monitor.nonfinite is not None


def test_a_backward_pass_that_makes_nan() -> None:
    model = Root()
    monitor = train(model, torch.randn(8, 4), 2)
    first = monitor.nonfinite
    assert (first.module, first.phase, first.step) == ("second", "backward", 0)
    assert "what lies between it and first" in str(first)


def test_a_loss_whose_gradient_is_not_finite() -> None:
    monitor = train(mlp(), torch.randn(8, 16), 1, lambda out: (out[2] * 0).sqrt().sum())
    assert (monitor.nonfinite.module, monitor.nonfinite.phase) == ("4", "backward")
    assert "or of what follows" in str(monitor.nonfinite)
    assert monitor.nonfinite.batch_index == 2


def test_only_a_parameters_gradient_is_not_finite() -> None:
    model = mlp()
    model[2].weight.register_hook(lambda grad: grad / 0)
    monitor = train(model, torch.randn(8, 16), 1)
    assert (monitor.nonfinite.module, monitor.nonfinite.phase) == ("2", "gradient")
    assert not np.isfinite(monitor.history[0].gradient_norm)


class Attention(nn.Module):
    """A module that uses the weights of another without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.attend, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.out(self.attend(x, x, x)[0])


@pytest.mark.parametrize("name", ["attend.in_proj_weight", "attend.out_proj.weight", "out.weight"])
def test_a_weight_that_is_not_finite_is_named_and_to_be_drawn_again(name: str) -> None:
    model = Attention()
    with torch.no_grad():
        model.get_parameter(name)[0, 0] = torch.nan
    advice = f"draw or load {name} again; if training made it so"
    assert diagnosed(model, torch.randn(8, 3, 16)).findings[0].advice.startswith(advice)
    x, target = torch.randn(8, 3, 16), torch.zeros(8, 3, 4)
    cure = ours.cure(model, lambda out, t: (out - t).abs().max(), x, target, in_place=False)
    assert cure.before.findings[0].advice.startswith(advice)
    assert cure.reached
    assert all(bool(one.isfinite().all()) for one in cure.model.parameters())
    monitor = train(model, torch.randn(8, 3, 16), 1)  # whose step spreads it
    assert monitor.nonfinite.parameter == name
    assert monitor.report().findings[0].advice.startswith(advice)


def diagnosed(model: nn.Module, x: torch.Tensor, loss: Any = None) -> Any:
    return ours.diagnose(model, loss or (lambda out, t: out.square().mean()), x, None)


@pytest.mark.parametrize(
    ("cause", "loss"),
    [
        ("loss-domain", lambda out, target: out.mean() * torch.nan),
        ("sqrt-at-zero", lambda out, target: (out * 0).square().sum(1).sqrt().sum()),
    ],
)
def test_a_loss_that_is_not_finite_is_to_blame_not_the_data(cause: str, loss: Any) -> None:
    found = diagnosed(mlp(), torch.randn(8, 16), loss).findings[0]
    assert (found.kind, found.cause, found.sites[0].kind) == ("nonfinite", cause, "loss")


def test_what_stands_between_two_layers_is_to_blame() -> None:
    found = diagnosed(Root(), torch.randn(8, 4)).findings[0]
    assert (found.kind, found.cause) == ("nonfinite", "sqrt-at-zero")
    assert "sqrt" in found.message


def test_a_step_that_a_grad_scaler_skips_is_no_finding() -> None:
    model, x = mlp(), torch.randn(8, 16)
    monitor, scaler = Monitor(model), torch.amp.GradScaler("cpu", init_scale=2.0**40)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = model(x).square().mean()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
    assert 0 < monitor.steps < 40
    assert monitor.nonfinite is None
    assert monitor.report().healthy
    with torch.no_grad():
        model[2].weight[0, 0] = torch.nan
    model(x).mean().backward()
    optimizer.step()
    assert monitor.nonfinite.parameter == "2.weight"


@pytest.mark.parametrize("bad", [float("nan"), 0.0], ids=["nan", "fine"])
def test_a_pass_under_way_keeps_what_batch_norm_needs(bad: float) -> None:
    """A second look at the model in the middle of a step must not spoil the way back."""
    gradients = []
    for watched in (True, False):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
        monitor = Monitor(model, on_finding=None) if watched else None
        x = torch.randn(16, 4)
        x[3, 2] = bad
        nn.functional.cross_entropy(model(x), x[:, :2].argmax(1)).backward()
        if monitor is not None:
            monitor.step()
            assert (monitor.report().verdict == "nonfinite") == (bad != 0)
        gradients.append([one.grad for one in model.parameters()])
        gradients[-1] += [one.clone() for one in model.buffers()]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)

"""vegrad.torch.cure on faults that people report: outputs, rates, targets, losses."""

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.diagnosis.history import History  # noqa: E402
from vegrad.torch.architecture import activations  # noqa: E402
from vegrad.torch.trainer import ModelData  # noqa: E402
from vegrad.torch.treatment import CurableModel  # noqa: E402
from vegrad.treatment.progress import Look  # noqa: E402

from tests.torch.patched import cure, run_patch  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def clouds(rows: int = 256) -> tuple[Any, Any]:
    """Two clouds of points, labels 0. and 1. (N, 1)."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 2, (rows, 1), generator=random).float()
    return torch.randn(rows, 4, generator=random) + 3.0 * target, target


def numbers(rows: int = 256) -> tuple[Any, Any]:
    x = torch.randn(rows, 4, generator=torch.Generator().manual_seed(0))
    return x, x[:, :1] + torch.sin(2.0 * x[:, 1:2])


def layers(depth: int, activation: Any, *tail: Any, outputs: int = 1) -> Any:
    torch.manual_seed(0)
    hidden = [one for _ in range(depth - 1) for one in (nn.Linear(16, 16), activation())]
    return nn.Sequential(nn.Linear(4, 16), activation(), *hidden, nn.Linear(16, outputs), *tail)


def adam(rate: float) -> Any:
    return lambda parameters: torch.optim.Adam(parameters, lr=rate)


# ------------------------------------------------------------------------- the output's activation


class Gated(nn.Module):
    """A gate at the output, one within, and an activation that two places share."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.inner, self.leave, self.open = (nn.Linear(4, 4) for _ in range(4))
        self.within, self.gate, self.shared = nn.Sigmoid(), nn.Sigmoid(), nn.Tanh()
        self.scale = nn.Parameter(torch.ones(4))

    def forward(self, x: Any) -> Any:
        h = self.shared(self.enter(x)) * self.within(self.inner(x))
        return self.scale * self.shared(self.leave(h)) * self.gate(self.open(h))


def test_the_outputs_activations_are_told_from_those_within() -> None:
    x, _ = clouds()
    assert activations(layers(2, nn.Sigmoid, nn.Sigmoid()), x) == ["1", "3"]
    assert activations(layers(2, nn.ReLU, nn.Flatten(0), nn.Sigmoid()), x) == ["1", "3"]
    assert activations(layers(2, nn.ReLU), x) == ["1", "3"]
    assert activations(Gated(), x) == ["within"]
    assert activations(layers(2, nn.ReLU, nn.Sigmoid()), x, (nn.Sigmoid,)) == []


@pytest.mark.parametrize("tail", [(nn.Sigmoid(),), (nn.Sigmoid(), nn.Flatten(0))])
def test_a_sigmoid_before_bceloss_stays_one(tail: Any) -> None:
    x, target = clouds()
    model = layers(8, nn.Sigmoid, *tail)
    target = target if len(tail) == 1 else target[:, 0]
    found = cure(model, nn.BCELoss(), x, target, steps=200)
    assert found.before.verdict == "vanishing"
    assert found.cured, str(found)
    with torch.no_grad():
        output = found.model(x)
    assert 0.0 <= float(output.min()) <= float(output.max()) <= 1.0
    assert type(list(found.model.children())[-len(tail)]) is nn.Sigmoid


# ------------------------------------------------------------------------------- losses that raise


def test_a_loss_that_raises_on_nan_is_a_finding() -> None:
    x, target = clouds()
    model = layers(3, nn.ReLU, nn.Sigmoid())
    with torch.no_grad():
        model[2].weight[0] = float("nan")
    found = cure(model, nn.BCELoss(), x, target, steps=200)
    assert found.before.verdict == "nonfinite"
    assert found.cured, str(found)


class Normal(nn.Module):
    """The likelihood of a normal distribution, which raises if its mean is NaN."""

    def forward(self, output: Any, target: Any) -> Any:
        return -torch.distributions.Normal(output, 1.0).log_prob(target).mean()


def test_a_training_that_raises_on_nan_is_an_attempt_that_failed() -> None:
    x, target = numbers()
    found = cure(layers(2, nn.ReLU), Normal(), x, target, optimizer=lambda parameters:
                 torch.optim.SGD(parameters, lr=100.0), steps=100, goal=1.15)  # fmt: skip
    assert found.attempts
    assert found.reached, str(found)


def test_a_mistake_of_the_user_is_still_raised() -> None:
    x, target = clouds()
    with pytest.raises((ValueError, RuntimeError)):
        cure(layers(2, nn.ReLU), nn.BCELoss(), x, target[:, :0])


# ------------------------------------------------------------------------------ steps and dropout


def history_of(model: Any, rate: float, steps: int = 60) -> History:
    x, target = clouds()
    given = CurableModel(model, nn.BCEWithLogitsLoss(), ModelData(x, target), adam(rate), 0)
    history = History()
    trainer = given.trainer(history, batch_size=32, gauge_every=6, seed=0)
    random = np.random.default_rng(0)
    trainer.advance(np.stack([random.permutation(len(x))[:32] for _ in range(steps)]))
    return history


def test_steps_are_gauged_with_the_dropout_that_they_were_taken_with() -> None:
    """Steps of 1e-6 change the loss by next to nothing, other masks by a tenth of it."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Dropout(0.5), nn.Linear(32, 1))
    history = history_of(model, 1e-6)
    looked = ~np.isnan(history.alpha)
    assert looked.sum() > 8
    np.testing.assert_allclose(history.loss_after[looked], history.loss[looked], rtol=1e-4)
    assert np.abs(history.alpha[looked] + 1).max() < 0.1


@pytest.mark.parametrize("drop", [nn.Identity, lambda: nn.Dropout(0.5)])
@pytest.mark.parametrize("norm", [nn.Identity, lambda: nn.BatchNorm1d(32)])
def test_a_rate_that_is_too_low_is_raised(drop: Any, norm: Any) -> None:
    torch.manual_seed(0)
    x, target = clouds()
    hidden = [nn.Linear(4, 32), norm(), nn.ReLU(), drop(), nn.Linear(32, 32), norm(), nn.ReLU()]
    model = nn.Sequential(*hidden, drop(), nn.Linear(32, 1))
    loss = nn.BCEWithLogitsLoss()
    found = cure(model, loss, x, target, optimizer=adam(1e-6), steps=200)
    assert found.cured, str(found)
    assert found.learning_rate is not None
    assert 1e-4 < found.learning_rate < 1.0


# --------------------------------------------------------------------------------------- targets


@pytest.mark.parametrize(("size", "shift"), [(1e4, 1e5), (1e-4, 0.0), (100.0, -300.0)])
@pytest.mark.parametrize("optimizer", [adam(3e-3), lambda p: torch.optim.SGD(p, lr=0.05)])
def test_targets_far_from_unit_size_are_scaled(size: float, shift: float, optimizer: Any) -> None:
    x, target = numbers()
    target = target * size + shift
    model, before = layers(2, nn.ReLU), target.clone()
    found = cure(model, nn.MSELoss(), x, target, optimizer=optimizer, steps=200)
    assert found.cured, str(found)
    assert "scale the target" in found.summary
    assert torch.equal(target, before)
    # The proof is in the units of the user's loss.
    assert found.proof is not None
    variance = float(target.var(correction=0))
    assert found.goal.wanted == pytest.approx(variance / 2, rel=1e-4)
    assert found.proof.loss[1] <= found.goal.wanted < found.proof.loss[0]
    assert found.proof["after"].loss[0] == pytest.approx(variance, rel=2.0)
    names = run_patch(model, found, x, target)
    assert float(names["target"].mean()) == pytest.approx(0.0, abs=1e-2)
    assert float(names["target"].std()) == pytest.approx(1.0, rel=1e-2)
    back = names["target"] * names["target_scale"] + names["target_shift"]
    torch.testing.assert_close(back, target, rtol=1e-4, atol=1e-3 * size)


def test_targets_of_one_unit_or_of_another_loss_are_left_alone() -> None:
    x, target = numbers()
    for loss, wanted in ((nn.MSELoss(), target), (nn.PoissonNLLLoss(), 1e3 * target.abs())):
        found = cure(layers(8, nn.Sigmoid), loss, x, wanted, steps=60)
        assert "target_scale" not in found.patch


# ------------------------------------------------------------------ goals, what is beyond, progress


def test_a_goal_is_possible() -> None:
    x, target = clouds()
    for wanted in (target + 1.0, 2.0 * target - 1.0, 0.2 + 0.6 * target):
        found = cure(layers(2, nn.ReLU), nn.BCEWithLogitsLoss(), x, wanted, steps=30)
        assert found.goal.wanted <= 1.0


class Cut(nn.Module):
    """Two layers, between which no gradient comes back."""

    def __init__(self) -> None:
        super().__init__()
        self.enter, self.leave = nn.Linear(4, 16), nn.Linear(16, 1)

    def forward(self, x: Any) -> Any:
        return self.leave(torch.tanh(self.enter(x)).detach())


def test_where_the_code_is_to_blame_nothing_is_spent() -> None:
    x, target = clouds()
    model = Cut()
    before = copy.deepcopy(model)

    found = cure(model, nn.BCEWithLogitsLoss(), x, target)
    assert not found.reached
    assert (found.attempts, found.patch) == ((), "")
    assert found.cost < 0.05
    assert found.about
    assert all(torch.equal(a, b) for a, b in zip(before.parameters(), model.parameters(),
                                                 strict=True))  # fmt: skip


def test_a_network_without_activations_gets_some() -> None:
    """A ring round a cloud: no plane parts them."""
    x, _ = numbers(400)
    target = (x.square().sum(1, keepdim=True) > 3.4).float()
    model = layers(2, nn.Identity)
    options = {"optimizer": adam(1e-2), "steps": 300}
    found = cure(model, nn.BCEWithLogitsLoss(), x, target, **options)
    assert found.cured, str(found)
    assert any(isinstance(one, nn.ReLU | nn.Tanh) for one in found.model.modules())


def test_progress_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    x, target = numbers()
    looks: list[Look] = []
    options = {"optimizer": adam(1e-6), "steps": 100}
    cure(layers(2, nn.ReLU), nn.MSELoss(), x, target, progress=looks.append, **options)
    assert {look.name for look in looks} >= {"as it is", "learning rate"}
    assert [look.cost for look in looks] == sorted(look.cost for look in looks)
    assert any(look.ended for look in looks)
    assert capsys.readouterr().err == ""
    cure(layers(2, nn.ReLU), nn.MSELoss(), x, target, progress=True, **options)
    assert "learning rate  step " in capsys.readouterr().err
    with pytest.raises(TypeError, match="progress must be"):
        cure(layers(2, nn.ReLU), nn.MSELoss(), x, target, progress=3)

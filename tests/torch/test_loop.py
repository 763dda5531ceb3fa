"""Monitor on training loops: the loss of each step, and calls that come in the wrong order."""

import copy
import gc
import pickle
from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from torch.nn.utils import clip_grad_norm_, clip_grad_value_  # noqa: E402
from vegrad.torch import SGD, FindingError, Monitor  # noqa: E402
from vegrad.torch.monitor import listening  # noqa: E402
from vegrad.torch.monitor.stepped import has_some  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


def small() -> tuple[nn.Sequential, torch.Tensor]:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), torch.randn(16, 6)


def test_the_loss_of_each_step_is_kept() -> None:
    model, x = small()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    losses = []
    for _ in range(4):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert monitor.history.loss.tolist() == pytest.approx(losses)
    assert monitor.history[-1].loss == pytest.approx(losses[-1])


@pytest.mark.parametrize("to_none", [True, False])
def test_accumulated_losses_are_summed(to_none: bool) -> None:
    model, x = small()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    wanted = []
    for _ in range(3):
        optimizer.zero_grad(set_to_none=to_none)
        wanted.append(0.0)
        for part in x.chunk(4):
            loss = model(part).square().mean() / 4
            loss.backward()
            wanted[-1] += loss.item()
        optimizer.step()
    assert monitor.history.loss.tolist() == pytest.approx(wanted)


def test_the_loss_is_without_a_scalers_factor() -> None:
    model, x = small()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    for divisor in (1, 2):
        optimizer.zero_grad()
        loss = model(x).square().mean()
        (scaler.scale(loss) / divisor).backward()
        scaler.step(optimizer)
        scaler.update()
        assert monitor.history[-1].loss == pytest.approx(loss.item() / divisor)


def test_losses_of_other_models_do_not_count() -> None:
    model, x = small()
    other = copy.deepcopy(model)
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        other(model(x).detach().expand(-1, 6)).sum().backward()
        loss = model(x).square().mean()
        loss.backward()
        other(x).sum().backward()
        optimizer.step()
    assert monitor.history[-1].loss == pytest.approx(loss.item())


def test_a_user_can_give_the_loss() -> None:
    model, x = small()
    monitor = Monitor(model)
    for value in (3.0, torch.tensor(2.0)):  # without an optimizer that is seen
        torch.autograd.backward(model(x), torch.ones(16, 1))
        monitor.step(value)
    assert monitor.history.loss.tolist() == [3.0, 2.0]
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    for value in (5.0, 4.0):
        torch.autograd.backward(model(x), torch.ones(16, 1))
        optimizer.step()
        monitor.step(value)
    assert monitor.history.loss.tolist() == [3.0, 2.0, 5.0, 4.0]


def test_listening_ends_with_the_last_monitor() -> None:
    def places() -> list[Any]:
        scaler = torch.amp.GradScaler
        cells = (clip_grad_norm_.__closure__, clip_grad_value_.__closure__)
        held = [one.cell_contents for cell in cells if cell for one in cell]
        return [torch.autograd._engine_run_backward, scaler.scale, scaler.unscale_, *held]

    gc.collect()
    before = places()
    model, _ = small()
    first, second = Monitor(model), Monitor(model)
    assert places()[0] is not before[0]
    assert pickle.loads(pickle.dumps(clip_grad_norm_)) is clip_grad_norm_
    first.remove()
    assert places()[0] is not before[0]
    second.remove()
    assert places() == before
    assert listening._listeners == []
    third = Monitor(model)
    del model, first, second, third
    gc.collect()
    assert places() == before


@pytest.mark.parametrize("emptied", ["both", "second", "none"])
def test_the_optimizer_whose_gradients_are_never_emptied_is_named(emptied: str) -> None:
    torch.manual_seed(0)
    model = nn.ModuleDict({"encode": nn.Linear(4, 4), "decode": nn.Linear(4, 4)})
    monitor = Monitor(model, on_finding=None)
    first, second = (torch.optim.SGD(one.parameters(), 1e-3) for one in model.values())
    for _ in range(12):
        x = torch.randn(8, 4)
        loss = (model["decode"](model["encode"](x)) - x).square().mean()
        for one in {"both": (first, second), "second": (second, second), "none": ()}[emptied]:
            one.zero_grad()
        loss.backward()
        first.step()
        second.step()
    found = [one for one in monitor.report().findings if one.cause == "no-zero-grad"]
    assert bool(found) == (emptied != "both")
    if found:
        assert ("encode.weight" in found[0].message) == (emptied == "second")
        assert "decode" not in found[0].message + found[0].advice


@pytest.mark.parametrize("to_none", [True, False])
def test_gradients_that_are_emptied_no_longer_are_told_of_at_once(to_none: bool) -> None:
    model, x = small()
    told: list[tuple[int, str, str]] = []
    monitor = Monitor(
        model, on_finding=lambda one: told.append((monitor.steps, str(one.cause), one.message))
    )
    optimizer, stop = torch.optim.Adam(model.parameters(), 1e-3), 1045
    for step in range(stop + 100):
        if step < stop or step == stop + 80:
            optimizer.zero_grad(set_to_none=to_none)
        (model(x) - x[:, :1]).square().mean().backward()
        optimizer.step()
    assert [cause for _, cause, _ in told] == ["no-zero-grad"]
    assert stop < told[0][0] < stop + 12
    assert "no longer emptied" in told[0][2]
    assert "seldom emptied" in monitor.report().findings[0].message


@pytest.mark.parametrize("empties", [True, False])
def test_a_closure_that_empties_the_gradients_is_seen(empties: bool) -> None:
    model, x = small()
    monitor = Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def closure() -> torch.Tensor:
        if empties:
            optimizer.zero_grad()
        loss = (model(x) - x[:, :1]).square().mean()
        loss.backward()
        return loss

    for _ in range(60):
        optimizer.step(closure)
    assert ("no-zero-grad" in [one.cause for one in monitor.report().findings]) != empties


def test_a_step_without_a_new_backward_pass_adds_nothing_to_its_gradients() -> None:
    model, x = small()
    monitor, optimizer = Monitor(model, every=1), torch.optim.SGD(model.parameters(), 1e-3)
    (model(x) - x[:, :1]).square().mean().backward()
    for _ in range(12):
        optimizer.step()
    assert not [one for one in monitor.report().findings if one.cause == "no-zero-grad"]


@pytest.mark.parametrize("by_name", [True, False])
@pytest.mark.parametrize("optimizer", ["SGD", "LBFGS", "ours"])
def test_the_gradients_of_a_closure_are_those_of_its_step(optimizer: str, by_name: bool) -> None:
    model, x = small()
    kinds: dict[str, Any] = {"SGD": torch.optim.SGD, "LBFGS": torch.optim.LBFGS, "ours": SGD}
    chosen = kinds[optimizer](model.parameters(), 1e-2)
    monitor = Monitor(model, on_finding="raise")
    batch, losses = x, list[float]()

    def closure() -> torch.Tensor:
        chosen.zero_grad()
        loss = (model(batch) - batch[:, :1]).square().mean()
        loss.backward()
        losses.append(float(loss.detach()))
        return loss

    for step in range(45):
        calls = len(losses)
        assert chosen.step(closure=closure) if by_name else chosen.step(closure)
        assert monitor.history.loss[-1] == pytest.approx(losses[calls])
        assert monitor.steps == step + 1
    before = [one.detach().clone() for one in model.parameters()]
    batch = torch.full_like(x, torch.nan)
    with pytest.raises(FindingError, match="step 45"):
        chosen.step(closure)
    assert all(map(torch.equal, before, model.parameters()))


def test_a_closure_that_is_never_called_ends_its_step_nevertheless() -> None:
    class Deaf(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            return super().step()

    model, x = small()
    optimizer = Deaf(model.parameters(), 1e-3)
    monitor = Monitor(model)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step(lambda: None)
    assert monitor.steps == 3


@pytest.mark.parametrize("shape", [(64, 64), (16, 9), (128, 63), (300,), (1,), (10, 65)])
def test_columns_of_zeros_hide_no_gradient(shape: tuple[int, ...]) -> None:
    grad = torch.ones(shape)
    assert has_some(grad)
    if len(shape) > 1:
        grad[:, 0] = 0
        assert has_some(grad)
    assert not has_some(torch.zeros(shape))
    assert not has_some(torch.zeros(0))


@pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning")
@pytest.mark.parametrize(("rate", "causes"), [(1e-3, []), (0.5, ["learning-rate-high"])])
def test_steps_that_are_taken_within_the_backward_pass_have_its_loss(
    rate: float, causes: list[str]
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    own = {one: torch.optim.Adam([one], rate) for one in model.parameters()}
    monitor = Monitor(model)

    def take(one: torch.Tensor) -> None:
        own[one].step()
        own[one].zero_grad()

    for one in model.parameters():
        one.register_post_accumulate_grad_hook(take)
    losses = []
    for _ in range(60):
        x = torch.randn(64, 8)
        loss = nn.functional.cross_entropy(model(x), x[:, :4].argmax(1))
        loss.backward()
        losses.append(loss.item())
    known = [one for one in monitor.history.losses if one == one]
    assert len(known) >= len(losses)
    assert (known[0], known[-1]) == pytest.approx((losses[0], losses[-1]))
    assert [one.cause for one in monitor.report().findings] == causes

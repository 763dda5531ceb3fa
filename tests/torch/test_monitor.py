"""Monitor on models of many kinds, and where the first NaN came from."""

import copy
import gc
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad import NonFiniteGradientError  # noqa: E402
from vegrad.clipping import GlobalNorm, Value  # noqa: E402
from vegrad.torch import AdamW, Monitor, diagnose  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),  # asked of the report
]


def mlp(
    depth: int = 3, activation: type[nn.Module] = nn.Tanh, width: int = 16
) -> torch.nn.Sequential:
    torch.manual_seed(0)
    layers = [layer for _ in range(depth) for layer in (nn.Linear(width, width), activation())]
    return nn.Sequential(*layers)


def train(
    model: nn.Module, x: torch.Tensor, steps: int = 3, loss: Any = None, **options: Any
) -> Any:
    monitor = Monitor(model, **options)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        out = model(x)
        (loss(out) if loss else out.square().mean()).backward()
        optimizer.step()
    return monitor


def test_the_numbers_are_autograds() -> None:
    model = mlp()
    x = torch.randn(8, 16)
    outputs, deltas = [], []

    def keep(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        outputs.append(output.detach().double())
        output.register_hook(lambda grad: deltas.append(grad.double()))

    handles = [module.register_forward_hook(keep) for module in model]
    monitor = train(model, x, 1)
    last = monitor.history[-1]
    rms = [float(one.square().mean().sqrt()) for one in outputs]
    np.testing.assert_allclose(last.activation_rms, rms, rtol=1e-6)
    right = [float(one.norm()) for one in deltas[::-1]]
    np.testing.assert_allclose(last.delta_norms[::2], right[::2], 1e-6)
    assert np.isnan(last.delta_norms[1::2]).all()  # those of activations are not looked at
    norms = [float(one.grad.double().norm()) for one in model.parameters()]
    np.testing.assert_allclose(last.gradient_norms, norms, rtol=1e-6)
    np.testing.assert_allclose(last.gradient_norm, np.linalg.norm(norms), rtol=1e-6)
    assert monitor.parameters == [name for name, _ in model.named_parameters()]
    assert monitor.modules == ["0", "1", "2", "3", "4", "5"]
    scalars = monitor.scalars(all=True)
    assert scalars["gradient_norm/2.bias"] == pytest.approx(norms[3])
    assert scalars["activation_rms/5"] == pytest.approx(rms[5])
    assert scalars["delta_norm/0"] == pytest.approx(float(deltas[-1].norm()))
    assert scalars["nonfinite"] == 0.0
    assert all(type(value) is float for value in scalars.values())
    for handle in handles:
        handle.remove()
    monitor.remove()
    assert not any(module._forward_hooks for module in model)


def test_training_is_not_changed() -> None:
    results = []
    for watched in (True, False):
        model = mlp()
        monitor = Monitor(model) if watched else None
        optimizer = AdamW(model.parameters())
        torch.manual_seed(1)
        for _ in range(5):
            optimizer.zero_grad()
            model(torch.randn(8, 16)).square().mean().backward()
            optimizer.step()
        results.append(nn.utils.parameters_to_vector(model.parameters()))
        assert monitor is None or len(monitor.history) == 5
    assert torch.equal(*results)


@pytest.mark.parametrize("clip", [None, GlobalNorm(0.01), GlobalNorm(0.01, ord=1), Value(1e-4)])
@pytest.mark.parametrize("part", [False, True])
def test_our_optimizers_norms_are_used(clip: Any, part: bool) -> None:
    histories = []
    for ours in (True, False):
        model = mlp()
        model[0].bias.requires_grad_(False)
        params = list(model.parameters())[2:] if part else list(model.parameters())
        optimizer = AdamW(params, clip=clip) if ours else torch.optim.AdamW(params)
        monitor = Monitor(model)
        model(torch.ones(8, 16)).square().mean().backward()
        optimizer.step()
        histories.append(monitor.history)
    np.testing.assert_allclose(*(one.gradient_norms for one in histories), rtol=1e-6)
    np.testing.assert_allclose(*(one.gradient_norm for one in histories), rtol=1e-6)


def test_a_step_that_raises_is_a_step() -> None:
    model = mlp()
    monitor, optimizer = Monitor(model), AdamW(model.parameters(), clip=GlobalNorm(1.0))
    (model(torch.ones(8, 16)) * torch.nan).sum().backward()
    for _ in range(2):
        with pytest.raises(NonFiniteGradientError):
            optimizer.step()
    monitor.step()
    assert monitor.steps == 3
    assert monitor.nonfinite.phase == "loss"


def test_every_and_keep() -> None:
    monitor = train(mlp(), torch.randn(8, 16), 10, every=3)
    looked = monitor.history.looked
    assert looked.step.tolist() == [0, 3, 6, 9]
    assert looked.gradient_norms.shape == (4, 6)
    assert looked.activation_rms.shape == (4, 6)
    assert np.isfinite(looked.activation_rms).all()
    assert monitor.history.step.tolist() == list(range(10))
    assert np.isfinite(monitor.history.gradient_norms).all()
    monitor = train(mlp(), torch.randn(8, 16), 10, keep=2)
    assert monitor.history.step.tolist() == [8, 9]
    assert monitor.steps == 10
    with pytest.raises(ValueError, match="at least 1"):
        Monitor(mlp(), every=0)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not list"):
        Monitor(list(mlp().parameters()))
    with pytest.raises(ValueError, match=r"must have seen a step .* call monitor\.step\(loss\)"):
        Monitor(mlp()).report()
    assert Monitor(mlp()).scalars() == {}


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_a_scripted_module_is_refused_in_words() -> None:
    scripted = torch.jit.script(nn.Linear(4, 4))
    for look in (Monitor, lambda model: diagnose(model, nn.MSELoss(), torch.ones(2, 4))):
        with pytest.raises(TypeError, match="not a ScriptModule"):
            look(scripted)


@pytest.mark.parametrize("unit", [nn.Sigmoid, nn.Softsign])
def test_only_a_model_with_sigmoids_hears_of_them(unit: type[nn.Module]) -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(16) for one in (nn.Linear(16, 16), unit())]
    found = train(nn.Sequential(*layers, nn.Linear(16, 4)), torch.randn(8, 16), 5).report()
    assert found.verdict == "vanishing"
    assert ("each sigmoid" in found.findings[0].advice) == (unit is nn.Sigmoid)


def test_accumulated_gradients_are_one_step() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 16)
    whole = train(mlp(), x, 1).history[0]
    model = mlp()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.01)
    for part in x.chunk(4):
        (model(part).square().mean() / 4).backward()
    optimizer.step()
    assert len(monitor.history) == 1
    for name in ("gradient_norms", "activation_rms", "delta_norms"):
        np.testing.assert_allclose(getattr(monitor.history[0], name), getattr(whole, name), 1e-5)


@pytest.mark.parametrize("name", ["lstm", "shared", "convolution", "transformer", "float64"])
def test_what_is_usual_and_what_is_not_is_read_alike(name: str) -> None:
    make, shape = MODELS[name]
    histories = []
    for details in (1, 100):  # steps whose zeros are counted are Python's
        torch.manual_seed(0)
        model = make()
        x = torch.randn(shape, dtype=next(model.parameters()).dtype)
        histories.append(train(model, x, 4, details=details).history)
    for column in ("gradient_norm", "gradient_norms", "activation_rms", "delta_norms"):
        np.testing.assert_allclose(*(getattr(one, column) for one in histories), rtol=1e-12)


def test_gradients_are_read_as_the_step_takes_them() -> None:
    model = mlp()
    monitor, optimizer = Monitor(model), torch.optim.SGD(model.parameters(), 0.0)
    for change in (1.0, 0.25, 3.0):
        optimizer.zero_grad()
        model(torch.ones(8, 16)).square().mean().backward()
        for one in model.parameters():
            one.grad.data.mul_(change)  # a change that the gradient's version does not show
        norms = [float(one.grad.double().norm()) for one in model.parameters()]
        optimizer.step()
        np.testing.assert_allclose(monitor.history[-1].gradient_norms, norms, rtol=1e-6)
    ratios = monitor.history.gradient_norm / monitor.history.gradient_norm[0]
    np.testing.assert_allclose(ratios, [1.0, 0.25, 3.0], rtol=1e-6)


def test_other_hooks_of_an_output_stay() -> None:
    model, seen = mlp(1), []
    Monitor(model, details=100)
    handles = []

    def after(module: torch.nn.Module, inputs: object, output: torch.Tensor) -> None:
        handles.append(output.register_hook(lambda grad: seen.append(grad) or 2 * grad))

    model[0].register_forward_hook(after)
    for _ in range(2):  # the second step is one that Python has no part in
        model(torch.ones(8, 16)).sum().backward()
        bias = model[0].bias.grad
        torch.testing.assert_close(bias, 2 * seen[-1].sum(0))
        model[0].zero_grad()
    handles[-1].remove()
    assert len(seen) == 2


def test_a_hook_of_one_output_is_not_of_the_next() -> None:
    model, seen = mlp(1), []
    monitor = Monitor(model)
    for step in range(4):
        out = model[0](torch.ones(8, 16))
        if step == 1:  # the first that Python has no part in
            out.register_hook(lambda grad: seen.append("first"))
        if step == 2:  # it outlives its step
            kept = out
        model[1](out).sum().backward(retain_graph=True)
        monitor.step()
    kept.register_hook(lambda grad: seen.append("kept"))
    model[1](model[0](torch.ones(8, 16))).sum().backward()
    assert seen == ["first"]
    kept.sum().backward()
    assert seen == ["first", "kept"]


def test_evaluation_and_copies_are_not_looked_at() -> None:
    model = mlp()
    monitor = Monitor(model)
    average = copy.deepcopy(model)
    average(torch.randn(8, 16)).sum().backward()
    with torch.no_grad():
        model(torch.randn(8, 16))
    monitor.step()
    assert np.isnan(monitor.history[0].activation_rms).all()


def test_which_optimizers_count() -> None:
    model, other = mlp(), mlp()
    monitor, chosen = Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    only = Monitor(model, optimizer=chosen)
    second = torch.optim.SGD([*other.parameters(), model[0].weight], 0.1)
    third = torch.optim.SGD(other.parameters(), 0.1)
    for optimizer in (chosen, second, third):
        model(torch.ones(8, 16))
        optimizer.step()
    assert (monitor.steps, only.steps) == (2, 1)


def test_parameters_that_are_assigned_later() -> None:
    model, x = mlp(), torch.randn(8, 16)
    monitor = Monitor(model)
    model.load_state_dict(copy.deepcopy(model.state_dict()), assign=True)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    model(x).square().mean().backward()
    norms = [float(one.grad.norm()) for one in model.parameters()]
    optimizer.step()
    assert monitor.steps == 1
    np.testing.assert_allclose(monitor.history[0].gradient_norms, norms, rtol=1e-5)


def test_a_monitor_goes_with_its_model() -> None:
    model = mlp()
    monitor = weakref.ref(Monitor(model))
    del model
    gc.collect()
    assert monitor() is None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(16, 8, 2, batch_first=True), nn.Linear(8, 16)

    def forward(self, x: torch.Tensor) -> Any:
        return self.head(self.lstm(x)[0])


class Shared(nn.Module):
    """A module called twice, tied weights, an in-place activation and a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(16, 16), nn.Linear(16, 16), nn.ReLU(inplace=True)
        self.b.weight = self.a.weight
        self.b.bias.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> Any:
        return self.b(self.relu(self.a(self.relu(self.a(x)))))


MODELS: dict[str, tuple[Callable[[], Any], tuple[int, ...]]] = {
    "lstm": (Recurrent, (4, 5, 16)),
    "shared": (Shared, (4, 16)),
    "convolution": (
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 2)
        ),
        (2, 3, 6, 6),
    ),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False
        ),
        (2, 5, 16),
    ),
    "one layer": (lambda: nn.Linear(16, 16), (4, 16)),
    "float64": (lambda: mlp().double(), (4, 16)),
    "bfloat16": (lambda: mlp().bfloat16(), (4, 16)),
}


@pytest.mark.parametrize("name", MODELS)
def test_models_of_many_kinds(name: str) -> None:
    make, shape = MODELS[name]
    torch.manual_seed(0)
    model = make()
    x = torch.randn(shape, dtype=next(model.parameters()).dtype)
    # Not the square: its gradient is along the output, and a last LayerNorm lets none of that pass.
    monitor = train(model, x, loss=lambda out: (out - out.detach().roll(1, -1)).square().mean())
    last = monitor.history[-1]
    learned = [one.requires_grad for one in model.parameters()]
    assert (np.isfinite(last.gradient_norms) == learned).all()
    known = np.isfinite(last.activation_rms)
    assert known[~np.isnan(last.delta_norms)].all()
    assert known.sum() >= 1
    assert monitor.nonfinite is None
    report = monitor.report()
    assert report.healthy, str(report)
    assert type(model).__name__ in str(report)
    assert report.to_dict()["verdict"] == "healthy"


def test_autocast_and_grad_scaler() -> None:
    model = mlp()
    monitor, scaler = Monitor(model), torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(torch.randn(8, 16)).square().mean()
    scaler.scale(loss).backward()
    norms = [float(one.grad.norm()) / 1024 for one in model.parameters()]
    scaler.step(optimizer)
    np.testing.assert_allclose(monitor.history[0].gradient_norms, norms, rtol=1e-5)
    assert np.isfinite(monitor.history[0].activation_rms).all()


def test_reports_of_sick_networks() -> None:
    report = train(mlp(20, nn.Sigmoid), torch.randn(8, 16), 1).report()
    assert report.verdict == "vanishing"
    assert report.findings[0].evidence["decades"] < -6
    assert "module 0" in str(report)
    assert "modules not shown" in str(report)
    assert "modules not shown" not in report.to_text(all_layers=True)
    model = mlp(20)
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(8)
    model = nn.Sequential(*(layer for layer in model if isinstance(layer, nn.Linear)))
    report = train(model, torch.randn(8, 16), 1).report()
    assert report.verdict == "exploding"
    model = mlp(3, nn.ReLU)
    nn.init.constant_(model[2].bias, -100.0)
    assert "dead" in [one.kind for one in train(model, torch.randn(8, 16), 1).report().findings]


def test_subnormals_are_counted_and_their_cost_measured() -> None:
    model = mlp(60, nn.Sigmoid)
    x = torch.randn(8, 16)
    monitor = train(model, x, 1)
    assert monitor.subnormals["backward"] > 0.01
    assert monitor.subnormals["forward"] == 0.0
    assert "measure_flush(step) says how much" in str(monitor.report())
    gain = monitor.measure_flush(lambda: model(x).sum().backward(), 2)
    assert gain > 0
    assert gain == monitor.flush_gain
    for known, said in (
        (5.83, "made one step 5.8× faster"),
        (0.9, "made no step faster here (0.9×)"),
    ):
        monitor.flush_gain = known
        assert said in " ".join(str(monitor.report()).split())
    assert float(torch.tensor(5e-324, dtype=torch.float64) * 1) > 0  # as it was
    assert len(monitor.history) == 1


def test_function_transforms_do_not_hurt() -> None:
    model, x = mlp(), torch.randn(8, 16)
    monitor = Monitor(model)
    torch.func.vmap(model)(x)
    model(x).sum().backward()
    monitor.step()
    with torch.no_grad():
        rms = float(model(x).square().mean().sqrt())
    np.testing.assert_allclose(monitor.history[0].activation_rms[-1], rms, rtol=1e-5)


def test_other_devices_do_not_hurt() -> None:
    model = nn.Linear(4, 4, device="meta")
    monitor = train(model, torch.randn(2, 4, device="meta"), 2)
    assert len(monitor.history) == 2

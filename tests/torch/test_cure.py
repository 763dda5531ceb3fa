"""vegrad.torch.cure: what it changes, what it leaves, that its patch does the same."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

from tests.torch.patched import cure as checked  # noqa: E402
from tests.torch.patched import run_patch  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()


def task(rows: int = 256) -> tuple[Any, Any]:
    """Three clouds of points."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (rows,), generator=random)
    centres = torch.randn(3, 16, generator=random)
    return centres[target] + 0.5 * torch.randn(rows, 16, generator=random), target


def chain(activation: Any = nn.Tanh, depth: int = 8, width: int = 24) -> Any:
    torch.manual_seed(0)
    layers: list[Any] = []
    for layer in range(depth):
        layers += [nn.Linear(width if layer else 16, width), activation()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def cure(model: Any, **options: Any) -> Any:
    x, target = task()
    return checked(model, LOSS, x, target, **{"steps": 120, **options})


def patched(model: Any, found: Any) -> Any:
    """What the patch makes of a copy."""
    return run_patch(model, found, task()[0])["model"]


def same(one: Any, other: Any) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(
        torch.equal(v, second[n]) for n, v in first.items()
    )


def test_a_broken_layer_gets_its_factor_in_place() -> None:
    model = chain(depth=5)
    with torch.no_grad():
        model[6].weight *= 1e-4
    sick = copy.deepcopy(model)
    found = cure(model)
    assert found.cured
    assert found.model is model
    assert (found.before.verdict, found.after.verdict) == ("vanishing", "healthy")
    accepted = [attempt.name for attempt in found.attempts if attempt.accepted]
    assert accepted == ["what the diagnosis says"]
    ratio = model[6].weight / sick[6].weight
    assert 1e3 < float(ratio.mean().detach()) < 1e5
    assert same(patched(sick, found), model)
    assert "6.weight" in str(found)
    assert all(len(line) <= 100 for line in str(found).splitlines())
    assert found.proof is not None
    assert found.proof.loss[1] < found.proof.loss[0]
    assert found.proof["after"].steps == found.proof.steps
    x, target = task()
    assert ours.diagnose(model, LOSS, x, target).healthy


def test_a_deep_network_is_scaled() -> None:
    model = chain(nn.ReLU, depth=16, width=64)
    found = cure(copy.deepcopy(model))
    assert found.cured
    assert found.attempts[-1].accepted
    assert found.attempts[-1].name == "what the diagnosis says"
    assert same(patched(model, found), found.model)


class Meter(nn.Module):
    """Rows that went forward and back, through all copies of a model, in passes."""

    forward_rows = backward_rows = 0

    def forward(self, x: Any) -> Any:
        Meter.forward_rows += len(x)
        if x.requires_grad:
            x.register_hook(self.back)
        return x

    def back(self, gradient: Any) -> None:
        Meter.backward_rows += len(gradient)

    @classmethod
    def passes(cls) -> float:
        return cls.forward_rows / 3 + cls.backward_rows * 2 / 3


@pytest.mark.parametrize("budget", [1.5, 1.0])
@pytest.mark.parametrize(("activation", "depth", "factor"), [
    (nn.ReLU, 20, 1.0), (nn.Sigmoid, 10, 1.0), (nn.Tanh, 12, 8.0), (nn.ReLU, 10, 6.0),
    (nn.Tanh, 2, 1.0),
])  # fmt: skip
def test_it_costs_no_more_than_its_budget(
    activation: Any, depth: int, factor: float, budget: float
) -> None:
    """Passes are counted by the model itself. Labels are noise: nothing reaches the goal."""
    model = chain(activation, depth=depth)
    with torch.no_grad():
        for one in model:
            if isinstance(one, nn.Linear):
                one.weight *= factor
    x, _ = task()
    target = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(5))
    Meter.forward_rows = Meter.backward_rows = 0
    found = checked(nn.Sequential(*model, Meter()), LOSS, x, target, steps=100, budget=budget)
    assert found.cost <= budget
    assert Meter.passes() / (100 * 32) <= budget + 0.01
    assert found.cost >= Meter.passes() / (100 * 32) - 0.01  # what is said is what was run


def test_nothing_else_of_the_model_is_changed() -> None:
    model = nn.Sequential(nn.Linear(16, 24), nn.BatchNorm1d(24), nn.Tanh(), *chain(depth=6)[0:0],
                          *[one for _ in range(10) for one in (nn.Linear(24, 24), nn.Sigmoid())],
                          nn.Linear(24, 3))  # fmt: skip
    x, target = task()
    LOSS(model(x), target).backward()
    before, grads = copy.deepcopy(model), [p.grad.clone() for p in model.parameters()]
    random = torch.random.get_rng_state()
    found = cure(model, in_place=False)
    assert found.attempts
    assert same(before, model)
    assert torch.equal(torch.random.get_rng_state(), random)
    for parameter, grad in zip(model.parameters(), grads, strict=True):
        assert torch.equal(parameter.grad, grad)
    assert model.training


def test_other_architectures_are_a_patch() -> None:
    """Softplus has no critical point."""
    model = chain(nn.Softplus, depth=30)
    before = copy.deepcopy(model)
    found = cure(model)
    assert found.cured
    if "set_submodule" in found.patch:
        assert same(before, model)
        assert found.model is not model
    assert same(patched(before, found), found.model)


class Block(nn.Module):
    """A user's own layer."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(inputs, outputs), nn.Softplus()

    def forward(self, x: Any) -> Any:
        return self.activation(self.linear(x))


def plain_layers() -> Any:
    return chain(nn.Softplus, depth=30)


def nested_layers() -> Any:
    body = [nn.Sequential(nn.Linear(24, 24), nn.Softplus()) for _ in range(30)]
    return nn.Sequential(nn.Linear(16, 24), nn.Softplus(), nn.Sequential(*body), nn.Linear(24, 3))


def own_layers() -> Any:
    return nn.Sequential(Block(16, 24), *[Block(24, 24) for _ in range(30)], nn.Linear(24, 3))


@pytest.mark.parametrize("make", [plain_layers, nested_layers, own_layers])
def test_skip_connections_are_a_patch_that_can_be_trained(make: Any, tmp_path: Path) -> None:
    """Softplus has no critical point, so that nothing smaller helps."""
    torch.manual_seed(0)
    model = make()
    before = copy.deepcopy(model)
    found = cure(model)
    assert found.cured
    assert same(before, model)
    assert "add skip connections" in found.patch
    assert "class Residual(nn.Module)" in found.patch
    branches = [one for one in found.model.modules() if type(one).__name__ == "Residual"]
    assert len(branches) in (29, 30)
    assert all(0.1 < one.scale < 0.2 for one in branches)  # 1/√29
    treated = patched(model, found)
    assert same(treated, found.model)
    x, target = task()
    assert torch.equal(treated(x), found.model(x))
    torch.save(found.model, tmp_path / "whole.pt")
    loaded = torch.load(tmp_path / "whole.pt", weights_only=False)
    assert torch.equal(loaded(x), found.model(x))
    treated.load_state_dict(loaded.state_dict())  # of the patched model too
    optimizer = torch.optim.Adam(treated.parameters(), lr=1e-3)
    for _ in range(150):
        optimizer.zero_grad()
        LOSS(treated(x), target).backward()
        optimizer.step()
    assert float((treated(x).argmax(1) == target).double().mean()) > 0.8
    assert found.after.healthy


class Functional(nn.Module):
    """Activations that are no modules."""

    def __init__(self, depth: int, activation: Any, asks: bool = False) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(24 if n else 16, 24) for n in range(depth))
        self.out, self.activation, self.asks = nn.Linear(24, 3), activation, asks

    def forward(self, x: Any) -> Any:
        for layer in self.layers:
            x = self.activation(layer(x))
            if self.asks:
                assert layer.in_features
        return self.out(x)


@pytest.mark.parametrize(("activation", "depth"), [
    (nn.functional.relu, 60), (nn.functional.softplus, 30),
])  # fmt: skip
def test_skip_connections_go_round_layers_whose_activations_are_functions(
    activation: Any, depth: int
) -> None:
    torch.manual_seed(0)
    model = Functional(depth, activation)
    before = copy.deepcopy(model)
    found = cure(model)
    assert found.cured
    assert "add skip connections round single layers" in found.patch
    assert f'[f"layers.{{n}}" for n in range(1, {depth})]' in found.patch
    assert same(before, model)
    assert same(patched(model, found), found.model)


def test_layers_that_the_model_itself_looks_into_stay_where_they_are() -> None:
    torch.manual_seed(0)
    found = cure(Functional(30, nn.functional.softplus, asks=True))
    assert "Residual" not in found.patch


def test_data_far_from_unit_size_are_scaled() -> None:
    x, target = task()
    wide = x + 1e4
    wide[:, 3] = 7.0
    model = chain(depth=4)
    found = checked(model, LOSS, wide, target, steps=120)
    assert found.cured
    assert found.attempts[-1].name == "scale the data"
    scaled = run_patch(model, found, wide)["x"]
    varies = torch.arange(16) != 3
    assert torch.allclose(scaled[:, varies].std(0, correction=0), torch.tensor(1.0), atol=1e-2)
    assert torch.equal(scaled[:, 3], torch.zeros(len(x)))


def test_two_classes_have_an_accuracy() -> None:
    x, target = task()
    model = nn.Sequential(chain(nn.ReLU, depth=20), nn.Linear(3, 1), nn.Flatten(0))
    found = checked(model, nn.BCEWithLogitsLoss(), x, (target == 1).float(), steps=120)
    assert found.goal.kind == "binary_cross_entropy"
    assert found.cured
    assert found.proof is not None
    assert found.proof.accuracy[1] >= found.goal.wanted


def test_sequences_of_labels_have_an_accuracy() -> None:
    """(N, T) labels, some to be ignored; outputs (N, T, C) that the loss flattens."""
    random = torch.Generator().manual_seed(0)
    target = torch.randint(0, 3, (256, 4), generator=random)
    centres = torch.randn(3, 16, generator=random)
    x = centres[target] + 0.5 * torch.randn(256, 4, 16, generator=random)
    target[::5, 1] = -100

    def loss(output: Any, wanted: Any) -> Any:
        return LOSS(output.flatten(0, 1), wanted.flatten())

    found = checked(chain(nn.ReLU, depth=20), loss, x, target, steps=120)
    assert found.goal.kind == "cross_entropy"
    assert found.cured


def test_a_fused_network_is_searched_as_plain_layers() -> None:
    model = chain(nn.Softplus, depth=30)
    wanted = cure(copy.deepcopy(model))
    fused = ours.fuse(copy.deepcopy(model))
    found = cure(fused)
    assert found.summary == wanted.summary
    assert type(found.model) is nn.Sequential
    shallow = ours.fuse(chain(nn.ReLU, depth=16, width=64))
    found = cure(shallow)
    assert found.cured
    assert found.model is shallow


@pytest.mark.parametrize(("rate", "lower"), [(100.0, True), (1e-5, False)])
def test_the_learning_rate_is_set_to_what_the_steps_ask_for(rate: float, lower: bool) -> None:
    model = chain(nn.ReLU, depth=3)
    found = cure(model, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=rate))
    assert found.cured
    assert found.learning_rate is not None
    assert (found.learning_rate < rate) == lower
    assert 'group["lr"]' in found.patch


def test_a_healthy_model_is_left_alone() -> None:
    model = chain(depth=2)
    before = copy.deepcopy(model)
    found = cure(model, optimizer=lambda parameters: torch.optim.Adam(parameters, lr=1e-2))
    assert found.reached
    assert not found.cured
    assert found.model is model
    assert found.patch == ""
    assert same(before, model)
    assert "nothing to cure" in str(found)


def test_never_worse() -> None:
    """Labels that nothing can learn."""
    model = chain(depth=12)
    before = copy.deepcopy(model)
    x, _ = task()
    target = torch.randint(0, 3, (len(x),), generator=torch.Generator().manual_seed(5))
    found = checked(model, LOSS, x, target, steps=40)
    if found.patch:
        assert found.proof is not None
        assert found.proof.loss[1] < found.proof.loss[0]
    else:
        assert same(before, model)
        assert found.after is found.before


def test_an_unknown_loss_and_several_inputs() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain(nn.ReLU, depth=20)

        def forward(self, a: Any, b: Any) -> Any:
            return self.net(torch.cat([a, b], 1))

    x, target = task()
    inputs = (x[:, :8], x[:, 8:])

    def loss(output: Any, wanted: Any) -> Any:
        return (output[:, 0] - wanted.float()).abs().pow(1.5).mean()

    found = checked(Two(), loss, inputs, target, steps=60)
    assert found.before.verdict == "vanishing"
    assert found.proof is None or not found.proof.loss[1] > found.proof.loss[0]


def test_data_that_are_not_finite_have_no_cure() -> None:
    x, target = task()
    x[0, 0] = float("inf")
    found = checked(chain(), LOSS, x, target)
    assert not found.reached
    assert "x[0, 0] is inf" in str(found)
    assert found.to_dict()["goal"] == "not known"


def test_a_convolution_and_what_becomes_plain_types() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(8) for one in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), *layers, nn.Flatten(),
                          nn.Linear(128, 3))  # fmt: skip
    x, target = task()
    found = checked(model, LOSS, x.reshape(-1, 1, 4, 4), target, steps=60)
    assert found.after.healthy
    plain = found.to_dict()
    names = [attempt["name"] for attempt in plain["attempts"]]
    assert names[:2] == ["scale the data", "what the diagnosis says"]
    assert plain["cost"] <= 1.5


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cure(chain(), steps=0)
    with pytest.raises(ValueError, match="budget must be"):
        cure(chain(), budget=0.5)
    with pytest.raises(ValueError, match="goal must be above 0 and at most 1"):
        cure(chain(), goal=90.0)
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module"):
        cure(None)


def test_lsuv_makes_unit_variance_and_leaves_the_rest() -> None:
    model = chain(nn.ReLU, depth=6)
    x, _ = task()
    biases = [copy.deepcopy(one.bias) for one in model if isinstance(one, nn.Linear)]
    factors = ours.lsuv_(model, x)
    assert list(factors) == [name for name, one in model.named_modules()
                             if isinstance(one, nn.Linear)]  # fmt: skip
    h = x
    for one in model:
        h = one(h)
        if isinstance(one, nn.Linear):
            assert float(h.detach().std()) == pytest.approx(1.0, abs=0.02)
            assert torch.equal(one.bias, biases.pop(0))


def test_lsuv_changes_nothing_where_it_cannot() -> None:
    model = chain(depth=3)
    with torch.no_grad():
        model[2].weight.zero_()
        model[2].bias.zero_()
    before = copy.deepcopy(model)
    with pytest.raises(ValueError, match="2 cannot be scaled"):
        ours.lsuv_(model, task()[0])
    assert same(before, model)
    assert np.isfinite(float(model[0].weight.detach().sum()))


def test_several_inputs_have_rows() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = chain(nn.ReLU, depth=20)

        def forward(self, a: Any, b: Any) -> Any:
            assert len(a) == len(b)
            return self.net(torch.cat([a, b], 1))

    x, target = task()
    one = cure(chain(nn.ReLU, depth=20), steps=60)
    found = checked(Two(), LOSS, {"a": x[:, :8], "b": x[:, 8:]}, target, steps=60)
    assert found.batch_size == 32
    assert [a.name for a in found.attempts if a.accepted] == [
        a.name for a in one.attempts if a.accepted
    ]

"""vegrad.torch.cure: what it changes, what it leaves, that its patch does the same."""

import copy
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

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
    return ours.cure(model, LOSS, x, target, **{"steps": 120, **options})


def patched(model: Any, found: Any) -> Any:
    """What the patch makes of a copy."""
    changed = copy.deepcopy(model)
    optimizer = torch.optim.Adam(changed.parameters())
    code = found.patch.partition("# before each step")[0]
    names = {"torch": torch, "nn": nn, "vegrad": __import__("vegrad"), "model": changed}
    exec(code, names | {"x": task()[0], "optimizer": optimizer})
    return changed


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
    assert found.attempts[0].name == "scale layers"
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


def test_a_deep_network_is_scaled_on_the_data() -> None:
    model = chain(nn.ReLU, depth=20)
    found = cure(copy.deepcopy(model))
    assert found.cured
    assert found.attempts[-1].name == "LSUV"
    assert same(patched(model, found), found.model)


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
    found = cure(model)
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
    found = ours.cure(model, LOSS, x, target, steps=40)
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

    found = ours.cure(Two(), loss, inputs, target, steps=60)
    assert found.before.verdict == "vanishing"
    assert found.proof is None or not found.proof.loss[1] > found.proof.loss[0]


def test_data_that_are_not_finite_have_no_cure() -> None:
    x, target = task()
    x[0, 0] = float("inf")
    found = ours.cure(chain(), LOSS, x, target)
    assert not found.reached
    assert "x[0, 0] is inf" in str(found)


def test_a_convolution_and_what_becomes_plain_types() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(8) for one in (nn.Conv2d(8, 8, 3, padding=1), nn.ReLU())]
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), *layers, nn.Flatten(),
                          nn.Linear(128, 3))  # fmt: skip
    x, target = task()
    found = ours.cure(model, LOSS, x.reshape(-1, 1, 4, 4), target, steps=60)
    assert found.after.healthy
    plain = found.to_dict()
    assert plain["attempts"][0]["name"] == "scale layers"


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        cure(chain(), steps=0)


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

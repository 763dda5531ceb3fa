"""Diagnosis and apply where models hold what no kernel reads, or names that no code expects."""

import gc
import pickle
import weakref
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn.utils.parametrizations import weight_norm  # noqa: E402

X = torch.randn(64, 8, generator=torch.Generator().manual_seed(0))
TARGET = torch.arange(64) % 3


def small() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))


def chain(layer: Any, depth: int = 6) -> Any:
    torch.manual_seed(0)
    layers = [module for _ in range(depth) for module in (layer(8, 8), nn.Tanh())]
    return nn.Sequential(*layers, layer(8, 3))


@pytest.mark.parametrize(
    "parameter",
    [
        nn.Parameter(torch.arange(4), requires_grad=False),
        nn.Parameter(torch.tensor([True]), requires_grad=False),
        nn.Parameter(torch.empty(3, device="meta"), requires_grad=False),
        nn.UninitializedParameter(requires_grad=False),
        nn.Parameter(torch.full((3, 3), -torch.inf).triu(1), requires_grad=False),
    ],
    ids=["integers", "booleans", "meta", "lazy", "mask"],
)
def test_parameters_that_are_no_weights_are_passed_over(parameter: Any) -> None:
    model = small()
    model.register_parameter("other", parameter)
    assert ours.diagnose(model, F.cross_entropy, X, TARGET).healthy


def test_a_trained_parameter_that_is_not_finite_is_named() -> None:
    model = small()
    model.register_parameter("scale", nn.Parameter(torch.tensor([1.0, torch.nan])))
    finding = ours.diagnose(model, F.cross_entropy, X, TARGET).findings[0]
    assert (finding.cause, finding.sites[0].name) == ("nonfinite-weights", "scale")


def test_weights_that_are_made_of_others_are_no_edit() -> None:
    model = chain(lambda i, o: weight_norm(nn.Linear(i, o)))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("original0"):
                parameter *= 0.01
    found = ours.diagnose(model, F.cross_entropy, X, TARGET)
    assert found.verdict == "vanishing"
    assert "the weights of 2 " in found.findings[0].advice
    assert found.apply(model) is None
    cure = ours.cure(model, F.cross_entropy, X, TARGET, steps=10, budget=3)
    assert cure.before.verdict == "vanishing"


@pytest.mark.parametrize("name", ['a"b', "a\\b", "a'b", "a{b}%s", "größe"])
def test_any_name_of_a_module_can_be_edited(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16))
    for number in range(6):
        model.add_module(f"relu{number}", nn.ReLU())
        model.add_module(f"{name}{number}", nn.Linear(16, 16))
    model.add_module("out", nn.Linear(16, 3))
    model.get_submodule(f"{name}3").weight.data *= 1e-6
    found = ours.diagnose(model, F.cross_entropy, X, TARGET)
    assert found.apply(model) == (f"{name}3.weight",)
    assert ours.diagnose(model, F.cross_entropy, X, TARGET).healthy


def test_weights_that_are_all_zero_are_drawn_again() -> None:
    model = chain(nn.Linear)
    nn.init.zeros_(model[6].weight)
    found = ours.diagnose(model, F.cross_entropy, X, TARGET)
    assert not found.healthy
    assert "draw 6.weight again" in found.findings[0].advice
    assert found.apply(model) == ("6.weight",)
    assert ours.diagnose(model, F.cross_entropy, X, TARGET).healthy


class Force(nn.Module):  # type: ignore[misc]
    """The gradient of an energy with respect to its inputs, taken in `forward`."""

    def __init__(self) -> None:
        super().__init__()
        self.energy = chain(nn.Linear)

    def forward(self, x: Any) -> Any:
        x = x.requires_grad_()
        return torch.autograd.grad(self.energy(x).sum(), x, create_graph=True)[0]


def test_gradients_within_forward() -> None:
    found = ours.diagnose(Force(), F.mse_loss, X.clone(), torch.randn(64, 8))
    assert found.loss is not None
    assert str(found)


class WithLoss(nn.Sequential):  # type: ignore[misc]
    def loss(self, output: Any, target: Any) -> Any:
        return F.cross_entropy(output, target)


def test_a_diagnosis_keeps_neither_model_nor_loss() -> None:
    model = WithLoss(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    alive = weakref.ref(model)
    found = ours.diagnose(model, model.loss, X, TARGET)
    del model
    gc.collect()
    assert alive() is None
    again = pickle.loads(pickle.dumps(ours.diagnose(small(), lambda o, t: o.sum(), X, TARGET)))
    assert again.verdict
    assert found.healthy


def test_a_page_of_bfloat16() -> None:
    model = chain(nn.Linear).bfloat16()
    found = ours.diagnose(model, F.cross_entropy, X.bfloat16(), TARGET)
    assert "bfloat16" in found.to_html()

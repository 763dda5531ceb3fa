"""Edits of PyTorch models: in place where the shape stays, and their code does the same."""

import copy
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.flow.edits import (  # noqa: E402
    AddSkips,
    Edit,
    Initialize,
    Lsuv,
    Redraw,
    Scale,
    ScaleData,
    Shift,
    Zero,
    together,
)
from vegrad.flow.subject import Code, Refusal  # noqa: E402
from vegrad.torch.subject import ModelSubject  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")


def build() -> Any:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def done(model: Any, edit: Edit) -> Code:
    """Do an edit in place, and hold its code to do the same to a copy, with no other traces."""
    given, random = copy.deepcopy(model), torch.random.get_rng_state()
    code = ModelSubject(model).apply(edit)
    assert isinstance(code, Code)
    assert torch.equal(torch.random.get_rng_state(), random)
    exec("\n".join(code.lines), {"torch": torch, "nn": nn, "vegrad": vegrad, "model": given})
    for name, value in model.state_dict().items():
        assert torch.equal(given.state_dict()[name], value)
    return code


@pytest.mark.parametrize(
    ("edit", "expected"),
    [
        (Scale(("2.weight",), 0.25), lambda w: w * 0.25),
        (Scale(("2.weight",), 2.0, rows=(2, 5)), lambda w: torch.cat([w[:2], 2 * w[2:5], w[5:]])),
        (Zero(("2.weight",), rows=(0, 3)), lambda w: torch.cat([0 * w[:3], w[3:]])),
        (Shift(("2.weight",), 0.5), lambda w: w + 0.5),
    ],
)
def test_values_are_changed_in_place(edit: Edit, expected: Any) -> None:
    model, before = build(), build()
    assert done(model, edit).changed == ("2.weight",)
    assert torch.equal(model[2].weight, expected(before[2].weight))
    for name in ("0.weight", "0.bias", "2.bias", "4.weight"):
        assert torch.equal(model.get_parameter(name), before.get_parameter(name))


def test_one_parameter_of_a_module_is_drawn_again_and_the_other_kept() -> None:
    model, bias = build(), build()[2].bias
    with torch.no_grad():
        model[2].weight.fill_(float("nan"))
    assert done(model, Redraw(("2.weight",))).changed == ("2.weight",)
    assert torch.isfinite(model[2].weight).all()
    assert torch.equal(model[2].bias, bias)
    done(model, together(Zero(("2.bias",)), Redraw(("2.weight",))))
    assert not model[2].bias.any()


@pytest.mark.parametrize(
    ("scheme", "std"), [("he_normal", 0.25), ("lecun_normal", 0.177), ("orthogonal", 0.125)]
)
def test_another_initialization(scheme: str, std: float) -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 2))
    code = done(model, Initialize(scheme))
    assert set(code.changed) == {"0.weight", "0.bias", "2.weight", "2.bias"}
    assert float(model[0].weight.detach().std()) == pytest.approx(std, rel=0.1)
    assert not model[0].bias.any()
    done(model, Initialize("critical"))
    assert float(model[0].weight.detach().std()) == pytest.approx(0.25, rel=0.1)  # √2/√32


def test_what_cannot_be_done_is_refused() -> None:
    subject = ModelSubject(build())
    for edit in (AddSkips(), Lsuv(), ScaleData(), Initialize("lsuv"), Scale(("9.weight",), 2.0)):
        assert isinstance(subject.apply(edit), Refusal)
    with pytest.raises(TypeError, match=r"must be a torch\.nn\.Module, not str"):
        ModelSubject("model")


def test_a_diagnosis_is_applied_in_place() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(6) for one in (nn.Linear(16, 16), nn.Tanh())]
    model = nn.Sequential(*layers, nn.Linear(16, 3))
    with torch.no_grad():
        model[6].weight *= 1e-4
    x, target = torch.randn(64, 16), torch.randint(0, 3, (64,))
    loss = nn.CrossEntropyLoss()
    found = ours.diagnose(model, loss, x, target)
    assert found.apply(model) == ("6.weight",)
    assert ours.diagnose(model, loss, x, target).healthy

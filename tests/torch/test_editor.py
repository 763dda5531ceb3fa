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


# Any model -------------------------------------------------------------------------------------


class Turned(nn.Module):
    """A matrix shaped (inputs, outputs), with nothing to draw it again."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Any) -> Any:
        return x @ self.weight + self.bias


class Mixed(nn.Module):
    """Parameters of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 64)
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 10, 64))
        self.up, self.norm = Turned(64, 256), nn.BatchNorm1d(256)
        self.experts = nn.Parameter(torch.randn(4, 256, 32))
        self.waves = nn.Parameter(torch.randn(32, 32, dtype=torch.cfloat))
        self.attention = nn.MultiheadAttention(64, 2)
        self.back = nn.ConvTranspose1d(100, 16, 3)
        self.tied = nn.Linear(64, 50)
        self.tied.weight = self.words.weight


def mixed() -> Any:
    torch.manual_seed(0)
    model = Mixed()
    with torch.no_grad():
        for name, one in model.named_parameters():
            one.mul_(1 if name == "pos_embed" else 100)
    return model


def spread(model: Any, name: str) -> float:
    return float(model.get_parameter(name).detach().abs().std())


def test_each_module_draws_its_own_parameters_again() -> None:
    model, before = mixed(), mixed()
    done(model, Initialize("default"))
    for name, fan_in in {"up.weight": 64, "experts": 256, "tied.weight": 64}.items():
        values = model.get_parameter(name).detach()
        assert float(values.abs().max()) <= fan_in**-0.5 + 1e-6
        assert float(values.std()) == pytest.approx(fan_in**-0.5 / 3**0.5, rel=0.05)
    assert torch.equal(model.pos_embed, before.pos_embed)
    assert float(model.waves.detach().abs().max()) < 0.26
    assert float(model.attention.in_proj_weight.detach().abs().max()) < 0.2
    assert torch.equal(model.norm.weight, torch.ones(256))


@pytest.mark.parametrize(
    ("scheme", "scale"), [("he_normal", 2**0.5), ("lecun_normal", 1.0), ("glorot_uniform", None)]
)
def test_schemes_know_transposed_weights(scheme: str, scale: float | None) -> None:
    model = mixed()
    done(model, Initialize(scheme))
    for name, fan_in, fan_out in (("up.weight", 64, 256), ("back.weight", 300, 48)):
        wanted = (2 / (fan_in + fan_out)) ** 0.5 if scale is None else scale * fan_in**-0.5
        std = float(model.get_parameter(name).detach().std())
        assert std == pytest.approx(wanted, rel=0.05)
    done(model, Initialize("orthogonal"))
    product = model.up.weight @ model.up.weight.T
    assert torch.allclose(product, torch.eye(64), atol=1e-5)


def test_the_models_own_way_to_draw_a_module_comes_last() -> None:
    class Own(nn.Sequential):
        def _init_weights(self, module: Any) -> None:
            if isinstance(module, nn.Linear):
                nn.init.constant_(module.weight, 0.25)

    model = Own(nn.Linear(4, 4), nn.LayerNorm(4))
    done(model, Initialize("default"))
    assert (model[0].weight == 0.25).all()


def test_what_is_frozen_stays() -> None:
    model, before = build(), build()
    model[0].weight.requires_grad_(False)
    done(model, Initialize("default"))
    assert torch.equal(model[0].weight, before[0].weight)
    assert not torch.equal(model[2].weight, before[2].weight)


def test_a_reset_that_fails_changes_nothing() -> None:
    class Broken(nn.Linear):
        ready = False

        def reset_parameters(self) -> None:
            if self.ready:
                raise RuntimeError("no")
            super().reset_parameters()

    model = nn.Sequential(Broken(4, 4), nn.Linear(4, 4))
    model[0].ready, before = True, copy.deepcopy(model)
    assert isinstance(ModelSubject(model).apply(Initialize("default")), Refusal)
    for name, value in before.state_dict().items():
        assert torch.equal(model.state_dict()[name], value)


def test_buffers_are_scaled_too() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    model[1].running_var.fill_(1e8)
    model[1].running_mean.fill_(3.0)
    edit = together(Scale(("1.running_var",), 1e-8), Zero(("1.running_mean",)))
    assert done(model, edit).changed == ("1.running_var", "1.running_mean")
    assert torch.allclose(model[1].running_var, torch.ones(4))
    assert not model[1].running_mean.any()
    assert isinstance(ModelSubject(model).apply(Redraw(("1.running_var",))), Refusal)


def test_parameters_that_no_module_draws_are_drawn_again() -> None:
    model = mixed()
    with torch.no_grad():
        model.pos_embed.zero_()
    done(model, Redraw(("pos_embed", "up.weight", "up.bias")))
    assert spread(model, "pos_embed") == pytest.approx(0.012, rel=0.2)
    assert float(model.up.weight.detach().abs().max()) <= 0.125
    assert not model.up.bias.any()


def test_a_model_that_keeps_tensors_of_a_graph_is_copied() -> None:
    class Keeps(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear, self.seen = nn.Linear(4, 4), {}

        def forward(self, x: Any) -> Any:
            self.last = self.linear(x)
            self.seen["all"] = [self.last * 2, (self.last, self)]
            return self.last

    model = Keeps()
    x = torch.randn(3, 4)
    model(x)
    with pytest.raises(RuntimeError, match="created explicitly"):
        copy.deepcopy(model)
    subject = ModelSubject(model).copy()
    assert subject.model is not model
    assert torch.equal(subject.model.last, model.last)
    assert subject.model.seen["all"][1][0] is subject.model.last
    assert subject.model.last.grad_fn is None
    assert model.last.grad_fn is not None
    assert torch.equal(subject.model(x), model(x))

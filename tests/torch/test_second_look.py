"""A second look at a step: the model's inputs and the gradient at its output are known."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402
from vegrad.diagnosis.judge import judge  # noqa: E402
from vegrad.torch.reading.second_look import (  # noqa: E402
    full_look,
    passes_again,
    second_look,
)

pytestmark = pytest.mark.usefixtures("one_torch_thread")


class Length(nn.Module):
    """The length of what a map makes, after a dropout and a normalization with buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.norm = nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4, affine=False)
        self.out = nn.Linear(1, 2)

    def forward(self, x: torch.Tensor, *, root: bool = True) -> Any:
        h = self.map(x).square().sum(1, keepdim=True)
        self.norm(nn.functional.dropout(x))
        return self.out(h.sqrt() if root else h)


def looked(x: torch.Tensor, delta: torch.Tensor | None, **kwargs: Any) -> Any:
    model = Length()
    model.map.weight.grad = torch.ones(4, 4)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    random = torch.get_rng_state()
    found = second_look(model, (x,), kwargs, delta)
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert torch.equal(model.map.weight.grad, torch.ones(4, 4))
    assert model.out.weight.grad is None
    return found


def test_the_operation_whose_derivative_is_not_finite() -> None:
    x = torch.randn(6, 4)
    x[2] = 0
    first = judge(looked(x, torch.ones(6, 2)))[0]
    assert (first.kind, first.cause) == ("nonfinite", "sqrt-at-zero")
    assert "map.weight" in [site.name for site in first.sites]


def test_a_forward_pass_alone_and_inputs_that_are_not_finite() -> None:
    x = torch.randn(6, 4)
    x[3, 1] = torch.nan
    first = judge(looked(x, None))[0]
    assert (first.cause, first.sites[0].rows) == ("nonfinite-input", (3, 1))


def test_a_loss_whose_gradient_is_not_finite() -> None:
    first = judge(looked(torch.randn(6, 4), torch.full((6, 2), torch.nan)))[0]
    assert (first.cause, first.sites[0].kind) == ("loss-domain", "loss")


def test_what_is_finite_has_no_culprit() -> None:
    x = torch.randn(6, 4)
    reading = looked(x, torch.ones(6, 2), root=False)
    assert all(one.kind != "nonfinite" for one in judge(reading))
    assert reading.loss is None
    assert reading.parameters["map.weight"].gradient_log2 > -torch.inf


def test_a_model_that_cannot_be_run_again() -> None:
    assert looked(torch.randn(6, 5), None) is None


@pytest.mark.parametrize("way", ["places", "both", "names"])
def test_a_full_look_takes_arguments_as_they_were_given(way: str) -> None:
    model, x = Length(), torch.randn(6, 4)
    given = {"places": ((x,), {}), "both": ((x,), {"root": True}), "names": ((), {"x": x})}[way]
    reading = full_look(model, *given, nn.MSELoss(), torch.zeros(6, 2))
    assert reading is not None
    assert any(one.kind == "sqrt" for one in reading.operations)
    assert reading.loss == pytest.approx(float(nn.MSELoss()(model(x), torch.zeros(6, 2)).detach()))


def test_a_full_look_at_a_model_that_runs_once_only() -> None:
    class Once(Length):
        def forward(self, x: torch.Tensor) -> Any:
            raise RuntimeError("used up")

    assert full_look(Once(), (torch.randn(6, 4),), {}, nn.MSELoss(), torch.zeros(6, 2)) is None
    passes_again(Once(), (torch.randn(6, 4),), {}, None)  # is silent

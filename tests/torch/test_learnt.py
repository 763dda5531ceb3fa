"""What a model has learnt, and columns that are not scaled."""

import pytest
import torch
import vegrad.torch
from torch import Tensor, nn
from vegrad.flow.edits import ScaleData

from tests.networks.test_raw_inputs import LABEL as LABELS
from tests.networks.test_raw_inputs import RAW, SCALED
from tests.networks.test_raw_inputs import X as ROWS

LABEL, X = torch.tensor(LABELS), torch.tensor(ROWS, dtype=torch.float32)


def made(activation: type[nn.Module], inputs: int = 2) -> nn.Sequential:
    torch.manual_seed(0)
    hidden = nn.Linear(32, 32)
    first = nn.Linear(inputs, 32)
    return nn.Sequential(first, activation(), hidden, activation(), nn.Linear(32, 3))


def diagnosed(model: nn.Module, x: Tensor) -> vegrad.Diagnosis:
    return vegrad.torch.diagnose(model, nn.functional.cross_entropy, x, LABEL)


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Sigmoid])
def test_a_model_that_has_learnt_is_left_as_it_is(activation: type[nn.Module]) -> None:
    model = made(activation)
    adam = torch.optim.Adam(model.parameters(), 1e-2)
    for _ in range(1000):
        rows = torch.randint(len(X), (32,))
        adam.zero_grad()
        nn.functional.cross_entropy(model(X[rows]), LABEL[rows]).backward()
        adam.step()
    found = diagnosed(model, X)
    assert found.healthy, str(found)
    assert "it has learnt: its loss is" in found.summary
    assert found.apply(model) is None


def test_a_model_that_is_saturated_and_has_not_learnt_is_called_so() -> None:
    model = made(nn.Tanh)
    with torch.no_grad():
        for place in (0, 2):
            model[place].weight *= 20
    assert diagnosed(model, X).verdict == "saturated"


@pytest.mark.parametrize("name", RAW)
def test_raw_columns_are_blamed_on_the_data(name: str) -> None:
    first = diagnosed(made(nn.Tanh), torch.tensor(RAW[name], dtype=torch.float32)).findings[0]
    assert (first.cause, first.edit) == ("input-scale", ScaleData()), str(first)


@pytest.mark.parametrize("name", SCALED)
def test_scaled_columns_are_not(name: str) -> None:
    x = torch.tensor(SCALED[name], dtype=torch.float32)
    assert diagnosed(made(nn.Tanh, x.shape[1]), x).healthy


def test_columns_that_a_normalization_takes_are_not() -> None:
    x = torch.tensor(RAW["one tiny column"], dtype=torch.float32)
    assert diagnosed(nn.Sequential(nn.BatchNorm1d(2, eps=1e-12), *made(nn.Tanh)), x).healthy

"""Diagnoses of units and rows that are alike, of inputs that are tiny, and of hidden softmaxes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from vegrad.torch import diagnose

ROWS = 100


def first(model: nn.Module, x: Tensor, target: Tensor) -> str:
    found = diagnose(model, functional.cross_entropy, x, target, resamples=0).findings
    return found[0].cause if found else ""


def data(columns: int = 10) -> tuple[Tensor, Tensor]:
    torch.manual_seed(0)
    return torch.randn(ROWS, columns), torch.randint(0, 4, (ROWS,))


def made(act: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(10, 32), act(), nn.Linear(32, 32), act(), nn.Linear(32, 4))


@pytest.mark.parametrize("value", [0.0, 0.05, 1.0])
def test_weights_that_are_all_equal(value: float) -> None:
    model = made()
    for one in model[::2]:
        nn.init.constant_(one.weight, value)
    found = diagnose(model, functional.cross_entropy, *data(), resamples=0)
    assert found.findings[0].cause == "symmetry"
    assert found.apply(model) == ("0.weight", "2.weight", "4.weight")
    assert first(model, *data()) == ""


def test_a_head_that_begins_at_0_is_no_symmetry() -> None:
    model = made()
    nn.init.zeros_(model[4].weight)
    assert first(model, *data()) == ""


def test_equal_filters() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(96, 4)
    )
    x, target = torch.randn(ROWS, 3, 8, 8), data()[1]
    assert first(model, x, target) == ""
    for one in (model[0], model[2]):
        nn.init.constant_(one.weight, 0.1)
    assert first(model, x, target) == "symmetry"


class Convolutions(nn.Module):
    """Layers that average over a graph's neighbours."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        edges = (torch.rand(ROWS, ROWS) < 0.1).float() + torch.eye(ROWS)
        self.register_buffer("mean", edges / edges.sum(1, keepdim=True))
        self.layers = nn.ModuleList(nn.Linear(32 if n else 10, 32) for n in range(depth))
        for one in self.layers:
            nn.init.kaiming_normal_(one.weight)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        for one in self.layers:
            x = functional.relu(one(self.mean @ x))
        return self.head(x)


def test_rows_that_are_averaged_until_they_are_alike() -> None:
    assert first(Convolutions(2), *data()) == ""
    assert first(Convolutions(20), *data()) == "collapse"


def test_a_deep_network_that_mixes_no_rows_does_not_collapse() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(32 if n else 10, 32) for n in range(20)]
    for one in layers:
        nn.init.kaiming_normal_(one.weight)
    parts = [part for one in layers for part in (one, nn.ReLU())]
    assert first(nn.Sequential(*parts, nn.Linear(32, 4)), *data()) == ""


@pytest.mark.parametrize("size", [1e-5, 1e3])
def test_inputs_of_another_size(size: float) -> None:
    x, target = data()
    for act in (nn.ReLU, nn.Tanh):
        assert first(made(act), x, target) == ""
        assert first(made(act), size * x, target) == "input-scale"


def test_a_softmax_between_layers() -> None:
    found = diagnose(made(lambda: nn.Softmax(1)), functional.cross_entropy, *data(), resamples=0)  # type: ignore[arg-type]
    assert found.findings[0].cause == "activation-derivative"
    assert [site.name for site in found.findings[0].sites] == ["1", "3"]


class Gated(nn.Module):
    """Experts, weighted by a softmax."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(10, 3), nn.ModuleList(made() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        weights = self.gate(x).softmax(1)
        parts = torch.stack([one(x) for one in self.experts], 2)
        return (parts * weights[:, None]).sum(2)


class Topics(nn.Module):
    """Proportions of few topics, of which many words are made."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.words = nn.Linear(10, 4), nn.Linear(4, 40)

    def forward(self, x: Tensor) -> Tensor:
        return self.words(self.encoder(x).softmax(1))


def test_softmaxes_that_weight_or_divide_are_none_between_layers() -> None:
    x, target = data()
    torch.manual_seed(0)
    assert first(Topics(), x, target) == ""
    assert first(Gated(), x, target) == ""

"""Names of modules and parameters that would drive a terminal: shown so that they cannot."""

from __future__ import annotations

import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.clipping import GlobalNorm  # noqa: E402

from tests.test_shown import HOSTILE, assert_error, assert_plain  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore::vegrad.torch.FindingWarning"),
]
NAMES = {key: name.replace(".", "") for key, name in HOSTILE.items()} | {"math": r"a$\frac{$b_^"}
names = pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)


def chain(name: str, depth: int = 12) -> Any:
    torch.manual_seed(0)
    parts = [(f"{name}{n}", one) for n in range(depth) for one in (nn.Linear(8, 8),)]
    layers: list[tuple[str, nn.Module]] = []
    for place, layer in parts:
        layers += [(place, layer), (f"{place}s", nn.Sigmoid())]
    return nn.Sequential(OrderedDict([*layers, (f"{name}out", nn.Linear(8, 3))]))


def branched(name: str) -> Any:
    """A model that is no chain, of a class with such a name too, with dead units."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.add_module(f"{name}a", nn.Linear(8, 8))
            self.add_module(f"{name}b", nn.Linear(8, 3))
            nn.init.constant_(getattr(self, f"{name}a").bias, -100.0)
            self.register_parameter(f"{name}p", nn.Parameter(torch.ones(8)))

        def forward(self, x: Any) -> Any:
            first = getattr(self, f"{name}a")
            hidden = torch.relu(first(x)) * getattr(self, f"{name}p")
            return getattr(self, f"{name}b")(hidden + torch.relu(first(-x)))

    Model.__name__ = Model.__qualname__ = name.replace("\0", "").replace("\udc80", "")
    return Model()


DATA = {"x": torch.randn(16, 8), "y": torch.arange(16) % 3}


def outputs(found: Any, tmp_path: Path) -> list[str]:
    """Everything that a diagnosis or a report shows."""
    picture = tmp_path / "picture.svg"
    found.plot(picture)
    texts = [str(found), repr(found), found._repr_html_(), found.to_html(), found.summary]
    texts += [f"{one.message} {one.advice}" for one in found.findings]
    return [*texts, picture.read_text(encoding="utf-8").replace("\t", " ")]


@names
@pytest.mark.parametrize("make", [chain, branched])
def test_diagnoses(make: Any, name: str, tmp_path: Path) -> None:
    model = make(name)
    found = ours.diagnose(model, nn.CrossEntropyLoss(), DATA["x"], DATA["y"])
    for text in outputs(found, tmp_path):
        assert_plain(text)
    assert_error(lambda: ours.diagnose(model, name, DATA["x"], DATA["y"]))


@names
@pytest.mark.parametrize("make", [chain, branched])
def test_monitors(make: Any, name: str, tmp_path: Path) -> None:
    model = make(name)
    optimizer = ours.SGD(model.parameters(), lr=0.1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        monitor = ours.Monitor(model, log=tmp_path / "run.jsonl")
        for step in range(12):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(DATA["x"]), DATA["y"])
            (loss * (float("nan") if step == 11 else 1.0)).backward()
            optimizer.step()
            monitor.step(batch=name)
    for text in outputs(monitor.report(), tmp_path):
        assert_plain(text)
    for warning in caught:
        assert_plain(str(warning.message))
        assert len(str(warning.message)) < 2000


@names
def test_optimizers_and_clips(name: str) -> None:
    model = chain(name, 2)
    with pytest.raises((TypeError, ValueError)) as caught:
        ours.clip_grad_norm_(model.parameters(), 1.0, name)
    assert_plain(str(caught.value))
    assert_error(lambda: ours.SGD(model.parameters(), lr=0.1, clip=name))
    assert_error(lambda: ours.Monitor(model, on_finding=name))
    model[0].weight.grad = torch.full((8, 8), float("nan"))
    optimizer = ours.SGD(model.named_parameters(), lr=0.1, clip=GlobalNorm(1.0))
    assert_error(optimizer.step)


@names
def test_cures(name: str) -> None:
    model = chain(name, 10)
    found = ours.cure(model, nn.CrossEntropyLoss(), DATA["x"], DATA["y"], budget=1.0, seed=0)
    for text in (str(found), repr(found), found._repr_html_(), found.patch):
        assert_plain(text)

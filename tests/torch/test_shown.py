"""Answers about PyTorch models, as a notebook and a prompt show them."""

import re

import pytest

torch = pytest.importorskip("torch")

import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch.monitor.report import Report  # noqa: E402

from tests.reports.test_page import Page  # noqa: E402


def watched(model: nn.Module, x: torch.Tensor) -> ours.Monitor:
    monitor = ours.Monitor(model, on_finding=None)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    for _ in range(2):
        optimizer.zero_grad()
        out = model(x)
        (out[0] if isinstance(out, tuple) else out).square().mean().backward()
        optimizer.step()
    return monitor


def test_a_report_shows_its_modules() -> None:
    evil = nn.Sequential()
    evil.add_module("<b>evil</b>", nn.Linear(4, 4))
    report = watched(evil, torch.randn(8, 4)).report()
    html = report._repr_html_()
    assert "&lt;b&gt;evil&lt;/b&gt;" in html
    assert "<b>evil" not in html
    page = Page(html)
    assert "Sequential, step 1" in page.text
    assert "activation rms" in page.text
    assert re.match(r"<Report: .*>$", repr(report))


def test_a_report_shows_the_flow_through_time() -> None:
    class Last(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.head = nn.LSTM(3, 5, batch_first=True), nn.Linear(5, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.rnn(x)[0][:, -1])

    found = ours.diagnose(Last(), nn.MSELoss(), torch.randn(8, 20, 3), torch.randn(8, 2))
    assert isinstance(found, Report)
    assert found.through_time
    page = Page(found._repr_html_())
    for row in found.through_time:
        assert row["parameter"] in page.text
        assert f"{row['reach']} of {row['steps']} steps" in page.text


def test_a_large_model_is_shown_by_its_ends() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(300)))
    html = watched(model, torch.randn(8, 4)).report()._repr_html_()
    assert len(html.encode()) < 60_000
    page = Page(html)
    assert re.search(r"27[4-8] modules in the middle are not shown", page.text)
    assert len(repr(ours.Monitor(model).history)) < 60


@pytest.mark.parametrize("name", ["chain", "branches"])
def test_a_diagnosis_shows_itself(name: str) -> None:
    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.left(x).tanh() * self.right(x).sigmoid()

    chain = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
    model = {"chain": chain, "branches": Branches()}[name]
    found = ours.diagnose(model, nn.MSELoss(), torch.randn(32, 4), torch.randn(32, 3))
    html = found._repr_html_()
    assert len(html.encode()) < 60_000
    page = Page(html)
    assert found.sentence.partition(";")[0][1:] in page.text
    assert len(repr(found).splitlines()) == 1
    if name == "chain":
        assert "0 0" in page.text  # layer 0 is module 0
        assert "1 2" in page.text


def test_a_cure_shows_its_patch() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(12) for one in (nn.Linear(8, 8), nn.Sigmoid())]
    model = nn.Sequential(*layers, nn.Linear(8, 2))
    x = torch.randn(256, 8)
    found = ours.cure(model, nn.functional.cross_entropy, x, (x[:, 0] > 0).long(), steps=100)
    assert found.patch
    page = Page(found._repr_html_())
    assert next(one.name for one in found.attempts if one.accepted) in page.text
    for line in found.patch.splitlines():
        assert " ".join(line.split()) in page.text
    assert re.match(r"<ModelCure: .*>$", repr(found))
    assert len(repr(found)) < 400

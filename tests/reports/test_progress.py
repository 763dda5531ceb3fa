"""The line of progress: one bar in a notebook, whatever is trained."""

import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.reports import progress

X, Y = np.ones((40, 6)), np.zeros((40, 2))


@pytest.fixture
def notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel, as far as anybody can tell from its shell; tqdm then falls back to text."""
    shell = SimpleNamespace(config={"IPKernelApp": {}})
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))  # type: ignore[arg-type]
    tqdm = pytest.importorskip("tqdm")
    monkeypatch.setitem(sys.modules, "tqdm.auto", tqdm)


def fit(**options: Any) -> vegrad.History:
    network = vegrad.MLP([6, 8, 2], activation="tanh", seed=0)
    return network.fit(X, Y, optimizer=vegrad.SGD(0.01), epochs=3, batch_size=8, **options)


@pytest.mark.usefixtures("notebook")
def test_a_training_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert progress.in_notebook()
    fit(on_finding=None)
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    last = said.err.rpartition("\r")[2]
    assert "epoch 3/3 100%" in last
    assert "loss" in last


@pytest.mark.usefixtures("notebook")
def test_a_search_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.standard_normal((60, 6)), rng.integers(0, 2, 60)
    network = vegrad.MLP([6, *[8] * 12, 2], activation="sigmoid", loss="cross_entropy", seed=0)
    vegrad.cure(network, x, labels, steps=40, budget=2.0, progress=True)
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "step" in said


@pytest.mark.usefixtures("notebook")
def test_an_error_ends_the_bar(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        fit(callbacks=[fail])
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.usefixtures("notebook")
def test_without_tqdm_there_are_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)  # type: ignore[arg-type]
    fit(on_finding=None)
    assert [line[:9] for line in capsys.readouterr().err.splitlines()] == [
        f"epoch {n}/3" for n in (1, 2, 3)
    ]


def test_here_is_no_notebook() -> None:
    assert not progress.in_notebook()

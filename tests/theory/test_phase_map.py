"""Maps of random networks: the same from any number of workers, near theory where it holds."""

from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from math import isnan, nan
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad import theory
from vegrad.datasets.dataset import standardize
from vegrad.theory.phase_maps import Point, Settings, _seed

DEEP = {"depth": 40, "width": 200, "draws": 4}


def spiral(rows: int = 200) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=rows)
    return rng.standard_normal((rows, 8)) + 3.0 * np.eye(8)[labels], labels


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu"])
def test_the_gain_is_what_theory_expects_of_deep_wide_networks(activation: str) -> None:
    line = theory.critical_point(activation, 0.0)
    assert line is not None
    found = theory.phase_map(activation, [0.8 * line.sigma_w, 1.5 * line.sigma_w], **DEEP)
    assert found.critical == pytest.approx([line.sigma_w])
    near = np.abs(found.gain_log2[:, 0, 0, 0] - found.expected_gain_log2[:, 0])
    assert near.max() < 0.06
    low, high = found.gain_log2[:, 0, 0, 0]
    assert activation == "gelu" or low < 0 < high  # that of gelu grows again below the line


def test_the_gain_is_that_of_a_network_drawn_from_the_point_s_seed() -> None:
    found = theory.phase_map("tanh", 1.3, 0.1, 6, 12, draws=1, data=spiral(), batch_size=200)
    drawn = _seed(Settings("tanh", 1, 0, 0.01, 200, 0), Point(1.3, 0.1, 6, 12), 0)
    net = vegrad.MLP(
        [8, *[12] * 5, 3], loss="cross_entropy", init="normal", sigma_w=1.3, sigma_b=0.1, seed=drawn
    )
    x, labels = spiral()
    net.backward(standardize(x).astype(np.float32), labels)
    expected = float(np.mean(net.flow.gain_log2))
    assert found.gain_log2.item() == pytest.approx(expected, rel=1e-6)


def test_any_number_of_workers_gives_the_same(tmp_path: Path) -> None:
    asked = {"data": spiral(), "steps": 30, "lr": 0.1, "draws": 2}
    axes = ("tanh", [0.5, 1.2], [0.0, 0.3], [3, 8], [16, 24])
    here = theory.phase_map(*axes, **asked)
    file, told = tmp_path / "map.jsonl", []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
        there = theory.phase_map(
            *axes, **asked, executor=executor, file=file, tell=lambda *n: told.append(n)
        )
    again = theory.phase_map(*axes, **asked, file=file)
    assert told == [(n, 16) for n in range(1, 17)]
    for one in (there, again):
        assert np.array_equal(one.gain_log2, here.gain_log2)
        assert np.array_equal(one.accuracy, here.accuracy)
    part = theory.phase_map("tanh", 1.2, 0.3, 8, 24, **asked)
    assert part.gain_log2.item() == here.gain_log2[1, 1, 1, 1]
    other = theory.phase_map("tanh", 1.2, 0.3, 8, 24, **asked, seed=1)
    assert other.gain_log2.item() != part.gain_log2.item()


def test_networks_train_where_theory_says() -> None:
    found = theory.phase_map(
        "tanh", [0.6, 1.0], 0.0, [3, 20], 64, data=spiral(), steps=300, lr=0.05, draws=2
    )
    assert found.reach[0, 0] < 20 < found.reach[1, 0]
    shallow, deep = found.accuracy[:, 0, :, 0].T
    assert shallow.min() > 0.9
    assert deep[0] < 0.6 < 0.9 < deep[1]


def test_sizes_beyond_every_float_and_a_point_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    found = theory.phase_map("tanh", [1e-3, 0.0], 0.0, 60, 10)
    assert found.gain_log2[0, 0, 0, 0] == pytest.approx(np.log2(1e-3), abs=0.2)
    assert isnan(found.gain_log2[1, 0, 0, 0])  # nothing comes through
    known = theory.phase_map.__globals__["_one"]

    def failing(settings, x, labels, point, draw):
        if point.depth == 3:
            raise MemoryError("no room for 3")
        return known(settings, x, labels, point, draw)

    monkeypatch.setitem(theory.phase_map.__globals__, "_one", failing)
    found = theory.phase_map("tanh", 1.0, 0.0, [2, 3], 10)
    assert found.problems == {Point(1.0, 0.0, 3, 10): "MemoryError: no room for 3"}
    assert np.isfinite(found.gain_log2[0, 0, :, 0]).tolist() == [True, False]
    assert "not measured: 1 point, the first at σ_w 1, σ_b 0, depth 3, width 10" in str(found)


def test_what_overflows_has_learnt_nothing() -> None:
    found = theory.phase_map("relu", 9.0, 0.0, 30, 16, data=spiral(), steps=20, lr=10.0, draws=1)
    assert found.accuracy.item() <= 0.5


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"activation": "step"}, ValueError, "activation"),
        ({"sigma_w": []}, ValueError, "sigma_w must have a value"),
        ({"sigma_w": [1.0, 1.0]}, ValueError, "sigma_w has a value twice"),
        ({"sigma_w": -1.0}, ValueError, "not negative"),
        ({"sigma_w": "wide"}, TypeError, "must be a number, not str"),
        ({"depth": 0}, ValueError, "depth must be at least 1"),
        ({"width": 2.5}, TypeError, "width must be an integer"),
        ({"draws": 0}, ValueError, "draws must be at least 1"),
        ({"steps": 5}, ValueError, r"training takes data=\(x, labels\), got None"),
        ({"data": 3}, TypeError, r"data must be \(x, labels\), not int"),
        ({"data": (np.eye(3), np.array([0.1, 0.2, 0.7]))}, ValueError, "labels must be classes"),
        ({"data": (np.eye(3), np.array([0, 1]))}, ValueError, "a label for each row, not 2 for 3"),
        ({"data": (np.full((3, 2), nan), np.arange(3))}, ValueError, "x must be finite"),
        ({"lr": nan}, ValueError, "lr must be"),
    ],
)
def test_bad_arguments(change, error, message) -> None:
    with pytest.raises(error, match=message):
        theory.phase_map(**({"activation": "tanh", "sigma_w": 1.0} | change))


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    found = theory.phase_map("tanh", [0.8, 1.2], [0.0, 0.2], 5, 8)
    found.plot(tmp_path / "bias.png")
    trained = theory.phase_map("tanh", [0.8, 1.2], 0.0, [3, 6], 8, data=spiral(), steps=3)
    figure = trained.plot(tmp_path / "depth.svg")
    assert [axes.get_xlabel() for axes in figure.axes] == ["σ_w", "σ_w", "", ""]
    replace(found, gain_log2=np.full_like(found.gain_log2, nan)).plot()
    with pytest.raises(ValueError, match="two values of σ_w"):
        theory.phase_map("tanh", 1.0, 0.0, 2, 8).plot()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bias.png", "depth.svg"]


def test_a_long_table_is_cut() -> None:
    found = theory.phase_map("tanh", list(np.linspace(0.5, 2, 50)), 0.0, 2, 4, draws=1)
    assert str(found).splitlines()[-1] == "… 10 more points"

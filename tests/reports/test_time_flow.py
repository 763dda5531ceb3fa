"""Text and picture of the flow through time."""

import re
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.reports.time_flow import left_over

RNG = np.random.default_rng(2)
X = RNG.standard_normal((4, 12, 3))


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize(("layers", "steps"), [(1, 12), (3, 12), (2, 1)])
def test_every_flow_can_be_shown(cell: str, targets: str, layers: int, steps: int) -> None:
    network = vegrad.RNN(3, 5, 2, cell=cell, layers=layers, targets=targets, seed=0)
    target = RNG.standard_normal((4, steps, 2))
    network.backward(X[:, :steps], target if targets == "all" else target[:, -1])
    lines = str(network.flow).splitlines()
    assert len(lines) == layers + 3
    assert max(map(len, lines)) <= 80
    sizes = left_over(network.flow)
    assert sizes.shape == (layers, steps)
    np.testing.assert_array_equal(sizes[:, -1], 0)
    pytest.importorskip("matplotlib")
    assert len(network.flow.plot().axes) == (5 if cell in ("lstm", "gru") else 4)


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize(("cell", "layers", "steps"), [("lstm", 2, 12), ("tanh", 1, 2)])
def test_a_diagnosis_shows_the_flow_of_its_pass(
    cell: str, targets: str, layers: int, steps: int, tmp_path: Path
) -> None:
    network = vegrad.RNN(3, 5, 2, cell=cell, layers=layers, targets=targets, seed=0)
    target = RNG.standard_normal((4, steps, 2))
    found = vegrad.diagnose(network, X[:, :steps], target if targets == "all" else target[:, -1])
    assert isinstance(found.flow, vegrad.TimeFlow)
    assert (found.time_flow, found.layer_flow, found.expected) == (found.flow, None, None)
    np.testing.assert_array_equal(found.flow.delta_log2, network.flow.delta_log2)
    head, table, said, verdict, *_ = str(found).split("\n\n")
    assert f"{table}\n\n{said}" == str(found.flow)
    assert "units" in head
    assert verdict.startswith(found.verdict)
    assert found.to_dict()["flow"]["reach"] == pytest.approx(found.flow.reach.tolist())
    for shown in (found.to_html(), found._repr_html_()):
        assert "way back" in shown
        assert "Gain of a step back" in shown
    pytest.importorskip("matplotlib")
    path = tmp_path / "flow.svg"
    assert len(found.plot(path).axes) == (5 if cell == "lstm" else 4)
    assert path.stat().st_size > 1000


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_few_steps_are_told_of(cell: str) -> None:
    network = vegrad.RNN(3, 5, 2, cell=cell, layers=2, seed=0)
    one, two = (vegrad.diagnose(network, X[:, :steps], np.ones((4, 2))) for steps in (1, 2))
    assert one.sentence == "there is one step, from which no gradient goes back through time"
    assert two.flow is not None
    size = 2.0 ** two.flow.left_log2[:, 0].min()
    assert re.fullmatch(
        rf"the gradient of layer . reaches the first of 2 steps at {size:.2f} of the last",
        two.sentence,
    )


def test_gates_that_are_shut_can_be_drawn() -> None:
    pytest.importorskip("matplotlib")
    network = vegrad.RNN(3, 5, 2, forget_bias=-1e4, seed=0)
    network.backward(X, np.ones((4, 2)))
    assert (network.flow.time_scales == 0).all()
    assert len(network.flow.plot().axes) == 5


def test_files_and_extremes(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    network = vegrad.RNN(3, 5, 2, cell="relu", seed=0)
    for size in (0.0, 1e3):  # nothing goes back, and all explodes
        network.parameters["rnn.weight_hh_l0"][...] = size
        network.backward(np.abs(X), np.ones((4, 2)))
        path = tmp_path / f"{size:g}.svg"
        network.flow.plot(path)
        assert path.stat().st_size > 1000
        assert str(network.flow)

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
    assert (found.time_flow, found.layer_flow, found.expected_flow) == (found.flow, None, None)
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
    one, two = (vegrad.diagnose(network, X[:, :steps], np.eye(4, 2)) for steps in (1, 2))
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


def test_the_axes_of_steps_are_one_and_the_bar_has_figures() -> None:
    pytest.importorskip("matplotlib")
    for cell in ("relu", "lstm"):
        for factor in (1.0, 30.0):
            network = vegrad.RNN(3, 5, 2, cell=cell, layers=2, seed=0)
            for layer in (0, 1):
                network.parameters[f"rnn.weight_hh_l{layer}"][...] *= factor
            network.backward(X, np.ones((4, 2)))
            figure = network.flow.plot()
            steps = [one for one in figure.axes if one.get_xlabel() == "step" or one.images]
            assert {one.get_xlim() for one in steps} == {(-0.5, 11.5)}
            bar = next(one for one in figure.axes if one.get_ylabel() == "log10")
            low, high = bar.get_ylim()
            ticks = bar.get_yticks()
            assert low <= min(ticks) <= 0 <= max(ticks) <= high
            assert (max(ticks) - min(ticks)) > (high - low) / 3


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
def test_what_is_expected_of_a_cell_is_worked_out_when_it_is_asked_for(cell: str) -> None:
    network = vegrad.RNN(3, 24, 2, cell=cell, seed=1)
    found = vegrad.diagnose(network, RNG.standard_normal((16, 40, 3)), np.ones((16, 2)))
    assert "anew" not in vars(found.reading.cells[0])
    (expected,) = found.expected
    assert found.expected[0] is expected
    assert expected.cell == cell
    measured = vegrad.theory.recurrence.mean_gain_log2(found.flow.delta_log2[0])
    assert abs(expected.deviation(float(measured))) < 4
    assert re.match(rf"<ExpectedRecurrence: {cell}, \S+× ± \d+% a step, reach .* steps>$",
                    repr(expected))  # fmt: skip
    bad = vegrad.diagnose(network, np.full((16, 40, 3), np.nan), np.ones((16, 2)))
    assert bad.expected is None

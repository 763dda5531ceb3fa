"""Text and picture of the flow through time."""

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

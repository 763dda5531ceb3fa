"""The cells' formulas, held to central differences, and sizes far beyond float64."""

from math import log2

import numpy as np
import pytest
from vegrad.theory import cells
from vegrad.theory.cells import GATES

INPUTS, HIDDEN, STEPS, ROWS, SETS = 3, 6, 5, 2, 2


def make(cell: str, projected: int = 0, scale: float = 1.0) -> tuple[cells.Weights, np.ndarray]:
    rng = np.random.default_rng(7)
    rows, outputs = len(GATES[cell]) * HIDDEN, projected or HIDDEN
    shapes = {"ih": (rows, INPUTS), "hh": (rows, outputs), "b_ih": (rows,), "b_hh": (rows,)}
    if projected:
        shapes["hr"] = (projected, HIDDEN)
    weights = {part: scale * rng.standard_normal((SETS, *shape)) for part, shape in shapes.items()}
    return weights, rng.standard_normal((STEPS, ROWS, INPUTS))


CASES = [(cell, 0) for cell in GATES] + [("lstm", 4)]


@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_gradients_are_those_of_differences(cell: str, projected: int) -> None:
    weights, x = make(cell, projected)
    ran, last = cells.run(cell, weights, x), np.ones((ROWS, projected or HIDDEN))
    back = ran.back(last)
    size = np.linalg.norm(last)
    for s in range(SETS):
        own = {part: one[s : s + 1] for part, one in weights.items()}
        # Of the GRU the gradient at U_n h differs from that at the pre-activation.
        eye = {**own, "ih": np.eye(own["ih"].shape[1])[None]}
        given = x @ own["ih"][0].T
        for t in range(STEPS):
            gradient = np.zeros_like(given[t])
            for place in np.ndindex(*gradient.shape):
                sides = []
                for step in (1e-5, -1e-5):
                    moved = given.copy()
                    moved[(t, *place)] += step
                    sides.append(np.sum(cells.run(cell, eye, moved).outputs[0, -1] * last))
                gradient[place] = (sides[0] - sides[1]) / 2e-5
            wanted = log2(np.linalg.norm(gradient) / size)
            assert back.at_log2[s, t] == pytest.approx(wanted, abs=1e-6)


@pytest.mark.parametrize(("cell", "projected"), CASES)
def test_delta_gain_and_state(cell: str, projected: int) -> None:
    weights, x = make(cell, projected)
    ran = cells.run(cell, weights, x)
    later = ran.steps[1]
    state = (later.h,) if later.c is None else (later.h, later.c)
    rest = cells.run(cell, weights, x[2:], state)
    np.testing.assert_array_equal(rest.outputs, ran.outputs[:, 2:])
    back, short = ran.back(), rest.back()
    np.testing.assert_allclose(short.delta_log2, back.delta_log2[:, 2:], atol=1e-12)
    np.testing.assert_allclose(np.diff(back.delta_log2), -back.gain_log2[:, 1:], atol=1e-12)
    np.testing.assert_allclose(back.delta_log2[:, -1], 0.0, atol=1e-12)
    if cell in ("tanh", "relu"):
        np.testing.assert_allclose(back.matrix_log2, back.gain_log2, atol=1e-12)
        assert np.all(back.carry_log2 == -np.inf)
        assert np.isnan(ran.carry_mean).all()
    else:
        assert np.all(back.carry_log2 < 0)
        assert ran.carry_mean.shape == (SETS, HIDDEN)
    assert np.isnan(back.matrix_log2[:, 0]).all() == (cell == "lstm")
    h = np.random.default_rng(1).standard_normal((ROWS, projected or HIDDEN))
    outer = h, np.random.default_rng(2).standard_normal((ROWS, HIDDEN))
    last = np.ones((ROWS, projected or HIDDEN))
    one = {part: values[:1] for part, values in weights.items()}
    gradient = np.zeros_like(h)
    for place in np.ndindex(*h.shape):
        sides = []
        for step in (1e-5, -1e-5):
            moved = h.copy()
            moved[place] += step
            sides.append(np.sum(cells.run(cell, one, x, (moved, outer[1])).outputs[0, -1] * last))
        gradient[place] = (sides[0] - sides[1]) / 2e-5
    found = cells.run(cell, one, x, outer).back(last)
    wanted = log2(np.linalg.norm(gradient) / np.linalg.norm(last))
    assert found.delta_log2[0, 0] + found.gain_log2[0, 0] == pytest.approx(wanted, abs=1e-5)


def test_sizes_beyond_float64() -> None:
    weights = {"ih": np.ones((1, 4, 1)), "hh": 0.5 * np.eye(4)[None]}
    back = cells.run("relu", weights, np.ones((10_000, 1, 1))).back()
    np.testing.assert_allclose(back.delta_log2[0], np.arange(-9999.0, 1.0), atol=1e-6)


def test_saturated_gates_keep_their_slopes() -> None:
    weights = {"ih": np.full((1, 1, 1), 50.0), "hh": np.ones((1, 1, 1))}
    ran = cells.run("tanh", weights, np.ones((3, 1, 1)))
    assert ran.flat[0] == 1.0
    gain = ran.back().gain_log2[0]
    assert gain[-1] == pytest.approx(log2(4) - 102 / np.log(2), abs=1e-9)
    gate = cells.sigmoid(np.array([-800.0, -40.0, 0.0, 40.0]))
    assert gate.slope[1] == gate.slope[3] == pytest.approx(np.exp(-40))
    assert gate.slope[2] == 0.25

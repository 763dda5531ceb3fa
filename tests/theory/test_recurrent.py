"""Theory of recurrent networks, held to the tables of its reference and to simulations."""

from math import exp, inf, log, sqrt
from typing import Any

import numpy as np
import pytest
from vegrad import theory
from vegrad.theory import cells
from vegrad.theory.recurrent_initializers import draw_recurrent_parameters

TANH = {
    0.01: ((0.86756, 0.04022), (0.93608, 0.07778), (1.00145, 0.28241), (1.06257, 0.81332)),
    0.1: ((0.76817, 0.23395), (0.82996, 0.29499), (0.92692, 0.48883), (1.02655, 0.97812)),
    0.25: ((0.70149, 0.46117), (0.76150, 0.53465), (0.86468, 0.73998), (0.98341, 1.21821)),
    1.0: ((0.57660, 1.36544), (0.63157, 1.46385), (0.73379, 1.70821), (0.86777, 2.20930)),
}
CRITICAL = {0.01: 1.193401, 0.1: 1.409281, 0.25: 1.549674, 1.0: 1.855589}


@pytest.mark.parametrize("q_in", TANH)
def test_tanh_table(q_in: float) -> None:
    for sigma_u, (gain, q) in zip((0.9, 1.0, 1.2, 1.5), TANH[q_in], strict=True):
        assert theory.recurrent_gain("tanh", sigma_u, q_in) == pytest.approx(gain, abs=6e-6)
        assert theory.recurrent_fixed_point("tanh", sigma_u, q_in) == pytest.approx(q, abs=6e-6)
    critical = theory.critical_sigma_u("tanh", q_in)
    assert critical == pytest.approx(CRITICAL[q_in], abs=6e-7)
    assert theory.recurrent_gain("tanh", critical, q_in) == pytest.approx(1.0, abs=1e-12)


def test_relu() -> None:
    assert theory.critical_sigma_u("relu", 0.3) == pytest.approx(sqrt(2))
    assert theory.recurrent_gain("relu", 1.0, 0.3) == pytest.approx(sqrt(0.5))
    assert theory.recurrent_fixed_point("relu", 1.0, 0.3) == pytest.approx(0.6)


def from_parameters(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    names = {"ih": "weight_ih", "hh": "weight_hh", "b_ih": "bias_ih", "b_hh": "bias_hh"}
    return {part: parameters[f"rnn.{name}_l0"][None] for part, name in names.items()}


@pytest.mark.parametrize(
    ("sigma_u", "largest", "mean"), [(1.0, -0.27246, -0.94400), (1.5, -0.01673, -0.97178)]
)
def test_lyapunov_of_tanh(sigma_u: float, largest: float, mean: float) -> None:
    assert theory.expected_lyapunov(sigma_u, 0.25) == pytest.approx((largest, mean), abs=6e-6)
    hidden, steps, seen = 80, 300, []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        u = sigma_u / sqrt(hidden) * rng.standard_normal((hidden, hidden))
        weights = {"ih": 0.5 * np.eye(hidden)[None], "hh": u[None]}
        run = cells.run("tanh", weights, rng.standard_normal((steps, 1, hidden)))
        found = theory.lyapunov_exponents(run, transient=50)
        log_slopes = np.mean([np.log(step.gates[0].slope).mean() for step in run.steps[50:]])
        exact = np.linalg.slogdet(u)[1] / hidden + log_slopes
        assert found.mean() == pytest.approx(exact, abs=1e-10)
        seen.append((found[0], found.mean()))
    # One draw of 80 units lies within 0.03 of the mean exponent.
    assert np.mean(seen, axis=0) == pytest.approx((largest, mean), abs=0.02)
    few = theory.lyapunov_exponents(run, 3, transient=50)
    np.testing.assert_allclose(few, found[:3], atol=0.03)


@pytest.mark.parametrize("cell", cells.GATES)
def test_lyapunov_is_that_of_the_jacobian(cell: str) -> None:
    parameters = draw_recurrent_parameters(3, 6, 1, cell, 1, "orthogonal", seed=2)
    weights = from_parameters(parameters)
    x = np.random.default_rng(3).standard_normal((4, 1, 3))
    states = (np.full((1, 6), 0.3), np.full((1, 6), 0.2))[: 2 if cell == "lstm" else 1]

    def end(flat: np.ndarray) -> np.ndarray:
        last = cells.run(cell, weights, x, np.split(flat[None], len(states), 1)).steps[-1]
        return np.concatenate([last.h[0, 0], *([] if last.c is None else [last.c[0, 0]])])

    start = np.concatenate([one[0] for one in states])
    sides = [(end(start + d) - end(start - d)) / 2e-6 for d in 1e-6 * np.eye(len(start))]
    found = theory.lyapunov_exponents(cells.run(cell, weights, x, states))
    _, wanted = np.linalg.slogdet(np.array(sides))
    if cell != "relu":  # of which some units are off, so that the determinant is 0
        assert found.sum() * 4 == pytest.approx(wanted, abs=1e-4)
    log_norm = log(np.linalg.norm(np.array(sides), 2)) / 4
    assert found[0] == pytest.approx(log_norm, abs=0.5)
    assert len(found) == len(start)


@pytest.mark.parametrize(
    ("count", "transient"), [(0, 0), (9, 0), (2, 4)], ids=["none", "too many", "no step"]
)
def test_lyapunov_errors(count: int, transient: int) -> None:
    weights = {"ih": np.ones((1, 8, 1)), "hh": np.eye(8)[None]}
    with pytest.raises(ValueError, match="must be"):
        theory.lyapunov_exponents(
            cells.run("tanh", weights, np.ones((4, 1, 1))), count, transient=transient
        )


GATED = [
    ("lstm", 0, 0.606, 0.533),
    ("lstm", 1, 0.819, 0.736),
    ("lstm", 2, 0.955, None),
    ("lstm", 3, 0.995, 0.951),
    ("gru", 0, 0.614, 0.539),
    ("gru", 1, 0.782, 0.732),
    ("gru", 3, 0.958, 0.946),
]


@pytest.mark.parametrize(("cell", "bias", "coherent", "fresh"), GATED)
def test_tied_gain_table(cell: str, bias: float, coherent: float, fresh: float | None) -> None:
    parameters = draw_recurrent_parameters(256, 256, 1, cell, 1, "default", seed=0)
    parameters["rnn.bias_ih_l0"][256:512] += bias
    x = np.random.default_rng(5).standard_normal((100, 4, 256))
    run = cells.run(cell, from_parameters(parameters), x)
    late = run.after(30)
    found = theory.tied_gain(late)
    assert found.gain[0] == pytest.approx(coherent, rel=0.02)
    measured = theory.mean_gain_log2(late.back().delta_log2)[0]
    assert np.exp2(measured) == pytest.approx(found.gain[0], rel=0.02)


def test_tied_gain_with_projections() -> None:
    random, hidden, projected = np.random.default_rng(0), 200, 100
    shapes = {"ih": (4 * hidden, 20), "hh": (4 * hidden, projected), "hr": (projected, hidden)}
    weights = {part: random.standard_normal((1, *s)) / s[1] ** 0.5 for part, s in shapes.items()}
    run = cells.run("lstm", weights, random.standard_normal((160, 4, 20))).after(40)
    found = theory.mean_gain_log2(run.back().delta_log2)[0]
    assert np.exp2(found) == pytest.approx(theory.tied_gain(run).gain[0], rel=0.04)


def test_expected_recurrence() -> None:
    parameters = draw_recurrent_parameters(16, 64, 1, "gru", 1, "default", seed=1)
    weights = {part: one[0] for part, one in from_parameters(parameters).items()}
    found = theory.expected_recurrence("gru", weights)
    assert found.gain == pytest.approx(2**found.gain_log2, rel=0.08)
    assert found.reach == pytest.approx(theory.reach(2**found.gain_log2))
    assert found.delta_log2.shape == found.delta_log2_std.shape == (64,)
    assert found.delta_log2[-1] == pytest.approx(0.0, abs=1e-12)
    assert found.time_scales.shape == (64,)
    inside = 0
    for seed in range(20):  # networks that are as they are drawn are found within the spread
        one = draw_recurrent_parameters(16, 64, 1, "gru", 1, "default", seed=100 + seed)
        x = np.random.default_rng(seed).standard_normal((64, 8, 16))
        back = cells.run("gru", from_parameters(one), x).back()
        measured = float(theory.mean_gain_log2(back.delta_log2)[0])
        inside += abs(found.deviation(measured)) < 2
    assert inside >= 17
    doubled = {**weights, "hh": 4 * weights["hh"]}
    x = np.random.default_rng(0).standard_normal((64, 8, 16))
    back = cells.run("gru", {part: one[None] for part, one in doubled.items()}, x).back()
    assert found.deviation(float(theory.mean_gain_log2(back.delta_log2)[0])) > 4
    bigger = theory.expected_recurrence("gru", doubled, x)
    assert bigger.gain_log2 > found.gain_log2
    vanilla = {"ih": np.eye(50), "hh": np.random.default_rng(1).standard_normal((50, 50)) / 50**0.5}
    tanh = theory.expected_recurrence("tanh", vanilla, input_rms=0.5, draws=8)
    assert tanh.gain == pytest.approx(theory.recurrent_gain("tanh", 1.0, 0.25), rel=0.03)
    assert tanh.carry_log2 == -inf
    assert np.isnan(tanh.time_scales).all()


def test_expected_recurrence_of_what_does_not_go_back() -> None:
    weights = {"ih": np.zeros((12, 2)), "hh": np.zeros((12, 4))}  # a GRU that halves its state
    found = theory.expected_recurrence("gru", weights)
    assert (found.gain_log2, found.gain_log2_std) == (-1.0, 0.0)
    assert found.deviation(-0.5) == inf
    assert np.isnan(found.deviation(-1.0))
    np.testing.assert_allclose(found.time_scales, 1 / log(2))
    dead = theory.expected_recurrence("relu", {"ih": np.ones((3, 1)), "hh": np.zeros((3, 3))})
    assert dead.gain_log2 == -inf
    assert dead.reach == 0.0
    single = theory.expected_recurrence(
        "tanh", {"ih": np.eye(3), "hh": np.eye(3)}, np.ones((1, 2, 3))
    )
    assert np.isnan(single.gain_log2)


def test_gate_time_scales() -> None:
    for bias, scale in ((0, 1.44), (1, 3.19), (2, 7.88), (3, 20.6), (5, 148.9)):
        assert theory.gate_time_scale(bias) == pytest.approx(scale, rel=4e-3)
        assert theory.gate_bias(theory.gate_time_scale(bias)) == pytest.approx(bias, abs=1e-12)
    assert theory.gate_time_scale(-1000) == pytest.approx(1e-3)
    assert theory.gate_time_scale(1000) == inf


def test_chrono() -> None:
    for scale, wanted in ((100, (0.387, 0.194, 0.056)), (20, (0.393, 0.195, 0.055))):
        for steps, memory in zip((scale / 2, scale, 2 * scale), wanted, strict=True):
            assert theory.chrono_memory(scale, steps) == pytest.approx(memory, abs=6e-4)
    assert theory.chrono_memory(2, 1) == pytest.approx(0.5)
    assert (1 / (1 + exp(-1))) ** 100 == pytest.approx(2.5e-14, rel=0.02)


def test_sensitivity() -> None:
    table: dict[float, Any] = {
        0.5: (1.3333, 2.963, 1.778, 0.21353, 0.26692),
        0.9: (5.263, 263.9, 27.70, 0.24908, 0.45083),
        0.99: (50.25, 2.513e5, 2525, 0.24999, 0.49501),
        0.999: (500.3, 2.501e8, 2.503e5, 0.25000, 0.49950),
    }
    for decay, row in table.items():
        s = theory.sensitivity(decay)
        found = (s.state, s.unnormalized, s.follows, s.follows_nu, s.held_nu)
        assert found == pytest.approx(row, rel=4e-4)


LONG = 200_000  # steps, beside which the ends of a sequence do not count


def test_truncation() -> None:
    rows = (
        (0.7015, 4, 0.242, 0.478),
        (0.7015, 8, 0.0586, 0.347),
        (0.7015, 16, 0.0034, 0.246),
        (0.8647, 8, 0.313, 0.578),
        (0.8647, 16, 0.098, 0.428),
        (0.8647, 32, 0.0095, 0.304),
    )
    for gain, window, sliding, chunked in rows:
        found = theory.truncation_error(gain, LONG, window, 1)
        assert found == pytest.approx(sliding, abs=6e-4)
        found = theory.truncation_error(gain, LONG, window, window)
        assert found == pytest.approx(chunked, abs=6e-4)
    assert theory.truncation_error(0.865, LONG, 35, 35) == pytest.approx(0.29, abs=0.005)
    assert theory.truncation_error(0.95, LONG, 35, 35) == pytest.approx(0.51, abs=0.005)
    assert theory.truncation_window(0.8647, 0.1) == 16
    assert theory.truncation_window(0.8647, 0.1, "chunked") == 297
    for scheme in ("sliding", "chunked"):
        assert theory.truncation_window(1.0, 0.1, scheme) == inf
        assert theory.truncation_window(0.0, 0.1, scheme) == 1
        assert theory.truncation_window(0.3, 0.4, scheme) == 1
        k = int(theory.truncation_window(0.9, 0.2, scheme))
        ends = [1 if scheme == "sliding" else one for one in (k, k - 1)]
        assert theory.truncation_error(0.9, LONG, k, ends[0]) <= 0.2
        assert theory.truncation_error(0.9, LONG, k - 1, ends[1]) > 0.2


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: theory.recurrent_gain("lstm", 1.0, 0.1), "tanh or relu"),
        (lambda: theory.recurrent_gain("tanh", 1.0, -0.1), "q_in must be finite and positive"),
        (lambda: theory.truncation_window(0.5, 0.1, "both"), "scheme must be"),
        (lambda: theory.truncation_window(0.5, 1.0), "error must be above 0 and below 1"),
        (lambda: theory.sensitivity(1.0), "decay must be below 1"),
        (lambda: theory.chrono_memory(1.0, 3), "at least 2 steps"),
        (lambda: theory.expected_recurrence("LSTM", {}), "cell must be one of"),
        (lambda: theory.expected_recurrence("gru", {}, draws=1), "draws must be at least 2"),
    ],
)
def test_errors(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()

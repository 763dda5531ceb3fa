"""Recurrent passes against the float64 reference, whatever their shape.

The tolerance of each result comes from the arithmetic, as in test_network.py: the reference is run
again with every array that it holds perturbed by relative errors of eps·√K; what that moves a
result by, the largest of several runs, is what a result of that precision may be off by, times a
margin.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import assume, example, given
from hypothesis import strategies as st

from tests import reference_recurrent as reference
from tests.core.test_network import MARGIN, both_dtypes, make_target, rounded
from tests.reference import LOSSES, value

CELLS = tuple(reference.GATES)
FLOWS = (
    "delta_log2",
    "gain_log2",
    "cell_gain_log2",
    "carry_log2",
    "matrix_log2",
    "hidden_log2",
)


def draw_case(
    *,
    cell: str = "lstm",
    layers: int = 1,
    targets: str = "last",
    loss: str = "mse",
    sizes: tuple[int, int, int] = (3, 5, 2),
    B: int = 3,
    T: int = 4,
    dtype: str = "float64",
    lengths: bool = False,
    state: bool = False,
    window: tuple[int, int] | None = None,
    factors: bool = False,
    scale: float = 1.0,
    seed: int = 0,
) -> tuple[vegrad.RNN, dict[str, Any], dict[str, Any]]:
    """Return a network, the arguments of a pass, and those that are the core's alone."""
    net = vegrad.RNN(
        *sizes, cell=cell, layers=layers, targets=targets, loss=loss, dtype=dtype, seed=seed
    )
    rng = np.random.default_rng(seed + 1)
    for name, parameter in net.parameters.items():
        if "weight_hh" in name:
            parameter *= scale
    target = make_target(rng, loss, B * T if targets == "all" else B, sizes[2])
    if targets == "all":
        target = target.reshape(B, T, *target.shape[1:])
    data = {
        "x": rng.standard_normal((B, T, sizes[0])).astype(dtype),
        "target": target if target.dtype.kind == "i" else target.astype(dtype),
        "lengths": rng.integers(1, T + 1, B) if lengths else None,
        "state": None,
    }
    if state:
        parts = reference.STATES[cell]
        data["state"] = tuple(
            rng.standard_normal((layers, B, sizes[1])).astype(dtype) for _ in range(parts)
        )
    more = {"window": window, "factors": rng.choice([0.0, 0.5, 1.0, 2.0], T) if factors else None}
    return net, data, more


def run_reference(
    net: vegrad.RNN, data: dict[str, Any], more: dict[str, Any], **options: Any
) -> reference.Pass:
    return reference.run(net.parameters, **data, **more, **net.config | options)


def on_a_kink(net: vegrad.RNN, expected: reference.Pass, eps: float) -> bool:
    """Return True if rounding may move the argument of a relu over 0."""
    if net.config["cell"] != "relu":
        return False
    for z in expected.pre_activations:
        array = np.abs(z.mantissa)
        if np.min(array) < 1e4 * eps * max(1.0, float(np.max(array))):
            return True
    return False


def results(found: reference.Pass) -> dict[str, np.ndarray]:
    arrays = {"output": value(found.output), "loss": np.array([found.loss])}
    arrays |= {f"state {n}": part for n, part in enumerate(found.state)}
    return arrays | {name: value(gradient) for name, gradient in found.gradients.items()}


def run_core(net: vegrad.RNN, data: dict[str, Any], more: dict[str, Any]) -> dict[str, np.ndarray]:
    loss = net._core.backward(**data, **more, flow=True)
    assert loss is not None
    found = {"loss": np.array([loss])}
    found |= {f"state {n}": part for n, part in enumerate(net._core.state())}
    found |= {name: gradient.copy() for name, gradient in net.gradients.items()}
    flow = net._core.flow()
    options = {name: data[name] for name in ("lengths", "state")}
    output = net.forward(data["x"], **options)
    assert net.loss(data["x"], data["target"], **options) == pytest.approx(loss, rel=1e-5)
    return found | {"output": output} | flow


def assert_agrees(
    net: vegrad.RNN, data: dict[str, Any], more: dict[str, Any], runs: int = 3
) -> None:
    """Check outputs, states, gradients and the flow to within what the arithmetic allows."""
    dtype = net.config["dtype"]
    eps = float(np.finfo(dtype).eps)
    expected = run_reference(net, data, more)
    size = eps * math.sqrt(max(net.config["inputs"], net.config["hidden"], len(data["x"])))
    others = [run_reference(net, data, more, rounding=rounded(size, seed)) for seed in range(runs)]
    got = run_core(net, data, more)
    several = [results(other) for other in others]
    for name, want in results(expected).items():
        assert got[name].shape == want.shape, name
        spread = max(float(np.linalg.norm(other[name] - want)) for other in several)
        floor = eps * float(np.linalg.norm(want)) + float(np.finfo(dtype).tiny)
        off = float(np.linalg.norm(got[name].astype(np.float64) - want))
        assert off <= 2 * MARGIN * (spread + floor), f"{name} is off by {off:.3g}; {spread:.3g}"
    if more["window"] is not None:
        return  # Network.flow refuses to tell of a truncated pass
    for name in (*FLOWS, "carry_mean"):
        want, flow = expected.flow[name], got[name]
        assert flow.shape == want.shape
        with np.errstate(invalid="ignore"):
            spread = np.max([np.abs(other.flow[name] - want) for other in others], axis=0)
        spread = np.nan_to_num(spread, nan=0.0, posinf=0.0)
        same = (flow == want) | (np.isnan(flow) & np.isnan(want))
        with np.errstate(invalid="ignore"):
            near = np.abs(flow - want) <= 2 * MARGIN * spread + 16 * eps * np.maximum(
                1, np.abs(want)
            )
        assert (same | near).all(), f"{name}: {flow} is not {want}"


sizes = st.tuples(st.integers(1, 20), st.integers(1, 40), st.integers(1, 5))
cases = st.fixed_dictionaries(
    {
        "cell": st.sampled_from(CELLS),
        "layers": st.integers(1, 3),
        "targets": st.sampled_from(["last", "all"]),
        "loss": st.sampled_from(LOSSES),
        "sizes": sizes,
        "B": st.integers(1, 9),
        "T": st.integers(1, 9),
        "lengths": st.booleans(),
        "state": st.booleans(),
        "window": st.one_of(
            st.none(),
            st.tuples(st.integers(1, 10), st.integers(0, 9)).map(lambda w: (w[0], sum(w))),
        ),
        "factors": st.booleans(),
        "scale": st.sampled_from([0.0, 0.5, 1.0, 3.0]),
        "seed": st.integers(0, 2**20),
    }
)


@both_dtypes
@given(case=cases)
@example(case={"sizes": (1, 1, 1), "B": 1, "T": 1})
@example(case={"sizes": (1, 1, 1), "B": 1, "T": 1, "cell": "gru", "loss": "cross_entropy"})
@example(case={"sizes": (70, 65, 3), "B": 33, "T": 3, "layers": 2, "lengths": True})
@example(case={"sizes": (5, 130, 3), "B": 4, "T": 5, "cell": "gru", "targets": "all"})
def test_every_shape(isa: str, dtype: str, case: dict[str, Any]) -> None:
    drawn = draw_case(**case, dtype=dtype)
    assume(not on_a_kink(drawn[0], run_reference(*drawn), float(np.finfo(dtype).eps)))
    assert_agrees(*drawn)


@both_dtypes
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("cell", CELLS)
def test_every_combination(isa: str, cell: str, loss: str, targets: str, dtype: str) -> None:
    for seed in range(100):
        case = draw_case(
            cell=cell, loss=loss, targets=targets, dtype=dtype, layers=2, sizes=(5, 17, 4), B=6,
            T=7, lengths=True, state=True, seed=seed,
        )  # fmt: skip
        if not on_a_kink(case[0], run_reference(*case), float(np.finfo(dtype).eps)):
            break
    assert_agrees(*case)


def bits(found: dict[str, np.ndarray]) -> dict[str, bytes]:
    return {name: np.ascontiguousarray(array).tobytes() for name, array in found.items()}


@both_dtypes
@given(case=cases)
@example(case={"sizes": (40, 64, 3), "B": 33, "T": 6, "layers": 2, "lengths": True})
@example(case={"sizes": (9, 200, 3), "B": 17, "T": 4, "cell": "gru", "targets": "all"})
def test_the_bits_do_not_depend_on_the_threads(
    isa: str, keep_threads: None, dtype: str, case: dict[str, Any]
) -> None:
    found = []
    for threads in (1, 2, 3):
        vegrad.set_num_threads(threads)
        found.append(bits(run_core(*draw_case(**case, dtype=dtype))))
    assert found[0] == found[1] == found[2]


@both_dtypes
@given(case=cases)
def test_a_window_of_all_steps_is_the_full_pass(isa: str, dtype: str, case: dict[str, Any]) -> None:
    net, data, more = draw_case(**case, dtype=dtype)
    T = data["x"].shape[1]
    full = bits(run_core(net, data, more | {"window": None}))
    assert bits(run_core(net, data, more | {"window": (T, T)})) == full
    assert bits(run_core(net, data, more | {"window": (T + 1, T + 7)})) == full


@both_dtypes
@given(case=cases, cut=st.integers(1, 8))
def test_a_state_carried_over_is_one_long_pass(
    isa: str, dtype: str, case: dict[str, Any], cut: int
) -> None:
    """Also where rows have ended before the cut, which then are left out."""
    net, data, _ = draw_case(**case | {"lengths": False, "window": None, "factors": False})
    x, T = data["x"], data["x"].shape[1]
    assume(cut < T)
    whole = net.forward(x, state=data["state"])
    end = net.state
    first = net.forward(x[:, :cut], state=data["state"])
    second = net.forward(x[:, cut:], state=net.state)
    for a, b in zip(net.state, end, strict=True):
        np.testing.assert_array_equal(a, b)
    if net.config["targets"] == "all":
        second = np.concatenate([first, second], axis=1)
    np.testing.assert_array_equal(second, whole)


@both_dtypes
@given(case=cases)
def test_rows_of_unequal_length_are_the_rows_one_by_one(
    isa: str, dtype: str, case: dict[str, Any]
) -> None:
    net, data, _ = draw_case(**case | {"lengths": True}, dtype=dtype)
    output = net.forward(data["x"], lengths=data["lengths"], state=data["state"])
    states = net.state
    for row, length in enumerate(data["lengths"]):
        state = data["state"] and tuple(part[:, row : row + 1] for part in data["state"])
        alone = net.forward(data["x"][row : row + 1, :length], state=state)
        there = output[row, :length] if net.config["targets"] == "all" else output[row]
        rounding = 100 * np.finfo(dtype).eps
        pairs = [(there, alone[0])]
        pairs += [(part[:, row], one[:, 0]) for part, one in zip(states, net.state, strict=True)]
        for together, single in pairs:  # a small one may be the difference of two large ones
            largest = max(1.0, float(np.abs(single).max(initial=0.0)))
            np.testing.assert_allclose(together, single, rtol=rounding, atol=rounding * largest)


@both_dtypes
@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("special", [math.nan, math.inf])
@pytest.mark.parametrize("targets", ["last", "all"])
def test_what_lies_beyond_a_rows_length_counts_nowhere(
    isa: str, cell: str, special: float, targets: str, dtype: str
) -> None:
    net, data, more = draw_case(
        cell=cell, targets=targets, dtype=dtype, B=5, T=6, layers=2, lengths=True
    )
    clean = bits(run_core(net, data, more))
    beyond = np.arange(6) >= data["lengths"][:, None]
    data["x"][beyond] = special
    if targets == "all":
        data["target"][beyond] = special
    assert bits(run_core(net, data, more)) == clean


@pytest.mark.parametrize("cell", CELLS)
def test_labels_beyond_a_rows_length_may_be_anything(isa: str, cell: str) -> None:
    net, data, more = draw_case(
        cell=cell, targets="all", loss="cross_entropy", B=5, T=6, lengths=True
    )
    clean = bits(run_core(net, data, more))
    data["target"][np.arange(6) >= data["lengths"][:, None]] = -100
    assert bits(run_core(net, data, more)) == clean


@both_dtypes
@pytest.mark.parametrize("cell", CELLS)
def test_nan_in_the_middle_of_one_row_spoils_no_other_row(isa: str, cell: str, dtype: str) -> None:
    net, data, _ = draw_case(cell=cell, targets="all", dtype=dtype, B=9, T=6, sizes=(3, 20, 2))
    clean = net.forward(data["x"])
    data["x"][4, 3, 1] = math.nan
    output = net.forward(data["x"])
    others = np.arange(9) != 4
    np.testing.assert_array_equal(output[others], clean[others])
    np.testing.assert_array_equal(output[4, :3], clean[4, :3])
    if cell != "relu":  # max(0, nan) may be 0
        assert np.isnan(output[4, 3:]).all()
        assert math.isnan(net.backward(data["x"], data["target"]))


# Closed forms -----------------------------------------------------------------------------------


def linear(U: np.ndarray, dtype: str) -> vegrad.RNN:
    """A chain h_t = U h_{t-1} of positive numbers, whose output is the sum of h_T."""
    net = vegrad.RNN(1, len(U), 1, cell="relu", dtype=dtype, seed=0)
    for parameter in net.parameters.values():
        parameter[...] = 0
    net.parameters["rnn.weight_hh_l0"][...] = U
    net.parameters["head.weight"][...] = 1
    return net


@both_dtypes
@pytest.mark.parametrize("T", [10_000, 100_000])
def test_sizes_are_right_far_beyond_the_dtype(isa: str, dtype: str, T: int) -> None:
    """A gain of a half, over and over: h stays 1 = 1/2 + 1/2."""
    net = linear(0.5 * np.eye(4), dtype)
    net.parameters["rnn.bias_ih_l0"][...] = 0.5
    state = (np.ones((1, 2, 4), dtype),)
    net.backward(np.zeros((2, T, 1), dtype), np.ones((2, 1), dtype), state=state)
    flow = net.flow
    np.testing.assert_allclose(flow.gain_log2[0], -1.0, atol=1e-3)
    steps = np.arange(T - 1, -1, -1)
    np.testing.assert_allclose(flow.delta_log2[0] - flow.delta_log2[0, -1], -steps, atol=1e-3)


@both_dtypes
def test_orthogonal_weights_keep_the_gradient_over_all_steps(isa: str, dtype: str) -> None:
    """Of permutations, so that relu's arguments stay positive; 1e5 steps."""
    T = 100_000
    net = linear(np.roll(np.eye(8), 1, axis=0), dtype)
    state = (np.arange(1.0, 9.0).reshape(1, 1, 8).astype(dtype),)
    net.backward(np.zeros((1, T, 1), dtype), np.zeros((1, 1), dtype), state=state)
    np.testing.assert_allclose(net.flow.gain_log2, 0.0, atol=1e-9)
    np.testing.assert_allclose(net.flow.delta_log2, net.flow.delta_log2[0, -1], atol=1e-9)


@both_dtypes
def test_the_gradient_of_a_scaled_identity(isa: str, dtype: str) -> None:
    """∂loss/∂U = Σ_t δ_t h_{t-1}ᵀ with δ_t = u^(T-t) δ_T and h_t = u^t: all terms are the same."""
    u, T, H = 0.9, 30, 3
    net = linear(u * np.eye(H), dtype)
    state = (np.ones((1, 1, H), dtype),)
    net.backward(np.zeros((1, T, 1), dtype), np.zeros((1, 1), dtype), state=state)
    entering = 2 * H * u**T
    wanted = np.full((H, H), T * entering * u ** (T - 1))
    tolerance = 100 * T * np.finfo(dtype).eps
    np.testing.assert_allclose(net.gradients["rnn.weight_hh_l0"], wanted, rtol=tolerance)


@both_dtypes
@pytest.mark.parametrize("kind", ["diagonal", "identity", "orthogonal"])
def test_the_gradient_of_a_matrix_with_known_powers(isa: str, kind: str, dtype: str) -> None:
    """∂loss/∂U = Σ_t (Uᵀ)^(T-t) g (U^(t-1) h_0)ᵀ and δ_t = (Uᵀ)^(T-t) g, with matrix powers."""
    T, H = 12, 4
    U = {
        "diagonal": np.diag([0.5, 0.8, 1.0, 1.1]),
        "identity": np.eye(H),
        "orthogonal": np.roll(np.eye(H), 1, axis=0),  # a permutation: relu's arguments stay > 0
    }[kind]
    net, h = linear(U, dtype), np.array([1.0, 2.0, 0.5, 0.25])
    net.parameters["head.weight"][...] = [[1.0, 0.5, 2.0, 1.5]]
    net.backward(np.zeros((1, T, 1), dtype), np.zeros((1, 1), dtype), state=(h[None, None],))
    power = np.linalg.matrix_power
    V = net.parameters["head.weight"].astype(np.float64)
    g = 2 * (V @ power(U, T) @ h) * V[0]
    deltas = [power(U.T, T - t) @ g for t in range(1, T + 1)]
    wanted = sum(np.outer(d, power(U, t) @ h) for t, d in enumerate(deltas))
    tolerance = 100 * T * float(np.finfo(dtype).eps)
    np.testing.assert_allclose(net.gradients["rnn.weight_hh_l0"], wanted, rtol=tolerance)
    sizes = np.log2(np.linalg.norm(deltas, axis=1) / math.sqrt(H))
    np.testing.assert_allclose(net.flow.delta_log2[0], sizes, rtol=0, atol=tolerance)


@pytest.mark.parametrize("cell", CELLS)
def test_the_bits_are_the_same_on_one_to_eight_threads(
    isa: str, keep_threads: None, cell: str
) -> None:
    case = draw_case(
        cell=cell, targets="all", sizes=(9, 40, 3), B=37, T=9, layers=2, lengths=True, state=True
    )
    found = []
    for threads in range(1, 9):
        vegrad.set_num_threads(threads)
        found.append(bits(run_core(*case)))
    assert all(one == found[0] for one in found)

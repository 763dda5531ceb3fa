"""The window that a tolerance needs, and truncation at random."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given
from hypothesis import strategies as st
from vegrad import theory
from vegrad.arrays.checks import Array

from tests.networks.recurrent_double import Double

T = 24
RNG = np.random.default_rng(5)
X = RNG.standard_normal((3, T, 3))
TARGETS = {"last": RNG.standard_normal((3, 2)), "all": RNG.standard_normal((3, T, 2))}


def flat(network: Any) -> np.ndarray:
    return np.concatenate([g.astype(np.float64).ravel() for g in network.gradients.values()])


def loss_of(full: np.ndarray, cut: np.ndarray) -> float:
    return float(np.linalg.norm(cut - full) / np.linalg.norm(full))


@pytest.mark.parametrize("cell", ["tanh", "lstm", "gru"])
@pytest.mark.parametrize(
    ("targets", "scheme"), [("last", "sliding"), ("all", "sliding"), ("all", "chunked")]
)
@pytest.mark.parametrize("tolerance", [0.5, 0.1, 1e-3])
def test_the_window_is_within_and_the_next_shorter_is_not(
    cell: str, targets: str, scheme: str, tolerance: float
) -> None:
    network = Double(cell, targets, 0.6)
    found = vegrad.truncation(network, X, TARGETS[targets], tolerance, scheme=scheme)
    passes = network.passes
    assert passes <= 2 * np.log2(T) + 4
    full = flat(network)  # it is left as after a full pass
    network.backward(X, TARGETS[targets])
    np.testing.assert_array_equal(flat(network), full)

    if found.window is None:
        assert (scheme, tolerance) == ("chunked", 1e-3)
        assert (found.errors.error[:-1] > tolerance).all()
        return
    network.backward(X, TARGETS[targets], truncation=found.window)
    assert loss_of(full, flat(network)) <= tolerance
    back = found.window[1] if isinstance(found.window, tuple) else found.window
    errors = found.errors
    place = errors.window.tolist().index(back)
    assert errors.error[place] == pytest.approx(loss_of(full, flat(network)), rel=1e-9)
    cosine = flat(network) @ full / np.linalg.norm(flat(network)) / np.linalg.norm(full)
    assert errors.cosine[place] == pytest.approx(cosine, rel=1e-9)
    assert (errors.error[place:] <= tolerance).all()
    if back > 1:
        assert errors.window[place - 1] == back - 1
        assert errors.error[place - 1] > tolerance
    head = {name: error for name, error in found.parts.items() if name.startswith("head")}
    assert all(error < 1e-12 for error in head.values())


def test_steps_between_windows() -> None:
    network = Double("tanh", "all", 0.6)
    found = vegrad.truncation(network, X, TARGETS["all"], every=1)
    assert isinstance(found.window, int | tuple)
    assert set(found.errors.every) == {1}
    wider = vegrad.truncation(network, X, TARGETS["all"], every=5)
    assert wider.errors.window[0] == 5
    with pytest.raises(ValueError, match="every must be at most 24"):
        vegrad.truncation(network, X, TARGETS["all"], every=25)
    with pytest.raises(ValueError, match="scheme="):
        vegrad.truncation(network, X, TARGETS["all"], every=2, scheme="chunked")


def test_a_gradient_that_grows_has_no_small_window() -> None:
    network = Double("relu", "last")
    network.parameters["rnn.weight_hh_l0"][...] = 1.1 * np.eye(12)
    network.parameters["rnn.weight_ih_l0"][...] = 0.1
    found = vegrad.truncation(network, np.abs(X), TARGETS["last"])
    assert found.gain > 1
    assert found.window is None
    assert found.parts == {}
    assert "No truncation is small" in str(found)


@given(st.integers(0, 10**6), st.floats(0.01, 0.9))
def test_layers(seed: int, tolerance: float) -> None:
    rng = np.random.default_rng(seed)
    network = vegrad.MLP([3, *[6] * 6, 2], activation="sigmoid", seed=seed, dtype="float64")
    x, target = rng.standard_normal((5, 3)), rng.standard_normal((5, 2))
    found = vegrad.truncation(network, x, target, tolerance)
    full = flat(network)
    for window, error, cosine in zip(
        found.errors.window, found.errors.error, found.errors.cosine, strict=True
    ):
        network.backward(x, target, truncation=int(window))
        cut = flat(network)
        assert error == pytest.approx(loss_of(full, cut), abs=1e-12)
        assert cosine == pytest.approx(np.linalg.norm(cut) / np.linalg.norm(full), abs=1e-9)
    within = found.errors.window[found.errors.error <= tolerance]
    if found.window is None:
        assert within[0] == 7 or (found.gain >= 1 and within[0] > 3.5)
    else:
        assert found.window == within[0]


def test_text_json_and_picture(tmp_path: Path) -> None:
    network = vegrad.MLP([4, *[8] * 30, 2], activation="sigmoid", seed=0)
    x, target = RNG.standard_normal((9, 4)), RNG.standard_normal((9, 2))
    found = vegrad.truncation(network, x, target)
    assert max(map(len, str(found).splitlines())) <= 80
    assert "31 → 16" in str(found)
    kept = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert kept["window"] == found.window
    assert kept["errors"]["error"] == found.errors.error.tolist()
    pytest.importorskip("matplotlib")
    found.plot(tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes()[:4] == b"\x89PNG"
    assert len(vegrad.truncation(Double("gru", "all"), X, TARGETS["all"]).plot().axes) == 2


def test_bad_input() -> None:
    network = vegrad.MLP([4, 3, 2], seed=0)
    x, target = np.zeros((9, 4)), np.zeros((9, 2))
    with pytest.raises(ValueError, match="not zero, but it is zero"):
        vegrad.truncation(network, x, target)
    with pytest.raises(ValueError, match="finite and not zero, but it is not finite"):
        vegrad.truncation(network, x + np.inf, target)
    bad = x.copy()
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"not finite, since x\[3, 2\] is nan"):
        vegrad.truncation(network, bad, target)
    with pytest.raises(ValueError, match="scheme must be one of"):
        vegrad.truncation(network, x, target, scheme="random")
    with pytest.raises(ValueError, match="tolerance must be from 0"):
        vegrad.truncation(network, x, target, 1.0)
    with pytest.raises(TypeError, match="recurrent networks only"):
        vegrad.truncation(network, x, target, every=2)


# By formula ------------------------------------------------------------------------------------


def test_figures_of_the_reference() -> None:
    for gain, window, sliding, chunked in (
        (0.7015, 4, 0.242, 0.478),
        (0.7015, 16, 0.0034, 0.246),
        (0.8647, 8, 0.313, 0.578),
        (0.8647, 32, 0.0095, 0.304),
    ):
        assert theory.truncation_error(gain, 10**5, window, 1) == pytest.approx(sliding, rel=0.02)
        assert theory.truncation_error(gain, 10**5, window, window) == pytest.approx(
            chunked, rel=0.02
        )
        assert theory.truncation_error(gain, 10**5, window) == pytest.approx(sliding, rel=0.02)


@given(
    st.sampled_from([0.0, 0.3, 0.99, 1.0, 1.02, 2.0]), st.integers(1, 40), st.integers(1, 50),
    st.integers(1, 50),
)  # fmt: skip
def test_the_formula_is_the_sum(gain: float, steps: int, window: int, every: int) -> None:
    every = min(every, window)
    lost = whole = 0.0
    for step in range(1, steps + 1):
        end = -(-step // every) * every
        for lag in range(step):
            whole += gain ** (2 * lag)
            lost += gain ** (2 * lag) if step - lag <= end - window else 0.0
    want = (lost / whole) ** 0.5
    assert theory.truncation_error(gain, steps, window, every) == pytest.approx(want, abs=1e-9)
    last = sum(gain ** (2 * lag) for lag in range(window, steps))
    last /= sum(gain ** (2 * lag) for lag in range(steps))
    assert theory.truncation_error(gain, steps, window) == pytest.approx(last**0.5, abs=1e-9)


# At random -------------------------------------------------------------------------------------


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("cell", ["tanh", "lstm"])
def test_the_mean_of_random_truncations_is_the_full_gradient(cell: str, targets: str) -> None:
    network = Double(cell, targets, 0.8)
    x = X[:, :8]
    target = TARGETS[targets][:, :8] if targets == "all" else TARGETS[targets]
    network.backward(x, target)
    full = flat(network)
    draws = vegrad.RandomTruncation(4, seed=1)
    seen = []
    for _ in range(200):
        network.backward(x, target, factors=draws.factors(8))
        seen.append(flat(network))
    away = np.mean(seen, axis=0) - full
    error = np.std(seen, axis=0, ddof=1) / np.sqrt(len(seen))
    random = error > 1e-12 * np.abs(full).max()
    assert np.abs(away[~random]).max(initial=0) <= 1e-9
    assert np.sqrt(np.mean((away[random] / error[random]) ** 2)) < 2
    assert np.abs(away[random] / error[random]).max() < 5


def test_random_truncation() -> None:
    draws = vegrad.RandomTruncation(10, seed=3)
    first = draws.factors(10_000)
    assert set(np.unique(first)) == {0.0, 1 / 0.9}
    assert np.mean(first == 0) == pytest.approx(0.1, abs=0.01)
    state = json.loads(json.dumps(draws.state_dict()))
    then = draws.factors(50)
    other = vegrad.RandomTruncation(2)
    other.load_state_dict(state)
    np.testing.assert_array_equal(other.factors(50), then)
    np.testing.assert_array_equal(vegrad.RandomTruncation(10, seed=3).factors(10_000), first)
    assert vegrad.RandomTruncation(np.inf).factors(4).tolist() == [1.0] * 4
    assert repr(draws) == "RandomTruncation(10, seed=3)"
    for length in (1, 0.5, np.nan):
        with pytest.raises(ValueError, match="length must be above 1"):
            vegrad.RandomTruncation(length)
    with pytest.raises(TypeError):
        vegrad.RandomTruncation("long")  # type: ignore[arg-type]


def signs(first: int, last: int) -> tuple[Array, Array]:
    """Return sequences of 40 steps whose target is the sign at one of these steps."""
    random = np.random.default_rng(0)
    x, up = 0.3 * random.standard_normal((400, 40, 2)), random.integers(0, 2, 400)
    steps = random.integers(first, last, 400)
    x[np.arange(400), steps, 0] += np.where(up, 2.0, -2.0)
    return x, up


def test_a_window_that_leaves_out_what_the_target_lies_in_says_so() -> None:
    net = vegrad.RNN(2, 16, 2, cell="lstm", loss="cross_entropy", seed=0)
    blind = vegrad.truncation(net, *signs(2, 8))
    assert isinstance(blind.window, int)
    assert blind.beyond > 0.2
    assert "can be told only from steps before these" in blind.summary
    near = vegrad.truncation(net, *signs(37, 40))
    assert near.beyond == 0.0
    assert "But" not in near.summary
    x, up = signs(2, 8)
    nothing = vegrad.truncation(net, x, np.random.default_rng(1).permutation(up))
    assert nothing.beyond == 0.0

"""A network that has learnt its task is healthy, though its units are sure of themselves."""

from pathlib import Path

import numpy as np
import pytest
import vegrad

from tests.networks.test_raw_inputs import LABEL, X


def trained(activation: str, epochs: int) -> vegrad.MLP:
    net = vegrad.MLP([2, 32, 32, 3], activation=activation, loss="cross_entropy", seed=0)
    adam = vegrad.Adam(1e-2)
    more = {"optimizer": adam, "batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    net.fit(X, LABEL, epochs=epochs, **more)
    return net


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_what_has_learnt_is_left_as_it_is(activation: str) -> None:
    net = trained(activation, 150)
    assert np.mean(net.forward(X).argmax(1) == LABEL) > 0.98
    found = vegrad.diagnose(net, X, LABEL)
    assert found.healthy, str(found)
    assert "it has learnt: its loss is" in found.summary
    assert found.apply(net) is None


def test_what_gets_most_rows_right_has_learnt_however_large_its_outputs_are() -> None:
    net = trained("relu", 150)
    for kind in ("weight", "bias"):
        net.parameters[f"layers.2.{kind}"][:] *= 300
    wrong = LABEL.copy()
    wrong[::50] = (wrong[::50] + 1) % 3  # a row in fifty is not to be learnt
    found = vegrad.diagnose(net, X, wrong)
    assert found.healthy, str(found)
    assert "of the rows are right" in found.summary
    assert not vegrad.diagnose(net, X, np.roll(LABEL, 7)).healthy


def test_what_is_saturated_and_has_not_learnt_is_called_so() -> None:
    net = trained("tanh", 2)
    for layer in (0, 1):
        net.parameters[f"layers.{layer}.weight"][:] *= 20
    found = vegrad.diagnose(net, X, LABEL)
    assert found.verdict == "saturated"
    assert "has learnt" not in found.looked_at


def test_a_nan_is_found_in_any_network() -> None:
    net = trained("tanh", 150)
    net.parameters["layers.1.weight"][0, 0] = np.nan
    assert vegrad.diagnose(net, X, LABEL).verdict == "nonfinite"


@pytest.mark.parametrize("rate", [1e-4, 1e-3])
@pytest.mark.parametrize("seed", [0, 4])
def test_a_second_training_of_what_has_learnt_is_neither_too_fast_nor_too_slow(
    seed: int, rate: float, tmp_path: Path
) -> None:
    random = np.random.default_rng(seed)
    label = random.integers(0, 3, 300)
    x = (random.standard_normal((3, 5)) * 2)[label] + random.standard_normal((300, 5))
    net = vegrad.MLP([5, 32, 32, 3], init="he_normal", loss="cross_entropy", seed=0)
    more = {"batch_size": 32, "seed": 0, "progress": False}
    net.fit(x, label, optimizer=vegrad.Adam(1e-2), epochs=100, **more)
    log = tmp_path / "run.jsonl"
    history = net.fit(x, label, optimizer=vegrad.Adam(rate), epochs=20, log=log, **more)
    assert not history.findings, history.findings
    assert vegrad.diagnose_run(log).healthy
    assert history.learnt is not None
    assert history.learnt[0] < 0.01 < 1 < history.learnt[1]
    assert vegrad.History.from_dict(history.to_dict()).learnt == history.learnt


def test_a_second_training_that_throws_away_what_was_learnt_is_told_of() -> None:
    net, more = trained("tanh", 50), {"batch_size": 32, "seed": 0, "progress": False}
    sgd = vegrad.SGD(30.0)
    history = net.fit(X, LABEL, optimizer=sgd, epochs=20, on_finding=None, **more)
    assert history.findings[0].cause == "learning-rate-high"

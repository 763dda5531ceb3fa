"""Slips of beginners: each error says what would be right, and what cannot be learnt is said."""

from collections.abc import Callable

import numpy as np
import pytest
import vegrad

from tests.spiral import spiral

X, LABEL = spiral()


def network() -> vegrad.MLP:
    return vegrad.MLP([2, 8, 3], loss="cross_entropy", seed=0)


def recurrent() -> vegrad.RNN:
    return vegrad.RNN(2, 8, 3, cell="gru", loss="cross_entropy", seed=0)


LABELS = {
    "from 1": (LABEL + 1, r"labels from 0 to 2, but .* is 3: pass target - 1$"),
    "floats": (LABEL * 1.0, r"not float64: pass target\.astype\(int\)$"),
    "no labels": (LABEL * 0.5, r"not float64$"),
    "a column": (LABEL[:, None], r"not \(300, 1\): pass target\[:, 0\]$"),
    "one-hot": (np.eye(3)[LABEL], r"not \(300, 3\): pass target\.argmax\(1\)$"),
    "numbers": (np.ones((300, 3)), r"not \(300, 3\)$"),
    "too many": (LABEL + 2, r"labels from 0 to 2, but target\[\d+\] is \d$"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels(name: str) -> None:
    target, said = LABELS[name]
    with pytest.raises((TypeError, ValueError), match=said):
        vegrad.diagnose(network(), X, target)
    with pytest.raises((TypeError, ValueError), match=said):
        recurrent().backward(X[:, None], target)


@pytest.mark.parametrize("function", [vegrad.diagnose, vegrad.cure, vegrad.truncation])
def test_arguments_in_another_order(function: Callable[..., object]) -> None:
    with pytest.raises(TypeError, match=r"network must be a vegrad\.MLP or .*, not ndarray$"):
        function(X, LABEL, network())


def test_what_is_no_history() -> None:
    with pytest.raises(TypeError, match=r"history must be a vegrad\.History, not list"):
        vegrad.diagnose(network(), X, LABEL, history=[1, 2])  # type: ignore[arg-type]


def test_names_may_be_numpys() -> None:
    assert vegrad.MLP([2, 3], activation=np.str_("relu")).config["activation"] == "relu"
    with pytest.raises(ValueError, match="not 'softplus'"):
        vegrad.MLP([2, 3], init=np.str_("softplus"))


def test_rows_that_are_the_same() -> None:
    found = vegrad.diagnose(network(), X, 0 * LABEL)
    assert found.healthy
    assert found.looked_at.startswith("the target is 0 in all 300 rows, so that ")
    found = vegrad.diagnose(network(), np.repeat(X[:1], 300, 0), LABEL)
    assert found.looked_at.startswith("all 300 rows of x are alike, so that ")
    assert vegrad.diagnose(network(), X, LABEL).looked_at.startswith("the gradient ")
    assert vegrad.diagnose(network(), X[:1], LABEL[:1]).looked_at.startswith("the gradient ")


def test_a_training_tells_each_thing_once(capfd: pytest.CaptureFixture[str]) -> None:
    more = {"epochs": 2, "batch_size": 32, "seed": 0}
    with pytest.warns(vegrad.FindingWarning, match="stalled: the learning rate is 0"):
        network().fit(X, LABEL, optimizer=vegrad.SGD(0.0), **more)
    said = capfd.readouterr().err
    assert "stalled" not in said  # but in the warning
    assert "clipped" not in said
    clip = vegrad.clipping.GlobalNorm(0.1)
    network().fit(X, LABEL, optimizer=vegrad.SGD(0.1, clip=clip), on_finding=None, **more)
    assert "clipped 100 %" in capfd.readouterr().err

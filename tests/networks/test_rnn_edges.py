"""Recurrent networks at the edges of what they take: one of everything, a million steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad

CELLS = ("tanh", "relu", "lstm", "gru")


def fit(net: vegrad.RNN, x: Any, target: Any, **options: Any) -> vegrad.History:
    options = {"epochs": 2, "batch_size": 2, "seed": 0} | options
    options = {"optimizer": vegrad.SGD(0.1), "progress": False, "on_finding": None} | options
    return net.fit(x, target, **options)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 1, 2, 4, 2), (1, 7, 1, 1, 2)])
def test_one_of_everything(cell: str, targets: str, loss: str, sizes: tuple[int, ...]) -> None:
    """Also a loss of one class, which is 0 from the start."""
    B, T, I, H, O = sizes  # noqa: E741
    rng = np.random.default_rng(0)
    net = vegrad.RNN(I, H, O, cell=cell, targets=targets, loss=loss, layers=2, seed=0)
    x, shape = rng.standard_normal((B, T, I)), (B, T) if targets == "all" else (B,)
    target = rng.uniform(size=(*shape, O)) if loss != "cross_entropy" else np.zeros(shape, int)
    assert str(vegrad.diagnose(net, x, target))
    net.backward(x, target)
    assert f"{T} step" in str(net.flow)
    for truncation in (None, 1, (1, 3), vegrad.RandomTruncation(2)):
        history = fit(net, x, target, truncation=truncation)
        assert np.isfinite(history.loss).all()
        assert history.steps >= 2


def test_no_gradient_can_be_shown(tmp_path: Path) -> None:
    """Where nothing goes back, there is nothing of which something could be left."""
    net = vegrad.RNN(2, 3, 1, loss="cross_entropy", seed=0)
    net.backward(np.ones((2, 4, 2)), np.zeros(2, int))
    assert np.isneginf(net.flow.delta_log2).all()
    pytest.importorskip("matplotlib")
    net.flow.plot(tmp_path / "flow.svg")
    assert "?" in str(net.flow)


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("truncation", [10**12, (10**12, 10**15), 2**31])
def test_a_window_longer_than_any_sequence_is_all_of_it(truncation: Any, targets: str) -> None:
    rng = np.random.default_rng(0)
    net = vegrad.RNN(2, 3, 1, targets=targets, seed=0)
    x = rng.standard_normal((4, 5, 2))
    target = rng.standard_normal((4, 5, 1) if targets == "all" else (4, 1))
    loss = net.backward(x, target)
    wanted = {name: gradient.copy() for name, gradient in net.gradients.items()}
    assert net.backward(x, target, truncation=truncation) == loss
    for name, gradient in net.gradients.items():
        np.testing.assert_array_equal(gradient, wanted[name])
    assert fit(net, x, target, truncation=truncation).windows == 1


@pytest.mark.parametrize(
    ("held", "got"), [(lambda x, y: (x,), "1 arrays"), (lambda x, y: x, "ndarray")]
)
def test_data_held_out_that_are_no_pair_are_refused(held: Any, got: str) -> None:
    x, target = np.ones((4, 5, 2)), np.ones((4, 1))
    wanted = r"validation must be \(x, target\) or \(x, target, lengths\), not "
    with pytest.raises(TypeError, match=wanted + got):
        fit(vegrad.RNN(2, 3, 1, seed=0), x, target, validation=held(x, target))
    net = vegrad.MLP([2, 3, 1], seed=0)
    with pytest.raises(TypeError, match=rf"validation must be \(x, target\), not {got}"):
        fit(net, x[:, 0], target, validation=held(x[:, 0], target))


MILLION = """
import resource, sys
import numpy as np, vegrad

def peak():  # in MB
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit

T = 1_000_000
net = vegrad.RNN(2, 8, 1, cell="lstm", targets=sys.argv[1], seed=0)
x = np.ones((1, T, 2), "float32")
target = np.ones((1, T, 1) if sys.argv[1] == "all" else (1, 1), "float32")
net.backward(x[:, :300], target[:, :300], truncation=(20, 100), flow=False)
before = peak()
net.backward(x, target, truncation=(20, 100), flow=False)
print(peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="resource is of Unix")
@pytest.mark.parametrize("targets", ["last", "all"])
def test_the_memory_of_a_truncated_pass_is_that_of_its_window(targets: str) -> None:
    """All of a million steps would take some 200 MB."""
    command = [sys.executable, "-c", MILLION, targets]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    assert float(done.stdout) < 8

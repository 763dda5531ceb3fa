"""The same work in every library: all passes, clips and steps agree with float64."""

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from vegrad import _core
from vegrad.benchmark import peers
from vegrad.benchmark.peers import Buffers, Case, Problem

from tests import reference

PASSES = [
    pytest.param(
        peer, marks=pytest.mark.skipif(not peers.installed(peer), reason=f"needs {peer.module}")
    )
    for peer in peers.PEERS
    if peer is not peers.Jax
]
# This runs in a process of its own, as JAX warns of every later fork of a process that ran it.
IN_JAX = """
import numpy as np
from vegrad.benchmark.peers import Case, Jax, NumPy, Problem, largest_difference
for layers, activation in (1, "tanh"), (3, "identity"), (3, "gelu"), (3, "erf"), (3, "hard_tanh"):
    problem = Problem(Case(layers, 9, 6, activation))
    exact, one = NumPy(problem, np.float64), Jax(problem)
    exact.step(), one.step()
    print(activation, largest_difference(one.result(), exact.result()))
"""


@pytest.mark.parametrize("activation", _core.ACTIVATIONS)
def test_the_pass_in_float64_is_the_specification(activation: str) -> None:
    problem = Problem(Case(4, 7, 5, activation))
    peer = peers.NumPy(problem, np.float64)
    peer.step()
    loss, gradients = peer.result()
    parameters = {
        f"layers.{index}.{name}": array
        for index, layer in enumerate(problem.layers)
        for name, array in zip(("weight", "bias"), layer, strict=True)
    }
    right = reference.run(parameters, problem.x, problem.target, activation=activation)
    assert loss == pytest.approx(right.loss, rel=1e-12)
    for index, pair in enumerate(gradients):
        for name, got in zip(("weight", "bias"), pair, strict=True):
            wanted = reference.value(right.gradients[f"layers.{index}.{name}"])
            np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("peer", PASSES)
def test_all_passes_agree(peer: Any) -> None:
    for activation in _core.ACTIVATIONS:
        problem = Problem(Case(3, 9, 6, activation))
        exact, one = peers.NumPy(problem, np.float64), peer(problem)
        exact.step()
        one.step()
        assert peers.largest_difference(one.result(), exact.result()) < 1e-5


@pytest.mark.parametrize("peer", PASSES)
def test_a_network_of_one_layer(peer: Any) -> None:
    problem = Problem(Case(1, 4, 2))
    exact, one = peers.NumPy(problem, np.float64), peer(problem)
    exact.step()
    one.step()
    assert peers.largest_difference(one.result(), exact.result()) < 1e-5


@pytest.mark.skipif(not peers.installed(peers.Jax), reason="needs jax")
def test_the_pass_in_jax_agrees() -> None:
    result = subprocess.run(
        [sys.executable, "-c", IN_JAX],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"JAX_PLATFORMS": "cpu"},
    )
    assert result.returncode == 0, result.stderr
    found = dict(line.split() for line in result.stdout.splitlines())
    assert list(found) == ["tanh", "identity", "gelu", "erf", "hard_tanh"]
    assert max(map(float, found.values())) < 1e-5


@pytest.mark.parametrize("steps", [1, 5])
def test_all_steps_agree(steps: int) -> None:
    buffers = Buffers([(5, 6), (5,)])
    found = []
    for peer in filter(peers.installed, peers.STEPS):
        one = peer(buffers)
        for _ in range(steps):
            one.step()
        moved = [
            np.reshape(np.array(got, np.float64), start.shape) - start
            for got, start in zip(one.result(), buffers.weights, strict=True)
        ]
        found.append(moved)
    for moved in found[1:]:
        assert peers.furthest(moved, found[0]) < 1e-3
    if steps == 1:
        right = [a - b for a, b in zip(peers.right_stepped(buffers), buffers.weights, strict=True)]
        assert peers.furthest(found[0], right) < 1e-9

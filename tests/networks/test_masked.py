"""Masked arrays: a network would count what is masked, so it refuses them, whatever their dtype."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import vegrad

ROWS, SEQUENCES = np.ones((4, 3), np.float32), np.ones((4, 5, 3), np.float32)
TARGET, LENGTHS = np.zeros((4, 1), np.float32), np.full(4, 3)
MLP = vegrad.MLP([3, 2, 1], seed=0)
RNN = vegrad.RNN(3, 4, 1, seed=0)
masked = np.ma.masked_array

CALLS: dict[str, Callable[[], object]] = {
    "MLP.forward x": lambda: MLP.forward(masked(ROWS)),
    "MLP.loss x": lambda: MLP.loss(masked(ROWS), TARGET),
    "MLP.backward target": lambda: MLP.backward(ROWS, masked(TARGET, mask=True)),
    "RNN.forward x": lambda: RNN.forward(masked(SEQUENCES)),
    "RNN.loss x": lambda: RNN.loss(masked(SEQUENCES, mask=True), TARGET),
    "RNN.backward target": lambda: RNN.backward(SEQUENCES, masked(TARGET)),
    "RNN.loss lengths": lambda: RNN.loss(SEQUENCES, TARGET, lengths=masked(LENGTHS)),
    "RNN.forward state": lambda: RNN.forward(
        SEQUENCES, state=(masked(np.zeros((1, 4, 4), np.float32)), np.zeros((1, 4, 4), np.float32))
    ),
    "truncation x": lambda: vegrad.truncation(RNN, masked(SEQUENCES), TARGET),
}


@pytest.mark.parametrize("call", CALLS)
def test_masked_arrays_are_refused(call: str) -> None:
    with pytest.raises(TypeError, match=r"plain array, not a MaskedArray.*filled\(\)"):
        CALLS[call]()


def test_other_subclasses_are_taken(tmp_path: object) -> None:
    mapped = np.memmap(f"{tmp_path}/x", np.float32, "w+", shape=ROWS.shape)
    mapped[...] = ROWS
    np.testing.assert_array_equal(MLP.forward(mapped), MLP.forward(ROWS))

"""Networks that are copied and pickled."""

import copy
import pickle
from typing import Any

import numpy as np
import pytest
import vegrad

COPIES = [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize(
    ("network", "shape"),
    [
        (lambda: vegrad.MLP([3, 8, 2], activation="relu", seed=1), (4, 3)),
        (lambda: vegrad.RNN(3, 8, 2, cell="lstm", seed=1), (4, 5, 3)),
    ],
    ids=["MLP", "RNN"],
)
def test_a_copy_has_parameters_of_its_own(copied: Any, network: Any, shape: Any) -> None:
    first, x = network(), np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    name = next(iter(first.parameters))
    first.parameters[name][...] *= 2
    second = copied(first)
    want = np.array(first.forward(x))
    assert repr(second) == repr(first)
    assert np.array(second.forward(x)).tobytes() == want.tobytes()
    second.parameters[name][...] = 0
    assert np.array(first.forward(x)).tobytes() == want.tobytes()


def test_a_class_is_no_truncation() -> None:
    network = vegrad.RNN(3, 8, 2, seed=1)
    with pytest.raises(TypeError, match="a RandomTruncation, not the class RandomTruncation"):
        network.backward(
            np.ones((1, 5, 3)),
            np.ones((1, 2)),
            truncation=vegrad.RandomTruncation,  # type: ignore[arg-type]
        )

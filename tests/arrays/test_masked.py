"""Masked arrays are refused wherever arrays are taken: nobody means their masked elements."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

COLUMNS = (
    *("step", "loss", "gradient_norm", "clipped_norm"),
    *("learning_rate", "update_ratio", "validation_loss"),
)
SAID = "must be a plain array, not a MaskedArray, whose masked elements would count as well"


def masked(*shape: int) -> Any:
    values = np.ones(shape)
    values.flat[0] = np.nan
    return np.ma.masked_invalid(values)


def mlp() -> vegrad.MLP:
    return vegrad.MLP([3, 4, 2], loss="mse", seed=0)


CALLS: dict[str, Callable[[], object]] = {
    "buffers": lambda: vegrad.norm(masked(3)),
    r"buffers\[1\]": lambda: vegrad.norms([np.ones(3), masked(3)]),
    r'buffers\["a"\]\["b"\]': lambda: vegrad.measure({"a": {"b": masked(3)}}),
    "grads": lambda: vegrad.clip_by_global_norm_(masked(3), 1.0),
    r'grads\["w"\]': lambda: clipping.AutoClip().apply_({"w": masked(3)}),
    "params": lambda: vegrad.adaptive_clip_(np.ones(3), masked(3)),
    r"grads\[0\]": lambda: vegrad.SGD().step([np.ones(3)], [masked(3)]),
    r"params\[0\]": lambda: vegrad.SGD().step([masked(3)], [np.ones(3)]),
    "x": lambda: mlp().forward(masked(5, 3)),
    "target": lambda: mlp().backward(np.ones((5, 3)), masked(5, 2)),
    "x ": lambda: vegrad.RNN(3, 4, 2, seed=0).forward(masked(2, 5, 3)),
    "x  ": lambda: vegrad.diagnose(mlp(), masked(5, 3), np.ones((5, 2))),
    "x   ": lambda: vegrad.theory.expected_flow(mlp(), masked(5, 3)),
    "q": lambda: vegrad.theory.variance_map(masked(3), "tanh", 1.0, 0.1),
    "c": lambda: vegrad.theory.correlation_map(masked(3), "tanh", 1.0, 0.1),
    "loss": lambda: vegrad.Run(**dict.fromkeys(COLUMNS, np.ones(3)) | {"loss": masked(3)}),
}


@pytest.mark.parametrize("name", CALLS)
def test_masked_arrays_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name.strip()} {SAID}"):
        CALLS[name]()


def test_a_mask_without_an_element_too() -> None:
    with pytest.raises(TypeError, match=SAID):
        vegrad.norm(np.ma.masked_array(np.ones(3)))


def test_what_is_said_to_work_works() -> None:
    one = masked(3)
    assert vegrad.norm(one.filled(0)) == pytest.approx(np.sqrt(2))
    assert np.isnan(vegrad.norm(one.data))
    vegrad.clip_by_global_norm_(one.data, 0.5, nonfinite="zero")
    assert vegrad.norm(one.data) == pytest.approx(0.5)


def test_other_subclasses_are_arrays() -> None:
    class Mine(np.ndarray):
        """An array like any other."""

    assert vegrad.norm(np.full(4, 2.0).view(Mine)) == 4.0
    assert vegrad.norm(np.ones((2, 2)).view(np.recarray)) == 2.0


def test_a_limit_is_no_mask() -> None:
    with pytest.raises(TypeError, match="max_norm must be a real number, not Masked"):
        vegrad.clip_by_global_norm_(np.ones(3), np.ma.masked)  # type: ignore[arg-type]

"""What may be passed in, and what is said when it may not.

Every check on a user's data lives here and runs before anything is written.
"""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
_MOST_ROWS = 2**30
POLICIES = ("raise", "skip", "zero", "propagate")


def as_array(value: Any, name: str) -> Array:
    """A NumPy array over `value` (array, CPU tensor, nested lists), without a copy if possible.

    Raises TypeError for complex, text and object data and for tensors of another device.
    """
    device = getattr(value, "device", None)
    if getattr(device, "type", "cpu") != "cpu":
        raise TypeError(f"{name} must be on the CPU, not on {device}")
    if getattr(value, "requires_grad", False):
        value = value.detach()
    if type(value).__module__ == "torch" and str(value.dtype) == "torch.bfloat16":
        value = value.float()  # NumPy has no bfloat16
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        raise TypeError(f"{name} must be an array of real numbers, not {array.dtype}")
    return array


def as_batch(value: Any, columns: int, dtype: npt.DTypeLike, name: str = "x") -> Array:
    """`value` as a C-contiguous (B, columns) array of `dtype`, B from 1 to 2^30."""
    array = as_array(value, name)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name} must have shape (B, {columns}), not {array.shape}")
    if array.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, not shape {array.shape}")
    if array.shape[0] > _MOST_ROWS:
        raise ValueError(f"{name} must have at most {_MOST_ROWS} rows, not {array.shape[0]}")
    return _cast(array, dtype)


def as_target(value: Any, rows: int, columns: int, dtype: npt.DTypeLike, loss: str) -> Array:
    """The target of `loss` for `rows` outputs of `columns` units.

    cross_entropy: int64 labels of shape (rows,); the others: `dtype` of shape (rows, columns),
    for which (rows,) is taken too when there is one column.
    """
    array = as_array(value, "target")
    if loss == "cross_entropy":
        return _as_labels(array, rows, columns)
    if columns == 1 and array.shape == (rows,):
        array = array[:, None]
    if array.shape != (rows, columns):
        raise ValueError(f"target must have shape ({rows}, {columns}), not {array.shape}")
    if loss == "binary_cross_entropy":
        inside = (array >= 0) & (array <= 1) | np.isnan(array)
        if not inside.all():
            row, column = np.argwhere(~inside)[0]
            raise ValueError(
                f"target must lie in [0, 1] for binary_cross_entropy, "
                f"but target[{row}, {column}] is {array[row, column]}"
            )
    return _cast(array, dtype)


def _as_labels(array: Array, rows: int, classes: int) -> Array:
    if array.dtype.kind not in "iu":
        raise TypeError(f"target must be integer labels for cross_entropy, not {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"target must have shape ({rows},) for cross_entropy, not {array.shape}")
    outside = (array < 0) | (array >= classes)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"target must be labels from 0 to {classes - 1}, but target[{row}] is {array[row]}"
        )
    return np.ascontiguousarray(array, np.int64)


def _cast(array: Array, dtype: npt.DTypeLike) -> Array:
    with np.errstate(over="ignore"):  # beyond the range of `dtype` is inf, and is seen as such
        return np.ascontiguousarray(array, dtype)


def as_number(argument: str, value: Any) -> float:
    """A real number as a float."""
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{argument} must be a real number, not {type(value).__name__}")
    try:
        return float(value)
    except OverflowError:
        raise ValueError(f"{argument} must be in the range of a float, not {value}") from None


def as_limit(argument: str, value: Any) -> float:
    """A number that is at least 0."""
    number = as_number(argument, value)
    if not number >= 0:
        raise ValueError(f"{argument} must be at least 0, not {value}")
    return number


def as_order(value: Any) -> float:
    """The order of a norm: above 0, or inf."""
    number = as_number("ord", value)
    if not number > 0:
        raise ValueError(f"ord must be above 0, or inf, not {value}")
    return number


def as_fraction(argument: str, value: Any) -> float:
    """A number from 0 to below 1."""
    number = as_number(argument, value)
    if not 0 <= number < 1:
        raise ValueError(f"{argument} must be from 0 to below 1, not {value}")
    return number


def as_count(argument: str, value: Any, least: int = 0) -> int:
    """An integer that is at least 0, or `least`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, not {value}")
    return int(value)


def as_policy(value: Any) -> str:
    """One of POLICIES: what happens to elements that are not finite."""
    if value not in POLICIES:
        raise ValueError(f"nonfinite must be one of {', '.join(POLICIES)}, not {value!r}")
    return str(value)

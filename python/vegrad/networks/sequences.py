"""Arguments of recurrent passes: sequences, lengths, states, targets, truncations."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Protocol, TypeAlias, runtime_checkable

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, FloatArray, as_array, as_count, cast, check_kind_of_labels

Lengths: TypeAlias = npt.NDArray[np.int64]
State: TypeAlias = tuple[Array, ...]
"""h, or h and c of an LSTM, each (L, B, H)."""
_MOST = 2**30  # rows, and steps


@runtime_checkable
class Cuts(Protocol):
    """A truncation at random, such as `vegrad.RandomTruncation`."""

    def factors(self, steps: int) -> FloatArray:
        """Draw what the gradient that goes back from each step is multiplied by (steps,)."""

    def state_dict(self) -> dict[str, object]:
        """Return what it takes to go on with the same draws, as plain JSON types."""

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on where a state was taken."""


Truncation: TypeAlias = int | tuple[int, int] | Cuts | None
"""How far gradients go back: K, (k1, k2), at random, or None: all the way."""


def as_sequences(value: object, inputs: int, dtype: npt.DTypeLike, name: str = "x") -> Array:
    """Return `value` as a C-contiguous array of shape (B, T, inputs), B and T from 1 to 2^30."""
    array = as_array(value, name)
    check_sequences(array, inputs, name)
    return cast(array, dtype)


def check_sequences(array: Array, inputs: int, name: str) -> None:
    """Check that an array has shape (B, T, inputs), with B and T from 1 to 2^30."""
    if array.ndim != 3 or array.shape[2] != inputs:
        one = f"; one sequence is {name}[None]" if array.shape[1:] == (inputs,) else ""
        raise ValueError(f"{name} must have shape (B, T, {inputs}), not {array.shape}{one}")
    for axis, what in ((0, "row"), (1, "step")):
        if array.shape[axis] == 0:
            raise ValueError(f"{name} must have at least one {what}, not shape {array.shape}")
        if array.shape[axis] > _MOST:
            raise ValueError(f"{name} must have at most {_MOST} {what}s, not {array.shape[axis]}")


def as_lengths(value: object, rows: int, steps: int) -> Lengths | None:
    """Return lengths (rows,), each from 1 to `steps`, in any order; None if that is given."""
    if value is None:
        return None
    array = as_array(value, "lengths")
    if array.dtype.kind not in "iu":
        raise TypeError(f"lengths must be integers, not {array.dtype}")
    if array.shape != (rows,):
        raise ValueError(f"lengths must have shape ({rows},), one a row, not {array.shape}")
    outside = (array < 1) | (array > steps)
    if outside.any():
        row = int(outside.argmax())
        raise ValueError(
            f"lengths must be from 1 to {steps}, the steps of x, but lengths[{row}] is {array[row]}"
        )
    return np.ascontiguousarray(array, np.int64)


def as_state(value: object, shape: tuple[int, int, int], parts: int, dtype: npt.DTypeLike) -> State:
    """Return h, or h and c, as contiguous arrays of shape (L, B, H).

    A state of one part may come without a tuple around it.
    """
    names = "h" if parts == 1 else "(h, c)"
    if not isinstance(value, tuple | list):
        value = (value,)
    if parts == 1 and len(value) != 1:
        value = (as_array(value, "state"),)
    if len(value) != parts:
        raise ValueError(f"state must be {names}, each of shape {shape}, not {len(value)} arrays")
    found = []
    for number, part in enumerate(value):
        name = "state" if parts == 1 else f"state[{number}]"
        array = as_array(part, name)
        if array.shape != shape:
            raise ValueError(f"{name} must have shape (L, B, H) = {shape}, not {array.shape}")
        found.append(cast(array, dtype))
    return tuple(found)


def as_targets(
    value: object,
    rows: int,
    steps: int,
    lengths: Lengths | None,
    outputs: int,
    dtype: npt.DTypeLike,
    loss: str,
    part_of: tuple[Array, int] | None = None,
) -> Array:
    """Return the targets of `loss`, one a step of each row.

    For cross_entropy they are int64 labels (rows, steps), else values of `dtype` and one axis more,
    which may be missing if there is one output. What lies beyond a row's length may be anything.
    Where they are a part of more, `part_of` has the numbers of its rows and its first step.
    """
    array = as_array(value, "target")
    check_targets(array, rows, steps, outputs, loss)
    if loss == "cross_entropy":
        _check_inside(
            array,
            (array >= 0) & (array < outputs),
            lengths,
            f"labels from 0 to {outputs - 1}",
            part_of,
        )
        return np.ascontiguousarray(array, np.int64)
    array = array.reshape(rows, steps, outputs)
    if loss == "binary_cross_entropy":
        inside = (array >= 0) & (array <= 1) | np.isnan(array)
        _check_inside(array, inside, lengths, f"in [0, 1] for {loss}", part_of)
    return cast(array, dtype)


def _check_inside(
    array: Array,
    inside: npt.NDArray[np.bool_],
    lengths: Lengths | None,
    wanted: str,
    part_of: tuple[Array, int] | None,
) -> None:
    """Check that targets (B, T, …) are inside a range, where a row has that step."""
    if inside.all():
        return
    if lengths is not None:
        beyond = np.arange(array.shape[1]) >= lengths[:, None]
        inside |= beyond.reshape(*beyond.shape, *[1] * (array.ndim - 2))
    if not inside.all():
        place = tuple(int(n) for n in np.argwhere(~inside)[0])
        row, step, *rest = place
        if part_of is not None:
            row, step = int(part_of[0][row]), part_of[1] + step
        where = ", ".join(map(str, (row, step, *rest)))
        raise ValueError(f"target must be {wanted}, but target[{where}] is {array[place]}")


def check_targets(array: Array, rows: int, steps: int, outputs: int, loss: str) -> None:
    """Check shape and kind of a target with one entry a step."""
    if loss == "cross_entropy":
        check_kind_of_labels(array)
        wanted: tuple[tuple[int, ...], ...] = ((rows, steps),)
    else:
        wanted = (
            ((rows, steps, outputs), (rows, steps)) if outputs == 1 else ((rows, steps, outputs),)
        )
    if array.shape not in wanted:
        raise ValueError(f"target must have shape {wanted[0]} for {loss}, not {array.shape}")


def as_truncation(value: object) -> Truncation:
    """Return None, K, (k1, k2) or a truncation at random, with numbers from 1 on and k1 ≤ k2."""
    if value is None or (isinstance(value, Cuts) and not isinstance(value, type)):
        return value
    if isinstance(value, tuple | list):
        if len(value) != 2:
            raise ValueError(f"truncation must be K or (k1, k2), not {len(value)} numbers")
        k1, k2 = (as_count(f"truncation[{n}]", k, 1) for n, k in enumerate(value))
        if k2 < k1:
            raise ValueError(
                f"truncation (k1, k2) must go back at least the k1 = {k1} steps that are new, "
                f"not k2 = {k2}"
            )
        return k1, k2
    if not isinstance(value, Integral):
        got = f"the class {value.__name__}" if isinstance(value, type) else type(value).__name__
        raise TypeError(f"truncation must be K, (k1, k2) or a RandomTruncation, not {got}")
    return as_count("truncation", value, 1)


def window_of(truncation: Truncation) -> tuple[int, int] | None:
    """Return (k1, k2), at most what a sequence may have; None if gradients go all the way back."""
    if isinstance(truncation, int):
        truncation = truncation, truncation
    if not isinstance(truncation, tuple):
        return None
    return min(truncation[0], _MOST), min(truncation[1], _MOST)


def is_windows(value: object) -> bool:
    """Return True for a sequence of windows (N, K, …), rather than one array."""
    if isinstance(value, np.ndarray) or not isinstance(value, Sequence) or not len(value):
        return False
    first = value[0]
    return not isinstance(first, list | tuple) and getattr(first, "ndim", 0) == 3

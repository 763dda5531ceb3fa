"""Checks of the arrays and numbers that users pass in.

Each function returns its argument in the form that the rest of the package needs, or raises an
error that names the argument and gives what was wanted and what was passed. All checks run before
anything is written.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from itertools import islice
from math import inf, isfinite
from numbers import Real
from typing import Any, Literal, SupportsFloat, TypeAlias, TypeVar, get_args

import numpy as np
import numpy.typing as npt

from vegrad.arrays.shown import MOST, shown, some, visible

Array = npt.NDArray[Any]
FloatArray = npt.NDArray[np.float64]
Buffers: TypeAlias = object
"""One buffer, or a sequence or mapping of buffers (or None), nested as deep as you like.

A buffer is a NumPy array, not masked, or a CPU tensor that speaks DLPack. "As deep as you like"
ends at 64. The compiled module checks this when it is called: type checkers cannot describe it.
"""

Number: TypeAlias = SupportsFloat
"""A real number: of Python or of NumPy, or an array or a tensor without axes."""
Policy = Literal["raise", "skip", "zero", "propagate"]
"""The ways to treat elements of gradients that are not finite."""
SpikeMode = Literal["zscore", "percentile"]
"""The ways in which `ZClip` judges a norm."""
SpikeOption = Literal["adaptive_scaling", "mean"]
"""Targets to which `ZClip` brings a norm down."""
Activation = Literal[
    "identity",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
    "hard_tanh",
    "erf",
]
Loss = Literal["mse", "cross_entropy", "binary_cross_entropy"]
Normalization = Literal["layer", "rms"]
Initialization = Literal[
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_normal",
    "orthogonal",
    "lsuv",
    "normal",
    "critical",
]
"""Draws of the weights of an `MLP`."""
Cell = Literal["tanh", "relu", "lstm", "gru"]
Targets = Literal["last", "all"]
"""The steps of a sequence that have targets."""
RecurrentInitialization = Literal["default", "orthogonal", "identity", "critical", "chrono"]
"""Draws of the weights of an `RNN`."""

_MOST_ROWS, _MOST_ITEMS = 2**30, 2**22  # the latter as in cpp/bindings/buffers.hpp
POLICIES: tuple[Policy, ...] = get_args(Policy)
T = TypeVar("T")


def as_gradients(grads: Buffers) -> Buffers:
    """Return buffers that are about to be clipped, those of an iterator as a list.

    Raises:
        TypeError: the first or the last is a parameter of a PyTorch model: a leaf that requires a
            gradient. To look at all of them would take as long as to clip small ones.
    """
    ends: tuple[object, ...] = (grads,)
    if isinstance(grads, dict):
        ends = (next(iter(grads.values()), None), next(reversed(grads.values()), None))
    elif isinstance(grads, list | tuple) and grads:
        ends = grads[0], grads[-1]
    elif isinstance(grads, Iterator):
        grads = listed("grads", grads) or grads  # an empty one is refused by those who read it
        return as_gradients(grads) if isinstance(grads, list) else grads
    for one in ends:
        if getattr(one, "requires_grad", False) and getattr(one, "is_leaf", False):
            raise TypeError(
                f"grads must be gradients, not a {type(one).__name__} that requires one: pass "
                "p.grad of each parameter p, or call vegrad.torch.clip_grad_norm_(parameters, "
                "max_norm)"
            )
    return grads


def listed(argument: str, values: Iterable[T]) -> list[T]:
    """Return what a container or an iterator yields; TypeError for one that never ends."""
    most = len(values) if isinstance(values, Sized) else _MOST_ITEMS
    kept = list(islice(values, most + 1))
    if len(kept) > most:
        name = visible(type(values).__name__)
        raise TypeError(f"{argument} must have at most {most} entries, but a {name} yields more")
    return kept


def as_array(value: Any, name: str) -> Array:
    """Return `value` (an array, a CPU tensor, nested lists) as a NumPy array, uncopied if possible.

    Raises:
        TypeError: for complex numbers, text and objects, for masked arrays, and for tensors on
            another device.
    """
    device = getattr(value, "device", None)
    if getattr(device, "type", "cpu") != "cpu":
        raise TypeError(f"{name} must be on the CPU, not on {device}")
    if getattr(value, "requires_grad", False):
        value = value.detach()
    if type(value).__module__ == "torch" and str(value.dtype) == "torch.bfloat16":
        value = value.float()  # NumPy has no bfloat16
    refuse_masked(value, name)
    try:
        array = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must be an array of numbers: {error}") from error
    if array.dtype.kind not in "biuf" and array.dtype.name != "bfloat16":
        got = type(value).__name__ if array.dtype == object and array.ndim == 0 else array.dtype
        raise TypeError(f"{name} must be an array of real numbers, not {got}")
    return array


def refuse_masked(value: object, name: str) -> None:
    """Raise TypeError for a masked array."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name} must be a plain array, not a {type(value).__name__}, whose masked elements "
            "would count as well: pass its .data, or what filled() gives"
        )


def as_batch(value: object, columns: int, dtype: npt.DTypeLike, name: str = "x") -> Array:
    """Return `value` as a C-contiguous array of shape (B, columns), B from 1 to 2^30."""
    array = as_array(value, name)
    if array.ndim != 2 or array.shape[1] != columns:
        raise ValueError(f"{name} must have shape (B, {columns}), not {array.shape}")
    if array.shape[0] == 0:
        raise ValueError(f"{name} must have at least one row, not shape {array.shape}")
    if array.shape[0] > _MOST_ROWS:
        raise ValueError(f"{name} must have at most {_MOST_ROWS} rows, not {array.shape[0]}")
    return cast(array, dtype)


def as_target(value: object, rows: int, columns: int, dtype: npt.DTypeLike, loss: str) -> Array:
    """Return the target of `loss` for `rows` outputs of `columns` units.

    For cross_entropy it is int64 labels of shape (rows,). For the other losses it has `dtype` and
    shape (rows, columns); with a single column, shape (rows,) is accepted too.
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
    return cast(array, dtype)


def _as_labels(array: Array, rows: int, classes: int) -> Array:
    if array.shape != (rows,):
        raise ValueError(
            f"target must have shape ({rows},) for cross_entropy, not {array.shape}"
            + _as_one_column(array, rows)
        )
    check_kind_of_labels(array)
    outside = (array < 0) | (array >= classes)
    if outside.any():
        row = int(outside.argmax())
        hint = ": pass target - 1" if array.min() == 1 and array.max() == classes else ""
        raise ValueError(
            f"target must be labels from 0 to {classes - 1}, but target[{row}] is "
            f"{array[row]}{hint}"
        )
    return np.ascontiguousarray(array, np.int64)


def check_kind_of_labels(array: Array) -> None:
    """Raise TypeError unless labels are integers."""
    if array.dtype.kind in "iu":
        return
    whole = array.dtype.kind == "b" or bool((array == np.round(array)).all())
    hint = ": pass target.astype(int)" if whole else ""
    raise TypeError(f"target must be integer labels for cross_entropy, not {array.dtype}{hint}")


def _as_one_column(array: Array, rows: int) -> str:
    """Return how labels (rows,) are made of one-hot rows, or of a column; "" of anything else."""
    if array.ndim != 2 or len(array) != rows:
        return ""
    if array.shape[1] == 1:
        return ": pass target[:, 0]"
    one_hot = ((array == 0) | (array == 1)).all() and (array.sum(axis=1) == 1).all()
    return ": pass target.argmax(1)" if one_hot else ""


def cast(array: Array, dtype: npt.DTypeLike) -> Array:
    """Return an array as a C-contiguous one of `dtype`, copied only if needed."""
    with np.errstate(over="ignore"):  # a value too large for `dtype` becomes inf
        return np.ascontiguousarray(array, dtype)


def as_number(argument: str, value: object) -> float:
    """Return a real number as a float; an array or a tensor without axes is one."""
    number = value
    if getattr(value, "ndim", None) == 0 and not isinstance(value, np.ma.MaskedArray):
        try:
            number = value.item()  # type: ignore[attr-defined]
        except RuntimeError:  # of a tensor that has no value, as on the device `meta`
            number = None
    if not isinstance(number, Real) or isinstance(number, bool):
        raise TypeError(f"{argument} must be a real number, not {type(value).__name__}")
    try:
        return float(number)
    except OverflowError:
        raise ValueError(
            f"{argument} must be in the range of a float, not {shown(value)}"
        ) from None


def as_limit(argument: str, value: object) -> float:
    """Return a number that must be at least 0 as a float."""
    number = as_number(argument, value)
    if not number >= 0:
        raise ValueError(f"{argument} must be at least 0, not {visible(str(value))}")
    return number


def as_finite(argument: str, value: object) -> float:
    """Return a finite number that must be at least 0 as a float."""
    number = as_limit(argument, value)
    if number == inf:
        raise ValueError(f"{argument} must be finite, not {visible(str(value))}")
    return number


def as_limit_or_none(argument: str, value: object) -> float | None:
    """Return None, or a number that must be at least 0 as a float."""
    return None if value is None else as_limit(argument, value)


def as_finites(argument: str, values: Iterable[object]) -> list[float]:
    """Return finite numbers that must be at least 0 as floats."""
    return [as_finite(argument, value) for value in values]


def as_reals(argument: str, values: Iterable[object]) -> list[float]:
    """Return finite numbers of either sign as floats."""
    numbers = [as_number(argument, value) for value in values]
    if not all(map(isfinite, numbers)):
        raise ValueError(f"{argument} must be finite")
    return numbers


def as_counts(argument: str, values: Iterable[object]) -> list[int]:
    """Return integers that must be at least 1."""
    return [as_count(argument, value, 1) for value in values]


def as_flag(argument: str, value: object) -> bool:
    """Return True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{argument} must be True or False, not {shown(value)}")
    return value


def as_limits_by_name(argument: str, values: Mapping[object, object]) -> dict[str, float]:
    """Return numbers that must be at least 0 as floats by name."""
    return {str(name): as_limit(argument, value) for name, value in values.items()}


def as_order(value: object) -> float:
    """Return the order of a norm, which must be above 0 and may be inf."""
    number = as_number("ord", value)
    if not number > 0:
        raise ValueError(f"ord must be above 0, or inf, not {visible(str(value))}")
    return number


def as_fraction(argument: str, value: object) -> float:
    """Return a number that must be at least 0 and below 1 as a float."""
    number = as_number(argument, value)
    if not 0 <= number < 1:
        raise ValueError(f"{argument} must be from 0 to below 1, not {visible(str(value))}")
    return number


def as_count(argument: str, value: object, least: int = 0, most: float = inf) -> int:
    """Return an integer that must be at least `least`, and at most `most`."""
    if not isinstance(value, int | np.integer) or isinstance(value, bool):
        raise TypeError(f"{argument} must be an integer, not {type(value).__name__}")
    if value < least:
        raise ValueError(f"{argument} must be at least {least}, not {shown(value)}")
    if value > most:
        raise ValueError(f"{argument} must be at most {most}, not {shown(value)}")
    return int(value)


def as_one_of(argument: str, value: object, known: Iterable[T]) -> T:
    """Return the one of `known` that `value` equals."""
    for one in known:
        if isinstance(value, str) and value == one:
            return one
    hint = did_you_mean(value, map(str, known)) if isinstance(value, str) else ""
    raise ValueError(f"{argument} must be one of {some(known, 20)}, not {shown(value)}{hint}")


def as_policy(value: object) -> Policy:
    """Return one of POLICIES, the ways to treat elements that are not finite."""
    return as_one_of("nonfinite", value, POLICIES)


def check_state(state: object, key: str, wanted: Mapping[str, object]) -> None:
    """Check that `state` is a mapping like `wanted`, with its keys only and the same `key`.

    `wanted` is the current state_dict() of the object that is to be restored; the entry `key` holds
    the name of its class.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"state must be a mapping, not {type(state).__name__}")
    if state.get(key) != wanted[key]:
        raise ValueError(f"state must be of {wanted[key]}, not of {visible(str(state.get(key)))}")
    missing = wanted.keys() - state.keys()
    if missing:
        raise ValueError(f"state must have {', '.join(sorted(missing))}, which it lacks")
    unknown = [name for name in state if name not in wanted]
    if unknown:
        raise ValueError(f"state must have {', '.join(wanted)} only, not {some(unknown)}")


def range_of(dtype: str) -> tuple[float, float]:
    """Return the smallest normal and the largest number of a dtype; NumPy has no bfloat16."""
    if dtype == "bfloat16":
        return 2.0**-126, (2.0 - 2.0**-7) * 2.0**127
    ends = np.finfo(dtype)
    return float(ends.tiny), float(ends.max)


# What other libraries, and papers, call what has another name here, or what comes nearest to it.
SYNONYMS = {
    "batch": ("layer",),
    "batchnorm": ("layer", "normalization"),
    "batch_norm": ("layer", "normalization"),
    "layernorm": ("layer", "normalization"),
    "rmsnorm": ("rms", "normalization"),
    "kaiming": ("he_normal", "he_uniform"),
    "kaiming_normal": ("he_normal",),
    "kaiming_uniform": ("he_uniform",),
    "xavier": ("glorot_uniform", "glorot_normal"),
    "xavier_normal": ("glorot_normal",),
    "xavier_uniform": ("glorot_uniform",),
    "swish": ("silu",),
    "linear": ("identity",),
    "logistic": ("sigmoid",),
    "bce": ("binary_cross_entropy",),
    "l2": ("mse",),
    "lr": ("learning-rate-high", "learning-rate-low"),
    "learning-rate": ("lr", "learning-rate-high", "learning-rate-low"),
    "batch-size": ("batch",),
    "nan": ("nonfinite",),
}


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return " (did you mean relu?)" for the known name nearest to one that is none, or "".

    Of names of which it is only the beginning, two are named; words of other libraries are known.
    """
    if len(name) > MOST:
        return ""
    from difflib import get_close_matches  # takes a millisecond to import, and few need it

    by_lower, wanted = {one.lower(): one for one in known}, name.lower()
    nearest = [one for one in SYNONYMS.get(wanted, ()) if one in by_lower]
    nearest = nearest or get_close_matches(wanted, list(by_lower), n=1)
    if not nearest and len(wanted) > 1:
        nearest = [one for one in by_lower if one.startswith(wanted)][:2]
    return f" (did you mean {' or '.join(by_lower[one] for one in nearest)}?)" if nearest else ""

"""The tensors that a model and its loss are given, by the names that a user would give them."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from vegrad.flow.data import NonFiniteData
from vegrad.torch.reading.parameters import first_nonfinite


def not_finite(kind: str, name: str, value: object) -> NonFiniteData | None:
    """Return the first number that is not finite; None if all are.

    Args:
        kind: "data" or "target".
        name: name of the argument.
        value: a tensor, or a sequence or mapping of several; all else is passed over.
    """
    several = named_inputs(name, value)
    for where, tensor in several.items():
        if not tensor.is_floating_point():
            continue
        first = first_nonfinite(tensor)
        if first is not None:
            bad = ~tensor.isfinite()
            rows = int(bad.reshape(len(bad) if bad.ndim else 1, -1).any(1).sum())
            return NonFiniteData(kind, where, first, rows=rows, of=len(bad) if bad.ndim else 1)
    return None


def no_tensors(x: object, target: object) -> str:
    """Return what is wrong with arguments among which there are NumPy arrays; "" if there are none.

    Some models and losses take them; of others PyTorch's own error says what is wrong within.
    """
    for name, value in (("x", x), ("target", target)):
        for where, one in _parts(name, value).items():
            if isinstance(one, np.ndarray):
                dtype = ", dtype=torch.float32" if one.dtype == np.float64 else ""
                return (
                    f"{where} must be a torch.Tensor, not a numpy.ndarray: give "
                    f"torch.as_tensor({where}{dtype})"
                )
    return ""


def named_inputs(name: str, value: object) -> dict[str, Tensor]:
    """Return the tensors of an argument, by the names that a user would give them."""
    several = _parts(name, value)
    return {where: one for where, one in several.items() if isinstance(one, Tensor)}


def _parts(name: str, value: object) -> dict[str, object]:
    if isinstance(value, tuple | list):
        return {f"{name}[{n}]": one for n, one in enumerate(value)}
    if isinstance(value, Mapping):
        return {f"{name}[{key!r}]": one for key, one in value.items()}
    return {name: value}

"""PyTorch's names of the activations that vegrad knows: one table."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from torch import nn
from torch.nn import Module


class Row(NamedTuple):
    """Of `torch.nn.functional` (or `torch`), as a module, and as vegrad calls it."""

    function: str
    module: type[Module] | None
    ours: str
    arguments: Mapping[str, Any] = MappingProxyType({})
    """Those that change it, in the function's order, with the values for which it is vegrad's."""


TABLE = (
    Row("tanh", nn.Tanh, "tanh"),
    Row("sigmoid", nn.Sigmoid, "sigmoid"),
    Row("relu", nn.ReLU, "relu"),
    Row("leaky_relu", nn.LeakyReLU, "leaky_relu", {"negative_slope": 0.01}),
    Row("elu", nn.ELU, "elu", {"alpha": 1.0, "scale": 1.0, "input_scale": 1.0}),
    Row("selu", nn.SELU, "selu"),
    Row("gelu", nn.GELU, "gelu", {"approximate": "none"}),
    Row("silu", nn.SiLU, "silu"),
    Row("softplus", nn.Softplus, "softplus", {"beta": 1.0, "threshold": 20.0}),
    Row("hardtanh", nn.Hardtanh, "hard_tanh", {"min_val": -1.0, "max_val": 1.0}),
    Row("erf", None, "erf"),
)
FUNCTIONS = {row.function: row for row in TABLE}
MODULES = {row.module: row for row in TABLE if row.module is not None}
# Known as activations, but none of vegrad's.
OTHERS = {"mish", "softsign", "hardswish", "hardsigmoid", "logsigmoid", "celu", "relu6", "prelu",
          "rrelu", "tanhshrink", "softshrink", "hardshrink"}  # fmt: skip

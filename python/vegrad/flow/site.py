"""Sites: the places that findings are about."""

from __future__ import annotations

from dataclasses import dataclass

LAYERED = ("layer", "weights", "biases", "activation", "module", "cell")  # kinds with a number


@dataclass(frozen=True)
class Site:
    """A place in a network, its data or its training.

    `kind` is one of "layer", "weights", "biases" and "activation" (of a layer), "module", "cell",
    "parameter", "step", "loss", "data", "target", "optimizer" and "model".
    """

    kind: str
    name: str = ""
    """The path of a module or layer, or the name of a parameter."""
    place: int | None = None
    """The number of the layer in its chain, of the module in its report, or of the step."""
    rows: tuple[int, ...] | None = None
    """Rows of a parameter, from and up to; of data: the row and the column."""

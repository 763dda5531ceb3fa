"""The base class of networks of layers, one behind the other, as rules and training see them."""

from __future__ import annotations

from typing import cast

from vegrad.arrays.checks import Array
from vegrad.flow.flow import Flow
from vegrad.networks.network import Network


class LayeredNetwork(Network):
    """A network whose rows are independent and whose flow is one of layers."""

    @property
    def flow(self) -> Flow:
        """The gradient flow that the last `backward` measured.

        Raises:
            RuntimeError: if there was no `backward` yet, or the last one had `flow=False`.
        """
        return cast(Flow, super().flow)

    @property
    def depth(self) -> int:
        """L, the number of layers with weights."""
        return len(self.config["sizes"]) - 1

    def forward(self, x: object) -> Array:
        """Return the output (B, O) for the rows of x (B, I)."""
        raise NotImplementedError

    def backward(self, x: object, target: object) -> float:
        """Run one forward and backward pass; return the loss."""
        raise NotImplementedError

    def checked(self, x: object, target: object) -> tuple[Array, Array]:
        """Return x (B, I) and target as contiguous arrays that the core takes."""
        raise NotImplementedError

"""Networks of JAX alone, as lists of layers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp

Net = list[dict[str, Any]]


def drawn(widths: Sequence[int], scale: float = 1.0, seed: int = 0) -> Net:
    """Draw normal weights of the variance scale²/fan_in, and biases of 0."""
    keys = jax.random.split(jax.random.key(seed), len(widths))
    return [
        {"w": scale * a**-0.5 * jax.random.normal(key, (a, b)), "b": jnp.zeros(b)}
        for key, (a, b) in zip(keys, pairwise(widths), strict=False)
    ]


def run(net: Net, x: Any, phi: Callable[[Any], Any] = jnp.tanh) -> Any:
    for layer in net[:-1]:
        x = phi(x @ layer["w"] + layer["b"])
    return x @ net[-1]["w"] + net[-1]["b"]


def cross_entropy(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:, None], 1).mean()


def loss_with(phi: Callable[[Any], Any]) -> Callable[..., Any]:
    def loss(net: Net, x: Any, y: Any) -> Any:
        return cross_entropy(run(net, x, phi), y)

    return loss


def task(rows: int = 64, columns: int = 16, classes: int = 4) -> tuple[Any, Any]:
    x = jax.random.normal(jax.random.key(7), (rows, columns))
    return x, jax.random.randint(jax.random.key(8), (rows,), 0, classes)

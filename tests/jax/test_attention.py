"""Attention: rows that see nothing, and tokens that become alike."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import vegrad.jax

X = jax.random.normal(jax.random.key(1), (4, 6, 16))
MASK = jnp.arange(6) < jnp.array([[6], [3], [1], [4]])


def weights(names: str, seed: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), len(names))
    return {n: jax.random.normal(key, (16, 16)) / 4 for n, key in zip(names, keys, strict=True)}


def masked(hidden: bool, last: bool) -> Any:
    """Return a loss whose attention leaves out what a mask does not have by -inf."""

    def loss(net: Any, x: Any, mask: Any) -> Any:
        logits = (x @ net["q"]) @ (x @ net["k"]).swapaxes(1, 2) / 4
        shares = jax.nn.softmax(jnp.where(mask[:, None, :], logits, -jnp.inf))
        h = shares @ (x @ net["v"])
        h = h if last else h @ net["o"]
        return jnp.mean((jnp.where(mask[..., None], h, 0.0) if hidden else h) ** 2)

    return loss


@pytest.mark.parametrize("hidden", [True, False])
@pytest.mark.parametrize("last", [True, False])
def test_a_row_that_is_masked_altogether_is_named(hidden: bool, last: bool) -> None:
    """Also where a where() leaves its NaN out of the loss, but not of the gradient."""
    net, loss = weights("qkv" if last else "qkvo"), masked(hidden, last)
    assert vegrad.jax.diagnose(loss, net, X, MASK).healthy
    (found,) = vegrad.jax.diagnose(loss, net, X, MASK.at[2].set(False)).findings
    assert (found.kind, found.cause) == ("nonfinite", "masked-row")
    assert "softmax" in found.message
    (found,) = vegrad.jax.diagnose(loss, net, X.at[0, 0, 0].set(jnp.nan), MASK).findings
    assert found.cause == "nonfinite-input"


def mixer(skips: bool) -> Any:
    """Return a loss of six layers of attention, with or without skip connections."""

    def loss(net: Any, x: Any, mask: Any) -> Any:
        h = x
        for one in net["layers"]:
            logits = (h @ one["q"]) @ (h @ one["k"]).swapaxes(1, 2) / 4
            mixed = jax.nn.softmax(jnp.where(mask, logits, -1e9)) @ (h @ one["v"]) @ one["o"]
            h = jnp.tanh(h * skips + mixed)
        return jnp.mean((h[:, 0] @ net["out"] - x[:, 0]) ** 2)

    return loss


@pytest.mark.parametrize("mask", [jnp.ones((6, 6), bool), MASK[:, None, :]])
def test_tokens_that_become_alike_without_skip_connections(mask: Any) -> None:
    net = {"layers": [weights("qkvo", n) for n in range(6)], "out": weights("w", 6)["w"]}
    assert vegrad.jax.diagnose(mixer(skips=True), net, X, mask).healthy
    (found,) = vegrad.jax.diagnose(mixer(skips=False), net, X, mask).findings
    assert (found.kind, found.cause) == ("collapsed", "collapse")
    assert found.evidence["now"] < 1e-4 < 0.1 < found.evidence["was"]
    alike = jnp.broadcast_to(X[:, :1], X.shape)  # from the first: that is the data's
    found_of_data = vegrad.jax.diagnose(mixer(skips=False), net, alike, mask).findings
    assert "collapse" not in [one.cause for one in found_of_data]

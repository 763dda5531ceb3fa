"""Activations that float32 has only as 0 or inf: their sizes are those of float64."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vegrad.jax
from vegrad.activations import ACTIVATIONS
from vegrad.jax.task import Task

from tests.jax.nets import drawn, loss_with, run, task
from tests.jax.test_diagnosis import layer_norm, read

PHI = {
    "identity": lambda z: z,
    "relu": jax.nn.relu,
    "tanh": jnp.tanh,
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
}


def mean_square(phi: Any, net: Any, x: Any) -> Any:
    return 0.5 * jnp.mean(run(net, x, phi) ** 2)


def norm_log2(values: Any) -> float:
    """Return log2 of a norm, of which the square would leave float64."""
    top = np.abs(values).max()
    return float(np.log2(top) + np.log2(np.linalg.norm(values / top)))


def in_float64(name: str, net: Any, x: Any, add: float = 0.0) -> tuple[list[float], ...]:
    """Return log2 of rms of each layer's output, and of the norms of δ and of the gradients."""
    one, found = ACTIVATIONS[name], []
    weights = [np.asarray(layer["w"], np.float64) for layer in net]
    h, kept = np.asarray(x, np.float64), []
    for n, weight in enumerate(weights):
        z = h @ weight + add
        last = n == len(weights) - 1
        kept.append((h, z, np.ones_like(z) if last else one.slope(z)))
        h = z if last else one.phi(z)
        found.append(norm_log2(h) - np.log2(h.size) / 2)
    delta, deltas, gradients = h / h.size, [], []
    for weight, (taken, _, slope) in zip(weights[::-1], kept[::-1], strict=True):
        delta = delta * slope
        deltas.append(norm_log2(delta))
        gradients.append(norm_log2(taken.T @ delta))
        delta = delta @ weight.T
    return found, deltas[::-1], gradients[::-1]


@pytest.mark.parametrize(
    ("name", "scale", "depth", "by"),
    [(name, 0.1, 60, 1e-30) for name in PHI]
    # A tanh that is saturated throughout has the slope 0 in float32.
    + [(name, 1e3, 30, 1.0) for name in PHI if name != "tanh"],
)
def test_sizes_forward_and_back(name: str, scale: float, depth: int, by: float) -> None:
    net, x = drawn([8, *[8] * (depth - 1), 4], scale, seed=2), by * task(16, 8)[0]
    flow = read(partial(mean_square, PHI[name]), net, x).chain.flow
    sizes, deltas, gradients = in_float64(name, net, x)
    assert max(map(abs, sizes)) > 150
    np.testing.assert_allclose(np.log2(flow.activation_rms), sizes, atol=1e-3)
    np.testing.assert_allclose(flow.delta_log2, deltas, atol=2e-3)
    np.testing.assert_allclose(flow.gradient_log2, gradients, atol=2e-3)


def test_biases_and_normalizations_far_out() -> None:
    """A sum with what is far larger is that; what a normalization makes has its usual size."""
    net, x = drawn([8, *[8] * 7, 4], 1e-12, seed=2), task(16, 8)[0]
    net[4]["b"] = net[4]["b"] + 1e-3
    chain = read(partial(mean_square, jax.nn.relu), net, x).chain
    kept = [dict(one, w=np.asarray(one["w"], np.float64), b=np.asarray(one["b"])) for one in net]
    h, sizes = np.asarray(x, np.float64), []
    for n, one in enumerate(kept):
        h = h @ one["w"] + one["b"]
        h = h if n == len(kept) - 1 else np.maximum(h, 0)
        sizes.append(norm_log2(h) - np.log2(h.size) / 2)
    np.testing.assert_allclose(np.log2(chain.flow.activation_rms), sizes, atol=1e-3)

    def loss(net: Any, x: Any) -> Any:
        for one in net[:-1]:
            x = x @ one["w"]
        return mean_square(jnp.tanh, [net[-1]], layer_norm(x, 1.0, 0.0))

    small = read(loss, net, x).parameters
    eps = 1e-6
    h = np.asarray(x, np.float64)
    for one in kept[:-1]:
        h = h @ one["w"]
    h = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + eps)
    out = h @ kept[-1]["w"] + kept[-1]["b"]
    size = norm_log2(h.T @ out / out.size)
    assert size < -500
    assert small["7.w"].gradient_log2 == pytest.approx(size, abs=2e-3)


def test_a_network_that_float32_loses_is_told_with_its_sizes() -> None:
    net, x = drawn([8, *[8] * 29, 4], 1e3, seed=2), task(16, 8)[0]
    assert not np.isfinite(float(mean_square(jax.nn.relu, net, x)))
    found = vegrad.jax.diagnose(partial(mean_square, jax.nn.relu), net, x)
    assert (found.verdict, found.findings[0].cause) == ("exploding", "weight-scale-all")
    net = drawn([8, *[8] * 59, 4], 0.1, seed=2)
    found = vegrad.jax.diagnose(partial(mean_square, jnp.tanh), net, x)
    assert (found.verdict, found.findings[0].cause) == ("vanishing", "weight-scale-all")


def test_logits_that_are_next_to_nothing_leave_the_gradient_of_the_loss() -> None:
    """Where a function is next to constant, its slope is not 0."""
    x, y = task()
    net = drawn([16, *[16] * 7, 4], 1e-4, seed=2)
    delta = read(loss_with(jax.nn.relu), net, x, y).chain.flow.delta_log2
    wanted = (np.full((len(x), 4), 0.25) - np.eye(4)[np.asarray(y)]) / len(x)
    assert delta[-1] == pytest.approx(norm_log2(wanted), abs=1e-3)


@pytest.mark.parametrize("by", [2.0**-80, 2.0**80])
def test_bounded_functions_far_out(by: float) -> None:
    """Small parts of an array that is large are as they were."""
    x = jnp.array([[1.0, 2.0**-30]]) * jnp.float32(by)
    w = jnp.eye(2) * jnp.float32(by)

    def loss(w: Any, x: Any) -> Any:
        return jnp.tanh(x @ w).sum() + jnp.exp(-jnp.abs(x @ w)).sum()

    one = Task.of(loss, w, (x,), None, 0)
    z = np.asarray(x, np.float64) * by
    wanted = np.tanh(z).sum() + np.exp(-np.abs(z)).sum()
    assert one.measured(one.tree.leaves).loss == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_half_precision(dtype: Any) -> None:
    net, x = drawn([8, *[8] * 9, 4], 0.01, seed=2), task(16, 8)[0]
    half = jax.tree.map(lambda one: one.astype(dtype), net)
    flow = read(partial(mean_square, jax.nn.relu), half, x.astype(dtype)).chain.flow
    sizes, deltas, _ = in_float64("relu", half, x.astype(dtype))
    assert sizes[-1] < -60
    np.testing.assert_allclose(np.log2(flow.activation_rms), sizes, atol=0.02)
    np.testing.assert_allclose(flow.delta_log2, deltas, atol=0.05)


def test_a_scan_that_overflows_is_named_and_not_the_loss() -> None:
    keys = jax.random.split(jax.random.key(0), 3)
    net = {
        "in": jax.random.normal(keys[0], (8, 16)),
        "back": 8.0 * jnp.linalg.qr(jax.random.normal(keys[1], (16, 16)))[0],
    }

    def loss(net: Any, x: Any) -> Any:
        def step(h: Any, row: Any) -> Any:
            return row @ net["in"] + h @ net["back"], None

        h, _ = jax.lax.scan(step, jnp.zeros((4, 16)), x)
        return jnp.mean(h**2)

    found = vegrad.jax.diagnose(loss, net, jax.random.normal(keys[2], (60, 4, 8)))
    lost = next(one for one in found.findings if one.kind == "nonfinite")
    assert lost.cause == "overflow"
    assert lost.message.startswith("the output of scan with back is not finite")


def test_a_logarithm_of_0_in_a_loss_is_no_matter_of_the_data() -> None:
    x = jnp.ones((5, 4))
    found = vegrad.jax.diagnose(
        lambda net, x: -jnp.mean(jnp.log(jax.nn.relu(x @ net["w"]))), {"w": -jnp.ones((4, 1))}, x
    )
    assert [one.cause for one in found.findings] == ["loss-domain"]
    assert "logarithm" in found.findings[0].advice

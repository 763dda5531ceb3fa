"""Pure losses: what is read of them is right beyond float32, and told as it is."""

import warnings
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vegrad.jax
from hypothesis import given, settings
from hypothesis import strategies as st
from vegrad.activations import ACTIVATIONS
from vegrad.flow.edits import Scale
from vegrad.jax.task import Task

from tests.jax.nets import cross_entropy, drawn, loss_with, run, task


def read(loss: Any, params: Any, *batch: Any, init: Any = None) -> Any:
    one = Task.of(loss, params, batch, init, 0)
    return one.read(one.tree.leaves)


def in_float64(net: list[dict[str, Any]], x: Any, y: Any) -> tuple[list[float], list[float]]:
    """Return log2 of the norms of δ and of the weights' gradients of a tanh net, by NumPy."""
    weights = [np.asarray(one["w"], np.float64) for one in net]
    h, kept = np.asarray(x, np.float64), []
    for weight in weights[:-1]:
        kept.append(h)
        h = np.tanh(h @ weight)
    kept.append(h)
    z = h @ weights[-1]
    e = np.exp(z - z.max(axis=1, keepdims=True))
    delta = (e / e.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[np.asarray(y)]) / len(z)
    deltas, sizes = [], []
    for weight, taken in zip(weights[::-1], kept[::-1], strict=True):
        deltas.append(float(np.log2(np.linalg.norm(delta))))
        sizes.append(float(np.log2(np.linalg.norm(taken.T @ delta))))
        delta = (delta @ weight.T) * (1 - taken**2)
    return deltas[::-1], sizes[::-1]


@settings(max_examples=4)
@given(depth=st.integers(1, 2), scale=st.floats(0.1, 2.0), seed=st.integers(0, 99))
def test_sizes_are_those_of_float64(depth: int, scale: float, seed: int) -> None:
    net, (x, y) = drawn([5, *[7] * depth, 3], scale, seed), task(8, 5, 3)
    flow = read(loss_with(jnp.tanh), net, x, y).chain.flow
    deltas, sizes = in_float64(net, x, y)
    np.testing.assert_allclose(flow.delta_log2, deltas, atol=1e-4)
    np.testing.assert_allclose(flow.gradient_log2, sizes, atol=1e-4)


def test_sizes_beyond_float32_are_right() -> None:
    """δ falls to 1e-60, where float32 has only 0."""
    net, (x, y) = drawn([16, *[16] * 9, 4], seed=3), task()
    small = [{"w": one["w"] * (1 if n < 2 else 1e-6), "b": one["b"]} for n, one in enumerate(net)]
    flow = read(loss_with(jnp.tanh), small, x, y).chain.flow
    deltas, _ = in_float64(small, x, y)
    assert deltas[0] < -150
    np.testing.assert_allclose(flow.delta_log2, deltas, atol=1e-3)
    assert not any(
        np.asarray(one).any() for one in jax.grad(loss_with(jnp.tanh))(small, x, y)[0].values()
    )


def test_a_parameter_that_is_used_above_and_below_a_cut_has_the_sum_of_both() -> None:
    net, (x, y) = drawn([16, 16, 16, 16], seed=1), task()

    def loss(net: Any, x: Any, y: Any) -> Any:
        tied = [net[0], net[0], net[1], net[2]]
        decay = sum(jnp.sum(one["w"] ** 2) for one in net)
        return cross_entropy(run(tied, x), y) + 1e-3 * decay

    sizes = {n: one.gradient_log2 for n, one in read(loss, net, x, y).parameters.items()}
    wanted = jax.grad(loss)(net, x, y)
    for n, layer in enumerate(wanted):
        for name, one in layer.items():
            norm = float(np.log2(np.linalg.norm(np.asarray(one, np.float64))))
            assert sizes[f"{n}.{name}"] == pytest.approx(norm, abs=1e-4)


PHI = {"leaky_relu": jax.nn.leaky_relu, "gelu": partial(jax.nn.gelu, approximate=True),
       "hard_tanh": jax.nn.hard_tanh, "erf": jax.scipy.special.erf}  # fmt: skip


@pytest.mark.parametrize("name", [one for one in ACTIVATIONS if one != "identity"])
def test_activations_are_known_however_they_are_written(name: str) -> None:
    phi = PHI.get(name) or getattr(jax.nn, name)
    net, (x, y) = drawn([16, 8, 4]), task(16)
    chain = read(loss_with(phi), net, x, y).chain
    assert (chain.activation, chain.residual, chain.norm) == (name, False, None)


def test_a_relu_of_maximum_is_one_and_units_that_are_dead_are_counted() -> None:
    net, (x, y) = drawn([16, 8, 4]), task(16)
    net[0]["b"] = jnp.where(jnp.arange(8) < 2, -100.0, 0.0)
    chain = read(loss_with(lambda z: jnp.maximum(z, 0)), net, x, y).chain
    assert chain.activation == "relu"
    assert chain.flow.dead[0] == pytest.approx(0.25)
    np.testing.assert_allclose(
        chain.flow.saturated[0], np.mean(np.asarray(x @ net[0]["w"] + net[0]["b"]) <= 0)
    )


def layer_norm(x: Any, gain: Any, bias: Any) -> Any:
    mean = x.mean(-1, keepdims=True)
    return (x - mean) / jnp.sqrt(((x - mean) ** 2).mean(-1, keepdims=True) + 1e-6) * gain + bias


def test_normalizations_and_sums_are_seen() -> None:
    net, (x, y) = drawn([16, 16, 16, 16, 4]), task()
    tree = {"layers": net, "gain": jnp.ones(16), "bias": jnp.zeros(16)}

    def loss(tree: Any, x: Any, y: Any) -> Any:
        first, *middle, last = tree["layers"]
        x = x @ first["w"]
        for one in middle:
            x = x + jnp.tanh(layer_norm(x @ one["w"], tree["gain"], tree["bias"]))
        return cross_entropy(x @ last["w"], y)

    reading = read(loss, tree, x, y)
    assert reading.chain.residual
    assert [one.norm for one in reading.chain.layers] == [None, "layer", "layer", None]
    kinds = [one.kind for one in reading.operations]
    assert kinds.count("add") == kinds.count("layer_norm") == 2
    assert len(reading.branches) == 2
    assert reading.branches[0].trail[0] == "layers.1.w"


def test_a_deep_sigmoid_is_told() -> None:
    net, (x, y) = drawn([16, *[16] * 7, 4]), task()
    found = vegrad.jax.diagnose(loss_with(jax.nn.sigmoid), net, x, y)
    assert (found.verdict, found.findings[0].cause) == ("vanishing", "activation-derivative")
    assert "jax.nn.relu" in found.findings[0].advice


def test_a_good_net_is_healthy_with_and_without_jit_and_init() -> None:
    net, (x, y) = drawn([16, *[16] * 4, 4], 2**0.5), task()
    loss = loss_with(jax.nn.relu)
    found = vegrad.jax.diagnose(
        jax.jit(loss), net, x, y, init=lambda key: drawn([16, *[16] * 4, 4])
    )
    assert found.healthy, str(found)
    assert found.flow is not None
    assert vegrad.jax.diagnose(lambda net: loss(net, x, y), net).healthy


@pytest.mark.parametrize("init", [None, lambda key: drawn([16, *[16] * 4, 4], seed=5)])
def test_one_weak_layer_is_found_and_a_new_tree_is_healthy(init: Any) -> None:
    net, (x, y) = drawn([16, *[16] * 4, 4]), task()
    net[3]["w"] = net[3]["w"] * 1e-4
    loss = loss_with(jnp.tanh)
    found = vegrad.jax.diagnose(loss, net, x, y, init=init)
    finding = found.findings[0]
    assert (finding.kind, finding.cause, finding.layers) == ("vanishing", "weight-scale", (3,))
    before = np.asarray(net[3]["w"]).copy()
    mended = vegrad.jax.apply_(net, finding, init=init)
    np.testing.assert_array_equal(net[3]["w"], before)
    assert vegrad.jax.diagnose(loss, mended, x, y).healthy


def test_all_weights_that_are_too_large_are_told() -> None:
    net, (x, y) = drawn([16, *[16] * 4, 4], 300.0), task()
    found = vegrad.jax.diagnose(loss_with(jax.nn.relu), net, x, y)
    assert (found.verdict, found.findings[0].cause) == ("exploding", "weight-scale-all")


def test_what_a_stop_gradient_cuts_off_is_named() -> None:
    net, (x, y) = drawn([16, 16, 16, 4]), task()

    def loss(net: Any, x: Any, y: Any) -> Any:
        features = jax.lax.stop_gradient(jnp.tanh(x @ net[0]["w"]))
        return cross_entropy(jnp.tanh(features @ net[1]["w"]) @ net[2]["w"], y)

    found = vegrad.jax.diagnose(loss, [{"w": one["w"]} for one in net], x, y).findings[0]
    assert (found.kind, found.cause) == ("vanishing", "detached")
    assert found.sites[0].name == "0.w"
    assert "stop_gradient()" in found.advice


def test_a_loss_without_any_layer_is_read() -> None:
    scale, x = jnp.float32(2.0), task()[0]
    assert vegrad.jax.diagnose(lambda scale, x: jnp.mean((scale * x - 1) ** 2), scale, x).healthy


def recurrent(tree: Any, x: Any, y: Any) -> Any:
    def step(h: Any, row: Any) -> tuple[Any, None]:
        return jnp.tanh(row @ tree["in"] + h @ tree["back"]), None

    h, _ = jax.lax.scan(step, jnp.zeros((len(x), 16)), x.swapaxes(0, 1))
    return cross_entropy(h @ tree["out"], y)


def recurrent_tree(key: Any) -> dict[str, Any]:
    keys = jax.random.split(key, 3)
    shapes = {"in": (8, 16), "back": (16, 16), "out": (16, 4)}
    return {
        n: s[0] ** -0.5 * jax.random.normal(k, s)
        for k, (n, s) in zip(keys, shapes.items(), strict=True)
    }


def test_what_a_scan_holds_is_judged_too() -> None:
    tree, x = recurrent_tree(jax.random.key(0)), jax.random.normal(jax.random.key(1), (32, 6, 8))
    y = task(32)[1]
    assert vegrad.jax.diagnose(recurrent, tree, x, y, init=recurrent_tree).healthy
    bad = tree | {"in": tree["in"] * 1e3}
    found = vegrad.jax.diagnose(recurrent, bad, x, y, init=recurrent_tree)
    assert not found.healthy
    assert isinstance(found.findings[0].edit, Scale)
    assert found.findings[0].edit.parameters == ("in",)


def test_a_small_leaf_that_init_draws_small_is_no_suspect() -> None:
    """By the usual initializations it would be one; the trees drawn anew say otherwise."""

    def init(key: Any) -> dict[str, Any]:
        tree = recurrent_tree(key)
        return tree | {"in": tree["in"] * 1e-4}

    x, y = 1e4 * jax.random.normal(jax.random.key(1), (32, 6, 8)), task(32)[1]
    one = Task.of(recurrent, init(jax.random.key(0)), (x, y), init, 0)
    fans = one.read(one.tree.leaves).parameters["in"].fans
    assert fans[0] == pytest.approx(8e8, rel=0.5)
    assert read(recurrent, init(jax.random.key(0)), x, y).parameters["in"].fans == (8, 16)


def test_complex_numbers_have_no_activation_and_give_no_warning() -> None:
    net, (x, _) = drawn([16, 16, 16]), task()

    def loss(net: Any, x: Any) -> Any:
        h = jnp.fft.fft(jnp.tanh(x @ net[0]["w"]) @ net[1]["w"])
        return jnp.mean(jnp.abs(jnp.square(h)))

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = vegrad.jax.diagnose(loss, net, x)
    assert found.healthy


def test_a_concatenated_skip_is_not_taken_for_what_an_activation_does() -> None:
    """At its ends gradients jump where the way through the middle is weak, which is to blame."""
    net, (x, y) = drawn([16, *[16] * 8, 4], 2**0.5), task()
    wide = drawn([32, 16], 2**0.5, seed=3)[0]["w"]

    def loss(net: Any, x: Any, y: Any) -> Any:
        skips = []
        for n, one in enumerate(net["layers"][:-1]):
            x = jnp.concatenate([x, skips.pop(0)], -1) if n == 6 else x
            weight = net["wide"] if n == 6 else one["w"]
            x = x @ weight + one["b"] if n == 5 else jax.nn.relu(layer_norm(x @ weight, 1.0, 0.0))
            skips += [x] if n == 1 else []
        return cross_entropy(x @ net["layers"][-1]["w"], y)

    tree = {"layers": [one | {} for one in net], "wide": wide}
    assert vegrad.jax.diagnose(loss, tree, x, y).healthy
    tree["layers"][5]["w"] = tree["layers"][5]["w"] * 1e-3
    (found,) = vegrad.jax.diagnose(loss, tree, x, y).findings
    assert (found.cause, found.sites[0].name) == ("weight-scale", "layers.5"), str(found)

"""Leaves whose shape alone does not tell what they are: of heads, of stacks, of low rank."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import vegrad.jax
from vegrad.flow.edits import Initialize, Redraw

from tests.jax.nets import task

X = task()[0]


def heads(seed: int = 0) -> dict[str, Any]:
    """Draw eight layers of four heads, with biases of two axes that are 0."""
    keys = jax.random.split(jax.random.key(seed), 9)
    several = [
        {"kernel": jax.random.normal(key, (16, 4, 4)) / 4, "bias": jnp.zeros((4, 4))}
        for key in keys[:8]
    ]
    return {"heads": several, "out": {"kernel": jax.random.normal(keys[8], (16, 1)) / 4}}


def through_heads(net: Any, x: Any) -> Any:
    y = x[:, :1]
    for one in net["heads"]:
        x = jnp.tanh(jnp.tensordot(x, one["kernel"], 1) + one["bias"]).reshape(len(x), 16)
        x = x / jnp.sqrt(jnp.mean(x @ x.T) ** 2 + 1e-6) ** 0.5  # two products of data: no chain
    return jnp.mean((x @ net["out"]["kernel"] - y) ** 2)


@pytest.mark.parametrize("factor", [1e-4, 1e3])
def test_a_bias_of_several_axes_is_not_blamed_for_being_0(factor: float) -> None:
    net = heads()
    net["heads"][3]["kernel"] *= factor
    found = vegrad.jax.diagnose(through_heads, net, X)
    assert [one.sites[0].name for one in found.findings] == ["heads.3.kernel"], str(found)
    assert found.reading is not None
    bias = found.reading.parameters["heads.3.bias"]
    assert (bias.role, bias.shape) == ("bias", (16,))


def test_projections_into_heads_are_drawn_by_what_enters_them() -> None:
    shapes = {"query": (256, 4, 64), "out": (4, 64, 256), "conv": (4, 64, 256)}
    net = {name: {"kernel": jnp.ones(shape)} for name, shape in shapes.items()}
    new: Any = vegrad.jax.apply_(net, Initialize("default"))
    for name in shapes:
        assert float(new[name]["kernel"].std()) == pytest.approx(1 / 16, rel=0.02)


def test_a_bias_of_several_axes_is_drawn_as_one() -> None:
    net = heads()
    for edit in (Initialize("default"), Initialize("he_normal"), Redraw(("heads.0.bias",))):
        new: Any = vegrad.jax.apply_(net, edit)
        assert not new["heads"][0]["bias"].any()


def stacked(layers: int) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 3)
    return {
        "w": jax.random.normal(keys[0], (layers, 16, 64)) / 4,
        "bias": jnp.zeros((layers, 64)),
        "back": jax.random.normal(keys[1], (layers, 64, 16)) / 8,
        "scale": jnp.ones((layers, 16)),
        "out": jax.random.normal(keys[2], (16, 1)) / 4,
    }


def through_stack(net: Any, x: Any) -> Any:
    def block(h: Any, layer: Any) -> Any:
        w, bias, back, scale = layer
        mean, spread = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
        normal = (h - mean) * jax.lax.rsqrt(spread + 1e-6) * scale
        return h + jax.nn.gelu(normal @ w + bias) @ back, None

    h, _ = jax.lax.scan(block, x, tuple(net[one] for one in ("w", "bias", "back", "scale")))
    return jnp.mean((h @ net["out"] - x[:, :1]) ** 2)


@pytest.mark.parametrize("layers", [12, 100])
def test_layers_that_are_stacked_for_a_scan_are_judged_as_layers(layers: int) -> None:
    net = stacked(layers)
    found = vegrad.jax.diagnose(through_stack, net, X)
    assert found.healthy, str(found)
    assert found.reading is not None
    known = found.reading.parameters
    assert known["w[3]"].fans == (16, 64)
    assert [known[one].role for one in ("w[3]", "bias[3]", "scale[3]")] == ["map", "bias", "norm"]
    found = vegrad.jax.diagnose(through_stack, net | {"w": 1e4 * net["w"]}, X)
    (finding,) = found.findings
    assert {one.name for one in finding.sites} == {f"w[{n}]" for n in range(layers)}, str(found)


@pytest.mark.parametrize("size", [0.0, 1e-3])
def test_a_low_rank_change_that_begins_as_0_is_healthy(size: float) -> None:
    base, keys = jnp.eye(16), jax.random.split(jax.random.key(0), 4)
    net = [
        {"a": jax.random.normal(key, (16, 2)) / 4, "b": size * jax.random.normal(key, (2, 16))}
        for key in keys
    ]

    def loss(net: Any, x: Any) -> Any:
        y = x[:, ::-1]
        for one in net:
            x = jnp.tanh(x @ (base + one["a"] @ one["b"]))
        return jnp.mean((x - y) ** 2)

    found = vegrad.jax.diagnose(loss, net, X)
    assert found.healthy, str(found)


def tokens(seed: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(seed), 10)
    blocks = [
        {"a": jax.random.normal(a, (16, 64)) / 4, "b": jax.random.normal(b, (64, 16)) / 8}
        for a, b in zip(keys[:4], keys[4:8], strict=True)
    ]
    return {
        "blocks": blocks,
        "in": jax.random.normal(keys[8], (16, 16)) / 4,
        "out": jax.random.normal(keys[9], (16, 1)) / 4,
    }


def normal(h: Any) -> Any:
    return (h - h.mean(-1, keepdims=True)) * jax.lax.rsqrt(h.var(-1, keepdims=True) + 1e-6)


PLACES = {
    "concatenated": lambda h, z: jnp.concatenate([jnp.tile(z, (len(h), 1, 1)), h], 1),
    "set": lambda h, z: h.at[:, 0].set(z[0, 0]),
    "where": lambda h, z: jnp.where(jnp.arange(h.shape[1])[:, None] < 2, z, h),
    "gate": lambda h, z: h + z * jnp.tanh(h),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_token_or_a_gate_that_begins_as_0_is_healthy(place: str) -> None:
    """It is no map: nothing is multiplied with it but element by element."""

    def loss(net: Any, x: Any) -> Any:
        h = PLACES[place](x @ net["in"], net["zero"])
        for one in net["blocks"]:
            h = h + jax.nn.gelu(normal(h) @ one["a"]) @ one["b"]
            h = h + h.mean(1, keepdims=True)
        return jnp.mean((normal(h)[:, 0] @ net["out"] - x[:, 0, :1]) ** 2)

    x = jax.random.normal(jax.random.key(1), (16, 8, 16))
    found = vegrad.jax.diagnose(loss, tokens() | {"zero": jnp.zeros((1, 1, 16))}, x)
    assert found.healthy, str(found)
    assert found.reading is not None
    assert found.reading.parameters["zero"].role == ""


def test_each_place_is_named_once_and_by_the_name_that_the_edit_has() -> None:
    keys, x = jax.random.split(jax.random.key(0), 6), jax.random.normal(jax.random.key(1), (32, 16))
    net: dict[str, Any] = {"w": [jax.random.normal(key, (16, 16)) / 4 for key in keys]}

    def chain(net: Any, x: Any) -> Any:
        h = x
        for one in net["w"]:
            h = jnp.tanh(h @ one)
        return jnp.mean((h - x) ** 2)

    def no_chain(net: Any, x: Any) -> Any:
        q, k, v, *rest = net["w"]
        h = jax.nn.softmax((x @ q) @ (x @ k).T / 4) @ (x @ v)
        return chain({"w": rest}, h)

    for loss in (chain, no_chain):
        weak = {"w": [1e-4 * one if n == 2 else one for n, one in enumerate(net["w"])]}
        (found,) = vegrad.jax.diagnose(loss, weak, x).findings
        assert [one.name for one in found.sites] == ["w.2"], str(found)
        assert getattr(found.edit, "parameters", ()) == ("w.2",)
    lost = net | {
        "w": [one.at[0, 0].set(jnp.inf) if one is net["w"][1] else one for one in net["w"]]
    }
    (found,) = vegrad.jax.diagnose(chain, lost, x).findings
    assert {one.name for one in found.sites} == {"w.1"}

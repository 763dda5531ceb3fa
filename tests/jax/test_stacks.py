"""Layers whose weights are stacked for a scan are judged as layers that are written out."""

from typing import Any

import numpy as np
import pytest
import vegrad

jax = pytest.importorskip("jax")
pytest.importorskip("vegrad.jax")
jnp = jax.numpy

X = jax.random.normal(jax.random.key(1), (64, 32))
Y = X[:, ::-1]
DEPTH = 10


def drawn(axis: int = 0) -> dict[str, Any]:
    keys = jax.random.split(jax.random.key(0), 2)
    weights = jax.random.normal(keys[0], (DEPTH, 32, 32)) / 32**0.5
    blocks = {"w": jnp.moveaxis(weights, 0, axis), "b": jnp.zeros((DEPTH, 32))}
    return {"blocks": blocks, "out": jax.random.normal(keys[1], (32, 32)) / 32**0.5}


def layer(h: Any, own: Any) -> tuple[Any, Any]:
    h = jnp.tanh(h @ own["w"].astype(h.dtype) + own["b"])
    return h, h.mean()


def scanned(params: Any, x: Any, y: Any, axis: int = 0, **options: Any) -> Any:
    blocks = params["blocks"] | {"w": jnp.moveaxis(params["blocks"]["w"], axis, 0)}
    h, means = jax.lax.scan(layer, x, blocks, **options)
    return jnp.mean((h @ params["out"] - y) ** 2) + 0.0 * means.sum()


def cut(params: Any) -> Any:
    blocks = params["blocks"]
    own = {f"blocks[{n}]": {k: one[n] for k, one in blocks.items()} for n in range(DEPTH)}
    return own | {"out": params["out"]}


@pytest.mark.parametrize("backwards", [False, True])
def test_the_flow_is_that_of_layers_written_out(backwards: bool) -> None:
    params = drawn()

    def plain(params: Any, x: Any, y: Any) -> Any:
        for n in range(DEPTH)[:: -1 if backwards else 1]:
            x, _ = layer(x, params[f"blocks[{n}]"])
        return jnp.mean((x @ params["out"] - y) ** 2)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return scanned(params, x, y, reverse=backwards)

    found, other = (
        vegrad.jax.diagnose(loss, params, X, Y),
        vegrad.jax.diagnose(plain, cut(params), X, Y),
    )
    assert found.flow is not None
    assert other.flow is not None
    np.testing.assert_allclose(found.flow.delta_log2, other.flow.delta_log2, atol=1e-3)
    np.testing.assert_allclose(found.flow.activation_rms, other.flow.activation_rms, rtol=1e-4)
    assert found.reading is not None
    assert other.reading is not None
    assert set(found.reading.parameters) == set(other.reading.parameters)
    for name, one in found.reading.parameters.items():
        beside = other.reading.parameters[name]
        assert one.gradient_log2 == pytest.approx(beside.gradient_log2, abs=1e-3)
        assert (one.role, one.fans, one.shape) == (beside.role, beside.fans, beside.shape)


@pytest.mark.parametrize("factor", [1e-4, 1e4])
@pytest.mark.parametrize(("axis", "name"), [(0, "blocks[4].w"), (1, "blocks[:, 4].w")])
def test_one_sick_layer_is_named_and_mended_in_its_place(
    axis: int, name: str, factor: float
) -> None:
    params = drawn(axis)
    healthy, place = params["blocks"]["w"], (slice(None),) * axis + (4,)
    params["blocks"]["w"] = healthy.at[place].multiply(factor)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return scanned(params, x, y, axis)

    found = vegrad.jax.diagnose(loss, params, X, Y).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == (name,)
    new: Any = vegrad.jax.apply_(params, found)
    others = np.arange(DEPTH) != 4
    kept, was = (np.compress(others, tree["blocks"]["w"], axis) for tree in (new, params))
    np.testing.assert_array_equal(kept, was)
    np.testing.assert_allclose(new["blocks"]["w"], healthy, rtol=0.5)
    assert vegrad.jax.diagnose(loss, new, X, Y).healthy


def test_init_draws_stacks_too() -> None:
    params = drawn()
    params["blocks"]["w"] = params["blocks"]["w"].at[4].multiply(1e-4)

    def init(key: Any) -> Any:
        return jax.tree.map(lambda one: 0.2 * jax.random.normal(key, one.shape), drawn())

    found = vegrad.jax.diagnose(scanned, params, X, Y, init=init).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == ("blocks[4].w",)
    with pytest.raises(ValueError, match=r"init\(key\) must return a tree like params"):
        vegrad.jax.diagnose(scanned, params, X, Y, init=lambda key: {"out": params["out"]})


def test_half_precision_of_the_stack_is_followed() -> None:
    params = drawn()
    params["blocks"]["w"] = params["blocks"]["w"].at[4].multiply(1e4)

    def loss(params: Any, x: Any, y: Any) -> Any:
        blocks = jax.tree.map(lambda one: one.astype(jnp.bfloat16), params["blocks"])
        h, _ = jax.lax.scan(jax.checkpoint(layer), x.astype(jnp.bfloat16), blocks)
        return jnp.mean((h.astype(jnp.float32) @ params["out"] - y) ** 2)

    found = vegrad.jax.diagnose(loss, params, X, Y).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == ("blocks[4].w",)


def test_a_stack_that_is_also_used_as_a_whole() -> None:
    """With weight decay in the loss each layer's gradient is that of both."""
    params = drawn()

    def loss(params: Any, x: Any, y: Any) -> Any:
        return scanned(params, x, y) + 0.5 * jnp.sum(params["blocks"]["w"] ** 2)

    found = vegrad.jax.diagnose(loss, params, X, Y)
    exact = jax.grad(loss)(params, X, Y)["blocks"]["w"]
    assert found.reading is not None
    for n in range(DEPTH):
        size = found.reading.parameters[f"blocks[{n}].w"].gradient_log2
        assert size == pytest.approx(float(jnp.log2(jnp.linalg.norm(exact[n]))), abs=1e-3)


def test_keys_and_data_go_through_the_scan_beside_the_stack() -> None:
    params, keys = drawn(), jax.random.split(jax.random.key(3), DEPTH)

    def dropped(h: Any, own: Any) -> tuple[Any, None]:
        one, key, shift = own
        h, _ = layer(h, one)
        return jnp.where(jax.random.bernoulli(key, 0.9, h.shape), h / 0.9, 0.0) + shift, None

    def loss(params: Any, x: Any, y: Any, shifts: Any) -> Any:
        h, _ = jax.lax.scan(dropped, x, (params["blocks"], keys, shifts))
        return jnp.mean((h @ params["out"] - y) ** 2)

    found = vegrad.jax.diagnose(loss, params, X, Y, jnp.zeros(DEPTH))
    assert found.healthy, str(found)
    assert found.reading is not None
    assert found.reading.loss == pytest.approx(
        float(loss(params, X, Y, jnp.zeros(DEPTH))), rel=1e-3
    )


@pytest.mark.parametrize("axis", [0, 1])
def test_stacks_of_flax(axis: int) -> None:
    nn = pytest.importorskip("flax.linen")

    class Block(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, h: Any, _: None) -> tuple[Any, None]:
            normed = nn.LayerNorm()(h)
            h = h + nn.MultiHeadDotProductAttention(num_heads=4)(normed, normed)
            return h + nn.Dense(32)(nn.gelu(nn.Dense(64)(nn.LayerNorm()(h)))), None

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            stack = nn.scan(
                Block, variable_axes={"params": axis}, split_rngs={"params": True}, length=6
            )
            h, _ = stack(name="blocks")(x, None)
            return nn.Dense(32)(nn.LayerNorm()(h))

    x, model = X.reshape(8, 8, 32), Net()
    params = jax.jit(model.init)(jax.random.key(0), x)

    def loss(params: Any, x: Any) -> Any:
        return jnp.mean((model.apply(params, x) - x[..., ::-1]) ** 2)

    assert vegrad.jax.diagnose(loss, params, x).healthy
    own, place = params["params"]["blocks"]["Dense_1"], (slice(None),) * axis + (2,)
    own["kernel"] = own["kernel"].at[place].multiply(1e-4)
    found = vegrad.jax.diagnose(loss, params, x).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == (f"params.blocks.Dense_1[{':, ' * axis}2].kernel",)
    assert vegrad.jax.diagnose(loss, vegrad.jax.apply_(params, found), x).healthy


def test_stacks_of_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 8)
    make = eqx.filter_vmap(lambda key: eqx.nn.Linear(32, 32, key=key))
    model = {"blocks": make(keys), "out": eqx.nn.Linear(32, 32, key=keys[0])}

    def loss(model: Any, x: Any, y: Any) -> Any:
        arrays, rest = eqx.partition(model["blocks"], eqx.is_array)

        def one(row: Any) -> Any:
            step = lambda h, own: (h + jnp.tanh(eqx.combine(own, rest)(h)), None)  # noqa: E731
            h, _ = jax.lax.scan(step, row, arrays)
            return model["out"](h)

        return jnp.mean((jax.vmap(one)(x) - y) ** 2)

    assert vegrad.jax.diagnose(loss, model, X, Y).healthy
    sick = eqx.tree_at(
        lambda m: m["blocks"].weight, model, model["blocks"].weight.at[3].multiply(1e5)
    )
    found = vegrad.jax.diagnose(loss, sick, X, Y).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == ("blocks[3].weight",)


def test_stacks_of_haiku() -> None:
    hk = pytest.importorskip("haiku")

    def net(x: Any) -> Any:
        def block(h: Any) -> Any:
            return h + hk.Linear(32)(jax.nn.relu(hk.Linear(64)(hk.LayerNorm(-1, True, True)(h))))

        return hk.Linear(32)(hk.layer_stack(6)(block)(x))

    model = hk.without_apply_rng(hk.transform(net))
    params = model.init(jax.random.key(0), X)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return jnp.mean((model.apply(params, x) - y) ** 2)

    assert vegrad.jax.diagnose(loss, params, X, Y).healthy
    (name,) = (one for one in params if one.endswith("/linear_1"))
    params[name]["w"] = params[name]["w"].at[2].multiply(1e4)
    found = vegrad.jax.diagnose(loss, params, X, Y).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == (f"{name}[2].w",)


def test_stacks_of_nnx() -> None:
    nnx = pytest.importorskip("flax.nnx")

    @nnx.split_rngs(splits=DEPTH)
    @nnx.vmap(in_axes=(0,), out_axes=0)
    def made(rngs: Any) -> Any:
        return nnx.Linear(32, 32, rngs=rngs)

    @nnx.scan(in_axes=(0, nnx.Carry), out_axes=nnx.Carry)
    def through(block: Any, h: Any) -> Any:
        return jnp.tanh(block(h))

    graph, state = nnx.split(made(nnx.Rngs(0)))

    def loss(state: Any, x: Any, y: Any) -> Any:
        return jnp.mean((through(nnx.merge(graph, state), x) - y) ** 2)

    assert vegrad.jax.diagnose(loss, state, X, Y).healthy
    sick = jax.tree.map(lambda one: one.at[5].multiply(1e-4) if one.ndim == 3 else one, state)
    found = vegrad.jax.diagnose(loss, sick, X, Y).findings[0]
    assert found.edit is not None
    assert found.edit.parameters == ("kernel[5]",)
    assert vegrad.jax.diagnose(loss, vegrad.jax.apply_(sick, found), X, Y).healthy

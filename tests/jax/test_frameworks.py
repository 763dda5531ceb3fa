"""Models of Flax, Equinox and Haiku, where these are installed."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
import vegrad.jax

from tests.jax.nets import cross_entropy, task

X, Y = task(32)
IMAGES = jax.random.normal(jax.random.key(3), (16, 12, 12, 1))


def linen(depth: int, phi: Any) -> Any:
    nn = pytest.importorskip("flax.linen")

    class MLP(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for _ in range(depth):
                x = phi(nn.Dense(16)(x))
            return nn.Dense(4)(x)

    return MLP()


def test_flax_linen() -> None:
    model = linen(3, jax.nn.relu)
    params = model.init(jax.random.key(0), X)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(model.apply(params, x), y)

    found = vegrad.jax.diagnose(loss, params, X, Y, init=lambda key: model.init(key, X))
    assert found.healthy, str(found)
    assert found.reading is not None
    assert found.reading.chain is not None
    assert found.reading.chain.names[0] == "params.Dense_0"
    params["params"]["Dense_1"]["kernel"] *= 1e-4
    found = vegrad.jax.diagnose(loss, params, X, Y)
    assert found.findings[0].sites[0].name == "params.Dense_1"
    mended = vegrad.jax.apply_(params, found.findings[0])
    assert vegrad.jax.diagnose(loss, mended, X, Y).healthy


def test_a_convolutional_net_with_batch_norm_in_flax() -> None:
    nn = pytest.importorskip("flax.linen")

    class CNN(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            for width in (8, 16):
                x = nn.BatchNorm(use_running_average=False)(nn.Conv(width, (3, 3))(x))
                x = nn.max_pool(nn.relu(x), (2, 2), strides=(2, 2))
            return nn.Dense(4)(x.reshape(len(x), -1))

    model = CNN()
    variables = model.init(jax.random.key(0), IMAGES)

    def loss(params: Any, stats: Any, x: Any, y: Any) -> Any:
        given = {"params": params, "batch_stats": stats}
        return cross_entropy(model.apply(given, x, mutable=["batch_stats"])[0], y)

    batch = variables["batch_stats"], IMAGES, Y[:16]
    found = vegrad.jax.diagnose(loss, variables["params"], *batch)
    assert found.healthy, str(found)
    assert found.reading is not None
    assert found.reading.chain is not None
    assert [one.kind for one in found.reading.chain.layers] == ["conv2d", "conv2d", "linear"]
    assert found.reading.chain.norm == "batch"


def test_attention_that_sees_one_key_is_told_in_flax() -> None:
    nn = pytest.importorskip("flax.linen")
    tokens = jax.random.randint(jax.random.key(1), (4, 8), 0, 20)

    class Encoder(nn.Module):  # type: ignore[misc, name-defined]
        scale: float

        @nn.compact
        def __call__(self, tokens: Any) -> Any:
            x = nn.Embed(20, 16, embedding_init=nn.initializers.normal(1.0))(tokens)
            drawn = nn.initializers.variance_scaling(self.scale, "fan_in", "normal")
            y = nn.LayerNorm()(x)
            x = x + nn.MultiHeadDotProductAttention(num_heads=2, kernel_init=drawn)(y, y)
            y = nn.LayerNorm()(x)
            x = x + nn.Dense(16)(nn.gelu(nn.Dense(32)(y)))
            return nn.Dense(4)(x.mean(axis=1))

    def told(scale: float) -> Any:
        model = Encoder(scale)
        params = model.init(jax.random.key(0), tokens)
        return vegrad.jax.diagnose(
            lambda params, x, y: cross_entropy(model.apply(params, x), y), params, tokens, Y[:4]
        )

    healthy = told(1.0)
    assert healthy.healthy, str(healthy)
    kinds = [one.kind for one in healthy.reading.operations]
    assert kinds.count("softmax") == 1
    assert kinds.count("layer_norm") == 2
    assert "embedding" in kinds
    assert not told(1e4).healthy


def test_flax_nnx_by_its_state_and_as_a_module() -> None:
    nnx = pytest.importorskip("flax.nnx")

    class MLP(nnx.Module):  # type: ignore[misc, name-defined]
        def __init__(self, depth: int, rngs: Any) -> None:
            self.layers = nnx.List([nnx.Linear(16, 16, rngs=rngs) for _ in range(depth)])
            self.head = nnx.Linear(16, 4, rngs=rngs)

        def __call__(self, x: Any) -> Any:
            for layer in self.layers:
                x = jax.nn.sigmoid(layer(x))
            return self.head(x)

    model = MLP(7, nnx.Rngs(0))
    graph, state = nnx.split(model)
    found = vegrad.jax.diagnose(
        lambda state, x, y: cross_entropy(nnx.merge(graph, state)(x), y),
        state,
        X,
        Y,
        init=lambda key: nnx.state(MLP(7, nnx.Rngs(key))),
    )
    assert (found.verdict, found.findings[0].cause) == ("vanishing", "activation-derivative")
    assert found.reading is not None
    assert found.reading.chain is not None
    assert found.reading.chain.layers[0].weight == "layers.0.kernel"
    again = vegrad.jax.diagnose(lambda model, x, y: cross_entropy(model(x), y), model, X, Y)
    assert again.findings[0].cause == found.findings[0].cause


def test_a_watched_optimizer_of_flax_nnx() -> None:
    nnx, optax = pytest.importorskip("flax.nnx"), pytest.importorskip("optax")
    model, (x, y) = nnx.Linear(16, 4, rngs=nnx.Rngs(0)), task()
    optimizer = nnx.Optimizer(model, vegrad.jax.watch(optax.sgd(0.1)), wrt=nnx.Param)

    @nnx.jit
    def step(model: Any, optimizer: Any) -> None:
        value, grads = nnx.value_and_grad(lambda model: cross_entropy(model(x), y))(model)
        optimizer.update(model, grads, value=value)

    for _ in range(3):
        step(model, optimizer)
    for state in (optimizer, optimizer.opt_state):
        found = vegrad.jax.report(state, order=["kernel"])
        assert found.healthy
        assert "3 steps" in str(found)


def test_equinox() -> None:
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(16, 4, 16, 3, key=jax.random.key(0))

    def loss(model: Any, x: Any, y: Any) -> Any:
        return cross_entropy(jax.vmap(model)(x), y)

    assert vegrad.jax.diagnose(loss, model, X, Y).healthy
    sick = eqx.tree_at(lambda m: m.layers[1].weight, model, 1e-4 * model.layers[1].weight)
    found = vegrad.jax.diagnose(loss, sick, X, Y)
    assert found.findings[0].sites[0].name == "layers.1"
    mended = vegrad.jax.apply_(sick, found.findings[0])
    assert isinstance(mended, eqx.nn.MLP)
    assert vegrad.jax.diagnose(loss, mended, X, Y).healthy


def test_haiku() -> None:
    hk = pytest.importorskip("haiku")
    net = hk.without_apply_rng(hk.transform(lambda x: hk.nets.MLP([16, 16, 4])(x)))
    params = net.init(jax.random.key(0), X)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(net.apply(params, x), y)

    found = vegrad.jax.diagnose(loss, params, X, Y, init=lambda key: net.init(key, X))
    assert found.healthy, str(found)
    assert found.reading is not None
    assert found.reading.chain is not None
    assert found.reading.chain.names[0] == "mlp/~/linear_0"
    assert vegrad.jax.diagnose(loss, params, 1e3 * X, Y).findings[0].cause == "input-scale"


def test_trees_of_frameworks_are_buffers() -> None:
    """Their paths are names; what is no mapping or sequence is told how to be passed."""
    import vegrad

    model = linen(1, jnp.tanh)
    names = vegrad.measure(model.init(jax.random.key(0), X)).names
    assert "params.Dense_0.kernel" in names


def test_settings_beside_the_weights_of_equinox_stay() -> None:
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0), 3)
    mixing = eqx.nn.MultiheadAttention(2, 16, dropout_p=0.1, inference=True, key=keys[0])
    parts = [mixing, eqx.nn.MaxPool1d(2, 2), eqx.nn.Linear(16, 4, key=keys[1])]

    def loss(parts: Any, x: Any, y: Any) -> Any:
        def one(row: Any) -> Any:
            rows = jnp.stack([row, row[::-1]])
            return parts[2](parts[1](parts[0](rows, rows, rows).T)[:, 0])

        return cross_entropy(jax.vmap(one)(x), y)

    found = vegrad.jax.diagnose(loss, parts, X, Y)
    assert found.healthy, str(found)
    ill = eqx.tree_at(lambda p: p[0].value_proj.weight, parts, replace_fn=lambda w: 1e-4 * w)
    sick = vegrad.jax.diagnose(loss, ill, X, Y).findings[0]
    assert sick.sites[0].name == "0.value_proj.weight"
    mended: Any = vegrad.jax.apply_(ill, sick)
    assert mended[0].dropout.p == 0.1
    assert mended[0].dropout.inference
    assert vegrad.jax.diagnose(loss, mended, X, Y).healthy

"""Scans as recurrent cells: the way back through their steps, and what stops it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vegrad.jax
from vegrad.flow.edits import Scale

from tests.jax.nets import cross_entropy, task
from tests.jax.test_diagnosis import read, recurrent, recurrent_tree

TREE = recurrent_tree(jax.random.key(0))
X, Y = jax.random.normal(jax.random.key(1), (32, 20, 8)), task(32)[1]


def in_float64(tree: Any, x: Any) -> list[float]:
    """Return log2 of the norm of δ of the state, back from normal numbers at the last step."""
    w, u = np.asarray(tree["in"], np.float64), np.asarray(tree["back"], np.float64)
    h, kept = np.zeros((len(x), len(u))), []
    for row in np.asarray(x, np.float64).swapaxes(0, 1):
        h = np.tanh(row @ w + h @ u)
        kept.append(h)
    delta = np.random.default_rng(0).standard_normal(h.shape)
    sizes = [np.log2(np.linalg.norm(delta))]
    for h in kept[:0:-1]:
        delta = (delta * (1 - h**2)) @ u.T
        sizes.append(np.log2(np.linalg.norm(delta)))
    return sizes


@pytest.mark.parametrize("scale", [1.0, 1e-4])
def test_sizes_are_those_of_float64(scale: float) -> None:
    """Also where nineteen steps leave 1e-80."""
    tree = TREE | {"back": scale * TREE["back"]}
    (cell,) = read(recurrent, tree, X, Y).cells
    sizes = in_float64(tree, X)
    assert scale == 1 or sizes[-1] < -260
    np.testing.assert_allclose(cell.sizes[:, 0], sizes, atol=1e-3)
    assert cell.length == 20
    assert [(one.parameter, one.part) for one in cell.gates] == [("in", "ih"), ("back", "hh")]


@pytest.mark.parametrize("factor", [0.01, 1.0, 5.0])
def test_a_loop_that_reads_its_rows_by_number_is_a_scan(factor: float) -> None:
    def in_a_loop(tree: Any, x: Any, y: Any) -> Any:
        def step(t: Any, h: Any) -> Any:
            return jnp.tanh(x[:, t] @ tree["in"] + h @ tree["back"])

        h = jax.lax.fori_loop(0, x.shape[1], step, jnp.zeros((len(x), len(tree["back"]))))
        return cross_entropy(h @ tree["out"], y)

    tree = TREE | {"back": factor * TREE["back"]}
    wanted, found = (read(loss, tree, X, Y).cells[0] for loss in (recurrent, in_a_loop))
    np.testing.assert_allclose(found.sizes, wanted.sizes, atol=1e-3)
    assert found.gates == wanted.gates
    assert found.input_rms == pytest.approx(wanted.input_rms)
    assert vegrad.jax.diagnose(in_a_loop, tree, X, Y).healthy == (factor == 1.0)


@pytest.mark.parametrize("init", [None, recurrent_tree])
@pytest.mark.parametrize(
    ("name", "factor", "kind"),
    [("back", 0.01, "vanishing"), ("back", 5.0, "exploding"), ("in", 1e3, "vanishing")],
)
def test_a_parameter_that_stops_the_gradient_is_named(
    name: str, factor: float, kind: str, init: Any
) -> None:
    tree = TREE | {name: factor * TREE[name]}
    finding = vegrad.jax.diagnose(recurrent, tree, X, Y, init=init).findings[0]
    assert (finding.kind, finding.cause, finding.rule) == (
        kind,
        "recurrent-weights",
        "through-time",
    )
    assert isinstance(finding.edit, Scale)
    assert finding.edit.parameters == (name,)
    assert finding.edit.factor * factor == pytest.approx(1.0, rel=0.6)
    mended = vegrad.jax.apply_(tree, finding)
    assert vegrad.jax.diagnose(recurrent, mended, X, Y, init=init).healthy


def test_inputs_that_are_multiplied_before_a_scan_that_runs_back() -> None:
    def loss(tree: Any, x: Any, y: Any) -> Any:
        def step(h: Any, row: Any) -> tuple[Any, Any]:
            h = jnp.tanh(row + h @ tree["back"])
            return h, h

        rows = (x @ tree["in"]).swapaxes(0, 1)
        _, all_of_them = jax.lax.scan(step, jnp.zeros((len(x), 16)), rows, reverse=True)
        return cross_entropy(all_of_them[0] @ tree["out"], y)

    (cell,) = read(loss, TREE, X, Y).cells
    assert cell.backwards
    np.testing.assert_allclose(cell.sizes[:, 0], in_float64(TREE, X[:, ::-1]), atol=1e-3)
    assert {(one.parameter, one.part) for one in cell.gates} == {("in", "ih"), ("back", "hh")}


def test_a_scan_over_layers_is_no_cell() -> None:
    stack = {"layers": jnp.stack([TREE["back"]] * 5), "out": TREE["out"]}

    def loss(tree: Any, x: Any, y: Any) -> Any:
        h, _ = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, tree["layers"])
        return cross_entropy(h @ tree["out"], y)

    found = vegrad.jax.diagnose(loss, stack, task(32)[0], Y)
    assert found.reading is not None
    assert found.reading.cells == ()


@pytest.mark.parametrize("name", ["SimpleCell", "OptimizedLSTMCell", "GRUCell"])
def test_cells_of_flax(name: str) -> None:
    nn = pytest.importorskip("flax.linen")

    class Net(nn.Module):  # type: ignore[misc, name-defined]
        @nn.compact
        def __call__(self, x: Any) -> Any:
            return nn.Dense(4)(nn.RNN(getattr(nn, name)(16))(x)[:, -1])

    model = Net()
    params = jax.jit(model.init)(jax.random.key(0), X)

    def loss(params: Any, x: Any, y: Any) -> Any:
        return cross_entropy(model.apply(params, x), y)

    found = vegrad.jax.diagnose(loss, params, X, Y)
    assert found.healthy, str(found)
    assert len(found.reading.cells) == 1  # type: ignore[union-attr]
    (cell,) = params["params"].keys() - {"Dense_0"}
    for part, one in params["params"][cell].items():
        if part.startswith("h"):
            one["kernel"] *= 30.0
    found = vegrad.jax.diagnose(loss, params, X, Y)
    assert any(one.rule == "through-time" for one in found.findings), str(found)
    assert f"params.{cell}.h" in str(found)


@pytest.mark.parametrize(("name", "gain"), [("LSTMCell", 0.607), ("GRUCell", 0.617)])
def test_cells_of_equinox(name: str, gain: float) -> None:
    """They are drawn as PyTorch's are, whose gain a step is known for many units."""
    eqx = pytest.importorskip("equinox")
    keys = jax.random.split(jax.random.key(0))
    x = jax.random.normal(keys[0], (4, 16, 128))
    kind = getattr(eqx.nn, name)

    def loss(cell: Any, x: Any) -> Any:
        def last(rows: Any) -> Any:
            zeros = jnp.zeros(128)
            start = (zeros, zeros) if name == "LSTMCell" else zeros
            return jax.lax.scan(lambda h, row: (cell(row, h), None), start, rows)[0]

        return jnp.mean(jnp.stack(jax.tree.leaves(jax.vmap(last)(x))) ** 2)

    (cell,) = read(loss, kind(128, 128, key=keys[1]), x).cells
    steps = cell.sizes[2:, 0] - cell.sizes[1:-1, 0]
    assert 2.0 ** steps[2:10].mean() == pytest.approx(gain, rel=0.06)

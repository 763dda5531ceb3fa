"""Trees, losses and batches that cannot be read, and edits that cannot be done: said in words."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vegrad.jax
from vegrad.flow.edits import Initialize, LearningRate, Redraw, Scale, Shift, Zero

from tests.jax.nets import drawn, loss_with, task

LOSS = loss_with(jnp.tanh)


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda net, x, y: (LOSS(net, x, y), {"aux": 1}), r"not a tuple of 2.*has_aux=True"),
        (lambda net, x, y: {"loss": LOSS(net, x, y)}, "not a dict of 1"),
        (lambda net, x, y: x @ net[0]["w"], r"shape \(64, 8\): take its mean\(\)"),
        (lambda net, x, y: y.sum(), "one number, the mean loss, not int32"),
        (lambda net, x, y: None, "not NoneType"),
    ],
)
def test_a_loss_that_returns_no_number(loss: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        vegrad.jax.diagnose(loss, drawn([16, 8, 4]), *task())


def test_a_loss_that_does_not_depend_on_the_tree() -> None:
    with pytest.raises(ValueError, match="depends on params"):
        vegrad.jax.diagnose(lambda net, x: x.sum(), drawn([16, 8, 4]), task()[0])
    with pytest.raises(TypeError, match="loss must be callable, not int"):
        vegrad.jax.diagnose(3, {})  # type: ignore[arg-type]


def test_a_batch_without_rows() -> None:
    x, y = task()
    with pytest.raises(ValueError, match=r"x must have a row at least, not the shape \(0, 16\)"):
        vegrad.jax.diagnose(LOSS, drawn([16, 8, 4]), x[:0], y[:0])


def test_leaves_that_are_no_arrays() -> None:
    x, y = task()
    net = drawn([16, 8, 4])
    with pytest.raises(TypeError, match=r"params\[0\]\['name'\] must be an array, not .*\(str\)"):
        vegrad.jax.diagnose(LOSS, [{**net[0], "name": "first"}, net[1]], x, y)
    with pytest.raises(TypeError, match=r"params\['rate'\] must be an array, not .*\(float\)"):
        vegrad.jax.diagnose(lambda p, x, y: LOSS(p["net"], x, y), {"net": net, "rate": 0.1}, x, y)
    with pytest.raises(ValueError, match="must have an array of floats"):
        vegrad.jax.diagnose(LOSS, {}, x, y)
    with pytest.raises(TypeError, match=r"x must be an array, not .*\(str\)"):
        vegrad.jax.diagnose(LOSS, net, "rows", y)
    net[0]["w"].delete()
    with pytest.raises(ValueError, match=r"params\[0\]\['w'\] was deleted or donated"):
        vegrad.jax.diagnose(LOSS, net, x, y)


def test_functions_and_integers_beside_the_arrays_stay() -> None:
    x, y = task()
    tree = {"net": drawn([16, 8, 4]), "phi": jax.nn.relu, "count": jnp.int32(3), "none": None}
    found = vegrad.jax.diagnose(lambda t, x, y: loss_with(t["phi"])(t["net"], x, y), tree, x, y)
    assert found.healthy
    new: Any = vegrad.jax.apply_(tree, Scale(("net.0.w",), 2.0))
    assert new["phi"] is jax.nn.relu
    assert new["count"] == 3
    np.testing.assert_allclose(new["net"][0]["w"], 2 * tree["net"][0]["w"])


def test_an_init_that_draws_another_tree() -> None:
    x, y = task()
    net = drawn([16, 8, 4])
    with pytest.raises(ValueError, match=r"0\.b' has the shape \(8,\).* is of the shape \(9,\)"):
        vegrad.jax.diagnose(LOSS, net, x, y, init=lambda key: drawn([16, 9, 4]))
    with pytest.raises(ValueError, match="has no such leaf"):
        vegrad.jax.diagnose(LOSS, net, x, y, init=lambda key: {"w": jnp.ones((16, 8))})
    with pytest.raises(TypeError, match="init must be callable"):
        vegrad.jax.diagnose(LOSS, net, x, y, init=net)  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_batch_that_is_not_finite(value: float) -> None:
    x, y = task()
    found = vegrad.jax.diagnose(LOSS, drawn([16, 8, 4]), x.at[3, 5].set(value), y)
    assert (found.verdict, found.findings[0].cause) == ("nonfinite", "nonfinite-input")
    assert "x[3, 5]" in found.summary
    assert "in 1 of 64 rows" in found.summary or "only such value in 64 rows" in found.summary


def test_a_target_and_a_leaf_that_are_not_finite() -> None:
    x, _ = task()
    net, target = drawn([16, 8, 4]), jnp.ones((64, 4)).at[1, 2].set(np.nan)

    def loss(net: Any, x: Any, target: Any) -> Any:
        return jnp.mean((jnp.tanh(x @ net[0]["w"]) @ net[1]["w"] - target) ** 2)

    found = vegrad.jax.diagnose(loss, net, x, target)
    assert found.findings[0].cause == "nonfinite-target"
    net[0]["w"] = net[0]["w"].at[2, 3].set(np.nan)
    found = vegrad.jax.diagnose(loss, net, x, jnp.ones((64, 4)))
    assert found.findings[0].cause == "nonfinite-weights"
    assert "0.w[2, 3] is nan" in found.summary


def test_edits_make_new_trees() -> None:
    net = drawn([16, 8, 4])
    new: Any = vegrad.jax.apply_(net, Zero(("0.w",), (1, 3)))
    assert not np.asarray(new[0]["w"][1:3]).any()
    np.testing.assert_array_equal(new[0]["w"][3:], net[0]["w"][3:])
    new = vegrad.jax.apply_(net, Shift(("1.b",), 0.5))
    np.testing.assert_allclose(new[1]["b"], 0.5)
    new = vegrad.jax.apply_(net, Initialize("he_normal"))
    assert float(new[0]["w"].std()) == pytest.approx((2 / 16) ** 0.5, rel=0.3)
    new = vegrad.jax.apply_(net, Redraw(("0.w",)))
    assert float(new[0]["w"].std()) == pytest.approx(16**-0.5, rel=0.3)
    drawn_by: Any = vegrad.jax.apply_(
        net, Redraw(("0.w",)), init=lambda key: drawn([16, 8, 4], 9.0)
    )
    np.testing.assert_allclose(drawn_by[0]["w"], 9 * net[0]["w"], rtol=1e-5)
    new = vegrad.jax.apply_(net, Initialize("default"), init=lambda key: drawn([16, 8, 4], 9.0))
    np.testing.assert_allclose(new[1]["w"], 9 * net[1]["w"], rtol=1e-5)


def test_edits_that_cannot_be_done() -> None:
    net = drawn([16, 8, 4])
    with pytest.raises(ValueError, match=r"has no leaf 0\.kernel"):
        vegrad.jax.apply_(net, Scale(("0.kernel",), 2.0))
    with pytest.raises(ValueError, match="in the program, not to the parameters"):
        vegrad.jax.apply_(net, LearningRate(0.1))
    with pytest.raises(TypeError, match=r"vegrad\.flow\.edits or a vegrad\.Finding, not str"):
        vegrad.jax.apply_(net, "scale")  # type: ignore[arg-type]

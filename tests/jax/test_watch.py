"""Steps that optax takes: their sizes, inside any transformation, and what is told of them."""

import subprocess
import sys
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import vegrad.jax
from hypothesis import given, settings
from hypothesis import strategies as st
from vegrad.jax.scaled import Scaled
from vegrad.jax.sizes import norm_log2

from tests.jax.nets import drawn, loss_with, run, task

optax = pytest.importorskip("optax")
LOSS = loss_with(jax.nn.relu)


@settings(max_examples=20)
@given(values=st.lists(st.floats(0.5, 1.0), min_size=1, max_size=9), power=st.integers(-125, 127))
def test_norms_are_those_of_float64(values: list[float], power: int) -> None:
    array = np.ldexp(np.array(values, np.float32), power)
    wanted = np.log2(np.linalg.norm(array.astype(np.float64)))
    assert float(jax.jit(norm_log2)(jnp.asarray(array))) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", [1e-37, 1e37, 9e37, 3e38])
@pytest.mark.parametrize("count", [1, 3, 100, 5000])
def test_norms_of_long_arrays_next_to_the_end_of_float32(size: float, count: int) -> None:
    array = jnp.full(count, size)
    wanted = np.log2(float(array[0])) + np.log2(count) / 2
    for form in (norm_log2, jax.jit(norm_log2)):
        assert float(form(array)) == pytest.approx(wanted, abs=1e-4)


@pytest.mark.parametrize("size", [1e-300, 1.0, 1e200, 1e307])
def test_norms_of_float64(size: float) -> None:
    with jax.enable_x64(True):
        found = float(jax.jit(norm_log2)(jnp.full(100, size, jnp.float64)))
    assert found == pytest.approx(np.log2(size) + np.log2(100) / 2, abs=1e-6)


def test_norms_of_zeros_and_of_what_is_not_finite() -> None:
    assert float(norm_log2(jnp.zeros(3))) == -np.inf
    assert float(norm_log2(jnp.zeros((0, 2)))) == -np.inf
    assert not np.isfinite(float(norm_log2(jnp.array([1.0, np.inf]))))
    assert np.isnan(float(norm_log2(jnp.array([1.0, np.nan]))))
    assert float(norm_log2(jnp.full(4, 1e-6, jnp.float16))) == pytest.approx(np.log2(2e-6), abs=0.2)
    far = Scaled(jnp.float32(2.0**-120))
    assert far.settled(220).number == 2.0**100
    assert float(far.settled(220).at(0)) == 2.0**100


@pytest.mark.parametrize("value", [0.0, 1e-37, 1e-13, 1e13, 3e38])
def test_norms_of_gradients_that_xla_knows(value: float) -> None:
    """As that of a parameter that the loss does not use is: zeros, known at compilation."""
    wanted = np.log2(np.float32(value)) + 1 if value else -np.inf
    assert float(jax.jit(lambda: norm_log2(jnp.full(4, value)))()) == pytest.approx(wanted)
    spread = jax.jit(lambda one: norm_log2(jnp.broadcast_to(one, (4,))))
    assert float(spread(jnp.float32(value))) == pytest.approx(wanted)


def test_a_parameter_that_the_loss_does_not_use_is_no_nan() -> None:
    optimizer, net = vegrad.jax.watch(optax.adam(1e-3)), {"a": jnp.ones(3), "b": jnp.zeros(3)}
    loss = jax.value_and_grad(lambda net: jnp.sum(net["a"] ** 2))

    @jax.jit
    def step(net: Any, state: Any) -> Any:
        value, grads = loss(net)
        return optimizer.update(grads, state, net, value=value)[1]

    assert vegrad.jax.report(step(net, optimizer.init(net))).healthy


def norm_of(tree: Any) -> Any:
    return jnp.sqrt(sum(jnp.sum(jnp.square(one)) for one in jax.tree.leaves(tree)))


@cache
def trained(
    rate: float, steps: int = 120, given: bool = True, kind: str = "sgd", rows: int = 256
) -> Any:
    """Train under scan and jit; return the optimizer's state and what it was in plain optax."""
    x, y = task(128)
    y = (x[:, :2].sum(1) > 0).astype(jnp.int32)
    optimizer = vegrad.jax.watch(getattr(optax, kind)(rate), rows=rows)
    net = drawn([16, 16, 2], 2**0.5)

    def step(carry: Any, place: Any) -> tuple[Any, Any]:
        net, state = carry
        chosen = jax.random.permutation(jax.random.fold_in(jax.random.key(1), place), 128)[:32]
        value, grads = jax.value_and_grad(LOSS)(net, x[chosen], y[chosen])
        updates, state = optimizer.update(grads, state, net, **({"value": value} if given else {}))
        return (optax.apply_updates(net, updates), state), (value, norm_of(grads))

    carry, seen = jax.jit(lambda c: jax.lax.scan(step, c, jnp.arange(steps)))(
        (net, optimizer.init(net))
    )
    return carry[1], seen


def test_the_state_has_the_sizes_of_each_step() -> None:
    state, (losses, norms) = trained(0.1)
    np.testing.assert_array_equal(state.steps[:120], np.arange(120))
    np.testing.assert_allclose(state.loss[:120], losses, rtol=1e-6)
    leaves = jax.tree.leaves(state.gradients)
    joint = np.sqrt(sum(np.exp2(2 * np.asarray(one[:120], np.float64)) for one in leaves))
    np.testing.assert_allclose(joint, norms, rtol=1e-4)
    moved = np.asarray(state.updates[0]["w"][:120]) - np.asarray(state.gradients[0]["w"][:120])
    np.testing.assert_allclose(moved, np.log2(0.1), atol=1e-4)


def test_a_record_that_is_full_keeps_every_other_row_and_the_last() -> None:
    state, _ = trained(0.1, rows=16)
    kept = [n for n in state.steps.tolist() if n >= 0]
    assert kept == [*range(0, 120, 8), 119] or kept == list(range(0, 120, 8))
    assert kept[-1] == 119 or int(state.apart) == 8
    assert vegrad.jax.report(state).healthy


def test_good_steps_are_healthy_and_what_is_wrong_is_told() -> None:
    assert vegrad.jax.report(trained(0.1)[0]).healthy
    assert vegrad.jax.report(trained(1e-3, kind="adam")[0]).healthy
    high = vegrad.jax.report(trained(1e3)[0])
    assert high.findings[0].cause == "learning-rate-high"
    low = vegrad.jax.report(trained(1e-8)[0])
    assert (low.verdict, low.findings[0].cause) == ("stalled", "learning-rate-low")


def test_a_gradient_that_is_not_finite_is_named() -> None:
    optimizer = vegrad.jax.watch(optax.adam(1e-3))
    net: Any = drawn([4, 3, 2])
    state, grads = optimizer.init(net), jax.tree.map(jnp.ones_like, drawn([4, 3, 2]))
    for place in range(3):
        if place == 2:
            grads[0]["w"] = grads[0]["w"].at[1, 1].set(jnp.nan)
        _, state = optimizer.update(grads, state, net)
    found = vegrad.jax.report(state)
    assert found.verdict == "nonfinite"
    assert "the gradient of 0.w is not finite at step 2" in found.summary


@pytest.mark.parametrize(
    ("step", "peak", "cause"),
    [(3.0, 1e6, "learning-rate-high"), (3.0, 3.0, "learning-rate-high"), (1e-3, 3.0, "")],
)
def test_gradients_that_are_gone_after_a_long_step_are_the_rates_fault(
    step: float, peak: float, cause: str
) -> None:
    """After usual steps nothing but the loss function can make them 0."""
    net, optimizer = {"w": jnp.ones((4, 4))}, vegrad.jax.watch(optax.sgd(1.0))
    state = optimizer.init(net)
    for number, loss in enumerate([4.0, peak, 2.0, *[1.0] * 30]):
        grads = {"w": jnp.full((4, 4), step if number < 3 else 0.0)}
        _, state = optimizer.update(grads, state, net, value=loss)
    (found,) = vegrad.jax.report(state).findings
    wanted = ("gradients-thrown", "overshooting") if cause else ("gradients-gone", "vanishing")
    assert (found.rule, found.kind, found.cause) == (*wanted, cause)
    assert ("fresh weights" in found.advice) == bool(cause)
    assert ("up to 1e+06" in found.message) == (peak > 4)


def test_a_report_says_that_the_loss_was_not_given() -> None:
    told = vegrad.jax.report(trained(0.1)[0])
    assert "the loss was not recorded" not in str(told)
    names = ["0.w", "1.w"]
    for order in (None, names):
        untold = vegrad.jax.report(trained(0.1, given=False)[0], order=order)
        said = " ".join(str(untold).split())
        assert untold.healthy
        assert "the loss was not recorded" in said
        assert "as value=" in said


def test_gradients_that_are_gone_are_told_without_the_loss() -> None:
    net, optimizer = {"w": jnp.ones((4, 4))}, vegrad.jax.watch(optax.sgd(1e-3))
    state = optimizer.init(net)
    for number in range(30):
        grads = {"w": jnp.full((4, 4), 1.0 if number < 3 else 0.0)}
        _, state = optimizer.update(grads, state, net)
    (found,) = vegrad.jax.report(state).findings
    assert (found.rule, found.kind, found.severity) == ("gradients-gone", "vanishing", "warning")
    assert found.evidence == {"steps": 27.0}
    assert "as value=" in found.advice


@pytest.mark.parametrize("every", [1, 4])
@pytest.mark.parametrize("rate", [0.0, 1e-8, 0.1])
def test_steps_that_change_nothing_are_told(rate: float, every: int) -> None:
    """Also where most of them only gather gradients."""
    (x, y), net = task(), drawn([16, 16, 4], 2**0.5)
    optimizer = vegrad.jax.watch(optax.MultiSteps(optax.sgd(rate), every))

    @jax.jit
    def step(carry: Any, _: Any) -> Any:
        net, state = carry
        value, grads = jax.value_and_grad(LOSS)(net, x, y)
        updates, state = optimizer.update(grads, state, net, value=value)
        return (optax.apply_updates(net, updates), state), None

    (_, state), _ = jax.lax.scan(step, (net, optimizer.init(net)), None, 100)
    found = vegrad.jax.report(state)
    assert found.healthy == (rate == 0.1)
    if not found.healthy:
        assert (found.verdict, found.findings[0].cause) == ("stalled", "learning-rate-low")
        assert ("none of 100 steps" in str(found)) == (rate == 0.0)


def test_the_states_of_an_optimizer_of_several_parts_are_reported_together() -> None:
    net = {"a": jnp.ones(3), "b": jnp.ones((3, 3))}
    parts = {name: vegrad.jax.watch(optax.sgd(0.1)) for name in net}
    optimizer = optax.multi_transform(parts, {name: name for name in net})
    _, state = optimizer.update(net, optimizer.init(net), net, value=1.0)
    found = vegrad.jax.report(state)
    assert found.reading is not None
    assert [one.name for one in found.reading.modules] == ["a", "b"]
    assert "the gradient's norm is 3.46" in str(found)  # of 12 ones


def test_a_loss_that_the_first_step_throws_is_compared_with_what_it_was_before() -> None:
    net, (x, _) = drawn([16, 64, 64, 16], 2**0.5), task()
    optimizer = vegrad.jax.watch(optax.adam(1.0))
    state = optimizer.init(net)
    step = jax.jit(jax.value_and_grad(lambda net: jnp.mean((run(net, x, jax.nn.relu) - x) ** 2)))
    for _ in range(40):
        value, grads = step(net)
        updates, state = optimizer.update(grads, state, net, value=value)
        net = optax.apply_updates(net, updates)
    (found,) = vegrad.jax.report(state).findings
    assert (found.rule, found.cause) == ("course-overshoots", "learning-rate-high")
    assert found.evidence["peak"] > 1e3 * found.evidence["first"]


def test_in_a_chain_the_updates_stay_and_the_order_is_judged() -> None:
    net, (x, y) = drawn([16, *[16] * 5, 4], 0.02), task()
    plain = optax.chain(optax.clip_by_global_norm(1.0), optax.sgd(0.1))
    watched = optax.chain(vegrad.jax.watch(), plain)
    grads = jax.grad(loss_with(jnp.tanh))(net, x, y)
    expected, _ = plain.update(grads, plain.init(net), net)
    updates, state = watched.update(grads, watched.init(net), net)
    jax.tree.map(np.testing.assert_array_equal, updates, expected)
    assert vegrad.jax.report(state).healthy  # no step is known, and no order
    names = [f"{n}.w" for n in range(6)]
    found = vegrad.jax.report(state, order=names[1:])
    assert found.verdict in ("vanishing", "exploding", "healthy")
    with pytest.raises(ValueError, match=r"unknown: '?kernel"):
        vegrad.jax.report(state, order=["kernel"])


def test_wrong_use() -> None:
    with pytest.raises(TypeError, match=r"optimizer must be an optax transformation, not 0\.1"):
        vegrad.jax.watch(0.1)
    with pytest.raises(ValueError, match="rows must be at least 8"):
        vegrad.jax.watch(rows=2)
    with pytest.raises(TypeError, match=r"state must hold that of vegrad\.jax\.watch\(\)"):
        vegrad.jax.report(optax.sgd(0.1).init({"w": jnp.ones(2)}))
    with pytest.raises(ValueError, match="has seen no step"):
        vegrad.jax.report(vegrad.jax.watch().init({"w": jnp.ones(2)}))


DEVICES = """
import jax, jax.numpy as jnp, numpy as np, optax, vegrad.jax
from jax.sharding import Mesh, PartitionSpec as P
assert jax.device_count() == 4
net, rows = {"w": jnp.ones((8, 2))}, jnp.arange(64.0).reshape(4, 8, 2) / 64
loss = lambda net, x: jnp.mean(net["w"] * x)
optimizer = vegrad.jax.watch(optax.sgd(0.1))

def step(net, state, x):
    value, grads = jax.value_and_grad(loss)(net, x)
    value, grads = jax.lax.pmean((value, grads), "d")
    updates, state = optimizer.update(grads, state, net, value=value)
    return optax.apply_updates(net, updates), state

many = lambda tree: jax.tree.map(lambda one: jnp.stack([one] * 4), tree)
net4, state = many(net), many(optimizer.init(net))
for _ in range(3):
    net4, state = jax.pmap(step, axis_name="d")(net4, state, rows)
print(vegrad.jax.report(state).verdict)
whole = np.log2(np.linalg.norm(np.asarray(rows, np.float64).mean(0) / 16))
print(abs(float(state.gradients["w"][0, 0]) - whole) < 1e-4)

parts = vegrad.jax.watch(optax.sgd(0.1), axis_name="d")
def halves(w, x):
    grads = jax.grad(loss)({"w": w}, x)
    _, state = parts.update(grads, parts.init({"w": w}), {"w": w})
    return state.gradients["w"][:1]
mesh = Mesh(np.array(jax.devices()), ("d",))
size = jax.shard_map(halves, mesh=mesh, in_specs=(P("d"), P("d")), out_specs=P("d"),
                     check_vma=False)(net["w"], rows[0])
wanted = np.log2(np.linalg.norm(np.asarray(rows[0], np.float64) / 4))
print(np.abs(np.asarray(size) - wanted).max() < 1e-4)
"""


def test_on_several_devices() -> None:
    """They are four of one processor, which JAX has to be told before it starts."""
    flags = {"XLA_FLAGS": "--xla_force_host_platform_device_count=4", "JAX_PLATFORMS": "cpu"}
    code = f"import os; os.environ.update({flags!r})\n{DEVICES}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["healthy", "True", "True"], done.stderr

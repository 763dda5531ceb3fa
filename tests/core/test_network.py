"""MLP against the float64 reference and against finite differences.

The tolerance of each gradient comes from the arithmetic: the reference is run again with every
array it holds (weights, pre-activations, activations, deltas) perturbed by relative errors of
eps·√K, the growth of rounding errors in a sum of K terms; what that moves the gradient by, the
largest of several runs, is what a result of that precision may be off by, times a margin.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import assume, example, given
from hypothesis import strategies as st
from vegrad import _core

from tests import reference

MARGIN = 4.0
KINKS = {"relu": (0.0,), "leaky_relu": (0.0,), "selu": (0.0,), "hard_tanh": (-1.0, 1.0)}

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def make_target(rng: np.random.Generator, loss: str, rows: int, outputs: int) -> np.ndarray:
    if loss == "cross_entropy":
        return rng.integers(0, outputs, rows)
    if loss == "binary_cross_entropy":
        return rng.choice([0.0, 1.0, 0.25], (rows, outputs))
    return rng.standard_normal((rows, outputs))


def make(
    sizes: list[int], *, rows: int, seed: int = 0, **options: Any
) -> tuple[vegrad.MLP, np.ndarray, np.ndarray]:
    """Return a network with biases that are not zero, its input and its target, in its dtype."""
    if options.get("init") == "normal":
        options = {"sigma_w": 1.3, "sigma_b": 0.4} | options
    net = vegrad.MLP(sizes, seed=seed, **options)
    rng = np.random.default_rng(seed + 1)
    for i in range(net.depth):
        bias = net.parameters[f"layers.{i}.bias"]
        bias[...] = 0.3 * rng.standard_normal(bias.shape)
    dtype = net.config["dtype"]
    x = rng.standard_normal((rows, sizes[0])).astype(dtype)
    target = make_target(rng, net.config["loss"], rows, sizes[-1])
    return net, x, target if target.dtype.kind == "i" else target.astype(dtype)


def rounded(eps: float, seed: int) -> Callable[[reference.Scaled], reference.Scaled]:
    """Return a rounding for the reference that imitates arithmetic with errors of about eps."""
    rng = np.random.default_rng(seed)

    def rounding(s: reference.Scaled) -> reference.Scaled:
        noise = 1.0 + eps * rng.standard_normal(s.mantissa.shape)
        return reference.Scaled(s.mantissa * noise, s.exponent)

    return rounding


def run_reference(
    net: vegrad.MLP, x: np.ndarray, target: np.ndarray, **more: Any
) -> reference.Pass:
    return reference.run(net.parameters, x, target, **net.config, **more)


def near_a_kink(net: vegrad.MLP, expected: reference.Pass, eps: float) -> bool:
    """Return True if rounding may move an argument over a corner of its activation."""
    for layer, y in enumerate(expected.activation_inputs):
        name = net.config["output" if layer == net.depth - 1 else "activation"]
        array = reference.value(y)
        scale = max(1.0, float(np.max(np.abs(array))))
        for kink in KINKS.get(name, ()):
            if np.min(np.abs(array - kink)) < 100 * eps * scale:
                return True
    return False


def assert_agrees(
    net: vegrad.MLP, x: np.ndarray, target: np.ndarray, expected: reference.Pass, runs: int = 3
) -> None:
    """Check loss, outputs and every gradient to within what the dtype's arithmetic allows."""
    eps = float(np.finfo(net.config["dtype"]).eps)
    size = eps * math.sqrt(max(*net.config["sizes"], len(x)))
    perturbed = [
        run_reference(net, x, target, rounding=rounded(size, seed)) for seed in range(runs)
    ]

    loss = net.backward(x, target)
    spread = max(abs(other.loss - expected.loss) for other in perturbed)
    assert abs(loss - expected.loss) <= MARGIN * (spread + eps * abs(expected.loss)), "loss"
    assert net.loss(x, target) == pytest.approx(loss, rel=1e-12, abs=1e-300)

    def check(name: str, got: np.ndarray, want: np.ndarray, others: list[np.ndarray]) -> None:
        spread = max(float(np.linalg.norm(other - want)) for other in others)
        floor = eps * float(np.linalg.norm(want))
        off = float(np.linalg.norm(got.astype(np.float64) - want))
        assert off <= MARGIN * (spread + floor), (
            f"{name} is off by {off:.3g}; {spread:.3g} is expected of {net.config['dtype']}"
        )

    output = net.forward(x)
    assert output.dtype == net.config["dtype"]
    assert output.shape == (len(x), net.config["sizes"][-1])
    outputs = [reference.value(other.output) for other in perturbed]
    check("output", output, reference.value(expected.output), outputs)
    assert list(net.gradients) == list(net.parameters)
    for name, gradient in net.gradients.items():
        assert gradient.shape == net.parameters[name].shape
        assert gradient.dtype == net.config["dtype"]
        others = [reference.value(other.gradients[name]) for other in perturbed]
        check(name, gradient, reference.value(expected.gradients[name]), others)


# ----------------------------------------------------------------------- against the reference


Case = tuple[vegrad.MLP, np.ndarray, np.ndarray, reference.Pass]


def first_clear_case(sizes: list[int], *, clearance: float | None = None, **options: Any) -> Case:
    """Return the case of the first seed for which no argument of an activation lies on a kink."""
    for seed in range(100):
        net, x, target = make(sizes, seed=seed, **options)
        expected = run_reference(net, x, target)
        if not near_a_kink(net, expected, clearance or np.finfo(net.config["dtype"]).eps):
            return net, x, target, expected
    raise AssertionError("no seed without an argument on a kink")


@both_dtypes
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", reference.NORMS)
@pytest.mark.parametrize("loss", reference.LOSSES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_combination(
    isa: str, activation: str, loss: str, norm: str | None, residual: bool, dtype: str
) -> None:
    schemes = reference.INITIALIZERS if isa == _core.isas()[0] else reference.INITIALIZERS[::6]
    for init in schemes:
        case = first_clear_case(
            [5, 9, 9, 9, 4],
            rows=6,
            activation=activation,
            loss=loss,
            norm=norm,
            residual=residual,
            dtype=dtype,
            init=init,
        )
        assert_agrees(*case, runs=2)


@both_dtypes
@pytest.mark.parametrize("loss", reference.LOSSES)
@pytest.mark.parametrize("output", reference.ACTIVATIONS)
def test_every_output_activation(isa: str, output: str, loss: str, dtype: str) -> None:
    for residual in (False, True):
        assert_agrees(
            *first_clear_case(
                [6, 5, 5], rows=7, output=output, loss=loss, residual=residual, dtype=dtype
            )
        )


widths = st.one_of(
    st.integers(1, 70), st.sampled_from([1, 3, 4, 7, 8, 15, 16, 17, 31, 32, 33, 63, 64, 65])
)


cases = st.fixed_dictionaries(
    {
        "sizes": st.lists(widths, min_size=2, max_size=6),
        "rows": st.one_of(st.integers(1, 4), widths),  # up to four rows go another way
        "activation": st.sampled_from(reference.ACTIVATIONS),
        "output": st.sampled_from(("identity", *reference.ACTIVATIONS)),
        "loss": st.sampled_from(reference.LOSSES),
        "norm": st.sampled_from(reference.NORMS),
        "residual": st.booleans(),
        "seed": st.integers(0, 2**20),
    }
)


@both_dtypes
@given(case=cases)
@example(case={"sizes": [1, 1], "rows": 1})
@example(case={"sizes": [1, 1, 1], "rows": 1, "norm": "layer", "residual": True})
@example(case={"sizes": [2, 2, 2, 1], "rows": 1, "activation": "gelu", "norm": "rms"})
@example(case={"sizes": [70, 1, 70], "rows": 70, "loss": "cross_entropy", "output": "tanh"})
def test_every_shape(isa: str, dtype: str, case: dict[str, Any]) -> None:
    # Two normalized units are +1 and -1 whatever z is: the gradient is the 1e-5 that ε leaves of a
    # difference of equal numbers.
    assume(not (case.get("norm") == "layer" and 2 in case["sizes"][1:-1]))
    net, x, target = make(**case, dtype=dtype)
    expected = run_reference(net, x, target)
    assume(not near_a_kink(net, expected, float(np.finfo(dtype).eps)))
    assert_agrees(net, x, target, expected)


@both_dtypes
@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([200, 130, 257, 10], 300),
        ([40, 529, 301, 10], 301),
        ([64] * 12, 130),
        ([64, 40, 100, 33, 128, 17, 9], 200),
        ([200, 130, 257, 10], 1),
        ([64, 300, 129, 1], 2),
        ([300] * 4, 3),
        ([65, 190, 40], 4),
    ],
)
def test_more_than_one_block(isa: str, sizes: list[int], rows: int, dtype: str) -> None:
    net, x, target = make(sizes, rows=rows, activation="tanh", dtype=dtype, norm="layer")
    assert_agrees(net, x, target, run_reference(net, x, target))


@both_dtypes
@pytest.mark.parametrize("rows", [1, 5, 64, 100, 257])
def test_targets_of_shape_rows(isa: str, rows: int, dtype: str) -> None:
    """Targets (B,) stand for (B, 1), and labels may be of every integer kind."""
    for loss in ("mse", "binary_cross_entropy"):
        net, x, target = make([4, 6, 1], rows=rows, loss=loss, dtype=dtype)
        loss_value = net.backward(x, target)
        gradients = {name: g.copy() for name, g in net.gradients.items()}
        assert net.backward(x, target[:, 0]) == loss_value
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(net.gradients[name], gradient)
    net, x, target = make([4, 6, 3], rows=rows, loss="cross_entropy", dtype=dtype)
    want = net.backward(x, target)
    for kind in ("int8", "uint8", "int32", "uint64"):
        assert net.backward(x, target.astype(kind)) == want
    assert net.backward(x, target.tolist()) == want


@pytest.mark.parametrize("shape", ["nt", "nn", "tn"])
@both_dtypes
@given(rows=widths, columns=widths, inner=widths, seed=st.integers(0, 2**20))
@example(300, 200, 500, 0)
@example(1, 1, 1, 0)
def test_products(isa: str, dtype: str, shape: str, rows: int, columns: int, inner: int, seed: int):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((inner, rows) if shape == "tn" else (rows, inner)).astype(dtype)
    b = rng.standard_normal((columns, inner) if shape == "nt" else (inner, columns)).astype(dtype)
    wide_a, wide_b = a.astype(np.longdouble), b.astype(np.longdouble)
    wide_a, wide_b = wide_a.T if shape == "tn" else wide_a, wide_b.T if shape == "nt" else wide_b
    bound = 2 * np.finfo(dtype).eps * math.sqrt(inner) * (np.abs(wide_a) @ np.abs(wide_b))
    assert np.all(np.abs(_core.matmul(a, b, shape) - wide_a @ wide_b) <= bound)


# -------------------------------------------------------------------- against finite differences


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", reference.NORMS)
@pytest.mark.parametrize("loss", reference.LOSSES)
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_every_parameter_by_central_differences(
    activation: str, loss: str, norm: str | None, residual: bool
) -> None:
    step = 1e-5
    net, x, target, _ = first_clear_case(
        [3, 4, 4, 2],
        clearance=step,
        rows=3,
        activation=activation,
        loss=loss,
        norm=norm,
        residual=residual,
        dtype="float64",
    )
    net.backward(x, target)
    for name, parameter in net.parameters.items():
        flat, differences = parameter.reshape(-1), np.empty(parameter.size)
        assert np.shares_memory(flat, parameter)
        for i in range(flat.size):
            before = flat[i]
            flat[i] = before + step
            above = net.loss(x, target)
            flat[i] = before - step
            below = net.loss(x, target)
            flat[i] = before
            differences[i] = (above - below) / (2 * step)
        # truncation: step² f‴/6, rounding: eps f/step; both near 1e-11 here, for norm="layer" on
        # rows of 4 units with derivatives in the tens
        np.testing.assert_allclose(
            net.gradients[name].reshape(-1), differences, rtol=1e-6, atol=1e-8, err_msg=name
        )


def test_a_wide_network_by_a_directional_difference(isa: str) -> None:
    net, x, target = make(
        [40, 65, 33, 33, 10],
        rows=50,
        activation="gelu",
        dtype="float64",
        norm="layer",
        residual=True,
    )
    net.backward(x, target)
    rng = np.random.default_rng(5)
    direction = {name: rng.standard_normal(p.shape) for name, p in net.parameters.items()}
    slope = sum(float(np.sum(net.gradients[name] * d)) for name, d in direction.items())
    step, losses = 1e-6, []
    for sign in (1, -2):
        for name, d in direction.items():
            net.parameters[name][...] += sign * step * d
        losses.append(net.loss(x, target))
    assert (losses[0] - losses[1]) / (2 * step) == pytest.approx(slope, rel=1e-6)


# ------------------------------------------------------------------- parameters and gradients


@both_dtypes
def test_parameters_are_views_that_take_effect(dtype: str) -> None:
    net = vegrad.MLP([3, 4, 2], dtype=dtype, activation="identity")
    assert list(net.parameters) == [
        "layers.0.weight",
        "layers.0.bias",
        "layers.1.weight",
        "layers.1.bias",
    ]
    for name, shape in zip(net.parameters, [(4, 3), (4,), (2, 4), (2,)], strict=True):
        assert net.parameters[name].shape == net.gradients[name].shape == shape
        assert net.parameters[name].dtype == net.gradients[name].dtype == dtype
        assert net.parameters[name].flags.writeable
    for parameter in net.parameters.values():
        parameter[...] = 0
    net.parameters["layers.0.bias"][:] = [1, 2, 3, 4]
    net.parameters["layers.1.weight"][0] = 1
    net.parameters["layers.1.weight"][1, 3] = -5
    np.testing.assert_array_equal(net.forward(np.zeros((2, 3))), [[10, -20]] * 2)
    with pytest.raises(TypeError):
        net.parameters["layers.0.bias"] = np.zeros(4)  # the mapping itself is fixed


@both_dtypes
def test_gradients_are_views_that_the_next_pass_fills(dtype: str) -> None:
    net, x, target = make([3, 4, 2], rows=5, dtype=dtype)
    views = dict(net.gradients)
    net.backward(x, target)
    first = {name: view.copy() for name, view in views.items()}
    net.backward(2 * x, target)
    for name, view in net.gradients.items():
        assert np.shares_memory(view, views[name])
        np.testing.assert_array_equal(view, views[name])
        assert np.any(view != first[name])
    net.backward(x, target)
    for name, view in views.items():
        np.testing.assert_array_equal(view, first[name])


def test_views_outlive_the_network() -> None:
    net, x, target = make([3, 4, 2], rows=5)
    net.backward(x, target)
    weight, gradient = net.parameters["layers.0.weight"], net.gradients["layers.0.weight"]
    copies = weight.copy(), gradient.copy()
    del net
    junk = [vegrad.MLP([3, 4, 2], seed=s) for s in range(20)]
    np.testing.assert_array_equal(weight, copies[0])
    np.testing.assert_array_equal(gradient, copies[1])
    assert len(junk) == 20


def test_outputs_belong_to_the_caller() -> None:
    net, x, _ = make([3, 4, 2], rows=5)
    first = net.forward(x)
    copy = first.copy()
    net.forward(x + 1)
    np.testing.assert_array_equal(first, copy)


def test_config_and_depth() -> None:
    options = {
        "activation": "gelu",
        "output": "tanh",
        "loss": "mse",
        "init": "normal",
        "sigma_w": 2.0,
        "sigma_b": 0.5,
        "norm": "rms",
        "residual": True,
        "dtype": "float64",
        "seed": 9,
    }
    net = vegrad.MLP((3, 4, 5), **options)
    assert net.config == {"sizes": [3, 4, 5], **options}
    assert net.depth == 2
    again = vegrad.MLP(**net.config)
    for name, parameter in net.parameters.items():
        np.testing.assert_array_equal(parameter, again.parameters[name])
    assert "gelu" in repr(net)


def test_batches_of_changing_size(isa: str) -> None:
    """A workspace that grew is used by smaller batches too, without a trace of earlier rows."""
    net, x, target = make([10, 33, 33, 4], rows=130, activation="silu", norm="rms", residual=True)
    fresh = vegrad.MLP(**net.config)
    for name, parameter in net.parameters.items():
        fresh.parameters[name][...] = parameter
    net.backward(x, target)
    for rows in (1, 64, 7, 130, 65):
        assert net.backward(x[:rows], target[:rows]) == fresh.backward(x[:rows], target[:rows])
        for name, gradient in net.gradients.items():
            np.testing.assert_array_equal(gradient, fresh.gradients[name])
        fresh = vegrad.MLP(**net.config)
        for name, parameter in net.parameters.items():
            fresh.parameters[name][...] = parameter


@both_dtypes
@pytest.mark.parametrize("size", [1.0, 2.0**-50, 2.0**20])
def test_without_flow_the_gradients_are_the_same(isa: str, size: float, dtype: str) -> None:
    net = vegrad.MLP([9] * 21, activation="tanh", norm=None, residual=False, dtype=dtype, seed=0)
    for layer in range(20):
        net.parameters[f"layers.{layer}.weight"][...] *= size
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((2, 20, 9))
    loss = net.backward(x, target)
    gradients = {name: gradient.copy() for name, gradient in net.gradients.items()}
    assert net.backward(x, target, flow=False) == loss
    for name, gradient in gradients.items():
        np.testing.assert_array_equal(net.gradients[name], gradient)
    with pytest.raises(RuntimeError, match="flow"):
        _ = net.flow  # not a stale one


@pytest.mark.parametrize("rows", [1, 40])
def test_a_flow_stays_that_of_the_last_backward(rows: int) -> None:
    """The flow is fetched when it is first asked for, whatever the network did in between."""
    one, other = (vegrad.MLP([9, 20, 20, 3], seed=1) for _ in range(2))
    rng = np.random.default_rng(0)
    x, target = rng.standard_normal((rows, 9)), rng.standard_normal((rows, 3))
    one.backward(x, target)
    expected = one.flow.to_dict()
    other.backward(x, target)
    other.forward(7 * np.ones((5, 9)))
    other.loss(np.ones((100, 9)), np.ones((100, 3)))
    with pytest.raises(ValueError, match="shape"):
        other.backward(x[:, 1:], target)
    assert other.flow.to_dict() == expected
    other.backward(x, target, flow=False)
    with pytest.raises(RuntimeError, match="no flow"):
        _ = other.flow

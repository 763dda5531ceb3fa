"""Arguments that are refused: the kind of error, and what it says was wanted and given."""

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import _core

from tests import reference

both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


def problem(
    sizes: list[int], rows: int, **options: Any
) -> tuple[vegrad.MLP, np.ndarray, np.ndarray]:
    """Return a network, x and target in the network's dtype."""
    net = vegrad.MLP(sizes, seed=0, **options)
    rng, dtype = np.random.default_rng(0), net.config["dtype"]
    x = rng.standard_normal((rows, sizes[0])).astype(dtype)
    if net.config["loss"] == "cross_entropy":
        return net, x, rng.integers(0, sizes[-1], rows)
    return net, x, rng.standard_normal((rows, sizes[-1])).astype(dtype)


def both(*parts: str) -> str:
    """Return a pattern for texts that hold all the parts in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


# ---------------------------------------------------------------------------- making a network


@pytest.mark.parametrize(
    ("sizes", "error", "said"),
    [
        ([], ValueError, ["sizes", "inputs and outputs", "[]"]),
        ([3], ValueError, ["sizes", "inputs and outputs", "[3]"]),
        ([3, 0], ValueError, ["sizes[1]", "1", "0"]),
        ([-4, 2], ValueError, ["sizes[0]", "1", "-4"]),
        ([3, 2**31], ValueError, ["sizes[1]", "2147483647", "2147483648"]),
        ([3, 2.0], TypeError, ["sizes[1]", "integer", "2.0"]),
        ([3, True], TypeError, ["sizes[1]", "integer", "True"]),
        ([3, "4"], TypeError, ["sizes[1]", "integer", "4"]),
        ([3, None], TypeError, ["sizes[1]", "integer", "None"]),
        ("34", TypeError, ["sizes", "sequence of integers", "str"]),
        (5, TypeError, ["sizes", "sequence of integers", "int"]),
        (None, TypeError, ["sizes", "sequence of integers", "NoneType"]),
    ],
)
def test_sizes(sizes: Any, error: type[Exception], said: list[str]) -> None:
    with pytest.raises(error, match=both(*said)):
        vegrad.MLP(sizes)


@pytest.mark.parametrize("sizes", [(2, 3), np.array([2, 3]), [np.int64(2), np.uint8(3)]])
def test_sizes_of_any_integer_kind(sizes: Any) -> None:
    assert vegrad.MLP(sizes).config["sizes"] == [2, 3]


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"activation": "rleu"}, ValueError, ["activation", "sigmoid", "relu", "'rleu'"]),
        ({"activation": 3}, TypeError, ["activation", "relu", "int"]),
        ({"activation": None}, TypeError, ["activation", "relu", "None"]),
        ({"output": "softmax"}, ValueError, ["output", "identity", "'softmax'"]),
        ({"loss": "l2"}, ValueError, ["loss", "mse", "cross_entropy", "'l2'"]),
        ({"init": "xavier"}, ValueError, ["init", "glorot_uniform", "'xavier'"]),
        ({"norm": "batch"}, ValueError, ["norm", "layer", "rms", "'batch'"]),
        ({"norm": True}, TypeError, ["norm", "layer", "bool"]),
        ({"residual": "yes"}, TypeError, ["residual", "True or False", "yes"]),
        ({"residual": 1}, TypeError, ["residual", "True or False", "1"]),
        ({"dtype": "float16"}, TypeError, ["dtype", "float32 or float64", "float16"]),
        ({"dtype": "int32"}, TypeError, ["dtype", "float32 or float64", "int32"]),
        ({"dtype": "nonsense"}, TypeError, ["dtype", "float32 or float64", "nonsense"]),
        ({"seed": -1}, ValueError, ["seed", "-1"]),
        ({"seed": 1.5}, TypeError, ["seed", "integer", "float"]),
        ({"seed": "7"}, TypeError, ["seed", "integer", "str"]),
        ({"init": "normal"}, ValueError, ["sigma_w", "None"]),
        ({"init": "normal", "sigma_w": -1.0}, ValueError, ["sigma_w", "not negative", "-1"]),
        ({"init": "normal", "sigma_w": np.nan}, ValueError, ["sigma_w", "finite", "nan"]),
        ({"init": "normal", "sigma_w": np.inf}, ValueError, ["sigma_w", "finite", "inf"]),
        ({"init": "normal", "sigma_w": "2"}, TypeError, ["sigma_w", "number", "str"]),
        ({"init": "normal", "sigma_w": 1.0, "sigma_b": -2}, ValueError, ["sigma_b", "-2"]),
        ({"sigma_w": 1.0}, ValueError, ["sigma_w", "normal", "glorot_uniform"]),
        ({"sigma_b": 1.0, "init": "he_normal"}, ValueError, ["sigma_b", "normal", "he_normal"]),
        ({"activations": "relu"}, TypeError, ["activations"]),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], said: list[str]) -> None:
    with pytest.raises(error, match=both(*said)):
        vegrad.MLP([3, 2], **options)


@pytest.mark.parametrize("dtype", [np.float64, np.dtype("float64"), "float64", float, "f8"])
def test_dtypes_by_any_name(dtype: Any) -> None:
    assert vegrad.MLP([3, 2], dtype=dtype).config["dtype"] == "float64"


def test_a_network_too_large_for_the_memory() -> None:
    with pytest.raises((MemoryError, ValueError, OverflowError)):
        vegrad.MLP([2**31 - 1, 2**31 - 1])


# ----------------------------------------------------------------------------- data and targets

GOOD = np.ones((4, 3))
BAD_X = [
    (np.ones((4, 2)), ValueError, ["x", "(B, 3)", "(4, 2)"]),
    (np.ones(3), ValueError, ["x", "(B, 3)", "(3,)"]),
    (np.ones((4, 3, 1)), ValueError, ["x", "(B, 3)", "(4, 3, 1)"]),
    (np.float64(1.0), ValueError, ["x", "(B, 3)", "()"]),
    (np.ones((0, 3)), ValueError, ["x", "one row", "(0, 3)"]),
    ([], ValueError, ["x", "(B, 3)", "(0,)"]),
    (np.ones((4, 3), complex), TypeError, ["x", "real", "complex128"]),
    (np.full((4, 3), "a"), TypeError, ["x", "real", "<U1"]),
    (np.full((4, 3), None), TypeError, ["x", "real", "object"]),
    (np.ones((4, 3), "datetime64[s]"), TypeError, ["x", "real", "datetime64"]),
    ([[1.0, 2.0, 3.0], [1.0, 2.0]], TypeError, ["x", "numbers"]),
    (None, TypeError, ["x", "real"]),
]
HALF = np.full((4, 2), 0.5)
BAD_TARGETS = [
    ("mse", np.ones((4, 3)), ValueError, ["target", "(4, 2)", "(4, 3)"]),
    ("mse", np.ones((5, 2)), ValueError, ["target", "(4, 2)", "(5, 2)"]),
    ("mse", np.ones(4), ValueError, ["target", "(4, 2)", "(4,)"]),
    ("mse", np.ones((2, 4)), ValueError, ["target", "(4, 2)", "(2, 4)"]),
    ("mse", np.ones((4, 2), complex), TypeError, ["target", "real", "complex128"]),
    ("mse", None, TypeError, ["target", "real"]),
    ("cross_entropy", np.array([0, 1, 2, 0]), ValueError, ["target", "0 to 1", "target[2] is 2"]),
    ("cross_entropy", np.array([0, -1, 1, 0]), ValueError, ["target", "0 to 1", "[1] is -1"]),
    ("cross_entropy", np.array([0.0, 1.0, 0.0, 1.0]), TypeError, ["integer", "float64"]),
    ("cross_entropy", np.array([True] * 4), TypeError, ["integer", "bool"]),
    ("cross_entropy", np.zeros((4, 1), int), ValueError, ["target", "(4,)", "(4, 1)"]),
    ("cross_entropy", np.zeros((4, 2), int), ValueError, ["target", "(4,)", "(4, 2)"]),
    ("cross_entropy", np.zeros(3, int), ValueError, ["target", "(4,)", "(3,)"]),
    ("cross_entropy", np.full(4, 2**63, "uint64"), ValueError, ["target", "0 to 1", str(2**63)]),
    ("binary_cross_entropy", HALF + 1, ValueError, ["target", "[0, 1]", "[0, 0]", "1.5"]),
    ("binary_cross_entropy", -HALF, ValueError, ["target", "[0, 1]", "-0.5"]),
    ("binary_cross_entropy", HALF * np.inf, ValueError, ["target", "[0, 1]", "inf"]),
    ("binary_cross_entropy", np.ones((4, 1)), ValueError, ["target", "(4, 2)", "(4, 1)"]),
]


def assert_untouched(net: vegrad.MLP, call: Any, error: type[Exception], said: list[str]) -> None:
    """Check that the call raises this, and leaves parameters, gradients and flow as they were."""
    net.backward(GOOD, np.zeros(4, int) if net.config["loss"] == "cross_entropy" else HALF)
    arrays = {**net.parameters, **{f"d {name}": g for name, g in net.gradients.items()}}
    before, flow = {name: a.copy() for name, a in arrays.items()}, net.flow
    with pytest.raises(error, match=both(*said)):
        call()
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)
    assert net.flow is flow


@pytest.mark.parametrize(("x", "error", "said"), BAD_X)
def test_data(x: Any, error: type[Exception], said: list[str]) -> None:
    net = vegrad.MLP([3, 5, 2], seed=0)
    assert_untouched(net, lambda: net.backward(x, HALF), error, said)
    assert_untouched(net, lambda: net.loss(x, HALF), error, said)
    assert_untouched(net, lambda: net.forward(x), error, said)


@pytest.mark.parametrize(("loss", "target", "error", "said"), BAD_TARGETS)
def test_targets(loss: str, target: Any, error: type[Exception], said: list[str]) -> None:
    net = vegrad.MLP([3, 5, 2], loss=loss, seed=0)
    assert_untouched(net, lambda: net.backward(GOOD, target), error, said)
    assert_untouched(net, lambda: net.loss(GOOD, target), error, said)


@pytest.mark.parametrize(
    ("batch", "error", "said"),
    [
        (0, ValueError, ["batch", "0"]),
        (-3, ValueError, ["batch", "-3"]),
        (2.0, TypeError, ["batch", "integer", "float"]),
        (True, TypeError, ["batch", "bool"]),
    ],
)
def test_workspace_bytes(batch: Any, error: type[Exception], said: list[str]) -> None:
    with pytest.raises(error, match=both(*said)):
        vegrad.MLP([3, 2]).workspace_bytes(batch)


def test_no_flow_before_the_first_backward() -> None:
    net = vegrad.MLP([3, 2])
    net.forward(np.ones((1, 3)))
    with pytest.raises(RuntimeError, match="backward"):
        _ = net.flow


@pytest.mark.parametrize("name", ["", "sse9", "AVX2 ", "auto"])
def test_unknown_instruction_sets(name: str) -> None:
    before = vegrad.isa()
    with pytest.raises(ValueError, match=both(*sorted(_core.isas(), key=_core.isas().index)[:1])):
        _core.use_isa(name)
    assert vegrad.isa() == before


@both_dtypes
@pytest.mark.parametrize("loss", reference.LOSSES)
def test_the_smallest_networks_are_no_error(isa: str, loss: str, dtype: str) -> None:
    """Depth 1, width 1 and one row are possible, with all that divides by a count or a spread."""
    for sizes in ([1, 1], [1, 1, 1], [3, 1, 1, 3], [1, 4]):
        for norm in reference.NORMS:
            net = vegrad.MLP(sizes, loss=loss, norm=norm, residual=True, dtype=dtype, seed=0)
            labels = np.zeros(1, int) if loss == "cross_entropy" else np.ones((1, sizes[-1]))
            assert np.isfinite(net.backward(np.ones((1, sizes[0])), labels))
            assert all(np.isfinite(g).all() for g in net.gradients.values())
            assert np.isfinite(net.flow.preactivation_std).all()


def layouts(x: np.ndarray) -> Iterator[tuple[str, Any]]:
    wide = np.zeros((2 * len(x), 3 * x.shape[1]), x.dtype)
    wide[::2, ::3] = x
    yield "strided", wide[::2, ::3]
    yield "Fortran", np.asfortranarray(x)
    yield "reversed", x[::-1, ::-1].copy()[::-1, ::-1]
    yield "read-only", np.frombuffer(x.tobytes(), x.dtype).reshape(x.shape)
    yield "big-endian", x.astype(x.dtype.newbyteorder())
    yield "lists", x.tolist()
    for kind in ("float16", "float32", "float64", "int8", "int64", "uint16"):
        yield kind, x.astype(kind)


@both_dtypes
def test_x_of_any_kind_and_layout(isa: str, dtype: str) -> None:
    net, _, target = problem([6, 7, 2], 9, dtype=dtype)
    x = np.random.default_rng(0).integers(0, 5, (9, 6)).astype(dtype)  # right in every kind
    loss, output = net.backward(x, target), net.forward(x)
    gradient = net.gradients["layers.0.weight"].copy()
    for name, same in layouts(x):
        assert net.backward(same, target) == loss, name
        np.testing.assert_array_equal(net.gradients["layers.0.weight"], gradient, err_msg=name)
        np.testing.assert_array_equal(net.forward(same), output, err_msg=name)
    for name, same in layouts(target):
        if "int" not in name and name != "float16":
            want = net.loss(x, np.asarray(same).astype(dtype))
            assert net.loss(x, same) == want, name
    np.testing.assert_array_equal(
        x, np.random.default_rng(0).integers(0, 5, (9, 6))
    )  # the input itself is never written


@both_dtypes
def test_torch_tensors(dtype: str) -> None:
    torch = pytest.importorskip("torch")
    net, x, target = problem([6, 7, 2], 9, dtype=dtype)
    want = net.backward(x, target)
    tensor = torch.from_numpy(x)
    assert net.backward(tensor, torch.from_numpy(target)) == want
    assert net.backward(tensor.clone().requires_grad_(), torch.from_numpy(target)) == want
    columns = torch.from_numpy(x.T.copy()).T
    assert not columns.is_contiguous()
    assert net.backward(columns, target) == want
    assert net.backward(tensor.double(), target) == want
    half = tensor.to(torch.bfloat16)
    assert net.backward(half, target) == net.backward(half.double().numpy(), target)
    labelled, x, labels = problem([6, 7, 2], 9, loss="cross_entropy", dtype=dtype)
    assert labelled.backward(x, torch.from_numpy(labels)) == labelled.backward(x, labels)


# ------------------------------------------------------------------------- what is not finite


@both_dtypes
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
@pytest.mark.parametrize("norm", reference.NORMS)
def test_nonfinite_data_propagates(
    activation: str, norm: str | None, bad: float, dtype: str
) -> None:
    net, x, target = problem([3, 5, 5, 2], 4, activation=activation, norm=norm, dtype=dtype)
    x[2, 1] = bad
    loss = net.backward(x, target)
    if np.isnan(bad):
        assert np.isnan(loss)
        assert np.isnan(net.flow.delta_log2[-1])
        assert np.isnan(net.flow.gradient_log2[-1])
        assert np.isnan(net.gradients["layers.2.bias"]).all()
        assert np.isnan(net.forward(x)[2]).all()
    clean = [0, 1, 3]
    assert np.isfinite(net.forward(x)[clean]).all()
    assert np.isfinite(net.backward(x[clean], target[clean]))  # nothing of it stays behind
    assert np.isfinite(net.flow.delta_log2).all()


@both_dtypes
@pytest.mark.parametrize("loss", reference.LOSSES)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_nonfinite_parameters_propagate(loss: str, bad: float, dtype: str) -> None:
    for name in ("layers.0.weight", "layers.1.bias"):
        net, x, target = problem([3, 5, 2], 4, activation="relu", loss=loss, dtype=dtype)
        net.parameters[name].reshape(-1)[0] = bad
        net.backward(np.abs(x), target > 0 if loss == "binary_cross_entropy" else target)
        assert not np.isfinite(net.flow.activation_rms[-1])
        if np.isnan(bad):
            assert np.isnan(net.flow.delta_log2[-1])


def test_no_array_at_all() -> None:
    with pytest.raises(TypeError, match="x must be an array of real numbers, not NoneType"):
        vegrad.MLP([3, 2]).backward(None, np.ones((1, 2)))


def test_a_nan_target() -> None:
    net, x, target = problem([3, 5, 2], 4)
    target[1, 1] = np.nan
    assert np.isnan(net.backward(x, target))
    assert np.isnan(net.flow.delta_log2).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nan_in_the_target_of_a_network_whose_outputs_overflow(dtype: str) -> None:
    """Outputs beyond the dtype's range have an exponent of their own."""
    net = vegrad.MLP(
        [16] * 301, activation="relu", init="normal", sigma_w=16.0, dtype=dtype, seed=7
    )
    x = np.random.default_rng(0).standard_normal((10, 16))
    target = x.copy()
    target[3, 2] = np.nan
    assert np.isnan(net.backward(x, target))
    assert np.isnan(net.gradients["layers.299.weight"][2]).all()
    assert np.isnan(net.flow.delta_log2).all()


def test_sizes_beyond_any_memory() -> None:
    for sizes in ([2**31 - 1] * 2, [2**31 - 1] * 9):
        with pytest.raises(MemoryError):
            vegrad.MLP(sizes, dtype="float64")


def test_a_parameter_of_another_name_suggests_the_nearest() -> None:
    network = vegrad.MLP([2, 3, 3, 1])
    for arrays in (network.parameters, network.gradients):
        with pytest.raises(KeyError, match=r"no parameter layer.0.weight \(did you mean layers.0"):
            arrays["layer.0.weight"]
    assert network.parameters.get("layer.0.weight") is None

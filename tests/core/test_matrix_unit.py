"""Wide layers, whose products run on the processor's matrix unit where there is one.

`isa` counts that as an instruction set of its own; without one these are tests of the vectors.
"""

import os
import subprocess
import sys

import numpy as np
import pytest
import vegrad
from hypothesis import example, given
from hypothesis import strategies as st
from vegrad import _core

from tests import reference
from tests.core.flow_checks import measure

# Around the unit's tiles of 16 by 32, and the least that it is used for.
WIDE = st.sampled_from([127, 128, 129, 143, 144, 145, 159, 160, 161, 200, 256, 257, 300])
ROWS = st.sampled_from([63, 64, 65, 79, 80, 81, 95, 100, 128, 129, 160])
needs_unit = pytest.mark.skipif(not _core.has_matrix_unit(), reason="no matrix unit")


@pytest.fixture(autouse=True)
def unit_again():
    yield
    _core.use_matrix_unit(_core.has_matrix_unit())


def operands(kind, rows, columns, inner, seed):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((inner, rows) if kind == "tn" else (rows, inner)).astype("float32")
    b = rng.standard_normal((columns, inner) if kind == "nt" else (inner, columns))
    return a, b.astype("float32")


def exact(a, b, kind):
    a, b = a.astype(np.float64), b.astype(np.float64)
    return (a.T if kind == "tn" else a) @ (b.T if kind == "nt" else b)


def off(a, b, kind):
    """The root mean square error of a product, relative to the product's."""
    right = exact(a, b, kind)
    return np.linalg.norm(_core.matmul(a, b, kind) - right) / np.linalg.norm(right)


@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
@given(rows=ROWS, columns=WIDE, inner=WIDE, seed=st.integers(0, 2**20))
@example(64, 128, 1500, 0)
def test_products(isa, kind, rows, columns, inner, seed):
    a, b = operands(kind, rows, columns, inner, seed)
    sizes = exact(np.abs(a), np.abs(b), kind)
    bound = 2 * np.finfo("float32").eps * np.sqrt(inner) * sizes
    assert np.all(np.abs(_core.matmul(a, b, kind) - exact(a, b, kind)) <= bound)


@needs_unit
@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
def test_products_on_the_unit_are_no_less_exact(kind):
    for seed in range(5):
        a, b = operands(kind, 100, 250, 700, seed)
        assert _core.matrix_unit()
        on = off(a, b, kind)
        _core.use_matrix_unit(False)
        without = off(a, b, kind)
        _core.use_matrix_unit(True)
        assert on != without  # the unit is used
        assert on < without


@needs_unit
@pytest.mark.parametrize("scale", [2.0**-60, 2.0**-20, 2.0**60])
def test_products_of_small_and_large_numbers(scale):
    a, b = operands("nt", 64, 200, 300, 0)
    want = _core.matmul(a, b, "nt")
    # Powers of two change no bit as long as all parts are normal numbers.
    np.testing.assert_array_equal(_core.matmul(a * np.float32(scale), b, "nt"), want * scale)


OPTIONS = [
    {"activation": "tanh", "init": "orthogonal"},
    {"activation": "relu", "init": "he_normal", "residual": True},
    {"activation": "gelu", "init": "he_normal", "norm": "layer"},
    {"activation": "sigmoid", "init": "glorot_uniform", "norm": "rms", "residual": True},
    {"activation": "tanh", "init": "normal", "sigma_w": 0.02},  # δ must be scaled on its way
    {"activation": "relu", "init": "normal", "sigma_w": 60.0},
    {"activation": "tanh", "init": "normal", "sigma_w": 1e-14},  # beyond the fast path
]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(
    ("sizes", "rows"),
    [
        ([200, 256, 300, 210, 256, 10], 100),
        ([256] * 8, 65),
        ([300, 513, 300], 64),
        ([128, 130, 160, 128], 100),
    ],
)
def test_networks(isa, sizes, rows, options):
    net = vegrad.MLP(sizes, seed=0, **options)
    rng = np.random.default_rng(0)
    measure(net, rng.standard_normal((rows, sizes[0])), rng.standard_normal((rows, sizes[-1])))


def results(net, x, target):
    loss = net.backward(x, target)
    return [np.array(loss), net.forward(x), *(one.copy() for one in net.gradients.values())]


@needs_unit
@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan, 3e38])
@pytest.mark.parametrize("where", ["x", "layers.0.weight", "layers.2.weight", "layers.1.bias"])
@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_what_is_not_finite_stays_what_it_is(value, where, activation):
    if activation == "relu" and value == 3e38:
        pytest.skip("beside it the others round to the kink")
    rng = np.random.default_rng(0)
    net = vegrad.MLP([200, 256, 256, 256, 200], activation=activation, seed=0)
    x = rng.standard_normal((70, 200)).astype("float32")
    target = rng.standard_normal((70, 200)).astype("float32")
    array = x if where == "x" else net.parameters[where]
    array[(3,) * array.ndim] = value
    on = results(net, x, target)
    _core.use_matrix_unit(False)
    without = results(net, x, target)
    for got, want in zip(on, without, strict=True):
        finite = np.isfinite(want)
        np.testing.assert_array_equal(got[~finite], want[~finite])
        size = np.max(np.abs(want[finite]), initial=0.0)
        np.testing.assert_allclose(got[finite], want[finite], rtol=0, atol=1e-4 * size)


@pytest.mark.parametrize("sizes", [[256] * 6, [300, 520, 520, 300]])
@pytest.mark.parametrize("rows", [64, 130, 300])
@pytest.mark.usefixtures("keep_threads")
def test_every_number_of_threads_gives_the_same_bits(isa, sizes, rows):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, sizes[0])).astype("float32")
    target = rng.standard_normal((rows, sizes[-1])).astype("float32")
    net = vegrad.MLP(sizes, seed=0)
    seen = set()
    for count in (1, 2, 3, 7):
        vegrad.set_num_threads(count)
        seen.add(b"".join(one.tobytes() for one in results(net, x, target)))
        seen.add(b"".join(one.tobytes() for one in results(net, x, target)))
    assert len(seen) == 1


@needs_unit
def test_batches_that_change_and_the_unit_that_comes_and_goes():
    rng = np.random.default_rng(0)
    net = vegrad.MLP([200, 256, 200], seed=0)
    for rows in (33, 64, 300, 80, 63, 65):
        x, target = rng.standard_normal((2, rows, 200)).astype("float32")
        for on in (False, True, False, True):
            _core.use_matrix_unit(on)
            got = results(net, x, target)
            other = vegrad.MLP([200, 256, 200], seed=0)
            fresh = results(other, x, target)
            for one, same in zip(got, fresh, strict=True):
                np.testing.assert_array_equal(one, same)


def test_float64_is_not_for_the_unit(isa):
    rng = np.random.default_rng(0)
    net = vegrad.MLP([200, 256, 200], seed=0, dtype="float64")
    x, target = rng.standard_normal((2, 64, 200))
    net.backward(x, target)
    want = reference.run(net.parameters, x, target, **net.config)
    for name, gradient in net.gradients.items():
        np.testing.assert_allclose(gradient, reference.value(want.gradients[name]), atol=1e-12)


@pytest.mark.parametrize(("value", "answer"), [("0", "False"), ("1", str(_core.has_matrix_unit()))])
def test_the_environment_switches_it(value, answer):
    done = ask({"VEGRAD_AMX": value})
    assert done.stdout.strip() == answer


def test_a_wrong_word_is_told_at_import():
    done = ask({"VEGRAD_AMX": "yes"})
    assert done.returncode != 0
    assert "VEGRAD_AMX must be 0 or 1, not 'yes'" in done.stderr


def ask(environment):
    command = [sys.executable, "-c", "from vegrad import _core; print(_core.matrix_unit())"]
    environment = {**os.environ, **environment}
    return subprocess.run(command, env=environment, capture_output=True, text=True)

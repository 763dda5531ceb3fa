"""No kernel reads or writes beyond a buffer: every block ends, or begins, at a forbidden page.

What users pass is laid out by `guarded`; the network's own memory by VEGRAD_GUARD_PAGES.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from vegrad import _core

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith(("linux", "darwin")), reason="mprotect as Unix has it"
)

HEAD = """
import faulthandler, resource, sys
import numpy as np, vegrad
from vegrad import _core
from tests.core.guarded import forget, guarded

faulthandler.enable()
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
after = sys.argv[1] == "after"
random = np.random.default_rng(0)

def array(*shape, dtype=np.float32):
    return guarded(random.standard_normal(shape).astype(dtype), after)
"""

BUFFERS = """
dtypes = [np.float16, np.float32, np.float64]
try:
    import ml_dtypes
    dtypes.append(ml_dtypes.bfloat16)
except ImportError:
    pass

def layouts(n, dtype):
    yield array(n, dtype=dtype)
    yield array(3, n, dtype=dtype)
    yield array(3, n, dtype=dtype).T
    yield array(2 * n, dtype=dtype)[1::2] if after else array(2 * n, dtype=dtype)[::2]
    yield array(n, dtype=dtype)[::-1]
    yield array(5, n, dtype=dtype)[::2, ::-1]

def measured(n, dtype):
    for x in layouts(n, dtype):
        for ord in (1, 2, 3.5, np.inf):
            vegrad.norm(x, ord=ord)
        vegrad.norms([x, x])
        vegrad.measure(x)

def clipped(n, dtype):
    for clip in (vegrad.clip_by_value_, vegrad.clip_by_norm_, vegrad.clip_by_global_norm_,
                 vegrad.clip_by_block_rms_):
        for limit in (1e-3, 1e6):
            for x in layouts(n, dtype):
                clip([x], limit)
        for x in layouts(n, dtype):
            x[...] = np.nan
            clip([x], 1.0, nonfinite="zero")
    for g, p in zip(layouts(n, dtype), layouts(n, dtype), strict=True):
        vegrad.adaptive_clip_([g], [p], 1e-3)

def stepped(n, dtype):
    makers = [lambda: vegrad.SGD(0.1), lambda: vegrad.SGD(0.1, momentum=0.9, nesterov=True),
              lambda: vegrad.Adam(0.1, amsgrad=True), lambda: vegrad.AdamW(0.1),
              lambda: vegrad.Lion(0.1),
              lambda: vegrad.Adam(0.1, clip=vegrad.clipping.GlobalNorm(1.0)),
              lambda: vegrad.SGD(0.1, clip=vegrad.clipping.Value(0.5))]
    for make in makers:
        for p, g in zip(layouts(n, dtype), layouts(n, dtype), strict=True):
            optimizer = make()
            for _ in range(2):
                optimizer.step([p], [g])

for dtype in dtypes:
    for n in [*range(1, 19), 31, 32, 33, 63, 64, 65, 127, 4095, 4097]:
        measured(n, dtype)
        clipped(n, dtype)
        if dtype in (np.float32, np.float64):
            stepped(n, dtype)
        forget()
print("nothing else was touched")
"""

NETWORKS = """
def passes(sizes, B, dtype, activation="tanh", loss="mse", flow=True, scale=1.0, **options):
    net = vegrad.MLP(sizes, activation=activation, loss=loss, dtype=dtype, seed=0, **options)
    for p in net.parameters.values():
        p *= scale
    x = array(B, sizes[0], dtype=dtype)
    if loss == "cross_entropy":
        target = guarded(random.integers(0, sizes[-1], B), after)
    else:
        target = guarded(random.random((B, sizes[-1])).astype(dtype), after)
    net.forward(x)
    net.loss(x, target)
    net.backward(x, target)
    net._core.backward(x, target, False, net.depth)
    if loss == "mse" and not options:
        given = _core.Network(list(sizes), activation, "identity", "given", None, False,
                              np.dtype(dtype).name)
        out, number = given.forward_kept(x)
        used = sum(p.size for p in given.parameters().values())
        last = list(given.parameters().values())[-1]
        first = list(given.parameters().values())[0]
        begin = first.__array_interface__["data"][0]
        end = last.__array_interface__["data"][0] + last.nbytes
        place = guarded(np.zeros((end - begin) // first.itemsize, dtype), after)
        assert given.backward_kept(number, x, target, True, place) is not None
    forget()

def all_of(dtype):
    for B in (1, 2, 3, 4, 5, 33):
        for sizes in [(1, 1), (17, 1), (1, 17, 1), (5, 7, 3), (33, 17, 1), (31, 63, 33, 2),
                      (64, 65, 64), (129, 130, 127), (300, 5, 300)]:
            passes(sizes, B, dtype)
        for options in ({"norm": "layer"}, {"norm": "rms"}, {"residual": True},
                        {"residual": True, "norm": "layer"}):
            passes((7, 19, 19, 33, 2), B, dtype, **options)
        for activation in _core.ACTIVATIONS:
            passes((3, 17, 5), B, dtype, activation)
        for loss in ("cross_entropy", "binary_cross_entropy"):
            passes((9, 17, 5), B, dtype, loss=loss)
        for scale in (1e-12, 1e12):  # rescaled layers
            passes((9, 17, 19, 5), B, dtype, activation="relu", scale=scale)
            passes((9, 17, 19, 5), B, dtype, residual=True, scale=scale)
    for width in range(1, 40):
        passes((3, width, 1), 1, dtype)
        passes((width, width, width), 2, dtype)
    for B in (64, 67, 128):  # the matrix unit, chains
        passes((128, 129, 131, 128), B, dtype)
        passes((17,) + (19,) * 6 + (5,), B, dtype)
        passes((17,) + (19,) * 6 + (5,), B, dtype, residual=True)

for dtype in (np.float32, np.float64):
    all_of(dtype)
    net = vegrad.MLP((7, 19, 3), dtype=dtype, seed=0)
    net.fit(array(37, 7, dtype=dtype), array(37, 3, dtype=dtype), epochs=2, batch_size=5,
            optimizer=vegrad.Adam(0.01))
for dtype in (np.float32, np.float64):
    for n in range(1, 36):
        for activation in _core.ACTIVATIONS:
            _core.activate(activation, array(n, dtype=dtype), activation in _core.KEPT)
    for m, n, k in [(1, 1, 1), (5, 33, 17), (65, 129, 130), (64, 128, 128), (3, 300, 7)]:
        for kind in ("nt", "nn", "tn"):
            a = array(*((k, m) if kind[0] == "t" else (m, k)), dtype=dtype)
            b = array(*((n, k) if kind[1] == "t" else (k, n)), dtype=dtype)
            _core.matmul(a, b, kind)
print("nothing else was touched")
"""


def run(script: str, isa: str, where: str, **environment: str) -> None:
    amx = "1" if isa == "amx" else "0"
    settings = {
        "VEGRAD_ISA": "avx512" if isa == "amx" else isa,
        "VEGRAD_AMX": amx,
        "VEGRAD_GUARD_PAGES": where,
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
    }
    command = [sys.executable, "-W", "ignore", "-c", HEAD + script, where]
    done = subprocess.run(
        command,
        env=os.environ | settings | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    said = (done.returncode, done.stdout)
    assert said == (0, "nothing else was touched\n"), done.stderr[-4000:]


RECURRENT = """
def passes(cell, sizes, rows, steps, dtype, layers, targets, lengths, windows):
    net = vegrad.RNN(*sizes, cell=cell, layers=layers, targets=targets, dtype=dtype, seed=1)
    x = array(rows, steps, sizes[0], dtype=dtype)
    shape = (rows, steps, sizes[2]) if targets == "all" else (rows, sizes[2])
    target = array(*shape, dtype=dtype)
    if lengths:
        lengths = guarded(random.integers(1, steps + 1, rows), after)
    else:
        lengths = None
    parts = 2 if cell == "lstm" else 1
    state = tuple(array(layers, rows, sizes[1], dtype=dtype) for _ in range(parts))
    net._core.forward(x, lengths, state)
    for window in windows:
        for flow in (False, True):
            assert net._core.backward(x, target, lengths, state, window, None, flow) is not None
    net._core.state()

for number, cell in enumerate(("tanh", "relu", "lstm", "gru")):
    for hidden in (1, 7, 16, 33):
        for rows, steps in ((1, 3), (5, 4), (33, 2)):
            for targets in ("last", "all"):
                dtype = ("float32", "float64")[(hidden + rows) % 2]
                passes(cell, (3, hidden, 2), rows, steps, dtype, 2, targets, hidden == 7,
                       (None, (1, 1), (1, 2)))
print("nothing else was touched")
"""


ISAS = [*_core.isas(), *(["amx"] if _core.has_matrix_unit() else [])]
every_isa = pytest.mark.parametrize("isa", ISAS)
every_side = pytest.mark.parametrize("where", ["after", "before"])


@every_side
@pytest.mark.parametrize("isa", _core.isas())
def test_buffers(isa: str, where: str) -> None:
    run(BUFFERS, isa, where)


@every_side
@every_isa
def test_networks(isa: str, where: str) -> None:
    run(NETWORKS, isa, where, VEGRAD_NUM_THREADS="2")


@every_side
@pytest.mark.parametrize("isa", _core.isas())
def test_recurrent_networks(isa: str, where: str) -> None:
    run(RECURRENT, isa, where, VEGRAD_NUM_THREADS="2")


def test_the_guard_is_there() -> None:
    """A read of one element beyond the end ends the process: else the tests above prove nothing."""
    beyond = "np.lib.stride_tricks.as_strided(array(5), (6,)).sum()"
    with pytest.raises(AssertionError):
        run(beyond, _core.isas()[0], "after")


def test_a_wrong_name_is_refused() -> None:
    script = """
try:
    vegrad.MLP((1, 1))
except ValueError as error:
    assert "VEGRAD_GUARD_PAGES must be before or after, not 'around'" in str(error), error
    print("nothing else was touched")
"""
    run(script, _core.isas()[0], "around")

"""What clipping must never touch: read-only pages, neighbours, anything when it refuses."""

import copy
import math
import os
import signal
import subprocess
import sys
import time
from typing import Any

import numpy as np
import pytest
import vegrad

from tests import reference_clipping as reference
from tests.reference_buffers import FORMATS, assert_rounded, make
from tests.test_clipping import FUNCTIONS, POLICIES, build, every_dtype, every_function, some_limit

# ------------------------------------------------------------------------ what is not written

READ_ONLY = """
import ctypes, mmap, resource, sys
import numpy as np, vegrad
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
pages = []

def read_only(values):
    memory = mmap.mmap(-1, 2 * mmap.PAGESIZE)
    array = np.frombuffer(memory, values.dtype, values.size).reshape(values.shape)
    array[...] = values
    assert array.flags.writeable
    address = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    protect = ctypes.CDLL(None, use_errno=True).mprotect
    assert protect(ctypes.c_void_p(address), ctypes.c_size_t(len(memory)), mmap.PROT_READ) == 0
    pages.append(memory)
    return array

for dtype in (np.float16, np.float32, np.float64):
    g = read_only(np.linspace(-1, 1, 301).astype(dtype))
    m = read_only(np.linspace(-1, 1, 300).astype(dtype).reshape(20, 15))
    large = np.full((4, 5), 100.0, dtype)
    bad = np.full(7, np.nan, dtype)
    if sys.argv[1] == "write":
        vegrad.clip_by_global_norm_([m, g], 1.0)
    for grads in ([g, m], [m.T, g[::2]]):
        ones = [np.ones(x.shape) for x in grads]
        assert not vegrad.clip_by_global_norm_(grads, 1e4).clipped
        assert not vegrad.clip_by_global_norm_(grads, None).clipped
        assert not vegrad.clip_by_value_(grads, 1.0).clipped
        assert not vegrad.clip_by_norm_(grads, 1e4).clipped
        assert not vegrad.clip_by_block_rms_(grads, 1.0).clipped
        assert not vegrad.adaptive_clip_(grads, ones, 1e3).clipped
        # One buffer is clipped, the others are not written for that.
        assert vegrad.clip_by_norm_([*grads, large.copy()], 50.0).clipped
        assert vegrad.clip_by_value_([*grads, large.copy()], 1.0).clipped
        assert vegrad.clip_by_block_rms_([*grads, large.copy()], 1.0).clipped
        assert vegrad.adaptive_clip_([*grads, large.copy()], [*ones, large * 0], 1e3).clipped
        for clip in (vegrad.clip_by_global_norm_, vegrad.clip_by_value_, vegrad.clip_by_norm_):
            assert clip([*grads, bad], 1e-3, nonfinite="skip").skipped
            assert clip([*grads, bad.copy()], 1e4, nonfinite="zero").nonfinite == 7
            try:
                clip([*grads, bad], 1e-3)
            except vegrad.NonFiniteGradientError as error:
                assert error.name == 2
            else:
                raise AssertionError("no error")
print("nothing was written")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="mprotect as Linux has it")
@pytest.mark.parametrize("threads", ["1", "3"])
def test_nothing_is_written_when_nothing_is_clipped(isa: str, threads: str) -> None:
    environment = os.environ | {"VEGRAD_ISA": isa, "VEGRAD_NUM_THREADS": threads}

    def run(mode: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-c", READ_ONLY, mode]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    done = run("read")
    assert (done.returncode, done.stdout) == (0, "nothing was written\n"), done.stderr
    if threads == "1":  # and a write would have been seen
        assert run("write").returncode == -signal.SIGSEGV


# ---------------------------------------------------------------------------------- in PyTorch


@every_function
@every_dtype
def test_torch_tensors_in_place(isa: str, function: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    kind = getattr(torch, dtype)
    whole = torch.randn((6, 10, 7), generator=torch.Generator().manual_seed(0)).to(kind)
    views = [
        lambda t: t, lambda t: t.permute(2, 0, 1), lambda t: t[1::2, ::3], lambda t: t[0, 0, 0],
        lambda t: t[:0], lambda t: t.requires_grad_()[1:], lambda t: t[:, 4:9:2].mT,
    ]  # fmt: skip
    for view in views:
        base = whole.clone()
        tensor = view(base)
        copy = base.detach().clone()
        twin = view(copy.requires_grad_(False)).detach()
        exact = tensor.detach().double().numpy()
        params = [np.ones(exact.shape)]
        limit = some_limit(function, [exact], params, 0.3)
        call, formula, _, p = FUNCTIONS[function]
        want = reference.clip(formula(params, limit, [dtype]), [exact], p=p)
        said = call([tensor], params, limit)
        assert said.clipped == want.clipped
        assert_rounded(tensor.detach().double().numpy(), want.grads[0], dtype)
        twin.copy_(tensor.detach())  # beside the view nothing has changed
        assert torch.equal(base.detach(), copy.detach())


def test_gradients_of_a_module_as_torch_clips_them() -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(5, 40), torch.nn.Tanh(), torch.nn.Linear(40, 2))
    model[2].bias.requires_grad_(False)
    model(100 * torch.ones(3, 5)).square().sum().backward()
    theirs = [p.grad.clone() for p in model.parameters() if p.grad is not None]
    ours = [p.grad for p in model.parameters()]
    twins = [torch.nn.Parameter(torch.zeros_like(g)) for g in theirs]
    for twin, grad in zip(twins, theirs, strict=True):
        twin.grad = grad
    total = float(torch.nn.utils.clip_grad_norm_(twins, 0.25))
    said = vegrad.clip_by_global_norm_(ours, 0.25)
    assert said.norm == pytest.approx(total, rel=1e-6)
    for mine, their in zip([g for g in ours if g is not None], theirs, strict=True):
        torch.testing.assert_close(mine, their, rtol=1e-5, atol=0.0)
    assert not vegrad.clip_by_global_norm_((p.grad for p in model.parameters()), 0.25).clipped


# ---------------------------------------------------------------------------- what is not finite

BAD = [np.nan, np.inf, -np.inf]


def with_bad(dtype: str, bad: float) -> tuple[list[Any], list[Any], list[np.ndarray]]:
    """Three buffers; the first element that is not finite is [1, 2] of the second."""
    cases = [((5,), "plain", "stepped"), ((4, 3), "plain", "transposed"), ((9,), "wide", "offset")]
    grads, params, bases = build(cases, [dtype] * 3, 0)
    grads[1][1, 2], grads[1][3, 0], grads[2][4] = bad, np.nan, np.inf
    return grads, params, bases


@every_function
@every_dtype
@pytest.mark.parametrize("bad", BAD)
def test_raise_is_atomic_and_names_the_place(
    isa: str, function: str, dtype: str, bad: float
) -> None:
    call = FUNCTIONS[function].call
    grads, params, bases = with_bad(dtype, bad)
    before = [base.tobytes() for base in bases]
    names = ["first", "layers.3.weight", "last"]
    ways = [
        (grads, params, 'grads[1]', 1),
        ([None, *grads], [None, *params], 'grads[2]', 2),
        (dict(zip(names, grads, strict=True)), dict(zip(names, params, strict=True)),
         'grads["layers.3.weight"]', "layers.3.weight"),
        (iter(grads), params, 'grads[1]', 1),
        (grads[1], params[1], "grads", None),
    ]  # fmt: skip
    for passed, beside, label, name in ways:
        with pytest.raises(vegrad.NonFiniteGradientError) as caught:
            call(passed, beside, 0.01)
        error = caught.value
        assert isinstance(error, ValueError)
        assert (error.name, error.index) == (name, (1, 2))
        assert f"{label}" in str(error)
        assert "1, 2" in str(error)
        assert str(bad) in str(error)
        assert [base.tobytes() for base in bases] == before


@every_function
@every_dtype
@pytest.mark.parametrize("bad", BAD)
def test_skip_changes_nothing(isa: str, function: str, dtype: str, bad: float) -> None:
    grads, params, bases = with_bad(dtype, bad)
    before = [base.tobytes() for base in bases]
    said = FUNCTIONS[function].call(grads, params, 0.01, nonfinite="skip")
    assert [base.tobytes() for base in bases] == before
    assert (said.skipped, said.clipped, said.nonfinite, said.coefficient) == (True, False, 3, 1.0)
    assert not np.isfinite([said.norm, *said.norms[1:]]).any()
    assert np.isfinite(said.norms[0])


@pytest.mark.parametrize("policy", POLICIES)
def test_an_index_has_as_many_numbers_as_the_shape(policy: str) -> None:
    for shape in [(), (3,), (2, 3, 4, 5)]:
        g = np.ones(shape, np.float32)
        g[(-1,) * len(shape)] = np.nan
        if policy == "raise":
            with pytest.raises(vegrad.NonFiniteGradientError) as caught:
                vegrad.clip_by_value_(g, 2.0)
            assert caught.value.index == tuple(n - 1 for n in shape)
            continue
        said = vegrad.clip_by_value_(g, 2.0, nonfinite=policy)
        assert said.nonfinite == 1
        assert np.isnan(g).any() == (policy != "zero")


# ------------------------------------------------------------------------- the same memory twice

X = np.ones((8, 6), np.float32)
OVERLAPS = {
    "the same": [X, X],
    "the same, seen otherwise": [X, X.T],
    "in part": [X[:5], X[4:]],
    "one inside the other": [X, X[3, 2:4]],
    "one element": [X[:, 0], X[7, :]],
    "steps that meet": [X.reshape(-1)[::2], X.reshape(-1)[::3]],
    "other dtypes": [X, X.view(np.float16)[2:3, 4:5]],
    "half of an element": [X[0, 0:2], X.view(np.float16)[0, 3:4]],
    "reversed": [X[::-1], X[0]],
}
APART = {
    "columns": [X[:, ::2], X[:, 1::2]],
    "rows": [X[::2], X[1::2]],
    "corners": [X[:4, :3], X[:4, 3:], X[4:, :3], X[4:, 3:]],
    "steps that pass by": [X.reshape(-1)[::4], X.reshape(-1)[2::4], X.reshape(-1)[1::2]],
    "every column": [X[:, k] for k in range(6)],
    "nothing of the same": [X, X[:0], X[3:3, 2]],
    "neighbours": [X.reshape(-1)[:7], X.reshape(-1)[7:]],
    "diagonal beside a row": [X[:6].diagonal(), X[6]],
}


def writable(views: list[np.ndarray]) -> list[np.ndarray]:
    """`diagonal` gives a read-only view of memory that may be written."""
    for view in views:
        view.flags.writeable = True
    return views


@every_function
@pytest.mark.parametrize("how", list(OVERLAPS))
def test_overlapping_buffers(function: str, how: str) -> None:
    views = OVERLAPS[how]
    params = [np.ones(view.shape) for view in views]
    other = np.full(3, 9.0)
    for passed, beside, one, two in [
        (views, params, "grads[0]", "grads[1]"),
        ([other, None, *views], [other * 1, None, *params], "grads[2]", "grads[3]"),
        ({"a": views[0], "x": other, "b": views[1]},
         {"a": params[0], "x": other * 1, "b": params[1]}, 'grads["a"]', 'grads["b"]'),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=r"memory|overlap|twice|share") as caught:
            FUNCTIONS[function].call(passed, beside, 0.01)
        assert one in str(caught.value)
        assert two in str(caught.value)
        assert not isinstance(caught.value, vegrad.NonFiniteGradientError)
        assert (X == 1).all()
        assert (other == 9).all()
    assert vegrad.norm(views) > 0  # measuring is no matter


@every_function
@pytest.mark.parametrize("how", list(APART))
def test_interleaved_buffers_that_share_nothing(function: str, how: str) -> None:
    views = writable(APART[how])
    try:
        said = FUNCTIONS[function].call(views, [np.ones(view.shape) for view in views], 1e-3)
        assert said.clipped
        assert all((view != 1).all() for view in views if view.size)
    finally:
        X[...] = 1


@every_function
def test_a_buffer_that_overlaps_itself(function: str) -> None:
    memory = np.ones(12, np.float32)
    windows = np.lib.stride_tricks.as_strided
    for shape, strides in [((5,), (0,)), ((3, 4), (0, 4)), ((4, 3), (4, 4)), ((3, 2), (4, 8))]:
        view = windows(memory, shape, strides)
        with pytest.raises(ValueError, match=r"grads\[1\]"):
            FUNCTIONS[function].call([np.ones(2), view], [np.ones(2), np.ones(shape)], 0.01)
        assert (memory == 1).all()
    for shape, strides in [((1,), (0,)), ((3, 4), (16, 4)), ((1, 5), (0, 8)), ((2, 3), (4, 8))]:
        view = windows(memory, shape, strides)
        assert FUNCTIONS[function].call([view], [np.ones(shape)], 1e-3).clipped
        memory[:] = 1


@pytest.mark.parametrize("function", ["global", "adaptive"])
def test_many_interleaved_columns(function: str) -> None:
    """Every pair of ranges overlaps, no pair of columns does; all the same it is quick."""
    matrix = np.ones((30, 2000), np.float32)
    columns = [matrix[:, k] for k in range(2000)]
    params = [np.ones(30)] * 2000
    began = time.process_time()
    assert FUNCTIONS[function].call(columns, params, 1e-3).clipped
    assert time.process_time() - began < 5.0  # of this process, whatever else runs
    before = matrix.tobytes()
    with pytest.raises(ValueError, match=r"grads\[1234\].*grads\[2000\]"):
        FUNCTIONS[function].call([*columns, matrix[5:6, 1234]], [*params, np.ones(1)], 1e-6)
    assert matrix.tobytes() == before


def test_parameters_that_are_the_gradients() -> None:
    g = np.ones((4, 3), np.float32)
    for params in (g, g[::-1]):
        with pytest.raises(ValueError, match=r"(?s)params.*grads|grads.*params"):
            vegrad.adaptive_clip_(g, params)
        assert (g == 1).all()
    assert vegrad.adaptive_clip_(g, g.copy()).clipped


# --------------------------------------------------------------------------- the processor's mode


@every_function
def test_the_callers_flushing_of_subnormals_changes_nothing(isa: str, function: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.set_flush_denormal(False):
        pytest.skip("this processor cannot flush")

    # Made before: NumPy's own conversions would flush as well.
    made = [
        (dtype, build([((50, 3), kind, "contiguous") for kind in ("tiny", "wide")], [dtype] * 2, 0))
        for dtype in ("float16", "float32", "float64")
    ]
    limits = {dtype: (1e-2, 1e-310, math.ldexp(40.0, FORMATS[dtype].smallest)) for dtype, _ in made}

    def clip() -> list[bytes]:
        seen = []
        for dtype, (made_grads, params, _) in made:
            grads = copy.deepcopy(made_grads)
            for limit in limits[dtype]:
                said = FUNCTIONS[function].call(grads, params, limit)
                numbers = np.array([said.norm, said.norm_after, said.coefficient, *said.norms])
                seen += [numbers.tobytes(), *(g.tobytes() for g in grads)]
        return seen

    want = clip()
    tiny = torch.tensor([2.0**-126])
    try:
        assert torch.set_flush_denormal(True)
        if (tiny * 0.5).item() != 0:
            pytest.skip("flushing is not to be had")
        got = clip()
        assert (tiny * 0.5).item() == 0  # and the caller's mode is still the caller's
    finally:
        torch.set_flush_denormal(False)
    assert got == want


def test_the_callers_flushing_does_not_change_what_is_measured(isa: str) -> None:
    torch = pytest.importorskip("torch")
    rng = np.random.default_rng(0)
    arrays = [make(rng, dtype, (50,), "tiny") for dtype in ("float16", "float32", "float64")]
    calls = (
        lambda: vegrad.norms(arrays).tobytes(),
        lambda: vegrad.norms(arrays, ord=1).tobytes(),
        lambda: np.array(vegrad.norm(arrays[2])).tobytes(),
        lambda: vegrad.measure(arrays, histogram=True).to_dict(),
    )
    want = [call() for call in calls]
    try:
        torch.set_flush_denormal(True)
        got = [call() for call in calls]
    finally:
        torch.set_flush_denormal(False)
    assert repr(got) == repr(want)  # Python itself prints subnormals wrong while they are flushed

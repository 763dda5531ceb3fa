"""Buffers that may be clipped and measured, and the errors for others: wanted and got.

After an error not one byte has changed anywhere: every bad buffer comes after a good one that
the limit would have clipped.
"""

import math
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad

GOOD = np.full((4, 3), 9.0, np.float32)


def in_order(*parts: str) -> str:
    """Return a pattern that matches all the parts, in this order."""
    return "(?s)" + ".*".join(re.escape(part) for part in parts)


# (grads, params) -> Clipped; the limits are far below `GOOD`.
CLIPPING: dict[str, Callable[[Any, Any], Any]] = {
    "clip_by_value_": lambda g, w: vegrad.clip_by_value_(g, 1e-3),
    "clip_by_norm_": lambda g, w: vegrad.clip_by_norm_(g, 1e-3),
    "clip_by_global_norm_": lambda g, w: vegrad.clip_by_global_norm_(g, 1e-3),
    "only measured": lambda g, w: vegrad.clip_by_global_norm_(g, None),
    "clip_by_block_rms_": lambda g, w: vegrad.clip_by_block_rms_(g, 1e-3),
    "adaptive_clip_": lambda g, w: vegrad.adaptive_clip_(g, w, 1e-3),
    "Norm": lambda g, w: vegrad.clipping.Norm(1e-3).apply_(g),
    "AutoClip": lambda g, w: vegrad.clipping.AutoClip().apply_(g),
    "AdaGC": lambda g, w: vegrad.clipping.AdaGC().apply_(g),
}
MEASURING: dict[str, Callable[[Any], Any]] = {
    "norm": vegrad.norm,
    "norms": vegrad.norms,
    "measure": vegrad.measure,
}
WRITING = [clip for clip in CLIPPING if clip != "only measured"]
every_clip = pytest.mark.parametrize("clip", list(CLIPPING))
every_measure = pytest.mark.parametrize("measure", list(MEASURING))

ALLOWED = "float16, bfloat16, float32 or float64"
# Values that are never a buffer.
BAD: dict[str, tuple[Any, type[Exception], list[str]]] = {
    "list of floats": ([1.0, 2.0], TypeError, ["[0]", "float"]),
    "float": (1.5, TypeError, ["float"]),
    "text": ("abc", TypeError, ["str"]),
    "bytes": (b"abcd", TypeError, ["bytes"]),
    "object": (object(), TypeError, ["object"]),
    "integers": (np.ones((4, 3), np.int64), TypeError, [ALLOWED, "not int64"]),
    "bytes array": (np.ones((4, 3), np.uint8), TypeError, [ALLOWED, "not uint8"]),
    "bool": (np.ones((4, 3), bool), TypeError, [ALLOWED, "not bool"]),
    "complex": (np.ones((4, 3), np.complex64), TypeError, [ALLOWED, "not complex64"]),
    "complex128": (np.ones((4, 3), complex), TypeError, [ALLOWED, "not complex128"]),
    "objects": (np.full((4, 3), None), TypeError, [ALLOWED, "not object"]),
    "strings": (np.full((4, 3), "a"), TypeError, [ALLOWED, "not <U1"]),
    "dates": (np.ones((4, 3), "datetime64[s]"), TypeError, [ALLOWED, "not datetime64[s]"]),
    "record": (np.ones((4, 3), [("a", "f4")]), TypeError, [ALLOWED, "not"]),
    "other byte order": (
        np.ones((4, 3), np.dtype("f4").newbyteorder()),
        TypeError,
        [ALLOWED, "not", ">f4"],
    ),
}
if np.dtype(np.longdouble) != np.dtype(np.float64):
    kind = np.dtype(np.longdouble).name
    BAD["long double"] = (np.ones((4, 3), np.longdouble), TypeError, [ALLOWED, f"not {kind}"])


def refuses(call: Callable[[], Any], error: Any, said: list[str], *untouched: Any) -> None:
    before = [array.tobytes() for array in untouched]
    with pytest.raises(error, match=in_order(*said)):
        call()
    assert [array.tobytes() for array in untouched] == before


@every_clip
@pytest.mark.parametrize("what", list(BAD))
def test_no_buffers_to_clip(clip: str, what: str) -> None:
    bad, error, said = BAD[what]
    good, w = GOOD.copy(), np.ones((4, 3))
    call = CLIPPING[clip]
    refuses(lambda: call([good, bad], [w, w]), error, ["grads[1]", *said], good)
    refuses(lambda: call([good, None, bad], [w, w, w]), error, ["grads[2]", *said], good)
    label = 'grads["layers.3.weight"]'
    grads = {"first": good, "layers.3.weight": bad}
    refuses(lambda: call(grads, dict.fromkeys(grads, w)), error, [label, *said], good)
    refuses(lambda: call(iter([good, bad]), [w, w]), error, ["grads[1]", *said], good)
    if isinstance(bad, np.ndarray):
        refuses(lambda: call(bad, w), error, ["grads", *said])


@every_measure
@pytest.mark.parametrize("what", list(BAD))
def test_no_buffers_to_measure(measure: str, what: str) -> None:
    bad, error, said = BAD[what]
    call = MEASURING[measure]
    refuses(lambda: call([GOOD, bad]), error, ["buffers[1]", *said])
    refuses(lambda: call({"a": GOOD, "b": bad}), error, ['buffers["b"]', *said])
    if isinstance(bad, np.ndarray):
        refuses(lambda: call(bad), error, ["buffers", *said])


@every_measure
@pytest.mark.parametrize("bad", [None, 1.5, "abc", object(), 3, 2j, np.float32])
def test_no_buffers_at_all(measure: str, bad: Any) -> None:
    name = "None" if bad is None else type(bad).__name__
    refuses(lambda: MEASURING[measure](bad), TypeError, ["buffers", name])
    refuses(lambda: vegrad.clip_by_global_norm_(bad, 1.0), TypeError, ["grads", name])


@pytest.mark.parametrize(
    ("passed", "label"),
    [
        ([1.0, 2.0], "[0]"),
        ([[1.0]], "[0][0]"),
        ({"a": [1.0]}, '["a"][0]'),
        ([(GOOD, 1.0)], "[0][1]"),
    ],
    ids=str,
)
def test_lists_of_numbers(passed: Any, label: str) -> None:
    refuses(lambda: vegrad.norm(passed), TypeError, ["buffers" + label, "float"])
    refuses(lambda: vegrad.clip_by_value_(passed, 1.0), TypeError, ["grads" + label, "float"], GOOD)


# ------------------------------------------------------------------------------------ read-only


@pytest.mark.parametrize("clip", WRITING)
def test_read_only_arrays(clip: str) -> None:
    good, w = GOOD.copy(), np.ones((4, 3))
    bad = np.frombuffer(GOOD.tobytes(), np.float32).reshape(4, 3)
    call = CLIPPING[clip]
    for said, grads, params in [
        (["grads[1]", "read-only"], [good, bad], [w, w]),
        (['grads["b"]', "read-only"], {"a": good, "b": bad}, {"a": w, "b": w}),
        (["grads", "read-only"], bad, w),
        (["grads[0]", "read-only"], [np.broadcast_to(np.float32(2), (4, 3))], [w]),
    ]:
        refuses(lambda g=grads, p=params: call(g, p), ValueError, said, good, bad)
    assert vegrad.norm(bad) == vegrad.clip_by_global_norm_(bad, None).norm == vegrad.norm(GOOD)


@pytest.mark.parametrize("clip", WRITING)
def test_jax_arrays_are_only_measured(clip: str) -> None:
    jax = pytest.importorskip("jax")
    array, good, w = jax.numpy.ones((4, 3)), GOOD.copy(), np.ones((4, 3))
    call = CLIPPING[clip]
    said = [
        "grads[1]",
        "read-only array of JAX, which never changes: pass a copy, np.array() of it",
    ]
    refuses(lambda: call([good, array], [w, w]), ValueError, said, good)
    assert vegrad.clip_by_global_norm_([array], None).norm == vegrad.norm(w)
    np.testing.assert_array_equal(array, w)


def test_jax_arrays_that_have_no_values() -> None:
    jax = pytest.importorskip("jax")
    deleted, donated = jax.numpy.ones(3), jax.numpy.ones(3)
    deleted.delete()
    jax.jit(lambda x: x + 1, donate_argnums=0)(donated).block_until_ready()
    for bad in (deleted, donated):
        with pytest.raises(ValueError, match=r'buffers\["b"\] was deleted or donated: pass what'):
            vegrad.norm({"a": GOOD, "b": bad})
    for traced in (jax.jit(lambda x: vegrad.norm([x])), jax.vmap(lambda x: vegrad.norm([x]))):
        with pytest.raises(
            TypeError, match=r"buffers\[0\] .*Tracer: inside jit and vmap it has no"
        ):
            traced(jax.numpy.ones((2, 3)))


def test_jax_arrays_on_several_devices() -> None:
    """JAX has to be told of these before it starts."""
    pytest.importorskip("jax")
    code = """
import os
os.environ |= {"XLA_FLAGS": "--xla_force_host_platform_device_count=2", "JAX_PLATFORMS": "cpu"}
import jax, numpy as np, vegrad
from jax.sharding import Mesh, NamedSharding, PartitionSpec
mesh = Mesh(np.array(jax.devices()), ("d",))
for spec in (PartitionSpec("d"), PartitionSpec()):
    try:
        vegrad.norm([jax.device_put(np.ones((4, 2)), NamedSharding(mesh, spec))])
    except TypeError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [
        "buffers[0] must be on one device, not in parts on 2: pass np.asarray() of it",
        "buffers[0] must be on one device, not replicated on 2: pass np.asarray() of it",
    ]


# ---------------------------------------------------------------------------------------- torch


@every_clip
def test_tensors_that_are_no_buffers(clip: str) -> None:
    torch = pytest.importorskip("torch")
    good, w = GOOD.copy(), np.ones((4, 3))
    meta, call = torch.empty((4, 3), device="meta"), CLIPPING[clip]
    for bad, said in [
        (torch.ones((4, 3), dtype=torch.int64), [ALLOWED, "not", "int64"]),
        (torch.ones((4, 3), dtype=torch.complex64), [ALLOWED, "not", "complex64"]),
        (torch.ones((4, 3), dtype=torch.bool), [ALLOWED, "not", "bool"]),
        (torch.ones((4, 3)).to(torch.float8_e5m2), [ALLOWED, "not", "float8_e5m2"]),
        (meta, ["CPU", "meta"]),
        (torch.ones((4, 3)).to_sparse(), ["sparse"]),
    ]:
        refuses(lambda b=bad: call([good, b], [w, w]), TypeError, ["grads[1]", *said], good)
        refuses(lambda b=bad: vegrad.norm([good, b]), TypeError, ["buffers[1]", *said])
        refuses(lambda b=bad: vegrad.measure({"a": b}), TypeError, ['buffers["a"]', *said])


WITHOUT_MEMORY = """
import numpy as np, torch, vegrad
from torch._subclasses.fake_tensor import FakeTensorMode

freed = torch.ones(1000)
freed.untyped_storage().resize_(0)  # FSDP does this between uses
with FakeTensorMode():
    fake = torch.ones(1000)
for bad in (freed, fake, torch._efficientzerotensor((1000,))):
    good = np.full(3, 9.0)
    for call in (vegrad.norm, vegrad.measure, lambda g: vegrad.clip_by_value_(g, 1e-3)):
        try:
            call([good, bad])
        except (TypeError, ValueError) as error:
            assert "[1]" in str(error), error
        else:
            raise AssertionError(f"no error for {type(bad)}")
    assert (good == 9).all()
print("refused")
"""


def test_tensors_without_memory() -> None:
    """Tensors at address 0 give an error, not a crash."""
    pytest.importorskip("torch")
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_MEMORY]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


@pytest.mark.parametrize("values", [[1.0, 2.0, 3.0], [2.0]])
def test_a_tensor_that_is_negated_when_read(values: list[float]) -> None:
    """The memory of such a tensor holds the negated values; that of a single one is dense."""
    torch = pytest.importorskip("torch")
    negative = torch.complex(torch.zeros(len(values)), torch.tensor(values)).conj().imag
    assert negative.is_neg()
    assert negative.tolist() == [-value for value in values]
    refuses(lambda: vegrad.measure(negative), TypeError, ["buffers", "negative bit", "resolve_neg"])
    refuses(lambda: vegrad.clip_by_norm_([negative], 1), TypeError, ["grads[0]", "resolve_neg"])
    step = [np.zeros(len(values), np.float32)], [negative]
    refuses(lambda: vegrad.SGD().step(*step), TypeError, ["grads[0]", "resolve_neg"])
    assert vegrad.measure(negative.resolve_neg()).total.mean == -2.0


@every_clip
def test_tensors_on_another_device(clip: str) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("no CUDA here; the device `meta` stands for it above")
    good, bad, w = GOOD.copy(), torch.ones((4, 3), device="cuda"), np.ones((4, 3))
    said = ["grads[1]", "CPU", "cuda:0"]
    refuses(lambda: CLIPPING[clip]([good, bad], [w, w]), TypeError, said, good)
    refuses(lambda: vegrad.norm(bad), TypeError, ["buffers", "CPU", "cuda:0"])


class Elsewhere:
    """A buffer on another device that speaks DLPack, as CUDA tensors of all libraries do."""

    shape, dtype = (4, 3), "float32"

    def __dlpack_device__(self) -> tuple[int, int]:
        return (2, 0)

    def __dlpack__(self, **_: Any) -> Any:
        raise AssertionError("asked for its memory all the same")


@every_clip
def test_any_buffer_on_another_device(clip: str) -> None:
    good, w = GOOD.copy(), np.ones((4, 3))
    call = CLIPPING[clip]
    refuses(lambda: call([good, Elsewhere()], [w, w]), TypeError, ["grads[1]", "CPU", "cuda"], good)
    refuses(lambda: vegrad.norm([Elsewhere()]), TypeError, ["buffers[0]", "CPU", "cuda"])


# ----------------------------------------------------------------------------------- generators


@every_clip
def test_generators(clip: str) -> None:
    """Iterators are read once; one that yields nothing is an error, but an empty list is not."""
    good, w = GOOD.copy(), np.ones((4, 3))
    call = CLIPPING[clip]
    items = (g for g in [good, None])
    said = call(items, [w, None])
    assert said.norm == pytest.approx(9.0 * math.sqrt(12))
    refuses(lambda: call(items, [w, None]), ValueError, ["grads", "yields nothing"], good)
    refuses(lambda: call(iter([]), []), ValueError, ["grads", "yields nothing"])
    assert call([], []).norm == 0.0

    def breaks() -> Any:
        yield good
        raise RuntimeError("in the middle")

    refuses(lambda: call(breaks(), [w]), RuntimeError, ["in the middle"], good)


@every_measure
def test_generators_to_measure(measure: str) -> None:
    refuses(lambda: MEASURING[measure](iter([])), ValueError, ["buffers", "yields nothing"])
    refuses(lambda: MEASURING[measure](g for g in ()), ValueError, ["buffers", "yields nothing"])


# ----------------------------------------------------------------------------------- thresholds

LIMITS: dict[str, tuple[Callable[..., Any], str]] = {
    "clip_by_value_": (vegrad.clip_by_value_, "limit"),
    "clip_by_norm_": (vegrad.clip_by_norm_, "max_norm"),
    "clip_by_global_norm_": (vegrad.clip_by_global_norm_, "max_norm"),
    "clip_by_block_rms_": (vegrad.clip_by_block_rms_, "max_rms"),
    "adaptive_clip_": (lambda g, x, **kw: vegrad.adaptive_clip_(g, g * 2, x, **kw), "clipping"),
    "eps": (lambda g, x, **kw: vegrad.adaptive_clip_(g, g * 2, eps=x, **kw), "eps"),
}
NOT_NUMBERS = ["1", True, 1j, [1.0], np.ones(2), object()]


@pytest.mark.parametrize("function", list(LIMITS))
def test_thresholds(function: str) -> None:
    clip, name = LIMITS[function]
    g = GOOD.copy()
    for bad in (-1.0, -1e-300, math.nan, -math.inf, -3, np.float32(-2.0)):
        shown = f"{float(bad):g}" if bad != -3 else "-3"
        refuses(lambda b=bad: clip(g, b), ValueError, [name, shown], g)
    for bad in [*NOT_NUMBERS, *([] if function.endswith("norm_") else [None])]:
        shown = "None" if bad is None else type(bad).__name__
        refuses(lambda b=bad: clip(g, b), TypeError, [name, "number", shown], g)
    for good in (2, np.float32(2.0), np.int64(2), np.float64(2.0)):  # any real number will do
        clip(GOOD.copy(), good)


@pytest.mark.parametrize("bad", [0, -1, -0.5, math.nan, -math.inf])
def test_ord(bad: float) -> None:
    g = GOOD.copy()
    for call in (
        lambda: vegrad.norm(g, ord=bad),
        lambda: vegrad.norms([g], ord=bad),
        lambda: vegrad.clip_by_norm_(g, 1.0, ord=bad),
        lambda: vegrad.clip_by_global_norm_(g, 1.0, ord=bad),
        lambda: vegrad.clip_by_global_norm_(g, None, ord=bad),
    ):
        refuses(call, ValueError, ["ord", f"{bad:g}"], g)


@pytest.mark.parametrize("bad", ["fro", None, True, 2j])
def test_ord_that_is_no_number(bad: Any) -> None:
    g = GOOD.copy()
    shown = "None" if bad is None else type(bad).__name__
    refuses(lambda: vegrad.norm(g, ord=bad), TypeError, ["ord", "number", shown])
    refuses(lambda: vegrad.clip_by_norm_(g, 1.0, ord=bad), TypeError, ["ord", "number", shown], g)


@pytest.mark.parametrize("bad", ["", "Raise", "ignore", "zeros"])
def test_nonfinite(bad: str) -> None:
    g = GOOD.copy()
    said = ["nonfinite", "raise", "skip", "zero", "propagate", repr(bad)]
    for clip, _ in LIMITS.values():
        refuses(lambda c=clip: c(g, 1e-3, nonfinite=bad), ValueError, said, g)


# -------------------------------------------------------------------------------- grads and params


def test_parameters_that_do_not_fit() -> None:
    g, h, w = GOOD.copy(), np.full(5, 9.0), np.ones((4, 3))
    rule = vegrad.clipping.Adaptive()
    for grads, params, error, said in [
        ({"a": g, "b": h}, {"a": w, "c": h * 1}, ValueError, ["params", "b"]),
        ({"a": g}, {"a": w, "c": h * 1}, ValueError, ["params", "c"]),
        ({"a": g, "b": h}, {"a": w}, ValueError, ["params", "b"]),
        ([g, h], [w], ValueError, ["params", "2", "1"]),
        ([g], [w, h * 1], ValueError, ["params", "1", "2"]),
        ([g, h], [w, np.ones(4)], ValueError, ["params[1]", "(5,)", "(4,)"]),
        ({"b": g}, {"b": w.T}, ValueError, ['params["b"]', "(4, 3)", "(3, 4)"]),
        (g, w[:, :2], ValueError, ["params", "(4, 3)", "(4, 2)"]),
        ([g, h], [w, np.ones((5, 1))], ValueError, ["params[1]", "(5,)", "(5, 1)"]),
        ([g, h], [w, None], TypeError, ["params[1]", "None"]),
        (g, None, TypeError, ["params", "None"]),
        ([g, h], {"a": w, "b": h * 1}, (TypeError, ValueError), ["params"]),
        ({"a": g}, [w], (TypeError, ValueError), ["params"]),
        ([g], [np.ones((4, 3), np.int32)], TypeError, ["params[0]", ALLOWED, "int32"]),
        ([g], ["abc"], TypeError, ["params[0]", "str"]),
        ([g], iter([]), ValueError, ["params", "yields nothing"]),
    ]:
        refuses(lambda a=grads, b=params: vegrad.adaptive_clip_(a, b), error, said, g, h)
        refuses(lambda a=grads, b=params: rule.apply_(a, b), error, said, g, h)


def test_parameters_that_fit() -> None:
    """None skips a pair; names may have any order, parameters other dtypes and read-only memory."""
    w = np.frombuffer(np.ones((4, 3)).tobytes(), np.float64).reshape(4, 3)
    one, two, three = GOOD.copy(), GOOD.copy(), GOOD.copy()
    vegrad.adaptive_clip_([None, one], [None, w])
    vegrad.adaptive_clip_([None, two], [w, w])
    vegrad.adaptive_clip_({"a": three, "b": None}, {"b": w * 5, "a": w.astype(np.float16)})
    assert one.tobytes() == two.tobytes() == three.tobytes() != GOOD.tobytes()
    vegrad.adaptive_clip_((g for g in [GOOD.copy()]), (p for p in [w]))

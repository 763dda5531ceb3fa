"""What a tensor claims of its own memory is checked before it is believed.

Shapes, strides and offsets are made by hand here; each that cannot be is an error with the
buffer's name. And what another thread does to an array afterwards changes nothing.
"""

import ctypes
import math
import re
import subprocess
import sys
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad

CALLS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "norm": ("buffers", vegrad.norm),
    "measure": ("buffers", vegrad.measure),
    "clip_by_global_norm_": ("grads", lambda g: vegrad.clip_by_global_norm_(g, 1.0)),
    "clip_by_norm_": ("grads", lambda g: vegrad.clip_by_norm_(g, 1.0)),
    "adaptive_clip_": ("grads", lambda g: vegrad.adaptive_clip_(g, g)),
}
every_call = pytest.mark.parametrize("call", list(CALLS))


def refuses(call: str, bad: Any, error: type[Exception], *said: str) -> None:
    name, function = CALLS[call]
    good = np.full(3, 9.0, np.float32)
    for passed, label in [([good, bad], f"{name}[1]"), ({"a": bad}, f'{name}["a"]')]:
        pattern = "(?s)" + ".*".join(re.escape(part) for part in (label, *said))
        with pytest.raises(error, match=pattern):
            function(passed)
    assert (good == 9).all()


# ------------------------------------------------------------------------------- tensors by hand


class Device(ctypes.Structure):
    _fields_ = [("type", ctypes.c_int32), ("id", ctypes.c_int32)]


class DataType(ctypes.Structure):
    _fields_ = [("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16)]


class Tensor(ctypes.Structure):
    _fields_ = [
        ("data", ctypes.c_void_p),
        ("device", Device),
        ("ndim", ctypes.c_int32),
        ("dtype", DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    ]


class Managed(ctypes.Structure):
    _fields_ = [("tensor", Tensor), ("context", ctypes.c_void_p), ("deleter", ctypes.c_void_p)]


class ByHand:
    """A float32 tensor of three and four, whose fields may be anything."""

    def __init__(self, shape: Any = (2,), strides: Any = None, **fields: Any) -> None:
        self.numbers = np.array([3, 4], np.float32)
        self.device: Any = fields.pop("device", (1, 0))
        self.managed = Managed()
        tensor = self.managed.tensor
        tensor.data = self.numbers.ctypes.data
        tensor.device = Device(1, 0)
        tensor.dtype = DataType(2, 32, 1)
        tensor.ndim = len(shape or ())
        for name, numbers in (("shape", shape), ("strides", strides)):
            if numbers is not None:
                setattr(tensor, name, (ctypes.c_int64 * len(numbers))(*numbers))
        for name, value in fields.items():
            setattr(tensor, name, value)

    def __dlpack_device__(self) -> Any:
        return self.device

    def __dlpack__(self, **_: Any) -> Any:
        make = ctypes.pythonapi.PyCapsule_New
        make.restype, make.argtypes = (
            ctypes.py_object,
            [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p],
        )
        return make(ctypes.addressof(self.managed), b"dltensor", None)


HUGE = 1 << 62
BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "negative size": ({"shape": (-2,)}, ["no negative size", "(-2,)"]),
    "two negative sizes": ({"shape": (-2, -1)}, ["no negative size", "(-2, -1)"]),
    "too many elements": ({"shape": (HUGE, 2)}, ["less than 2^63 bytes", f"({HUGE}, 2)"]),
    "elements that wrap to a few": ({"shape": (HUGE, 4)}, ["less than 2^63 bytes"]),
    "too many bytes": ({"shape": (HUGE,), "strides": (0,)}, ["less than 2^63 bytes"]),
    "none, of too many": ({"shape": (0, HUGE, HUGE)}, ["less than 2^63 bytes"]),
    "negative axes": ({"ndim": -1}, ["from 0 to 64 axes", "not -1"]),
    "fewest axes": ({"ndim": -(2**31)}, ["from 0 to 64 axes", f"not {-(2**31)}"]),
    "65 axes": ({"shape": (1,) * 65}, ["from 0 to 64 axes", "not 65"]),
    "65 empty axes": ({"shape": (0,) * 65}, ["from 0 to 64 axes", "not 65"]),
    "most axes": ({"ndim": 2**31 - 1}, ["from 0 to 64 axes", f"not {2**31 - 1}"]),
    "no shape": ({"shape": None, "ndim": 2}, ["must have a shape", "2 axes"]),
    "no memory": ({"data": None}, ["must have memory"]),
    "no memory, with an offset": ({"data": None, "byte_offset": 4096}, ["must have memory"]),
    "an offset before the memory": ({"byte_offset": 2**64 - 4}, ["address space"]),
    "an offset beyond all memory": ({"byte_offset": 2**63}, ["address space"]),
    "far strides": ({"strides": (HUGE,)}, ["within 2^63 bytes", "strides", f"({HUGE},)"]),
    "far strides back": ({"strides": (-HUGE,)}, ["within 2^63 bytes", f"({-HUGE},)"]),
    "far strides together": (
        {"shape": (2, 2, 2), "strides": (HUGE // 4, HUGE // 4, HUGE // 4)},
        ["within 2^63 bytes"],
    ),
    "strides before all memory": ({"strides": (-(1 << 60),)}, ["address space"]),
}  # fmt: skip


@every_call
@pytest.mark.parametrize("what", list(BAD))
def test_fields_that_cannot_be(call: str, what: str) -> None:
    fields, said = BAD[what]
    refuses(call, ByHand(**fields), ValueError, *said)


@every_call
@pytest.mark.parametrize(
    "device",
    [None, 1, "cpu", (), (1,), (1, 0, 0), ("cpu", 0), (1, None), (2**40, 0), [1, 0], {}, (1.0, 0)],
    ids=repr,
)
def test_devices_that_cannot_be(call: str, device: Any) -> None:
    said = ["device", "pair of integers", repr(device)]
    refuses(call, ByHand(device=device), TypeError, *said)


def test_other_devices() -> None:
    for device in [(2, 0), (-7, 0)]:
        refuses("norm", ByHand(device=device), TypeError, "must be on the CPU")


@pytest.mark.parametrize(
    ("fields", "norm"),
    [
        ({}, 5.0),
        ({"strides": (1,)}, 5.0),
        ({"shape": (2, 3), "strides": (1, 0)}, 5.0 * math.sqrt(3)),
        ({"strides": (-1,), "byte_offset": 4}, 5.0),
        ({"shape": (1,), "strides": (2**63 - 1,), "byte_offset": 4}, 4.0),
        ({"shape": None, "ndim": 0}, 3.0),
        ({"shape": (1,) * 64, "strides": (-(2**63),) * 64}, 3.0),
        ({"shape": (0, 3), "data": None}, 0.0),
        ({"shape": (0, 3), "strides": (HUGE // 16, 1)}, 0.0),
        # Of what has no elements an offset means nothing, and may wrap.
        ({"shape": (0, 3), "byte_offset": 2**64 - 4}, 0.0),
        ({"shape": (0, 3), "byte_offset": 2**63, "strides": (3, 1)}, 0.0),
        ({"shape": (2, 0), "byte_offset": 2**64 - 1, "data": None}, 0.0),
    ],
)
def test_fields_that_can(fields: dict[str, Any], norm: float) -> None:
    tensor = ByHand(**fields)
    assert vegrad.norm(tensor) == pytest.approx(norm)
    assert vegrad.measure([tensor]).total.norm == pytest.approx(norm)
    assert vegrad.norms({"a": tensor}).tolist() == [pytest.approx(norm)]


def test_many_units_of_nothing() -> None:
    """They took one turn of a loop each: with 2^40 of them, forever."""
    empty = np.empty((1 << 40, 0), np.float32)
    assert vegrad.adaptive_clip_([empty], [empty]).norm == 0.0


# ------------------------------------------------------------------------------- too many axes

MANY_AXES = """
import torch, vegrad
for axes in (65, 100, 1000):
    for empty in (True, False):
        bad = torch.empty([0 if empty else 1] * axes)
        for call in (vegrad.norm, vegrad.measure, lambda g: vegrad.clip_by_norm_(g, 1.0),
                     lambda g: vegrad.adaptive_clip_(g, g)):
            try:
                call([torch.ones(3), bad])
            except ValueError as error:
                assert f"[1] must have from 0 to 64 axes, not {axes}" in str(error), error
            else:
                raise AssertionError("no error")
assert vegrad.norm(torch.ones([1] * 64)) == 1.0
assert vegrad.norm(torch.empty([0] * 64)) == 0.0
print("refused")
"""


def test_tensors_of_many_axes() -> None:
    """They wrote over the stack."""
    pytest.importorskip("torch")
    command = [sys.executable, "-W", "ignore", "-c", MANY_AXES]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "refused\n"), done.stderr


# ----------------------------------------------------------------- shapes that change meanwhile


class Changes:
    """Changes an array's shape when its own turn comes, as another thread may at any time."""

    def __init__(self, array: np.ndarray, shape: tuple[int, ...]) -> None:
        self.array, self.shape, self.others = array, shape, []

    def __dlpack_device__(self) -> tuple[int, int]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, from 2.5 on
            self.array.shape = self.shape
        # The freed axes are the next ones that NumPy hands out.
        self.others = [np.broadcast_to(np.float32(0), (1 << 20, 1 << 20)) for _ in range(64)]
        return (1, 0)

    def __dlpack__(self, **_: Any) -> Any:
        return np.zeros(1, np.float32).__dlpack__()


@pytest.mark.filterwarnings("ignore:Setting the shape:DeprecationWarning")
@pytest.mark.parametrize("call", [name for name in CALLS if name != "adaptive_clip_"])
def test_a_shape_that_changes(call: str) -> None:
    """NumPy frees the axes of an array whose shape is set: a view must have its own."""
    memory = np.zeros((8, 12), np.float32)
    memory[::2, ::3] = np.arange(16).reshape(4, 4)
    expected = memory[::2, ::3].copy()
    array = np.asarray(memory[::2, ::3])
    found = CALLS[call][1]([array, Changes(array, (4, 2, 2))])
    if call == "norm":
        assert found == pytest.approx(np.linalg.norm(expected))
    elif call == "measure":
        assert found.total.norm == pytest.approx(np.linalg.norm(expected))
    elif call == "clip_by_global_norm_":
        assert found.norm == pytest.approx(np.linalg.norm(expected))
        np.testing.assert_allclose(memory[::2, ::3], expected / np.linalg.norm(expected), rtol=1e-6)
    memory[::2, ::3] = 0
    assert not memory.any()


@pytest.mark.parametrize("strides", [(4, 0, 4), (4, 4, 0), (0, 4, -4), (8, 4, 4), (0, 0, 0)])
def test_elements_that_are_the_same_memory_on_several_axes(strides: tuple[int, ...]) -> None:
    """Repeated axes inside of overlapping ones ended the process by a division by zero."""
    base = np.arange(16, dtype=np.float32)
    bad = np.lib.stride_tricks.as_strided(base[4:], (3, 3, 3), strides)
    with pytest.raises(ValueError, match="must not overlap itself"):
        vegrad.clip_by_global_norm_([bad], 1.0)
    assert (base == np.arange(16)).all()


def test_kinds_of_elements_that_nobody_has_named() -> None:
    fields = {"dtype": DataType(11, 32, 1)}  # and the object has no .dtype that would say it
    refuses("norm", ByHand(**fields), TypeError, "DLPack's kind 11")

"""Buffers made out of bytes: arrays of any layout, tensors by their fields, batches."""

from __future__ import annotations

from typing import Any

import numpy as np
import vegrad
from vegrad import _core

from tests.arrays.test_bad_tensors import ByHand, Device
from tests.core.guarded import forget, guarded

DTYPES = ("float32", "float64", "float16", "float32", "float64", "int32", ">f4", "bool", "c8")
SPECIAL = (0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, 3e38, -1e300, 5e-324, 1.0)
LIMITS = (1.0, 0.0, np.inf, 1e-300, 1e300, 2**-149, np.nan, -1.0)
WILD = (-1, 1 << 62, (1 << 63) - 1, -(1 << 63), -(1 << 62), 1 << 61)


class Drawn:
    """Choices that follow from bytes; when they are used up, the first of each."""

    def __init__(self, content: bytes) -> None:
        self._content, self._at = content, 0

    def number(self, below: int) -> int:
        """Return a number from 0 on."""
        self._at += 1
        return self._content[self._at - 1] % below if self._at <= len(self._content) else 0

    def one(self, among: Any) -> Any:
        """Return one of these."""
        return among[self.number(len(among))]

    def floats(self, count: int) -> np.ndarray:
        """Return so many numbers, some of them special."""
        size = 10.0 ** (self.number(9) * 10 - 40)
        values = np.array([self.number(256) - 128.0 for _ in range(min(count, 40))] or [0.0]) * size
        values = np.resize(values, count)
        for _ in range(self.number(4)):
            if count:
                values[self.number(count)] = self.one(SPECIAL)
        return values


def seeds() -> list[bytes]:
    """Return bytes of which much is drawn."""
    random = np.random.default_rng(0)
    return [random.bytes(size) for size in (20, 60, 200)]


def array(drawn: Drawn) -> np.ndarray:
    """Return an array that ends at, or begins after, a page that may not be touched."""
    count = drawn.one((0, 1, 2, 3, 5, 8, 15, 16, 17, 31, 33, 64, 65, 127, 300))
    base = guarded(drawn.floats(count).astype(drawn.one(DTYPES)), bool(drawn.number(2)))
    kind = drawn.number(6)
    if kind == 0:
        return base
    if kind == 1:
        return base[:: drawn.one((1, 2, 3, -1, -2))]
    if kind == 2 and count % 2 == 0:
        return base.reshape(2, -1).T
    if kind == 3:
        return base[..., None][:, ::-1]
    shape, strides, size = [], [], base.itemsize
    reach = 0
    for _ in range(drawn.number(5)):  # any strides that stay within
        length, stride = drawn.number(5), drawn.number(9) - 2
        if stride < 0 or reach + (length - 1) * stride >= count:
            stride = 0
        reach += max(length - 1, 0) * stride
        shape.append(length)
        strides.append(stride * size)
    if count == 0:
        return base
    view = np.lib.stride_tricks.as_strided(base, shape, strides)
    return view[tuple(slice(None, None, drawn.one((1, -1))) for _ in shape)]


def nested(drawn: Drawn, deep: int = 0) -> Any:
    """Return an array, or lists, tuples and mappings of them."""
    kind = drawn.number(6) if deep < 3 else 0
    if kind == 5 and deep:
        return None
    if kind < 2:
        return array(drawn)
    entries = [nested(drawn, deep + 1) for _ in range(drawn.number(4))]
    if kind == 3:
        return tuple(entries)
    return entries if kind == 2 else {f"n{i}": entry for i, entry in enumerate(entries)}


def arrays(content: bytes) -> None:
    """Measure, clip and step over arrays."""
    forget()
    drawn = Drawn(content)
    call = drawn.number(len(CALLS))
    CALLS[call](nested(drawn), nested(drawn), drawn)


def _optimizer(drawn: Drawn) -> vegrad.optim.Optimizer:
    clip = drawn.one((None, vegrad.clipping.GlobalNorm(1.0), vegrad.clipping.Value(0.5),
                      vegrad.clipping.AutoClip(10.0)))  # fmt: skip
    kind = drawn.one((vegrad.SGD, vegrad.Adam, vegrad.AdamW, vegrad.Lion))
    return kind(drawn.one((0.1, 0.0, 1e30, 1e-45)), clip=clip)


def _alike(g: Any) -> Any:
    """Return writable arrays of the same shapes."""
    if isinstance(g, dict):
        return {key: _alike(entry) for key, entry in g.items()}
    if isinstance(g, list | tuple):
        return type(g)(_alike(entry) for entry in g)
    return None if g is None else np.ones(getattr(g, "shape", 2), np.float32)


def _step(g: Any, p: Any, drawn: Drawn) -> None:
    optimizer = _optimizer(drawn)
    p = _alike(g) if drawn.number(3) else p
    for _ in range(2):
        optimizer.step(p, g)


CALLS = (
    lambda g, p, d: vegrad.norm(g, ord=d.one((2, 1, np.inf, 3.5))),
    lambda g, p, d: vegrad.norms(g),
    lambda g, p, d: vegrad.measure(g),
    lambda g, p, d: vegrad.clip_by_value_(g, d.one(LIMITS), nonfinite=d.one(NONFINITE)),
    lambda g, p, d: vegrad.clip_by_norm_(g, d.one(LIMITS), nonfinite=d.one(NONFINITE)),
    lambda g, p, d: vegrad.clip_by_global_norm_(g, d.one(LIMITS), nonfinite=d.one(NONFINITE)),
    lambda g, p, d: vegrad.clip_by_block_rms_(g, d.one(LIMITS), nonfinite=d.one(NONFINITE)),
    lambda g, p, d: vegrad.adaptive_clip_(g, _alike(g) if d.number(3) else p, 0.01),
    _step,
)
NONFINITE = ("propagate", "zero", "skip", "raise")


def tensors(content: bytes) -> None:
    """Look at a tensor by its fields, each of which is right or cannot be."""
    drawn = Drawn(content)
    axes = drawn.one((0, 1, 2, 3, 64, 65))
    shape = [1] * axes
    if axes:
        shape[0] = drawn.one((2, 0, 1))
    strides = [0] * axes
    if axes and drawn.number(2):
        strides[0] = drawn.one((1, -1, 0))
    if drawn.number(3) == 0 and axes:
        shape[drawn.number(axes)] = drawn.one(WILD)
    if drawn.number(3) == 0 and axes:
        strides[0] = drawn.one(WILD) if shape[0] == 2 else 1
    made = ByHand(shape=tuple(shape), strides=tuple(strides) if drawn.number(2) else None)
    numbers = np.zeros(64, np.float32)  # its memory: what is drawn above stays within
    made.numbers = numbers
    tensor = made.managed.tensor
    tensor.data = numbers.ctypes.data + 128
    kind = drawn.number(8)
    if kind == 1:
        tensor.ndim = drawn.one((-1, 65, 2**31 - 1, -(2**31)))
    elif kind == 2:
        tensor.data = None
    elif kind == 3:
        tensor.byte_offset = drawn.one((4, 1, 2**63, 2**64 - 1))
    elif kind == 4:
        tensor.dtype.code, tensor.dtype.bits = drawn.number(12), drawn.one((32, 16, 0, 255))
        tensor.dtype.lanes = drawn.one((1, 0, 4))
    elif kind == 5:
        tensor.device = Device(drawn.number(20), drawn.number(3))
    elif kind == 6:
        made.device = drawn.one((None, 1, (), (1,), ("cpu", 0), (2**40, 0), [1, 0], (2, 0)))
    call = drawn.one((0, 1, 2, 3, 5, 7))
    CALLS[call](drawn.one((made, [made], {"a": made, "b": made})), None, drawn)


def passes(content: bytes) -> None:
    """Run a small network of any kind over a batch of any numbers."""
    drawn = Drawn(content)
    isas = _core.isas()
    _core.use_isa(drawn.one(isas))
    try:
        (_recurrent_pass if drawn.number(3) == 0 else _pass)(drawn)
    finally:
        _core.use_isa(isas[0])


def _batch(drawn: Drawn, *shape: int) -> np.ndarray:
    values = drawn.floats(int(np.prod(shape))).reshape(shape)
    return values.astype(drawn.one(("float32", "float64", "float16", "int32")))


def _pass(drawn: Drawn) -> None:
    width = drawn.one((1, 2, 5, 16, 17, 33))
    sizes = [drawn.number(6) + 1, *[width] * drawn.number(4), drawn.number(4) + 1]
    residual = bool(drawn.number(2))
    dtype, norm = drawn.one(("float32", "float64")), drawn.one((None, "layer", "rms"))
    net = vegrad.MLP(sizes, activation=drawn.one(_core.ACTIVATIONS), residual=residual,
                     norm=norm, dtype=dtype, loss=drawn.one(_core.LOSSES), seed=0)  # fmt: skip
    for parameter in net.parameters.values():
        parameter *= drawn.one((1, 1e-20, 1e20, 0, np.inf))
    rows = drawn.number(9)
    x = _batch(drawn, rows, sizes[0] + (drawn.number(20) == 1))
    target: Any = _batch(drawn, rows, sizes[-1])
    if net.config["loss"] == "cross_entropy":
        target = np.array([drawn.number(sizes[-1] + (drawn.number(8) == 1)) for _ in range(rows)])
    net.forward(x)
    net.loss(x, target)
    net.backward(x, target, flow=bool(drawn.number(2)))
    net.backward(x, target, truncation=1 + drawn.number(3))


def _recurrent_pass(drawn: Drawn) -> None:
    inputs, hidden, outputs = drawn.number(4) + 1, drawn.one((1, 3, 16, 17)), drawn.number(3) + 1
    cell, targets = drawn.one(("lstm", "gru", "tanh", "relu")), drawn.one(("last", "all"))
    net = vegrad.RNN(inputs, hidden, outputs, cell=cell, layers=drawn.number(2) + 1,
                     targets=targets, dtype=drawn.one(("float32", "float64")), seed=0)  # fmt: skip
    rows, steps = drawn.number(5), drawn.number(7)
    x = _batch(drawn, rows, steps, inputs)
    target = _batch(drawn, rows, *([steps] if targets == "all" else []), outputs)
    lengths = None
    if drawn.number(2):
        lengths = np.array([drawn.number(steps + 2) for _ in range(rows)])
    net.forward(x, lengths=lengths)
    window = (drawn.number(4), drawn.number(6)) if drawn.number(2) else None
    net.backward(x, target, lengths=lengths, truncation=window)

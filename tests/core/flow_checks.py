"""A network's flow and gradients, held to the reference's."""

import math
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import _core

from tests import reference

SIZES_IN_LOG2 = ("delta_log2", "gradient_log2", "gain_log2", "weight_gain_log2",
                 "activation_gain_log2")  # fmt: skip
LOG2 = {"float32": 1e-3, "float64": 1e-9}
STATISTICS = {"float32": 1e-4, "float64": 1e-10}


def assert_flow(flow: Any, want: dict[str, Any], dtype: str, elements: int) -> None:
    """`elements`: of the smallest layer, whose fractions are counted in steps of 1/elements."""
    for name in SIZES_IN_LOG2:
        got, right = getattr(flow, name), want[name]  # also equal where infinite or nan
        assert got.dtype == np.float64
        np.testing.assert_allclose(got, right, rtol=1e-9, atol=LOG2[dtype], err_msg=name)
    relative = STATISTICS[dtype]
    rms = np.hypot(want["preactivation_mean"], want["preactivation_std"])
    for name in ("activation_rms", "preactivation_mean", "preactivation_std"):
        got, right = getattr(flow, name), want[name]
        assert got.dtype == np.float64
        assert got.shape == right.shape
        with np.errstate(invalid="ignore"):
            scale = np.abs(right) if name == "activation_rms" else rms
            flushed = 4 * np.finfo(float).tiny  # a subnormal statistic may be 0
            ok = (np.abs(got - right) <= relative * scale + flushed) | (got == right)
        assert ok.all(), f"{name}[{np.argmin(ok)}]: {got[~ok]}, not {right[~ok]}"
    step = 2.0 / elements if dtype == "float32" else 0.0  # elements near the threshold
    for name in ("saturated", "dead"):
        np.testing.assert_allclose(getattr(flow, name), want[name], atol=step + 1e-12, err_msg=name)
    chain = want["chain_log10"]
    if math.isfinite(chain):
        assert flow.chain_log10 == pytest.approx(chain, rel=1e-9, abs=LOG2[dtype])
    else:
        np.testing.assert_equal(flow.chain_log10, chain)


known: dict[tuple[str, bytes], reference.Pass] = {}


def expected(net: Any, x: Any, target: Any) -> tuple[reference.Pass, Any, Any]:
    """The reference's pass, the same for each instruction set; x and target in the dtype."""
    x, target = np.asarray(x, net.config["dtype"]), np.asarray(target)
    target = target if target.dtype.kind == "i" else target.astype(net.config["dtype"])
    arrays = [*net.parameters.values(), x, target]
    key = repr(net.config), b"".join(a.tobytes() for a in arrays)
    if key not in known:
        known[key] = reference.run(net.parameters, x, target, **net.config)
    return known[key], x, target


def measure(net: Any, x: Any, target: Any) -> tuple[Any, reference.Pass]:
    """One pass, checked against the reference; both results for further questions."""
    want, x, target = expected(net, x, target)
    net.backward(x, target)
    assert_flow(net.flow, want.flow, net.config["dtype"], len(x) * min(net.config["sizes"][1:]))
    assert_gradients(net, want)
    return net.flow, want


def clearance(net: Any, x: Any, target: Any) -> float:
    """The smallest |argument of an activation|, relative to the largest in its layer."""
    inputs = [np.abs(y.mantissa) for y in expected(net, x, target)[0].activation_inputs]
    return float(min(np.min(y) / np.max(y) for y in inputs))


def well_conditioned(net: Any, x: Any, target: Any) -> bool:
    """Whether rounding, in every array and many times over, moves the flow less than is asked.

    Where sums cancel to next to nothing, no program of that precision has the digits.
    """
    want, x, target = expected(net, x, target)
    rng = np.random.default_rng(0)
    eps = 32 * np.finfo(net.config["dtype"]).eps

    def rounding(s: reference.Scaled) -> reference.Scaled:
        return s._replace(mantissa=s.mantissa * (1 + eps * rng.standard_normal(s.mantissa.shape)))

    moved = reference.run(net.parameters, x, target, **net.config, rounding=rounding).flow
    try:
        assert_flow(SimpleNamespace(**moved), want.flow, net.config["dtype"], 1)
    except AssertionError:
        return False
    return True


def assert_gradients(net: Any, want: reference.Pass) -> None:
    """The true value where the dtype can hold it: 0 below its normal range, inf above it."""
    dtype = net.config["dtype"]
    info = np.finfo(dtype)
    for name, gradient in net.gradients.items():
        right = reference.value(want.gradients[name])  # also 0 or inf beyond float64
        size = np.abs(right)
        with np.errstate(invalid="ignore"):
            below, above = size < 0.999 * float(info.tiny), size > 1.001 * float(info.max)
            inside = (size > 1.001 * float(info.tiny)) & (size < 0.999 * float(info.max))
        left = info.tiny if _core.is_plain() else 0  # it flushes nothing
        assert (np.abs(gradient[below]) <= left).all(), f"{name}: {gradient[below]}, {right[below]}"
        np.testing.assert_array_equal(gradient[above], np.sign(right[above]) * np.inf)
        largest = np.max(size[inside], initial=0.0)
        off = np.abs(gradient[inside] - right[inside])
        assert np.all(off <= 1e-3 * largest), f"{name}: off by {np.max(off) / largest}"


def network(sizes: list[int], make_weight: Callable[[int, tuple[int, int]], Any], **options: Any):
    """A network with weights made by layer and shape, and zero biases."""
    net = vegrad.MLP(sizes, **options)
    for layer in range(net.depth):
        weight = net.parameters[f"layers.{layer}.weight"]
        weight[...] = make_weight(layer, weight.shape)
        net.parameters[f"layers.{layer}.bias"][...] = 0
    return net


def diagonal(size: float) -> Callable[[int, tuple[int, int]], np.ndarray]:
    return lambda layer, shape: size * np.eye(*shape)


def data(rows: int, inputs: int, outputs: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, inputs)), rng.standard_normal((rows, outputs))

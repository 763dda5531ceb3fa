"""The table of activations: complete, and right in every field."""

from collections.abc import Callable
from dataclasses import MISSING, fields
from math import isnan
from operator import attrgetter

import numpy as np
import pytest
from vegrad import _core, theory
from vegrad.activations import ACTIVATIONS, Activation, leaky_relu

from tests import reference
from tests.reference_activations import SLOPES_AT_INFINITY, SLOPES_AT_ZERO

every_row = pytest.mark.parametrize("row", ACTIVATIONS.values(), ids=ACTIVATIONS.keys())
Z = np.concatenate([np.linspace(-12.0, 12.0, 24_001) + 1e-4, [-300.0, -1e-9, 1e-9, 300.0]])
BOTH_SIDES = np.array([-1e-9, 1e-9])


def test_a_row_an_activation_and_no_field_left_to_chance() -> None:
    assert set(ACTIVATIONS) == set(_core.ACTIVATIONS)
    assert [row.name for row in ACTIVATIONS.values()] == list(ACTIVATIONS)
    for field in fields(Activation):
        assert field.default is field.default_factory is MISSING, field.name


@every_row
def test_functions_are_those_of_the_kernels(row: Activation) -> None:
    value, slope = _core.activate(row.name, Z)
    np.testing.assert_allclose(row.phi(Z), value, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(row.slope(Z), slope, rtol=1e-12, atol=1e-15)
    assert row.phi(Z[:0]).shape == row.slope(Z[:0]).shape == (0,)


@every_row
def test_slopes_and_kinks(row: Activation) -> None:
    assert row.at_zero == SLOPES_AT_ZERO[row.name]
    assert row.at_infinity == SLOPES_AT_INFINITY[row.name]
    assert np.abs(row.slope(Z)).max() == pytest.approx(row.largest_slope, rel=1e-6)
    jumps = [z for z in np.arange(-8.0, 8.25, 0.25) if np.ptp(row.slope(z + BOTH_SIDES)) > 1e-6]
    assert set(jumps) - {0.0} == set(row.kinks)
    assert bool(jumps) is row.kinked
    assert row.bounded == bool(np.abs(row.phi(np.array([-1e9, 1e9]))).max() < 1e6)


@every_row
def test_criticality(row: Activation) -> None:
    """No σ_b where there is no critical point; unstable if the one without biases is not stable."""
    b = row.critical_sigma_b
    if b is None:
        assert all(theory.critical_point(row.name, b) is None for b in (0.0, 0.2, 1.0))
    else:
        point = theory.critical_point(row.name, b)
        assert point is not None
        assert point.stable
        assert row.rectifier is isnan(point.q)
    point = theory.critical_point(row.name, 0.0)
    assert row.stable is (point is not None and point.stable)


@every_row
def test_counterparts_in_pytorch(row: Activation) -> None:
    torch = pytest.importorskip("torch")
    if row.torch is None:
        assert row.name == "identity"
        return
    z = torch.linspace(-9, 9, 400, dtype=torch.float64)
    functions: list[Callable[[object], object]] = [attrgetter(row.torch.function)(torch)]
    if row.torch.module is not None:
        module = getattr(torch.nn, row.torch.module)()
        functions.append(module)
        for name, value in row.torch.arguments.items():
            assert getattr(module, name, value) == value
    for function in functions:
        np.testing.assert_allclose(function(z), row.phi(z.numpy()), rtol=1e-8, atol=1e-15)


def test_leaky_relu_of_another_slope() -> None:
    row = leaky_relu(-2.0)
    assert row.phi(np.array([-1.0, 3.0])).tolist() == [2.0, 3.0]
    assert row.slope(np.array([-1.0, 3.0])).tolist() == [-2.0, 1.0]
    assert row.largest_slope == 2.0
    assert row.rectifier
    assert ACTIVATIONS["leaky_relu"].at_zero == (reference.LEAKY_SLOPE, 1.0)

"""The tables that diagnoses take their moments from, beside the integrals themselves."""

import numpy as np
import pytest
from vegrad.activations import ACTIVATIONS
from vegrad.theory import derivative_second_moment, second_moment
from vegrad.theory.gaussian import slope_of_second_moment
from vegrad.theory.tables import Table
from vegrad.theory.units import GRID, Unit, moments


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_moments_are_those_of_the_integrals(activation: str) -> None:
    """To 1e-12 of their size, from what is next to nothing to what is beyond any network."""
    log_qs = (
        np.random.default_rng(0).uniform([-230, -60, -6, 60], [-60, 60, 9, 230], (8, 4)).ravel()
    )
    second, slope, per_q = moments(activation, log_qs).T
    q = np.exp(log_qs)
    np.testing.assert_allclose(second, np.log(second_moment(activation, q)), atol=1e-12)
    np.testing.assert_allclose(slope, np.log(derivative_second_moment(activation, q)), atol=1e-12)
    wanted = slope_of_second_moment(ACTIVATIONS[activation], q) * q / second_moment(activation, q)
    np.testing.assert_allclose(per_q, wanted, atol=1e-10)


@pytest.mark.parametrize("activation", ["tanh", "gelu", "hard_tanh", "relu"])
def test_units_have_the_moments_of_the_integrals(activation: str) -> None:
    """Two rows that are the same have the moments of one; two that are opposite, of φ(y)φ(-y)."""
    phi = ACTIVATIONS[activation].phi
    z = np.linspace(-9, 9, 200_001)
    density = np.exp(-z * z / 2) / np.exp(-z * z / 2).sum()
    for log_y in (-3.0, 0.3, 3.0):
        y = np.exp(log_y / 2) * z
        square = phi(y) ** 2 @ density
        unit = Unit(activation, log_y, np.array([1.0, -1.0]))
        assert unit.mean == pytest.approx(phi(y) @ density / square**0.5, abs=1e-2)
        opposite = (phi(y) * phi(-y)) @ density / square
        assert unit.value_likeness == pytest.approx([1.0, opposite], abs=1e-2)
        assert unit.value_variance == pytest.approx(phi(y) ** 4 @ density / square**2 - 1, rel=2e-2)
        assert unit.slope_likeness[0] == pytest.approx(1.0, abs=1e-9)


def test_equal_rows_stay_equal() -> None:
    """A cosine that rounding has taken a little below 1 is no difference."""
    unit = Unit("tanh", 0.0, np.array([1.0 - 4e-16]))
    assert unit.value_likeness[0] == pytest.approx(1.0, abs=1e-14)


def test_a_table_computes_a_panel_once() -> None:
    asked: list[float] = []

    def functions(s: np.ndarray) -> np.ndarray:
        asked.extend(s)
        return np.stack([np.exp(s), np.sin(s)], axis=1)

    table, s = Table(functions), np.array([0.2, 2.7, 0.9, 2.0])
    np.testing.assert_allclose(table.each(s), functions(s), atol=1e-13)
    asked.clear()
    for place in s:
        np.testing.assert_allclose(table.at(place), [np.exp(place), np.sin(place)], atol=1e-13)
    assert not asked
    assert len(GRID) % 2 == 0  # and has no point at 0, where rectifiers jump

"""A property that is computed once."""

import functools
import sys

import pytest
from vegrad.arrays.cached import cached_property


class Circle:
    def __init__(self, radius: float) -> None:
        self.radius, self.times = radius, 0

    @cached_property
    def area(self) -> float:
        """π r²."""
        self.times += 1
        return 3 * self.radius**2


def test_it_is_computed_once_for_each_object() -> None:
    one, other = Circle(1), Circle(2)
    assert (one.area, one.area, other.area) == (3, 3, 12)
    assert (one.times, other.times) == (1, 1)
    assert vars(one)["area"] == 3
    assert Circle.area.__doc__ == "π r²."
    assert isinstance(Circle.area, functools.cached_property)  # as tools that read classes expect


@pytest.mark.skipif(sys.version_info >= (3, 12), reason="functools's own has no lock")
def test_nobody_waits_for_another_thread() -> None:
    Circle.area.lock.acquire()  # type: ignore[attr-defined]
    assert Circle(1).area == 3

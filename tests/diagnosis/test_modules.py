"""A drift over watched modules: of one of them, or of all."""

from itertools import accumulate

import pytest
from vegrad.diagnosis.rules.modules import DRIFT
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Module, Reading
from vegrad.flow.wording import Vocabulary


def found(gains: list[float], outputs: list[float] | None = None) -> Finding:
    """Judge modules each of which multiplies its input, and the gradient, by a factor."""
    sizes = [*accumulate(gains if outputs is None else outputs, lambda a, b: a * b, initial=1.0)]
    deltas = [*accumulate(reversed(gains[1:]), lambda a, b: a * b, initial=1.0)][::-1]
    modules = tuple(
        Module(f"{n}", size, delta, 0.1, True, kind="Linear")
        for n, (size, delta) in enumerate(zip(sizes[1:], deltas, strict=True))
    )
    reading = Reading(vocabulary=Vocabulary(), about={}, modules=modules)
    (finding,) = DRIFT.find(reading, DRIFT, ())
    return finding


@pytest.mark.parametrize(("factor", "kind"), [(1e-6, "vanishing"), (1e6, "exploding")])
@pytest.mark.parametrize("place", [1, 4, 7])
def test_one_module_alone(factor: float, kind: str, place: int) -> None:
    gains = [0.9] * 8
    gains[place] = factor
    finding = found(gains)
    assert (finding.kind, finding.cause) == (kind, "weight-scale")
    assert [one.name for one in finding.sites] == [str(place)]


@pytest.mark.parametrize("gain", [0.1, 10.0])
def test_all_of_them(gain: float) -> None:
    assert found([gain] * 8).cause == "weight-scale-all"


def test_two_of_eight() -> None:
    assert found([1, 1, 1e-4, 1, 1, 1e-4, 1, 1]).cause == "weight-scale-all"


def test_outputs_that_do_not_tell_the_same() -> None:
    """The gradient is lost in an activation, or where it is cut: weights are not to blame."""
    gains = [1, 1, 1, 1e-6, 1, 1, 1, 1.0]
    assert found(gains, outputs=[1.0] * 8).cause == "weight-scale-all"
    assert found(gains, outputs=[1, 1, 1, 1e6, 1, 1, 1, 1.0]).cause == "weight-scale-all"

"""The drawing of a descent: only what a loss can be, kinds by shape, the loss of guessing."""

from itertools import pairwise

import numpy as np
import pytest
import vegrad
from vegrad.clipping import GlobalNorm
from vegrad.flow.descent import Descent, Look
from vegrad.reports import descent, training_charts
from vegrad.reports.svg import MARKS

RNG = np.random.default_rng(1)
X, Y = RNG.standard_normal((50, 6)).astype(np.float32), RNG.integers(0, 3, 50)
NONE = np.empty(0)


def look(*losses: float, step: int = 0, alpha: float = 0.0) -> Look:
    return Look(step, alpha, np.linspace(0, 1, len(losses)), np.array(losses), NONE, NONE)


def walked(*looks: Look, guess: float = np.nan) -> Descent:
    losses = np.array([*(one.loss[0] for one in looks), looks[-1].loss[-1]])
    return Descent(losses, np.ones(len(looks)), np.ones(len(looks)), looks, guess)


@pytest.mark.parametrize("rate", [0.1, 3.0, 100.0])
@pytest.mark.parametrize("clip", [None, GlobalNorm(0.1)])
def test_nothing_is_drawn_below_the_least_loss(rate: float, clip: GlobalNorm | None) -> None:
    network = vegrad.MLP([6, *[16] * 20, 3], activation="tanh", loss="cross_entropy", seed=0)
    history = network.fit(X, Y, optimizer=vegrad.SGD(rate, clip=clip), epochs=6, batch_size=10,
                          seed=0, progress=False, gauge_every=1, on_finding=None)  # fmt: skip
    found = descent.of_history(history)
    assert len(found.looks) == descent.MOST
    for one in found.looks:
        assert one.loss.min() >= 0
        assert not len(one.ghost) or one.ghost.min() >= 0
        assert one.loss[0] == pytest.approx(history.loss[one.step])
        assert one.loss[-1] == pytest.approx(history.loss_after[one.step])


@pytest.mark.parametrize(
    ("one", "name"),
    [
        (look(2.0, 1.999, 1.998, alpha=-0.99), "baby step"),
        (look(2.0, 1.2, 1.0, alpha=-0.1), "good step"),
        (look(2.0, 1.0, 1.5, alpha=-0.1), "past the minimum"),  # whatever a parabola says
        (look(2.0, 1.5, alpha=0.7), "past the minimum"),
        (look(2.0, 1.0, 2.5, alpha=0.1), "up the other side"),
        (look(2.0, 2.0, 2.0 * (1 + 1e-8), alpha=-1.0), "baby step"),
    ],
)
def test_kinds_of_steps(one: Look, name: str) -> None:
    assert descent.HOPS[descent.kind(one)].name == name


def test_kinds_differ_by_shape_as_well_as_by_colour() -> None:
    for column in ("colour", "marker", "mark", "name"):
        assert len({getattr(hop, column) for hop in descent.HOPS}) == len(descent.HOPS)
    assert {hop.mark for hop in descent.HOPS} == set(MARKS)
    steps = (look(2.0, 1.2, 1.0), look(1.0, 0.2, 3.0, step=1, alpha=3.0))
    html = training_charts.hops(walked(*steps, guess=1.1))
    assert all(MARKS[mark] in html for mark in ("circle", "peak"))
    assert MARKS["diamond"] not in html
    assert ">guessing<" in html
    assert ">guessing<" not in training_charts.hops(walked(*steps))


def test_a_plateau_is_flat_and_a_fall_fills_the_axis() -> None:
    pytest.importorskip("matplotlib")
    plateau = walked(*(look(2.3, 2.3, step=n, alpha=-0.99) for n in range(5)), guess=2.302)
    fall = walked(*(look(2.3 - n / 5, 2.1 - n / 5, step=n) for n in range(5)), guess=2.302)
    figure = descent.draw([("plateau", plateau), ("fall", fall)])
    flat, steep = figure.axes
    assert flat.get_ylim()[0] == 0.0
    assert steep.get_ylim()[0] > 1.0
    for board in figure.axes:
        assert any(np.allclose(line.get_ydata(), 2.302) for line in board.lines)
    assert [text for _, text in descent.notes(plateau)] == [
        "lost on a plateau,\nbaby steps: 1/100 of the way\nto the minimum along each"
    ]
    assert descent.notes(fall) == []


def test_the_outcome_is_read_off_the_loss() -> None:
    for losses, guess, outcome in (
        ((2.3, 1.0), 2.3, "learns"),
        ((2.3, 3.3, 0.2), np.nan, "learns"),
        ((9.0, 2.2), 2.3, "stuck"),  # has come as far as guessing
        ((2.3, 2.5), np.nan, "stuck"),
        ((2.3, 9.0), 2.3, "diverges"),
        ((2.3, np.inf), 2.3, "diverges"),
    ):
        looks = (look(one, other, step=n) for n, (one, other) in enumerate(pairwise(losses)))
        assert descent.outcome(walked(*looks, guess=guess)) == outcome

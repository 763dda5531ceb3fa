"""Fewer steps of a long run."""

import numpy as np
import pytest
from vegrad.runs.thin import ENDS, MOST, kept_places


def test_short_runs_keep_every_step() -> None:
    assert kept_places(np.arange(MOST, dtype=float)).tolist() == list(range(MOST))
    assert kept_places(np.zeros(0)).tolist() == []


@pytest.mark.parametrize("count", [MOST + 1, 5000, 1_000_000])
def test_long_runs_keep_their_ends_and_what_is_marked(count: int) -> None:
    step = 10.0 * np.arange(count)
    marked = [10.0 * (count // 2 + 1), 770.0, 5.0]  # the last is no step
    kept = kept_places(step, marked)
    assert MOST / 3 < len(kept) <= MOST + 2
    assert (np.diff(kept) > 0).all()
    assert kept[:ENDS].tolist() == list(range(ENDS))
    assert kept[-ENDS:].tolist() == list(range(count - ENDS, count))
    assert set(marked[:2]) <= set(step[kept])


def test_runs_of_unlike_lengths_share_their_grid() -> None:
    short, long = (np.arange(n, dtype=float) for n in (4321, 80_000))
    common = np.intersect1d(short[kept_places(short)], long[kept_places(long)])
    assert len(common) >= 4321 // 128


@pytest.mark.parametrize("first", [0, 49, 1000])
def test_steps_that_lie_oddly(first: int) -> None:
    step = first + 50.0 * np.arange(5000)
    assert MOST / 3 < len(kept_places(step)) <= MOST
    uneven = np.cumsum(np.random.default_rng(0).integers(1, 4000, 5000)).astype(float)
    assert MOST / 5 < len(kept_places(uneven)) <= MOST

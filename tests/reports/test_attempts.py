"""The table of what a cure has tried."""

from types import SimpleNamespace
from typing import Any

import pytest
from vegrad.reports.cure import attempts


def tried(before: float, after: float) -> Any:
    """Return an attempt of 50 steps without a chain of layers, with losses."""
    known = {"accepted": True, "ended": "reached", "steps": 50, "why": ""}
    found = SimpleNamespace(layer_flow=None, healthy=True, verdict="healthy")
    return SimpleNamespace(name="scale y", after=found, loss=(before, after), **known)


@pytest.mark.parametrize("width", [80, 100])
@pytest.mark.parametrize("losses", [(2.3, 0.42), (8.48e108, 1.26e-108)])
def test_columns_stand_apart(losses: tuple[float, float], width: int) -> None:
    head, row, _ = attempts([tried(*losses)], width)
    assert row.split() == ["scale", "y", "50", f"{losses[0]:.3g}", "→", f"{losses[1]:.3g}", "✓"]
    assert head.index("result") == row.index("✓")
    assert head.index("steps") + len("steps") == row.index("50") + 2
    assert len(row) <= width

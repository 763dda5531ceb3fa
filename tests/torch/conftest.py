"""What the tests of the torch front end share: a clock that stands still."""

from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the number of a step alone say if a monitor looks at it."""
    schedule = pytest.importorskip("vegrad.torch.monitor.schedule")
    monkeypatch.setattr(schedule, "clock", lambda: 0.0)
    return

"""What the tests of the torch front end share: a still clock, and no monitors of other tests."""

import contextlib
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import pytest


@pytest.fixture(autouse=True)
def still_clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let the number of a step alone say if a monitor looks at it."""
    schedule = pytest.importorskip("vegrad.torch.monitor.schedule")
    monkeypatch.setattr(schedule, "clock", lambda: 0.0)
    return


@pytest.fixture(autouse=True)
def no_monitor_stays(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Remove a test's monitors: one that waits for its optimizer's steps hears those of others."""
    torch = pytest.importorskip("vegrad.torch")
    begin, made = torch.Monitor.__init__, list[weakref.ref[Any]]()

    def noted(self: Any, *given: Any, **named: Any) -> None:
        made.append(weakref.ref(self))
        begin(self, *given, **named)

    monkeypatch.setattr(torch.Monitor, "__init__", noted)
    yield
    for one in made:
        monitor = one()
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if monitor is not None:
                monitor.remove()

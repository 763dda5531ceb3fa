"""A run in the terminal: one frame, or frames as long as the training goes on."""

from __future__ import annotations

import time
from math import inf

from rich.console import Console, RenderableType
from rich.live import Live

from vegrad.watching.follower import Follower
from vegrad.watching.frame import frame, waiting

EVERY = 0.5  # seconds between two looks at the file


def once(follower: Follower, console: Console) -> bool:
    """Read the whole file and print one frame; return True if nothing was found.

    Raises:
        OSError, ValueError: there is nothing to show; the words are the follower's.
    """
    follower.poll(seconds=float("inf"))
    if follower.problem:
        raise ValueError(follower.problem)
    console.print(shown(follower, console, scrolls=True))
    return follower.diagnosis is None or follower.diagnosis.healthy


def live(follower: Follower, console: Console) -> None:
    """Show frames until Ctrl-C; what is in the file already is read bit by bit."""
    with Live(console=console, screen=True, auto_refresh=False) as screen:
        size = console.size
        while True:
            if follower.poll() or console.size != size:
                size = console.size
                screen.update(shown(follower, console), refresh=True)
            if not follower.behind:
                time.sleep(EVERY)


def shown(follower: Follower, console: Console, *, scrolls: bool = False) -> RenderableType:
    """Return what is shown now, in as many lines as there are, unless it may scroll."""
    run = follower.run
    if run is None or not run.steps:
        return waiting(follower.problem)
    colours = console.color_system is not None and not console.no_color
    height = inf if scrolls else console.height
    return frame(run, follower.diagnosis, console.width, height, colours=colours)

"""`vegrad watch`: a run in the terminal or on a page, while it goes on."""

from __future__ import annotations

import argparse
import importlib
import time

from vegrad.watching.follower import Follower

EVERY = 1.0  # seconds between two looks at the file, for the page


def run(options: argparse.Namespace) -> int:
    """Show a run until Ctrl-C; with --once one frame, and 1 if something was found."""
    if options.port is not None and not options.html:
        raise ValueError("--port goes with --html")
    if options.html and options.once:
        raise ValueError("--once goes without --html: a page is there as long as it is served")
    if options.file == "-":
        raise ValueError(
            "a file that grows is watched, not the standard input: vegrad diagnose-run - judges it"
        )
    follower = Follower(options.file)
    try:
        return serve(follower, options.port or 0) if options.html else show(follower, options.once)
    finally:
        follower.close()


def show(follower: Follower, once: bool) -> int:
    """Show a run in the terminal; where there is none, one frame."""
    try:
        terminal = importlib.import_module("vegrad.watching.terminal")
    except ImportError as error:
        raise ImportError('the terminal needs rich: pip install "vegrad[cli]"') from error
    console = importlib.import_module("rich.console").Console(highlight=False)
    if once or not console.is_terminal or console.is_dumb_terminal:
        return 0 if terminal.once(follower, console) else 1
    try:
        terminal.live(follower, console)
    except KeyboardInterrupt:
        follower.poll()
        console.print(terminal.shown(follower, console))
    return 0


def serve(follower: Follower, port: int) -> int:
    """Serve the page of a run until Ctrl-C."""
    server = importlib.import_module("vegrad.watching.server").Server(port)
    page = importlib.import_module("vegrad.watching.page")
    follower.poll()
    server.show(*page.content(follower))
    server.start()
    print(f"{server.url}\nCtrl-C ends it", flush=True)
    try:
        while True:
            if not follower.behind:
                time.sleep(EVERY)
            if follower.poll():
                server.show(*page.content(follower))
    except KeyboardInterrupt:
        return 0
    finally:
        server.stop()


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad watch`."""
    parser.add_argument(
        "file",
        metavar="PATH",
        help="a log of vegrad, a Trainer's trainer_state.json, Lightning's metrics.csv, an event "
        "file of TensorBoard, or a folder with one run; what is not there yet is waited for",
    )
    add = parser.add_argument_group("output").add_argument
    add("--once", action="store_true", help="print one frame; exit code 1 if something was found")
    add("--html", action="store_true", help="serve a page on this machine that renews itself")
    add("--port", type=int, metavar="N", help="of the page (default: any that is free)")
    add("-v", "--verbose", action="store_true", help="of an error, show where it was raised")

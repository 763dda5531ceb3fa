"""A run that is shown until Ctrl-C: in a terminal, and on a page."""

import os
import signal
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from vegrad.runs.log import RunLog

pytest.importorskip("rich")
pty = pytest.importorskip("pty", reason="no pseudo-terminals")

COMMAND = (sys.executable, "-m", "vegrad", "watch")


@pytest.fixture
def log(tmp_path: Path) -> Iterator[RunLog]:
    with RunLog(tmp_path / "run.jsonl", modules=["only"]) as log:
        log.step(0, 2.0, 0.5, 0.25, 0.1, 0.001)
        yield log


class Shown:
    """What a process writes into a pseudo-terminal, which is read all the time."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._text, self._more = descriptor, "", threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        piece = b"."
        while piece:
            try:
                piece = os.read(self._descriptor, 4096)
            except OSError:  # the process has ended
                piece = b""
            with self._more:
                self._text += piece.decode(errors="replace")
                self._more.notify()

    def wait_for(self, said: str) -> None:
        with self._more:
            assert self._more.wait_for(lambda: said in self._text, timeout=300), self._text


def test_the_terminal_follows_a_run_until_ctrl_c(log: RunLog, tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    shell = os.environ | {"TERM": "xterm", "COLUMNS": "80", "LINES": "24"}
    process = subprocess.Popen(
        [*COMMAND, str(tmp_path / "run.jsonl")], stdin=theirs, stdout=theirs, stderr=theirs,
        env=shell,
    )  # fmt: skip
    os.close(theirs)
    shown = Shown(ours)
    shown.wait_for("step 0")
    for step in range(1, 40):
        log.step(step, 1.5, 0.5, 0.25, 0.1, 0.001)
    shown.wait_for("step 39")
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 0
    os.close(ours)


def test_a_page_is_served_until_ctrl_c(log: RunLog, tmp_path: Path) -> None:
    process = subprocess.Popen(
        [*COMMAND, "--html", str(tmp_path / "run.jsonl")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    assert process.stdout.readline() == "Ctrl-C ends it\n"
    with urllib.request.urlopen(url) as answer:
        assert "run.jsonl" in answer.read().decode()
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=300) == 0
    process.stdout.close()

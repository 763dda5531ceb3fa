"""Runs whose paths, models and modules have hostile names; and what the commands make of the files.

`test_shown.py` beside this has the names, and says what is held.
"""

from __future__ import annotations

import io
import json
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.cli.commands import main
from vegrad.sweeps import spread

from tests.test_shown import HOSTILE, assert_error, assert_plain, names

FILES = {
    key: name[:60].replace("\0", "").replace("\udc80", "\udcff") for key, name in HOSTILE.items()
}
files = pytest.mark.parametrize("name", FILES.values(), ids=FILES)


def run_of(name: str, fall: float) -> vegrad.Run:
    """A run that somebody has put together by hand."""
    count, unknown = 60, np.full(60, np.nan)
    steps = np.arange(count, dtype=np.float64)
    return vegrad.Run(
        step=steps,
        loss=np.exp(-steps / 20),
        gradient_norm=1 + np.cos(steps) / 9,
        clipped_norm=unknown,
        learning_rate=unknown,
        update_ratio=unknown,
        validation_loss=unknown,
        modules=tuple(f"{name}{n}" for n in range(6)),
        gradient_log2=np.cumsum(np.full((count, 6), -fall), axis=1),
        about=dict.fromkeys(("path", "model", "source", "name", name), f"{name}{fall}")
        | {"settings": {name: f"{name}{fall}"}},
    )


@names
def test_runs_made_by_hand(name: str) -> None:
    console = pytest.importorskip("rich.console")
    frames = pytest.importorskip("vegrad.watching.frame")
    first, second = run_of(name, 2.0), run_of(name, 9.0)
    found, compared = vegrad.diagnose_run(first), vegrad.compare(first, second)
    for one in (found, compared):
        for text in (str(one), repr(one), one.to_html(), one._repr_html_()):
            assert_plain(text)
    assert_plain(repr(first))
    shown = io.StringIO()
    to = console.Console(file=shown, width=80, color_system=None)
    to.print(frames.frame(first, found, 80, colours=False))
    to.print(frames.waiting(name))
    assert_plain(shown.getvalue())


def log_of(path: Path) -> Path:
    header = {"vegrad_run": 1, "modules": ["a"], "floor_log2": -126.0, "about": {}}
    steps = [{"step": n, "loss": 1.0, "norm": 2.0} for n in range(9)]
    path.write_text("\n".join(map(json.dumps, [header, *steps])) + "\n")
    return path


@files
@pytest.mark.parametrize("words", [["diagnose-run"], ["watch", "--once"], ["compare"]], ids=str)
def test_commands_on_files(name: str, words: list[str], tmp_path: Path, capsys: Any) -> None:
    if words[0] == "watch":
        pytest.importorskip("rich")
    log = str(log_of(tmp_path / f"{name}.jsonl"))
    assert main([*words, *[log] * (1 + (words == ["compare"]))]) in (0, 1)
    written = capsys.readouterr()
    assert_plain(written.out + written.err)


@files
def test_files_that_are_missing_or_of_another_kind(name: str, tmp_path: Path) -> None:
    assert_error(lambda: vegrad.datasets.load(tmp_path / f"{name}.csv"), OSError)
    assert_error(lambda: vegrad.datasets.load_sequences(tmp_path / f"{name}.npz"), OSError)
    for ending in (".csv", ".npz"):
        (tmp_path / f"{name}{ending}").write_bytes(b"")
    assert_error(lambda: vegrad.datasets.load(tmp_path / f"{name}.csv", "y"), ValueError)
    assert_error(lambda: vegrad.datasets.load(tmp_path / f"{name}.npz"), ValueError)
    assert_error(lambda: vegrad.datasets.load_sequences(tmp_path / f"{name}.npz"), ValueError)
    other = log_of(tmp_path / f"{name}.jsonl")
    assert_error(lambda: list(spread(abs, [], about={}, file=other)), ValueError)  # type: ignore[type-var]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@files
def test_a_log_that_breaks_off(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    with vegrad.RunLog(path) as log, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        with open("/dev/full", "wb") as full:
            kept, log._file = log._file, full.fileno()
            log.step(0, loss=1.0)
            log._file = kept
    (told,) = caught
    assert "nothing more is logged" in str(told.message)
    assert_plain(str(told.message), lines=False)


WRITTEN = {key: name for key, name in HOSTILE.items() if not {"\0", "\udc80"} & set(name)}


@pytest.mark.parametrize("name", WRITTEN.values(), ids=WRITTEN)
def test_classes_in_a_terminal_and_in_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A terminal gets them written out; a pipe or a file as they are."""
    name, data, net = name.strip(), tmp_path / "data.csv", tmp_path / "net"
    rows = "".join(f'{n % 2},"{name}{n % 2}"\n' for n in range(16))
    data.write_text(f'a,"{name}"\n{rows}', newline="")
    words = ["train", "--data", str(data), "--target", name, "--out", str(tmp_path), "-q"]
    assert main([*words, "--save", net.name, "--epochs", "1"]) == 0
    for terminal in (True, False):
        shown = io.StringIO(newline="")
        monkeypatch.setattr(shown, "isatty", lambda terminal=terminal: terminal, raising=False)
        monkeypatch.setattr(sys, "stdout", shown)
        assert main(["predict", str(net), str(data)]) == 0
        monkeypatch.undo()
        if terminal:
            assert_plain(shown.getvalue())
        else:
            assert name in shown.getvalue()

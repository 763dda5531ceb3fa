"""`vegrad bench`: everything is there and right; its speed is not tested here."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from vegrad.benchmark import limits, peers
from vegrad.benchmark import run as benchmark
from vegrad.cli import bench, main

TINY = ("--depth", "3", "--width", "8", "--batch", "4", "--seconds", "0.2", "--threads", "1")
SETTINGS = benchmark.Settings(3, 8, 4, "tanh", threads=1, seconds=0.1)
ROWS = {
    "pass": ["lists", "numpy", "torch", "jax", "vegrad"],
    "clip": ["lists", "numpy", "torch", "vegrad-tensors", "vegrad"],
    "adamw": ["lists", "numpy", "torch", "vegrad-tensors", "vegrad"],
}


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


@pytest.fixture
def without_frameworks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pretend that neither PyTorch nor JAX is installed."""

    def installed(peer: Any) -> bool:
        return peer.module not in {"torch", "jax"}

    monkeypatch.setattr(peers, "installed", installed)
    monkeypatch.setattr(limits, "installed", installed)


@pytest.fixture
def in_this_process(without_frameworks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(settings: benchmark.Settings, seen: Callable[[Any], None]) -> None:
        benchmark.Measuring(settings, seen).run()

    monkeypatch.setattr(bench, "measure", measure)


def snapshots(settings: benchmark.Settings = SETTINGS) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    benchmark.Measuring(settings, lambda now: found.append(strict(json.dumps(now)))).run()
    return found


# -------------------------------------------------------------------------------- what is shown


def test_a_run_as_json() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "vegrad", "bench", *TINY, "--json"],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    assert (result.returncode, result.stderr) == (0, "")
    found = strict(result.stdout)
    assert found["done"]
    assert found["threads"] == 1
    assert found["network"] == {
        "layers": 3,
        "width": 8,
        "batch": 4,
        "activation": "tanh",
        "init": "glorot_uniform",
    }
    assert found["versions"]["numpy"] == np.__version__
    assert {work["name"]: [row["name"] for row in work["rows"]] for work in found["work"]} == ROWS
    for work in found["work"]:
        assert work["limit_ms"] > 0
        for row in work["rows"]:
            if row["name"] in {"torch", "jax", "vegrad-tensors"} and "left_out" in row:
                assert find_spec("jax" if row["name"] == "jax" else "torch") is None
                continue
            assert row["median_ms"] > 0
            assert row["ratio"] > 0
            assert row["gflops" if work["name"] == "pass" else "gbytes"] > 0
            assert row["share"] > 0
            assert row["difference"] < work["tolerance"] == 1e-3


@pytest.mark.usefixtures("in_this_process")
def test_a_table_without_frameworks(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY]) == 0
    text = capsys.readouterr().out
    assert "3 layers of width 8, tanh, batch 4, float32" in text
    assert "1 thread on" in text
    assert "Before timing all were held to float64." in text
    for title in ("forward and backward pass", "clip by the joint norm, 6 arrays", "AdamW, with"):
        assert title in text
    assert text.count("PyTorch: torch is not installed") == 3
    assert text.count("vegrad, tensors: torch is not installed") == 2
    assert text.count("JAX: jax is not installed") == 1
    for name in ("Python lists ", "NumPy ", "vegrad "):
        assert text.count(f"\n{name}") == 3
    assert text.count("\nlimit ") == 3
    assert max(map(len, text.splitlines())) <= 90


@pytest.mark.usefixtures("in_this_process")
def test_one_row_of_data_is_held_to_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--batch", "1", "--json"]) == 0
    work = strict(capsys.readouterr().out)["work"][0]
    assert work["limit"]["read"]["gbytes"] > 0
    assert work["limit"]["bytes"] == 2 * 4 * 3 * 8 * 8


@pytest.mark.usefixtures("in_this_process")
def test_who_is_at_the_limit_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    """So that nobody looks for what the machine cannot give."""
    assert main(["bench", *TINY, "--json"]) == 0
    found = strict(capsys.readouterr().out)
    for share, told in ((0.95, 3), (0.91, 0)):
        for work in found["work"]:
            next(row for row in work["rows"] if row["name"] == "vegrad")["share"] = share
        lines = list(bench.text(found))
        assert lines.count("vegrad is at the limit (92 % of it or more)") == told


@pytest.mark.usefixtures("without_frameworks")
def test_lists_that_would_take_too_long_are_estimated() -> None:
    last = snapshots(benchmark.Settings(20, 64, 64, "relu", threads=1, seconds=0.05))[-1]
    row = last["work"][0]["rows"][0]
    assert row["median_ms"] is None
    assert row["estimated_ms"] > 0
    assert "~ estimated" in "\n".join(bench.text(last))


@pytest.mark.usefixtures("without_frameworks")
def test_who_is_off_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    right = peers.NumPyClip.step

    def wrong(self: Any) -> None:
        right(self)
        self.gradients[0] *= 1.01

    monkeypatch.setattr(peers.NumPyClip, "step", wrong)
    last = snapshots()[-1]
    row = last["work"][1]["rows"][1]
    assert row["left_out"].startswith("is off the float64 result by 1.0e-02")
    text = "\n".join(bench.text(last))
    assert "whoever is off is left out below" in text
    assert "NumPy: is off" in text


# ------------------------------------------------------------------------------- ended, or wrong


@pytest.mark.usefixtures("without_frameworks")
@pytest.mark.parametrize("kept", [0, 3])
def test_ctrl_c_keeps_what_is_there(
    kept: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(settings: benchmark.Settings, seen: Callable[[Any], None]) -> None:
        for found in snapshots()[: kept + 1]:
            seen(found)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    assert main(["bench", *TINY]) == 0
    text = capsys.readouterr().out
    assert text.endswith("ended early: these are the figures so far\n")
    assert text.count("–") >= 10


def test_ctrl_c_before_there_is_anything(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure(settings: benchmark.Settings, seen: Callable[[Any], None]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(bench, "measure", measure)
    assert main(["bench", *TINY]) == 130
    assert capsys.readouterr().err == "vegrad: error: interrupted\n"


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="POSIX")
def test_the_measuring_process_ends_with_its_starter(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[str]] = []

    class Kept(subprocess.Popen[str]):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            started.append(self)

    def seen(found: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(subprocess, "Popen", Kept)
    with pytest.raises(KeyboardInterrupt):
        benchmark.measure(SETTINGS, seen)
    assert started[0].poll() is not None


def test_a_network_beyond_the_memory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["bench", *TINY, "--width", "100000000"]) == 2
    error = capsys.readouterr().err
    assert error == "vegrad: error: not enough memory for a network or batch of this size\n"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--depth", "0"), "--depth must be at least 1, not 0"),
        (("--width", "-3"), "--width must be at least 1, not -3"),
        (("--batch", "0"), "--batch must be at least 1, not 0"),
        (("--batch", "x"), "--batch must be a whole number, not 'x'"),
        (("--activation", "Tanh"), "--activation must be one of identity, "),
        (("--threads", "0"), "--threads must be between 1 and the "),
        (("--threads", "100000"), "cores there are, not 100000"),
        (("--seconds", "0"), "--seconds must be above 0 and finite, not 0"),
        (("--seconds", "nan"), "--seconds must be above 0 and finite, not nan"),
        (("--seconds", "inf"), "--seconds must be above 0 and finite, not inf"),
        (("--init", "he_normal"), "unrecognized arguments: --init he_normal"),
    ],
)
def test_wrong_use(
    options: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", *options]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("vegrad: error: ")
    assert message in captured.err
    assert len(captured.err.splitlines()) == 1

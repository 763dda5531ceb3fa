"""`vegrad diagnose-run` and `vegrad watch`: exit codes, forms, and files that are none."""

import json
import signal
import subprocess
import sys
import urllib.request
from pathlib import Path

import numpy as np
import pytest
from vegrad.cli import main
from vegrad.runs.log import RunLog


def log_of(path: Path, losses: np.ndarray) -> str:
    with RunLog(path) as log:
        for step, loss in enumerate(losses.tolist()):
            log.step(step, loss, 0.5)
    return str(path)


@pytest.fixture
def healthy(tmp_path: Path) -> str:
    return log_of(tmp_path / "healthy.jsonl", np.geomspace(2, 0.1, 100))


@pytest.fixture
def sick(tmp_path: Path) -> str:
    return log_of(tmp_path / "sick.jsonl", np.array([2.0] * 60 + [np.nan] * 9))


def test_exit_codes(healthy: str, sick: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["diagnose-run"], ["watch", "--once"]):
        assert main([*command, healthy]) == 0
        assert main([*command, sick]) == 1
        assert main([*command, f"{sick}.missing"]) == 2
        assert main(command) == 2
    assert "No such file" in capsys.readouterr().err


def test_forms(sick: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose-run", sick, "--format", "json"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["verdict"] == "nonfinite"
    assert content["run"]["path"] == sick
    assert main(["diagnose-run", sick, "--format", "github"]) == 1
    assert capsys.readouterr().out.startswith("::error title=vegrad%3A nonfinite::the loss is not")
    assert main(["diagnose-run", sick, "-q"]) == 1
    assert capsys.readouterr().out.startswith("nonfinite: the loss")


def test_several_runs(healthy: str, sick: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose-run", healthy, sick]) == 1
    said = capsys.readouterr().out
    assert (
        said.index(healthy) < said.index("healthy:") < said.index(sick) < said.index("nonfinite:")
    )
    assert main(["diagnose-run", healthy, healthy, "-q"]) == 0
    assert capsys.readouterr().out.count(healthy) == 2
    assert main(["diagnose-run", healthy, sick, "--format", "json"]) == 1
    verdicts = [one["verdict"] for one in json.loads(capsys.readouterr().out)["runs"]]
    assert verdicts == ["healthy", "nonfinite"]
    assert main(["diagnose-run", healthy, f"{sick}.missing"]) == 2
    capsys.readouterr()
    assert main(["diagnose-run", str(Path(sick).parent / "*.jsonl"), "-q"]) == 1
    assert capsys.readouterr().out.count(".jsonl") == 2


def test_too_many_runs_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "a", "b"]) == 2
    assert "unrecognized arguments: b (it takes 1 PATH)" in capsys.readouterr().err
    assert main(["compare", "a", "b", "c"]) == 2
    assert "unrecognized arguments: c (it takes 2 RUN)" in capsys.readouterr().err


def test_the_standard_input_is_not_watched(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", "-"]) == 2
    assert "a file that grows is watched" in capsys.readouterr().err


def test_a_terminal_that_cannot_move_its_cursor_gets_one_frame(
    sick: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "dumb")
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes it for a terminal
    assert main(["watch", sick]) == 1
    assert "nonfinite" in capsys.readouterr().out


def test_findings_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = np.concatenate([[2.0] * 5, np.geomspace(2, 1e6, 95)])
    path = log_of(tmp_path / "run.jsonl", losses)
    assert main(["diagnose-run", path]) == 1
    assert main(["diagnose-run", path, "--ignore", "learning-rate-high"]) == 0
    assert "left out, as asked" in capsys.readouterr().out
    assert main(["diagnose-run", path, "--ignore", "nonsense"]) == 2


def test_options_that_do_not_go_together(healthy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["watch", healthy, "--port", "1"]) == 2
    assert "--port goes with --html" in capsys.readouterr().err
    assert main(["watch", healthy, "--once", "--html"]) == 2
    assert "--once goes without --html" in capsys.readouterr().err
    assert main(["watch", healthy, "--html", "--port", "70000"]) == 2


@pytest.mark.skipif(sys.platform == "win32", reason="Ctrl-C is sent otherwise there")
def test_the_page_is_served_until_ctrl_c(healthy: str) -> None:
    command = [sys.executable, "-m", "vegrad", "watch", healthy, "--html"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        with urllib.request.urlopen(url) as page:
            assert b"Step 99: loss 0.1" in page.read()
        process.send_signal(signal.SIGINT)
        assert process.wait() == 0

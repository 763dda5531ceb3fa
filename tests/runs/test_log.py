"""The log of a training: what is written is read, however the writing ended."""

import json
import os
import subprocess
import sys
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest
from vegrad.diagnosis.noted import noted
from vegrad.flow.finding import Finding
from vegrad.runs import form
from vegrad.runs.log import RunLog
from vegrad.runs.log_reader import LogReader
from vegrad.runs.run import Run
from vegrad.runs.spikes import Spike, SpikeStep


def read(path: Path, *, most: int = 1000, piece: int = 1 << 20) -> Run:
    reader = LogReader(most)
    content = path.read_bytes()
    for begin in range(0, len(content), piece):
        reader.feed(content[begin : begin + piece])
    return reader.run()


def fed(content: bytes) -> Run:
    reader = LogReader()
    reader.feed(content)
    return reader.run()


def written(path: Path, steps: int, first: int = 0) -> None:
    log = RunLog(path, modules=["a", "b"], floor_log2=-126, first_step=first)
    for step in range(first, steps):
        log.step(step, 1.0 / (step + 1), 0.5, None, 1e-3)
        log.sizes(step, [-1.0, -2.0])
    log.close()


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_what_is_written_is_read(tmp_path: Path, piece: int) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path, modules=["in", "out"], floor_log2=-126, about={"model": "Net"})
    log.step(0, 2.5, 1.5, 1.0, 0.01, 0.002)
    log.sizes(0, [-1.234, -inf])
    log.validation(0, 2.25)
    log.step(1, nan, inf)
    log.close()
    run = read(path, piece=piece)
    assert run.step.tolist() == [0, 1]
    assert run.loss[0] == 2.5
    assert run.gradient_norm.tolist() == [1.5, inf]
    assert run.clipped_norm[0] == 1.0
    assert run.learning_rate[0] == 0.01
    assert run.update_ratio[0] == 0.002
    assert run.validation_loss[0] == 2.25
    assert run.modules == ("in", "out")
    assert run.gradient_log2[0].tolist() == [np.float32(-1.23), -inf]
    assert run.nonfinite == {"loss": 1, "gradient_norm": 1}
    assert run.floor_log2 == -126
    assert run.about["model"] == "Net"


def test_findings_and_spikes_are_read_as_they_were(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    finding = noted(7, Finding(kind="vanishing", severity="warning", says="10 % {{of}} it"))
    spike = Spike(5, "α", 4.0, 0.0, (SpikeStep(5, "α", 9.0, 1.0, nan),))
    with_more = Spike(5, "α", 4.0, 0.0, (*spike.window, SpikeStep(6, None, 1.0, 1.0, 0.1)))
    log = RunLog(path)
    log.step(0, 1.0)
    log.note(finding)
    log.spike(spike)
    log.spike(with_more)
    log.close()
    run = read(path)
    assert run.noted[0].finding.message == finding.finding.message
    assert [one.step for one in run.noted] == [7]
    assert repr(run.spikes) == repr((with_more,))


def test_a_resumed_training_supersedes_what_it_does_again(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    written(path, 10)
    before = path.read_bytes()
    written(path, 8, first=6)
    assert path.read_bytes().startswith(before)
    assert read(path).step.tolist() == list(range(8))


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_a_kill_has_cut_off_is_left_out(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "run.jsonl"
    written(path, 10)
    path.write_bytes(path.read_bytes()[:-cut])
    assert read(path).steps in (9, 10)
    written(path, 12, first=9)
    run = read(path)
    assert run.step.tolist() == list(range(12))
    assert run.about.get("broken_lines", 0) <= 1


def test_a_process_that_is_killed_leaves_all_steps(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    code = (
        "import os, signal, sys\n"
        "from vegrad.runs.log import RunLog\n"
        "log = RunLog(sys.argv[1])\n"
        "for step in range(100):\n"
        "    log.step(step, 1.0)\n"
        "os.kill(os.getpid(), signal.SIGKILL if os.name != 'nt' else signal.SIGTERM)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert read(path).steps == 100
    RunLog(path, first_step=100).close()  # the lock went with the process


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = RunLog(path)
    with pytest.raises(ValueError, match=f"is being written by process {os.getpid()}"):
        RunLog(path)
    log.close()
    RunLog(path, first_step=3).close()


def test_a_log_of_another_run_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    RunLog(path, modules=["a"], about={"model": "Net"}).close()
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"whose modules must be 1 \(a\), not 2 \(a, b\)"):
        RunLog(path, modules=["a", "b"], about={"model": "Net"})
    with pytest.raises(ValueError, match="whose model must be 'Net', not 'Other'"):
        RunLog(path, modules=["a"], about={"model": "Other"})
    assert path.read_bytes() == before
    path.write_text('{"vegrad_run": 99, "modules": []}\n')
    with pytest.raises(ValueError, match="must be a log of version 1 to go on with, not 99"):
        RunLog(path)
    path.write_text("a,b\n1,2\n")
    with pytest.raises(ValueError, match="is no log of vegrad"):
        RunLog(path)
    with pytest.raises(TypeError, match="must be the path of a file"):
        RunLog(3)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_warned_of_once(tmp_path: Path) -> None:
    log = RunLog(tmp_path / "run.jsonl")
    log.step(0, 1.0)
    full = os.open("/dev/full", os.O_WRONLY)
    assert log._file is not None
    os.dup2(full, log._file)
    os.close(full)
    with pytest.warns(RuntimeWarning, match=r"run\.jsonl: No space left on device: nothing more"):
        log.step(1, 1.0)
    log.step(2, 1.0)
    log.close()
    assert read(tmp_path / "run.jsonl").steps == 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b'{"vegrad_run": 1', "its first line is cut off"),
        (b"[1]\n", "no header"),
        (b'{"vegrad_run": 2, "modules": []}\n', "version must be 1, not 2"),
        (b"x" * (form.LONGEST + 1), "a line must have"),
        (b"\x00\xff\n", "decode|Expecting"),
    ],
)
def test_what_is_no_log_is_said(content: bytes, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        fed(content)


def test_lines_that_are_broken_are_counted() -> None:
    reader = LogReader()
    reader.feed(b'{"vegrad_run":1,"modules":["a"],"floor_log2":null}\n')
    bad = [
        b"{", b"[]", b"3", b'{"step":-1}', b'{"step":"x"}', b'{"step":1e300}',
        b'{"sizes":0,"log2":[1,2]}', b'{"finding":{}}', b'{"spike":[]}',
        b'{"step":' + b"9" * 5000 + b"}", b"[" * 100_000, b"\xff\xfe",
    ]  # fmt: skip
    reader.feed(b"\n".join([*bad, b'{"step":1,"loss":2}', b'{"later":1}', b""]))
    run = reader.run()
    assert run.loss.tolist() == [2]
    assert run.about["broken_lines"] == len(bad)


def test_a_long_log_stays_bounded() -> None:
    each = [form.has_line(step) for step in range(form.EACH, 2 * form.EACH)]
    assert sum(each) == form.EACH // 2
    sizes = sum(form.has_sizes(step, 100) for step in range(1 << 20))
    assert sizes * 100 < 8 * form.NUMBERS
    assert all(form.has_sizes(step, 100) for step in range(64))
    assert not form.has_sizes(0, 0)


def test_a_long_run_is_read_in_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [json.dumps({"step": step, "loss": step}) for step in range(10_000)]
    header = '{"vegrad_run": 1, "modules": [], "floor_log2": null}'
    path.write_text("\n".join([header, *lines, ""]))
    run = read(path, most=100)
    assert 100 <= run.steps <= 200
    assert run.about["steps"] == 10_000
    assert (np.diff(run.step) == run.step[1]).all()
    assert (run.loss == run.step).all()

"""Files that grow are followed: line by line where that can be, else anew when they change."""

import json
import os
from pathlib import Path

import pytest
from vegrad.runs.log import RunLog
from vegrad.watching.follower import SHOWN, Follower


def written(log: RunLog, first: int, last: int) -> None:
    for step in range(first, last):
        log.step(step, 1.0 / (step + 1), 0.5)


def test_a_log_is_read_on(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    follower = Follower(path)
    assert follower.poll()
    assert "is not there yet" in follower.problem
    assert not follower.poll()
    log = RunLog(path)
    written(log, 0, 10)
    assert follower.poll()
    assert follower.run is not None
    assert follower.run.steps == 10
    assert follower.diagnosis is not None
    assert not follower.poll()
    written(log, 10, 20)
    assert follower.poll()
    assert follower.run.steps == 20
    assert not follower.behind
    log.close()
    follower.close()


def test_a_line_that_is_written_in_two_parts_waits(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text('{"vegrad_run":1,"modules":[],"floor_log2":null}\n{"step":0,"loss":1}\n{"ste')
    follower = Follower(path)
    follower.poll()
    with path.open("a") as file:
        file.write('p":1,"loss":0.5}\n')
    follower.poll()
    assert follower.run is not None
    assert follower.run.loss.tolist() == [1.0, 0.5]
    assert "broken_lines" not in follower.run.about


def test_a_file_that_is_replaced_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    follower = Follower(path)
    with RunLog(path) as log:
        written(log, 0, 10)
    follower.poll()
    with RunLog(tmp_path / "other") as log:
        written(log, 0, 3)
    os.replace(tmp_path / "other", path)
    follower.poll()
    assert follower.run is not None
    assert follower.run.steps == 3


def test_other_files_are_read_when_they_change(tmp_path: Path) -> None:
    path = tmp_path / "trainer_state.json"
    follower = Follower(path)
    for steps in (1, 2):
        path.write_text(
            json.dumps({"log_history": [{"step": n, "loss": 1.0} for n in range(steps)]})
        )
        follower._next = 0.0
        assert follower.poll()
        assert follower.run is not None
        assert follower.run.steps == steps
        assert not follower.poll()
    path.write_text("{")
    follower._next = 0.0
    assert follower.poll()
    assert "no whole JSON" in follower.problem
    assert follower.run.steps == 2  # what was read is still shown


@pytest.mark.parametrize("content", [b"", b"hello", b'{"vegrad_run": 9, "modules": []}\n'])
def test_what_cannot_be_read_is_said(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "run.jsonl"
    path.write_bytes(content)
    follower = Follower(path)
    follower.poll()
    assert follower.run is None
    assert str(path) in follower.problem


def test_a_long_log_takes_bounded_memory(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    lines = [f'{{"step":{step},"loss":1.5}}\n' for step in range(50_000)]
    path.write_text('{"vegrad_run":1,"modules":[],"floor_log2":null}\n' + "".join(lines))
    follower = Follower(path)
    while follower.poll() or follower.behind:
        pass
    assert follower.run is not None
    assert SHOWN <= follower.run.steps <= 2 * SHOWN
    assert follower.run.about["steps"] == 50_000

"""Runs in folders, as programs leave them; and what is said where there is none, or several."""

import io
import json
import os
import threading
from pathlib import Path

import pytest
import vegrad
from vegrad.runs.log import RunLog
from vegrad.runs.places import found_in

TABLE = "epoch,step,train_loss\n0,49,2.5\n0,99,1.5\n"


def put(path: Path, content: str = TABLE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def test_the_last_version_of_lightning_is_taken(tmp_path: Path) -> None:
    for number in (0, 9, 10):
        put(tmp_path / f"lightning_logs/version_{number}/metrics.csv")
    (tmp_path / "lightning_logs/version_11").mkdir()  # in which nothing was logged yet
    last = tmp_path / "lightning_logs/version_10/metrics.csv"
    for folder in (tmp_path, tmp_path / "lightning_logs", last.parent):
        assert found_in(folder) == [last]
    assert vegrad.read_run(tmp_path).about["path"] == os.fspath(last)


def test_one_run_below_is_taken_and_of_several_the_names_are_told(tmp_path: Path) -> None:
    one = put(tmp_path / "runs/Nov29_10-00-00_host/events.out.tfevents.1.host.1.0")
    put(tmp_path / ".cache/version_0/metrics.csv")
    assert found_in(tmp_path) == [one]
    assert found_in(tmp_path / "runs") == [one]
    put(tmp_path / "runs/Nov29_11-00-00_host/events.out.tfevents.1.host.1.0")
    with pytest.raises(ValueError, match=r"more than one run.*, name one: .*10-00.*11"):
        found_in(tmp_path / "runs")


def test_logs_in_a_folder(tmp_path: Path) -> None:
    put(tmp_path / "data.jsonl", '{"text": "no log"}\n')
    with pytest.raises(ValueError, match="there is no run in this folder"):
        found_in(tmp_path)
    RunLog(tmp_path / "b.jsonl").close()
    assert found_in(tmp_path) == [tmp_path / "b.jsonl"]
    RunLog(tmp_path / "a.jsonl").close()
    with pytest.raises(ValueError, match=r"more than one run.*a\.jsonl, .*b\.jsonl$"):
        found_in(tmp_path)


def test_a_checkpoint_of_a_trainer(tmp_path: Path) -> None:
    state = json.dumps({"log_history": [{"step": 10, "loss": 1.0}]})
    for number in (500, 1500, 1000):
        put(tmp_path / f"out/checkpoint-{number}/trainer_state.json", state)
    last = tmp_path / "out/checkpoint-1500/trainer_state.json"
    assert found_in(tmp_path) == found_in(tmp_path / "out") == found_in(last.parent) == [last]


def test_a_name_that_is_nearly_right(tmp_path: Path) -> None:
    put(tmp_path / "metrics.csv")
    with pytest.raises(FileNotFoundError, match=r"did you mean metrics\.csv"):
        vegrad.read_run(tmp_path / "metrcs.csv")
    with pytest.raises(FileNotFoundError, match="No such file or directory: "):
        vegrad.read_run(tmp_path / "nowhere/metrics.csv")


def test_the_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(TABLE.encode())))
    run = vegrad.read_run("-")
    assert run.loss.tolist() == [2.5, 1.5]
    assert run.about["path"] == "standard input"
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"")))
    with pytest.raises(ValueError, match="standard input: it is empty"):
        vegrad.read_run("-")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names")
def test_a_pipe(tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_text, args=(TABLE,))
    writer.start()
    assert vegrad.read_run(path).steps == 2
    writer.join()

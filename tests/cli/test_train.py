"""`vegrad train`: what it writes and says, how it is stopped and goes on, wrong use."""

import csv
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from safetensors.numpy import load_file
from vegrad import MLP, History, clipping, datasets
from vegrad.cli import main, options
from vegrad.cli.task import split

NETWORK, CHECKPOINT = "vegrad-network.safetensors", "vegrad-checkpoint.safetensors"
HISTORY = "vegrad-history.json"
SMALL = ("--data", "wine", "--width", "16", "--quiet", "--force")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> set[str]:
    return {path.name for path in Path().iterdir()}


def train(*arguments: str) -> int:
    return main(["train", *SMALL, *arguments])


def figures(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> dict[str, Any]:
    capsys.readouterr()
    assert train("--json", *arguments) == code
    content: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return content


# --------------------------------------------------------------------------------- what works


def test_it_learns_the_digits(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--json", "--plot", "curve.png"]) == 0
    output = capsys.readouterr()
    assert len(output.err.splitlines()) == 20  # one line for each epoch
    content = json.loads(output.out)
    assert content["validation_accuracy"] >= 0.97
    assert (content["ended"], content["epochs"], content["steps"]) == ("finished", 20, 20 * 45)
    assert content["data"].pop("classes")["3"] == pytest.approx(183 / 1797)
    assert content["data"] == {"name": "digits", "rows": 1438, "held_out": 359}
    assert content["network"]["sizes"] == [64, 128, 128, 10]
    assert content["files"] == {
        "network": NETWORK,
        "history": HISTORY,
        "picture": "curve.png",
        "checkpoint": CHECKPOINT,
    }
    assert files() == set(content["files"].values())
    assert content["loss"] < 0.1
    assert content["rows_per_second"] > 0
    history = History.from_dict(json.loads(Path(HISTORY).read_text()))
    assert history.epoch_loss[-1] == content["loss"]
    assert np.mean(history.coefficient < 1) == content["clipped_share"]
    saved, state = MLP.load(NETWORK).parameters, load_file(CHECKPOINT)
    assert all((state[f"network.{name}"] == array).all() for name, array in saved.items())
    assert Path("curve.png").read_bytes().startswith(b"\x89PNG")


def test_what_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--history", "steps.csv") == 0
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == "wine: 142 rows of 13 columns to learn, 36 held out"
    assert lines[1] == "target: 3 classes: 1 (39.9 %), 0 (33.1 %), 2 (27.0 %)"
    assert lines[2] == "baseline: accuracy 39.9 % (always 1)"
    assert lines[3].startswith("20 epochs, 100 steps; ")
    assert lines[3].endswith(" rows/s")
    assert lines[4].startswith("loss 0.")
    assert lines[5].startswith("validation loss 0.")
    assert re.fullmatch(r".*, accuracy \d+\.\d % \(always the commonest: \d+\.\d %\)", lines[5])
    assert lines[6].endswith(" % of the steps (--clip global_norm:1)")
    assert lines[7:] == [f"network: {NETWORK}", "history: steps.csv", f"checkpoint: {CHECKPOINT}"]
    assert output.err == ""
    with open("steps.csv", newline="") as file:
        assert len(list(csv.reader(file))) == 101


def test_the_held_out_rows_are_not_learned(capsys: pytest.CaptureFixture[str]) -> None:
    content = figures(capsys, "--validation", "0", "--epochs", "1")
    assert (content["validation_loss"], content["validation_accuracy"]) == (None, None)
    assert (content["data"]["rows"], content["data"]["held_out"]) == (178, 0)
    content = figures(capsys, "--validation", "1e-9", "--epochs", "1")
    assert content["data"]["held_out"] == 1
    data = datasets.load("wine")
    learn, hold = split(len(data.x), 0.2, 3)
    assert sorted([*learn, *hold]) == list(range(178))
    figures(capsys, "--seed", "3", "--epochs", "2")
    net = MLP.load(NETWORK)
    history = json.loads(Path(HISTORY).read_text())
    assert net.loss(data.x[hold], data.y[hold]) == history["validation_loss"][-1]


def test_every_rule_of_clipping_has_a_row() -> None:
    rules = {
        thing
        for thing in vars(clipping).values()
        if isinstance(thing, type)
        and issubclass(thing, clipping.Rule)
        and not thing.__name__.startswith("_")
    }
    assert {row.rule for row in options.CLIPS.values()} == rules - {clipping.Rule}
    steps = {type(row[0](1e-3)) for row in options.OPTIMIZERS.values()}
    assert steps == {vegrad.SGD, vegrad.Adam, vegrad.AdamW, vegrad.Lion}


@pytest.mark.parametrize("clip", [*options.CLIPS, "global_norm:0.01"])
def test_clips(clip: str, capsys: pytest.CaptureFixture[str]) -> None:
    content = figures(capsys, "--clip", clip)
    assert content["validation_accuracy"] > 0.85
    assert clip != "none" or content["clipped_share"] == 0
    assert clip != "global_norm:0.01" or content["clipped_share"] > 0.99
    name, _, number = clip.partition(":")
    row = options.CLIPS[name]
    assert f"clip={row.rule.__name__}(" in content["optimizer"]
    assert f"{row.argument}={number or row.default}" in content["optimizer"]


@pytest.mark.parametrize("schedule", options.SCHEDULES)
@pytest.mark.parametrize("optimizer", options.OPTIMIZERS)
def test_optimizers_and_schedules(
    optimizer: str, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--momentum", "0.5"] if optimizer == "sgd" else []
    more += ["--optimizer", optimizer, "--schedule", schedule]
    more += ["--weight-decay", "0.125", "--batch", "8", "--lr", "0.003"]
    content = figures(capsys, *more)
    assert content["validation_accuracy"] > 0.9
    assert content["optimizer"].startswith(type(options.OPTIMIZERS[optimizer][0](1)).__name__)
    assert "weight_decay=0.125" in content["optimizer"]
    assert ("momentum=0.5" in content["optimizer"]) == (optimizer == "sgd")
    rates = json.loads(Path(HISTORY).read_text())["learning_rate"]
    assert max(rates) == 0.003
    assert (rates[0] == 0.003) == (schedule == "constant")
    assert (rates[-1] < 1e-4) == (schedule == "cosine")


def test_a_csv_file_of_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{a},{b},{3 * a - b}\n" for a, b in rng.normal(size=(200, 2)))
    Path("data.csv").write_text("a,b,sum\n" + rows)
    content = figures(capsys, "--data", "data.csv", "--target", "sum")
    assert content["network"]["loss"] == "mse"
    assert content["validation_loss"] < 0.05
    assert content["validation_accuracy"] is None


# ----------------------------------------------------------------------- stopping and going on


def test_a_resume_is_as_if_it_had_never_stopped() -> None:
    cosine = ("--optimizer", "sgd", "--schedule", "cosine", "--clip", "adagc")
    for more in ((), cosine, ("--clip", "skip_spike:2"), ("--clip", "autoclip:30")):
        assert train(*more, "--epochs", "6") == 0
        expected = [Path(name).read_bytes() for name in (NETWORK, HISTORY, CHECKPOINT)]
        for resume in ([], ["--resume"], ["--resume", CHECKPOINT]):
            end = "6" if resume or "cosine" in more else "3"  # a cosine depends on the last epoch
            assert train(*more, "--epochs", end, *resume) == 0
        assert [Path(name).read_bytes() for name in (NETWORK, HISTORY, CHECKPOINT)] == expected


@pytest.mark.skipif(os.name != "posix", reason="signals to another process")
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_loses_nothing(name: str) -> None:
    arguments = ["train", *SMALL, "--epochs", "100000", "--plot", "a curve.png"]
    process = subprocess.Popen(
        [sys.executable, "-m", "vegrad", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )
    while not Path(CHECKPOINT).exists() or len(load_file(CHECKPOINT)["history.epoch_loss"]) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(getattr(signal, name))
    output, errors = process.communicate()
    assert process.returncode == 130
    message, heading, command = errors.splitlines()
    epochs = len(load_file(CHECKPOINT)["history.epoch_loss"])
    assert message == f"vegrad: interrupted; the checkpoint is of epoch {epochs}"
    assert heading == "To go on:"
    assert shlex.split(command) == ["vegrad", *arguments, "--resume", CHECKPOINT]
    assert f"checkpoint: {CHECKPOINT}" in output
    assert files() == {NETWORK, HISTORY, CHECKPOINT, "a curve.png"}
    MLP.load(NETWORK)
    seen = History.from_dict(json.loads(Path(HISTORY).read_text()))
    assert epochs <= seen.epochs <= epochs + 1

    end = ("--epochs", str(epochs + 2))
    assert main([*shlex.split(command)[1:], *end]) == 0
    gone_on = [Path(file).read_bytes() for file in (NETWORK, HISTORY)]
    assert train(*end) == 0
    assert [Path(file).read_bytes() for file in (NETWORK, HISTORY)] == gone_on


def interrupting(monkeypatch: pytest.MonkeyPatch, at_epoch: int) -> None:
    """Press Ctrl-C in the validation of this epoch; a new training has one call before it."""
    calls, loss = [], MLP.loss

    def stop(self: MLP, x: Any, target: Any) -> float:
        calls.append(1)
        if len(calls) == at_epoch + 1:
            raise KeyboardInterrupt
        return loss(self, x, target)

    monkeypatch.setattr(MLP, "loss", stop)


def test_an_interrupt_before_the_first_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, 1)
    Path(NETWORK).write_text("of an earlier run")
    assert train() == 130
    expected = "vegrad: interrupted before the first checkpoint: nothing was saved\n"
    assert capsys.readouterr().err == expected
    assert files() == {NETWORK}
    assert Path(NETWORK).read_text() == "of an earlier run"


def test_an_interrupt_before_the_next_checkpoint(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train("--epochs", "2", "--checkpoint", "a.st")
    before = {name: Path(name).read_bytes() for name in files()}
    interrupting(monkeypatch, 0)
    assert train("--checkpoint", "b.st", "--resume=a.st") == 130
    message, _, command = capsys.readouterr().err.splitlines()
    assert message.endswith(
        "interrupted before the next checkpoint: nothing was saved after epoch 2"
    )
    assert command.endswith("--checkpoint b.st --resume a.st")
    assert {name: Path(name).read_bytes() for name in files()} == before
    content = figures(capsys, "--resume", "a.st", "--epochs", "1")
    assert (content["epochs"], content["rows_per_second"]) == (2, None)  # nothing left to do


def test_an_interrupt_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupting(monkeypatch, 3)
    content = figures(capsys, code=130)
    assert (content["ended"], content["epochs"]) == ("interrupted", 2)
    assert content["resume"].endswith(f"--json --resume {CHECKPOINT}")


def test_what_a_kill_left_is_removed() -> None:
    for name in (NETWORK, CHECKPOINT):
        left = Path(f".0123456789abcdef.{name}")
        left.touch()
        os.utime(left, (1e9, 1e9))
    assert train("--epochs", "1") == 0
    assert files() == {NETWORK, HISTORY, CHECKPOINT}


def test_the_handler_of_sigterm_is_put_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert train("--epochs", "1") == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_in_another_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(train("--epochs", "1")))
    thread.start()
    thread.join()
    assert codes == [0]


# ------------------------------------------------------------------- a gradient that is not finite


def test_a_gradient_that_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    assert train("--optimizer", "sgd", "--lr", "1e25", "--clip", "none") == 1
    errors = capsys.readouterr().err
    assert errors.startswith('vegrad: error: training ended: grads["layers.')
    error, *findings = errors.splitlines()
    assert error.endswith("(in step 1 of training, in epoch 1)")
    assert findings[0].startswith("overshooting: from step 0 on steps are too long")
    assert "lower the learning rate from 1e+25 by powers of ten" in findings[1]
    assert files() == {NETWORK, HISTORY}


def test_a_gradient_that_is_not_finite_later(capsys: pytest.CaptureFixture[str]) -> None:
    """The rate rises with the steps."""
    options = "--optimizer sgd --schedule warmup --lr 10 --epochs 1000 --clip none --loss mse"
    content = figures(capsys, *options.split(), "--activation", "identity", code=1)
    assert content["ended"] == "nonfinite"
    assert 'grads["layers.' in content["message"]
    assert content["epochs"] >= 1
    assert files() == {NETWORK, HISTORY, CHECKPOINT}
    history = History.from_dict(json.loads(Path(HISTORY).read_text()))
    assert history.epochs == content["epochs"]
    assert np.isfinite(MLP.load(NETWORK).parameters["layers.0.weight"]).all()


# ----------------------------------------------------------------------------------- wrong use

WRONG = {
    "--optimizer rmsprop": "--optimizer must be one of adamw, adam, sgd, lion, not 'rmsprop'",
    "--schedule linear": "--schedule must be one of constant, warmup, cosine, not 'linear'",
    "--clip agc": "--clip must be one of value, .*, none, not 'agc'",
    "--clip norm:": "--clip norm: must be followed by a number, not ''",
    "--clip norm:x": "--clip norm: must be followed by a number, not 'x'",
    "--clip norm:-1": "--clip norm:-1: max_norm must be at least 0",
    "--clip autoclip:101": "percentile must be from 0 to 100",
    "--clip none:1": "--clip none takes no number, not 'none:1'",
    "--momentum 0.9": "--momentum goes with --optimizer sgd, not with adamw",
    "--lr nan": "lr must be at least 0, not nan",
    "--lr x": "--lr must be a number, not 'x'",
    "--weight-decay -1": "weight_decay must be at least 0",
    "--epochs 0": "--epochs must be at least 1, not 0",
    "--batch 0": "--batch must be at least 1, not 0",
    "--validation 1": "--validation must be at least 0 and under 1, not 1.0",
    "--validation nan": "--validation must be at least 0 and under 1, not nan",
    "--validation 0.999": "--validation 0.999 leaves none of 178 rows to learn",
    "--loss hinge": "loss must be one of mse, .* not 'hinge'",
    "--depth 0": "--depth must be at least 1, not 0",
    "--data hole.csv --target y --fill none": 'finite, not nan as in line 3, column "b"',
    "--save no/net": "no/net: No such file",
    "--checkpoint hole.csv/state": "hole.csv/state: Not a directory",
    "--plot no/curve.png": "no/curve.png: No such file",
    "--history .": "--history must end in .json or .csv, not '.'",
    "--save .": "'.' must be a file, not a folder",
    "--history steps.txt": "--history must end in .json or .csv, not 'steps.txt'",
    "--history .csv": "--history must end in .json or .csv, not '.csv'",
    "--plot curve.txt": "--plot must end in .png or .svg or .pdf, not 'curve.txt'",
    "--save a --checkpoint ./a": "outputs must be different files",
    "--resume none": "none: No such file",
    "--resume": "vegrad-checkpoint.safetensors: No such file",
    "--resume hole.csv": "hole.csv cannot be read as vegrad's",
    "--resume cut": "cut cannot be read as vegrad's",
    "--resume network": "network cannot be read as vegrad's: it holds 'MLP', not 'checkpoint'",
    "--resume state --seed 1": "seed must be 0 as it was in state, not 1",
    "--resume state --lr 1": "lr must be 0.001 as it was in state, not 1.0",
    "--resume state --schedule cosine": "lr must be 0.001 as it was in state, not a schedule",
    "--resume state --optimizer lion": "optimizer must be AdamW as it was in state, not Lion",
    "--resume state --clip zclip": "clip must be GlobalNorm as it was in state, not ZClip",
    "--resume state --clip global_norm:2": "max_norm must be 1.0 as it was in state, not 2.0",
    "--resume state --depth 4": "state: the network's sizes must be",
    "--resume state --validation 0": "state: the fit's rows must be 142",
}


@pytest.fixture(scope="module")
def some_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("some")
    names = {"--save": "network", "--checkpoint": "state", "--history": "h.json"}
    made = [word for option, name in names.items() for word in (option, str(folder / name))]
    assert train("--epochs", "1", *made) == 0
    (folder / "cut").write_bytes((folder / "state").read_bytes()[:-100])
    (folder / "hole.csv").write_text("a,b,y\n1,2,0\n3,,1\n5,6,0\n")
    return folder


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=WRONG)
def test_wrong_use_is_one_line_before_training(
    arguments: str,
    message: str,
    some_files: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(some_files)
    before = files()
    capsys.readouterr()
    assert train(*arguments.split()) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vegrad: error: ")
    assert output.err.count("\n") == 1
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(output.err)
    assert files() == before


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]) -> None:
    Path("locked").mkdir(mode=0o500)
    assert train("--save", "locked/net") == 2
    assert "locked/net: Permission denied" in capsys.readouterr().err


# ----------------------------------------------------------------------------- what is found


SICK = ("--depth", "30", "--activation", "sigmoid", "--init", "glorot_uniform", "--epochs", "3")


def test_findings_are_printed_when_met_and_at_the_end(capsys: pytest.CaptureFixture[str]) -> None:
    assert train(*SICK) == 1  # quietly
    output = capsys.readouterr()
    assert output.err.startswith("vanishing: each layer passes on")
    lines = output.out.splitlines()
    assert lines[3].startswith("vanishing: ")  # below the data, above all figures
    assert files() == {NETWORK, HISTORY, CHECKPOINT}
    history = History.from_dict(json.loads(Path(HISTORY).read_text()))
    assert history.findings[0].kind == "vanishing"


def test_findings_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    content = figures(capsys, *SICK, code=1)
    assert content["ended"] == "finished"
    assert content["findings"][0]["kind"] == "vanishing"
    assert figures(capsys, "--epochs", "2")["findings"] == []


def test_a_finding_may_stop_it(capsys: pytest.CaptureFixture[str]) -> None:
    content = figures(capsys, *SICK, "--stop-on", "critical", code=1)
    assert (content["ended"], content["epochs"]) == ("stopped", 0)
    assert content["message"] == "stopped by a finding: vanishing"
    rising = ("--optimizer", "sgd", "--schedule", "warmup", "--lr", "100", "--epochs", "60")
    content = figures(capsys, *rising, "--clip", "none", "--stop-on", "warning", code=1)
    assert content["ended"] == "stopped"
    assert content["findings"][0]["kind"] == "overshooting"
    assert content["findings"][0]["severity"] in ("warning", "critical")
    assert content["epochs"] < 60
    assert main(["train", *SMALL, "--stop-on", "never"]) == 2
    assert "--stop-on" in capsys.readouterr().err

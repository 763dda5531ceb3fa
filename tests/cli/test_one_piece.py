"""The commands are of one piece: the same words are taken everywhere, and slips are answered."""

from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.cli import main
from vegrad.cli.commands import parsers

SMALL = ("--data", "wine", "--width", "16", "--epochs", "2", "--quiet")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def said(capsys: pytest.CaptureFixture[str], line: str, code: int = 0) -> str:
    """Run a command and return what it says, on stderr where it is used wrongly."""
    capsys.readouterr()
    assert main(line.split()) == code
    text = capsys.readouterr()
    return text.err if code == 2 else text.out


HINTS = {
    "diagnose --lr 1": "unrecognized arguments: --lr 1 (--lr goes with cure, train, descent)",
    "train --learning-rate 1": "(did you mean --lr?)",
    "train --batch-size 3": "(did you mean --batch?)",
    "train --depht=3": "(did you mean --depth?)",
    "diagnose table.tsv": "(did you mean --data table.tsv?)",
    "diagnose --depth 3.5": "error: --depth must be a whole number, not '3.5'",
    "train --lr high": "error: --lr must be a number, not 'high'",
    "train --lr": "error: --lr needs a value",
    "watch": "error: PATH is needed",
    "explain batchnorm": "(did you mean normalization?)",
    "explain sigmoid": "sigmoid is an activation: `vegrad theory sigmoid` tells of it",
    "explain lr": "(did you mean learning-rate-high or learning-rate-low?)",
    "theory tanh --activation relu": "activation must be given once, not as tanh and relu",
}


@pytest.mark.parametrize("line", HINTS)
def test_slips(line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert HINTS[line] in said(capsys, line, 2)


def test_names_of_other_commands_are_taken(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("theory --cell lstm", "diagnose", "cure", "train", "descent"):
        one, two = (
            parsers()[0].parse_args(f"{command} {option} 24".split())
            for option in ("--width", "--hidden")
        )
        assert one == two
    assert said(capsys, "theory sigmoid -q") == said(capsys, "theory --activation sigmoid -q")


def test_defaults_that_differ_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("train", "diagnose", "cure", "descent"):
        with pytest.raises(SystemExit):
            main([command, "--help"])
        text = " ".join(capsys.readouterr().out.split())
        assert "By default train takes 3 layers of 128, relu, he_normal; diagnose, cure" in text
    lines = said(capsys, "train --data wine --epochs 1").splitlines()
    assert lines[3:5] == [
        "3 layers of width 128 (13 inputs, 3 outputs), float32",
        "relu, he_normal, cross_entropy",
    ]


def test_a_training_is_watched_by_its_log_or_its_history(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["train", *SMALL, "--log", "run.jsonl", "--out", "logged"]) == 0
    assert vegrad.read_run("logged").steps == 10
    assert "log: logged/run.jsonl" in capsys.readouterr().out
    assert main(["train", *SMALL, "--log", "run.jsonl", "--out", "logged"]) == 2
    more = ("--log", "run.jsonl", "--out", "logged", "--force")
    assert main(["train", *SMALL, *more, "--epochs", "1"]) == 0
    assert vegrad.read_run("logged").steps == 5
    assert main(["train", *SMALL, *more, "--resume"]) == 0
    assert vegrad.read_run("logged").steps == 10
    assert main(["train", *SMALL, "--out", "bare"]) == 0
    assert main(["watch", "bare", "--once"]) == 0
    for file in Path("bare").iterdir():
        file.unlink()
    assert "*history*.json" in said(capsys, "watch bare --once", 2)


def test_tables_by_tabs_and_rows_that_are_flattened(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 5, 2))
    np.savez("steps.npz", x=x, y=np.arange(60) % 2)
    table = np.c_[x[:, 0], np.arange(60) % 2]
    np.savetxt("table.tsv", table, delimiter="\t", header="a\tb\tc", comments="")
    text = said(capsys, "diagnose --data table.tsv --target c")
    assert "table.tsv: 60 rows of 2 columns" in text
    text = said(capsys, "diagnose --data steps.npz")
    assert "steps.npz: 60 rows of 5 × 2 = 10 columns" in text
    assert "x: flattened, as of images; sequences go with --cell (tanh, relu, lstm, gru)" in text


def test_a_descent_of_ones_own_that_diverges_has_a_code(
    capsys: pytest.CaptureFixture[str],
) -> None:
    line = "descent --data wine --depth 3 --steps 4 --force --lr"
    assert "own: diverges" in said(capsys, f"{line} 1000", 1)
    assert "own: learns" in said(capsys, f"{line} 0.01")

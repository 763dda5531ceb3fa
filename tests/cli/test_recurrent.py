"""Recurrent networks in the shell: data, options, training, and the options that do not fit."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import History, datasets
from vegrad.cli import main

QUICK = ("--cell", "tanh", "--width", "8", "--quiet", "--force")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def sequences() -> str:
    """A file of sequences of unequal length, whose class is the sign of their first step."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(120, 9, 3))
    np.savez("sequences.npz", x=x, y=x[:, 0, 0] > 0, lengths=rng.integers(4, 10, size=120))
    return "sequences.npz"


def content(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return what is printed as JSON; exit code 1 is a finding in a training that short."""
    capsys.readouterr()
    assert main([*arguments, "--json"]) in (0, 1)
    found: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return found


# ----------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "options",
    [("--targets", "all"), (), ("--loss", "binary_cross_entropy")],
    ids=["all", "last", "binary"],
)
def test_where_one_class_is_nearly_all_each_is_told_to_count_alike(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...]
) -> None:
    rng = np.random.default_rng(0)
    y = (rng.random((60, 7)) < 0.1).astype(int)
    np.savez(
        "rare.npz",
        x=rng.normal(size=(60, 7, 3)),
        y=y if "all" in options else y[:, 0],
        lengths=rng.integers(1, 8, 60),
    )
    found = content(capsys, "train", *QUICK, "--data", "rare.npz", "--epochs", "1", *options)
    assert 0 <= found["class_accuracy"] <= 1
    assert found["guessing_accuracy"] > 0.7


def test_an_lstm_learns_the_temporal_order(capsys: pytest.CaptureFixture[str]) -> None:
    found = content(
        capsys, "train", "--cell", "lstm", "--width", "32", "--init", "chrono", "--lr", "0.003",
        "--data", "temporal_order:20", "--epochs", "5", "--quiet"
    )  # fmt: skip
    assert found["validation_accuracy"] > 0.95
    assert found["data"].pop("classes").keys() == {"AA", "AB", "BA", "BB"}
    assert found["data"] == {"name": "temporal_order", "rows": 3200, "held_out": 800}
    network = found["network"]
    assert (network["inputs"], network["hidden"], network["outputs"]) == (6, 32, 4)
    assert (network["cell"], network["init"], network["time_scale"]) == ("lstm", "chrono", 20)
    assert (network["targets"], network["loss"]) == ("last", "cross_entropy")
    loaded = vegrad.RNN.load(found["files"]["network"])
    assert loaded.config == network
    history = History.from_dict(json.loads(Path(found["files"]["history"]).read_text()))
    assert history.steps == 500


def test_what_training_says(sequences: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", *QUICK, "--data", sequences, "--epochs", "1"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    steps = "sequences of 4 to 9 steps, 3 inputs to learn, 24 held out"
    assert lines[0] == f"sequences.npz: 96 {steps}"
    assert main(["train", *QUICK, "--data", "copy:5", "--epochs", "1"]) in (0, 1)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "copy: 3200 sequences of 25 steps, 10 inputs to learn, 800 held out"


def test_held_out_rows_keep_their_lengths(
    sequences: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = content(capsys, "train", *QUICK, "--data", sequences, "--epochs", "2", "--seed", "3")
    data = datasets.load_sequences(sequences)
    assert data.lengths is not None
    hold = np.sort(np.random.default_rng(3).permutation(120)[:24])
    network = vegrad.RNN.load(found["files"]["network"])
    loss = network.loss(data.x[hold], data.y[hold], lengths=data.lengths[hold])
    assert loss == found["validation_loss"]


@pytest.mark.parametrize("truncation", ["5", "5,10"])
def test_truncation(truncation: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("train", *QUICK, "--data", "copy:5", "--epochs", "1", "--validation", "0")
    whole = content(capsys, *options)
    found = content(capsys, *options, "--truncation", truncation)
    assert found["steps"] == 5 * whole["steps"]  # one after each window of 25 steps


def test_a_training_goes_on(sequences: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = ("train", *QUICK, "--data", sequences, "--cell", "gru")
    whole = content(capsys, *options, "--epochs", "4")
    content(capsys, *options, "--epochs", "2")
    assert content(capsys, *options, "--epochs", "4", "--resume")["loss"] == whole["loss"]


def test_options_reach_the_network(sequences: str, capsys: pytest.CaptureFixture[str]) -> None:
    options = "--cell gru --layers 2 --width 5 --forget-bias 1.5 --init orthogonal --seed 4"
    more = ("--dtype", "float64", "--loss", "binary_cross_entropy", "--epochs", "1", "--quiet")
    found = content(capsys, "train", *options.split(), *more, "--data", sequences)
    assert found["network"] == {
        "inputs": 3,
        "hidden": 5,
        "outputs": 1,
        "cell": "gru",
        "layers": 2,
        "targets": "last",
        "loss": "binary_cross_entropy",
        "init": "orthogonal",
        "forget_bias": 1.5,
        "time_scale": None,
        "input_variance": None,
        "dtype": "float64",
        "seed": 4,
    }
    found = content(capsys, "train", *QUICK, "--init", "critical", "--epochs", "1")
    assert found["network"]["input_variance"] == pytest.approx(1 / 6)


def test_one_target_a_row_by_option(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    np.savez("square.npz", x=rng.normal(size=(50, 4, 2)), y=rng.normal(size=(50, 4)))
    options = ("train", *QUICK, "--data", "square.npz", "--epochs", "1")
    assert content(capsys, *options)["network"]["targets"] == "all"
    network = content(capsys, *options, "--targets", "last")["network"]
    assert (network["targets"], network["outputs"]) == ("last", 4)


# ---------------------------------------------------------------------------------- wrong use


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--cell lstm --depth 3", "--depth goes with a network of layers, not with --cell"),
        ("--cell lstm --residual", "--residual goes with a network of layers"),
        ("--cell lstm --norm rms", "--norm goes with a network of layers"),
        ("--cell lstm --activation relu", "--activation goes with a network of layers"),
        ("--cell lstm --sigma-w 1", "--sigma-w goes with a network of layers"),
        ("--cell lstm --target y", "--target goes with a network of layers"),
        ("--layers 2", "--layers goes with --cell (tanh, relu, lstm, gru)"),
        ("--forget-bias 1", "--forget-bias goes with --cell"),
        ("--targets all", "--targets goes with --cell"),
        ("--truncation 5", "--truncation goes with --cell"),
        ("--cell rnn", "--cell must be one of tanh, relu, lstm, gru, not 'rnn'"),
        ("--cell lstm --layers 0", "--layers must be at least 1, not 0"),
        ("--cell lstm --truncation 5,2", "K2 must be at least K1, 5, not 2"),
        ("--cell lstm --truncation five", "must be K or K1,K2, whole numbers from 1 on"),
        ("--cell lstm --truncation 0", "must be K or K1,K2, whole numbers from 1 on, not '0'"),
        ("--cell lstm --truncation 1,2,3", "must be K or K1,K2"),
        ("--cell lstm --data digits", "temporal_order, adding, copy or a .npz file, not"),
        ("--cell lstm --data table.csv", "or a .npz file, not --data table.csv"),
        ("--data adding:30", "--data adding:30 is sequences: it goes with --cell"),
        ("--cell lstm --data adding:long", "a number of steps, not 'long'"),
        ("--cell lstm --data adding:5", "steps must be at least 10, not 5"),
        ("--cell lstm --data adding --targets all", "--targets of adding must be last"),
        ("--cell lstm --data none.npz", "none.npz does not exist"),
        (
            "--cell lstm --init he_normal",
            "--init he_normal goes without --cell: it must",
        ),
        ("--cell lstm --init identity", 'init="identity" is for cell tanh and relu'),
        ("--cell lstm --time-scale 9", "--time-scale goes with --init chrono, not with --init d"),
        ("--cell tanh --forget-bias 1", "forget_bias is for cell lstm and gru, not 'tanh'"),
    ],
)
def test_what_does_not_go_together(
    options: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *options.split()]) == 2
    error = capsys.readouterr().err
    assert re.fullmatch(r"vegrad: error: .*\n", error)
    assert message in error
    assert list(Path().iterdir()) == []


def test_values_that_are_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.ones((20, 5, 2)) * np.arange(20)[:, None, None]
    x[3, 2, 1] = np.nan
    np.savez("broken.npz", x=x, y=np.arange(20) % 2)
    assert main(["train", *QUICK, "--data", "broken.npz"]) == 2
    where = "broken.npz: values must be finite, not nan as in row 3, step 2, column 1"
    assert where in capsys.readouterr().err


# ------------------------------------------------------------------ diagnosis, cure and the demo


def test_a_diagnosis(capsys: pytest.CaptureFixture[str]) -> None:
    task = ("--data", "temporal_order:120", "--width", "32")
    options = ("diagnose", "--cell", "lstm", *task, "--plot", "flow.png")
    assert main(list(options)) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "vanishing: at least 58 % of the target can be told, by a linear fit,"
    )
    numbers = lines[lines.index("temporal_order: 4000 sequences of 120 steps, 6 inputs") :]
    network = "1 layer of 32 lstm units (6 inputs, 4 outputs), float32, loss 1."
    classes = "4 classes: BA (25.7 %), BB (25.6 %), AA (24.6 %), AB (24.1 %)"
    assert numbers[1:3] == [f"target: {classes}", "baseline: accuracy 25.7 % (always BA)"]
    assert numbers[3].startswith(network)
    assert numbers[4] == "default initialization, cross_entropy of the last step"
    assert numbers[6].split()[:3] == ["layer", "gain", "a"]
    assert lines[-1] == "picture: flow.png"
    assert Path("flow.png").read_bytes().startswith(b"\x89PNG")
    found = content(capsys, *options, "--force")
    assert found["data"].pop("classes").keys() == {"AA", "AB", "BA", "BB"}
    assert found["data"] == {"name": "temporal_order", "rows": 4000, "steps": 120, "columns": 6}
    assert (found["verdict"], found["network"]["cell"]) == ("vanishing", "lstm")
    assert np.shape(found["flow"]["delta_log2"]) == (1, 120)
    content(capsys, *options, "--force", "--html", "page.html")
    assert "The flow through time" in Path("page.html").read_text()


def test_rows_of_unequal_length_are_diagnosed(
    sequences: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = content(capsys, "diagnose", *QUICK[:4], "--data", sequences, "--batch", "50")
    assert found["data"].pop("classes").keys() == {"True", "False"}
    assert found["data"] == {"name": "sequences.npz", "rows": 50, "steps": 9, "columns": 3}


def test_where_a_value_is_not_finite(capsys: pytest.CaptureFixture[str]) -> None:
    x = np.random.default_rng(0).normal(size=(20, 5, 2))
    x[3, 2, 1] = np.nan
    np.savez("broken.npz", x=x, y=np.arange(20) % 2)
    assert main(["diagnose", *QUICK[:4], "--data", "broken.npz", "--plot", "none.png"]) == 1
    text = capsys.readouterr().out
    assert "nonfinite" in text
    assert "row 3, step 2, column 1" in text
    assert not Path("none.png").exists()


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--recurrent"]) == 0
    text = capsys.readouterr().out
    assert (
        "at least 58 % of the target can be told, by a linear fit, from what\nlies before" in text
    )
    assert "picture: vegrad-flow-through-time.png" in text
    assert Path("vegrad-flow-through-time.png").read_bytes().startswith(b"\x89PNG")
    assert "cured: vanishing → healthy" in text
    proof = text.partition("proof: ")[2]
    before, after = map(float, re.findall(r"([\d.]+) %", proof))
    assert before < 40
    assert after >= 90


def test_a_cure_with_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("cure", "--cell", "lstm", "--width", "32", "--quiet", "--save", "net.safetensors")
    # A rate that is raised must hold the goal to the end of a training, which takes passes.
    found = content(capsys, *options, "--patch", "patch.py", "--budget", "3")
    assert found["cured"]
    assert found["data"]["steps"] == 60
    assert vegrad.RNN.load("net.safetensors").config["hidden"] == 32
    assert "network.parameters" in Path("patch.py").read_text(encoding="utf-8")


@pytest.mark.parametrize("command", ["diagnose", "cure"])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--memory 9", "--memory goes with --cell (tanh, relu, lstm, gru)"),
        ("--cell lstm --memory 0", "--memory must be at least 1, not 0"),
    ],
)
def test_a_memory_that_is_none(
    capsys: pytest.CaptureFixture[str], command: str, options: str, message: str
) -> None:
    assert main([command, *options.split()]) == 2
    assert message in capsys.readouterr().err

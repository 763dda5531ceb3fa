"""`vegrad theory --cell`: what is expected of recurrent cells, as text and as JSON."""

import json
from itertools import pairwise

import pytest
from vegrad import theory
from vegrad.cli.commands import main


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
def test_text(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cell", cell, "--hidden", "24", "--inputs", "8"]) == 0
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    assert text.startswith(f"{cell}, 24 units, 8 inputs of rms 1")
    assert "critical" in text if cell in ("tanh", "relu") else "bias" in text


@pytest.mark.parametrize("cell", ["relu", "lstm"])
def test_a_quiet_one_says_a_sentence(cell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cell", cell, "--hidden", "24", "--inputs", "8", "-q"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2
    assert lines[0].startswith(f"{cell} with weights as PyTorch's: ‖δ‖ gets 0.")


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--cell", "tanh", "--hidden", "50", "--input-rms", "2", "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert (content["cell"], content["hidden"], content["input_rms"]) == ("tanh", 50, 2.0)
    given = (64 * 4 + 2) / 150
    rows = content["initializations"]
    assert rows[1]["gain"] == pytest.approx(theory.recurrent_gain("tanh", 1.0, given))
    assert rows[2]["sigma_u"] == pytest.approx(theory.critical_sigma_u("tanh", given))
    assert rows[2]["reach"] == rows[2]["window"] == "inf"
    assert main(["theory", "--cell", "gru", "--hidden", "32", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["initializations"]
    assert [row["update_bias"] for row in rows] == [0, 1, 2, 3]
    assert all(one["gain"] < two["gain"] for one, two in pairwise(rows))
    for row in rows:
        assert row["formula"] == pytest.approx(row["carry"] + row["matrix"])
        assert row["formula"] == pytest.approx(row["gain"], rel=0.08)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--cell", "LSTM"], "--cell must be one of"),
        (["relu", "--cell", "gru"], "activation does not go with --cell"),
        (["--cell", "gru", "--sigma-w", "1"], "--sigma-w does not go with --cell"),
        (["--cell", "gru", "--plot", "a.png"], "--plot does not go with --cell"),
        (["--cell", "gru", "--hidden", "0"], "--width must be at least 1"),
        (["--cell", "gru", "--input-rms", "-1"], "--input-rms must be finite and positive"),
    ],
)
def test_errors(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", *arguments]) == 2
    assert words in capsys.readouterr().err

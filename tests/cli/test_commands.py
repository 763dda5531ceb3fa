"""The command line: exit codes, messages of one line, text, JSON and the picture."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from vegrad import __version__, datasets
from vegrad.cli import diagnose, main

SMALL = ("--data", "wine", "--width", "16")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FORCE_COLOR", "NO_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def shell(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "vegrad", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        env=os.environ | {"PYTHONIOENCODING": "utf-8"} | environment,
    )


def strict(text: str) -> dict[str, Any]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    content: dict[str, Any] = json.loads(text, parse_constant=refuse)
    return content


# --------------------------------------------------------------------------------- what works


def test_the_demo() -> None:
    result = shell("demo")
    assert (result.returncode, result.stderr) == (0, "")
    assert "\x1b" not in result.stdout
    assert "digits: 1797 rows of 64 columns" in result.stdout
    assert "vanishing: each layer passes on 0.23 of the gradient" in result.stdout
    assert "picture: vegrad-flow.png" in result.stdout
    assert Path("vegrad-flow.png").read_bytes().startswith(b"\x89PNG")
    assert "cured: vanishing → healthy" in result.stdout
    proof = result.stdout.partition("proof: ")[2].splitlines()
    before, after = re.findall(r"([\d.]+) %", "".join(proof[1:]))
    assert float(before) < 20 < 90 <= float(after)
    assert len(result.stdout.splitlines()) <= 46


def test_the_demo_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["demo", "--json"]) == 0
    content = strict(capsys.readouterr().out)
    assert content["verdict"] == "vanishing"
    assert content["network"]["sizes"] == [64, *[64] * 49, 10]
    assert sum(content["data"].pop("classes").values()) == pytest.approx(1)
    assert content["data"] == {"name": "digits", "rows": 1797, "columns": 64}
    assert content["picture"] == "vegrad-flow.png"
    assert content["version"] == __version__
    assert content["cure"]["cured"]
    assert content["cure"]["proof"]["accuracy"][1] >= 0.9
    assert -33 < content["flow"]["chain_log10"] < -29
    assert len(content["flow"]["gain_log2"]) == 49


@pytest.mark.parametrize(
    ("options", "code", "verdict"),
    [
        (("--depth", "5"), 0, "healthy"),
        (("--depth", "1"), 0, "healthy"),
        (
            ("--depth", "30", "--activation", "relu", "--init", "he_normal", "--seed", "3"),
            0,
            "healthy",
        ),
        (("--depth", "30", "--activation", "sigmoid"), 1, "vanishing"),
        (
            ("--depth", "30", "--activation", "relu", "--init", "normal", "--sigma-w", "4"),
            1,
            "exploding",
        ),
        (("--init", "normal", "--sigma-w", "1", "--sigma-b", "9"), 1, "saturated"),
    ],
)
def test_exit_codes_tell_the_verdict(
    options: tuple[str, ...], code: int, verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["diagnose", *SMALL, "--json", *options]) == code
    assert strict(capsys.readouterr().out)["verdict"] == verdict
    assert main(["diagnose", *SMALL, *options]) == code
    text = capsys.readouterr()
    assert text.out.startswith(f"{verdict}: ")
    assert text.err == ""
    assert list(Path().iterdir()) == []


def test_options_reach_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    options = "--depth 4 --width 7 --residual --norm rms --dtype float64 --seed 5 --batch 33"
    main(["diagnose", "--data", "diabetes", "--json", *options.split()])
    content = strict(capsys.readouterr().out)
    assert content["network"] == {
        "sizes": [10, 7, 7, 7, 1],
        "activation": "tanh",
        "output": "identity",
        "loss": "mse",
        "init": "glorot_uniform",
        "sigma_w": None,
        "sigma_b": None,
        "norm": "rms",
        "residual": True,
        "dtype": "float64",
        "seed": 5,
    }
    assert content["data"]["rows"] == 33


@pytest.mark.parametrize("data", datasets.NAMES)
@pytest.mark.parametrize("loss", ["mse", "binary_cross_entropy"])
def test_datasets_and_losses(data: str, loss: str, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = data == "diabetes" and loss != "mse"
    code = main(["diagnose", "--data", data, "--loss", loss, "--depth", "3"])
    assert code == (2 if wrong else 0)
    assert ("needs classes" in capsys.readouterr().err) == wrong


def test_all_layers(capsys: pytest.CaptureFixture[str]) -> None:
    main(["diagnose", *SMALL, "--depth", "40"])
    short = capsys.readouterr().out
    main(["diagnose", *SMALL, "--depth", "40", "--all-layers"])
    long = capsys.readouterr().out
    assert "30 layers not shown" in short
    assert "not shown" not in long
    assert len(long.splitlines()) - len(short.splitlines()) == 29


def test_pictures_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", *SMALL, "--plot", "flow.svg"]) == 0
    assert "picture: flow.svg" in capsys.readouterr().out
    assert [path.name for path in Path().iterdir()] == ["flow.svg"]


def test_pages_where_asked_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", *SMALL, "--html", "page.html", "--plot", "flow.svg"]) == 0
    assert capsys.readouterr().out.endswith("\npicture: flow.svg\npage: page.html\n")
    assert Path("page.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")
    assert main(["demo", "--html", "demo.htm", "--json"]) == 0
    assert strict(capsys.readouterr().out)["page"] == "demo.htm"
    page = Path("demo.htm").read_text(encoding="utf-8")
    assert "passes on 0.23 of the gradient" in page
    assert "The proof" in page
    assert "How steps go over the loss" in page
    assert "Lost on a plateau, baby steps: 1/" in page


def test_the_same_seed_says_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for _ in range(2):
        main(["diagnose", *SMALL, "--batch", "50", "--seed", "9"])
        texts.append(capsys.readouterr().out)
    assert texts[0] == texts[1]


def test_theory(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("tanh, weights N(0, 1.3")
    assert "phase                 critical   gradients keep their size" in text
    assert main(["theory", "--quiet"]) == 0
    assert capsys.readouterr().out.startswith("critical: gradients keep their size (tanh, weights")
    assert main(["theory", "relu", "--sigma-w", "1", "--plot", "phases.png"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("relu, weights N(0, 1²/fan-in), biases N(0, 0²)\n")
    assert text.endswith("\npicture: phases.png\n")
    assert Path("phases.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("activation", ["tanh", "relu", "gelu", "selu"])
def test_theory_as_json(activation: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", activation, "--json"]) == 0
    content = strict(capsys.readouterr().out)
    assert content["phase"] == "critical"
    assert content["chi"] == pytest.approx(1.0, abs=1e-6)
    assert content["sigma_w"] == content["critical_point"]["sigma_w"]
    assert main(["theory", activation, "--sigma-w", "0", "--sigma-b", "0.5", "--json"]) == 0
    content = strict(capsys.readouterr().out)
    assert (content["phase"], content["sigma_b"]) == ("ordered", 0.5)
    assert content["picture"] is None


# ------------------------------------------------------------------------------------ own data


def test_a_csv_file(capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{a},{b},{'no' if a + b < 0 else 'yes'}\n" for a, b in rng.normal(size=(40, 2)))
    Path("data.csv").write_text("a,b,answer\n" + rows)
    assert main(["diagnose", "--data", "data.csv", "--target", "answer", "--json"]) == 0
    content = strict(capsys.readouterr().out)
    assert content["network"]["sizes"][0] == 2
    assert content["network"]["sizes"][-1] == 2
    assert content["network"]["loss"] == "cross_entropy"


def test_missing_values_are_a_finding_with_their_place(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data.csv").write_text("a,b,y\n1,2,0\n3,,1\n5,6,0\n")
    options = ["diagnose", "--data", "data.csv", "--target", "y", "--batch", "1", "--plot", "a.png"]
    options += ["--fill", "none"]
    assert main(options) == 1
    text = capsys.readouterr().out
    assert "nonfinite: x[1, 1] is nan, the only such value in 3 rows; nothing was run" in text
    assert 'line 3, column "b"' in text
    assert main([*options, "--json"]) == 1
    content = strict(capsys.readouterr().out)
    assert content["flow"] is None
    assert content["data"]["place"] == 'line 3, column "b"'
    assert content["findings"][0]["evidence"]["row"] == 1
    assert not Path("a.png").exists()


def test_a_target_that_is_not_finite_has_its_line(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    Path("data.csv").write_text("a,y\n1,2\n\n3,inf\n5,0.5\n")
    assert main(["diagnose", "--data", "data.csv", "--target", "y"]) == 1
    text = capsys.readouterr().out
    assert "target[1, 0] is inf" in text
    assert "it stands in line 4, the target" in text
    assert not recwarn.list


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--target", "year"), "target: 20 classes (whole numbers; --loss mse for a regression)"),
        (
            ("--target", "year", "--loss", "mse"),
            "year: 1999.5 ± 5.7663; baseline: loss 1, R² 0 (always the mean)",
        ),
        (("--target", "kind"), "kind: 3 classes: a (33.3 %), b (33.3 %), c (33.3 %)"),
        (
            ("--target", "kind", "--loss", "mse"),
            "target: 3 classes, an output for each that is to be 1 or 0 (mse)",
        ),
        (
            ("--target", "year", "--loss", "binary_cross_entropy"),
            "target: 20 classes, an output for each that is to be 1 or 0 (binary_cross_entropy)",
        ),
    ],
)
def test_how_the_target_was_taken(
    options: tuple[str, ...], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    name = options[1]
    values = [str(1990 + i % 20) if name == "year" else "abc"[i % 3] for i in range(60)]
    rows = "".join(f"{i / 7:.3f},{value}\n" for i, value in enumerate(values))
    Path("data.csv").write_text(f"a,{name}\n{rows}")
    main(["diagnose", "--data", "data.csv", *options])
    lines = capsys.readouterr().out.splitlines()
    after = lines[lines.index("data.csv: 60 rows of 1 column") + 1]
    assert after.startswith(told)


def test_hostile_names_of_columns_do_no_harm_in_the_page() -> None:
    evil = "<script>alert(1)</script>"
    Path("data.csv").write_text(f"a,{evil},y\n1,2,0\n3,,1\n5,6,0\n")
    options = ["diagnose", "--data", "data.csv", "--target", "y", "--html", "page.html"]
    options += ["--fill", "none"]
    assert main(options) == 1
    page = Path("page.html").read_text(encoding="utf-8")
    assert "It stands in line 3, column &quot;&lt;script&gt;alert(1)" in page
    assert evil not in page


# ----------------------------------------------------------------------------------- wrong use

WRONG = {
    (): "no command given",
    ("nonsense",): "command must be one of demo, .* not 'nonsense'",
    ("diagnoze",): r"not 'diagnoze' \(did you mean diagnose\?\)",
    ("diagnose", "--activation", "rleu"): r"not 'rleu' \(did you mean relu\?\)",
    ("diagnose", "--activaton", "relu"): r"relu \(did you mean --activation\?\)",
    ("diagnose", "--act", "relu"): "unrecognized arguments: --act relu",
    ("diagnose", "--data", "digts"): r"not 'digts' \(did you mean digits\?\)",
    ("diagnose", "--depth", "x"): "--depth must be a whole number, not 'x'",
    ("diagnose", "--depth", "0"): "--depth must be at least 1, not 0",
    ("diagnose", "--depth", "100000"): "--depth must be at most 10000, not 100000",
    ("diagnose", "--width", "-3"): "--width must be at least 1, not -3",
    ("diagnose", "--batch", "0"): "--batch must be at least 1, not 0",
    ("diagnose", "--width", "9999999999"): "must be from 1 to 2147483647",
    ("diagnose", "--activation", "swish"): "activation must be one of identity, .* not 'swish'",
    ("diagnose", "--init", "zeros"): "--init must be one of glorot_uniform, .* not 'zeros'",
    ("diagnose", "--loss", "hinge"): "loss must be one of mse, .* not 'hinge'",
    ("diagnose", "--norm", "batch"): "norm must be one of .* not 'batch'",
    ("diagnose", "--dtype", "float16"): "dtype must be one of float32, float64, not 'float16'",
    ("diagnose", "--seed", "-1"): "seed must be at least 0",
    ("diagnose", "--sigma-w", "2"): "--sigma-w goes with --init normal, not with --init glo",
    ("diagnose", "--init", "he"): r"glorot_uniform, .* \(did you mean he_uniform or he_normal\?\)",
    ("diagnose", "--init", "chrono"): r"--init chrono goes with --cell \(tanh, relu, lstm, gru\)",
    ("diagnose", "text.csv"): r"text.csv \(did you mean --data text.csv\?\)",
    ("diagnose", "--init", "normal"): "--init normal needs --sigma-w",
    ("diagnose", "--init", "normal", "--sigma-w", "nan"): "sigma_w must be finite",
    ("diagnose", "--data", "iris"): "data must be digits",
    ("diagnose", "--data", "none.csv"): "none.csv does not exist",
    ("diagnose", "--data", "cut.npz"): "not a complete .npz file",
    ("diagnose", "--data", "text.csv", "--target", "z", "--drop", "q"): 'columns "z", "q" are not',
    ("diagnose", "--data", "text.csv", "--target", "y", "--fill", "max"): "not 'max'",
    ("predict", "cut.npz", "text.csv"): "cut.npz",
    ("diagnose", "--data", "text.csv"): "needs a target column, one of x, y",
    ("diagnose", "--data", "text.csv", "--target", "z"): 'column "z" is not in',
    ("diagnose", "--data", "text.csv", "--target", "Y"): r"which has x, y \(did you mean y\?\)",
    ("diagnose", "--plot", "flow.txt"): "--plot must end in .png or .svg or .pdf, not",
    ("diagnose", "--plot", "no/flow.png"): "no/flow.png: No such file",
    ("diagnose", "--html", "page.pdf"): "--html must end in .html or .htm, not 'page.pdf'",
    ("diagnose", "--html", "no/page.html"): "no/page.html: No such file",
    ("demo", "--depth", "3"): "unrecognized arguments: --depth 3",
    ("theory", "sine"): "activation must be one of identity, .* not 'sine'",
    ("theory", "softplus"): "softplus has no critical point: --sigma-w is needed",
    ("theory", "relu", "--sigma-b", "1"): "relu has no critical point at sigma_b 1: --sigma-w is",
    ("theory", "--sigma-w", "-1"): "--sigma-w must be finite and not negative, got -1",
    ("theory", "--sigma-b", "inf"): "--sigma-b must be finite and not negative, got inf",
    ("theory", "--plot", "no/phases.png"): "no/phases.png: No such file",
}


@pytest.mark.parametrize(("arguments", "message"), WRONG.items(), ids=WRONG.values())
def test_wrong_use_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("text.csv").write_text("x,y\n1,2\nParis,3\n")
    Path("cut.npz").write_bytes(b"PK\x03\x04")
    before = set(Path().iterdir())
    assert main(list(arguments)) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(f"vegrad: error: .*{message}.*\n", output.err), output.err
    assert set(Path().iterdir()) == before


def test_no_memory_is_no_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("vegrad.cli.task.MLP", fail)
    assert main(["diagnose"]) == 2
    assert "not enough memory" in capsys.readouterr().err


def test_missing_extras_say_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["demo"]) == 2
    assert 'pip install "vegrad[cli]"' in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "rich.console", None)
    assert main(["diagnose", *SMALL]) == 0  # rich is not needed
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    assert main(["diagnose"]) == 2
    assert 'pip install "vegrad[cli]"' in capsys.readouterr().err


def test_an_interrupt_is_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(diagnose, "diagnose", interrupt)
    assert main(["demo"]) == 130
    assert capsys.readouterr().err == "vegrad: error: interrupted\n"
    assert list(Path().iterdir()) == []


# ------------------------------------------------------------------------------ as a program


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, expected in (
        (["--version"], f"vegrad {__version__}"),
        (["--help"], "diagnose"),
        (["diagnose", "--help"], "--activation"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        assert stop.value.code == 0
        assert expected in capsys.readouterr().out


def test_exit_code_of_the_program() -> None:
    result = shell("diagnose", *SMALL, "--depth", "30", "--activation", "sigmoid")
    assert (result.returncode, result.stderr) == (1, "")
    assert shell("diagnose", "--data", "none.csv").returncode == 2


def test_a_poor_encoding_is_survived() -> None:
    result = shell("diagnose", *SMALL, "--depth", "30", PYTHONIOENCODING="ascii")
    assert result.returncode in (0, 1)
    assert "Traceback" not in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="no such pipes")
def test_a_reader_that_leaves_is_survived() -> None:
    """Run `vegrad diagnose --all-layers | head -1` with a reader that has left already."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "-m", "vegrad", "diagnose", *SMALL, "--depth", "400", "--all-layers"]
    result = subprocess.run(command, stdout=writing, stderr=subprocess.PIPE, check=False)
    os.close(writing)
    assert (result.returncode, result.stderr) == (141, b"")


@pytest.mark.skipif(sys.platform == "win32", reason="no such terminals")
@pytest.mark.parametrize("no_color", [False, True])
def test_colours_and_spinner_only_on_a_terminal(no_color: bool) -> None:
    import pty

    main_end, terminal = pty.openpty()
    environment = os.environ | {"TERM": "xterm-256color"} | ({"NO_COLOR": "1"} if no_color else {})
    process = subprocess.Popen(
        [sys.executable, "-m", "vegrad", "diagnose", *SMALL],
        stdout=terminal,
        stderr=subprocess.PIPE,
        env=environment,
    )
    os.close(terminal)
    written = b""
    try:
        while chunk := os.read(main_end, 4096):
            written += chunk
    except OSError:
        pass  # on Linux this error marks the end of a terminal
    os.close(main_end)
    _, errors = process.communicate()
    assert process.returncode == 0
    assert errors == b""
    assert (b"\x1b[" in written) == (not no_color)
    assert b"healthy: " in written

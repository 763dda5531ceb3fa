"""What all commands share: help, files and whose they are, quiet and verbose, width, completion."""

import errno
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from vegrad.cli import diagnose, main
from vegrad.cli.commands import COMMANDS, parsers
from vegrad.cli.parser import SHELLS

WINE = ("--data", "wine", "--width", "8", "--depth", "30", "--activation", "sigmoid")
CURE = ("cure", *WINE, "--steps", "20")
WRITES = {  # a command, and what it writes
    ("diagnose", *WINE, "--plot", "flow.png", "--html", "page.html"): {"flow.png", "page.html"},
    (*CURE, "--patch", "p.py", "--save", "net"): {"p.py", "net"},
    ("train", "--data", "wine", "--epochs", "1", "-q", "--plot", "curve.svg"): {
        "vegrad-network.safetensors",
        "vegrad-history.json",
        "vegrad-checkpoint.safetensors",
        "curve.svg",
    },
    ("theory", "--plot", "phases.png"): {"phases.png"},
    ("descent", "--data", "wine", "--depth", "3", "--steps", "3"): {"vegrad-descent.png"},
}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("COLUMNS", "FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)


# ---------------------------------------------------------------------------------------- help


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_examples_that_are_right_and_defaults(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    text = capsys.readouterr().out
    examples = re.findall(rf"^  vegrad ({name}.*)$", text, flags=re.MULTILINE)
    assert examples == [line.removeprefix("vegrad ") for line in COMMANDS[name].examples]
    parser, commands = parsers()
    for example in examples:
        assert parser.parse_args(example.split()).command == name
    for action in commands[name]._actions:
        if action.default not in (None, False, "==SUPPRESS==", []):
            assert "default" in str(action.help), action.option_strings


@pytest.mark.parametrize("columns", [60, 80, 120])
def test_text_is_as_wide_as_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for command in (("diagnose", *WINE), ["explain"], [*CURE, "--patch", "p.py", "--force"]):
        main(command)
        widest = max(map(len, capsys.readouterr().out.splitlines()))
        assert columns - 25 < widest <= columns


def test_the_shell_completes(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    for shell in SHELLS:
        assert main(["--completion", shell]) == 0
        script = capsys.readouterr().out
        assert "leaky_relu" in script
        assert "activation" in script
    assert main(["--completion", "zsch"]) == 2
    assert "(did you mean zsh?)" in capsys.readouterr().err


# --------------------------------------------------------------------------------------- files


@pytest.mark.parametrize(("command", "names"), WRITES.items(), ids=[c[0] for c in WRITES])
def test_files_are_not_overwritten(
    command: tuple[str, ...], names: set[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*command, "--out", "new/folder"]) in (0, 1)
    assert {path.name for path in Path("new/folder").iterdir()} == names
    assert [path.name for path in Path().iterdir()] == ["new"]
    before = {path: path.read_bytes() for path in Path("new/folder").iterdir()}
    for path in before:
        path.write_bytes(b"somebody's")
    capsys.readouterr()
    assert main([*command, "--out", "new/folder"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(
        r"vegrad: error: .* exists?: --force overwrites, --out DIR writes elsewhere\n", output.err
    )
    assert all(path.read_bytes() == b"somebody's" for path in before)
    assert main([*command, "--out", "new/folder", "--force"]) in (0, 1)
    assert all(path.read_bytes() != b"somebody's" for path in before)


def test_a_resume_goes_on_in_the_same_files() -> None:
    train = ["train", "--data", "wine", "-q", "--out", "run"]
    assert main([*train, "--epochs", "1"]) == 0
    assert main([*train, "--epochs", "2"]) == 2
    assert main([*train, "--epochs", "2", "--resume"]) == 0


def test_the_demo_leaves_a_picture_that_is_there(capsys: pytest.CaptureFixture[str]) -> None:
    Path("vegrad-flow.png").write_bytes(b"somebody's")
    assert main(["demo", "-q"]) == 0
    text = capsys.readouterr().out
    assert text.endswith("\nvegrad-flow.png is there already: --force draws it anew\n")
    assert Path("vegrad-flow.png").read_bytes() == b"somebody's"
    assert main(["demo", "-q", "--plot", "vegrad-flow.png"]) == 2


def test_a_full_disk(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "page.html")

    monkeypatch.setattr(diagnose, "diagnose", full)
    assert main(["diagnose", *WINE]) == 4
    assert capsys.readouterr().err == "vegrad: error: page.html: No space left on device\n"


# --------------------------------------------------------------------------- quiet and verbose


def test_quiet_and_verbose(capsys: pytest.CaptureFixture[str]) -> None:
    texts = []
    for more in ("-q", "", "-v"):
        assert main(["diagnose", *WINE, *more.split()]) == 1
        texts.append(capsys.readouterr().out)
    quiet, usual, verbose = texts
    assert usual.startswith(quiet)
    assert verbose.startswith(quiet)
    assert len(quiet.splitlines()) < 8
    assert "layers not shown" not in verbose
    assert "\nevidence of vanishing (activation-derivative)\n" in verbose
    assert main(["diagnose", "-v", "--data", "none.csv"]) == 2
    assert capsys.readouterr().err.startswith("Traceback")


def test_help_costs_little_more_than_the_package() -> None:
    """Neither matplotlib nor rich nor a framework is loaded to show help."""
    code = (
        "import sys; from vegrad.cli import main\ntry: main(['--help'])\nexcept SystemExit: pass\n"
    )
    code += "print(*{'rich', 'matplotlib', 'sklearn', 'torch', 'shtab'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == ""


@pytest.mark.parametrize(
    ("words", "output"),
    [
        (["train", "--target", "z"], "vegrad-network.safetensors"),
        (["diagnose", "--target", "z", "--html", "page.html"], "page.html"),
        (["cure", "--target", "z", "--patch", "p.py"], "p.py"),
        (["descent", "--target", "z"], "vegrad-descent.png"),
        (["train", "--target", "y", "--drop", "z"], "vegrad-history.json"),
    ],
)
def test_what_is_wrong_is_said_before_that_files_are_there(
    words: list[str], output: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whoever takes --force, or a folder, for a slip in a column has lost files for nothing."""
    Path("data.csv").write_text("a,y\n" + "1,2\n2,1\n" * 9)
    Path(output).write_bytes(b"somebody's")
    for force in ([], ["--force"]):
        assert main([*words, "--data", "data.csv", *force]) == 2
        assert 'the column "z" is not in data.csv' in capsys.readouterr().err
    assert Path(output).read_bytes() == b"somebody's"

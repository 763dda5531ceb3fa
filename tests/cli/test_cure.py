"""`vegrad cure`: exit codes, text, JSON, the files, wrong use."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import MLP
from vegrad.cli import main
from vegrad.networks.editor import written_optimizer

from tests.patches import run_as_file

SICK = ("--depth", "20", "--init", "normal", "--sigma-w", "0.3", "--goal", "0.9")
WINE = ("--data", "wine", "--width", "16", "--steps", "200", "--lr", "0.005")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def cure(*arguments: str) -> int:
    return main(["cure", *WINE, *arguments])


def test_a_cure_with_its_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*SICK, "--patch", "patch.py", "--save", "net.safetensors") == 0
    text = capsys.readouterr().out
    assert "cured: vanishing → healthy: multiply the weights of every layer" in text
    assert "proof: " in text
    network = MLP.load("net.safetensors")
    assert network.config["sizes"] == [13, *[16] * 19, 3]
    assert "network.parameters[name][...] *= " in Path("patch.py").read_text(encoding="utf-8")
    assert {path.name for path in Path().iterdir()} == {"patch.py", "net.safetensors"}


def test_without_a_file_the_patch_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*SICK) == 0
    assert "network.fit(" in capsys.readouterr().out


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*SICK, "--json") == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert content["cured"]
    assert content["proof"]["accuracy"][1] >= 0.9
    assert 0 < content["cost"] <= 1.5
    assert content["before"]["verdict"] == "vanishing"


def test_progress(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*SICK) == 0
    lines = capsys.readouterr().err.splitlines()
    assert lines
    assert all("  step " in line and "  cost " in line for line in lines)
    assert cure(*SICK, "--quiet") == 0
    assert capsys.readouterr().err == ""


def test_a_patch_runs_as_a_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*SICK, "--quiet", "--patch", "patch.py", "--clip", "global_norm:inf") == 0
    data = vegrad.datasets.load("wine")
    names = run_as_file(Path("patch.py").read_text(encoding="utf-8"))  # brings data and network
    right = names["network"].forward(names["x"]).argmax(1) == data.target("cross_entropy")
    assert np.mean(right) >= 0.9


SHORT = ("--cell", "lstm", "--data", "adding:10", "--width", "8", "--steps", "100", "--lr", "1e-6")


@pytest.mark.parametrize("sick", [(*WINE, *SICK), (*SHORT, "--goal", "0.17")], ids=["mlp", "lstm"])
@pytest.mark.parametrize(
    ("clip", "written"),
    [
        ("", "(0."),
        ("none", "(0."),
        ("adagc:1.2", "clip=vegrad.clipping.AdaGC(ratio=1.2)"),
    ],
)
def test_a_patch_runs_whatever_the_clip(sick: tuple[str, ...], clip: str, written: str) -> None:
    main(["cure", *sick, *(("--clip", clip) if clip else ()), "--patch", "p.py", "-q"])
    patch = Path("p.py").read_text(encoding="utf-8")
    assert written in patch
    assert ("clip=" in patch) == ("clip=" in written)
    run_as_file(patch)


def test_infinite_arguments_are_written_as_python() -> None:
    clip = vegrad.clipping.GlobalNorm(2.0, float("inf"), nonfinite="skip")
    code = written_optimizer(vegrad.SGD(0.1, clip=clip))
    assert repr(eval(code, {"vegrad": vegrad}).clip) == repr(clip)
    assert written_optimizer(vegrad.SGD(0.1, clip=vegrad.clipping.AdaGC(float("inf")))) == (
        "vegrad.SGD(0.1)"
    )


def test_a_patch_for_a_table_has_its_schedule() -> None:
    rng = np.random.default_rng(0)
    rows = "".join(f"{a:.3f},{b:.3f},{a + b:.3f}\n" for a, b in rng.normal(size=(200, 2)))
    Path("table.csv").write_text(f"a,b,sum\n{rows}")
    sick = ("--depth", "20", "--width", "16", "--activation", "sigmoid", "--schedule", "warmup")
    assert main(["cure", "--data", "table.csv", "--target", "sum", *sick, "--patch", "a.py"]) == 0
    patch = Path("a.py").read_text(encoding="utf-8")
    assert 'data = vegrad.datasets.load("table.csv", target_column="sum")\n' in patch
    assert "schedule = vegrad.optim.warmup(0.001, 50)\n" in patch
    names = run_as_file(patch)
    assert np.mean((names["network"].forward(names["x"]) - names["target"]) ** 2) < 0.5


def test_exit_codes(capsys: pytest.CaptureFixture[str]) -> None:
    assert cure("--depth", "4", "--goal", "0.9") == 0
    assert "nothing to cure" in capsys.readouterr().out
    noise = np.random.default_rng(0)
    np.savez("noise.npz", x=noise.standard_normal((300, 5)), y=noise.integers(0, 4, 300))
    assert main(["cure", "--data", "noise.npz", "--steps", "100"]) == 1
    assert "looks independent of x" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    "arguments",
    [
        ("--steps", "0"),
        ("--budget", "0.5"),
        ("--goal", "7"),
        ("--clip", "hard"),
        ("--batch", "0"),
        ("--patch", "missing/patch.py"),
        ("--save", "missing/net.safetensors"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert cure(*arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vegrad: error: ")
    assert len(output.err.splitlines()) == 1
    assert list(Path().iterdir()) == []

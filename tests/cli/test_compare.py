"""`vegrad compare`: exit codes, text, files and what is refused."""

import json
from pathlib import Path

import pytest
import vegrad
from vegrad.cli import main

from tests.reports.runs import made_up


@pytest.fixture
def logs(tmp_path: Path) -> tuple[str, str]:
    rows = [made_up(60).loss, 3 * made_up(60).loss]
    for place, losses in enumerate(rows):
        lines = ["step,train_loss", *(f"{n},{value}" for n, value in enumerate(losses.tolist()))]
        folder = tmp_path / f"run{place}"
        folder.mkdir()
        (folder / "metrics.csv").write_text("\n".join(lines))
    return str(tmp_path / "run0"), str(tmp_path / "run1" / "metrics.csv")


def test_two_runs(
    logs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = tmp_path / "both.html", tmp_path / "both.png"
    words = ["compare", *logs, "--names", "base", "new", "--html", str(page)]
    assert main([*words, "--plot", str(picture)]) == 1
    assert "the loss is 3.00 times as large in new as in base" in " ".join(
        capsys.readouterr().out.split()
    )
    assert page.stat().st_size > 5_000
    assert picture.stat().st_size > 5_000
    assert main(words) == 2
    assert "exists: --force overwrites" in capsys.readouterr().err
    assert main(["compare", logs[0], logs[0]]) == 0
    capsys.readouterr()
    assert main(["compare", *logs, "--quiet"]) == 1
    assert len(capsys.readouterr().out.splitlines()) == 1
    assert main(["compare", *logs, "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["departures"][0]["what"] == "loss"


def test_wrong_use(
    logs: tuple[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / "odd.txt"
    odd.write_text("hello")
    for words, said in (
        (["compare", logs[0]], "RUN is needed"),
        (["compare", logs[0], str(tmp_path / "none")], "No such file"),
        (["compare", logs[0], str(odd)], "odd.txt: "),
        (["compare", *logs, "--names", "x", "x"], "names must differ"),
        (["compare", *logs, "--html", "page.png"], "--html must end in"),
    ):
        assert main(words) == 2, words
        error = capsys.readouterr().err
        assert said in error
        assert len(error.splitlines()) == 1
    assert vegrad.compare(*logs).differ

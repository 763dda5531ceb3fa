"""`vegrad explain`, `--ignore` and `--format` in the shell."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from vegrad.cli import main
from vegrad.cli.annotations import annotation
from vegrad.diagnosis.catalogue.table import CAUSES, SECTIONS
from vegrad.reports.glossary import TERMS, Term

SICK = ["diagnose", "--data", "wine", "--width", "16", "--depth", "30", "--activation", "sigmoid"]


def test_all_causes_are_listed_with_their_sentences(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain"]) == 0
    output = capsys.readouterr().out
    assert max(map(len, output.splitlines())) <= 80
    words = " ".join(output.split())
    assert all(title in words for title in SECTIONS)
    assert all(f"{cause.name} {cause.says}" in words for cause in CAUSES.values())


@pytest.mark.parametrize("name", CAUSES)
def test_the_page_of_a_cause(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", name]) == 0
    output = capsys.readouterr().out
    assert output.startswith(f"{name}\n\n")
    titles = ["How it shows", "Evidence", "Where", "What to do", "In PyTorch", "Mended", "Sources"]
    assert [line for line in output.splitlines() if line in titles] == titles
    assert all(f"\n  {source}\n" in output for source in CAUSES[name].sources)
    assert CAUSES[name].says in " ".join(output.split())


def test_pages_need_no_pytorch() -> None:
    code = "import sys; from vegrad.cli import main; main(['explain', 'detached']); "
    code += "sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_an_unknown_cause_is_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["explain", "dead-neurons"]) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.startswith("vegrad: error: cause must be the name of a cause or a word")
    assert "not 'dead-neurons'" in output.err
    assert main(["explain", "vanish"]) == 2
    assert "did you mean vanishing?" in " ".join(capsys.readouterr().err.split())
    assert main(["explain", "zero_vectors"]) == 2
    assert "did you mean zero-vectors?" in capsys.readouterr().err


@pytest.mark.parametrize("term", TERMS)
def test_words_of_messages_are_explained(term: Term, capsys: pytest.CaptureFixture[str]) -> None:
    for name in {*term.names} - {*CAUSES}:
        assert main(["explain", name.upper() if name.isascii() else name]) == 0
        head, _, *lines = capsys.readouterr().out.splitlines()
        assert head == ", ".join(term.names)
        text = " ".join(" ".join(lines).split())
        assert text.startswith(term.says)
        assert set(term.see) <= {*CAUSES}
        assert ("Possible causes" in text) == bool(term.see)
        assert all(cause in text for cause in term.see)
    assert main(["explain"]) == 0
    assert term.names[0] in capsys.readouterr().out


# ------------------------------------------------------------------------------- --ignore


def test_ignored_causes_change_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SICK, "--ignore", "dead-units"]) == 1
    assert "! left out, as asked: dead-units." in capsys.readouterr().out
    ignore = ["--ignore", "activation-derivative", "--ignore", "dead-units"]
    assert main([*SICK, *ignore]) == 0
    assert "left out, as asked:" in capsys.readouterr().out
    assert main([*SICK, *ignore, "--json"]) == 0
    content = json.loads(capsys.readouterr().out)
    assert content["ignored"] == {"activation-derivative": 1, "dead-units": 0}
    assert main([*SICK, "--ignore", "dead-unit"]) == 2
    assert "not 'dead-unit' (did you mean dead-units?)" in capsys.readouterr().err


# ------------------------------------------------------------------------------- --format


def test_findings_as_annotations(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SICK, "--format", "github"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 1
    head, title, message = lines[0].split("::", 2)[0], *lines[0].split("::", 2)[1:]
    assert head == ""
    assert title == "error title=vegrad%3A vanishing (activation-derivative)"
    assert "%0AWhat to do: " in message


def test_a_healthy_network_is_a_notice(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diagnose", "--data", "wine", "--depth", "3", "--format", "github"]) == 0
    assert capsys.readouterr().out.startswith("::notice title=vegrad%3A healthy::the gradient")


def test_what_was_ignored_is_annotated(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SICK, "--format", "github", "--ignore", "dead-units"]) == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert last == "::notice title=vegrad::left out, as asked: dead-units"


def test_the_place_in_a_file_is_annotated(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.csv"
    path.write_text('"50 %, say",b,y\n,2,0\n3,1,1\n5,6,0\n')
    options = ["--data", str(path), "--target", "y", "--fill", "none", "--format", "github"]
    assert main(["diagnose", *options]) == 1
    output = capsys.readouterr().out
    assert output.startswith("::error title=vegrad%3A nonfinite (nonfinite-input)::x[0, 0] is nan")
    assert 'line 2, column "50 %25, say"' in output


@pytest.mark.parametrize("form", ["json", "text"])
def test_other_formats(form: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SICK, "--format", form]) == 1
    output = capsys.readouterr().out
    assert (json.loads(output)["verdict"] if form == "json" else "vanishing: ") in output
    assert main([*SICK, "--format", form, "--json"]) == (1 if form == "json" else 2)
    capsys.readouterr()
    assert main([*SICK, "--format", "xml"]) == 2
    assert "--format must be one of text, json, github, not 'xml'" in capsys.readouterr().err


def test_properties_and_messages_are_escaped() -> None:
    line = annotation("warning", "a: 5 %, b\n", "a: 5 %, b\r\nc::d")
    assert line == "::warning title=a%3A 5 %25%2C b%0A::a: 5 %25, b%0D%0Ac::d"

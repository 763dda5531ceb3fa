"""`vegrad descent`: three stories, one's own, minibatches, and what is printed."""

import json
from pathlib import Path
from typing import Any

import pytest
from vegrad.cli import main
from vegrad.cli.descent import STORIES

pytest.importorskip("matplotlib")


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def told(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    capsys.readouterr()
    assert main(["descent", *arguments, "--force", "--json"]) == 0
    content: dict[str, Any] = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    return content["stories"]


def test_the_three_stories(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["descent"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("plateau: stuck, loss 2.5")
    assert any(line.startswith("edge: diverges, loss 2.3") for line in lines)
    assert any(line.startswith("clip: learns, loss 2.3") for line in lines)
    text = " ".join(" ".join(lines).split())
    assert "lost on a plateau, baby steps: 1/" in text
    assert "of the way to the minimum along each; " in text
    assert "; over the edge; " in text
    assert "; held by the clip: steps " in text
    assert lines[-1] == "picture: vegrad-descent.png"
    assert Path("vegrad-descent.png").read_bytes().startswith(b"\x89PNG")


def test_a_story_says_what_it_is_called(capsys: pytest.CaptureFixture[str]) -> None:
    plateau = told(capsys, "plateau", "--steps", "60")["plateau"]
    assert {look["kind"] for look in plateau["looks"][-12:]} == {"baby step"}
    assert plateau["loss"][-1] == pytest.approx(plateau["guess"], abs=0.01)
    edge = told(capsys, "edge")["edge"]
    assert max(edge["loss"]) > 3 * edge["guess"]
    clip = told(capsys, "edge", "--clip", "global_norm:0.1")["edge"]
    assert clip["title"] == "50 layers of tanh, SGD 2, clip global_norm:0.1"
    assert max(clip["loss"]) < 1.2 * clip["guess"]


def test_a_training_that_learns_is_said_to(capsys: pytest.CaptureFixture[str]) -> None:
    """Baby steps and a step over the edge are how it learns, and not what comes of it."""
    plateau = told(capsys, "plateau", "--activation", "tanh")["plateau"]
    assert plateau["outcome"] == "learns"
    assert plateau["loss"][-1] < 0.4 * plateau["loss"][0]


def test_options_make_it_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    stories = told(capsys, "--data", "wine", "--depth", "3", "--optimizer", "adamw",
                   "--batch", "16", "--steps", "40")  # fmt: skip
    assert list(stories) == ["own"]
    own = stories["own"]
    assert own["title"] == "3 layers of tanh, adamw 0.001, batches of 16"
    assert len(own["loss"]) == 41
    assert len(own["looks"]) == 24
    for look in own["looks"]:  # all of the same rows, batches or not
        assert look["loss"][0] == own["loss"][look["step"]]
        assert look["loss"][-1] == pytest.approx(own["loss"][look["step"] + 1], rel=1e-6)


def test_a_recurrent_network(capsys: pytest.CaptureFixture[str]) -> None:
    options = ("--cell", "gru", "--width", "8", "--data", "adding:12", "--steps", "4")
    own = told(capsys, *options)["own"]
    assert own["title"] == "gru, SGD 0.05"
    assert len(own["looks"]) == 4


def test_wrong_use(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (("plato",), "story must be one of plateau, edge, clip, own, not 'plato'"),
        (("edge", "--cell", "gru"), "--cell goes with the story own, not with edge"),
        (("--steps", "0"), "--steps must be at least 1, not 0"),
        (("--plot", "a.txt"), "--plot must end in .png or .svg or .pdf"),
    ):
        assert main(["descent", *arguments]) == 2
        assert words in capsys.readouterr().err
    assert list(Path().iterdir()) == []
    assert [name for name, story in STORIES.items() if not story] == ["own"]

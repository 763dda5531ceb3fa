"""Frames in the terminal: they fit, and show what there is."""

from math import nan
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.runs.log import RunLog

rich = pytest.importorskip("rich.console")
from vegrad.watching.follower import Follower  # noqa: E402
from vegrad.watching.terminal import once, shown  # noqa: E402


def log_of(path: Path, losses: np.ndarray, modules: int = 12) -> None:
    with RunLog(path, modules=[f"block.{n}.linear" for n in range(modules)]) as log:
        for step, loss in enumerate(losses.tolist()):
            log.step(step, loss, 0.5, 0.25, 0.1, 0.001)
            log.sizes(step, np.linspace(-10, 0, modules).tolist())


def text_of(path: Path, width: int, height: int = 40, colours: str | None = None) -> str:
    console = rich.Console(
        width=width, height=height, force_terminal=colours is not None, color_system=colours
    )
    follower = Follower(path)
    with console.capture() as captured:
        once(follower, console)
    return str(captured.get())


@pytest.mark.parametrize("width", [40, 80, 200])
@pytest.mark.parametrize("steps", [1, 2, 300])
def test_a_frame_fits(tmp_path: Path, width: int, steps: int) -> None:
    path = tmp_path / "run.jsonl"
    log_of(path, 2.0 * np.exp(-np.arange(steps) / 50))
    text = text_of(path, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    assert len(lines) <= 40
    assert f"step {steps - 1}" in text
    assert "block.0.linear" in text
    assert "nothing found so far" in text


def test_colours_are_half_blocks(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log_of(path, np.ones(50))
    text = text_of(path, 100, colours="truecolor")
    assert "\x1b[38;2;" in text
    assert "▀" in text
    assert "▀" not in text_of(path, 100)


def test_findings_are_shown(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log_of(path, np.array([2.0] * 50 + [nan] * 5))
    console = rich.Console(width=100)
    follower = Follower(path)
    with console.capture() as captured:
        assert not once(follower, console)
    assert "◆ nonfinite: the loss is not finite from step 50 on" in captured.get()
    assert "last loss NaN  lowest 2" in captured.get()


def test_no_two_losses_of_a_frame_have_one_name(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log_of(path, np.linspace(3, 1, 500))
    said = " ".join(text_of(path, 100).split())
    assert "last loss 1 lowest 1" in said
    assert " loss, medians " in said
    assert "from 2.992 to 1.008 (medians of 5 steps)" in said


@pytest.mark.parametrize(("width", "height"), [(40, 30), (60, 24), (80, 24), (120, 50)])
def test_findings_are_within_the_screen(tmp_path: Path, width: int, height: int) -> None:
    path = tmp_path / "run.jsonl"
    log_of(path, np.array([2.0] * 50 + [nan] * 5))
    follower, console = Follower(path), rich.Console(width=width, height=height)
    follower.poll()
    with console.capture() as captured:
        console.print(shown(follower, console))
    lines = captured.get().splitlines()
    assert len(lines) <= height
    said = " ".join(" ".join(lines).split())
    assert "◆ nonfinite: the loss is not finite from step 50 on" in said
    assert "clipped 100%" in said
    assert "block.0.linear" in said


def test_what_is_waited_for_is_said(tmp_path: Path) -> None:
    follower = Follower(tmp_path / "run.jsonl")
    console = rich.Console(width=200)
    with pytest.raises(ValueError, match="is not there yet"):
        once(follower, console)
    with console.capture() as captured:
        console.print(shown(follower, console))
    assert "is not there yet" in captured.get()


def test_names_cannot_drive_the_terminal(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with RunLog(path, modules=["[red]a\x1b[2J"], about={"model": "[b]\x07"}) as log:
        log.step(0, 1.0)
        log.sizes(0, [1.0])
    text = text_of(path, 80)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[red]a" in text


def test_a_run_without_modules_has_no_strip(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    path.write_text("step,train_loss\n" + "".join(f"{n},{2 - n / 100}\n" for n in range(100)))
    assert "gradient by depth" not in text_of(path, 80)
    assert vegrad.read_run(path).steps == 100

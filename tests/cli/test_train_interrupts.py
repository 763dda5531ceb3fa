"""`vegrad train` while its files are written: more Ctrl-C, and disks that are full."""

import errno
import shlex
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from safetensors.numpy import load_file
from vegrad import MLP
from vegrad.arrays import files as writer
from vegrad.cli import main
from vegrad.networks.checkpoint import TrainingState

NETWORK, CHECKPOINT = "vegrad-network.safetensors", "vegrad-checkpoint.safetensors"
HISTORY = "vegrad-history.json"
SMALL = ("train", "--data", "wine", "--width", "16", "--quiet", "--force")
SAID = "vegrad: saving; once more ends it at once"
ALL = {NETWORK, CHECKPOINT, HISTORY}


@pytest.fixture(autouse=True)
def own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def files() -> set[str]:
    return {path.name for path in Path().iterdir()}


@pytest.fixture
def writing(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int, Callable[[], None]], None]:
    """Have something happen in the middle of the n-th time that a file of this name is written."""

    def when(name: str, number: int, happens: Callable[[], None]) -> None:
        plain, times = Path.write_bytes, []

        def write(self: Path, content: bytes) -> int:
            if self.name.endswith(name):
                times.append(1)
                if len(times) == number:
                    plain(self, content[: len(content) // 2])
                    happens()
            return plain(self, content)

        monkeypatch.setattr(Path, "write_bytes", write)

    return when


def stop_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Press Ctrl-C once this many checkpoints are written."""
    save, times = TrainingState.save, []

    def saving(self: TrainingState, path: Any) -> None:
        save(self, path)
        times.append(1)
        if len(times) == epochs:
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(TrainingState, "save", saving)


@pytest.mark.parametrize("kind", [signal.SIGINT, signal.SIGTERM])
def test_a_second_waits_for_the_save(
    kind: signal.Signals, writing: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(kind)
    stop_after(2, monkeypatch)
    writing(NETWORK, 1, lambda: signal.raise_signal(kind))
    assert main([*SMALL]) == 130
    lines = capsys.readouterr().err.splitlines()
    assert lines[:3] == [SAID, "vegrad: interrupted; the checkpoint is of epoch 2", "To go on:"]
    assert files() == ALL
    MLP.load(NETWORK)
    assert signal.getsignal(kind) is before


def test_a_third_ends_it_and_leaves_no_temporary_file(
    writing: Any, monkeypatch: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    stop_after(2, monkeypatch)

    def twice() -> None:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    writing(NETWORK, 1, twice)
    Path(NETWORK).write_text("of an earlier run")
    assert main([*SMALL]) == 130
    assert capsys.readouterr().err.splitlines() == [SAID, "vegrad: error: interrupted"]
    assert files() == {NETWORK, CHECKPOINT}
    assert Path(NETWORK).read_text() == "of an earlier run"
    assert len(load_file(CHECKPOINT)["history.epoch_loss"]) == 2


def test_the_first_while_a_finished_training_is_saved(
    writing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    writing(NETWORK, 1, lambda: signal.raise_signal(signal.SIGINT))
    assert main([*SMALL, "--epochs", "1"]) == 0
    assert capsys.readouterr().err.splitlines() == [SAID]
    assert files() == ALL


def test_the_first_while_a_checkpoint_is_written(
    writing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """The checkpoint before stays, and nothing of the new one."""
    writing(CHECKPOINT, 3, lambda: signal.raise_signal(signal.SIGINT))
    assert main([*SMALL]) == 130
    assert "the checkpoint is of epoch 2" in capsys.readouterr().err
    assert files() == ALL


def test_signals_that_are_ignored_stay_so(writing: Any) -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        writing(CHECKPOINT, 1, lambda: signal.raise_signal(signal.SIGINT))
        assert main([*SMALL, "--epochs", "1"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize(("name", "number"), [(CHECKPOINT, 3), (NETWORK, 1)])
def test_a_full_disk_names_the_file_and_how_to_go_on(
    name: str, number: int, writing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    writing(name, number, full)
    assert main([*SMALL, "--epochs", "4"]) == 4
    message, heading, command = capsys.readouterr().err.splitlines()
    assert message == f"vegrad: error: {name}: No space left on device"
    assert heading == "To go on:"
    assert files() == {CHECKPOINT}
    assert len(load_file(CHECKPOINT)["history.epoch_loss"]) == (2 if name == CHECKPOINT else 4)
    words = shlex.split(command)
    assert words == ["vegrad", *SMALL, "--epochs", "4", "--resume", CHECKPOINT]
    assert main(words[1:]) == 0
    assert files() == ALL


def test_a_full_disk_before_the_first_checkpoint(
    writing: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    writing(CHECKPOINT, 1, full)
    assert main([*SMALL]) == 4
    said = f"vegrad: error: {CHECKPOINT}: No space left on device\n"
    assert capsys.readouterr().err == said
    assert files() == set()


@pytest.mark.parametrize("ending", [".json", ".csv", ".png"])
def test_histories_and_pictures_appear_whole_or_not_at_all(
    ending: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    net = MLP([3, 4, 2], loss="mse", seed=0)
    x = np.random.default_rng(0).standard_normal((20, 3))
    history = net.fit(
        x, x[:, :2], optimizer=vegrad.SGD(0.01), epochs=1, batch_size=5, progress=False
    )
    path = Path(f"kept{ending}")
    save = history.plot if ending == ".png" else history.save
    save(path)
    kept = path.read_bytes()
    assert len(kept) > 100
    monkeypatch.setattr(writer.os, "fsync", lambda _: full())
    for name in (path, Path(f"new{ending}")):
        with pytest.raises(OSError, match="No space left on device") as caught:
            save(name)
        assert caught.value.filename == str(name)
    assert files() == {path.name}
    assert path.read_bytes() == kept

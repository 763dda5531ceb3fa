"""Runs of other programs: what is read of their files, and what is said of files that are none."""

import csv
import json
import struct
from contextlib import suppress
from math import inf, isnan, nan
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.runs import event_files, tags
from vegrad.runs.event_files import _masked


def record(content: bytes) -> bytes:
    head = struct.pack("<Q", len(content))
    return head + struct.pack("<I", _masked(head)) + content + b"\0\0\0\0"


def varint(number: int) -> bytes:
    found = b""
    while number > 127:
        found += bytes([number & 127 | 128])
        number >>= 7
    return found + bytes([number])


def block(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def event(step: int, tag: str, value: bytes) -> bytes:
    inner = block(1, tag.encode()) + value
    return record(b"\x09" + bytes(8) + b"\x10" + varint(step) + block(5, block(1, inner)))


def simple(value: float) -> bytes:
    return b"\x15" + struct.pack("<f", value)


def tensor(value: float) -> bytes:
    return block(8, b"\x08\x01" + block(4, struct.pack("<f", value)))


def trainer(tmp_path: Path, *entries: dict[str, object]) -> Path:
    path = tmp_path / "trainer_state.json"
    path.write_text(json.dumps({"log_history": entries, "logging_steps": 10}))
    return path


def test_a_trainer_state(tmp_path: Path) -> None:
    path = trainer(
        tmp_path,
        {"step": 10, "loss": 2.0, "grad_norm": 1.5, "learning_rate": "1e-4", "epoch": 0.1},
        {"predict_loss": 9.0, "loss": 9.0},
        {"step": 15, "eval_loss": 2.5, "eval_accuracy": 0.5},
        {"step": 20, "loss": 1.0, "grad_norm": nan, "learning_rate": 5e-5},
        {"step": 20, "train_loss": 1.5},
    )
    run = vegrad.read_run(path)
    assert run.step.tolist() == [10, 15, 20]
    assert run.loss[[0, 2]].tolist() == [2.0, 1.0]
    assert isnan(run.loss[1])
    assert run.validation_loss[1] == 2.5
    assert run.learning_rate[0] == 1e-4
    assert run.nonfinite == {"gradient_norm": 20}
    assert run.about["unknown"] == ["eval_accuracy"]
    assert run.about["names"] == {
        "loss": "loss",
        "gradient_norm": "grad_norm",
        "learning_rate": "learning_rate",
        "validation_loss": "eval_loss",
    }
    assert not run.about["rewarded"]
    folder = vegrad.read_run(tmp_path)
    assert folder.steps == 3


def test_the_last_checkpoint_of_a_folder_is_read(tmp_path: Path) -> None:
    for number in (500, 1000, 90):
        (tmp_path / f"checkpoint-{number}").mkdir()
        trainer(tmp_path / f"checkpoint-{number}", {"step": number, "loss": 1.0})
    assert vegrad.read_run(tmp_path).step.tolist() == [1000]


def test_a_training_by_reward_is_known(tmp_path: Path) -> None:
    assert vegrad.read_run(
        trainer(tmp_path, {"step": 1, "loss": 0.1, "rewards/chosen": 1.0})
    ).about["rewarded"]


def test_a_table_of_lightning(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    with open(path, "w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["epoch", "grad_2.0_norm/net.0.weight", "lr-AdamW", "step", "train_loss_step",
                       "val_loss", "train_loss_epoch"])  # fmt: skip
        rows.writerow([0, 4.0, 0.1, 49, 3.5, "", ""])
        rows.writerow([0, "", "", 49, "", 3.0, ""])
        rows.writerow([0, 2.0, 0.1, 99, "nan", "", 3.25])
    run = vegrad.read_run(path)
    assert run.step.tolist() == [49, 99]
    assert run.loss[0] == 3.5
    assert run.validation_loss[0] == 3.0
    assert run.learning_rate.tolist() == [0.1, 0.1]
    assert run.modules == ("net.0.weight",)
    assert run.gradient_log2[:, 0].tolist() == [2.0, 1.0]
    assert run.nonfinite == {"loss": 99}


def test_event_files(tmp_path: Path) -> None:
    begin = record(b"\x09" + bytes(8) + block(3, b"brain.Event:2"))
    first = begin + b"".join(event(step, "Loss/train", simple(1 / (step + 1))) for step in range(5))
    other = event(3, "Loss/train", tensor(0.5)) + event(3, "mystery", simple(1.0))
    picture = event(4, "image", block(4, b"\x08\x01" + block(4, b"png")))
    (tmp_path / "events.out.tfevents.1").write_bytes(first)
    (tmp_path / "events.out.tfevents.2").write_bytes(begin + other + picture + b"\x05\x00")
    run = vegrad.read_run(tmp_path)
    assert run.step.tolist() == [0, 1, 2, 3]  # the later file has gone on from step 3
    assert run.loss[3] == 0.5
    assert run.about["unknown"] == ["mystery"]
    assert run.about["source"] == "TensorBoard"


def test_what_tensorboard_writes(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    SummaryWriter = pytest.importorskip("torch.utils.tensorboard").SummaryWriter
    writer = SummaryWriter(tmp_path)
    for step in range(300):
        writer.add_scalar("train/loss", 1 / (step + 1), step)
        writer.add_scalar("val/loss", inf, step, new_style=True)
    writer.close()
    run = vegrad.read_run(tmp_path)
    assert np.allclose(run.loss, 1 / np.arange(1, 301))
    assert run.nonfinite == {"validation_loss": 0}


def test_damaged_event_files(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    whole = b"".join(event(step, "loss", simple(1.0)) for step in range(3))
    for end in range(len(whole)):
        path.write_bytes(whole[: end + 1])
        with suppress(ValueError):
            assert vegrad.read_run(path).steps <= 3
    path.write_bytes(event(0, "loss", simple(1.0)) + b"x" * 40)
    with pytest.raises(ValueError, match="it is damaged before byte"):
        vegrad.read_run(path)
    for wrong in (b"\xff" * 20, b"\x2a\xff", b"\x2b", block(5, b"\x0a\xff\xff\x01")):
        path.write_bytes(event(0, "loss", simple(1.0)) + record(wrong))
        assert vegrad.read_run(path).steps == 1


def test_a_history_that_was_saved(tmp_path: Path) -> None:
    network = vegrad.MLP([2, 3, 1], seed=0)
    x = np.random.default_rng(0).normal(size=(20, 2)).astype(np.float32)
    options = {"epochs": 2, "batch_size": 5, "progress": False, "on_finding": None}
    history = network.fit(x, x[:, :1], optimizer=vegrad.SGD(0.1), **options)
    for name in ("history.json", "history.csv"):
        history.save(tmp_path / name)
        run = vegrad.read_run(tmp_path / name)
        assert np.allclose(run.loss, history.loss)
        assert np.allclose(run.gradient_norm, history.gradient_norm)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "it is empty"),
        (b"hello", "it must be a log of vegrad"),
        (b"{", "it is no whole JSON"),
        (b"{}", "without a log_history"),
        (b'{"log_history": 3}', "without a log_history"),
        (b'{"log_history": []}', "nothing was logged yet"),
        (b'{"log_history": [{"step": 1, "g_loss": 2}]}', "by a known name, but g_loss"),
        (b'{"log_history": [[], 3, null, {"step": "x", "loss": 1}]}', "but nothing"),
        (b'{"a": ' + b"[" * 100_000, "nested too deeply"),
        (b"step,accuracy\n1,0.5\n", "by a known name, but accuracy"),
        (b"a,b\n1,2\n", "it must be a log of vegrad"),
        (b"step" + b",a" * 20_000 + b"\n", "10000 columns at most"),
        (b"version https://git-lfs.github.com/spec/v1\n", "a pointer of Git LFS"),
        (b'{"vegrad_run": 7, "modules": []}\n', "its version must be 1, not 7"),
    ],
)
def test_what_is_no_run_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        vegrad.read_run(path)
    assert str(caught.value).startswith(str(path))
    assert len(str(caught.value)) < 1000


def test_paths_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="path must be the path of a file, not int"):
        vegrad.read_run(3)  # type: ignore[arg-type]
    with pytest.raises(FileNotFoundError):
        vegrad.read_run(tmp_path / "missing")
    with pytest.raises(ValueError, match="there is no run in this folder"):
        vegrad.read_run(tmp_path)


def test_names_cannot_drive_a_terminal(tmp_path: Path) -> None:
    path = trainer(tmp_path, {"step": 1, "loss": 1.0, "\x1b[2J" + "a" * 1000: 2.0})
    (name,) = vegrad.read_run(path).about["unknown"]
    assert name.isprintable()
    assert len(name) == 300


def test_long_runs_are_thinned(tmp_path: Path) -> None:
    series = tags.all_of((("loss", float(step), 1.0 / (step + 1)) for step in range(10_000)), 100)
    run = series.run("test")
    assert 100 <= run.steps <= 200
    assert np.allclose(run.loss, 1 / (run.step + 1))


def test_the_checksum_is_that_of_the_standard() -> None:
    # RFC 3720, B.4: 32 bytes of zeros.
    assert _masked(bytes(32)) == (((0x8A9136AA >> 15) | (0x8A9136AA << 17)) + 0xA282EAD8) % 2**32
    assert not event_files.is_events(b"0123456789ab")


def table(tmp_path: Path, head: str, *rows: str) -> Path:
    path = tmp_path / "metrics.csv"
    path.write_text("\n".join([head, *rows, ""]))
    return path


def test_a_loss_of_a_name_of_its_own_is_taken_if_there_is_one(tmp_path: Path) -> None:
    run = vegrad.read_run(table(tmp_path, "step,train_ctc_loss,val_ctc_loss,acc", "1,2.5,3,0.1"))
    assert run.about["names"] == {"loss": "train_ctc_loss"}
    assert run.about["unknown"] == ["val_ctc_loss", "acc"]
    both = table(tmp_path, "step,ctc_loss_epoch,ctc_loss_step", "1,,2.5", "1,2.6,")
    assert vegrad.read_run(both).loss.tolist() == [2.5]
    means = table(tmp_path, "step,data_loss,mean_loss", "1,nan,nan", "2,nan,nan")
    assert vegrad.read_run(means).nonfinite == {"loss": 1}
    found = vegrad.diagnose_run(means)
    assert "from step 1 on, the first that has one" in found.findings[0].message
    assert "NaN among the data" in found.findings[0].advice
    for head in ("step,g_loss,d_loss", "step,box_loss,cls_loss", "step,test_loss,acc"):
        with pytest.raises(ValueError, match="no loss and no norm of gradients by a known name"):
            vegrad.read_run(table(tmp_path, head, "1,2.5,3"))


def test_a_row_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    path = table(tmp_path, "epoch,step,train_loss", "0,99,2.5", "0,149,2.25")
    path.write_text(path.read_text() + "0,19")
    assert vegrad.read_run(path).step.tolist() == [99, 149]
    path.write_text("epoch,step,train_loss\n0,9")
    with pytest.raises(ValueError, match="by a known name, but nothing"):
        vegrad.read_run(path)


@pytest.mark.parametrize(
    ("names", "rewarded"),
    [
        ("avg_reward,train_loss", True),
        ("rollout/ep_rew_mean,train/loss", True),
        ("train/value_loss,train/loss", True),
        ("train/approx_kl,train/loss", True),
        ("charts/episodic_return,train/loss", True),
        ("train_kl_step,train_loss", False),
        ("reconstruction,kl,loss", False),
    ],
)
def test_a_training_by_reward_is_known_by_its_names(
    tmp_path: Path, names: str, rewarded: bool
) -> None:
    run = vegrad.read_run(table(tmp_path, f"step,{names}", "1,2.5,3,1"))
    assert run.about["rewarded"] == rewarded

"""A monitor in the loops and logs of other packages, each with the real package."""

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch import callbacks  # noqa: E402

# The warnings of these packages are not about our code.
pytestmark = [pytest.mark.usefixtures("one_torch_thread"), pytest.mark.filterwarnings("ignore")]

NORM = "vegrad/gradient_norm"


def model() -> torch.nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2))


def trained(steps: int, write: Any = None) -> Any:
    """Return a monitor of a short training; `write` is called with it after each step."""
    net = model()
    monitor = ours.Monitor(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()
        if write is not None:
            write(monitor)
    return monitor


def test_tensorboard_has_every_step(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("google.protobuf")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writers: list[Any] = []

    def write(monitor: Any) -> None:
        if not writers:
            writers.append(callbacks.TensorBoard(monitor, str(tmp_path)))
        writers[0].write()

    monitor = trained(3, write)
    writers[0].close()
    log = EventAccumulator(str(tmp_path)).Reload()
    events = log.Scalars(NORM)
    assert [event.step for event in events] == [0, 1, 2]
    assert [event.value for event in events] == pytest.approx(monitor.history.gradient_norm)
    assert {"vegrad/loss", "vegrad/update_ratio"} <= set(log.Tags()["scalars"])


def test_tensorboard_has_one_picture_and_a_layout(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("matplotlib")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writers: list[Any] = []

    def write(monitor: Any) -> None:
        if not writers:
            writers.append(callbacks.TensorBoard(monitor, str(tmp_path)))
        writers[0].write()

    trained(70, write)
    writers[0].close()
    sizes = {"images": 0, "scalars": 0, "tensors": 0}
    log = EventAccumulator(str(tmp_path), sizes).Reload()
    pictures = log.Images(callbacks.PICTURE)
    assert [event.step for event in pictures] == [15, 31, 63, 69]
    assert pictures[-1].width > 800
    layout = log.Tensors("custom_scalars__config__")[0].tensor_proto.string_val[0]
    for one in ("vegrad/gradient_norm", "vegrad/norm_before_clip", "findings and spikes"):
        assert one.encode() in layout


def test_a_writer_of_ones_own_keeps_its_layout() -> None:
    class Writer:
        """What SummaryWriter has, of which a part is needed."""

        def __init__(self) -> None:
            self.written: list[str] = []

        def add_scalar(self, name: str, value: float, step: int) -> None:
            self.written.append(name)

        def add_figure(self, name: str, figure: Any, step: int) -> None:
            self.written.append(name)

        def close(self) -> None:
            self.written.append("close")

    writer = Writer()
    board = callbacks.TensorBoard(trained(3), writer)
    board.write()
    board.close()
    assert NORM in writer.written
    assert writer.written[-2:] == [callbacks.PICTURE, "close"]


def test_without_matplotlib_there_is_no_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    board = callbacks.TensorBoard(trained(20), Line := type("Line", (), {
        "add_scalar": lambda *_: None, "close": lambda *_: None})())  # fmt: skip
    board.write()
    board.close()
    assert not hasattr(Line, "add_figure")


def test_wandb_logs_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_SILENT", "true")
    writers: list[Any] = []

    def write(monitor: Any) -> None:
        if not writers:
            writers.append(callbacks.WandB(monitor, dir=str(tmp_path), project="test"))
        writers[0].write()

    monitor = trained(20, write)
    run = writers[0].run
    assert run.offline
    assert run.summary[callbacks.PICTURE]["_type"] == "image-file"
    # The last step may still get numbers of others: it is committed by the next, or at the end.
    assert run.summary[NORM] == pytest.approx(monitor.history.gradient_norm[18])
    writers[0].close()
    assert list(tmp_path.rglob("*.wandb"))


def test_lightning_logs_and_prints(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning.pytorch")
    from lightning.pytorch.loggers import CSVLogger

    class Module(lightning.LightningModule):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, _: Any) -> Any:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    data = torch.utils.data.TensorDataset(torch.randn(40, 8))
    callback = callbacks.lightning_callback(details=1)
    logger = CSVLogger(tmp_path)
    trainer = lightning.Trainer(
        max_epochs=2,
        callbacks=[callback],
        logger=logger,
        log_every_n_steps=2,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(Module(), torch.utils.data.DataLoader(data, batch_size=4))
    monitor = callback.monitor
    assert monitor is not None
    assert monitor.steps == 20
    text = next(Path(logger.log_dir).glob("metrics.csv")).read_text()
    lines = text.splitlines()
    assert NORM in lines[0].split(",")
    assert len(lines) == 11
    assert "net.0" in str(monitor.report())


def test_the_hugging_face_trainer_logs(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: torch.Tensor, labels: Any) -> dict[str, Any]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": torch.randn(8), "labels": torch.tensor(n % 2)} for n in range(40)]
    callback = callbacks.trainer_callback()
    arguments = transformers.TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=6,
        logging_steps=2,
        report_to=[],
        use_cpu=True,
        per_device_train_batch_size=4,
        disable_tqdm=True,
        save_strategy="no",
    )
    trainer = transformers.Trainer(Net(), arguments, train_dataset=rows, callbacks=[callback])
    trainer.train()
    monitor = callback.monitor
    assert monitor is not None
    assert monitor.steps == 6
    logged = [entry[NORM] for entry in trainer.state.log_history if NORM in entry]
    norms = monitor.history.gradient_norm
    assert logged == pytest.approx([norms[1], norms[3], norms[5]])


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in (
        "lightning.pytorch",
        "pytorch_lightning",
        "transformers",
        "wandb",
        "torch.utils.tensorboard",
    ):
        monkeypatch.setitem(sys.modules, name, None)
    monitor = trained(1)
    makers: tuple[Any, ...] = (callbacks.lightning_callback, callbacks.trainer_callback)
    writers: tuple[Any, ...] = (callbacks.WandB, callbacks.TensorBoard)
    for make in (*makers, *(lambda writer=writer: writer(monitor) for writer in writers)):
        with pytest.raises(ImportError, match="torch-loggers"):
            make()

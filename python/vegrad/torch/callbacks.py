"""A monitor's numbers in other people's loops and logs; each needs its own package.

    trainer = lightning.Trainer(callbacks=[lightning_callback()])
    trainer = transformers.Trainer(..., callbacks=[trainer_callback()])
    TensorBoard(monitor).write()      # after a step
    WandB(monitor, run).write()

All write `Monitor.scalars()` under "vegrad/". Nothing is imported before it is asked for.
"""

from __future__ import annotations

from typing import Any

from vegrad.torch.monitor.monitor import Monitor

PREFIX = "vegrad/"


def named_scalars(monitor: Monitor) -> dict[str, float]:
    """The last step's numbers, as they are logged."""
    return {PREFIX + name: value for name, value in monitor.scalars().items()}


def _package(name: str) -> ImportError:
    return ImportError(f'this needs {name}: pip install "vegrad[torch-loggers]"')


def lightning_callback(**options: Any) -> Any:
    """A `lightning.Callback` (or pytorch_lightning's) with a `monitor` of the module it trains.

    Its numbers go to the loggers of the trainer at its steps of logging, its report is printed by
    `print(callback.monitor.report())`.

    Args:
        **options: of `Monitor`.

    Raises:
        ImportError: neither package is installed.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError:
        try:
            from pytorch_lightning import Callback
        except ImportError as error:
            raise _package("lightning") from error

    class VegradCallback(Callback):
        """Logs `Monitor.scalars()`."""

        def __init__(self) -> None:
            self.monitor: Monitor | None = None

        def on_fit_start(self, trainer: Any, module: Any) -> None:
            self.monitor = Monitor(module, **options)

        def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
            assert self.monitor is not None
            if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.loggers:
                numbers = named_scalars(self.monitor)
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, step=trainer.global_step)

        def on_fit_end(self, trainer: Any, module: Any) -> None:
            assert self.monitor is not None
            self.monitor.remove()

    return VegradCallback()


def trainer_callback(**options: Any) -> Any:
    """A `transformers.TrainerCallback` with a `monitor` of the model it trains.

    What the Trainer logs has the monitor's numbers in it, whatever it reports to.

    Args:
        **options: of `Monitor`.

    Raises:
        ImportError: transformers is not installed.
    """
    try:
        from transformers import TrainerCallback
    except ImportError as error:
        raise _package("transformers") from error

    class VegradCallback(TrainerCallback):
        """Adds `Monitor.scalars()` to the Trainer's logs."""

        def __init__(self) -> None:
            self.monitor: Monitor | None = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **more: Any) -> None:
            self.monitor = Monitor(more["model"], **options)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
            if self.monitor is None or logs is None or "loss" not in logs:
                return  # of an evaluation, or of the end
            numbers = named_scalars(self.monitor)
            logs.update(numbers)
            if state.log_history:
                state.log_history[-1].update(numbers)

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            assert self.monitor is not None
            self.monitor.remove()

    return VegradCallback()


class TensorBoard:
    """Writes a monitor's numbers to a TensorBoard log.

    Args:
        monitor: the monitor.
        log_dir: a folder, or a `torch.utils.tensorboard.SummaryWriter`.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, monitor: Monitor, log_dir: Any = None) -> None:
        self.monitor = monitor
        if hasattr(log_dir, "add_scalar"):
            self.writer = log_dir
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _package("tensorboard") from error
        self.writer = SummaryWriter(log_dir)

    def write(self, step: int | None = None) -> None:
        """The last step's numbers, under the number of the step."""
        step = self.monitor.steps - 1 if step is None else step
        for name, value in named_scalars(self.monitor).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Writes what is left."""
        self.writer.close()


class WandB:
    """Writes a monitor's numbers to a run of Weights & Biases.

    Args:
        monitor: the monitor.
        run: what `wandb.init(...)` gave; None starts one that stays on this machine
            (mode="offline").
        **options: of `wandb.init`, if there is no run.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, monitor: Monitor, run: Any = None, **options: Any) -> None:
        self.monitor = monitor
        if run is None:
            try:
                import wandb
            except ImportError as error:
                raise _package("wandb") from error
            run = wandb.init(**{"mode": "offline", **options})
        self.run = run

    def write(self, step: int | None = None) -> None:
        """The last step's numbers, under the number of the step."""
        step = self.monitor.steps - 1 if step is None else step
        self.run.log(named_scalars(self.monitor), step=step)

    def close(self) -> None:
        """Ends the run."""
        self.run.finish()

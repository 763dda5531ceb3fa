"""A monitor's numbers in the loops and logs of other packages.

    trainer = lightning.Trainer(callbacks=[lightning_callback()])
    trainer = transformers.Trainer(..., callbacks=[trainer_callback()])
    TensorBoard(monitor).write()      # after a step
    WandB(monitor, run).write()

All write `Monitor.scalars()`, a dozen numbers, under "vegrad/". Each needs its own package, which
is imported when it is first asked for.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from torch.nn import Module

from vegrad.torch.monitor.monitor import Monitor

PREFIX = "vegrad/"
Options: TypeAlias = dict[str, Any]


def named_scalars(monitor: Monitor) -> dict[str, float]:
    """Return the last step's numbers under the names that they are logged by."""
    return {PREFIX + name: value for name, value in monitor.scalars().items()}


def _package(name: str) -> ImportError:
    return ImportError(f'this needs {name}: pip install "vegrad[torch-loggers]"')


def _logged(options: Options, step: int, first: bool) -> Options:
    """Return the options of a monitor, whose log goes on at a step, in the first process alone."""
    if not first:
        return {name: value for name, value in options.items() if name != "log"}
    return {"first_step": step, **options} if options.get("log") is not None else options


def lightning_callback(**options: Any) -> Any:
    """Return a `lightning.Callback` (or pytorch_lightning's) with a `monitor` of its module.

    The numbers go to the trainer's loggers whenever the trainer logs; the report is printed by
    `print(callback.monitor.report())`. With `on_finding="stop"` a finding ends the training. With
    `log="run.jsonl"` the first process writes the log, from the trainer's step on.

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
        """A callback that logs `Monitor.scalars()`."""

        def __init__(self) -> None:
            self.monitor: Monitor | None = None

        def on_fit_start(self, trainer: Any, module: Module) -> None:
            more = _logged(options, trainer.global_step, trainer.is_global_zero)
            self.monitor = Monitor(module, **more)

        def on_train_batch_end(
            self, trainer: Any, module: Module, outputs: object, batch: object, batch_idx: int
        ) -> None:
            assert self.monitor is not None
            self.monitor.step(batch=batch_idx)
            if self.monitor.stopped:
                trainer.should_stop = True
            if trainer.global_step % trainer.log_every_n_steps == 0 and trainer.loggers:
                numbers = named_scalars(self.monitor)
                for logger in trainer.loggers:
                    logger.log_metrics(numbers, step=trainer.global_step)

        def on_fit_end(self, trainer: object, module: Module) -> None:
            assert self.monitor is not None
            self.monitor.remove()

    return VegradCallback()


def trainer_callback(**options: Any) -> Any:
    """Return a `transformers.TrainerCallback` with a `monitor` of the model that is trained.

    The monitor's numbers are added to the Trainer's `state.log_history`, and so to its
    `trainer_state.json`; nothing is added to the lines that it prints. `on_finding="stop"` ends the
    training after the step, as Lightning's callback does too. With `log="run.jsonl"` the first
    process writes the log, from the Trainer's step on.

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
        """A callback that adds `Monitor.scalars()` to the Trainer's logs."""

        def __init__(self) -> None:
            self.monitor: Monitor | None = None

        def on_train_begin(
            self, args: object, state: Any, control: object, *, model: Module, **_: object
        ) -> None:
            more = _logged(options, state.global_step, state.is_world_process_zero)
            self.monitor = Monitor(model, **more)

        def on_step_end(self, args: object, state: Any, control: Any, **_: object) -> None:
            if self.monitor is not None and self.monitor.stopped:
                control.should_training_stop = True

        def on_log(
            self,
            args: object,
            state: Any,
            control: object,
            logs: dict[str, float] | None = None,
            **_: object,
        ) -> None:
            if self.monitor is None or logs is None or "loss" not in logs:
                return  # the log is of an evaluation, or of the end
            if state.log_history:  # not `logs`, which the Trainer prints after this
                state.log_history[-1].update(named_scalars(self.monitor))

        def on_train_end(self, args: object, state: object, control: object, **_: object) -> None:
            assert self.monitor is not None
            self.monitor.remove()

    return VegradCallback()


class TensorBoard:
    """A writer of a monitor's numbers to a TensorBoard log.

    Args:
        monitor: the monitor.
        log_dir: a folder, or a `torch.utils.tensorboard.SummaryWriter`; None for the folder
            that the latter chooses.

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
        """Write the last step's numbers; `step` is the number of that step if not given."""
        step = self.monitor.steps - 1 if step is None else step
        for name, value in named_scalars(self.monitor).items():
            self.writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Write what is left."""
        self.writer.close()


class WandB:
    """A writer of a monitor's numbers to a run of Weights & Biases.

    Args:
        monitor: the monitor.
        run: the run that `wandb.init(...)` returned; None starts one that stays on this machine
            (mode="offline").
        **options: of `wandb.init`, if no run is given.

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
        """Write the last step's numbers; `step` is the number of that step if not given."""
        step = self.monitor.steps - 1 if step is None else step
        self.run.log(named_scalars(self.monitor), step=step)

    def close(self) -> None:
        """End the run."""
        self.run.finish()

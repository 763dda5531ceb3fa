"""A monitor's numbers in the loops and logs of other packages.

    trainer = lightning.Trainer(callbacks=[lightning_callback()])
    trainer = transformers.Trainer(..., callbacks=[trainer_callback()])
    TensorBoard(monitor).write()      # after a step
    WandB(monitor, run).write()

All write `Monitor.scalars()`, a dozen numbers, under "vegrad/"; the last two also one picture of
the whole run, where matplotlib is installed: now and then, and at the end. Each needs its own
package, which is imported when it is first asked for.
"""

from __future__ import annotations

import importlib
from typing import Any, TypeAlias

from torch.nn import Module

from vegrad.pictures import Figure
from vegrad.reports.run_picture import plot_run
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.monitor.track import NAMES

Foreign = Any  # of other packages, whose types cannot be named

PREFIX = "vegrad/"
Options: TypeAlias = dict[str, Any]
PICTURE = f"{PREFIX}gradient_by_depth"
FIRST = 16  # steps after which there is a first picture; then whenever they have doubled
# The charts of a board, by title: the numbers that share one.
LAYOUT = {
    "loss": ("loss",),
    "gradient norm": ("gradient_norm", *NAMES),
    "gradient at the ends, ‖δ‖": ("delta_norm/first_module", "delta_norm/last_module"),
    "activations at the ends, rms": ("activation_rms/first_module", "activation_rms/last_module"),
    "update over weight": ("update_ratio",),
    "findings and spikes": ("findings", "spikes", "nonfinite"),
}


def named_scalars(monitor: Monitor) -> dict[str, float]:
    """Return the last step's numbers under the names that they are logged by."""
    return {PREFIX + name: value for name, value in monitor.scalars().items()}


class _Pictures:
    """Pictures of a monitor's run, made when its steps have doubled since the last one."""

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._drawn = 0
        """The number of steps when the last one was made."""

    @property
    def due(self) -> bool:
        """True if it is time for one."""
        return self._monitor.steps >= max(FIRST, 2 * self._drawn)

    def draw(self) -> Figure | None:
        """Return a picture, if there are steps since the last one; None without matplotlib."""
        steps = self._monitor.steps
        if steps == self._drawn:
            return None
        self._drawn = steps
        try:
            return plot_run(self._monitor.run)
        except (ImportError, ValueError):  # the latter where there is nothing to draw
            return None


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

    Beside them it writes a picture of the run (gradient by depth over time, loss, norms, updates,
    findings) when its steps have doubled since the last one, and at the end; and, unless the writer
    is given, a layout, by which numbers that belong together share a chart under "Custom scalars".

    Args:
        monitor: the monitor.
        log_dir: a folder, or a `torch.utils.tensorboard.SummaryWriter`; None for the folder
            that the latter chooses.

    Raises:
        ImportError: tensorboard is not installed.
    """

    def __init__(self, monitor: Monitor, log_dir: Foreign = None) -> None:
        self.monitor, self._pictures = monitor, _Pictures(monitor)
        if hasattr(log_dir, "add_scalar"):
            self.writer = log_dir
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise _package("tensorboard") from error
        self.writer = SummaryWriter(log_dir)
        charts = {title: ["Multiline", [PREFIX + one for one in LAYOUT[title]]] for title in LAYOUT}
        self.writer.add_custom_scalars({"vegrad": charts})

    def write(self, step: int | None = None) -> None:
        """Write the last step's numbers; `step` is the number of that step if not given."""
        step = self.monitor.steps - 1 if step is None else step
        for name, value in named_scalars(self.monitor).items():
            self.writer.add_scalar(name, value, step)
        if self._pictures.due:
            self._draw(step)

    def close(self) -> None:
        """Write the last picture, and what is left."""
        self._draw(self.monitor.steps - 1)
        self.writer.close()

    def _draw(self, step: int) -> None:
        if (figure := self._pictures.draw()) is not None:
            self.writer.add_figure(PICTURE, figure, step)


class WandB:
    """A writer of a monitor's numbers to a run of Weights & Biases, with the same pictures.

    Args:
        monitor: the monitor.
        run: the run that `wandb.init(...)` returned; None starts one that stays on this machine
            (mode="offline").
        **options: of `wandb.init`, if no run is given.

    Raises:
        ImportError: wandb is not installed.
    """

    def __init__(self, monitor: Monitor, run: Foreign = None, **options: Foreign) -> None:
        self.monitor, self._pictures = monitor, _Pictures(monitor)
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
        picture = self._picture() if self._pictures.due else {}
        self.run.log({**named_scalars(self.monitor), **picture}, step=step)

    def close(self) -> None:
        """Log the last picture, and end the run."""
        if picture := self._picture():
            self.run.log(picture, step=self.monitor.steps - 1)
        self.run.finish()

    def _picture(self) -> dict[str, object]:
        if (figure := self._pictures.draw()) is None:
            return {}
        return {PICTURE: importlib.import_module("wandb").Image(figure)}

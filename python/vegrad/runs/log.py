"""The log of a training: a file that grows by a line a step, and that a kill leaves readable."""

from __future__ import annotations

import json
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from os import PathLike
from pathlib import Path
from typing import Self

from vegrad._core import __version__
from vegrad.arrays.checks import as_count
from vegrad.arrays.shown import SCREEN, plainly, shown, visible
from vegrad.diagnosis.alarms import user_level
from vegrad.diagnosis.noted import Json, Noted, plain_number, to_plain
from vegrad.runs.form import (
    COLUMNS,
    DENSE,
    EACH,
    FORMAT,
    KEY,
    LONGEST,
    SPARSE,
    has_line,
    has_sizes,
    number,
    size,
)
from vegrad.runs.locking import lock
from vegrad.runs.spikes import Spike

TAIL = 1 << 20  # bytes at the end of a file that are asked who writes it


class RunLog:
    """A log that a training appends to, which `vegrad.read_run` and `vegrad watch` read.

    Each line is written whole, at once, and is there for readers from then on; it is not waited for
    until a disk has it. The form, and how the file stays bounded, is that of `vegrad.runs.form`. A
    file that is there is gone on with.

    Args:
        path: the file.
        modules: names of the modules with weights, from the input to the output.
        floor_log2: log2 of the smallest normal number of the gradients' dtype.
        about: what is known of the run: "name", "model", …; plain JSON types.
        first_step: number of the first step that will be written: what the file has of this step
            and later ones is superseded.

    Raises:
        TypeError, ValueError: arguments of the wrong kind; a file that is no log, or one of other
            modules or another model; a file that another process is writing.
        OSError: the file cannot be opened.
    """

    @plainly()
    def __init__(
        self,
        path: str | PathLike[str],
        *,
        modules: Iterable[str] = (),
        floor_log2: float = float("-inf"),
        about: Mapping[str, object] | None = None,
        first_step: int = 0,
    ) -> None:
        first = as_count("first_step", first_step)
        if not isinstance(path, str | PathLike):
            raise TypeError(f"log must be the path of a file, not {type(path).__name__}")
        self.path, self.modules = Path(path), tuple(modules)
        self.broken = False
        """True once a line could not be written: from then on nothing is."""
        header = {
            KEY: FORMAT,
            "version": __version__,
            "modules": list(self.modules),
            "floor_log2": plain_number(floor_log2),
            "about": dict(about or {}),
        }
        line = json.dumps(header, ensure_ascii=False, allow_nan=False)
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        self._file: int | None = os.open(self.path, flags, 0o666)
        try:
            self._begin(line, header)
        except BaseException:
            self.close()
            raise
        self.process = os.getpid()
        self._write(f'{{"from":{first},"process":{self.process},"time":{int(time.time())}}}')

    def _begin(self, line: str, header: dict[str, Json]) -> None:
        """Lock the file, and write the header or compare the one that is there."""
        assert self._file is not None
        if not lock(self._file):
            raise ValueError(
                f"{self.path} is being written by {_writer(self.path)}: each training needs a log "
                "of its own, as every process of a distributed one does"
            )
        with open(self.path, "rb") as file:
            first = file.readline(LONGEST)
            if not first:
                self._write(line)
                return
            _check_same(self.path, header, first)
            file.seek(-1, os.SEEK_END)
            if file.read(1) != b"\n":
                self._write("")  # ends the line that a kill has cut off

    @property
    def closed(self) -> bool:
        """True once it is closed."""
        return self._file is None

    def step(
        self,
        step: int,
        loss: float | None = None,
        gradient_norm: float | None = None,
        clipped_norm: float | None = None,
        learning_rate: float | None = None,
        update_ratio: float | None = None,
        log2: Sequence[float] | None = None,
    ) -> None:
        """Write a step, unless its number says that it has no line; None is left out.

        `log2` is as for `sizes`, which asks `wants_sizes` first.
        """
        if step >= EACH and not has_line(step):
            return
        numbers = (loss, gradient_norm, clipped_norm, learning_rate, update_ratio)
        # One template, one write: beside a training all code is out of the cache.
        there = (
            loss is not None,
            gradient_norm is not None,
            clipped_norm is not None,
            learning_rate is not None,
            update_ratio is not None,
        )
        line = _template(there) % (step, *numbers)
        if "nan" in line or "inf" in line:
            named = zip(COLUMNS, numbers, strict=True)
            parts = [f',"{name}":{number(one)}' for name, one in named if one is not None]
            line = f'{{"step":{step}{"".join(parts)}}}\n'
        self._append((line if log2 is None else f"{line}{self._sizes(step, log2)}\n").encode())

    def validation(self, step: int, loss: float) -> None:
        """Write the loss of data that were held out, after a step."""
        self._write(f'{{"validated":{step},"loss":{number(loss)}}}')

    def wants_sizes(self, step: int) -> bool:
        """Return True if `sizes` would write this step's."""
        if step % SPARSE and step >= DENSE * SPARSE:  # of most steps nothing more is asked
            return False
        return has_sizes(step, len(self.modules)) and not self.broken

    def sizes(self, step: int, log2: Sequence[float]) -> None:
        """Write log2 of the norm of the gradient of each module, unless it is not the step for it.

        Raises:
            ValueError: there are more or fewer of them than modules.
        """
        if self.wants_sizes(step):
            self._write(self._sizes(step, log2))

    def _sizes(self, step: int, log2: Sequence[float]) -> str:
        if len(log2) != len(self.modules):
            raise ValueError(f"log2 must have {len(self.modules)} sizes, not {len(log2)}")
        total = sum(log2)
        if total - total == 0:
            content = ",".join(["%.2f" % one for one in log2])  # noqa: UP031  # is the fastest
        else:
            content = ",".join([json.dumps(size(one)) for one in log2])
        return f'{{"sizes":{step},"log2":[{content}]}}'

    def more_about(self, about: Mapping[str, object]) -> None:
        """Write what became known of the run after its beginning."""
        if about:
            self._write(json.dumps({"about": dict(about)}, ensure_ascii=False, allow_nan=False))

    def order(self, places: Sequence[int]) -> None:
        """Write the places of the modules in the order in which they ran."""
        self._write(json.dumps({"order": list(places)}))

    def note(self, one: Noted) -> None:
        """Write a finding."""
        self._write(json.dumps({"finding": to_plain(one)}, ensure_ascii=False, allow_nan=False))

    def spike(self, one: Spike) -> None:
        """Write a spike; one that was written at the same step is superseded."""
        content = {
            "step": one.step,
            "batch": _named(one.batch),
            "loss_times": plain_number(one.loss_times),
            "norm_times": plain_number(one.norm_times),
            "window": [
                [at.step, _named(at.batch), *map(plain_number, at[2:])] for at in one.window
            ],
        }
        self._write(json.dumps({"spike": content}, ensure_ascii=False, allow_nan=False))

    def close(self) -> None:
        """Close the file, which another may then write."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_file" in self.__dict__:
            self.close()

    def _write(self, line: str) -> None:
        """Append a line; the first that cannot be written is warned of, and is the last."""
        self._append(f"{line}\n".encode(errors="replace"))

    def _append(self, content: bytes) -> None:
        if self.broken or self._file is None:
            return
        try:
            while (written := os.write(self._file, content)) < len(content):
                content = content[written:]
        except OSError as error:
            self.broken = True
            warnings.warn(
                f"{visible(str(self.path), SCREEN)}: {error.strerror}: nothing more is logged, "
                "the training goes on",
                RuntimeWarning,
                stacklevel=user_level(("vegrad", "torch", "contextlib")),
            )


@cache
def _template(there: tuple[bool, ...]) -> str:
    """Return the template of a step's line, of which these numbers are known."""
    named = zip(COLUMNS, there, strict=True)
    parts = [f',"{name}":%.6g' if known else "%.0s" for name, known in named]
    return f'{{"step":%d{"".join(parts)}}}\n'


def _named(batch: object) -> Json:
    """Return a batch's index or name as a JSON type."""
    return batch if batch is None or isinstance(batch, int | str) else str(batch)


def _writer(path: Path) -> str:
    """Return the process that began the last stretch of a file, in words."""
    with open(path, "rb") as file:
        file.seek(max(file.seek(0, os.SEEK_END) - TAIL, 0))
        for line in reversed(file.read().split(b"\n")):
            if line.startswith(b'{"from":'):
                try:
                    return f"process {int(json.loads(line)['process'])}"
                except (ValueError, KeyError, TypeError):
                    break
    return "another process"


def _check_same(path: Path, wanted: dict[str, Json], line: bytes) -> None:
    """Raise ValueError unless the first line of a file is the header of the same kind of run."""
    try:
        got = json.loads(line)
        version = got[KEY]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no log of vegrad: give the log another name") from error
    if version != FORMAT:
        raise ValueError(
            f"{path} must be a log of version {FORMAT} to go on with, not {shown(version)}"
        )
    for what, mine, theirs in (
        ("model", wanted["about"].get("model"), got.get("about", {}).get("model")),
        ("modules", wanted["modules"], got.get("modules")),
    ):
        if mine != theirs:
            raise ValueError(
                f"{path} is the log of another run, whose {what} must be "
                f"{_short(theirs)}, not {_short(mine)}: give this one another name"
            )


def _short(value: Json) -> str:
    if not isinstance(value, list):
        return repr(value)
    shown = ", ".join(map(str, value[:3]))
    return f"{len(value)} ({shown}{', …' * (len(value) > 3)})"

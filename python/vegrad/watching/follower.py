"""A follower of a run's file: it reads what is new, in bounded memory and time."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import BinaryIO

from vegrad.recordings.run import RunDiagnosis, diagnose_run
from vegrad.runs.log_reader import LogReader
from vegrad.runs.places import found_in
from vegrad.runs.read import complaining, kind_of, read_run
from vegrad.runs.run import Run

SHOWN = 2048  # steps that are kept of a log, at least
TABLE = 1 << 19  # entries of its sizes by step and module
PIECE = 1 << 17  # bytes that are read at once
BUSY = 10.0  # times as long as it takes to read a file anew, until that is done again


class Follower:
    """The state of a run whose file grows.

    A log is read on from where it was left; a file of another program is read again when it has
    changed. A file that is not there yet, or has nothing in it, is waited for.

    Args:
        path: the file, or the folder that it is in.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self.run: Run | None = None
        self.diagnosis: RunDiagnosis | None = None
        self.problem = "nothing was read yet"
        """The reason why there is nothing to show, or nothing new; "" if there is none."""
        self.share = 0.0
        """The part of the file that was read."""
        self._file: BinaryIO | None = None
        self._reader: LogReader | None = None
        self._seen: tuple[int, ...] = ()
        self._next, self._due = 0.0, False

    def poll(self, seconds: float = 0.03) -> bool:
        """Read what is new, for about so long; return True if there is something new to show."""
        before = self.problem
        try:
            changed = self._read(seconds)
        except FileNotFoundError as error:
            hint = str(error.strerror).removeprefix(os.strerror(errno.ENOENT))
            changed = self._waits(f"{self.path} is not there yet{hint}")
        except OSError as error:
            changed = self._waits(f"{self.path}: {error.strerror}")
        except ValueError as error:
            changed = self._waits(str(error))
        return changed or self.problem != before

    @property
    def behind(self) -> bool:
        """True if there is more in the file than was read."""
        return self.share < 1.0 and self._reader is not None

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
        self._file = self._reader = None

    def __del__(self) -> None:
        self.close()

    def _waits(self, why: str) -> bool:
        self.close()
        self.problem = why
        return False

    def _read(self, seconds: float) -> bool:
        (path, *others) = found_in(self.path)
        if self._file is not None and self._has_gone(path):
            self.close()
        if self._file is None:
            self._file = open(path, "rb")  # noqa: SIM115  # it stays open
            first = self._file.read(1 << 12)
            self._file.seek(0)
            with complaining(path):
                if not first:
                    raise ValueError("it is empty yet")
            self._reader = LogReader(SHOWN, TABLE) if kind_of(first) == "log" else None
        if self._reader is not None:
            with complaining(path):
                return self._read_on(self._reader, self._file, seconds)
        return self._read_again([path, *others])

    def _has_gone(self, path: Path) -> bool:
        """Return True if the file was replaced by another one, or has become shorter."""
        assert self._file is not None
        now, then = os.stat(path), os.fstat(self._file.fileno())
        return now.st_ino != then.st_ino or then.st_size < self._file.tell()

    def _read_on(self, reader: LogReader, file: BinaryIO, seconds: float) -> bool:
        begin, end, changed = time.perf_counter(), os.fstat(file.fileno()).st_size, False
        while time.perf_counter() - begin < seconds and (content := file.read(PIECE)):
            reader.feed(content)
            changed = True
        self.share = min(file.tell() / max(end, 1), 1.0)
        if changed:
            self._show(reader.run().with_about(path=os.fspath(self.path)))
        return changed

    def _read_again(self, paths: list[Path]) -> bool:
        stats = [os.stat(path) for path in paths]
        seen = tuple(number for one in stats for number in (one.st_mtime_ns, one.st_size))
        now = time.monotonic()
        if seen == self._seen or now < self._next:
            return False
        self._seen = seen
        self._show(read_run(self.path))
        self.share = 1.0
        self._next = now + BUSY * (time.monotonic() - now)
        return True

    def _show(self, run: Run) -> None:
        self.run, self.problem = run, ""
        if not run.steps:
            self.problem = f"{self.path}: it has no step yet"
            return
        try:
            self.diagnosis = diagnose_run(run)
        except ValueError:  # there is nothing in it that is judged
            self.diagnosis = None

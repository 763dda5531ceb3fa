"""The file of a sweep: JSON lines, one for each point that was measured."""

from __future__ import annotations

import errno
import json
from collections.abc import Mapping
from dataclasses import asdict
from os import PathLike
from pathlib import Path
from types import TracebackType
from typing import IO, Self, TypeGuard

from vegrad.arrays.files import naming
from vegrad.arrays.shown import plainly, shown

Numbers = Mapping[str, float | None]

KEY, FORMAT = "vegrad-sweep", 1


class Record:
    """The numbers by point; with a path, those of an earlier run too, and each line at once.

    Raises:
        ValueError: the file is no sweep's, or another sweep's.
        OSError: it cannot be read or written.
    """

    @plainly()
    def __init__(self, path: str | PathLike[str] | None, about: Mapping[str, object]) -> None:
        self._path = None if path is None else Path(path)
        self._known = dict[str, Numbers]()
        self._file: IO[str] | None = None
        if self._path is None:
            return
        header = json.dumps({KEY: FORMAT, **about}, ensure_ascii=False)
        if not self._path.parent.is_dir():
            said = "a sweep's file must lie in a folder that is there"
            raise FileNotFoundError(errno.ENOENT, said, str(self._path))
        lines = [""]
        if self._path.exists():
            lines = self._path.read_text("utf-8", errors="replace").split("\n")
        if lines[0]:
            self._check(lines[0], json.loads(header))
        for line in lines[1:]:
            one = _read(line) or {}
            point, numbers = one.get("point"), one.get("numbers")
            if isinstance(point, dict) and _are_numbers(numbers):
                self._known[_key(point)] = numbers
        self._file = self._path.open("a", encoding="utf-8")
        if not lines[0]:
            self._line(header)
        elif lines[-1]:
            self._line("")  # ends the line that a kill has cut off

    def _check(self, first: str, wanted: dict[str, object]) -> None:
        found = _read(first)
        if found is None or KEY not in found:
            raise ValueError(f"{self._path} is not the file of a sweep: name one that is not there")
        differs = [k for k in {**wanted, **found} if found.get(k) != wanted.get(k)]
        if differs:
            k = differs[0]
            raise ValueError(
                f"{self._path} is of another sweep: its {k} is {shown(found.get(k))}, "
                f"not {shown(wanted.get(k))}; name another file, or remove it"
            )

    def read(self, point: object) -> Numbers | None:
        """Return the numbers of a point, None if they are not known."""
        return self._known.get(_key(asdict(point)))  # type: ignore[call-overload]

    def write(self, point: object, numbers: Numbers) -> None:
        """Add the numbers of a point."""
        plain = asdict(point)  # type: ignore[call-overload]
        self._known[_key(plain)] = numbers
        if self._file is not None:
            self._line(json.dumps({"point": plain, "numbers": dict(numbers)}, ensure_ascii=False))

    def _line(self, text: str) -> None:
        assert self._file is not None
        assert self._path is not None
        with naming(self._path):
            self._file.write(f"{text}\n")
            self._file.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._file is not None and self._path is not None:
            with naming(self._path):
                self._file.close()


def _are_numbers(found: object) -> TypeGuard[Numbers]:
    if not isinstance(found, dict):
        return False
    return all(n is None or type(n) in (int, float) for n in found.values())


def _key(point: Mapping[str, object]) -> str:
    return json.dumps(point, sort_keys=True)


def _read(line: str) -> dict[str, object] | None:
    """Return the content of a line, None of one that was cut off."""
    try:
        content = json.loads(line)
    except (ValueError, RecursionError):  # nested too deep
        return None
    return content if isinstance(content, dict) else None

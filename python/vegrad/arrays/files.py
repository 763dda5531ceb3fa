"""Arrays with a description, in safetensors files that are never half written."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from os import PathLike
from pathlib import Path
from typing import Any

import safetensors
import safetensors.numpy

from vegrad import _core
from vegrad.arrays.checks import Array

_KEY = "vegrad"  # of the file's metadata


def save_tensors(
    path: str | PathLike[str], arrays: Mapping[str, Array], about: Mapping[str, Any]
) -> None:
    """Writes arrays and a description of plain JSON types; the file appears whole or not at all."""
    described = {"version": _core.__version__, **about}
    save_bytes(path, safetensors.numpy.save(dict(arrays), {_KEY: json.dumps(described)}))


def save_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Writes a file that appears whole or not at all."""
    path = Path(path)
    # In the same folder, so that the last move is one of names alone.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove_leftovers(path: str | PathLike[str], *, older_than: float = 60.0) -> None:
    """Removes what `save_tensors` had begun for this path when it was killed.

    Not what is younger (in seconds): another process may be writing it.
    """
    path = Path(path)
    begun = re.compile(re.escape(f".{path.name}.") + "[0-9a-f]{16}")
    for other in path.parent.iterdir():
        if begun.fullmatch(other.name):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > older_than:
                    other.unlink()


def load_tensors(path: str | PathLike[str], kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Arrays and description. ValueError if the file is broken or describes another kind."""
    with complaining_of(path):
        with open(path, "rb"):  # a missing file is an OSError as elsewhere
            pass
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ValueError("it was not written by vegrad")
            about = json.loads(text)
            if not isinstance(about, dict) or about.get("kind") != kind:
                found = about.get("kind") if isinstance(about, dict) else about
                raise ValueError(f"it holds {found!r}, not {kind!r}")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@contextmanager
def complaining_of(path: str | PathLike[str]) -> Iterator[None]:
    """Says of which file something is wrong, whatever is wrong with it."""
    try:
        yield
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise ValueError(f"{os.fspath(path)} cannot be read as vegrad's: {error}") from error

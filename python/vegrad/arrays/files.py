"""Arrays with a description, in safetensors files that are never left half written."""

from __future__ import annotations

import json
import os
import re
import secrets
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from math import isfinite
from os import PathLike
from pathlib import Path
from shutil import copyfileobj
from stat import S_ISDIR, S_ISREG
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from vegrad import _core
from vegrad.arrays.checks import Array
from vegrad.arrays.shown import SCREEN, shown, visible

_OF_CONTENT = (
    safetensors.SafetensorError,
    TypeError,
    ValueError,
    LookupError,
    AttributeError,
    ArithmeticError,  # a number that is out of range
    RecursionError,  # JSON that is nested too deep
)
_KEY = "vegrad"  # where the description stands in the metadata of the file


def save_tensors(
    path: str | PathLike[str], arrays: Mapping[str, Array], about: Mapping[str, object]
) -> None:
    """Write arrays and a description of plain JSON types; the file appears whole or not at all."""
    described = {"version": _core.__version__, **about}
    save_bytes(path, safetensors.numpy.save(dict(arrays), {_KEY: json.dumps(described)}))


def save_bytes(path: str | PathLike[str], content: bytes) -> None:
    """Write a file that appears whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


@contextmanager
def replacing(path: str | PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path, whose file replaces the one at `path` once it is written.

    If anything fails, the temporary file is removed and whatever stood at `path` stays. An OSError
    about the temporary file names `path` instead. What no file can replace, such as /dev/stdout or
    a pipe, gets the whole content once there is one.
    """
    path = Path(path)
    if _is_stream(path):
        with TemporaryDirectory() as folder:
            temporary = Path(folder, path.name)
            yield temporary
            with naming(path), temporary.open("rb") as source, path.open("wb") as stream:
                copyfileobj(source, stream)
        return
    # In the same folder, so that the last step is only a change of name, and with the same ending,
    # from which some writers tell the format.
    temporary = path.with_name(f".{secrets.token_hex(8)}.{path.name}")
    try:
        yield temporary
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        if error.strerror and error.filename in (None, str(temporary)):
            error.filename = str(path)
            del error.filename2  # set to None, it would be told
        raise
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def naming(path: str | PathLike[str]) -> Iterator[None]:
    """Let an OSError that names no file, as one of a full disk, name this one."""
    try:
        yield
    except OSError as error:
        if error.strerror and error.filename is None:
            error.filename = os.fspath(path)
        raise


def _is_stream(path: Path) -> bool:
    """Return True for a device, a pipe or a descriptor, which a file would only hide."""
    with suppress(OSError):
        mode = path.stat().st_mode
        descriptor = re.match("/dev/(std|fd/)|/proc/", str(path.absolute()))
        return not S_ISDIR(mode) and (descriptor is not None or not S_ISREG(mode))
    return False


def remove_leftovers(path: str | PathLike[str], *, older_than: float = 60.0) -> None:
    """Remove temporary files for `path` that stayed because their process was killed.

    Files younger than `older_than` seconds stay: another process may still be writing them.
    """
    path = Path(path)
    temporary = re.compile("[.][0-9a-f]{16}" + re.escape(f".{path.name}"))
    for other in path.parent.iterdir():
        if temporary.fullmatch(other.name):
            with suppress(OSError):
                if time.time() - other.stat().st_mtime > older_than:
                    other.unlink()


def load_tensors(path: str | PathLike[str], kind: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """Read arrays and their description; ValueError if the file is broken or of another kind."""
    with complaining_of(path):
        with open(path, "rb"):  # so that a missing file is an OSError, as everywhere
            pass
        with safetensors.safe_open(path, framework="numpy") as file:
            text = (file.metadata() or {}).get(_KEY)
            if text is None:
                raise ValueError("it was not written by vegrad")
            about = json.loads(text)
            if not isinstance(about, dict) or about.get("kind") != kind:
                found = about.get("kind") if isinstance(about, dict) else about
                raise ValueError(f"it holds {shown(found)}, not {shown(kind)}")
            return {name: file.get_tensor(name) for name in file.keys()}, about  # noqa: SIM118


@contextmanager
def complaining_of(path: str | PathLike[str]) -> Iterator[None]:
    """Turn every error about the content of a file into a ValueError that names the file."""
    try:
        yield
    except _OF_CONTENT as error:
        said = f"{os.fspath(path)} cannot be read as vegrad's: {error}"
        raise ValueError(visible(said, SCREEN)) from error


def plain(value: object) -> object:
    """Return the same as JSON types: mappings, lists, numbers; what is not finite is None."""
    if isinstance(value, Mapping):
        return {str(name): plain(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [plain(entry) for entry in value]
    if isinstance(value, float | np.floating):
        return float(value) if isfinite(value) else None
    return value

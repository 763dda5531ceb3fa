"""Docstrings as they are written: prose in Google's style, with types as the source has them."""

import inspect
import re
from dataclasses import is_dataclass
from typing import Any

import vegrad
from sphinx.application import Sphinx
from sphinx.ext.napoleon import Config, GoogleDocstring
from sphinx.util.inspect import TypeAliasForwardRef

CONFIG = Config(napoleon_custom_sections=["Returns"])  # prose, without a type before a colon
OWN = ": the one whose method this is."  # which signatures of methods leave out
EMPTY = inspect.Parameter.empty
VALUES = ("attribute", "data", "property")


class Written:
    """A type as it is written, for the representation of a signature."""

    def __init__(self, text: str) -> None:
        text = re.sub(r"\b(npt|nn)\.", "", text)
        self.text = re.sub(r"(?<![\w.])[A-Z]\w+", _public, text)

    def __repr__(self) -> str:
        return self.text


def read(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Turn a docstring into reStructuredText, in place."""
    own = [line for line in lines if not line.endswith(OWN)]
    plain = [line for block in _blocks(own) for line in block]
    kind = "function" if what in VALUES else what  # of a value, `type: text` would be expected
    lines[:] = GoogleDocstring(plain, CONFIG, app, kind, name, obj, options).lines()


def sign(app: Sphinx, what: str, name: str, obj: Any, *_: Any) -> tuple[str, str] | None:
    """Return a signature with the names of types as they stand in the source.

    Records, which users get and do not make, have none.
    """
    if what == "class" and is_dataclass(obj) and "Args:" not in (obj.__doc__ or ""):
        return "", ""
    try:
        found = inspect.signature(obj)
    except (TypeError, ValueError):  # of what is compiled, the docstring says it
        return None
    parameters = [
        one.replace(annotation=_written(one.annotation), default=_shown(one.default))
        for position, one in enumerate(found.parameters.values())
        if position or what != "method" or not inspect.isfunction(obj)
    ]
    returned = "" if what == "class" else repr(_written(found.return_annotation))
    found = found.replace(parameters=parameters, return_annotation=EMPTY)
    return str(found), "" if returned.startswith("<class") else returned


def _shown(default: Any) -> Any:
    return Written("...") if repr(default).startswith("<") and default is not EMPTY else default


def _written(annotation: Any) -> Any:
    text = getattr(annotation, "__forward_arg__", annotation)
    return Written(text) if isinstance(text, str) else annotation


def _public(name: re.Match[str]) -> str:
    return f"~vegrad.{name[0]}" if name[0] in vegrad.__all__ else name[0]


def _blocks(lines: list[str]) -> list[list[str]]:
    """Give indented blocks after an empty line as code, all else with its marks escaped."""
    found: list[list[str]] = []
    before = code = 0
    for number, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            found.append([line])
            continue
        if code and indent >= code:
            found.append([line])
            continue
        code = 0
        if number and not lines[number - 1].strip() and indent > before:
            code = indent
            found.append([" " * before + "::", "", line])
            continue
        before = indent
        found.append([_escaped(line)])
    return found


def _escaped(line: str) -> str:
    parts = re.split(r"(`[^`]+`)", line)
    parts[::2] = [re.sub(r"([*|])|(?<=\w)_(?!\w)", r"\\\g<0>", part) for part in parts[::2]]
    parts[1::2] = [
        part if re.fullmatch(r"`\w[\w.]*`", part) else f"`{part}`" for part in parts[1::2]
    ]
    return re.sub(r"(?<=\w`)(?=\w)|(?<=\w``)(?=\w)", r"\\ ", "".join(parts))


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    # `FloatArray | None` would else be shown as TypeAliasForwardRef('FloatArray') | None.
    TypeAliasForwardRef.__repr__ = lambda self: self.name  # type: ignore[method-assign]
    app.connect("autodoc-process-docstring", read)
    app.connect("autodoc-process-signature", sign)
    return {"parallel_read_safe": True}

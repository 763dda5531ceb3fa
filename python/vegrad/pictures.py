"""Figures of matplotlib, which is optional, and the files that they are kept in."""

from __future__ import annotations

import importlib
import io
from functools import partial
from os import PathLike, fspath
from pathlib import Path
from typing import Any

from vegrad.arrays.files import save_bytes
from vegrad.arrays.shown import shown

# matplotlib's Figure and Axes: it is optional, so that its types cannot be named.
Figure = Any
Axes = Any

INK, FAINT, THEORY = "#22313f", "#9aa5b1", "#8e5ea2"


def blank(size: tuple[float, float], ground: str = "white") -> Figure:
    """Return an empty figure of this width and height in inches.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        figure = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "vegrad[cli]"') from error
    drawn = figure.Figure(figsize=size, layout="constrained", facecolor=ground)
    drawn._repr_png_ = partial(_png, drawn)  # a notebook shows it, also one without pyplot
    return drawn


def sheet(path: str | PathLike[str] | None, size: tuple[float, float]) -> Figure:
    """Return an empty figure; if it is to be kept in `path`, matplotlib must know the suffix.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: an unknown suffix.
    """
    figure = blank(size)
    if path is None:
        return figure
    target = Path(fspath(path))
    if _suffix(target) not in figure.canvas.get_supported_filetypes():
        raise ValueError(
            "a picture's name must end in .png, .svg, .pdf or another format of matplotlib, "
            f"not {shown(target.name)}"
        )
    return figure


def keep(figure: Figure, path: str | PathLike[str], dpi: int = 150) -> str:
    """Save a figure, whole or not at all, and return the path; .png is added to a bare name."""
    target = Path(fspath(path))
    target = target if target.suffix else target.with_name(f"{target.name}.png")
    content = io.BytesIO()  # not the file: of a full disk, writers of PDF raise errors of their own
    figure.savefig(content, format=_suffix(target), dpi=dpi)
    save_bytes(target, content.getvalue())
    return str(target)


def kept(figure: Figure, path: str | PathLike[str] | None, dpi: int = 150) -> Figure:
    """Return a figure, which is saved if there is a path."""
    if path is not None:
        keep(figure, path, dpi)
    return figure


def _png(figure: Figure) -> bytes:
    """Return a figure as a notebook shows it."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=100)
    return content.getvalue()


def _suffix(target: Path) -> str:
    return target.suffix.lstrip(".").lower()


def bare(axes: Axes) -> None:
    """Take away the upper and the right side of the frame."""
    axes.spines[["top", "right"]].set_visible(False)

"""Gradients by depth over time as cells of a heat map, and the colours of their sizes.

The colours rise evenly in lightness from dark blue to yellow, so that also those who cannot tell
their hues apart, and paper without colours, show which is larger.
"""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import DECADE
from vegrad.reports.shown_run import ShownRun

COLUMNS, ROWS = 160, 60  # of a map at most: it is to fit into a small page
LEAST = 2.0  # decades that the colours span at least
# Even in lightness, of the largest chroma that screens have on the way from violet to yellow.
RAMP = (
    "#1f0065",
    "#102888",
    "#005186",
    "#03708f",
    "#099099",
    "#0cb19c",
    "#44d188",
    "#a7e471",
    "#f8f266",
)
# Of ratios: blue where the second is smaller, orange where it is larger, pale where they are alike.
RATIOS = ("#0a3a82", "#3f7fc4", "#a9c9e8", "#f3f3f1", "#f3c398", "#d97a22", "#8a3d00")
LOST, INFINITE = "#d0392b", "#e75ae0"  # 0, or below the floor; inf
SHADES = 250  # colours of the ramp in a picture; three more stand for what is not on it


@dataclass(frozen=True)
class Cells:
    """A heat map of R rows of modules and C columns of steps."""

    log10: FloatArray
    """log10 of the norms, (R, C): of each row's modules the median, of each column's steps the
    largest; nan where none is known."""
    steps: tuple[float, float]
    """The step at which the first column begins, and the one at which the last ends."""
    rows: tuple[tuple[int, int], ...]
    """The places of the first and the last module of each row."""

    def scale(self, floor: float = -inf) -> tuple[float, float]:
        """Return the ends of the colours, in log10; none is below `floor`."""
        known = self.log10[np.isfinite(self.log10) & (self.log10 >= floor)]
        if not known.size:
            return (0.0, LEAST)
        low, high = float(known.min()), float(known.max())
        room = max(LEAST - (high - low), 0.0) / 2
        return low - room, high + room


def cells_of(run: ShownRun, columns: int = COLUMNS, rows: int = ROWS) -> Cells | None:
    """Return the heat map of a run; None if it has no gradients by module."""
    return cells_from(run.step, run.gradient_log2, np.fmax, columns, rows)


def ratios_of(
    step: FloatArray, ratio_log2: FloatArray, columns: int = COLUMNS, rows: int = ROWS
) -> Cells | None:
    """Return a heat map of ratios, (S, M); of each column's steps that which is farthest from 1."""
    largest = cells_from(step, ratio_log2, np.fmax, columns, rows)
    smallest = cells_from(step, ratio_log2, np.fmin, columns, rows)
    if largest is None or smallest is None:
        return None
    up, down = largest.log10, smallest.log10
    with np.errstate(invalid="ignore"):
        farthest = np.where(np.abs(up) >= np.abs(down), up, down)
    return Cells(farthest, largest.steps, largest.rows)


def cells_from(
    step: FloatArray, log2: FloatArray, choose: np.ufunc, columns: int, rows: int
) -> Cells | None:
    """Return the heat map of numbers, (S, M); `choose` makes one of those of several steps."""
    sizes = log2 / DECADE
    if not sizes.size or np.isnan(sizes).all():
        return None
    known = ~np.isnan(sizes).all(axis=1)
    sizes, step = sizes[known], step[known]
    apart = float(np.diff(step).min()) if len(step) > 1 else 1.0
    first, end = float(step[0]), float(step[-1]) + apart
    columns = min(columns, round((end - first) / apart))
    edges = first + (end - first) * np.arange(columns) / columns
    # A step belongs to the last column that begins at it or before; rounding is no step.
    place = np.searchsorted(edges, step + 1e-6 * apart, side="right") - 1
    starts = np.flatnonzero(np.diff(place, prepend=-1))
    largest = choose.reduceat(sizes, starts, axis=0)
    filled = largest[np.searchsorted(place[starts], np.arange(columns), side="right") - 1]
    groups = np.array_split(np.arange(sizes.shape[1]), min(rows, sizes.shape[1]))
    cells = np.stack([_median(filled[:, group]) for group in groups])
    return Cells(cells, (first, end), tuple((int(g[0]), int(g[-1])) for g in groups))


def _median(values: FloatArray) -> FloatArray:
    """Return the median of each row's numbers; nan where there are none."""
    if values.shape[1] == 1:
        return values[:, 0]
    ordered = np.sort(values, axis=1)  # nan comes last
    count = (~np.isnan(values)).sum(axis=1)
    middle: FloatArray = ordered[np.arange(len(values)), np.maximum(count - 1, 0) // 2]
    return middle


def shades(log10: FloatArray, scale: tuple[float, float], floor: float) -> npt.NDArray[np.uint8]:
    """Return the numbers of the colours of `palette`, one for each size."""
    low, high = scale
    with np.errstate(invalid="ignore"):
        part = np.clip((log10 - low) / (high - low), 0.0, 1.0)
        found = 3 + np.round(np.nan_to_num(part) * (SHADES - 1))
    found[np.isnan(log10)] = 0
    found[log10 < floor] = 1
    found[log10 == -inf] = 1
    found[log10 == inf] = 2
    return found.astype(np.uint8)


def palette(ramp: Sequence[str] = RAMP) -> npt.NDArray[np.uint8]:
    """Return the colours, (SHADES + 3, 3): of what is unknown, what is lost, inf, and the ramp."""
    anchors = np.array([_rgb(one) for one in ramp], np.float64)
    places = np.linspace(0, len(ramp) - 1, SHADES)
    shaded = np.stack([np.interp(places, range(len(ramp)), part) for part in anchors.T], axis=1)
    others = np.array([(0, 0, 0), _rgb(LOST), _rgb(INFINITE)], np.float64)
    return np.concatenate([others, shaded]).round().astype(np.uint8)


def colour_of(log10: float, scale: tuple[float, float], floor: float = -inf) -> str:
    """Return the colour of a size, "#1f0065"; "" of one that is not known."""
    (number,) = shades(np.array([log10]), scale, floor)
    return "" if number == 0 else "#" + palette()[number].tobytes().hex()


def _rgb(colour: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(colour[1:]))


def as_address(pixels: npt.NDArray[np.uint8], ramp: Sequence[str] = RAMP) -> str:
    """Return an image of the palette's colours, (R, C), as an address that holds it: a PNG."""
    return f"data:image/png;base64,{b64encode(png(pixels, ramp)).decode()}"


def png(pixels: npt.NDArray[np.uint8], ramp: Sequence[str] = RAMP) -> bytes:
    """Return a PNG file of an image of the palette's colours, (R, C); colour 0 is transparent."""
    height, width = pixels.shape
    lines = np.zeros((height, width + 1), np.uint8)  # each begins with its filter: none
    lines[:, 1:] = pixels
    parts = (
        (b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
        (b"PLTE", palette(ramp).tobytes()),
        (b"tRNS", b"\x00"),
        (b"IDAT", zlib.compress(lines.tobytes(), 9)),
        (b"IEND", b""),
    )
    found = b"\x89PNG\r\n\x1a\n"
    for name, content in parts:
        check = struct.pack(">I", zlib.crc32(name + content))
        found += struct.pack(">I", len(content)) + name + content + check
    return found

"""Norms of buffers, and statistics of their elements that are measured in one read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import inf, log2
from typing import Any

from vegrad import _core
from vegrad.arrays.checks import Buffers, FloatArray, Number, as_order
from vegrad.arrays.shown import escape, visible

# The columns of the table.
_SIZES = ("norm", "norm_log2", "rms", "mean", "largest", "smallest")
_COUNTS = ("zeros", "subnormals", "infs", "nans")
_MOST = 60  # rows of a table in a notebook
_TITLES = ("buffer", "elements", "norm", "log2", *_SIZES[2:], *_COUNTS, "")


def norm(buffers: Buffers, ord: Number = 2) -> float:
    """Return the joint norm (Σ|x|^ord)^(1/ord) of all elements; ord > 0, inf for the largest |x|.

    The norm is NaN if an element is, else inf if an element is, and 0.0 if there are no elements.

    Raises:
        TypeError: `buffers` holds something that is not a buffer, or a container holds itself or
            cannot be read.
        ValueError: `ord` is out of range, or containers are nested over 64 deep.
    """
    return _core.norm(buffers, as_order(ord))


def norms(buffers: Buffers, ord: Number = 2) -> FloatArray:
    """Return the norm of each buffer that is not None, in their order, as a float64 array.

    Raises:
        TypeError, ValueError: as `norm` does.
    """
    return _core.norms(buffers, as_order(ord))


@dataclass(frozen=True)
class Statistics:
    """Statistics of the elements of one buffer, or of all buffers together.

    norm, rms and mean are nan or inf if an element is. largest and smallest are magnitudes of
    finite elements, and smallest leaves out zeros; they are nan if there is no such element.
    """

    count: int
    """Number of elements."""
    norm: float
    """√Σx²; 0 or inf where it is out of the range of float64."""
    norm_log2: float
    """log2 of the norm, which never underflows; -inf if all elements are zero."""
    rms: float
    """Root mean square."""
    mean: float
    largest: float
    smallest: float
    zeros: int
    subnormals: int
    """Number of elements that are not zero but below the normal range of their dtype."""
    infs: int
    nans: int
    first_nonfinite: tuple[int, ...] | tuple[str, tuple[int, ...]] | None
    """Index of the first inf or nan, or None; for all buffers together, (name, index)."""
    dtype: str
    histogram: dict[int, int] | None
    """{exponent e: number of finite elements with 2^e <= |x| < 2^(e+1)}, if asked for."""

    @property
    def marks(self) -> list[str]:
        """Names of what looks wrong: nan, inf, all zero, vanishing, exploding, subnormal.

        vanishing: the RMS is below 2^-60, where squares underflow in float32; exploding: it is
        above 2^60; subnormal: over 1 % of the elements that are not zero are.
        """
        found = ["nan"] * (self.nans > 0) + ["inf"] * (self.infs > 0)
        if self.count > 0 and self.zeros == self.count:
            return [*found, "all zero"]
        rms_log2 = self.norm_log2 - log2(max(self.count, 1)) / 2
        if -inf < rms_log2 < -60:
            found.append("vanishing")
        if 60 < rms_log2 < inf:
            found.append("exploding")
        if self.subnormals > 0.01 * (self.count - self.zeros):
            found.append("subnormal")
        return found

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics by name as JSON types; exponents of the histogram are strings."""
        plain = asdict(self) | {"marks": self.marks}
        if self.first_nonfinite is not None:
            plain["first_nonfinite"] = [
                list(part) if isinstance(part, tuple) else part for part in self.first_nonfinite
            ]
        if self.histogram is not None:
            plain["histogram"] = {str(e): n for e, n in self.histogram.items()}
        return plain


class Measurement:
    """Statistics of each buffer and of all together; prints as a table.

    The table has the columns zeros, subnormals, infs and nans only where one of them is not 0.
    """

    def __init__(self, names: list[str], buffers: list[Statistics], total: Statistics) -> None:
        self.names = names
        """Keys and positions on the way to each buffer, joined by dots: layers.0.weight."""
        self.buffers = buffers
        self.total = total

    def __repr__(self) -> str:
        count = len(self.names)
        buffers = f"{count} buffer{'s' * (count != 1)}"
        return f"<Measurement of {buffers}, {self.total.count} elements>"

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def _repr_html_(self) -> str:
        """Write a table in the notebook's own style, of many buffers the first and the last."""
        titles, *lines = self._lines()
        if len(lines) > _MOST:
            gap = (f"⋮ {len(lines) - _MOST} more", *[""] * (len(titles) - 1))
            lines = [*lines[: _MOST // 2], gap, *lines[-(_MOST // 2) :]]
        body = "".join(f"<tr>{_cells(line)}</tr>" for line in lines)
        head = "".join(f"<th>{escape(title)}</th>" for title in titles)
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        return f'<div style="overflow-x: auto">{table}</div>'

    def _lines(self) -> list[tuple[str, ...]]:
        """Return the titles, and the cells of each buffer and of all; without empty columns."""
        lines: list[tuple[str, ...]] = [_TITLES]
        lines += [_line(name, one) for name, one in zip(self.names, self.buffers, strict=True)]
        lines.append(_line("all", self.total))
        columns = [one for one in zip(*lines, strict=True) if set(one[1:]) != {"·"}]
        return list(zip(*columns, strict=True))

    def to_dict(self) -> dict[str, Any]:
        """Return the statistics as plain types; nan and inf stay floats."""
        parts = zip(self.names, self.buffers, strict=True)
        return {
            "buffers": {name: one.to_dict() for name, one in parts},
            "total": self.total.to_dict(),
        }


def measure(buffers: Buffers, *, histogram: bool = False) -> Measurement:
    """Measure norms, magnitudes and counts of each buffer and of all together, in one read.

    Args:
        buffers: one buffer, or a sequence or mapping of buffers and of further sequences (lists,
            tuples) and mappings, up to 64 within each other. None entries are passed over.
        histogram: whether to count the elements by powers of two as well.

    Raises:
        TypeError: as `norm` does.
        ValueError: a buffer cannot be read as it lies, or containers are nested too deep.
    """
    names, parts, joint = _core.measure(buffers, bool(histogram))
    return Measurement(names, [Statistics(**part) for part in parts], Statistics(**joint))


def _line(name: str, statistics: Statistics) -> tuple[str, ...]:
    sizes = [f"{getattr(statistics, size):.4g}" for size in _SIZES]
    counts = [str(getattr(statistics, count) or "·") for count in _COUNTS]
    marks = "← " + ", ".join(statistics.marks) if statistics.marks else ""
    return visible(name), str(statistics.count), *sizes, *counts, marks


def _cells(line: Sequence[str]) -> str:
    """Write a line as a row of a table: the name to the left, numbers to the right."""
    left, right = "text-align: left", "text-align: right; font-variant-numeric: tabular-nums"
    styles = [left, *[right] * (len(line) - 2), f"{left}; white-space: nowrap"]
    cells = zip(("th", *["td"] * (len(line) - 1)), styles, line, strict=True)
    return "".join(f'<{tag} style="{style}">{escape(cell)}</{tag}>' for tag, style, cell in cells)

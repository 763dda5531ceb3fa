"""Norms of buffers, and what else one read of them tells about their numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from math import inf, isnan, log2
from typing import Any

import numpy as np
import numpy.typing as npt

from vegrad import _core
from vegrad.arrays.checks import as_order

_COLUMNS = ("norm", "log2", "rms", "mean", "largest", "smallest", "zeros", "subnormals", "infs",
            "nans")  # fmt: skip


def norm(buffers: Any, ord: float = 2) -> float:
    """The joint norm (Σ|x|^ord)^(1/ord) over all elements; ord > 0, or inf for the largest |x|.

    NaN if there is one, else inf if there is one; 0.0 of nothing.

    Raises:
        TypeError, ValueError: for what is no buffer, or an ord out of range.
    """
    return _core.norm(buffers, as_order(ord))


def norms(buffers: Any, ord: float = 2) -> npt.NDArray[np.float64]:
    """The norm of each buffer that is not None, in order: float64."""
    return _core.norms(buffers, as_order(ord))


@dataclass(frozen=True)
class Statistics:
    """Of the elements of one buffer, or of all together.

    norm, rms and mean are nan or inf where an element is; largest and smallest are magnitudes of
    finite elements, smallest without the zeros (nan if there is none).
    """

    count: int
    """Elements."""
    norm: float
    """√Σx²; 0 or inf where float64 ends."""
    norm_log2: float
    """log2 of the norm, which does not underflow; -inf if all are zero."""
    rms: float
    """Root mean square."""
    mean: float
    largest: float
    smallest: float
    zeros: int
    subnormals: int
    """Elements below the normal range of the dtype, but not zero."""
    infs: int
    nans: int
    first_nonfinite: Any
    """Index (a tuple) of the first inf or nan, or None; of all: (name, index)."""
    dtype: str
    histogram: dict[int, int] | None
    """{exponent e: finite elements with |x| from 2^e to below 2^(e+1)}, if asked for."""

    @property
    def marks(self) -> list[str]:
        """What looks wrong: nan, inf, all zero, vanishing, exploding, subnormal.

        vanishing: an RMS below 2^-60, where squares of float32 underflow; exploding: above 2^60;
        subnormal: over 1 % of the elements that are not zero.
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
        """Plain JSON types, by name; exponents of the histogram are strings."""
        plain = asdict(self) | {"marks": self.marks}
        if self.first_nonfinite is not None:
            plain["first_nonfinite"] = [
                list(part) if isinstance(part, tuple) else part for part in self.first_nonfinite
            ]
        if self.histogram is not None:
            plain["histogram"] = {str(e): n for e, n in self.histogram.items()}
        return plain


class Measurement:
    """The statistics of each buffer and of all; prints as a table."""

    def __init__(self, names: list[str], buffers: list[Statistics], total: Statistics) -> None:
        self.names = names
        """Keys of the mapping, or positions."""
        self.buffers = buffers
        self.total = total

    def __repr__(self) -> str:
        return f"<Measurement of {len(self.names)} buffers, {self.total.count} elements>"

    def __str__(self) -> str:
        lines: list[tuple[str, ...]] = [("buffer", "elements", *_COLUMNS, "")]
        lines += [_line(name, one) for name, one in zip(self.names, self.buffers, strict=True)]
        lines.append(_line("all", self.total))
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        return "\n".join(
            "  ".join(
                cell.ljust(width) if place in (0, len(widths) - 1) else cell.rjust(width)
                for place, (cell, width) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain types; nan and inf stay floats."""
        parts = zip(self.names, self.buffers, strict=True)
        return {
            "buffers": {name: one.to_dict() for name, one in parts},
            "total": self.total.to_dict(),
        }


def measure(buffers: Any, *, histogram: bool = False) -> Measurement:
    """Norms, magnitudes and counts of each buffer and of all, in one read.

    Args:
        buffers: one buffer, a sequence or a mapping; None entries are passed over.
        histogram: also count elements by powers of two.

    Raises:
        TypeError, ValueError: for what is no buffer.
    """
    names, parts, joint = _core.measure(buffers, bool(histogram))
    return Measurement(names, [Statistics(**part) for part in parts], Statistics(**joint))


def _line(name: str, s: Statistics) -> tuple[str, ...]:
    sizes = (s.norm, s.norm_log2, s.rms, s.mean, s.largest, s.smallest)
    counts = (s.zeros, s.subnormals, s.infs, s.nans)
    shown = [f"{size:.4g}" if not isnan(size) else "nan" for size in sizes]
    return (name, str(s.count), *shown, *(str(n) if n else "·" for n in counts),
            "← " + ", ".join(s.marks) if s.marks else "")  # fmt: skip

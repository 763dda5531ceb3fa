"""Drawings as SVG text that fit every width: only the plot stretches, its letters never do.

x is measured in percent of the width and y in pixels. Lines, bands and bars lie in an inner SVG
that is stretched to the width, though its strokes keep theirs. Colours come from the classes of
`reports.style`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import ceil, floor, isfinite, log10
from zlib import crc32

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.shown import escape

WIDE = 1000  # units of the inner drawing from left to right
FOOT = 22  # pixels below the plot, for the ticks of x
MOST_POINTS = 600  # of a line; of more, only the smallest and largest of each piece are drawn
SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")

Ticks = Sequence[tuple[float, str]]

# A line of a legend: its words, and the shapes (line, dots or area) beside them with their classes.
Entry = tuple[str, Sequence[tuple[str, str]]]
SHAPES = {"line": "M0 6h26", "dots": "M13 6h0", "area": "M2 0h22v12h-22z"}
# Marks around 0, 0, which are told apart without their colours; a legend takes them as shapes.
MARKS = {
    "arrow": "M-4-4.5L5 0L-4 4.5z",
    "circle": "M-4.3 0a4.3 4.3 0 1 0 8.6 0a4.3 4.3 0 1 0-8.6 0z",
    "diamond": "M0-5.5L5.5 0L0 5.5L-5.5 0z",
    "peak": "M0-5.5L5.2 4L-5.2 4z",
}


class Chart:
    """One plot, drawn from back to front by its methods.

    Args:
        name: the beginning of its title's id, which must be unique on the page.
        title: what a screen reader says first.
        description: what the plot shows, in words and numbers, for a screen reader.
        x: the ends of the horizontal axis.
        y: the ends of the vertical one, bottom first.
        height: of the plot, in pixels.
    """

    def __init__(
        self,
        name: str,
        title: str,
        description: str,
        x: tuple[float, float],
        y: tuple[float, float],
        height: int = 240,
    ) -> None:
        self.name, self.title, self.description = name, title, description
        self.x, self.y, self.height = x, y, height
        self._behind: list[str] = []
        self._plot: list[str] = []
        self._front: list[str] = []

    def __str__(self) -> str:
        # A notebook has many outputs, each with a chart of this name.
        name = f"{self.name}-{crc32(''.join(self._plot).encode()):x}"
        head = (
            f'<svg class="chart" role="img" width="100%" height="{self.height + FOOT}" '
            f'aria-labelledby="{name}-title {name}-text">'
            f'<title id="{name}-title">{escape(self.title)}</title>'
            f'<desc id="{name}-text">{escape(self.description)}</desc>'
        )
        inner = (
            f'<svg width="100%" height="{self.height}" viewBox="0 0 {WIDE} {self.height}" '
            f'preserveAspectRatio="none">{"".join(self._plot)}</svg>'
        )
        return head + "".join(self._behind) + inner + "".join(self._front) + "</svg>"

    # Axes --------------------------------------------------------------------------------------

    def x_axis(self, ticks: Ticks) -> None:
        """Write numbers below the plot."""
        for value, label in ticks:
            self._behind.append(
                f'<text class="tick" x="{self._percent(value)}%" y="{self.height + 16}" '
                f'text-anchor="middle">{escape(label)}</text>'
            )

    def y_axis(self, ticks: Ticks) -> None:
        """Write numbers left of the plot, and draw lines across it."""
        for value, label in ticks:
            y = _short(self._down(value))
            self._behind.append(f'<line class="grid" x1="0" x2="100%" y1="{y}" y2="{y}"/>')
            self.left(value, label)

    def left(self, y: float, words: str) -> None:
        """Write a word left of the plot."""
        self._behind.append(
            f'<text class="tick" x="-8" y="{_short(self._down(y))}" dy=".35em" text-anchor="end">'
            f"{escape(words)}</text>"
        )

    # Shapes ------------------------------------------------------------------------------------

    def line(self, x: npt.ArrayLike, y: npt.ArrayLike, css: str) -> None:
        """Draw a line, with a gap where y is not finite."""
        x, y = thinned(np.asarray(x, float), np.asarray(y, float))
        path = "".join(self._runs(x, y))
        if path:
            self._plot.append(f'<path class="line {css}" d="{path}"/>')

    def dots(self, x: npt.ArrayLike, y: npt.ArrayLike, css: str) -> None:
        """Draw a dot for each finite y: a line of no length, whose round ends nothing stretches."""
        points = zip(_floats(x), _floats(y), strict=True)
        path = "".join(f"M{self._at(a, b)}h0" for a, b in points if isfinite(b))
        if path:
            self._plot.append(f'<path class="dots {css}" d="{path}"/>')

    def marks(self, x: npt.ArrayLike, y: npt.ArrayLike, mark: str, css: str) -> None:
        """Draw one of MARKS at each finite y, in front of everything."""
        for a, b in zip(_floats(x), _floats(y), strict=True):
            if isfinite(b):
                self._front.append(
                    f'<svg x="{self._percent(a)}%" y="{_short(self._down(b))}" overflow="visible">'
                    f'<path class="{css}" d="{MARKS[mark]}"/></svg>'
                )

    def band(self, x: npt.ArrayLike, low: npt.ArrayLike, high: npt.ArrayLike, css: str) -> None:
        """Fill what lies between two lines, where both are finite."""
        x, low, high = (np.asarray(values, float) for values in (x, low, high))
        known = np.flatnonzero(np.isfinite(low) & np.isfinite(high))
        if len(known) < 2:
            return
        if len(known) > MOST_POINTS // 2:
            known = known[np.linspace(0, len(known) - 1, MOST_POINTS // 2).round().astype(int)]
        up = [self._at(a, b) for a, b in zip(x[known], high[known], strict=True)]
        down = [self._at(a, b) for a, b in zip(x[known], low[known], strict=True)]
        self._plot.append(f'<path class="{css}" d="M{"L".join(up + down[::-1])}z"/>')

    def bars(
        self,
        x: npt.ArrayLike,
        start: npt.ArrayLike,
        end: npt.ArrayLike,
        css: str,
        width: float = 0.8,
    ) -> None:
        """Draw upright bars around each x, from start to end, where both are finite."""
        path = ""
        for centre, a, b in zip(*map(_floats, (x, start, end)), strict=True):
            if isfinite(a) and isfinite(b) and a != b:
                left, right = (_short(self._right(centre + s * width / 2)) for s in (-1, 1))
                path += f"M{left} {_short(self._down(a))}V{_short(self._down(b))}"
                path += f"H{right}V{_short(self._down(a))}z"
        if path:
            self._plot.append(f'<path class="{css}" d="{path}"/>')

    def area(self, low: float, high: float, css: str) -> None:
        """Fill a stripe across the plot."""
        self.band(self.x, (low, low), (high, high), css)

    def image(self, address: str) -> None:
        """Fill the plot with the pixels of an image."""
        self._plot.append(
            f'<image class="pixels" width="{WIDE}" height="{self.height}" '
            f'preserveAspectRatio="none" href="{escape(address)}"/>'
        )

    def upright(self, x: float, css: str) -> None:
        """Draw an upright line through the plot."""
        self.line((x, x), self.y, css)

    def rule(self, y: float, css: str) -> None:
        """Draw a level line across the plot."""
        self.line(self.x, (y, y), css)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        css: str = "",
        anchor: str = "middle",
        below: int = 0,
    ) -> None:
        """Write words at a point, or `below` pixels below it."""
        self._front.append(
            f'<text class="{css}" x="{self._percent(x)}%" y="{_short(self._down(y) + below)}" '
            f'text-anchor="{anchor}">{escape(words)}</text>'
        )

    def hints(self, places: Iterable[tuple[float, str]]) -> None:
        """Give the parts of the plot around each x words that a resting pointer shows."""
        wide = _short(WIDE / (self.x[1] - self.x[0]))
        for x, words in places:
            left = _short(self._right(x - 0.5))
            self._plot.append(
                f'<rect class="hint" x="{left}" width="{wide}" height="{self.height}">'
                f"<title>{escape(words)}</title></rect>"
            )

    def row_hints(self, places: Iterable[tuple[float, float, str]]) -> None:
        """Give the parts of the plot between two y, from side to side, words for the pointer."""
        for top, bottom, words in places:
            start, end = self._down(top), self._down(bottom)
            self._plot.append(
                f'<rect class="hint" y="{_short(start)}" width="{WIDE}" '
                f'height="{_short(end - start)}"><title>{escape(words)}</title></rect>'
            )

    # Places ------------------------------------------------------------------------------------

    def _right(self, x: float) -> float:
        low, high = self.x
        return WIDE * (x - low) / ((high - low) or 1.0)

    def _percent(self, x: float) -> str:
        return _short(100 * self._right(x) / WIDE)

    def _down(self, y: float) -> float:
        low, high = self.y
        return self.height * (high - y) / ((high - low) or 1.0)

    def _at(self, x: float, y: float) -> str:
        return f"{_short(self._right(x))} {_short(self._down(y))}"

    def _runs(self, x: FloatArray, y: FloatArray) -> Iterable[str]:
        pen = False
        for a, b in zip(_floats(x), _floats(y), strict=True):
            if isfinite(a) and isfinite(b):
                yield f"{'L' if pen else 'M'}{self._at(a, b)}"
                pen = True
            else:
                pen = False


def thinned(x: FloatArray, y: FloatArray, most: int = MOST_POINTS) -> tuple[FloatArray, FloatArray]:
    """Keep as many points as an eye can tell apart: the smallest and largest of each piece."""
    if len(y) <= most:
        return x, y
    pieces = np.array_split(np.arange(len(y)), most // 2)
    kept = []
    for piece in pieces:
        known = piece[np.isfinite(y[piece])]
        ends = [known[y[known].argmin()], known[y[known].argmax()]] if len(known) else piece[:1]
        kept.extend(sorted({int(place) for place in ends}))
    return x[kept], y[kept]


# Around a chart -------------------------------------------------------------------------------


def figure(
    title: str,
    chart: Chart | str,
    legend: Iterable[Entry] = (),
    *,
    aside: str = "",
    note: str = "",
    css: str = "",
) -> str:
    """Return a chart with its title and legend as HTML, or the words why there is no chart.

    `note` is HTML, everything else is text.
    """
    drawn = f'<div class="plot">{_drawn(chart)}</div>'
    return _captioned(title, f"{_legend(legend)}{drawn}", aside, note, css)


def stacked(
    title: str,
    plots: Iterable[tuple[str, Chart | str, Iterable[Entry]]],
    *,
    aside: str = "",
    note: str = "",
    css: str = "",
) -> str:
    """Return charts below each other, with the words and the legend above each, as `figure` does.

    They have room for words on their left, so that the same x is at the same place in all.
    """
    body = "".join(
        f'<div class="above-plot">{f"<h4>{escape(words)}</h4>" if words else ""}'
        f'{_legend(legend)}</div><div class="plot named">{_drawn(chart)}</div>'
        for words, chart, legend in plots
    )
    return _captioned(title, body, aside, note, css)


def _captioned(title: str, body: str, aside: str, note: str, css: str) -> str:
    return (
        f'<figure class="card {css}"><figcaption><h3>{escape(title)}</h3>'
        + (f'<span class="soft">{escape(aside)}</span>' if aside else "")
        + f"</figcaption>{body}"
        + (f'<p class="note">{note}</p>' if note else "")
        + "</figure>"
    )


def _drawn(chart: Chart | str) -> str:
    return str(chart) if isinstance(chart, Chart) else f"<p>{escape(chart)}</p>"


def _legend(entries: Iterable[Entry]) -> str:
    lines = []
    for words, shapes in entries:
        paths = "".join(_in_legend(shape, css_of) for shape, css_of in shapes)
        lines.append(f'<li><svg aria-hidden="true">{paths}</svg>{escape(words)}</li>')
    return f'<ul class="legend">{"".join(lines)}</ul>' if lines else ""


def _in_legend(shape: str, css: str) -> str:
    if shape in MARKS:
        return f'<path class="{css}" transform="translate(13 6)" d="{MARKS[shape]}"/>'
    return f'<path class="{shape if shape != "area" else ""} {css}" d="{SHAPES[shape]}"/>'


# Axes -----------------------------------------------------------------------------------------


def plain_ticks(low: float, high: float, most: int = 6, *, whole: bool = False) -> Ticks:
    """Return round numbers from low to high: a power of ten times 1, 2 or 5 apart."""
    step = 10.0 ** floor(log10(max(high - low, 1e-300) / most))
    step *= next(m for m in (1, 2, 5, 10, 20) if (high - low) / (m * step) <= most)
    step = max(step, 1.0) if whole else step
    places = range(ceil(low / step - 1e-9), floor(high / step + 1e-9) + 1)
    return [(n * step, f"{n * step:.10g}") for n in places]


def power_ticks(low: float, high: float, unit: str = "", most: int = 6) -> Ticks:
    """Return the powers of ten on an axis of log10, and 1, 2 and 5 times them if there are few."""
    if high - low >= 2.0:
        return [
            (n, f"{_power(round(n))}{unit}") for n, _ in plain_ticks(low, high, most, whole=True)
        ]
    ticks = [
        (n + log10(m), f"{m * 10.0**n:g}{unit}")
        for n in range(floor(low), ceil(high) + 1)
        for m in ((1, 2, 5) if high - low > 0.35 else (1, 1.2, 1.5, 2, 3, 4, 5, 7))
    ]
    return [(value, label) for value, label in ticks if low <= value <= high]


def reach(values: Sequence[FloatArray], least: float) -> tuple[float, float]:
    """Return an axis from the smallest to the largest value with some room, at least `least`."""
    finite = np.concatenate([v[np.isfinite(v)] for v in values])
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    room = max(0.06 * (high - low), (least - (high - low)) / 2)
    return low - room, high + room


def _power(n: int) -> str:
    return f"{10.0**n:g}" if abs(n) < 4 else "10" + str(n).translate(SUPERSCRIPT)


def _floats(values: npt.ArrayLike) -> list[float]:
    found: list[float] = np.asarray(values, float).tolist()
    return found


def _short(value: float) -> str:
    text = f"{min(max(value, -1e5), 1e5):.1f}"
    return text[:-2] if text.endswith(".0") else text

"""The picture of a descent: the loss along the way, and the steps as hops."""

from __future__ import annotations

from os import PathLike
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray

MOST = 24  # hops
BOARD, CHALK, FAINT = "#26332f", "#e8e6df", "#8fa39b"


class Hop(NamedTuple):
    """A kind of steps: α up to which a step is of it, its colour and its name."""

    most: float
    colour: str
    name: str


HOPS = (
    Hop(-0.9, "#9ec9e2", "baby step"),
    Hop(0.5, "#b7dd9b", "good step"),
    Hop(1e300, "#f2cf63", "past the minimum"),
    Hop(np.inf, "#f08a7a", "up the other side"),  # the loss climbs
)
FAR = 20  # longest over usual length, from which on lengths are shown by their logarithm
TALL = 20  # highest over lowest loss, from which on the axis is logarithmic


def draw(history: Any, path: str | PathLike[str], title: str) -> None:
    """See `History.plot_descent`."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    if not np.isfinite(history.step_length).any():
        raise ValueError("history must have a step that the gauge looked at: fit(gauge_every=1)")
    places, widths, compressed = way(history)
    loss, shown = history.loss, chosen(history)
    sheet = Figure(figsize=(6.4, 3.6), layout="constrained", facecolor=BOARD)
    board = sheet.subplots()
    board.set_facecolor(BOARD)
    finite = loss[np.isfinite(loss)]
    tall = len(finite) > 0 and finite.min() > 0 and finite.max() > TALL * finite.min()
    if tall:
        board.set_yscale("log")
    (line,) = board.plot(places[:-1], loss, color=FAINT, linewidth=1.0, zorder=1)
    line.set_sketch_params(0.6, 60, 2)
    room = 0.12 * (finite.max() - finite.min() or 1)
    used = set()
    for step in shown:
        of = kind(history, step)
        used.add(of)
        _hop(board, history, step, places[step], widths[step], HOPS[of].colour)
    if not tall:
        board.set_ylim(finite.min() - room, finite.max() + 2 * room)
    _say(board, history, shown, places)
    handles = [Line2D([], [], color=HOPS[k].colour, label=HOPS[k].name) for k in sorted(used)]
    if (history.coefficient[shown] < 1).any():
        ghost = Line2D([], [], color=CHALK, linestyle=":", label="without the clip")
        handles.append(ghost)
    board.legend(
        handles=handles, frameon=False, labelcolor=CHALK, fontsize=8, ncols=len(handles),
        loc="upper center", bbox_to_anchor=(0.5, -0.16),
    )  # fmt: skip
    board.set_xlabel(
        "way through the weights" + (", each step's length by its logarithm" * compressed),
        color=FAINT, fontsize=8,
    )  # fmt: skip
    board.set_ylabel("loss", color=FAINT, fontsize=8)
    board.tick_params(colors=FAINT, labelsize=7, which="both")
    for side, spine in board.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if title:
        board.set_title(title, color=CHALK, fontsize=10)
    sheet.savefig(path, dpi=100, facecolor=BOARD)


def chosen(history: Any) -> npt.NDArray[np.intp]:
    """Up to MOST of the steps that the gauge looked at, evenly over all."""
    looks = np.flatnonzero(np.isfinite(history.step_length))
    shown = looks[np.linspace(0, len(looks) - 1, min(MOST, len(looks))).round().astype(int)]
    known = np.isfinite(history.loss) & np.isfinite(history.loss_after)
    return np.array([step for step in shown if known[step]], np.intp)


def kind(history: Any, step: int) -> int:
    """Which of HOPS a step is."""
    climbs = history.loss_after[step] > history.loss[step]
    alpha = np.inf if climbs else history.alpha[step]
    return next(i for i, hop in enumerate(HOPS) if not alpha > hop.most)


def way(history: Any) -> tuple[FloatArray, FloatArray, bool]:
    """Where each step begins (and the last ends), and how wide it is; whether by logarithms."""
    lengths = history.step_length
    looks = np.flatnonzero(np.isfinite(lengths))
    nearest = looks[np.searchsorted(looks, np.arange(len(lengths)), side="right").clip(1) - 1]
    widths = lengths[nearest]  # a step that was not looked at: as the one before that was
    usual = float(np.median(widths)) or 1.0
    compressed = bool(widths.max() > FAR * usual)
    if compressed:
        widths = np.log2(1 + widths / usual)
    return np.concatenate([[0.0], np.cumsum(widths)]), widths, compressed


def along(history: Any, step: int) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
    """The loss along a step (from 0 to 1), and beyond it along what the clip has cut off."""
    loss, after = float(history.loss[step]), float(history.loss_after[step])
    length = float(history.step_length[step])
    slope, slope_after = (
        float(getattr(history, name)[step]) * length for name in ("slope", "slope_after")
    )
    # The cubic that has loss and slope of both ends.
    t = np.linspace(0, 1, 40)
    below = (1 + 2 * t) * (1 - t) ** 2 * loss + t * (1 - t) ** 2 * slope
    below += t**2 * (3 - 2 * t) * after + t**2 * (t - 1) * slope_after
    factor, alpha = float(history.coefficient[step]), float(history.alpha[step])
    if not (0 < factor < 1 and np.isfinite(alpha)):
        return t, below, t[:0], t[:0]
    beyond = np.linspace(1, min(1 / factor, 3.0), 40)
    bend = -slope * (1 + alpha) / 2  # of the parabola
    return t, below, beyond, after + slope * (beyond - 1) + bend * (beyond**2 - 1)


def _hop(board: Any, history: Any, step: int, start: float, width: float, colour: str) -> None:
    """The loss along a step, and along what the clip has cut off."""
    t, below, beyond, ghost = along(history, step)
    board.plot([start], [below[0]], "o", color=CHALK, markersize=3, zorder=4)
    (curve,) = board.plot(start + width * t, below, color=colour, linewidth=1.8, zorder=3)
    curve.set_sketch_params(0.4, 40, 2)
    arrow = board.annotate(
        "", (start + width, float(below[-1])), (start + width * t[-3], float(below[-3])),
        arrowprops={"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0},
        zorder=4,
    )  # fmt: skip
    arrow.arrow_patch.set_clip_box(board.bbox)
    if len(beyond):
        board.plot(start + width * beyond, ghost, ":", color=CHALK, linewidth=0.7, zorder=2)


def _say(board: Any, history: Any, shown: npt.NDArray[np.intp], places: FloatArray) -> None:
    """In words, where they belong."""
    alpha, loss = history.alpha[shown], history.loss[shown]
    clipped = history.coefficient[shown] < 1
    notes: list[tuple[int, str]] = []
    if np.isfinite(alpha).any() and np.median(alpha) < HOPS[0].most:
        share = 1 / max(1 + float(np.median(alpha)), 1e-9)
        notes.append((len(shown) // 2, f"baby steps: 1/{float(f'{share:.2g}'):g} of the way"))
        if loss[-1] > 0.9 * loss[0]:
            notes[-1] = (notes[-1][0], "lost on a plateau\n" + notes[-1][1])
    rise = np.nan_to_num(history.loss_after[shown] - loss, nan=np.inf)
    if (rise > 0).any():
        notes.append((int(rise.argmax()), "over the edge"))
    if clipped.any():
        factors = history.coefficient[shown[clipped]]
        times = 1 / float(np.median(factors))
        notes.append((int(np.flatnonzero(clipped)[-1]), f"held by the clip: {times:.2g}× shorter"))
    heights = (0.9, 0.78, 0.66)
    for (place, text), height in zip(notes, heights, strict=False):
        late = place > len(shown) / 2
        board.annotate(
            text, (places[shown[place]], loss[place]), (0.98 if late else 0.3, height),
            textcoords="axes fraction", color=CHALK, fontsize=9, style="italic",
            ha="right" if late else "left", va="top",
            arrowprops={"arrowstyle": "-", "color": CHALK, "linewidth": 0.6, "alpha": 0.7},
            zorder=6,
        )  # fmt: skip

"""The descent of a training: the loss along the way through the weights, and the steps as hops.

The page's chart and the picture by matplotlib both take their numbers from here.
"""

from __future__ import annotations

import importlib
from os import PathLike
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import FloatArray
from vegrad.reports.picture import Axes, Figure, blank, kept
from vegrad.reports.protocols import ShownHistory

MOST = 24  # hops
BOARD, CHALK, FAINT = "#26332f", "#e8e6df", "#8fa39b"


class Hop(NamedTuple):
    """A kind of steps."""

    most: float
    """The largest α of such a step."""
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


class Arc(NamedTuple):
    """The loss along a step, which goes from 0 to 1, and beyond it along what a clip cut off."""

    t: FloatArray
    loss: FloatArray
    beyond: FloatArray
    """Places from 1 on; empty without a clip."""
    ghost: FloatArray
    """The loss there, by the parabola that fits the step."""


# Numbers ---------------------------------------------------------------------------------------


def chosen(history: ShownHistory) -> npt.NDArray[np.intp]:
    """Choose up to MOST of the steps that the gauge looked at, spread evenly over all."""
    looks = np.flatnonzero(np.isfinite(history.step_length))
    shown = looks[np.linspace(0, len(looks) - 1, min(MOST, len(looks))).round().astype(int)]
    known = np.isfinite(history.loss) & np.isfinite(history.loss_after)
    drawn: npt.NDArray[np.intp] = shown[known[shown]]
    return drawn


def kind(history: ShownHistory, step: int) -> int:
    """Return the place in HOPS of the kind that a step is of."""
    climbs = history.loss_after[step] > history.loss[step]
    alpha = np.inf if climbs else history.alpha[step]
    return next(i for i, hop in enumerate(HOPS) if not alpha > hop.most)


def way(history: ShownHistory) -> tuple[FloatArray, FloatArray, bool]:
    """Place the steps on an axis one after the other, each as wide as it is long.

    Returns:
        Where each step begins and the last ends, the widths, and True if these are logarithms.
    """
    lengths = history.step_length
    looks = np.flatnonzero(np.isfinite(lengths))
    # A step that was not looked at is taken to be as long as the one before it that was.
    nearest = looks[np.searchsorted(looks, np.arange(len(lengths)), side="right").clip(1) - 1]
    widths = lengths[nearest]
    usual = float(np.median(widths)) or 1.0
    compressed = bool(widths.max() > FAR * usual)
    if compressed:
        widths = np.log2(1 + widths / usual)
    return np.concatenate([[0.0], np.cumsum(widths)]), widths, compressed


def along(history: ShownHistory, step: int) -> Arc:
    """Return the cubic that has the loss and the slope that were measured at a step's ends."""
    loss, after = float(history.loss[step]), float(history.loss_after[step])
    length = float(history.step_length[step])
    slope = float(history.slope[step]) * length
    slope_after = float(history.slope_after[step]) * length
    t = np.linspace(0, 1, 40)
    curve = (1 + 2 * t) * (1 - t) ** 2 * loss + t * (1 - t) ** 2 * slope
    curve += t**2 * (3 - 2 * t) * after + t**2 * (t - 1) * slope_after
    factor, alpha = float(history.coefficient[step]), float(history.alpha[step])
    if not (0 < factor < 1 and np.isfinite(alpha)):
        return Arc(t, curve, t[:0], t[:0])
    beyond = np.linspace(1, min(1 / factor, 3.0), 40)
    bend = -slope * (1 + alpha) / 2  # of the parabola
    return Arc(t, curve, beyond, after + slope * (beyond - 1) + bend * (beyond**2 - 1))


def tall(losses: FloatArray) -> bool:
    """Return True if these finite losses need a logarithmic axis."""
    return len(losses) > 0 and losses.min() > 0 and losses.max() > TALL * losses.min()


# The picture -----------------------------------------------------------------------------------


def draw(history: ShownHistory, path: str | PathLike[str] | None = None, title: str = "") -> Figure:
    """Draw the descent as one would on a blackboard; see `History.plot_descent`."""
    if not np.isfinite(history.step_length).any():
        raise ValueError("history must have a step that the gauge looked at: fit(gauge_every=1)")
    figure = blank((6.4, 3.6), BOARD)
    board = figure.subplots()
    board.set_facecolor(BOARD)
    places, widths, compressed = way(history)
    shown, loss = chosen(history), history.loss
    finite = loss[np.isfinite(loss)]
    if tall(finite):
        board.set_yscale("log")
    (line,) = board.plot(places[:-1], loss, color=FAINT, linewidth=1.0, zorder=1)
    line.set_sketch_params(0.6, 60, 2)
    kinds = [kind(history, step) for step in shown]
    for step, of in zip(shown, kinds, strict=True):
        _hop(board, along(history, step), places[step], widths[step], HOPS[of].colour)
    if not tall(finite):
        room = 0.12 * (finite.max() - finite.min() or 1)
        board.set_ylim(finite.min() - room, finite.max() + 2 * room)
    _say(board, history, shown, places)
    _legend(board, kinds, clipped=bool((history.coefficient[shown] < 1).any()))
    words = "way through the weights" + (", each step's length by its logarithm" * compressed)
    board.set_xlabel(words, color=FAINT, fontsize=8)
    board.set_ylabel("loss", color=FAINT, fontsize=8)
    board.tick_params(colors=FAINT, labelsize=7, which="both")
    for side, spine in board.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if title:
        board.set_title(title, color=CHALK, fontsize=10)
    return kept(figure, path, dpi=100)


def _hop(board: Axes, arc: Arc, start: float, width: float, colour: str) -> None:
    """Draw one step, with an arrow at its end."""
    x = start + width * arc.t
    board.plot([start], arc.loss[:1], "o", color=CHALK, markersize=3, zorder=4)
    (curve,) = board.plot(x, arc.loss, color=colour, linewidth=1.8, zorder=3)
    curve.set_sketch_params(0.4, 40, 2)
    style = {"arrowstyle": "-|>", "color": colour, "shrinkA": 0, "shrinkB": 0}
    end, before = (x[-1], arc.loss[-1]), (x[-3], arc.loss[-3])
    arrow = board.annotate("", end, before, arrowprops=style, zorder=4)
    arrow.arrow_patch.set_clip_box(board.bbox)
    if len(arc.beyond):
        x = start + width * arc.beyond
        board.plot(x, arc.ghost, ":", color=CHALK, linewidth=0.7, zorder=2)


def _legend(board: Axes, kinds: list[int], *, clipped: bool) -> None:
    """Name the kinds of steps that are drawn."""
    line = importlib.import_module("matplotlib.lines").Line2D
    handles = [line([], [], color=HOPS[k].colour, label=HOPS[k].name) for k in sorted(set(kinds))]
    if clipped:
        handles.append(line([], [], color=CHALK, linestyle=":", label="without the clip"))
    place = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": len(handles)}
    board.legend(handles=handles, frameon=False, labelcolor=CHALK, fontsize=8, **place)


def _say(
    board: Axes, history: ShownHistory, shown: npt.NDArray[np.intp], places: FloatArray
) -> None:
    """Write what happens beside the steps at which it does."""
    heights = (0.9, 0.78, 0.66)
    font = {"color": CHALK, "fontsize": 9, "style": "italic", "va": "top"}
    line = {"arrowstyle": "-", "color": CHALK, "linewidth": 0.6, "alpha": 0.7}
    for (place, text), height in zip(_notes(history, shown), heights, strict=False):
        step, late = shown[place], place > len(shown) / 2
        board.annotate(
            text,
            (places[step], history.loss[step]),
            (0.98 if late else 0.3, height),
            textcoords="axes fraction",
            ha="right" if late else "left",
            arrowprops=line,
            zorder=6,
            **font,
        )


def _notes(history: ShownHistory, shown: npt.NDArray[np.intp]) -> list[tuple[int, str]]:
    """Return what there is to say of the descent, with the place of a step among those shown."""
    alpha, loss = history.alpha[shown], history.loss[shown]
    notes: list[tuple[int, str]] = []
    if np.isfinite(alpha).any() and np.median(alpha) < HOPS[0].most:
        share = 1 / max(1 + float(np.median(alpha)), 1e-9)
        text = f"baby steps: 1/{float(f'{share:.2g}'):g} of the way"
        stuck = loss[-1] > 0.9 * loss[0]
        notes.append((len(shown) // 2, f"lost on a plateau\n{text}" if stuck else text))
    rise = np.nan_to_num(history.loss_after[shown] - loss, nan=np.inf)
    if (rise > 0).any():
        notes.append((int(rise.argmax()), "over the edge"))
    clipped = history.coefficient[shown] < 1
    if clipped.any():
        times = 1 / float(np.median(history.coefficient[shown[clipped]]))
        notes.append((int(np.flatnonzero(clipped)[-1]), f"held by the clip: {times:.2g}× shorter"))
    return notes

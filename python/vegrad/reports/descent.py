"""The descent of a training: the loss along the way through the weights, and the steps as hops.

The page's chart and the picture by matplotlib both take their numbers from here.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from math import isfinite, nan
from os import PathLike
from typing import NamedTuple

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.descent import Descent, Look
from vegrad.pictures import Axes, Figure, blank, kept
from vegrad.reports.picture import in_picture
from vegrad.reports.protocols import ShownHistory

MOST = 24  # hops
BOARD, CHALK, FAINT = "#26332f", "#e8e6df", "#8fa39b"
SLATE = {"facecolor": "#26332f", "edgecolor": "none", "alpha": 1.0, "pad": 1}


class Hop(NamedTuple):
    """A kind of steps, told apart by colour and by the shape where it lands."""

    most: float
    """The largest α of such a step."""
    colour: str
    marker: str
    """The shape, as matplotlib names it."""
    mark: str
    """The same, as charts of a page name it."""
    name: str


HOPS = (
    Hop(-0.9, "#6fb7ec", ">", "arrow", "baby step"),
    Hop(0.5, "#53d8ab", "o", "circle", "good step"),
    Hop(1e300, "#f4e04d", "D", "diamond", "past the minimum"),
    Hop(np.inf, "#ff8a5c", "^", "peak", "up the other side"),  # the loss climbs
)
PAST = 0.25  # of the fall to the lowest place: that of α 0.5 on a parabola
EDGE = 0.2  # of the loss: a rise worth a word
STUCK = 0.9  # of the loss at first, or of guessing: what is left where a training learns nothing
FLAT = 0.15  # of the highest loss: a way over which as little changes is drawn as flat as it is
FAR = 20  # longest over usual length, from which on lengths are shown by their logarithm
LOW = 0.08  # of the height, below which no word has room above the axis
TALL = 20  # highest over lowest loss, from which on the axis is logarithmic


# Numbers ---------------------------------------------------------------------------------------


def of_history(history: ShownHistory, guess: float | None = None) -> Descent:
    """Return the descent that a history recorded, each step on its own batch.

    Where the gauge did not look, a step is taken to be as long as the one before it where it did.
    Along a step stands the cubic that has the loss and the slope measured at its ends, or a
    straight line where that would lead out of what a loss can be; beyond it the parabola that fits
    the step, as far as it is above the least loss there can be.
    """
    lengths, line = history.step_length, nan if guess is None else float(guess)
    looks = np.flatnonzero(np.isfinite(lengths))
    if not len(looks):
        return Descent(history.loss, lengths, history.coefficient, (), line, whole=False)
    nearest = looks[np.searchsorted(looks, np.arange(len(lengths)), side="right").clip(1) - 1]
    known = np.isfinite(history.loss) & np.isfinite(history.loss_after)
    shown = looks[np.linspace(0, len(looks) - 1, min(MOST, len(looks))).round().astype(int)]
    losses = history.loss
    seen = tuple(_along(history, int(step)) for step in np.unique(shown[known[shown]]))
    return Descent(
        np.append(losses, nan), lengths[nearest], history.coefficient, seen, line, whole=False
    )


def _along(history: ShownHistory, step: int) -> Look:
    loss, after = float(history.loss[step]), float(history.loss_after[step])
    length = float(history.step_length[step])
    slope = float(history.slope[step]) * length
    slope_after = float(history.slope_after[step]) * length
    t = np.linspace(0, 1, 40)
    curve = (1 + 2 * t) * (1 - t) ** 2 * loss + t * (1 - t) ** 2 * slope
    curve += t**2 * (3 - 2 * t) * after + t**2 * (t - 1) * slope_after
    least = 0.0 if min(loss, after) >= 0 else -np.inf
    high, low = max(loss, after), min(loss, after)
    if not (
        curve.min() >= least
        and curve.max() <= high + 2 * (high - least if least == 0 else high - low)
    ):
        t, curve = t[[0, -1]], curve[[0, -1]]  # slopes so steep say nothing of the way
    factor, alpha = float(history.coefficient[step]), float(history.alpha[step])
    if not (0 < factor < 1 and np.isfinite(alpha)):
        return Look(step, alpha, t, curve, t[:0], t[:0])
    beyond = np.linspace(1, min(1 / factor, 3.0), 40)
    bend = -slope * (1 + alpha) / 2  # of the parabola
    ghost = after + slope * (beyond - 1) + bend * (beyond**2 - 1)
    above = np.minimum.accumulate(ghost >= least)
    return Look(step, alpha, t, curve, beyond[above], ghost[above])


def kind(look: Look) -> int:
    """Return the place in HOPS of the kind that a step is of."""
    alpha = np.inf if look.climbs else look.alpha
    if not look.climbs and len(look.places) > 2:
        # What was measured on the way says more than the parabola through its ends.
        least = look.loss.min()
        if look.loss[-1] - least > PAST * (look.loss[0] - least) > 0:
            alpha = max(alpha, 1.0)
    return next(i for i, hop in enumerate(HOPS) if not alpha > hop.most)


def way(descent: Descent) -> tuple[FloatArray, FloatArray, bool]:
    """Place the steps on an axis one after the other, each as wide as it is long.

    Returns:
        Where each step begins and the last ends, the widths, and True if these are logarithms.
    """
    widths = descent.length
    usual = float(np.median(widths)) or 1.0
    compressed = bool(widths.max() > FAR * usual)
    if compressed:
        widths = np.log2(1 + widths / usual)
    return np.concatenate([[0.0], np.cumsum(widths)]), widths, compressed


def losses_of(descent: Descent) -> FloatArray:
    """Return all finite losses at the ends of steps, and that of guessing if it is known."""
    ends = [look.loss[[0, -1]] for look in descent.looks]
    losses = np.concatenate([descent.loss, *ends, [descent.guess]])
    finite: FloatArray = losses[np.isfinite(losses)]
    return finite


def outcome(descent: Descent) -> str:
    """Return "learns", "stuck" or "diverges", by the loss alone: at first, in the end, of guessing.

    Stuck is a loss that stays above nine tenths of what it was, or of that of guessing if this is
    less; it diverges where it ends a fifth higher than it began, or is not finite.
    """
    first, last = float(descent.looks[0].loss[0]), float(descent.looks[-1].loss[-1])
    if not isfinite(last) or last - first > EDGE * abs(first):
        return "diverges"
    least = min(first, float(np.nan_to_num(descent.guess, nan=np.inf)))
    return "stuck" if last > STUCK * least else "learns"


def tall(losses: FloatArray) -> bool:
    """Return True if these finite losses need a logarithmic axis."""
    return len(losses) > 0 and losses.min() > 0 and losses.max() > TALL * losses.min()


# The picture -----------------------------------------------------------------------------------


def draw(
    descents: Sequence[tuple[str, Descent]], path: str | PathLike[str] | None = None
) -> Figure:
    """Draw descents with their titles side by side, as one would on a blackboard."""
    if not any(descent.looks for _, descent in descents):
        raise ValueError("history must have a step that the gauge looked at: fit(gauge_every=1)")
    count = len(descents)
    figure = blank((6.4 if count == 1 else 4.4 * count, 4.0), BOARD)
    boards = np.atleast_1d(figure.subplots(1, count))
    for board, (title, descent) in zip(boards, descents, strict=True):
        _draw(board, title, descent)
    kinds = sorted({kind(look) for _, descent in descents for look in descent.looks})
    _legend(figure, kinds, descents)
    return kept(figure, path, dpi=130)


def _draw(board: Axes, title: str, descent: Descent) -> None:
    board.set_facecolor(BOARD)
    places, widths, compressed = way(descent)
    finite = losses_of(descent)
    logarithmic = tall(finite)
    if logarithmic:
        board.set_yscale("log")
    known = np.isfinite(descent.loss)
    if len(descent.looks) < len(descent.length) or not descent.whole:
        (line,) = board.plot(places[known], descent.loss[known], color=FAINT, linewidth=1.0)
        line.set_sketch_params(0.6, 60, 2)
    for look in descent.looks:
        _hop(board, look, places[look.step], widths[look.step])
    if not logarithmic:
        low, high = reach(descent, finite)
        board.set_ylim(low, high + 0.25 * (high - low))  # with room for words
    else:
        board.set_ylim(finite.min() / 1.5, finite.max() * 4)
    if isfinite(descent.guess):
        _guessing(board, descent.guess)
    _say(board, descent, places)
    words = "way through the weights" + (", by the logarithm of each step" * compressed)
    board.set_xlabel(words + _unseen(descent), color=FAINT, fontsize=8)
    board.set_ylabel("loss" if descent.whole else "loss of each batch", color=FAINT, fontsize=8)
    board.tick_params(colors=FAINT, labelsize=8, which="both")
    for side, spine in board.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(FAINT)
    if title:
        board.set_title(in_picture(title), color=CHALK, fontsize=10)


def _guessing(board: Axes, loss: float) -> None:
    """Draw the line of guessing, with its name below it, or above where the axis is too near."""
    board.axhline(loss, color=CHALK, linewidth=1, linestyle=(0, (6, 4)), zorder=1)
    place = board.transAxes.inverted().transform(board.transData.transform((0.0, loss)))
    above = float(place[1]) < LOW
    words: dict[str, object] = {"textcoords": "offset points", "xytext": (0, 4 if above else -4)}
    words |= {"color": CHALK, "fontsize": 8, "ha": "right", "bbox": SLATE}
    words["va"] = "bottom" if above else "top"
    at = board.get_yaxis_transform()
    board.annotate("guessing", (0.995, loss), xycoords=at, **words)


def _unseen(descent: Descent) -> str:
    """Say why steps have no hop, of which there is room for more."""
    count, seen = len(descent.length), len(descent.looks)
    if seen >= min(count, MOST):
        return ""
    finite = np.isfinite(descent.loss)
    lost = set(np.flatnonzero(~(finite[:count] & np.append(finite[1:count], finite[:count][-1:]))))
    lost -= {look.step for look in descent.looks}
    said = f"; {len(lost)} of {count} steps without a finite loss" if lost else ""
    if seen + len(lost) < count:
        said += f"; {seen} of {count} steps looked at (gauge_every)"
    return said


def reach(descent: Descent, finite: FloatArray) -> tuple[float, float]:
    """Return the ends of the axis: down to 0 where the loss hardly changes, which it then shows."""
    low = min([float(finite.min()), *(float(np.nanmin(look.loss)) for look in descent.looks)])
    high = float(finite.max())
    room = 0.08 * (high - low) or 1.0
    return (0.0 if low >= 0 and high - low < FLAT * high else low - room), high + room


def _hop(board: Axes, look: Look, start: float, width: float) -> None:
    """Draw one step, with the shape of its kind where it lands."""
    hop = HOPS[kind(look)]
    x = start + width * look.places
    board.plot([start], look.loss[:1], "o", color=CHALK, markersize=2.5, zorder=4)
    (curve,) = board.plot(x, look.loss, color=hop.colour, linewidth=1.6, zorder=3)
    curve.set_sketch_params(0.4, 40, 2)
    edge = {"color": hop.colour, "markeredgecolor": BOARD, "markersize": 6.5}
    board.plot(x[-1:], look.loss[-1:], hop.marker, **edge, zorder=5)
    if len(look.beyond):
        x = start + width * look.beyond
        board.plot(x, look.ghost, ":", color=CHALK, linewidth=0.8, zorder=2)


def _legend(figure: Figure, kinds: list[int], descents: Sequence[tuple[str, Descent]]) -> None:
    """Name the kinds of steps that are drawn."""
    line = importlib.import_module("matplotlib.lines").Line2D
    handles = [
        line([], [], color=HOPS[k].colour, marker=HOPS[k].marker, label=HOPS[k].name) for k in kinds
    ]
    if any(len(look.beyond) for _, descent in descents for look in descent.looks):
        handles.append(line([], [], color=CHALK, linestyle=":", label="without the clip"))
    place = {
        "loc": "outside lower center",
        "ncols": min(len(handles), 3 if len(descents) == 1 else 5),
    }
    figure.legend(handles=handles, frameon=False, labelcolor=CHALK, fontsize=9, **place)


def _say(board: Axes, descent: Descent, places: FloatArray) -> None:
    """Write what happens beside the steps at which it does."""
    heights = (0.97, 0.86, 0.75)
    whole = places[-1] or 1.0
    font = {"color": CHALK, "fontsize": 9, "style": "italic", "va": "top", "bbox": SLATE}
    line = {"arrowstyle": "-", "color": CHALK, "linewidth": 0.6, "alpha": 0.7}
    for (place, text), height in zip(notes(descent), heights, strict=False):
        look = descent.looks[place]
        across = min(max(places[look.step + 1] / whole, 0.04), 0.97)
        board.annotate(
            text,
            (places[look.step + 1], look.loss[-1]),
            (across, height),
            textcoords="axes fraction",
            ha="right" if across > 0.5 else "left",
            arrowprops=line,
            zorder=6,
            **font,
        )


def notes(descent: Descent) -> list[tuple[int, str]]:
    """Return what there is to say of the descent, with the place of a step among those shown."""
    looks = descent.looks
    alpha = np.array([look.alpha for look in looks])
    found: list[tuple[int, str]] = []
    if np.isfinite(alpha).any() and np.median(alpha) < HOPS[0].most:
        share = 1 / max(1 + float(np.median(alpha)), 1e-9)
        text = f"baby steps: 1/{float(f'{share:.2g}'):g} of the way\nto the minimum along each"
        stuck = outcome(descent) == "stuck"
        found.append((len(looks) // 2, f"lost on a plateau,\n{text}" if stuck else text))
    rise = np.array([look.loss[-1] - look.loss[0] for look in looks])
    rise = np.nan_to_num(rise, nan=np.inf)
    if len(rise) and rise.max() > EDGE * min(abs(look.loss[0]) for look in looks):
        found.append((int(rise.argmax()), "over the edge"))
    factors = descent.coefficient[[look.step for look in looks]]
    if len(looks) and (factors < 1).any():
        times = 1 / float(np.median(factors[factors < 1]))
        place = int(np.flatnonzero(factors < 1)[-1])
        found.append((place, f"held by the clip:\nsteps {times:.2g}× shorter"))
    return found

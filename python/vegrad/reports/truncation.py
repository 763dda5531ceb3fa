"""The losses of truncated backpropagation, as text and as a picture."""

from __future__ import annotations

import importlib
import textwrap
from math import floor, isfinite, isnan, log10

import numpy as np

from vegrad.flow.wording import log10_or_less, power
from vegrad.pictures import FAINT, INK, THEORY, Axes, Figure, bare, blank
from vegrad.reports.picture import ALARM, GRADIENT
from vegrad.reports.protocols import ShownTruncation
from vegrad.reports.text import WIDTH

WORST = 3  # parameters whose own error is told
MOST_ROWS = 20  # of the table
LEAST = 1e-5  # errors below are not told apart

# Text ------------------------------------------------------------------------------------------


def summary(truncation: ShownTruncation) -> str:
    """Say which window is needed and what it loses."""
    noun, window = truncation.noun, truncation.window
    if window is None:
        words = f"No truncation is small: {_shortest(truncation)}."
        if truncation.gain >= 1:
            words += (
                f" The gradient does not shrink on its way back ({_gain(truncation)}), so that "
                f"longer {'sequences' if noun == 'steps' else 'networks'} need longer windows."
            )
        return words
    back = window[1] if isinstance(window, tuple) else window
    place = int(np.flatnonzero(truncation.errors.window == back)[0])
    error, cosine = truncation.errors.error[place], truncation.errors.cosine[place]
    words = (
        f"{_instruction(truncation)}. This loses {percent(error)} of the gradient (cosine "
        f"{cosine:.4f}); {percent(truncation.tolerance)} is allowed."
    )
    if truncation.beyond:
        words += (
            f" But {percent(truncation.beyond)} of the target can be told only from steps before "
            "these, where little of the gradient gets as the network is: see vegrad.diagnose "
            "first, and measure again after its cure, or go back all the way."
        )
    return words


def text(truncation: ShownTruncation) -> str:
    """Write the window, the curve as a table, and the parameters that are off by more."""
    total, errors, allowed = truncation.total, truncation.errors, truncation.tolerance
    lines = [*textwrap.wrap(truncation_words(truncation), WIDTH), ""]
    lines.append(
        f"{truncation.noun + ' gone back':<18}{'loses':>10}{'by formula':>13}{'cosine':>10}"
    )
    for place in shown_windows(truncation):
        window, error = errors.window[place], errors.error[place]
        expected, cosine = errors.expected[place], errors.cosine[place]
        name = f"{total} → {window}"
        by = "" if isnan(expected) else percent(expected)
        mark = "  within" if error <= allowed else ""
        lines.append(f"{name:<18}{percent(error):>10}{by:>13}{cosine:>10.4f}{mark}")
    off = [(name, error) for name, error in truncation.parts.items() if error > allowed]
    if off and truncation.noun == "steps":
        named = ", ".join(f"{name} {percent(error)}" for name, error in off[:WORST])
        more = f" and {len(off) - WORST} more" if len(off) > WORST else ""
        lines += ["", *textwrap.wrap(f"By themselves are off by more: {named}{more}.", WIDTH)]
    return "\n".join(lines)


def shown_windows(truncation: ShownTruncation) -> list[int]:
    """Return the places of windows that a table has room for."""
    windows, total = truncation.errors.window.tolist(), truncation.total
    if len(windows) <= MOST_ROWS:
        return list(range(len(windows)))
    needed = int(truncation.errors.window[_first_within(truncation)])
    shown = {1 << n for n in range(total.bit_length())} | {needed - 1, needed, total - 5, total}
    return [place for place, window in enumerate(windows) if window in shown]


def _first_within(truncation: ShownTruncation) -> int:
    return int(np.flatnonzero(truncation.errors.error <= truncation.tolerance)[0])


def truncation_words(truncation: ShownTruncation) -> str:
    """Say the result, and how the gradient shrinks."""
    words = summary(truncation)
    if truncation.window is None or not isfinite(truncation.gain):
        return words
    return f"{words} A {truncation.noun[:-1]} back leaves {_gain(truncation)} of its size."


def percent(share: float) -> str:
    """Write a share: 0.31 %, 12 %, under 0.001 %."""
    if share == 0 or isnan(share):
        return "0 %" if share == 0 else "?"
    value = 100 * share
    if value < 100 * LEAST:
        return f"<{100 * LEAST:g} %"
    digits = max(0, 1 - floor(log10(value)))
    return f"{value:.{digits}f} %" if value < 1e4 else f"{value:.1g} %"


def _instruction(truncation: ShownTruncation) -> str:
    window, total = truncation.window, truncation.total
    if isinstance(window, tuple):
        after = "step" if window[0] == 1 else f"{window[0]} steps"
        return f"Go back {window[1]} of {total} steps after every {after}"
    if truncation.scheme == "layers":
        return f"Go back through the {window} topmost of {total} layers"
    if truncation.scheme == "last":
        return f"Go back {window} of {total} steps from the last one"
    return f"Cut {total} steps into chunks of {window}"


def _shortest(truncation: ShownTruncation) -> str:
    """Say which of the measured windows is the shortest within the tolerance."""
    errors, allowed, noun = truncation.errors, percent(truncation.tolerance), truncation.noun
    shortest = int(errors.window[_first_within(truncation)])
    if shortest == truncation.total:
        return f"fewer than all {shortest} {noun} lose more than {allowed} of the gradient"
    return (
        f"of {truncation.total} {noun}, {shortest} are needed to lose no more than {allowed} of "
        "the gradient"
    )


def _gain(truncation: ShownTruncation) -> str:
    return power(log10_or_less(truncation.gain), digits=1) + "×"


# Picture ---------------------------------------------------------------------------------------


def draw(truncation: ShownTruncation) -> Figure:
    """Draw what each window loses, measured and by formula, and the cosine below it."""
    errors = truncation.errors
    figure = blank((8, 5.6))
    top, below = figure.subplots(2, 1, sharex=True, height_ratios=(2.2, 1))
    title = textwrap.fill(truncation_words(truncation), 92)
    figure.suptitle(title, color=INK, fontsize=11, fontweight="bold", x=0.012, ha="left")
    shown = errors.error > LEAST
    few = len(errors.window) <= MOST_ROWS
    dots = {"marker": "o", "markersize": 4 if few else 2, "color": GRADIENT, "linewidth": 1.8}
    known = (errors.expected > LEAST) & np.isfinite(errors.expected)
    label = f"by formula, from a gain of {_gain(truncation)}"
    top.plot(errors.window[known], errors.expected[known], "--", color=THEORY, label=label)
    top.plot(errors.window[shown], errors.error[shown], label="measured", **dots)
    top.axhline(truncation.tolerance, color=ALARM, linewidth=1)
    top.text(
        0.005, truncation.tolerance, f" {percent(truncation.tolerance)} is allowed", color=ALARM,
        fontsize=9, va="bottom", transform=top.get_yaxis_transform(),
    )  # fmt: skip
    below.plot(errors.window, errors.cosine, **dots)
    _axes(top, below, truncation)
    if truncation.window is not None:
        back = truncation.window if isinstance(truncation.window, int) else truncation.window[1]
        for axes in (top, below):
            axes.axvline(back, color=INK, linewidth=1, linestyle=":")
        top.text(back, 0.94, f" {back} {truncation.noun}", color=INK, fontsize=9,
                 transform=top.get_xaxis_transform())  # fmt: skip
    top.legend(frameon=False, fontsize=9, labelcolor=INK, loc="lower left")
    return figure


def _axes(top: Axes, below: Axes, truncation: ShownTruncation) -> None:
    ticker = importlib.import_module("matplotlib.ticker")
    if truncation.noun == "steps":
        below.set_xscale("log")
        ticks = truncation.errors.window[apart(truncation.errors.window)]
        below.set_xticks(ticks, [str(tick) for tick in ticks], minor=False)
        below.xaxis.set_minor_locator(ticker.NullLocator())
    else:
        below.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
    top.set_yscale("log")
    top.yaxis.set_major_formatter(lambda value, _: percent(value))
    top.yaxis.set_minor_formatter(ticker.NullFormatter())
    low, high = top.get_ylim()
    top.set_ylim(min(low, truncation.tolerance / 3), max(high, 1.3))
    for axes, words in ((top, "lost of the gradient"), (below, "cosine")):
        bare(axes)
        axes.grid(color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.tick_params(colors=INK, labelsize=9)
        axes.set_ylabel(words, color=INK)
    lowest = float(truncation.errors.cosine.min())
    below.set_ylim(min(lowest, 0.9) - 0.05, 1.04)
    below.axhline(1, color=FAINT, linewidth=0.8)
    ways = {"layers": "layers from the top that get a gradient", "last": "steps back from the last",
            "sliding": "steps gone back", "chunked": "steps of a chunk"}  # fmt: skip
    below.set_xlabel(ways[truncation.scheme], color=INK)


def apart(windows: np.ndarray) -> list[int]:
    """Return the places of windows whose names do not run into each other on a log axis."""
    places: list[int] = []
    last = 0.0
    for place, window in enumerate(windows):
        if window >= 1.45 * last or place == len(windows) - 1:
            if place == len(windows) - 1 and places and window < 1.45 * last:
                places.pop()
            places.append(place)
            last = float(window)
    return places

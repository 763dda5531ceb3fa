"""A phase map as a table and as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import Protocol

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.pictures import THEORY, Axes, Figure, kept, sheet

MOST_ROWS = 40  # of the table
NAMES = {"sigma_w": "σ_w", "sigma_b": "σ_b", "depth": "depth", "width": "width"}


class Shown(Protocol):
    """The part of a `PhaseMap` that is shown."""

    @property
    def activation(self) -> str: ...  # noqa: D102
    @property
    def sigma_w(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def sigma_b(self) -> tuple[float, ...]: ...  # noqa: D102
    @property
    def depth(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def width(self) -> tuple[int, ...]: ...  # noqa: D102
    @property
    def gain_log2(self) -> FloatArray: ...  # noqa: D102
    @property
    def accuracy(self) -> FloatArray: ...  # noqa: D102
    @property
    def expected_gain_log2(self) -> FloatArray: ...  # noqa: D102
    @property
    def reach(self) -> FloatArray: ...  # noqa: D102
    @property
    def critical(self) -> FloatArray: ...  # noqa: D102
    @property
    def problems(self) -> Mapping[object, str]: ...  # noqa: D102


def text(found: Shown) -> str:
    """Return a table with a line for each point."""
    head = f"{'σ_w':>7} {'σ_b':>7} {'depth':>6} {'width':>6} {'gain a layer':>13} {'expected':>9}"
    trained = bool(np.isfinite(found.accuracy).any())
    lines = [head + f" {'accuracy':>9} {'trains to':>10}" * trained]
    places = list(np.ndindex(found.gain_log2.shape))
    for i, j, k, m in places[:MOST_ROWS]:
        line = f"{found.sigma_w[i]:7.4g} {found.sigma_b[j]:7.4g} {found.depth[k]:6} "
        gain, expected = 2.0 ** found.gain_log2[i, j, k, m], 2.0 ** found.expected_gain_log2[i, j]
        line += f"{found.width[m]:6} {gain:13.4f} {expected:9.4f}"
        if trained:
            reach = found.reach[i, j]
            far = f"{reach:10.0f}" if reach < 1e6 else f"{'any depth':>10}"
            line += f" {found.accuracy[i, j, k, m]:9.3f} {far}"
        lines.append(line)
    if len(places) > MOST_ROWS:
        lines.append(f"… {len(places) - MOST_ROWS} more points")
    if found.problems:
        count, (point, why) = len(found.problems), next(iter(found.problems.items()))
        first = ", ".join(f"{name} {getattr(point, key):g}" for key, name in NAMES.items())
        lines.append(f"not measured: {count} point{'s' * (count > 1)}, the first at {first}: {why}")
    return "\n".join(lines)


def draw(found: Shown, path: str | PathLike[str] | None = None) -> Figure:
    """Draw the gain, and the accuracy where there is one; see `PhaseMap.plot`."""
    if len(found.sigma_w) < 2:
        raise ValueError(f"a picture takes two values of σ_w or more, got {len(found.sigma_w)}")
    trained = bool(np.isfinite(found.accuracy).any())
    figure = sheet(path, (5.6 * (1 + trained), 4.4))
    panels = figure.subplots(1, 1 + trained, squeeze=False)[0]
    by_depth = len(found.depth) > 1 or len(found.sigma_b) == 1
    largest = float(np.nanmax(np.abs(np.where(np.isfinite(found.gain_log2), found.gain_log2, 0.0))))
    colours: dict[str, str | float] = {
        "cmap": "RdBu_r",
        "vmin": -largest or -1.0,
        "vmax": largest or 1.0,
    }
    _map(figure, panels[0], found, found.gain_log2, by_depth, "log2 of the gain a layer", colours)
    if trained:
        colours = {"cmap": "viridis", "vmin": 0.0, "vmax": 1.0}
        _map(figure, panels[1], found, found.accuracy, by_depth, "accuracy", colours)
    figure.suptitle(f"{found.activation}, {found.width[0]} wide", fontsize=12)
    return kept(figure, path)


def _map(
    figure: Figure,
    axes: Axes,
    found: Shown,
    values: FloatArray,
    by_depth: bool,
    label: str,
    colours: Mapping[str, str | float],
) -> None:
    """Draw one map over σ_w and the depth or σ_b, with theory's line."""
    widths = np.array(found.sigma_w)
    heights = np.array(found.depth if by_depth else found.sigma_b, np.float64)
    shown = values[:, 0, :, 0] if by_depth else values[:, :, 0, 0]
    drawn = axes.pcolormesh(_edges(widths), _edges(heights), shown.T, **colours)
    figure.colorbar(drawn, ax=axes, label=label)
    axes.set_xlabel("σ_w")
    axes.set_ylabel("layers" if by_depth else "σ_b")
    bottom, top = axes.get_ylim()
    left, right = axes.get_xlim()
    if by_depth:
        if np.isfinite(found.critical[0]):
            axes.axvline(found.critical[0], color=THEORY, label="critical (theory)")
        if label == "accuracy":
            axes.plot(
                widths, np.minimum(found.reach[:, 0], 1e9), color="#d55e00", label="6 ξ (theory)"
            )
    elif np.isfinite(found.critical).any():
        axes.plot(found.critical, heights, color=THEORY, label="critical (theory)")
    axes.set(xlim=(left, right), ylim=(bottom, top))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=8, loc="upper right")


def _edges(values: FloatArray) -> FloatArray:
    """Return the borders of cells around values, in the order in which these were given."""
    if len(values) == 1:
        return np.array([values[0] - 0.5, values[0] + 0.5])
    middle = (values[1:] + values[:-1]) / 2
    first, last = 2 * values[0] - middle[0], 2 * values[-1] - middle[-1]
    first = max(first, 0.0) if first < values[0] else first  # nothing here is negative
    return np.concatenate([[first], middle, [last]])

"""Theory for people: the table of a point (σ_w, σ_b) and the picture of the plane around it."""

from __future__ import annotations

import textwrap
from math import inf, isfinite, isinf, isnan, log, log2
from os import PathLike

import numpy as np

from vegrad import theory
from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import times
from vegrad.pictures import INK, Axes, Figure, bare, keep, sheet
from vegrad.reports.picture import ALARM
from vegrad.theory.gaussian import activation_of, check_sigma
from vegrad.theory.meanfield import CRITICAL_SIGMA_B

CRITICAL = 1e-3  # |ln χ₁| below which gradients pass a thousand layers: neither phase
DEPTHS = 6.0  # depth scales up to which a network trains (Schoenholz 2017)
FLAT = 0.05  # of the largest slope: where a smaller one counts as saturated
MANY = 0.5  # of a unit's values, from which on diagnoses call a layer saturated
LONGEST = 3.0  # log10 of the longest depth scale that the picture distinguishes from infinity


# Text ------------------------------------------------------------------------------------------


def phase(activation: str, sigma_w: float, sigma_b: float) -> str:
    """Return "ordered" (gradients vanish), "chaotic" (they explode) or "critical".

    Raises:
        TypeError, ValueError: an unknown activation; a negative sigma.
    """
    factor = theory.chi(activation, sigma_w, sigma_b)
    growth = log(factor) if factor > 0 else -inf
    return "critical" if abs(growth) < CRITICAL else "chaotic" if growth > 0 else "ordered"


PHASES = {
    "ordered": "signals come together, gradients vanish",
    "chaotic": "signals part, gradients explode",
    "critical": "gradients keep their size",
}


def theory_table(activation: str, sigma_w: float, sigma_b: float, width: int = 80) -> str:
    """Write what theory says of networks of this activation at (σ_w, σ_b).

    Raises:
        TypeError, ValueError: an unknown activation; a negative sigma.
    """
    at = (activation, sigma_w, sigma_b)
    q, factor = theory.fixed_point(*at), theory.chi(*at)
    slope, correlation = theory.chi_parallel(*at), theory.correlation_fixed_point(*at)
    scales, state = theory.depth_scales(*at), phase(*at)
    share = saturated(activation, q)
    rows = [
        ("phase", state, _phase_words(state, share)),
        ("q*", _variance(q), _fate(q)),
        ("V′(q*)", f"{slope:.4g}", "below 1: a variance beside q* returns to it"),
        ("c*", f"{correlation:.4g}", "correlation that two samples come to"),
        ("χ₁", f"{factor:.4g}", f"of ‖δ‖² a layer: the gain is {times(_gain(factor))}"),
        ("depth scales", _layers(scales.gradient), f"of gradients{_growing(scales.gradient)}"),
        ("", _layers(scales.correlation), f"of correlations{_growing(scales.correlation)}"),
        ("", _layers(scales.variance), f"of the variance{_growing(scales.variance)}"),
        ("trains to", _layers(_trainable(scales)), "six depth scales" + _caution(share)),
        *([("saturated", f"{share:.0%}", "of a unit's values")] if share >= 0.005 else []),
        *_critical(activation, sigma_b),
        *_usual(activation, sigma_w, sigma_b),
        ("gain", f"{theory.gain(activation):.4f}", "makes the variance of φ(Z) 1"),
        ("χ if normalized", f"{theory.normalized_chi(activation):.4g}", "layer norm or LSUV"),
    ]
    head = _head(*at)
    lines = [f"{name:<16}{value:>14}   {words}".rstrip() for name, value, words in rows]
    lines = [textwrap.fill(line, width, subsequent_indent=" " * 33) for line in lines]
    return "\n".join([textwrap.fill(head, width), "", *lines])


def saturated(activation: str, q: float) -> float:
    """Return the share of pre-activations of this variance where a bounded activation is flat.

    Flat is where the slope is below 5 % of its largest; 0 for activations that are not bounded.
    """
    phi = activation_of(activation)
    if phi.at_infinity != (0.0, 0.0) or not q > 0:
        return 0.0
    if isinf(q):
        return 1.0
    z = np.linspace(-8.0, 8.0, 8001)
    weight = np.exp(-0.5 * z**2)
    flat = np.abs(phi.slope(np.sqrt(q) * z)) < FLAT * phi.largest_slope
    return float((weight * flat).sum() / weight.sum())


def _caution(share: float) -> str:
    return "; saturated units learn more slowly" if share >= MANY else ""


def _usual(activation: str, sigma_w: float, sigma_b: float) -> list[tuple[str, str, str]]:
    """Return the row about usual weights, to compare with; none for rectifiers."""
    if (sigma_w, sigma_b) == (1.0, 0.0) or activation_of(activation).rectifier:
        return []
    factor = theory.chi(activation, 1.0, 0.0)
    words = f"χ₁ there (σ_w 1, σ_b 0): the gain is {times(_gain(factor))}"
    return [("lecun_normal", f"{factor:.4g}", words)]


def theory_verdict(activation: str, sigma_w: float, sigma_b: float, width: int = 80) -> str:
    """Write the phase of networks of this activation at (σ_w, σ_b) in a sentence.

    Raises:
        TypeError, ValueError: an unknown activation; a negative sigma.
    """
    at = (activation, sigma_w, sigma_b)
    state, share = phase(*at), saturated(activation, theory.fixed_point(*at))
    return textwrap.fill(f"{state}: {_phase_words(state, share)} ({_head(*at)})", width)


def _head(activation: str, sigma_w: float, sigma_b: float) -> str:
    return f"{activation}, weights N(0, {sigma_w:g}²/fan-in), biases N(0, {sigma_b:g}²)"


def _phase_words(state: str, share: float) -> str:
    return PHASES[state] + (", but units are saturated" if share >= MANY else "")


def _variance(q: float) -> str:
    return "any" if isnan(q) else "∞" if isinf(q) else f"{q:.4g}"


def _fate(q: float) -> str:
    if isnan(q):
        return "the input's variance stays"
    if isinf(q):
        return "variance of pre-activations: no end to it"
    return "variance of pre-activations" + (": they die out" if q == 0.0 else "")


def _gain(factor: float) -> float:
    """Return log2 of the gain of ‖δ‖, whose square changes by this factor a layer."""
    return 0.5 * log2(factor) if factor > 0 else -inf


def _layers(depth: float) -> str:
    if isinf(depth):
        return "∞ layers"
    return f"{abs(depth):.3g} layers" if abs(depth) < 1e5 else f"{abs(depth):.0e} layers"


def _growing(scale: float) -> str:
    return ", which grow" if scale < 0 else ""


def _trainable(scales: theory.DepthScales) -> float:
    return DEPTHS * min(abs(scales.gradient), abs(scales.correlation))


def _critical(activation: str, sigma_b: float) -> list[tuple[str, str, str]]:
    """Return the row about the critical σ_w at this σ_b or, if there is none, at a usual one."""
    point = theory.critical_point(activation, sigma_b)
    if point is not None:
        where = f"q {_variance(point.q)}" if isfinite(point.q) else "any q"
        where += "" if point.stable else ", which does not stay"
        return [("critical σ_w", f"{point.sigma_w:.5g}", f"at this σ_b ({where})")]
    usual = CRITICAL_SIGMA_B.get(activation)
    other = None if usual is None else theory.critical_point(activation, usual)
    if usual is None or other is None:
        return [("critical σ_w", "none", f"at any σ_b: no weights keep {activation}'s gradient")]
    return [("critical σ_w", "none", f"at this σ_b; {other.sigma_w:.5g} at σ_b {usual:.3g}")]


# Picture ---------------------------------------------------------------------------------------


def plot_phases(
    activation: str,
    path: str | PathLike[str],
    *,
    sigma_w: float | None = None,
    sigma_b: float | None = None,
) -> str:
    """Draw the plane of σ_w and σ_b, coloured by the depth scale of the gradient.

    Args:
        activation: a name.
        path: the picture, in a format of matplotlib.
        sigma_w: with sigma_b, the point of one's own network, which is then marked.
        sigma_b: 0 if only sigma_w is given.

    Returns:
        The path.

    Raises:
        ImportError: matplotlib is not installed.
        TypeError, ValueError: an unknown activation or suffix; a negative sigma; a sigma_b alone.
        OSError: the file cannot be written.
    """
    activation_of(activation)
    if sigma_w is None and sigma_b is not None:
        raise ValueError("sigma_b must come with sigma_w")
    own = None
    if sigma_w is not None:
        own = check_sigma("sigma_w", sigma_w), check_sigma("sigma_b", sigma_b or 0.0)
    figure = sheet(path, (9, 6))
    _draw(figure, activation, own)
    return keep(figure, path, dpi=120)


def _draw(figure: Figure, activation: str, own: tuple[float, float] | None) -> None:
    wide, high = _extent(activation, own)
    w, b = np.linspace(0.0, wide, 241)[1:], np.linspace(0.0, high, 181)
    growth = _growth(activation, w, b)
    with np.errstate(divide="ignore"):
        depth = np.clip(-np.log10(np.abs(growth)), -1.0, LONGEST)
    colour = np.sign(growth) * (LONGEST - depth)
    axes = figure.add_subplot()
    top = LONGEST + 1.0
    mesh = axes.pcolormesh(
        w, b, colour, cmap="RdBu_r", vmin=-top, vmax=top, shading="nearest", rasterized=True
    )
    bar = figure.colorbar(mesh, ax=axes, pad=0.02, ticks=np.arange(-3, 4))
    bar.ax.set_yticklabels(["1", "10", "100", "∞", "100", "10", "1"])
    bar.set_label("← vanishing     depth scale of ‖δ‖² in layers     exploding →", color=INK)
    _draw_critical(axes, activation, wide, high)
    if own is not None:
        label = f"this network: {phase(activation, *own)}"
        ring = {"color": "white", "markeredgecolor": INK, "markeredgewidth": 2, "markersize": 11}
        axes.plot(*own, "o", label=label, clip_on=False, zorder=5, **ring)
    axes.set_xlim(0, wide)
    axes.set_ylim(0, high)
    axes.set_xlabel("σ_w: weights N(0, σ_w²/fan-in)", color=INK)
    axes.set_ylabel("σ_b: biases N(0, σ_b²)", color=INK)
    axes.tick_params(colors=INK)
    bare(axes)
    title = f"Where gradients of {activation} networks vanish and explode"
    axes.set_title(title, loc="left", fontsize=12, fontweight="bold", color=INK)
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", framealpha=0.9, edgecolor="none", labelcolor=INK)


def _extent(activation: str, own: tuple[float, float] | None) -> tuple[float, float]:
    """Return the largest σ_w and σ_b to draw, with the critical and one's own point well inside."""
    usual = CRITICAL_SIGMA_B.get(activation, 0.0)
    point = theory.critical_point(activation, usual)
    wide = 2.0 * point.sigma_w if point is not None else 3.0
    high = max(1.0, 1.6 * usual)
    if own is not None:
        wide, high = max(wide, 1.25 * own[0]), max(high, 1.25 * own[1])
    return wide, high


def _growth(activation: str, w: FloatArray, b: FloatArray) -> FloatArray:
    """Return ln χ₁ (b, w), read off a table of V that is fine enough for colours.

    `theory.chi` is exact, but too slow for each point of a picture.
    """
    q = np.geomspace(1e-8, 1e8, 641)
    start = int(np.searchsorted(q, 1.0))
    second = theory.second_moment(activation, q)
    slopes = np.log(theory.derivative_second_moment(activation, q))
    result, columns = np.empty((len(b), len(w))), np.arange(len(w))
    for row, bias in enumerate(b):
        rise = np.log((np.outer(w**2, second) + bias**2) / q)
        up = rise > 1e-9
        # From q = 1 the variance goes on to where V(q) - q changes its sign, or to the end.
        above = np.argmin(up[:, start:], axis=1) + start
        above[up[:, start:].all(axis=1)] = len(q) - 1
        below = start - np.argmax(up[:, start::-1], axis=1)
        below[~up[:, : start + 1].any(axis=1)] = 0
        left = np.clip(np.where(up[:, start], above - 1, below), 0, len(q) - 2)
        first, last = rise[columns, left], rise[columns, left + 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            part = np.nan_to_num(np.clip(first / (first - last), 0.0, 1.0))
        result[row] = slopes[left] + part * (slopes[left + 1] - slopes[left])
    growth: FloatArray = result + 2.0 * np.log(w)
    return growth


def _draw_critical(axes: Axes, activation: str, wide: float, high: float) -> None:
    """Draw the critical line, dotted where it is not stable; a point for rectifiers."""
    if activation_of(activation).rectifier:
        point = theory.critical_point(activation, 0.0)
        if point is not None:
            label = f"critical: σ_w = {point.sigma_w:.4g}, σ_b = 0"
            diamond = {"color": ALARM, "markersize": 9, "clip_on": False, "zorder": 4}
            axes.plot([point.sigma_w], [0.0], "D", label=label, **diamond)
        return
    q = np.geomspace(1e-6, 1e6, 4000)
    square = theory.derivative_second_moment(activation, q)
    bias = q - theory.second_moment(activation, q) / square
    line_w, line_b = 1.0 / np.sqrt(square), np.sqrt(np.maximum(bias, 0.0))
    real = bias >= 0
    real[:-1] |= real[1:]  # with the point before the first, so that the line begins at σ_b = 0
    inside = real & (line_w < 1.2 * wide) & (line_b < 1.2 * high)
    slope = np.gradient(theory.second_moment(activation, q), q) / square
    for stable, style, words in ((True, "-", "critical line"), (False, ":", "critical, unstable")):
        shown = inside & ((slope <= 1.0 + 1e-6) == stable)
        if shown.sum() > 1:
            x, y = (np.where(shown, line, np.nan) for line in (line_w, line_b))
            axes.plot(x, y, style, color=INK, linewidth=2.2, label=words)

"""A diagnosis for people: the table in the terminal and the picture of the flow."""

from __future__ import annotations

import importlib
import os
import textwrap
from collections.abc import Sized
from math import log10
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.measurement import Measurement
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, times

WIDTH = 80
ENDS = 5  # layers shown at either end of a deep network
PICKED = 4  # layers shown in between, because a finding is about them
FAR_SPREADS, FAR_LOG2 = 8.0, 3.32  # of a gain from the expected: beyond chance, and ten times


# Text ------------------------------------------------------------------------------------------


def text(diagnosis: Diagnosis, *, all_layers: bool = False) -> str:
    """The network, the table of layers, the verdict, findings and advice, 80 columns wide."""
    lines = [measurements(diagnosis, all_layers=all_layers), "", verdict(diagnosis)]
    return "\n".join(lines + remarks(diagnosis))


def measurements(diagnosis: Diagnosis, *, all_layers: bool = False) -> str:
    """The network and, if it was run, the table of its layers."""
    flow = diagnosis.flow
    if diagnosis.measurement is not None:
        return "\n".join(_recorded(diagnosis, diagnosis.measurement, all_layers=all_layers))
    if "sizes" not in diagnosis.config:
        return ", ".join(f"{value} {name}" for name, value in diagnosis.config.items())
    network = describe(diagnosis)
    if flow is None:
        return network
    return "\n".join([network, "", *table(diagnosis, flow, all_layers=all_layers)])


def describe(diagnosis: Diagnosis) -> str:
    """The network and its loss, in two lines."""
    config = diagnosis.config
    sizes, hidden = config["sizes"], config["sizes"][1:-1]
    line = f"{len(sizes) - 1} layer{'s' if hidden else ''}"
    if hidden:
        line += f" of width {min(hidden)}"
        line += f" to {max(hidden)}" if len(set(hidden)) > 1 else ""
    line += f" ({sizes[0]} inputs, {sizes[-1]} outputs), {config['dtype']}"
    line += "" if diagnosis.loss is None else f", loss {diagnosis.loss:.4g}"
    options = [config["activation"], config["init"]]
    options += [f"{name} {config[name]:g}" for name in ("sigma_w", "sigma_b") if config[name]]
    options += [f"norm {config['norm']}"] if config["norm"] is not None else []
    options += ["residual"] if config["residual"] else []
    return f"{line}\n{', '.join([*options, config['loss']])}"


def table(diagnosis: Diagnosis, flow: Flow, *, all_layers: bool = False) -> list[str]:
    """The lines of the table; deep networks lose the middle layers that nothing is said about."""
    notes = _notes(diagnosis)
    lost = {*diagnosis.underflowed, *diagnosis.overflowed}
    expected = None if diagnosis.expected is None else diagnosis.expected.gain_log2
    lines = [
        "layer    output  flat  gradient     gain expected  weights   deriv.",
        "            rms     %     log10     (gain = weights × derivative)",
    ]
    previous = -1
    for layer in _shown(len(flow.delta_log2), list(notes), all_layers):
        if layer > previous + 1:
            lines.append(f"    ⋮  {layer - previous - 1} layers not shown")
        previous = layer
        row = f"{layer:>5}  {_number(flow.activation_rms[layer]):>8} "
        row += f"{100 * flow.saturated[layer]:>5.0f}  {_size(flow.delta_log2[layer]):>8}"
        row += "!" if layer in lost else " "
        if layer < len(flow.gain_log2):
            shown = [flow.gain_log2, expected, flow.weight_gain_log2, flow.activation_gain_log2]
            row += " ".join(f"{'' if g is None else _gain(g[layer]):>8}" for g in shown)
        lines.append(f"{row:<66}  {notes.get(layer, '')}".rstrip())
    return lines


def _recorded(diagnosis: Diagnosis, measurement: Measurement, *, all_layers: bool) -> list[str]:
    """The lines of a table of gradients: those of the chain, from the input on."""
    chain = diagnosis.config["chain"]
    buffers = [measurement.buffers[measurement.names.index(name)] for name in chain]
    wide = max([len("gradient"), *map(len, chain)])
    lines = [
        f"{len(measurement.names)} gradients, {measurement.total.count} elements, "
        f"joint norm {measurement.total.norm:.4g}",
        "",
        f"{'gradient':<{wide}}  {'elements':>9}  log10 norm      gain  zeros",
    ]
    picked = [layer for finding in diagnosis.findings for layer in finding.layers]
    previous = -1
    for place in _shown(len(chain), picked, all_layers):
        if place > previous + 1:
            lines.append(f"{'⋮':<{wide}}  {place - previous - 1} not shown")
        previous = place
        one = buffers[place]
        gain = ""
        if place + 1 < len(chain):
            with np.errstate(invalid="ignore"):
                gain = _gain(float(np.subtract(one.norm_log2, buffers[place + 1].norm_log2)))
        row = f"{chain[place]:<{wide}}  {one.count:>9}  {_size(one.norm_log2):>10}  {gain:>8}"
        row += f"  {100 * one.zeros / max(one.count, 1):>3.0f} %"
        lines.append(row + ("  ← " + ", ".join(one.marks) if one.marks else ""))
    return lines


def _shown(depth: int, picked: list[int], all_layers: bool) -> list[int]:
    if all_layers or depth <= 2 * ENDS + 2:
        return list(range(depth))
    middle = [layer for layer in picked if ENDS <= layer < depth - ENDS][:PICKED]
    return [*range(ENDS), *sorted(middle), *range(depth - ENDS, depth)]


def _notes(diagnosis: Diagnosis) -> dict[int, str]:
    """What the table says beside single layers, the most telling layers first."""
    notes: dict[int, str] = {}
    for finding in diagnosis.findings:
        if finding.kind in ("dead", "saturated", "nonfinite") or len(finding.layers) == 1:
            for layer in sorted(finding.layers, key=lambda i: i != finding.evidence.get("layer")):
                notes.setdefault(layer, finding.kind)
    for layer, word in _unlike_its_draw(diagnosis).items():
        notes.setdefault(layer, word)
    return notes


def _unlike_its_draw(diagnosis: Diagnosis) -> dict[int, str]:
    """Single gains that cannot be those of freshly drawn weights, as the others are.

    No finding, as it may be meant and often trains: of 167 of the zoo's bodies 166 did with a layer
    times 0.02, 119 with one times 50. Training moves gains as well, mostly many at once: of 218
    trained networks 7 had such a gain, none one that stood alone.
    """
    flow, expected = diagnosis.flow, diagnosis.expected
    if flow is None or expected is None:
        return {}
    apart = np.abs(expected.deviations(flow))
    with np.errstate(invalid="ignore"):
        off = flow.gain_log2 - expected.gain_log2
    far = (apart > FAR_SPREADS) & (np.abs(off) > FAR_LOG2)
    others = apart[~far]
    if not far.any() or far.sum() > 2 or len(others) < 3 or np.mean(others < 4) < 0.9:
        return {}
    return {int(i): f"{'≪' if off[i] < 0 else '≫'} expected" for i in np.flatnonzero(far)}


def verdict(diagnosis: Diagnosis) -> str:
    """The verdict sentence."""
    return textwrap.fill(diagnosis.summary, WIDTH)


def remarks(diagnosis: Diagnosis) -> list[str]:
    """Advice, further findings and theirs, and what the dtype lost."""
    lines = []
    for place, finding in enumerate(diagnosis.findings):
        if place > 0:
            lines.append(textwrap.fill(f"also {finding.kind}: {finding.message}", WIDTH))
        lines.append(_indented("→ ", finding.advice))
    dtype = diagnosis.config.get("dtype")
    for layers, value in ((diagnosis.underflowed, "all 0"), (diagnosis.overflowed, "inf")):
        if layers:
            lost = f"{dtype} cannot hold the weight gradients of {named(layers)}, which are {value}"
            lines.append(_indented("! ", f"{lost} in .gradients; the table has their true size."))
    return lines


def _indented(mark: str, sentence: str) -> str:
    return textwrap.fill(sentence, WIDTH, initial_indent=f"  {mark}", subsequent_indent="    ")


def _number(value: float) -> str:
    return f"{value:#.3g}".rstrip(".")


def _size(log2_size: float) -> str:
    return "zero" if log2_size == -np.inf else f"{log2_size / DECADE:.2f}"


def _gain(log2_gain: float) -> str:
    return "–" if np.isnan(log2_gain) else times(float(log2_gain))


# Picture ---------------------------------------------------------------------------------------

NEAR = 10  # decades from the end of a dtype's range at which the picture shows it
INK, FAINT, THEORY = "#22313f", "#9aa5b1", "#8e5ea2"
GRADIENT, WEIGHTS, DERIVATIVE, ALARM = "#00707a", "#0072b2", "#d55e00", "#b3261e"
COLOURS = {"healthy": "#1b7f4b", "saturated": "#a15c00", "dead": "#5b5b66"}


def plot(diagnosis: Diagnosis, path: str | PathLike[str]) -> str:
    """Draw `diagnosis` into `path`; see `Diagnosis.plot`."""
    if diagnosis.flow is None:
        raise ValueError(
            "there is no flow to draw, because the data are not finite or what was looked at is no "
            "chain of layers"
        )
    figure = sheet(path, (10, 8.6))
    _draw(figure, importlib.import_module("matplotlib.ticker"), diagnosis, diagnosis.flow)
    return keep(figure, path)


def sheet(path: str | PathLike[str], size: tuple[float, float]) -> Any:
    """An empty figure to be kept in `path`, whose suffix must be one of matplotlib's."""
    try:
        figure_module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError('pictures need matplotlib: pip install "vegrad[cli]"') from error
    figure = figure_module.Figure(figsize=size, layout="constrained", facecolor="white")
    target = Path(fspath(path))
    if _suffix(target) not in figure.canvas.get_supported_filetypes():
        raise ValueError(
            "a picture's name must end in .png, .svg, .pdf or another format of matplotlib, "
            f"not {target.name!r}"
        )
    return figure


def keep(figure: Any, path: str | PathLike[str], dpi: int = 150) -> str:
    """Save a figure, whole or not at all, and return the path."""
    target = Path(fspath(path))
    partial = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        figure.savefig(partial, format=_suffix(target), dpi=dpi)
        partial.replace(target)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(target)) from error
    finally:
        partial.unlink(missing_ok=True)
    return str(target)


def _suffix(target: Path) -> str:
    return target.suffix.lstrip(".").lower()


def _draw(figure: Any, ticker: Any, diagnosis: Diagnosis, flow: Flow) -> None:
    grid = figure.add_gridspec(3, 2, height_ratios=(1.7, 1.25, 0.9))
    colour = COLOURS.get(diagnosis.verdict, ALARM)
    figure.suptitle(
        textwrap.fill(diagnosis.summary, 96), color=colour, fontsize=13, fontweight="bold",
        x=0.012, ha="left",
    )  # fmt: skip
    top = figure.add_subplot(grid[0, :])
    _draw_gradient(top, diagnosis, flow)
    middle = figure.add_subplot(grid[1, :], sharex=top)
    _draw_gains(middle, ticker, flow)
    left = figure.add_subplot(grid[2, 0])
    _draw_flat(left, flow)
    right = figure.add_subplot(grid[2, 1], sharex=left)
    _draw_activations(right, flow)
    for axes in (top, middle, left, right):
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=INK, labelsize=9)
        axes.grid(axis="y", color="#e6eaee", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.set_xlim(-0.5 - 0.01 * len(flow.dead), len(flow.dead) - 0.5 + 0.01 * len(flow.dead))
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    figure.supxlabel(describe(diagnosis).replace("\n", ", "), fontsize=8.5, color=INK, x=0.5)


def _title(axes: Any, title: str, detail: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    axes.set_title(detail, loc="right", fontsize=9, color=INK)


def _draw_gradient(axes: Any, diagnosis: Diagnosis, flow: Flow) -> None:
    layers = np.arange(len(flow.delta_log2))
    delta, gradient = _decades(flow.delta_log2), _decades(flow.gradient_log2)
    _title(axes, "The gradient, layer by layer", "← the backward pass runs this way")
    axes.plot(layers, gradient, color=FAINT, linewidth=1.4, label="at the weights, ‖∂loss/∂W‖")
    axes.plot(
        layers, delta, color=GRADIENT, linewidth=2, marker="o", markersize=_dot(layers),
        label="at the pre-activations, ‖δ‖",
    )  # fmt: skip
    trend = diagnosis.trend
    known = np.flatnonzero(np.isfinite(delta))
    if trend is not None and trend.count > 2 and known.size:
        steps = (layers[known[-1]] - layers) / DECADE
        start = delta[known[-1]]
        axes.plot(
            layers, start + trend.gain * steps, "--", color=INK, linewidth=1,
            label=f"fitted: {times(trend.gain)} a layer, with its 95 % interval",
        )  # fmt: skip
        band = (start + trend.low * steps, start + trend.high * steps)
        axes.fill_between(layers, *band, color=INK, alpha=0.10, linewidth=0)
    expected = diagnosis.expected
    if expected is not None and np.isfinite(delta[-1]) and np.isfinite(expected.delta_log2).all():
        usual, spread = delta[-1] + _decades(expected.delta_log2), expected.delta_log2_std / DECADE
        axes.plot(layers, usual, color=THEORY, linewidth=1.2, label="expected, ±2 spreads")
        band = (usual - 2 * spread, usual + 2 * spread)
        axes.fill_between(layers, *band, color=THEORY, alpha=0.12, linewidth=0)
    for lost, word in ((diagnosis.underflowed, "0.0"), (diagnosis.overflowed, "inf")):
        if lost:
            axes.plot(
                list(lost), gradient[list(lost)], "x", color=ALARM,
                markersize=_dot(lost) * 1.7 or 1,
                label=f"stored as {word} in {diagnosis.config['dtype']}",
            )  # fmt: skip
    zero = np.flatnonzero(flow.delta_log2 == -np.inf)
    if zero.size:
        words = f"exactly zero in {named(zero.tolist())}"
        axes.text(0.5, 0.5, words, color=ALARM, ha="center", transform=axes.transAxes)
    _draw_range(axes, diagnosis.config["dtype"])
    axes.set_ylabel("log10 of its size", color=INK)
    axes.tick_params(labelbottom=False)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)


def _draw_range(axes: Any, dtype: str) -> None:
    """The dtype's normal range, where the picture comes near its ends."""
    low, high = axes.get_ylim()
    ends, margin = np.finfo(dtype), 0.1 * (high - low)
    smallest, largest = log10(float(ends.tiny)), log10(float(ends.max))
    bands = []
    if axes.dataLim.y0 < smallest + NEAR:
        low = min(low, smallest - margin)
        bands.append((low, smallest, f"below {ends.tiny:.1g} {dtype} stores 0 ", "top"))
    if axes.dataLim.y1 > largest - NEAR:
        high = max(high, largest + margin)
        bands.append((high, largest, f"above {ends.max:.1g} {dtype} stores inf ", "bottom"))
    for outer, inner, words, side in bands:
        axes.axhspan(outer, inner, color=ALARM, alpha=0.08, linewidth=0)
        axes.axhline(inner, color=ALARM, linewidth=1)
        axes.text(
            0.99, inner, words, color=ALARM, fontsize=9, ha="right", va=side,
            transform=axes.get_yaxis_transform(),
        )  # fmt: skip
    axes.set_ylim(low, high)


def _draw_gains(axes: Any, ticker: Any, flow: Flow) -> None:
    layers = np.arange(len(flow.gain_log2))
    _title(axes, "Gain = weights × derivative", "above 1× the gradient grows, below it shrinks")
    axes.axhline(0, color=INK, linewidth=0.8)
    weights, derivative = _decades(flow.weight_gain_log2), _decades(flow.activation_gain_log2)
    gain = _decades(flow.gain_log2)
    axes.bar(layers, weights, width=0.8, color=WEIGHTS, alpha=0.85, label="weights")
    same = np.sign(weights) == np.sign(derivative)
    base = np.where(same, weights, 0.0)
    axes.bar(
        layers, derivative, bottom=base, width=0.8, color=DERIVATIVE, alpha=0.85,
        label="activation's derivative",
    )  # fmt: skip
    axes.plot(
        layers, gain, color=INK, marker="o", markersize=_dot(layers), linewidth=1, label="gain"
    )
    finite = np.concatenate([np.nan_to_num(a) for a in (weights, derivative, gain)] + [[0.0]])
    reach = max(0.35, float(np.abs(finite).max()) * 1.25)
    axes.set_ylim(-reach if finite.min() < -0.02 else -0.3 * reach,
                  reach if finite.max() > 0.02 else 0.3 * reach)  # fmt: skip
    if reach < 1.0:  # then doublings are easier to read than decades
        step = log10(2.0) * (0.5 if reach < 0.4 else 1.0)
        axes.yaxis.set_major_locator(ticker.MultipleLocator(step))
        axes.yaxis.set_major_formatter(lambda value, _: f"{10.0**value:.2g}×")
    else:
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        axes.yaxis.set_major_formatter(
            lambda value, _: f"{10.0**value:g}×" if abs(value) < 4 else f"1e{value:+.0f}×"
        )
    axes.legend(frameon=False, fontsize=9, ncols=3, labelcolor=INK)


def _draw_flat(axes: Any, flow: Flow) -> None:
    layers = np.arange(len(flow.saturated))
    _title(axes, "Saturated and dead", "")
    axes.bar(layers, 100 * flow.saturated, width=0.8, color=DERIVATIVE, alpha=0.5,
             label="saturated elements")  # fmt: skip
    axes.plot(layers, 100 * flow.dead, color=INK, linewidth=1.5, label="dead units")
    axes.set_ylim(0, 135)  # room for the legend
    axes.set_yticks([0, 25, 50, 75, 100])
    axes.set_ylabel("%", color=INK)
    axes.set_xlabel("layer", color=INK)
    if max(flow.saturated.max(), flow.dead.max()) < 0.005:
        axes.text(0.5, 0.4, "hardly any", color=FAINT, ha="center", transform=axes.transAxes)
    axes.legend(frameon=False, fontsize=9, ncols=2, labelcolor=INK)


def _draw_activations(axes: Any, flow: Flow) -> None:
    layers = np.arange(len(flow.activation_rms))
    _title(axes, "Activations", "the forward pass runs this way →")
    with np.errstate(divide="ignore"):
        size = _decades(np.log2(flow.activation_rms))
    axes.plot(layers, size, color=GRADIENT, linewidth=2)
    low, high = axes.get_ylim()
    middle, half = (low + high) / 2, max((high - low) / 2, 0.6)
    axes.set_ylim(middle - half, middle + half)
    axes.set_ylabel("log10 rms", color=INK)
    axes.set_xlabel("layer", color=INK)


def _dot(layers: Sized) -> float:
    return 3.5 if len(layers) <= 100 else 0.0


def _decades(log2_values: FloatArray) -> FloatArray:
    """In log10, NaN (which draws nothing) where there is no number."""
    return np.where(np.isfinite(log2_values), log2_values, np.nan) / DECADE

"""The tables of a page, as HTML: all layers, all gradients, before and after a cure."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from html import escape
from math import inf, isnan, log2, nan

import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.arrays.measurement import Measurement, Statistics
from vegrad.flow.flow import Flow
from vegrad.flow.wording import power
from vegrad.reports.cure import DONE, ShownAttempt, is_shown, row
from vegrad.reports.module_text import MODULE_ENDS, ModuleRow, TimeRow, log10_of, module_places
from vegrad.reports.protocols import BesideFlow, Comparison, ShownTimeFlow, ShownTruncation
from vegrad.reports.shown_run import ShownSpikeStep
from vegrad.reports.text import chosen
from vegrad.reports.time_flow import mean_gain, steps_of
from vegrad.reports.truncation import percent, shown_windows
from vegrad.reports.values import expected_gain, factor, gain, number, size, surprises


def layers(diagnosis: BesideFlow, flow: Flow, names: Sequence[str] = ()) -> str:
    """Write a row for every layer, marked where there is something to say of it.

    `names` are the layers' modules, to stand beside their numbers.
    """
    expected, _ = expected_gain(diagnosis, flow)
    known, away = bool(np.isfinite(expected).any()), surprises(diagnosis, flow)
    notes, lost = _notes(diagnosis, away), _lost(diagnosis)
    remarks = bool(notes or lost)
    head = ["layer", "activation rms", "saturated", "dead", "gradient log10 ‖δ‖", "gain measured"]
    head += ["gain expected"] * known + ["weights", "derivative"]
    rows = []
    for layer in range(len(flow.delta_log2)):
        cells = [number(flow.activation_rms[layer])]
        cells += [f"{100 * part[layer]:.0f} %" for part in (flow.saturated, flow.dead)]
        cells.append(size(flow.delta_log2[layer]))
        if layer < len(flow.gain_log2):
            cells.append(gain(flow.gain_log2[layer]))
            cells += [factor(expected[layer])] * known
            cells += [gain(f[layer]) for f in (flow.weight_gain_log2, flow.activation_gain_log2)]
        else:
            cells += [""] * (3 + known)
        row = [f"<td>{cell}</td>" for cell in cells]
        if layer in away:
            row[4] = row[4].replace("<td>", '<td class="away">')
        if remarks:
            row.append(_remarks("; ".join([*notes.get(layer, []), *lost.get(layer, [])])))
        name = f"{layer}&ensp;{escape(names[layer])}" if names else str(layer)
        rows.append(_row(name, row, marked=layer in notes))
    return (
        '<p class="above">From the input (0) to the output. A gain compares δ of a layer with that '
        "of the layer above; it contains the weights of the layer above and the derivative of its "
        f"own.</p>{_table('All layers', head, rows, remarks=remarks)}"
    )


def gradients(chain: Sequence[str], measurement: Measurement, ends: int = sys.maxsize) -> str:
    """Write a row for every recorded gradient: those of the chain first, then the others.

    Of more than twice `ends` those at either end, and a few of those with remarks.
    """
    parts = dict(zip(measurement.names, measurement.buffers, strict=True))
    names = [*chain, *(name for name in parts if name not in chain)]
    remarkable = (place for place, name in enumerate(names) if parts[name].marks)
    rows = []
    for place in chosen(len(names), False, ends=ends, picked=remarkable):
        name = names[place]
        part = parts[name]
        cells = [str(place) if place < len(chain) else "", *_figures(part)]
        row = [*(f"<td>{cell}</td>" for cell in cells), _remarks(", ".join(part.marks))]
        rows.append(_row(escape(name), row, marked=bool(part.marks)))
    left = len(names) - len(rows)
    above = f'<p class="above">{left} gradients in the middle are not shown.</p>' if left else ""
    head = ["gradient", "layer", "elements", "log10 of the norm", "rms", "largest", "zeros"]
    return above + _table("All gradients", [*head, "inf or nan"], rows, remarks=True)


def _figures(part: Statistics) -> list[str]:
    sizes = [size(part.norm_log2), f"{part.rms:.3g}", f"{part.largest:.3g}"]
    return [str(part.count), *sizes, str(part.zeros), str(part.infs + part.nans)]


def comparison(shown: Comparison) -> str:
    """Write what two trainings end with, before and after a cure."""
    runs = (shown.before, shown.after)
    if shown.loss is not None and shown.accuracy is not None:
        figures = [("loss", shown.loss, ""), ("accuracy", _percent(shown.accuracy), " %")]
    else:
        accuracy = _percent(_last(run.validation_accuracy) for run in runs)
        figures = [
            ("mean loss of the last epoch", [_last(run.epoch_loss) for run in runs], ""),
            ("validation loss", [_last(run.validation_loss) for run in runs], ""),
            ("validation accuracy", accuracy, " %"),
        ]
    pairs = [
        (words, [f"{value:.4g}{unit}" for value in values])
        for words, values, unit in figures
        if not all(map(isnan, values))
    ]
    if shown.diagnoses is not None:
        flows = [diagnosis.layer_flow for diagnosis in shown.diagnoses]
        left = ["–" if flow is None else power(flow.chain_log10) for flow in flows]
        if any(flow is not None for flow in flows):
            pairs.append(("gradient, first layer over last, at the start", left))
    rows = [_row(words, [f"<td>{cell}</td>" for cell in cells]) for words, cells in pairs]
    return _table("Before and after", ["at the end", "before", "after"], rows, css=" brief")


def pairs(label: str, head: Sequence[str], rows: Iterable[tuple[str, str, str]]) -> str:
    """Write a row for each name and the values that two have of it."""
    body = [_row(escape(name), [f"<td>{escape(v)}</td>" for v in two]) for name, *two in rows]
    return _table(escape(label), map(escape, head), body, css=" brief names")


def attempts(tried: Sequence[ShownAttempt]) -> str:
    """Write a row for each change that was made and judged; nothing if there is none."""
    rows = []
    for name, *figures, result in (row(one) for one in tried if is_shown(one)):
        cells = [*(f"<td>{cell}</td>" for cell in figures), _remarks(result)]
        rows.append(_row(escape(name), cells, css="cured" if result == DONE else ""))
    head = ["tried", "gradient, first over last", "steps", "loss"]
    return _table("Attempts", head, rows, remarks=True, css=" names") if rows else ""


def modules(rows: Sequence[ModuleRow], ends: int = MODULE_ENDS) -> str:
    """Write a row for each module; of many those at either end, and those that are remarkable."""
    body = []
    shown = module_places(rows, ends)
    for place in shown:
        module = rows[place]
        rms = "" if isnan(module["activation_rms"]) else number(module["activation_rms"])
        cells = [rms, log10_of(module["delta_norm"]), log10_of(module["gradient_norm"])]
        cells = [f"<td>{cell}</td>" for cell in cells]
        cells.append(_remarks(module["note"].removeprefix("← ")))
        body.append(_row(escape(module["module"]), cells, marked=bool(module["note"])))
    left = len(rows) - len(body)
    above = f'<p class="above">{left} modules in the middle are not shown.</p>' if left else ""
    head = ["module", "activation rms", "log10 ‖δ‖", "log10 of the gradient"]
    return above + _table("Modules", head, body, remarks=True, css=" names")


def window(steps: Sequence[tuple[ShownSpikeStep, float]], spike: int) -> str:
    """Write a row for each step around a spike, which is marked, with its gradients' norm."""
    batches = any(one.batch is not None for one, _ in steps)
    updates = not all(isnan(one.update) for one, _ in steps)
    norms = not all(isnan(norm) for _, norm in steps)
    body = []
    for one, norm in steps:
        cells = [escape(_short(str(one.batch)))] * batches
        cells += [f"{value:.4g}" for value in (one.loss, *[norm] * norms)]
        cells += ["" if isnan(one.update) else f"{one.update:.2g}"] * updates
        cells = [f"<td>{cell}</td>" for cell in cells]
        body.append(_row(str(one.step), cells, marked=one.step == spike))
    head = ["step", *["batch"] * batches, "loss", *["gradient norm"] * norms]
    head += ["update / weight"] * updates
    return _table("Around the spike", head, body, css=" brief")


def _short(words: str, letters: int = 24) -> str:
    return words if len(words) <= letters else f"{words[: letters - 1]}…"


def through_time(rows: Sequence[TimeRow]) -> str:
    """Write a row for each recurrent weight; nothing if there are none."""
    body = []
    for one in rows:
        gains = [gain(log2(g) if g > 0 else -inf) for g in (one["gain"], one["fresh_gain"])]
        reach = f"{one['reach']} of {one['steps']} steps"
        cells = [gains[0], reach, gains[1], f"{one['fresh_reach']} steps"]
        body.append(_row(escape(one["parameter"]), [f"<td>{cell}</td>" for cell in cells]))
    head = ["through time", "a step back", "reaches the last", "weights drawn anew", "would reach"]
    return _table("Through time", head, body, css=" names") if body else ""


def windows(truncation: ShownTruncation) -> str:
    """Write a row for each window that was measured."""
    errors, body = truncation.errors, []
    for place in shown_windows(truncation):
        window, error, expected = errors.window[place], errors.error[place], errors.expected[place]
        cells = [percent(error), "" if isnan(expected) else percent(expected)]
        cells += [f"{errors.cosine[place]:.4f}", DONE if error <= truncation.tolerance else ""]
        body.append(_row(f"{window} of {truncation.total}", [f"<td>{cell}</td>" for cell in cells]))
    head = [f"{truncation.noun} gone back", "loses", "by formula", "cosine"]
    head.append(f"within {percent(truncation.tolerance)}")
    return _table("Windows", head, body, css=" brief")


def memory(flow: ShownTimeFlow) -> str:
    """Write a row for each recurrent layer: gain of a step, its parts, reach and memory."""
    gated = bool(np.isfinite(flow.time_scales).any())
    head = ["layer", "gain a step", *["carried", "by U"] * gated, "reach"]
    head += ["memory, median", "memory, longest"] * gated
    body = []
    for layer, name in enumerate(map(str, range(len(flow.gain_log2)))):
        cells = [mean_gain(flow.passed_log2[layer])]
        cells += [mean_gain(part[layer]) for part in (flow.carry_log2, flow.matrix_log2)] * gated
        cells.append(steps_of(flow.reach[layer]))
        if gated:
            scales = flow.time_scales[layer]
            cells += [steps_of(float(np.median(scales))), steps_of(float(np.max(scales)))]
        body.append(_row(name, [f"<td>{cell}</td>" for cell in cells]))
    return _table("Layers", head, body, css=" brief")


def _percent(shares: Iterable[float]) -> list[float]:
    return [100 * share for share in shares]


def _last(values: FloatArray) -> float:
    return float(values[-1]) if len(values) else nan


# What the tables share -------------------------------------------------------------------------


def _table(
    label: str, head: Iterable[str], rows: Iterable[str], *, remarks: bool = False, css: str = ""
) -> str:
    """Write a table that scrolls in its own frame; the last column may be one of remarks."""
    heads = "".join(f'<th scope="col">{words}</th>' for words in head)
    heads += '<th scope="col" class="words">remarks</th>' if remarks else ""
    return (
        f'<div class="scroll{css}" role="region" aria-label="{label}" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _row(head: str, cells: Iterable[str], *, marked: bool = False, css: str = "") -> str:
    css = "marked" if marked else css
    css = f' class="{css}"' if css else ""
    return f'<tr{css}><th scope="row">{head}</th>{"".join(cells)}</tr>'


def _remarks(words: str) -> str:
    return f'<td class="words">{escape(words)}</td>'


def _notes(diagnosis: BesideFlow, away: dict[int, str]) -> dict[int, list[str]]:
    """Return what findings and theory say of single layers."""
    notes: dict[int, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.kind in ("dead", "saturated", "nonfinite") or len(finding.layers) == 1:
            for layer in finding.layers:
                notes.setdefault(layer, []).append(finding.kind)
    for layer, words in away.items():
        notes.setdefault(layer, []).append(words)
    return notes


def _lost(diagnosis: BesideFlow) -> dict[int, list[str]]:
    """Return the layers whose gradient the dtype has lost, and what it stores instead."""
    dtype = diagnosis.config.get("dtype", "")
    lost: dict[int, list[str]] = {}
    for places, value in ((diagnosis.underflowed, "0"), (diagnosis.overflowed, "inf")):
        for layer in places:
            lost.setdefault(layer, []).append(f"stored as {value} in {dtype}")
    return lost

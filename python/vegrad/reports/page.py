"""A diagnosis as one HTML page that asks no network for anything and runs no script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from math import isnan, log10, nan
from os import PathLike
from typing import Any

import numpy as np

from vegrad import _core
from vegrad.arrays import files
from vegrad.diagnosis.history import History
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power, times
from vegrad.reports import charts, training_charts
from vegrad.reports.style import STYLE
from vegrad.reports.text import describe

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# What a verdict and a severity look like: the class of their colours, and a picture.
LOOKS = {
    "healthy": ("good", "M5 13l5 5L19 7"),
    "warning": ("warning", "M12 6v7M12 17.5h0"),
    "critical": ("alarm", "M7 7l10 10M17 7L7 17"),
}
# How the numbers that a finding rests on are called, where their own name does not do.
EVIDENCE = {
    "gain_low": "gain, 95 % from", "gain_high": "gain, 95 % to", "decades": "powers of ten in all",
    "std": "standard deviation", "underflowed_layers": "layers stored as 0",
    "overflowed_layers": "layers stored as inf", "usual_gain": "gain of other layers",
    "activation_gain": "gain of the derivative", "weight_gain": "gain of the weights",
    "alpha": "α", "climbs": "steps that climb", "fall": "loss lost", "share": "epochs that rise",
    "wanted": "learning rate advised", "expected_gain": "gain expected",
    "first_ratio_log10": "log10 of gradient over weight, first",
    "last_ratio_log10": "log10 of gradient over weight, last",
}  # fmt: skip
POWER = re.compile(r"\de[-+]\d")  # a hyphen at which a line would be broken
PERCENT = {"fraction", "climbs", "fall", "share"}


def page(diagnosis: Any, history: Any = None, proof: Any = None) -> str:
    """The page of `diagnosis`; see `Diagnosis.to_html`."""
    if history is not None:
        history = _history("history", history)
    flow, measurement = diagnosis.flow, getattr(diagnosis, "measurement", None)
    parts = [_verdict(diagnosis), "<main>", _findings(diagnosis)]
    if flow is not None:
        parts.append(_flow(diagnosis, flow))
    if measurement is not None:
        parts.append(_measurement(diagnosis, measurement))
    if history is not None:
        parts.append(_descent(diagnosis, history))
    if proof is not None:
        parts.append(_proof(proof))
    parts += ["</main>", _footer(), _data(diagnosis)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="vegrad {escape(_core.__version__)}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>vegrad: {escape(diagnosis.verdict)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{chr(10).join(part for part in parts if part)}\n</body>\n</html>\n"
    )


def write(html: str, path: str | PathLike[str]) -> None:
    """Write a page, whole or not at all. OSError names the path."""
    try:
        files.save_bytes(path, html.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# What is wrong ---------------------------------------------------------------------------------


def _verdict(diagnosis: Any) -> str:
    """The summary without its first word, which stands beside the icon; the rest in small."""
    verdict = diagnosis.verdict
    sentence = diagnosis.summary.removeprefix(f"{verdict}: ")
    first, _, rest = sentence.partition("; ")
    severity = diagnosis.findings[0].severity if diagnosis.findings else "healthy"
    lines = [f"<h1>{_sentence(first)}</h1>"]
    if rest:
        lines.append(f'<p class="more">{_sentence(rest)}</p>')
    return (
        f'<header class="verdict {_look(severity)[0]}"><div>{_word(severity, verdict)}'
        f'{"".join(lines)}<p class="network">{escape(_network(diagnosis))}</p></div></header>'
    )


def _network(diagnosis: Any) -> str:
    """The network in one line, as far as it is known."""
    config, measurement = diagnosis.config, getattr(diagnosis, "measurement", None)
    if "sizes" in config:
        return describe(diagnosis).replace("\n", ", ")
    if measurement is not None:
        return (
            f"{len(measurement.names)} gradients, {measurement.total.count} elements, "
            f"joint norm {measurement.total.norm:.4g}"
        )
    return ", ".join(f"{value} {name}" for name, value in config.items())


def _findings(diagnosis: Any) -> str:
    if not diagnosis.findings:
        return "<h2>Findings</h2><p>There are none: no rule reached its limit.</p>"
    title = "Finding" if len(diagnosis.findings) == 1 else "Findings, causes before effects"
    return f"<h2>{title}</h2>{_cards(diagnosis.findings)}"


def _cards(findings: Iterable[Finding]) -> str:
    return f'<ol class="findings">{"".join(map(_card, findings))}</ol>'


def _card(finding: Finding) -> str:
    layers = f'<span class="soft">{named(finding.layers)}</span>' if finding.layers else ""
    blame = {"weights": "the weights", "activation": "the activation's derivative"}
    told = {name: value for name, value in finding.evidence.items() if not _void(name, value)}
    numbers = [(_evidence(name), _figure(name, value)) for name, value in told.items()]
    if finding.blame is not None:
        numbers.insert(0, ("to blame", blame.get(finding.blame, finding.blame)))
    listed = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in numbers)
    return (
        f'<li class="card {_look(finding.severity)[0]}"><header><h3>'
        f"{_word(finding.severity, finding.kind)}</h3>"
        f"<span>{escape(finding.severity)}</span>{layers}</header>"
        f'<p class="message">{_sentence(finding.message)}.</p>'
        f'<p class="advice"><b>What to do</b>{_sentence(finding.advice)}</p>'
        + (f'<dl class="numbers">{listed}</dl>' if listed else "")
        + "</li>"
    )


def _void(name: str, value: Any) -> bool:
    return name.endswith("flowed_layers") and not value


def _evidence(name: str) -> str:
    return EVIDENCE.get(name, name.replace("_", " "))


def _figure(name: str, value: Any) -> str:
    """One of a finding's numbers, as its name wants it."""
    if not isinstance(value, int | float | np.number):
        return str(value)
    if "gain" in name or name.endswith("growth"):
        return power(log10(value) if value > 0 else -np.inf if value == 0 else nan, 1) + "×"
    if name in PERCENT:
        return f"{100 * value:.3g} %"
    return f"{value:.4g}"


# The flow --------------------------------------------------------------------------------------


def _flow(diagnosis: Any, flow: Flow) -> str:
    return (
        f"<h2>The flow</h2>{charts.gradient(diagnosis, flow)}"
        f"{charts.gains(diagnosis, flow, _theory(diagnosis, flow))}"
        f"<h2>All layers</h2>{_table(diagnosis, flow)}"
        f'<h2>Saturated, dead, and the activations</h2><div class="row">{charts.flat(flow)}'
        f"{charts.activations(diagnosis, flow)}</div>"
    )


def _theory(diagnosis: Any, flow: Flow) -> str:
    """Whether the measured gains are what theory expects."""
    expected, _ = charts.expected_gain(diagnosis, flow)
    if not np.isfinite(expected).any():
        return ""
    away = charts.surprises(diagnosis, flow)
    count = len(flow.gain_log2)
    if not away:
        delta, spread = charts.expected_delta(diagnosis, flow)
        first = flow.delta_log2[0] / DECADE
        if abs(first - delta[0]) > charts.SURPRISE * spread[0]:
            return (
                f"Each of the {count} gains lies where theory expects those of freshly drawn "
                f"weights, but together they leave {power(first, 1)} of δ at the first layer, "
                f"where {power(float(delta[0]), 1)} is expected."
            )
        return (
            f"{'The one gain lies' if count == 1 else f'All {count} gains lie'} where theory "
            "expects those of freshly drawn weights: what is seen here follows from the "
            "configuration, not from single layers."
        )
    worst = sorted(away, key=lambda n: -abs(flow.gain_log2[n] / DECADE - expected[n]))[:3]
    told = "; ".join(f"layer {n}: {away[n]}" for n in worst)
    return (
        f"<strong>{len(away)} of {count} gains</strong> lie{'s' * (len(away) == 1)} farther from "
        f"what theory expects of freshly drawn weights than chance explains, {escape(told)}."
    )


def _table(diagnosis: Any, flow: Flow) -> str:
    expected, _ = charts.expected_gain(diagnosis, flow)
    known, notes = bool(np.isfinite(expected).any()), _notes(diagnosis, flow)
    away = charts.surprises(diagnosis, flow)
    told = {*away, *(layer for layer, words in notes.items() if not words[0].startswith("stored"))}
    head = ["layer", "activation rms", "saturated", "dead", "gradient log10 ‖δ‖", "gain measured"]
    head += ["gain expected"] * known + ["weights", "derivative"]
    rows = []
    for layer in range(len(flow.delta_log2)):
        cells = [f"{flow.activation_rms[layer]:#.3g}".rstrip(".")]
        cells += [f"{100 * part[layer]:.0f} %" for part in (flow.saturated, flow.dead)]
        size = float(flow.delta_log2[layer])
        cells.append("zero" if size == -np.inf else f"{size / DECADE:.2f}")
        if layer < len(flow.gain_log2):
            cells.append(_times(flow.gain_log2[layer]))
            cells += [_times(expected[layer] * DECADE)] * known
            cells += [_times(f[layer]) for f in (flow.weight_gain_log2, flow.activation_gain_log2)]
        else:
            cells += [""] * (3 + known)
        row = [f"<td>{cell}</td>" for cell in cells]
        if layer in away:
            row[4] = row[4].replace("<td>", '<td class="away">')
        if notes:
            row.append(f'<td class="words">{escape("; ".join(notes.get(layer, [])))}</td>')
        marked = ' class="marked"' if layer in told else ""
        rows.append(f'<tr{marked}><th scope="row">{layer}</th>{"".join(row)}</tr>')
    heads = "".join(f'<th scope="col">{name}</th>' for name in head)
    heads += '<th scope="col" class="words">remarks</th>' if notes else ""
    return (
        '<p class="above">From the input (0) to the output. A gain compares δ of a layer with that '
        "of the layer above; it contains the weights of the layer above and the derivative of its "
        'own.</p><div class="scroll" role="region" aria-label="All layers" tabindex="0"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _notes(diagnosis: Any, flow: Flow) -> dict[int, list[str]]:
    """What there is to say of single layers."""
    notes: dict[int, list[str]] = {}
    for finding in diagnosis.findings:
        if finding.kind in ("dead", "saturated", "nonfinite") or len(finding.layers) == 1:
            for layer in finding.layers:
                notes.setdefault(layer, []).append(finding.kind)
    for layer, words in charts.surprises(diagnosis, flow).items():
        notes.setdefault(layer, []).append(words)
    dtype = diagnosis.config.get("dtype", "")
    for layers, value in ((diagnosis.underflowed, "0"), (diagnosis.overflowed, "inf")):
        for layer in layers:
            notes.setdefault(layer, []).append(f"stored as {value} in {dtype}")
    return notes


def _measurement(diagnosis: Any, measurement: Any) -> str:
    """The gradients of a diagnosis made from them alone: the chain's, then the others."""
    chain = [str(name) for name in diagnosis.config.get("chain", measurement.names)]
    parts = dict(zip(map(str, measurement.names), measurement.buffers, strict=True))
    sizes = np.array([parts[name].norm_log2 for name in chain], np.float64)
    rows = []
    for place, name in enumerate([*chain, *(name for name in parts if name not in chain)]):
        part = parts[name]
        size = "zero" if part.norm_log2 == -np.inf else f"{part.norm_log2 / DECADE:.2f}"
        cells = [str(place) if place < len(chain) else "", str(part.count), size]
        cells += [f"{part.rms:.3g}", f"{part.largest:.3g}", str(part.zeros)]
        cells.append(str(part.infs + part.nans))
        row = "".join(f"<td>{cell}</td>" for cell in cells)
        marks, marked = ", ".join(part.marks), ' class="marked"' if part.marks else ""
        rows.append(
            f'<tr{marked}><th scope="row">{escape(name)}</th>{row}'
            f'<td class="words">{escape(marks)}</td></tr>'
        )
    head = ("gradient", "layer", "elements", "log10 of the norm", "rms", "largest", "zeros",
            "inf or nan")  # fmt: skip
    heads = "".join(f'<th scope="col">{words}</th>' for words in head)
    return (
        f"<h2>The gradients</h2>{charts.sizes(chain, sizes)}"
        '<div class="scroll" role="region" aria-label="All gradients" tabindex="0"><table>'
        f'<thead><tr>{heads}<th scope="col" class="words">remarks</th></tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>"
    )


# Training --------------------------------------------------------------------------------------


def _descent(diagnosis: Any, history: History) -> str:
    found = [finding for finding in history.findings if finding not in diagnosis.findings]
    epochs = f"{history.epochs} epoch{'s' * (history.epochs != 1)}, {history.steps} steps."
    said = "" if history.findings else "<p>Its steps neither overshoot nor stall.</p>"
    said += _cards(found) if found else ""
    drawn = training_charts.loss([("", "gradient", history)]) + training_charts.hops(history)
    drawn += training_charts.accuracy([("", "gradient", history)])
    return f'<h2>The descent</h2><p>{epochs}</p>{said}<div class="row spaced">{drawn}</div>'


def _proof(proof: Any) -> str:
    def entry(name: str) -> Any:
        if isinstance(proof, Mapping) and name in proof:
            return proof[name]
        return getattr(proof, name, None)

    before, after = (_history(f'proof["{name}"]', entry(name)) for name in ("before", "after"))
    runs = [("before", "derivative", before), ("after", "gradient", after)]
    pairs = {
        "mean loss of the last epoch": ([_last(run.epoch_loss) for run in (before, after)], ""),
        "validation loss": ([_last(run.validation_loss) for run in (before, after)], ""),
        "validation accuracy": (
            [100 * _last(run.validation_accuracy) for run in (before, after)],
            " %",
        ),
    }
    text = entry("text")
    if entry("loss") is not None:  # of vegrad.cure, which has looked itself
        pairs = {"loss": (entry("loss"), "")}
        pairs["accuracy"] = ([100 * share for share in entry("accuracy")], " %")
        text = f"{entry('steps')} steps from seed {entry('seed')}, on the same rows."
    rows = [
        _row(words, [f"{value:.4g}{unit}" for value in values])
        for words, (values, unit) in pairs.items()
        if not all(map(isnan, values))
    ]
    if entry("diagnoses") is not None:
        flows = [diagnosis.flow for diagnosis in entry("diagnoses")]
        left = ["–" if flow is None else power(flow.chain_log10) for flow in flows]
        rows.append(_row("gradient, first layer over last, at the start", left))
    table = (
        '<div class="scroll brief" role="region" aria-label="Before and after" tabindex="0">'
        '<table><thead><tr><th scope="col">at the end</th><th scope="col">before</th>'
        f'<th scope="col">after</th></tr></thead><tbody>{"".join(rows)}</tbody></table></div>'
    )
    drawn = training_charts.loss(runs, "proof-loss")
    drawn += training_charts.accuracy(runs, "proof-accuracy")
    said = f"<p>{escape(str(text))}</p>" if text else ""
    return f'<h2>The proof</h2>{said}{table}<div class="row spaced">{drawn}</div>'


def _row(head: str, cells: Iterable[str]) -> str:
    return f'<tr><th scope="row">{head}</th>{"".join(f"<td>{cell}</td>" for cell in cells)}</tr>'


def _history(name: str, value: Any) -> History:
    if isinstance(value, Mapping):
        return History.from_dict(value)
    if not isinstance(value, History):
        raise TypeError(f"{name} must be a vegrad.History, not {type(value).__name__}")
    return value


def _last(values: Any) -> float:
    return float(values[-1]) if len(values) else nan


# What is around it -----------------------------------------------------------------------------


def _footer() -> str:
    now = datetime.now(UTC)
    return (
        f"<footer><p>vegrad {escape(_core.__version__)}, "
        f'<time datetime="{now:%Y-%m-%dT%H:%MZ}">{now:%Y-%m-%d %H:%M} UTC</time>. A program finds '
        "these numbers in the element <code>vegrad-diagnosis</code> of this page, as JSON.</p>"
        "</footer>"
    )


def _data(diagnosis: Any) -> str:
    """`to_dict()`; without <, > and &, so that nothing in it can end the element."""
    content = diagnosis.to_dict() | {"version": _core.__version__}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=str)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="vegrad-diagnosis">{text}</script>'


def _look(severity: str) -> tuple[str, str]:
    return LOOKS.get(severity, LOOKS["warning"])


def _word(severity: str, word: str) -> str:
    """A word beside its icon."""
    return (
        '<span class="word"><svg viewBox="0 0 24 24" aria-hidden="true">'
        '<circle cx="12" cy="12" r="11" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<path d="{_look(severity)[1]}" fill="none" stroke="currentColor" stroke-width="2.6" '
        f'stroke-linecap="round"/></svg>{escape(word.capitalize())}</span>'
    )


def _sentence(words: str) -> str:
    """As HTML: a capital letter, unless a name such as x[3, 1] begins it; 1e-31 in one line."""
    first, _, _ = words.partition(" ")
    if first.isalpha():
        words = words[0].upper() + words[1:]
    parts = (
        f'<span class="whole">{escape(part)}</span>' if POWER.search(part) else escape(part)
        for part in words.split(" ")
    )
    return " ".join(parts)


def _times(log2_gain: float) -> str:
    return "–" if isnan(log2_gain) else times(float(log2_gain))

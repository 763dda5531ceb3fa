"""A diagnosis as one HTML page that asks no network for anything and runs no script."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from html import escape
from math import inf, log10, nan
from os import PathLike

import numpy as np

from vegrad import _core
from vegrad.arrays import files
from vegrad.arrays.measurement import Measurement
from vegrad.flow.descent import Descent
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power
from vegrad.reports import charts, descent, tables, training_charts
from vegrad.reports.protocols import Comparison, ShownDiagnosis, ShownHistory
from vegrad.reports.style import STYLE
from vegrad.reports.text import describe
from vegrad.reports.training_charts import Run
from vegrad.reports.values import SURPRISE, expected_delta, expected_gain, surprises

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
# The looks of a severity: the class of its colours, and the path of its icon.
LOOKS = {
    "healthy": ("good", "M5 13l5 5L19 7"),
    "warning": ("warning", "M12 6v7M12 17.5h0"),
    "critical": ("alarm", "M7 7l10 10M17 7L7 17"),
}
# The words for a finding's numbers, where their own names would not do.
EVIDENCE = {
    "gain_low": "gain, 95 % from",
    "gain_high": "gain, 95 % to",
    "decades": "powers of ten in all",
    "std": "standard deviation",
    "underflowed_layers": "layers stored as 0",
    "overflowed_layers": "layers stored as inf",
    "usual_gain": "gain of other layers",
    "activation_gain": "gain of the derivative",
    "weight_gain": "gain of the weights",
    "alpha": "α",
    "climbs": "steps that climb",
    "fall": "loss lost",
    "share": "epochs that rise",
    "wanted": "learning rate advised",
    "expected_gain": "gain expected",
    "first_ratio_log10": "log10 of gradient over weight, first",
    "last_ratio_log10": "log10 of gradient over weight, last",
}
POWER = re.compile(r"\de[-+]\d")  # a hyphen at which a line would be broken
PERCENT = {"fraction", "climbs", "fall", "share"}


def page(
    diagnosis: ShownDiagnosis,
    history: ShownHistory | None = None,
    proof: Comparison | None = None,
    descents: Mapping[str, Descent] | None = None,
) -> str:
    """Write the page of `diagnosis`; see `Diagnosis.to_html`."""
    flow, measurement = diagnosis.flow, diagnosis.measurement
    parts = [_verdict(diagnosis), "<main>", _findings(diagnosis)]
    if flow is not None:
        parts.append(_flow(diagnosis, flow))
    if measurement is not None:
        parts.append(_measurement(diagnosis, measurement))
    if history is not None:
        parts.append(_descent(diagnosis, history))
    if proof is not None:
        parts.append(_proof(proof))
    if descents:
        parts.append(_stories(descents))
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
    """Write a page, whole or not at all.

    Raises:
        OSError: the file cannot be written; the error names the path.
    """
    try:
        files.save_bytes(path, html.encode())
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


# What is wrong ---------------------------------------------------------------------------------


def _verdict(diagnosis: ShownDiagnosis) -> str:
    """Show the verdict beside its icon, the sentence's first clause large and the rest small."""
    first, _, rest = diagnosis.sentence.partition("; ")
    severity = diagnosis.findings[0].severity if diagnosis.findings else "healthy"
    network = describe(diagnosis).replace("\n", ", ")
    more = f'<p class="more">{_sentence(rest)}</p>' if rest else ""
    return (
        f'<header class="verdict {_look(severity)[0]}"><div>{_word(severity, diagnosis.verdict)}'
        f'<h1>{_sentence(first)}</h1>{more}<p class="network">{escape(network)}</p></div></header>'
    )


def _findings(diagnosis: ShownDiagnosis) -> str:
    left_out = f"<p>{_sentence(diagnosis.left_out)}.</p>" if diagnosis.left_out else ""
    if not diagnosis.findings:
        none = "There are none: no rule reached its limit." if not left_out else "There are none."
        return f"<h2>Findings</h2><p>{none}</p>{left_out}"
    title = "Finding" if len(diagnosis.findings) == 1 else "Findings, causes before effects"
    return f"<h2>{title}</h2>{_cards(diagnosis.findings)}{left_out}"


def _cards(findings: Iterable[Finding]) -> str:
    return f'<ol class="findings">{"".join(map(_card, findings))}</ol>'


def _card(finding: Finding) -> str:
    layers = f'<span class="soft">{named(finding.layers)}</span>' if finding.layers else ""
    blame = {"weights": "the weights", "activation": "the activation's derivative"}
    numbers = [
        (EVIDENCE.get(name, name.replace("_", " ")), _figure(name, value))
        for name, value in finding.evidence.items()
        if value or not name.endswith("flowed_layers")
    ]
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


def _figure(name: str, value: float) -> str:
    """Write one of a finding's numbers as its name asks for: a factor, a percentage or plain."""
    if "gain" in name or name.endswith("growth"):
        return power(log10(value) if value > 0 else -inf if value == 0 else nan, 1) + "×"
    if name in PERCENT:
        return f"{100 * value:.3g} %"
    return f"{value:.4g}"


# The flow --------------------------------------------------------------------------------------


def _flow(diagnosis: ShownDiagnosis, flow: Flow) -> str:
    return (
        f"<h2>The flow</h2>{charts.gradient(diagnosis, flow)}"
        f"{charts.gains(diagnosis, flow, _theory(diagnosis, flow))}"
        f"<h2>All layers</h2>{tables.layers(diagnosis, flow)}"
        f'<h2>Saturated, dead, and the activations</h2><div class="row">{charts.flat(flow)}'
        f"{charts.activations(diagnosis, flow)}</div>"
    )


def _theory(diagnosis: ShownDiagnosis, flow: Flow) -> str:
    """Say whether the measured gains are those that theory expects."""
    expected, _ = expected_gain(diagnosis, flow)
    if not np.isfinite(expected).any():
        return ""
    away, count = surprises(diagnosis, flow), len(flow.gain_log2)
    if away:
        worst = sorted(away, key=lambda n: -abs(flow.gain_log2[n] / DECADE - expected[n]))[:3]
        told = "; ".join(f"layer {n}: {away[n]}" for n in worst)
        return (
            f"<strong>{len(away)} of {count} gains</strong> lie{'s' * (len(away) == 1)} farther "
            "from what theory expects of freshly drawn weights than chance explains, "
            f"{escape(told)}."
        )
    delta, spread = expected_delta(diagnosis, flow)
    first = flow.delta_log2[0] / DECADE
    if abs(first - delta[0]) > SURPRISE * spread[0]:
        return (
            f"Each of the {count} gains lies where theory expects those of freshly drawn weights, "
            f"but together they leave {power(first, 1)} of δ at the first layer, where "
            f"{power(float(delta[0]), 1)} is expected."
        )
    return (
        f"{'The one gain lies' if count == 1 else f'All {count} gains lie'} where theory expects "
        "those of freshly drawn weights: what is seen here follows from the configuration, not "
        "from single layers."
    )


def _measurement(diagnosis: ShownDiagnosis, measurement: Measurement) -> str:
    """Show the gradients of a diagnosis that was made from them alone."""
    chain = diagnosis.config.get("chain", measurement.names)
    parts = dict(zip(measurement.names, measurement.buffers, strict=True))
    sizes = np.array([parts[name].norm_log2 for name in chain], np.float64)
    drawn = charts.sizes(chain, sizes)
    return f"<h2>The gradients</h2>{drawn}{tables.gradients(chain, measurement)}"


# Training --------------------------------------------------------------------------------------


def _descent(diagnosis: ShownDiagnosis, history: ShownHistory) -> str:
    found = [finding for finding in history.findings if finding not in diagnosis.findings]
    epochs = f"{history.epochs} epoch{'s' * (history.epochs != 1)}, {history.steps} steps."
    said = "" if history.findings else "<p>Its steps neither overshoot nor stall.</p>"
    said += _cards(found) if found else ""
    runs = [Run("", "gradient", history)]
    drawn = training_charts.loss(runs) + training_charts.hops(descent.of_history(history))
    drawn += training_charts.accuracy(runs)
    return f'<h2>The descent</h2><p>{epochs}</p>{said}<div class="row spaced">{drawn}</div>'


def _stories(descents: Mapping[str, Descent]) -> str:
    """Show the steps of trainings as hops over the loss, with what a step can be."""
    drawn = "".join(
        training_charts.hops(one, title, f"story-{place}")
        for place, (title, one) in enumerate(descents.items())
    )
    return f'<h2>How steps go over the loss</h2><div class="row three">{drawn}</div>'


def _proof(proof: Comparison) -> str:
    runs = [Run("before", "derivative", proof.before), Run("after", "gradient", proof.after)]
    drawn = training_charts.loss(runs, "proof-loss")
    drawn += training_charts.accuracy(runs, "proof-accuracy")
    said = f"<p>{escape(proof.text)}</p>" if proof.text else ""
    return (
        f'<h2>The proof</h2>{said}{tables.comparison(proof)}<div class="row spaced">{drawn}</div>'
    )


# What is around it -----------------------------------------------------------------------------


def _footer() -> str:
    now = datetime.now(UTC)
    return (
        f"<footer><p>vegrad {escape(_core.__version__)}, "
        f'<time datetime="{now:%Y-%m-%dT%H:%MZ}">{now:%Y-%m-%d %H:%M} UTC</time>. A program finds '
        "these numbers in the element <code>vegrad-diagnosis</code> of this page, as JSON.</p>"
        "</footer>"
    )


def _data(diagnosis: ShownDiagnosis) -> str:
    """Embed `to_dict()` as JSON without <, > and &, so that nothing in it can end the element."""
    content = diagnosis.to_dict() | {"version": _core.__version__}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=str)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="vegrad-diagnosis">{text}</script>'


def _look(severity: str) -> tuple[str, str]:
    return LOOKS.get(severity, LOOKS["warning"])


def _word(severity: str, word: str) -> str:
    """Write a word beside the icon of a severity."""
    return (
        '<span class="word"><svg viewBox="0 0 24 24" aria-hidden="true">'
        '<circle cx="12" cy="12" r="11" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<path d="{_look(severity)[1]}" fill="none" stroke="currentColor" stroke-width="2.6" '
        f'stroke-linecap="round"/></svg>{escape(word.capitalize())}</span>'
    )


def _sentence(words: str) -> str:
    """Write a sentence as HTML.

    It gets a capital letter, unless a name such as x[3, 1] begins it. Numbers such as 1e-31 are
    kept in one line.
    """
    first, _, _ = words.partition(" ")
    if first.isalpha():
        words = words[0].upper() + words[1:]
    parts = (
        f'<span class="whole">{escape(part)}</span>' if POWER.search(part) else escape(part)
        for part in words.split(" ")
    )
    return " ".join(parts)

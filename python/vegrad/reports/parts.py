"""The parts of pages and of a notebook's outputs, as HTML."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from math import inf, log10, nan

import numpy as np

from vegrad.arrays.measurement import Measurement
from vegrad.arrays.shown import escape
from vegrad.flow.descent import Descent
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.wording import DECADE, named, power
from vegrad.reports import charts, recurrent_charts, tables, training_charts
from vegrad.reports.descent import of_history
from vegrad.reports.protocols import (
    BesideFlow,
    Comparison,
    ShownDiagnosis,
    ShownHistory,
    ShownTimeFlow,
)
from vegrad.reports.text import describe
from vegrad.reports.time_flow import headline
from vegrad.reports.training_charts import Run
from vegrad.reports.values import SURPRISE, expected_delta, expected_gain, surprises

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


# What is wrong ---------------------------------------------------------------------------------


def verdict(diagnosis: ShownDiagnosis, heading: str = "h1", network: str = "") -> str:
    """Show the verdict beside its icon, the sentence's first clause large and the rest small.

    Below it stands `network`, or the description of what was looked at.
    """
    first, _, rest = diagnosis.sentence.partition("; ")
    severity = diagnosis.findings[0].severity if diagnosis.findings else "healthy"
    network = network or describe(diagnosis).replace("\n", ", ")
    return headed(severity, diagnosis.verdict, first, network, more=rest, heading=heading)


def headed(
    severity: str, said: str, first: str, below: str, *, more: str = "", heading: str = "p"
) -> str:
    """Show a word beside the icon of a severity, a sentence in large letters, and what is below."""
    small = f'<p class="more">{sentence(more)}</p>' if more else ""
    return (
        f'<header class="verdict {_look(severity)[0]}"><div>{word(severity, said)}'
        f'<{heading} class="headline">{sentence(first)}</{heading}>{small}'
        f'<p class="network">{escape(below)}</p></div></header>'
    )


def findings(diagnosis: ShownDiagnosis) -> str:
    """Show all findings as cards, below a heading."""
    left_out = f"<p>{sentence(diagnosis.left_out)}.</p>" if diagnosis.left_out else ""
    if not diagnosis.findings:
        none = "There are none: no rule reached its limit." if not left_out else "There are none."
        return f"<h2>Findings</h2><p>{none}</p>{left_out}"
    title = "Finding" if len(diagnosis.findings) == 1 else "Findings, causes before effects"
    return f"<h2>{title}</h2>{cards(diagnosis.findings)}{left_out}"


def cards(shown: Iterable[Finding], told: Finding | None = None) -> str:
    """Show findings as cards: message (unless it was `told`), advice and numbers."""
    listed = "".join(_card(finding, silent=finding is told) for finding in shown)
    return f'<ol class="findings">{listed}</ol>'


def _card(finding: Finding, *, silent: bool = False) -> str:
    message = "" if silent else f'<p class="message">{sentence(finding.message)}.</p>'
    layers = f'<span class="soft">{named(finding.layers)}</span>' if finding.layers else ""
    blame = {"weights": "the weights", "activation": "the activation's derivative"}
    numbers = [
        (_called(finding, name), _figure(name, value))
        for name, value in finding.evidence.items()
        if value or not name.endswith("flowed_layers")
    ]
    if finding.blame is not None:
        numbers.insert(0, ("to blame", blame.get(finding.blame, finding.blame)))
    listed = "".join(f"<div><dt>{escape(n)}</dt><dd>{escape(v)}</dd></div>" for n, v in numbers)
    return (
        f'<li class="card {_look(finding.severity)[0]}"><header><h3>'
        f"{word(finding.severity, finding.kind)}</h3>"
        f"<span>{escape(finding.severity)}</span>{layers}</header>"
        f'{message}<p class="advice"><b>What to do</b>{sentence(finding.advice)}</p>'
        + (f'<dl class="numbers">{listed}</dl>' if listed else "")
        + "</li>"
    )


def _called(finding: Finding, name: str) -> str:
    """Return the words for one of a finding's numbers."""
    if name == "share" and finding.kind != "oscillating":  # which is a share of epochs
        return name
    return EVIDENCE.get(name, name.replace("_", " "))


def _figure(name: str, value: float) -> str:
    """Write one of a finding's numbers as its name asks for: a factor, a percentage or plain."""
    if "gain" in name or name.endswith("growth"):
        return power(log10(value) if value > 0 else -inf if value == 0 else nan, 1) + "×"
    if name in PERCENT:
        return f"{100 * value:.3g} %"
    return f"{value:.4g}"


# The flow --------------------------------------------------------------------------------------


def flow(diagnosis: ShownDiagnosis, flow: Flow) -> str:
    """Show the flow: its charts, and the table of all layers."""
    return (
        f"<h2>The flow</h2>{charts.gradient(diagnosis, flow)}"
        f"{charts.gains(diagnosis, flow, theory(diagnosis, flow))}"
        f"<h2>All layers</h2>{tables.layers(diagnosis, flow)}"
        f'<h2>Saturated, dead, and the activations</h2><div class="row">{charts.flat(flow)}'
        f"{charts.activations(diagnosis, flow)}</div>"
    )


def through_time(flow: ShownTimeFlow) -> str:
    """Show the flow through time: its reach, its charts, and the table of layers."""
    return (
        f'<h2>The flow through time</h2><p class="above">{sentence(headline(flow))}.</p>'
        f"{recurrent_charts.through_time(flow)}{recurrent_charts.gains_in_time(flow)}"
        f"<h2>All layers</h2>{tables.memory(flow)}"
    )


def theory(diagnosis: BesideFlow, flow: Flow) -> str:
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


def measurement(
    diagnosis: ShownDiagnosis, measurement: Measurement, ends: int = sys.maxsize
) -> str:
    """Show measured gradients; the table has so many at either end."""
    chain = diagnosis.config.get("chain", measurement.names)
    listed = tables.gradients(chain, measurement, ends)
    return f"<h2>The gradients</h2>{sizes(chain, measurement)}{listed}"


def sizes(chain: Sequence[str], measurement: Measurement) -> str:
    """Draw the norms of recorded gradients; `chain` names those of weights, input first."""
    found = dict(zip(measurement.names, measurement.buffers, strict=True))
    return charts.sizes(chain, np.array([found[name].norm_log2 for name in chain], np.float64))


# Training --------------------------------------------------------------------------------------


def descent(history: ShownHistory, told: Sequence[Finding] = ()) -> str:
    """Show a training: its length, its findings but those that were told, and its charts."""
    found = [finding for finding in history.findings if finding not in told]
    epochs = f"{history.epochs} epoch{'s' * (history.epochs != 1)}, {history.steps} steps."
    said = "" if history.findings else "<p>Its steps neither overshoot nor stall.</p>"
    said += cards(found) if found else ""
    runs = [Run("", "gradient", history)]
    drawn = training_charts.loss(runs) + training_charts.hops(of_history(history))
    drawn += training_charts.accuracy(runs)
    return f'<h2>The descent</h2><p>{epochs}</p>{said}<div class="row spaced">{drawn}</div>'


def stories(descents: Mapping[str, Descent]) -> str:
    """Show the steps of trainings, by their titles, as hops over the loss."""
    drawn = "".join(
        training_charts.hops(one, title, f"story-{place}")
        for place, (title, one) in enumerate(descents.items())
    )
    return f'<h2>How steps go over the loss</h2><div class="row three">{drawn}</div>'


def proof(shown: Comparison) -> str:
    """Show two trainings, without and with a cure, side by side."""
    runs = [Run("before", "derivative", shown.before), Run("after", "gradient", shown.after)]
    drawn = training_charts.loss(runs, "proof-loss")
    drawn += training_charts.accuracy(runs, "proof-accuracy")
    said = f"<p>{escape(shown.text)}</p>" if shown.text else ""
    return (
        f'<h2>The proof</h2>{said}{tables.comparison(shown)}<div class="row spaced">{drawn}</div>'
    )


# What they share -------------------------------------------------------------------------------


def _look(severity: str) -> tuple[str, str]:
    return LOOKS.get(severity, LOOKS["warning"])


def word(severity: str, said: str) -> str:
    """Write a word beside the icon of a severity."""
    return (
        '<span class="word"><svg viewBox="0 0 24 24" aria-hidden="true">'
        '<circle cx="12" cy="12" r="11" fill="none" stroke="currentColor" stroke-width="2"/>'
        f'<path d="{_look(severity)[1]}" fill="none" stroke="currentColor" stroke-width="2.6" '
        f'stroke-linecap="round"/></svg>{escape(said.capitalize())}</span>'
    )


def sentence(words: str) -> str:
    """Write a sentence as HTML.

    It gets a capital letter, unless a name such as x[3, 1] begins it. Numbers such as 1e-31 and
    12 % are kept in one line.
    """
    first, _, _ = words.partition(" ")
    if first.rstrip(":").isalpha():
        words = words[0].upper() + words[1:]
    words = words.replace(" %", "\u00a0%")
    parts = (
        f'<span class="whole">{escape(part)}</span>' if POWER.search(part) else escape(part)
        for part in words.split(" ")
    )
    return " ".join(parts)

"""A notebook's outputs, as HTML: the parts of a page in a frame that fits into any notebook.

An output holds its own style, in which every rule is nested in the frame's class, so that nothing
else in the notebook changes. It is light or dark with the notebook's theme, runs no script, asks no
network for anything, and stays below MOST bytes: parts that would exceed them are left out, and
named.
"""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Sequence

from vegrad.arrays.shown import escape
from vegrad.flow.flow import Flow
from vegrad.flow.wording import power
from vegrad.reports import (
    charts,
    model_parts,
    parts,
    recurrent_charts,
    run_charts,
    spikes,
    tables,
)
from vegrad.reports import comparison as comparisons
from vegrad.reports.cure import ShownOutcome
from vegrad.reports.module_text import MODULE_ENDS
from vegrad.reports.protocols import (
    Nothing,
    ShownDiagnosis,
    ShownHistory,
    ShownTimeFlow,
    ShownTruncation,
)
from vegrad.reports.shown_comparison import ShownComparison
from vegrad.reports.shown_run import ShownModules
from vegrad.reports.style import NOTEBOOK
from vegrad.reports.time_flow import headline
from vegrad.reports.truncation import truncation_words

MOST = 58_000  # bytes of an output, which a notebook stores with each run
HINT = re.compile(r'<rect class="hint".*?</rect>')
FINDINGS = 4  # shown as cards; of the others only the kinds are named

Part = tuple[str, str]  # what to call it where it is left out, and its HTML


def diagnosis(shown: ShownDiagnosis, names: Sequence[str] = ()) -> str:
    """Show a diagnosis: verdict, findings, and the flow or the gradients.

    `names` are the layers' modules.
    """
    found = [("the findings", _findings(shown)), *_seen(shown, names)]
    return _frame(parts.verdict(shown, "p"), found)


def modules(shown: ShownDiagnosis, model: ShownModules) -> str:
    """Show a diagnosis of a model by its modules, and the training if it is one's."""
    run = model.run if model.run is not None and len(model.run.step) > 1 else None
    found = [("the findings", _findings(shown))]
    if run is not None:
        found += [("the training", run_charts.course(run)), ("the spikes", spikes.section(run))]
    found += model_parts.parts_of(model, MODULE_ENDS).items()
    return _frame(parts.verdict(shown, "p", model.head), [*found, *_seen(shown)])


def comparison(shown: ShownComparison) -> str:
    """Show two runs or diagnoses side by side."""
    return _frame(comparisons.head(shown), comparisons.parts_of(shown).items())


def cure(shown: ShownOutcome) -> str:
    """Show a cure: its outcome, what was tried, the proof and the change as code."""
    well = shown.reached and not shown.by_heart
    look = "healthy" if well else "warning" if shown.patch else "critical"
    rows = f"{shown.steps} steps of {shown.batch_size} rows"
    cost = f"It cost {shown.cost:.2f} of one training ({rows}), everything included."
    about = "".join(f"<p>{parts.sentence(said)}.</p>" for said in shown.about)
    tried = tables.attempts(shown.attempts)
    found = [("the reasons", about), ("the attempts", f"<h2>Tried</h2>{tried}" if tried else "")]
    if shown.proof is not None:
        found.append(("the proof", parts.proof(shown.proof.comparison)))
    if shown.patch:
        code = f"<pre>{escape(shown.patch.strip())}</pre>"
        found.append(("the patch", f"<details open><summary>The change</summary>{code}</details>"))
    return _frame(parts.headed(look, "Cure", shown.summary, cost), found)


def history(shown: ShownHistory) -> str:
    """Show a training: its findings, the loss, the steps as hops and the accuracy."""
    return _frame("", [("the descent", parts.descent(shown))])


def flow(shown: Flow) -> str:
    """Show a flow by itself: the gradient layer by layer, and the gains."""
    alone = Nothing()
    layers, left = len(shown.delta_log2), power(shown.chain_log10)
    head = f"<p>{layers} layers; ‖δ‖ of the first is {left} of the last one's.</p>"
    return _frame(
        "",
        [
            ("the size", head),
            ("the gradient", charts.gradient(alone, shown)),
            ("the gains", charts.gains(alone, shown)),
            ("the table of layers", _folded("All layers", tables.layers(alone, shown))),
        ],
    )


def time_flow(shown: ShownTimeFlow) -> str:
    """Show a flow through time: what is left of the gradient, the gains, reach and memory."""
    reach = f'<p class="headline">{parts.sentence(headline(shown))}.</p>'
    return _frame("", [("the reach", reach), *_in_time(shown)])


def truncation(shown: ShownTruncation) -> str:
    """Show a truncation: the window, and what each window loses."""
    return _frame(
        "",
        [
            ("the window", f'<p class="headline">{parts.sentence(truncation_words(shown))}</p>'),
            ("the losses", recurrent_charts.lost(shown)),
            ("the table of windows", _folded("All windows", tables.windows(shown))),
        ],
    )


# What they share -------------------------------------------------------------------------------


def _findings(shown: ShownDiagnosis) -> str:
    first, others = shown.findings[:FINDINGS], shown.findings[FINDINGS:]
    found = parts.cards(first, first[0]) if first else ""
    if others:
        kinds = ", ".join(dict.fromkeys(finding.kind for finding in others))
        found += f"<p>And {len(others)} more, which print() tells: {escape(kinds)}.</p>"
    return found


def _seen(shown: ShownDiagnosis, names: Sequence[str] = ()) -> list[Part]:
    """Return what was measured: a flow, or the gradients if only they were."""
    found: list[Part] = []
    flow, gradients = shown.layer_flow, shown.measurement
    if flow is not None:
        found += [
            ("the gradient", charts.gradient(shown, flow)),
            ("the gains", charts.gains(shown, flow, parts.theory(shown, flow))),
            ("the table of layers", _folded("All layers", tables.layers(shown, flow, names))),
        ]
    if shown.time_flow is not None:
        found += _in_time(shown.time_flow)
    if gradients is not None:
        chain = shown.config.get("chain", gradients.names)
        drawn = parts.sizes(chain, gradients)
        listed = _folded("All gradients", tables.gradients(chain, gradients))
        found += [("the gradients' sizes", drawn), ("the table of gradients", listed)]
    return found


def _in_time(flow: ShownTimeFlow) -> list[Part]:
    return [
        ("the table of layers", tables.memory(flow)),
        ("the gradient", recurrent_charts.through_time(flow)),
        ("the gains", recurrent_charts.gains_in_time(flow)),
    ]


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _frame(head: str, found: Iterable[Part]) -> str:
    """Put parts into a frame with the style, as many as there is room for."""
    room = MOST - len(NOTEBOOK.encode()) - len(head.encode()) - 500
    shown, left_out = [], []
    for name, whole in found:
        # Where there are many layers, a pointer could hardly tell their hints apart.
        part = whole if len(whole) < MOST // 4 else HINT.sub("", whole)
        size = len(part.encode())
        if size <= room:
            room -= size
            shown.append(part)
        else:
            left_out.append(name)
    if left_out:
        said = f"Left out here for want of room: {', '.join(left_out)}."
        shown.append(f'<p class="soft">{escape(textwrap.shorten(said, 200))}</p>')
    inside = "".join(shown)
    body = f'<div class="inside">{inside}</div>' if inside else ""
    return f'<div class="vegrad"><style>{NOTEBOOK}</style>{head}{body}</div>'

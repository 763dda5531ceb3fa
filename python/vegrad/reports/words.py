"""The words of a page, explained at its end: those of the parts that it has."""

from __future__ import annotations

from collections.abc import Iterable

from vegrad.arrays.shown import escape
from vegrad.reports.glossary import term_of
from vegrad.reports.protocols import Comparison, ShownDiagnosis, ShownHistory

FLOW = ("δ", "gain", "saturated", "dead", "rms", "decade", "pre-activation")
THEORY = ("expected", "spread")
TIME = ("δ", "gain", "reach", "carry", "time scale", "decade")
GRADIENTS = ("rms", "global norm", "subnormal", "buffer")
TRAINING = ("α", "gauge", "clip", "step")
PROOF = ("cure", "proof", "first/last")


def words(diagnosis: ShownDiagnosis, history: ShownHistory | None, proof: Comparison | None) -> str:
    """Explain the kinds of findings and what the parts of a page call things."""
    found = [finding.kind for finding in diagnosis.findings] or [diagnosis.verdict]
    for shown, names in (
        (diagnosis.layer_flow, FLOW),
        (diagnosis.expected_flow, THEORY),
        (diagnosis.time_flow, TIME),
        (diagnosis.measurement, GRADIENTS),
        (history, TRAINING),
        (proof, PROOF),
    ):
        found += names if shown is not None else ()
    return explained(found)


def explained(names: Iterable[str]) -> str:
    """Show what each of these words means, once, if the glossary has it."""
    terms = dict.fromkeys(term for name in names if (term := term_of(name)) is not None)
    listed = "".join(
        f"<dt>{escape(', '.join(term.names))}</dt><dd>{escape(term.says)}</dd>" for term in terms
    )
    head = "<h2>Words</h2><details><summary>What the words of this page mean</summary>"
    return f'{head}<dl class="words">{listed}</dl></details>' if listed else ""

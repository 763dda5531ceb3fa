"""Findings that no change of a network, its data's scale or its training can put right."""

from __future__ import annotations

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.finding import Finding

# Causes whose remedy is a line of the user's own code: in the loop, the loss or an operation.
BEYOND = frozenset(
    {
        "broadcast",
        "clip-before-backward",
        "clip-before-unscale",
        "clip-too-small",
        "constant-output",
        "detached",
        "domain-edge",
        "double-softmax",
        "dtype-range",
        "empty-loss",
        "infeasible-alignment",
        "loss-domain",
        "loss-normalizer",
        "masked-row",
        "moving-target",
        "no-derivative",
        "no-zero-grad",
        "nonfinite-input",
        "nonfinite-target",
        "norm-of-one",
        "not-in-optimizer",
        "optimizer-eps",
        "output-range",
        "sqrt-at-zero",
        "target-range",
        "unregistered",
        "weight-decay",
        "where-branch",
        "wrong-reduction",
        "zero-division",
        "zero-vectors",
    }
)


def beyond_cure(diagnosis: Diagnosis) -> Finding | None:
    """Return the finding that must be mended by hand before anything else is worth a trial.

    That is the first of all, or a critical one; None if there is none. A finding with an edit is
    none of these.
    """
    for place, finding in enumerate(diagnosis.findings):
        weighs = place == 0 or finding.severity == "critical"
        if weighs and finding.cause in BEYOND and finding.edit is None:
            return finding
    return None

"""Findings that no change of a network, its data's scale or its training can put right."""

from __future__ import annotations

from vegrad.diagnosis.catalogue.table import CAUSES
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.finding import Finding

# Causes whose remedy is a line of the user's own code: in the loop, the loss or an operation.
BEYOND = frozenset(name for name, cause in CAUSES.items() if not cause.curable)


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

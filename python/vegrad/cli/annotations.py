"""Findings as annotations of a GitHub workflow: lines on stdout that the runner shows.

The form is that of docs.github.com/actions/reference/workflow-commands-for-github-actions; what is
escaped, and how, is as in github.com/actions/toolkit (packages/core/src/command.ts).
"""

from __future__ import annotations

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.finding import Finding

LEVELS = {"critical": "error", "warning": "warning"}
IN_MESSAGES = str.maketrans({"%": "%25", "\r": "%0D", "\n": "%0A"})
IN_PROPERTIES = IN_MESSAGES | str.maketrans({":": "%3A", ",": "%2C"})


def annotated(diagnosis: Diagnosis) -> list[str]:
    """Return a line for each finding; for a healthy network one that says what was looked at."""
    if diagnosis.healthy:
        return [annotation("notice", "vegrad: healthy", diagnosis.sentence)]
    lines = [_of(finding) for finding in diagnosis.findings]
    if diagnosis.left_out:
        lines.append(annotation("notice", "vegrad", diagnosis.left_out))
    return lines


def annotation(level: str, title: str, message: str) -> str:
    """Return the workflow command for an "error", a "warning" or a "notice"."""
    return f"::{level} title={title.translate(IN_PROPERTIES)}::{message.translate(IN_MESSAGES)}"


def _of(finding: Finding) -> str:
    cause = f" ({finding.cause})" if finding.cause else ""
    message = f"{finding.message}\nWhat to do: {finding.advice}"
    return annotation(LEVELS[finding.severity], f"vegrad: {finding.kind}{cause}", message)

"""A diagnosis as one HTML page that asks no network for anything and runs no script."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from os import PathLike

from vegrad import _core
from vegrad.arrays import files
from vegrad.flow.descent import Descent
from vegrad.reports import parts
from vegrad.reports.protocols import Comparison, ShownDiagnosis, ShownHistory
from vegrad.reports.style import STYLE

POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    diagnosis: ShownDiagnosis,
    history: ShownHistory | None = None,
    proof: Comparison | None = None,
    descents: Mapping[str, Descent] | None = None,
) -> str:
    """Write the page of `diagnosis`; see `Diagnosis.to_html`."""
    flow, measurement = diagnosis.layer_flow, diagnosis.measurement
    found = [parts.verdict(diagnosis), "<main>", parts.findings(diagnosis)]
    if flow is not None:
        found.append(parts.flow(diagnosis, flow))
    if diagnosis.time_flow is not None:
        found.append(parts.through_time(diagnosis.time_flow))
    if measurement is not None:
        found.append(parts.measurement(diagnosis, measurement))
    if history is not None:
        found.append(parts.descent(history, diagnosis.findings))
    if proof is not None:
        found.append(parts.proof(proof))
    if descents:
        found.append(parts.stories(descents))
    found += ["</main>", _footer(), _data(diagnosis)]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="vegrad {escape(_core.__version__)}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>vegrad: {escape(diagnosis.verdict)}</title>\n<style>{STYLE}</style>\n</head>\n"
        f"<body>\n{chr(10).join(part for part in found if part)}\n</body>\n</html>\n"
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

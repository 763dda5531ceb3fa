"""A diagnosis as one HTML page that asks no network for anything and runs no script."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from os import PathLike

from vegrad import _core
from vegrad.arrays import files
from vegrad.arrays.shown import escape
from vegrad.flow.descent import Descent
from vegrad.reports import model_parts, parts
from vegrad.reports.model_parts import ENDS
from vegrad.reports.module_text import module_places
from vegrad.reports.protocols import Comparison, ShownDiagnosis, ShownHistory
from vegrad.reports.shown_run import ShownModules
from vegrad.reports.style import STYLE
from vegrad.reports.words import words

ELEMENT = "vegrad-diagnosis"  # of a page, that has the numbers for programs
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def page(
    diagnosis: ShownDiagnosis,
    history: ShownHistory | None = None,
    proof: Comparison | None = None,
    descents: Mapping[str, Descent] | None = None,
    modules: ShownModules | None = None,
) -> str:
    """Write the page of `diagnosis`, with its modules if it is no chain; see `to_html`."""
    flow, measurement = diagnosis.layer_flow, diagnosis.measurement
    network = "" if modules is None else modules.head
    head = parts.verdict(diagnosis, network=network)
    found = [head, "<main>", parts.findings(diagnosis)]
    if flow is not None:
        found.append(parts.flow(diagnosis, flow))
    if diagnosis.time_flow is not None:
        found.append(parts.through_time(diagnosis.time_flow))
    if modules is not None:
        found.append(model_parts.modules(modules))
    if measurement is not None:
        ends = sys.maxsize if modules is None else ENDS
        found.append(parts.measurement(diagnosis, measurement, ends))
    if history is not None:
        found.append(parts.descent(history, diagnosis.findings))
    if proof is not None:
        found.append(parts.proof(proof))
    if descents:
        found.append(parts.stories(descents))
    found.append(words(diagnosis, history, proof))
    content = diagnosis.to_dict() if modules is None else _shortened(diagnosis)
    found += ["</main>", footer(), embedded(content)]
    return document(diagnosis.verdict, found)


def document(title: str, found: Iterable[str]) -> str:
    """Write the parts of a page's body as a page."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escape(POLICY)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n'
        f'<meta name="generator" content="vegrad {escape(_core.__version__)}">\n'
        '<link rel="icon" href="data:,">\n'
        f"<title>vegrad: {escape(title)}</title>\n<style>{STYLE}</style>\n</head>\n"
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


def footer(element: str = ELEMENT) -> str:
    """Write the version and the time, and the element in which a program finds the numbers."""
    now = datetime.now(UTC)
    return (
        f"<footer><p>vegrad {escape(_core.__version__)}, "
        f'<time datetime="{now:%Y-%m-%dT%H:%MZ}">{now:%Y-%m-%d %H:%M} UTC</time>. A program finds '
        f"these numbers in the element <code>{element}</code> of this page, as JSON.</p>"
        "</footer>"
    )


def _shortened(diagnosis: ShownDiagnosis) -> dict[str, object]:
    """Return the content of a diagnosis without most of its modules and gradients, if many."""
    content = diagnosis.to_dict()
    modules, measured = content.get("modules"), content.get("measurement")
    if modules is not None and len(modules) > 2 * ENDS:
        places = module_places(modules, ENDS)
        content["modules"] = [modules[n] for n in places]
        content["modules_left_out"] = len(modules) - len(places)
    if measured is not None and len(measured["buffers"]) > 2 * ENDS:
        names = [*measured["buffers"]]
        kept = {name: measured["buffers"][name] for name in names[:ENDS] + names[-ENDS:]}
        content["measurement"] = measured | {"buffers": kept, "left_out": len(names) - 2 * ENDS}
    return content


def embedded(content: Mapping[str, object], element: str = ELEMENT) -> str:
    """Embed content as JSON without <, > and &, so that nothing in it can end the element."""
    content = {**content, "version": _core.__version__}
    text = json.dumps(content, allow_nan=False, separators=(",", ":"), default=str)
    for letter in "<>&":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f'<script type="application/json" id="{element}">{text}</script>'

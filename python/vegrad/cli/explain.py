"""`vegrad explain`: the page of a cause, what a word of a message means, and the list of all."""

from __future__ import annotations

import argparse
import re
import textwrap
from functools import cache
from importlib import resources
from typing import NamedTuple

from vegrad import _core
from vegrad.arrays.checks import did_you_mean
from vegrad.cli.terminal import width
from vegrad.diagnosis.catalogue.cause import Cause
from vegrad.diagnosis.catalogue.table import CAUSES, SECTIONS
from vegrad.flow.wording import Vocabulary
from vegrad.reports.glossary import TERMS, Term, term_of

WORDS = Vocabulary()


class Example(NamedTuple):
    """Code in PyTorch: with the fault and mended, and where its documentation says more."""

    fault: str
    mended: str
    more: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Print pages, or the list of causes; return 0."""
    pages = [_page_of(name) for name in options.cause] or [listing()]
    print(f"\n\n{'─' * width()}\n\n".join(pages))
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad explain`."""
    parser.add_argument(
        "cause",
        nargs="*",
        metavar="CAUSE",
        help="its name, or a word of a message, such as gain (default: all causes are listed)",
    )


def _page_of(name: str) -> str:
    term = None if name in CAUSES else term_of(name)
    if term is not None:
        return definition(term)
    if name not in CAUSES and name.lower() in _core.ACTIVATIONS:
        raise ValueError(f"{name} is an activation: `vegrad theory {name.lower()}` tells of it")
    if name not in CAUSES:
        words = [word for term in TERMS for word in term.names]
        hint = did_you_mean(name, [*CAUSES, *words])
        raise ValueError(
            f"cause must be the name of a cause or a word of messages, not {name!r}{hint}; "
            "`vegrad explain` lists both"
        )
    return page(CAUSES[name])


def definition(term: Term) -> str:
    """Return what a word means, for the terminal."""
    lines = [", ".join(term.names), "", *_filled(term.says)]
    if term.see:
        lines += ["", *_filled(f"Possible causes, among others: {', '.join(term.see)}.")]
        lines += ["", f"vegrad explain {term.see[0]} tells more of one."]
    return "\n".join(lines)


def _filled(text: str) -> list[str]:
    return textwrap.wrap(text, width(), break_on_hyphens=False)


def listing() -> str:
    """Return the names of all causes with their sentences, by section."""
    lines = []
    for title, causes in SECTIONS.items():
        lines += ["", title]
        for cause in causes:
            lines += textwrap.wrap(
                f"{cause.name:22}{cause.says}",
                width(),
                initial_indent="  ",
                subsequent_indent=" " * 24,
            )
    names = sorted((term.names[0] for term in TERMS), key=str.casefold)
    words = ", ".join(name.replace(" ", "\u00a0") for name in names)  # each in one line
    said = textwrap.fill(f"Words of messages: {words}", width(), break_on_hyphens=False)
    lines += ["", said.replace("\u00a0", " ")]
    return "\n".join([*lines[1:], "", "vegrad explain NAME tells more of each."])


def page(cause: Cause) -> str:
    """Return the page of a cause for the terminal."""
    example = examples()[cause.name]
    lines = [cause.name, "", textwrap.fill(cause.says, width()), ""]
    for title, text in _parts(cause):
        lines += [title, *_indented(text), ""]
    for title, code in _code(example):
        lines += [title, textwrap.indent(code, "  ")]
    links = [*cause.sources, *example.more]
    lines += ["Sources", *(f"  {link}" for link in links)]
    return "\n".join(lines)


def _parts(cause: Cause) -> list[tuple[str, str]]:
    return [
        ("How it shows", cause.shows),
        ("Evidence", cause.evidence),
        ("Where", cause.sites),
        ("What to do", cause.advice(WORDS)),
    ]


def _code(example: Example) -> list[tuple[str, str]]:
    return [("In PyTorch", example.fault), ("Mended", example.mended)]


def _indented(text: str) -> list[str]:
    return textwrap.wrap(text, width(), initial_indent="  ", subsequent_indent="  ")


@cache
def examples() -> dict[str, Example]:
    """Read the example of each cause, which stand with the front end whose words they are."""
    text = (resources.files("vegrad") / "torch" / "examples.md").read_text(encoding="utf-8")
    parts = re.split(r"^## (.+)\n", text, flags=re.MULTILINE)[1:]
    found = {}
    for name, body in zip(parts[::2], parts[1::2], strict=True):
        fault, mended = re.findall(r"```python\n(.*?)```", body, flags=re.DOTALL)
        found[name] = Example(fault, mended, tuple(re.findall(r"^<(.+)>$", body, re.MULTILINE)))
    return found

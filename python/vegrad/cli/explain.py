"""`vegrad explain`: the page of a cause, the list of all, and both as Markdown."""

from __future__ import annotations

import argparse
import re
import textwrap
from functools import cache
from importlib import resources
from typing import NamedTuple

from vegrad.cli.terminal import width
from vegrad.diagnosis.catalogue.cause import Cause
from vegrad.diagnosis.catalogue.table import SECTIONS, cause_of
from vegrad.flow.wording import Vocabulary

WORDS = Vocabulary()
INTRODUCTION = """\
# Causes

A finding has a *kind*, what is seen (vanishing, exploding, nonfinite, …), and a *cause*, why. This
is the table of all causes by the names that `finding.cause` has. vegrad names a cause only on the
evidence that is given here; where no evidence decides, `finding.cause` is empty.

`vegrad explain NAME` prints these pages in the shell. `ignore=("NAME",)` in the functions that
diagnose, and `vegrad diagnose --ignore NAME`, leave findings of a cause out, and say so.

The examples run in PyTorch after `import torch`, `from torch import nn` and
`from torch.nn import functional as F`: first with the fault, then mended. This page is written by
`vegrad explain --markdown`.
"""


class Example(NamedTuple):
    """Code in PyTorch: with the fault and mended, and where its documentation says more."""

    fault: str
    mended: str
    more: tuple[str, ...]


def run(options: argparse.Namespace) -> int:
    """Print pages, or the list of causes; return 0."""
    if options.markdown:
        if options.cause:
            raise ValueError(f"--markdown writes all pages: it goes without {options.cause[0]!r}")
        print(markdown(), end="")
    elif not options.cause:
        print(listing())
    else:
        pages = [page(cause_of(name)) for name in options.cause]
        print(f"\n\n{'─' * width()}\n\n".join(pages))
    return 0


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of `vegrad explain`."""
    parser.add_argument(
        "cause", nargs="*", metavar="CAUSE", help="its name (default: all are listed)"
    )
    parser.add_argument("--markdown", action="store_true", help="print the pages of all causes")


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
    return "\n".join([*lines[1:], "", "vegrad explain CAUSE prints its page."])


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


def markdown() -> str:
    """Return the table and the pages of all causes as Markdown."""
    lines = [INTRODUCTION]
    for title, causes in SECTIONS.items():
        lines += ["", f"**{title}**", "", "| cause | what is wrong |", "|---|---|"]
        lines += [f"| [{cause.name}](#{cause.name}) | {cause.says} |" for cause in causes]
    for title, causes in SECTIONS.items():
        lines += ["", f"## {title}"]
        for cause in causes:
            lines += ["", f"### {cause.name}", "", *textwrap.wrap(cause.says, 100)]
            lines += _sections(cause, examples()[cause.name])
    return "\n".join(lines) + "\n"


def _sections(cause: Cause, example: Example) -> list[str]:
    lines: list[str] = []
    for title, text in _parts(cause):
        words = textwrap.wrap(
            f"**{title}.** {text}", 100, break_on_hyphens=False, break_long_words=False
        )
        lines += ["", *words]
    for title, code in _code(example):
        lines += ["", f"{title}:", "", "```python", code.rstrip(), "```"]
    links = [re.sub(r"(https:\S+)", r"<\1>", link) for link in (*cause.sources, *example.more)]
    return [*lines, "", "Sources:", "", *(f"- {link}" for link in links)]


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

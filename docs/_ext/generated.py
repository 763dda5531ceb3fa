"""Parts of pages that are made from tables and files of the source: never written by hand.

A page has `<!-- generated: NAME -->` on a line of its own, and NAME is a row of `PARTS`. Before it
stands, for who reads the source, where to find the same: the site leaves this paragraph out.
"""

import ast
import json
import os
import re
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

from sphinx.application import Sphinx
from vegrad.cli.explain import examples
from vegrad.diagnosis.catalogue.cause import Cause
from vegrad.diagnosis.catalogue.table import SECTIONS
from vegrad.diagnosis.rules.table import RULES
from vegrad.flow.wording import Vocabulary
from vegrad.reports.glossary import TERMS

DOCS = Path(__file__).parents[1]
BENCH = DOCS.parent / "bench"
EXPERIMENTS = BENCH / "experiments"
STUB = re.compile(r"^\*Made when the site is built.*?\*\n\n", re.DOTALL | re.MULTILINE)
ADDRESS = re.compile(r"(?<![<(])(https?://[^\s,;)]+)")
WORD = re.compile(r"\[([^]]+)\]\((?:\.\./)*glossary\.md#([^)\s]+)\)")
WORDS = {name.lower().replace(" ", "-"): name for term in TERMS for name in term.names}
PAPER = re.compile(r"\barXiv:(\d{4}\.\d{4,5})")


def glossary() -> Iterator[str]:
    """Give all terms, in the order of the alphabet, as Sphinx's glossary."""
    yield from ("```{glossary}", ":sorted:", "")
    for term in TERMS:
        yield from (*term.names, textwrap.indent(linked(term.says), "  "), "")
    yield "```"


def rules() -> Iterator[str]:
    """Give each rule with its limits, its reason and its source, in the order in which they ask."""
    for number, rule in enumerate(RULES, 1):
        yield from (f"({rule.name})=", f"**{number}. {rule.name}** ({rule.kind})", "")
        yield f": Measured: {marked(rule.measured)}{limits(rule.warning, rule.critical)}."
        yield from (f"  {marked(rule.reason)}", f"  *Source: {linked(rule.source)}.*", "")


def limits(warning: float, critical: float) -> str:
    """Return from where on a finding is a warning, and critical; nothing where one is enough."""
    if warning == critical == 1:
        return ""
    both = abs(critical) != float("inf") and critical != warning
    return f"; a warning from {warning:g}" + (f", critical from {critical:g}" if both else "")


def causes() -> Iterator[str]:
    """Give a table and a page of each cause, by section."""
    for title, members in SECTIONS.items():
        yield from (f"**{title}**", "", "| cause | what is wrong |", "| --- | --- |")
        yield from (
            f"| [{cause.name}](#{cause.name}) | {marked(cause.says)} |" for cause in members
        )
        yield ""
    for title, members in SECTIONS.items():
        yield from (f"## {title}", "")
        for cause in members:
            yield from cause_page(cause)


def cause_page(cause: Cause) -> Iterator[str]:
    """Give the page of a cause: what it is, signs, evidence, places, advice, example, sources."""
    example = examples()[cause.name]
    yield from (f"### {cause.name}", "", marked(cause.says), "")
    yield from ("How it shows", f": {marked(cause.shows)}", "")
    yield from ("Evidence", f": {marked(cause.evidence)}", "")
    yield from ("Where", f": {marked(cause.sites)}", "")
    yield from ("What to do", f": {marked(cause.advice(Vocabulary()))}", "")
    for title, code in (("In PyTorch", example.fault), ("Mended", example.mended)):
        yield from (f"{title}:", "", "```python", code.rstrip(), "```", "")
    yield from ("Sources:", "")
    yield from (f"- {linked(link)}" for link in (*cause.sources, *example.more))
    yield ""


def gallery() -> Iterator[str]:
    """Give each experiment that draws a picture: that, what it shows, its tables, its program."""
    for program in sorted(EXPERIMENTS.glob("*.py"), key=place):
        group = f"{program.stem.removesuffix('s')}-"
        pictures = [
            picture
            for picture in sorted(EXPERIMENTS.glob("*.png"))
            if picture.stem == program.stem or picture.stem.startswith(group)
        ]
        if not pictures:
            continue
        title, _, text = described(program).partition("\n")
        yield from (f"## {plain(title)}", "")
        yield from (f"![{plain(title)}]({os.path.relpath(p, DOCS / 'gallery')})" for p in pictures)
        yield from ("", linked(marked(" ".join(text.split()))), "")
        yield from results(program.with_suffix(".json"))
        papers = PAPER.findall(described(program))
        paper = "".join(f" · [arXiv:{n}](https://arxiv.org/abs/{n})" for n in dict.fromkeys(papers))
        yield from (f"`python bench/experiments/{program.name}`{paper}", "")


def results(path: Path) -> Iterator[str]:
    """Give the tables that an experiment has written beside itself, if it has any."""
    for head, *rows in json.loads(path.read_text(encoding="utf-8")) if path.exists() else ():
        for row in (head, ["---", *["---:"] * (len(head) - 1)], *rows):
            yield f"| {' | '.join(map(marked, row))} |"
        yield ""


def described(program: Path) -> str:
    """Return a program's docstring."""
    return ast.get_docstring(ast.parse(program.read_text(encoding="utf-8"))) or ""


def place(program: Path) -> tuple[bool, int]:
    """Return the place in the order of the experiments' numbers: of layers, then recurrent ones."""
    found = re.match(r"(R?)(\d+)\.", described(program))
    return (found[1] == "R", int(found[2])) if found else (False, 99)


def plain(title: str) -> str:
    """Return the title of an experiment without its number and paper."""
    title = re.sub(r"^R?\d+\. ", "", title)
    return re.sub(r"(: [A-Z][^:]*\d{4}\b.*| \([^()]*\d{4}\))\.?$", "", title).rstrip(".")


def zoo() -> Iterator[str]:
    """Give the tables of the zoo as its program wrote them."""
    yield from document(BENCH / "results" / "zoo.md")


def field() -> Iterator[str]:
    """Give what is said of reported troubles, as it stands beside the cases."""
    yield from document(BENCH / "field" / "README.md")


def document(path: Path) -> Iterator[str]:
    """Give a document without its title; links to files beside it become their names."""
    text = path.read_text(encoding="utf-8").partition("\n")[2]
    yield re.sub(r"\[([^]]+)\]\((?!https?:)[^)]+\)", r"\1", text)


def marked(text: str) -> str:
    """Return a sentence of a table with what Markdown would take as its own marks escaped."""
    parts = re.split(r"(`[^`]*`)", text)
    parts[::2] = [re.sub(r"([*_<>|$\[\]])", r"\\\1", part) for part in parts[::2]]
    return "".join(parts)


def linked(text: str) -> str:
    """Return the text with its addresses as links."""
    return ADDRESS.sub(r"<\1>", text)


PARTS: dict[str, Callable[[], Iterator[str]]] = {
    part.__name__: part for part in (glossary, rules, causes, gallery, zoo, field)
}


def fill(app: Sphinx, name: str, source: list[str]) -> None:
    """Put the parts in the place of their marks, in a page that was read.

    A link to a word of the glossary, which who reads the source can follow too, leads to the word.
    """
    text = re.sub(
        r"^<!-- generated: (\w+) -->$",
        lambda mark: "\n".join(PARTS[mark[1]]()),
        STUB.sub("", source[0]),
        flags=re.MULTILINE,
    )
    source[0] = WORD.sub(lambda link: f"{{term}}`{link[1]} <{WORDS[link[2]]}>`", text)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register with Sphinx."""
    app.connect("source-read", fill)
    return {"parallel_read_safe": True}

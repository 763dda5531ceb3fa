"""A notebook's outputs: small, alone, escaped, and of no effect on what is around them."""

import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import pytest
import vegrad
from vegrad.flow.finding import Finding
from vegrad.reports import style

from tests.reports.test_page import LABELS, SICK, Page, X, history, judge, network

RNG = np.random.default_rng(5)


class Shown(Protocol):
    def _repr_html_(self) -> str: ...


def recurrent(**options: Any) -> vegrad.RNN:
    made = vegrad.RNN(3, 12, 2, **{"layers": 2, "seed": 0} | options)
    made.backward(SEQUENCES, TARGETS)
    return made


SEQUENCES, TARGETS = RNG.standard_normal((4, 40, 3)), RNG.standard_normal((4, 2))
DEEP_FLOW = judge(50).flow
assert DEEP_FLOW is not None
OUTPUTS: dict[str, Shown] = {
    **{f"diagnosis, {name}": diagnosis for name, diagnosis in SICK.items()},
    "diagnosis of gradients": vegrad.diagnose_gradients(
        {f"<{n}>.weight": RNG.normal(0, 10.0**-n, (9, 9)) for n in range(12)}
    ),
    "cure": vegrad.cure(network(12), X, LABELS, steps=40, batch_size=20, goal=0.1, budget=4.0),
    "no cure": vegrad.cure(network(3), np.full_like(X, np.nan), LABELS),
    "history": history(3),
    "empty history": vegrad.History(),
    "flow": DEEP_FLOW,
    "flow through time": recurrent().flow,
    "flow without gates": recurrent(cell="tanh").flow,
    "truncation": vegrad.truncation(recurrent(), SEQUENCES, TARGETS),
    "truncation by layers": vegrad.truncation(network(20), X, LABELS),
    "measurement": vegrad.measure({f"w{n}": RNG.standard_normal(9) for n in range(300)}),
}


def outer_rules(css: str) -> Iterator[str]:
    """The selectors of rules that are nested in no other."""
    depth, begin = 0, 0
    for place, letter in enumerate(css):
        if letter == "{":
            if depth == 0:
                yield css[begin:place].strip()
            depth += 1
        elif letter == "}":
            depth -= 1
            begin = place + 1
    assert depth == 0


@pytest.mark.parametrize("name", OUTPUTS)
def test_an_output_is_small_and_alone(name: str) -> None:
    html = OUTPUTS[name]._repr_html_()
    assert len(html.encode()) < 60_000
    page = Page(html)
    assert html.startswith("<div")
    assert not {tag for tag, _ in page.elements} & {"script", "iframe", "link", "img", "h1", "html"}
    for _, attributes in page.elements:
        assert not any(one.startswith("on") or one in ("href", "src") for one in attributes)
    names = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(names) == len(set(names))
    if name != "measurement":  # a table in the notebook's own style
        assert page.elements[0] == ("div", {"class": "vegrad"})
        numbers = page.text.replace("is nan", "").replace("inf or nan", "")
        assert not re.search(r"\bnan\b|\bNone\b", numbers)


def test_no_rule_of_the_style_is_for_anything_else() -> None:
    rules = list(outer_rules(style.NOTEBOOK))
    assert rules.count(".vegrad.vegrad") == 1
    for rule in rules:
        assert rule.startswith("@media (prefers-color-scheme: dark)") or rule.endswith(
            (".vegrad", ".vegrad.vegrad")
        )
    inside = re.search(r"@media \(prefers-color-scheme: dark\) \{ (\S+) \{", style.NOTEBOOK)
    assert inside is not None
    assert inside[1] == ".vegrad"
    assert "//" not in style.NOTEBOOK
    assert "url(" not in style.NOTEBOOK
    assert not re.search(r"\drem\b", style.NOTEBOOK)  # a notebook may have any size there


def test_a_notebooks_theme_comes_before_the_systems() -> None:
    css = style.NOTEBOOK
    assert css.index("prefers-color-scheme") < css.index('[data-jp-theme-light="true"]')
    for theme in ('[data-jp-theme-light="false"]', ".vscode-dark", '[data-theme="dark"]'):
        assert theme in css


def test_ids_of_two_outputs_differ() -> None:
    """Screen readers find the title of a chart by its id."""
    pages = [Page(OUTPUTS[f"diagnosis, {name}"]._repr_html_()) for name in ("vanishing", "healthy")]
    first, second = ({a["id"] for _, a in page.elements if "id" in a} for page in pages)
    assert first
    assert not first & second


def test_the_verdict_is_said_once_and_then_what_to_do() -> None:
    diagnosis = SICK["vanishing"]
    page = Page(diagnosis._repr_html_())
    finding = diagnosis.findings[0]
    assert page.text.count(finding.message.partition(";")[0][1:]) == 1
    assert finding.advice[1:] in page.text
    assert "All layers" in page.text


def test_what_has_no_room_is_named() -> None:
    page = Page(judge(500)._repr_html_())
    assert re.search(r"Left out here for want of room: .*the table of layers", page.text)


def test_many_findings_are_counted() -> None:
    diagnosis = SICK["vanishing"]
    many = replace(diagnosis, findings=diagnosis.findings[:1] * 4 + SICK["exploding"].findings[:1])
    text = Page(many._repr_html_()).text
    assert "And 1 more, which print() tells: exploding." in text


def test_text_is_escaped() -> None:
    evil = "</style><img src=x onerror=alert(1)>\"'&<b>"
    words = {"says": "{evil}", "advises": "{evil}", "facts": {"evil": evil}}
    finding = Finding(kind=evil, severity=evil, evidence={evil: 1.0}, blame=evil, **words)
    config = SICK["healthy"].config | {"activation": evil}
    diagnosis = replace(SICK["healthy"], findings=(finding,), config=config)
    cure = OUTPUTS["cure"]
    assert isinstance(cure, vegrad.Cure)
    attempts = tuple(replace(one, name=evil) for one in cure.attempts)
    shown = (
        diagnosis,
        replace(cure, summary=evil, patch=evil, about=(evil,), attempts=attempts),
        vegrad.measure({evil: np.ones(3)}),
        vegrad.diagnose_gradients({evil: np.ones((3, 3))}),
    )
    for one in shown:
        page = Page(one._repr_html_())
        assert not page.all("img")
        assert "alert(1)" in page.text


def test_a_long_measurement_loses_its_middle() -> None:
    page = Page(OUTPUTS["measurement"]._repr_html_())
    assert "⋮ 241 more" in page.text
    assert "w299" in page.text


# ---------------------------------------------------------------------------------- at the prompt


@pytest.mark.parametrize("name", OUTPUTS)
def test_at_a_prompt_an_answer_is_a_line(name: str) -> None:
    words = repr(OUTPUTS[name])
    assert re.match(rf"<{type(OUTPUTS[name]).__name__}\b.*>$", words)
    assert len(words) < 400


def test_parts_of_answers_are_lines_too() -> None:
    cure, diagnosis = OUTPUTS["cure"], SICK["vanishing"]
    assert isinstance(cure, vegrad.Cure)
    for part in (*cure.attempts, cure.proof, *diagnosis.findings, diagnosis.expected,
                 diagnosis.reading, vegrad.measure(X)):  # fmt: skip
        assert re.match(r"<\w+\b.*>$", repr(part))
        assert len(repr(part)) < 400
    assert str(diagnosis.findings[0]).endswith(diagnosis.findings[0].advice)
    assert str(cure.proof).startswith("proof: ")
    assert str(diagnosis.flow).splitlines()[0].startswith("layer    output")
    assert diagnosis.findings[0].message in repr(diagnosis)

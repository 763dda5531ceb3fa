"""Words, made last: templates, vocabularies, and edits as instructions."""

from math import inf, log2, nan

import pytest
from vegrad.flow.edits import (
    AddSkips,
    Clip,
    Edit,
    Initialize,
    LearningRate,
    Lsuv,
    Normalize,
    Redraw,
    Scale,
    ScaleData,
    SetActivation,
    Shift,
    Together,
    Zero,
    is_in_place,
    parts,
    together,
)
from vegrad.flow.finding import Finding, layer_sites
from vegrad.flow.site import Site
from vegrad.flow.wording import Vocabulary, named, power, render, times
from vegrad.networks.vocabulary import LayerVocabulary

PLAIN, NUMBERED = Vocabulary(), LayerVocabulary(10)
WEIGHT = ("layers.3.weight",)
EVERY_EDIT = [
    Scale(WEIGHT, 0.5),
    Zero(WEIGHT),
    Shift(WEIGHT, 2.0),
    Redraw(WEIGHT),
    Initialize("he_normal"),
    Lsuv(),
    AddSkips(),
    Normalize(),
    SetActivation("relu"),
    ScaleData(),
    LearningRate(0.1),
    Clip(1.0),
]


@pytest.mark.parametrize(
    ("template", "words"),
    [
        ("{gain:times}", "0.21×"),
        ("{gain:share}", "0.21"),
        ("{gain:.3g}", "0.214"),
        ("{decades:power}", "1e-32"),
        ("{count:d} values", "3 values"),
        ("{zero:times}, {nothing:times}", "0×, ?×"),
        ("{site} and {sites}", "layers.3 and layers.3, layers.4 and layers.5"),
        ("{edit}.", "multiply layers.3.weight by 0.5."),
        ("look at {words.loss}", "look at the loss function"),
        ("use {he:scheme}", "use he_normal weights"),
    ],
)
def test_templates_are_filled_in(template: str, words: str) -> None:
    values = {"gain": 0.214, "decades": -32.0, "count": 3.0, "zero": 0.0, "nothing": nan}
    values |= {"site": layer_sites([3])[0], "sites": layer_sites([3, 4, 5]), "he": "he_normal"}
    assert render(template, values | {"edit": Scale(WEIGHT, 0.5)}, PLAIN) == words


def test_sizes_that_are_infinite() -> None:
    assert render("{size:power}", {"size": inf}, PLAIN) == "inf"


@pytest.mark.parametrize(
    ("edit", "plain", "numbered"),
    [
        (
            Scale(("layers.2.weight", "layers.3.weight"), 2.0),
            "multiply layers.2.weight and layers.3.weight by 2",
            "multiply the weights of layers 2–3 by 2",
        ),
        (
            Scale(tuple(f"layers.{n}.weight" for n in range(1, 10)), 2.0),
            "multiply layers.1.weight to layers.9.weight (9 in all) by 2",
            "multiply the weights of every layer by 2",
        ),
        (
            Zero(("rnn.bias_hh",), (8, 16), "forget"),
            "set rnn.bias_hh[8:16] (that of the forget gate) to 0",
            "set rnn.bias_hh to 0",
        ),
        (
            together(SetActivation("relu"), Initialize("he_normal")),
            "use the activation relu with he_normal weights",
            'use activation="relu" with init="he_normal"',
        ),
        (
            together(Zero(("layers.1.bias",)), Redraw(("layers.1.weight",))),
            "set layers.1.bias to 0 and draw layers.1.weight again",
            "set the biases of layer 1 to 0 and draw the weights of layer 1 again",
        ),
    ],
)
def test_edits_are_instructions(edit: Edit, plain: str, numbered: str) -> None:
    assert PLAIN.edit(edit) == plain
    if "rnn" not in plain:  # own networks have no gates
        assert NUMBERED.edit(edit) == numbered


@pytest.mark.parametrize("edit", EVERY_EDIT, ids=lambda edit: type(edit).__name__)
def test_every_edit_has_words(edit: Edit) -> None:
    for vocabulary in (PLAIN, NUMBERED):
        assert len(vocabulary.edit(edit)) > 8
    assert parts(Together((edit, Together((edit,))))) == (edit, edit)


def test_an_unknown_edit_is_an_error() -> None:
    with pytest.raises(TypeError, match="must be one of"):
        PLAIN.edit(Edit())


def test_what_can_be_done_in_place() -> None:
    assert is_in_place(together(Zero(WEIGHT), Redraw(WEIGHT)))
    assert not is_in_place(together(Zero(WEIGHT), Normalize()))
    assert not is_in_place(LearningRate(0.1))


def test_a_finding_is_data_and_words() -> None:
    finding = Finding(
        kind="vanishing",
        severity="critical",
        sites=(Site("weights", "layers.3", 3), Site("parameter", "layers.3.weight")),
        evidence={"gain": 1e-5},
        says="{site} pass on {gain:share}",
        edit=Scale(WEIGHT, 1e5),
        vocabulary=NUMBERED,
    )
    assert finding.layers == (3,)
    assert finding.message == "the weights of layer 3 pass on 1.0e-5"
    assert finding.advice == "multiply the weights of layer 3 by 1e+05."
    content = finding.to_dict()
    assert content["edit"] == {
        "edit": "Scale", "parameters": list(WEIGHT), "factor": 1e5, "rows": None, "gate": "",
    }  # fmt: skip
    assert content["sites"][1]["name"] == "layers.3.weight"  # type: ignore[index]


@pytest.mark.parametrize(("value", "shown"), [
    (0.214, "0.21×"), (0.98, "0.98×"), (0.999, "1.00×"), (1.044, "1.04×"), (14.14, "14.1×"),
    (123.4, "123×"), (3.1e-12, "3.1e-12×"), (9.99e-5, "1.0e-4×"), (0.0, "0×"), (2e30, "2.0e+30×"),
])  # fmt: skip
def test_factors_in_words(value: float, shown: str) -> None:
    assert times(log2(value) if value else -inf) == shown


def test_sizes_and_layers_in_words() -> None:
    assert power(-5000.3) == "5e-5001"
    assert power(nan) == "?"
    assert named([3]) == "layer 3"
    assert named([3, 4, 5, 9]) == "layers 3–5, 9"

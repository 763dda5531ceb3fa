"""The table of causes: complete, and the only place that names come from."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad import FindingWarning
from vegrad.diagnosis.catalogue.cause import PLACES
from vegrad.diagnosis.catalogue.table import CAUSES, SECTIONS, as_ignored, cause_of, without
from vegrad.flow.finding import Finding
from vegrad.flow.wording import Vocabulary

PACKAGE = Path(vegrad.__file__).parent
# Where the remedy is a line of the user's code, except that a scale or a rate mends these.
MENDED = {"input-scale", "target-scale", "learning-rate-high", "learning-rate-low", "oscillating"}


def strings(node: ast.AST) -> Iterator[str]:
    """Constant strings that an expression can come to."""
    match node:
        case ast.Constant(value=str(text)):
            yield text
        case ast.IfExp(body=body, orelse=other):
            yield from strings(body)
            yield from strings(other)
        case ast.Tuple(elts=parts):
            for part in parts:
                yield from strings(part)


def named(tree: ast.AST) -> Iterator[str]:
    """Causes that a module names: as arguments, in assignments, comparisons and `_cause`."""
    for node in ast.walk(tree):
        match node:
            case ast.keyword(arg="cause", value=value):
                yield from strings(value)
            case ast.Assign(targets=[ast.Name(id="cause")], value=value):
                yield from strings(value)
            case ast.Compare(left=ast.Attribute(attr="cause"), comparators=values):
                for value in values:
                    yield from strings(value)
            case ast.FunctionDef(name="_cause"):
                for inner in ast.walk(node):
                    if isinstance(inner, ast.Return) and inner.value is not None:
                        yield from strings(inner.value)
            case ast.Call(func=ast.Name(id="Suspect"), args=[_, _, _, value, *_]):
                yield from strings(value)


def used() -> set[str]:
    trees = (ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py"))
    return {name for tree in trees for name in named(tree)} - {""}


def test_every_cause_that_the_code_names_is_in_the_table() -> None:
    found = used()
    assert {"weight-scale", "weight-scale-all", "gate-bias", "running-statistics"} <= found
    assert found <= CAUSES.keys()


def test_names_are_there_once_and_grouped() -> None:
    names = [cause.name for causes in SECTIONS.values() for cause in causes]
    assert len(names) == len(set(names)) == len(CAUSES)
    assert all(re.fullmatch(r"[a-z]+(-[a-z]+)*", name) for name in names)


@pytest.mark.parametrize("name", CAUSES)
def test_rows_are_complete(name: str) -> None:
    cause = CAUSES[name]
    for text in (cause.says, cause.shows, cause.evidence, cause.sites, cause.advice(Vocabulary())):
        assert text[0].isupper() or not text[0].isalpha()
        assert text.endswith(".")
        assert "  " not in text
    assert re.match(r"[^.]+\.$", cause.says), "one sentence"
    assert cause.lies_in in PLACES
    assert cause.sources
    assert all(re.search(r": https://\S+$", source) for source in cause.sources)


def test_what_lies_in_code_is_not_curable() -> None:
    inside = {"data", "loss", "operation", "loop"}
    cured = {cause.name for cause in CAUSES.values() if cause.lies_in in inside and cause.curable}
    assert cured == MENDED


def test_advice_takes_the_words_of_a_front_end() -> None:
    class Words(Vocabulary):
        cuts = "a stop_gradient()"

    assert "for a stop_gradient()," in CAUSES["detached"].advice(Words())


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match=r"not 'dead-unit' \(did you mean dead-units"):
        cause_of("dead-unit")
    with pytest.raises(ValueError, match=r"lists, not 'xyz'$"):
        cause_of("xyz")


def test_names_to_ignore_are_checked() -> None:
    assert as_ignored(["collapse", "symmetry", "collapse"]) == ("collapse", "symmetry")
    assert as_ignored(()) == ()
    for wrong in ("collapse", 3, None, (3,)):
        with pytest.raises(TypeError, match=r"^ignore must"):
            as_ignored(wrong)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"every cause in ignore must be one .* not 'kollapse'"):
        as_ignored(("kollapse",))


def test_findings_without_a_cause_are_never_left_out() -> None:
    findings = [Finding(kind="dead", severity="warning", cause=c) for c in ("", "dead-units")]
    assert without(findings, CAUSES) == (findings[0],)


# ------------------------------------------------------------------------------- ignore=


def sigmoids() -> tuple[vegrad.MLP, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    network = vegrad.MLP([8, *[16] * 20, 3], activation="sigmoid", init="glorot_uniform", seed=0)
    return network, rng.normal(size=(32, 8)), rng.normal(size=(32, 3))


def test_a_diagnosis_leaves_causes_out_and_says_so() -> None:
    network, x, target = sigmoids()
    plain = vegrad.diagnose(network, x, target)
    assert [f.cause for f in plain.findings] == ["activation-derivative"]
    assert plain.left_out == ""
    assert plain.to_dict()["ignored"] == {}
    found = vegrad.diagnose(network, x, target, ignore=("activation-derivative", "dead-units"))
    assert found.healthy
    said = "left out, as asked: activation-derivative (1 finding), dead-units"
    assert found.summary.endswith(f"; {said}")
    assert " ".join(str(found).split()).count(said) == 1
    assert found.to_dict()["ignored"] == {"activation-derivative": 1, "dead-units": 0}
    page = found.to_html()
    assert "no rule reached its limit" not in page
    assert said[1:] in page


def test_findings_that_stay_are_shown_with_what_was_left_out() -> None:
    network, x, target = sigmoids()
    found = vegrad.diagnose(network, x, target, ignore=["dead-units"])
    assert found.verdict == "vanishing"
    assert str(found).endswith("! left out, as asked: dead-units.")
    assert "eft out, as asked: dead-units" in found.to_html()
    assert found.ignoring(["activation-derivative"]).ignored == {
        "dead-units": 0,
        "activation-derivative": 1,
    }


def test_recordings_leave_causes_out() -> None:
    sizes = {f"layers.{n}.weight": np.full((4, 4), 10.0 ** (3 * n)) for n in range(4)}
    found = vegrad.diagnose_gradients(sizes)
    causes = [finding.cause for finding in found.findings]
    assert causes
    assert all(causes)
    assert vegrad.diagnose_gradients(sizes, ignore=causes).healthy


def test_histories_leave_causes_out() -> None:
    _, x, target = sigmoids()
    network = vegrad.MLP([8, 16, 3], activation="tanh", seed=0)
    options = {"batch_size": 8, "epochs": 100, "seed": 0, "progress": False}
    with pytest.warns(FindingWarning, match="stalled: "):
        history = network.fit(x, target, optimizer=vegrad.SGD(1e-5), **options)
    assert [f.cause for f in vegrad.diagnose_history(history).findings] == ["learning-rate-low"]
    kept = vegrad.diagnose_history(history, ignore=("learning-rate-low",))
    assert kept.healthy
    assert kept.ignored == {"learning-rate-low": 1}


@pytest.mark.parametrize("judge", [vegrad.diagnose_gradients, vegrad.diagnose_history])
def test_nothing_is_judged_if_a_name_is_wrong(judge: object) -> None:
    with pytest.raises(ValueError, match="every cause in ignore"):
        judge(None, ignore=("kollapse",))  # type: ignore[operator]

"""The seam: front ends below, rules and remedies above, and nothing that decides on prose."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

PYTHON = Path(__file__).parents[2] / "python" / "vegrad"
PROSE = {"message", "advice", "why", "summary"}
# What is done with a sentence to read something out of it.
READS = {"startswith", "endswith", "find", "index", "partition", "rpartition", "split", "replace",
         "removeprefix", "removesuffix", "count", "match"}  # fmt: skip

pytestmark = pytest.mark.skipif(not PYTHON.is_dir(), reason="an installed package has no house")


def files(*packages: str) -> list[str]:
    found = [p for package in packages or ("",) for p in sorted((PYTHON / package).rglob("*.py"))]
    assert found
    return [str(path.relative_to(PYTHON)) for path in found]


def tree_of(file: str) -> ast.Module:
    return ast.parse((PYTHON / file).read_text(encoding="utf-8"))


def is_prose(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and node.attr in PROSE


def decisions(tree: ast.AST) -> Iterator[str]:
    """Comparisons, searches and matches of a finding's or an attempt's words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            if any(map(is_prose, [node.left, *node.comparators])):
                yield ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            read = is_prose(node.func.value) and node.func.attr in READS
            module = node.func.value
            searched = isinstance(module, ast.Name) and module.id == "re"
            if read or (searched and any(map(is_prose, node.args))):
                yield ast.unparse(node)
        elif isinstance(node, ast.Match) and is_prose(node.subject):
            yield ast.unparse(node.subject)


@pytest.mark.parametrize("file", files())
def test_nothing_decides_on_prose(file: str) -> None:
    assert list(decisions(tree_of(file))) == []


def test_the_test_sees_decisions() -> None:
    text = "a.message == 'x'; 'x' in f.advice; f.why.startswith('a'); re.match('a', f.summary)"
    assert len(list(decisions(ast.parse(text)))) == 4
    assert not list(decisions(ast.parse("print(f.message); f'{f.kind}: {f.advice}'")))


@pytest.mark.parametrize("file", files("torch", "networks", "recordings", "sklearn"))
def test_front_ends_construct_no_finding(file: str) -> None:
    calls = (node for node in ast.walk(tree_of(file)) if isinstance(node, ast.Call))
    assert "Finding" not in {ast.unparse(call.func) for call in calls}


@pytest.mark.parametrize("file", files())
def test_nothing_is_disguised(file: str) -> None:
    """No network pretends to be of another kind."""
    text = (PYTHON / file).read_text(encoding="utf-8")
    assert "SimpleNamespace" not in text
    assert 'cast("Flow"' not in text
    assert "TYPE_CHECKING" not in text


@pytest.mark.parametrize("file", files("diagnosis", "treatment", "reports", "flow"))
def test_what_is_above_the_seam_names_no_front_ends_code(file: str) -> None:
    """`torch.nn`, `loss_fn`, …: such words are a vocabulary's."""
    strings = [
        node.value
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    documentation = {
        ast.get_docstring(node, clean=False)
        for node in ast.walk(tree_of(file))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
    }
    code = [text for text in strings if text not in documentation]
    theirs = ("torch.nn", 'activation="', "detach()", "loss_fn", "no_grad")
    assert not [text for text in code if any(word in text for word in theirs)]


def test_docstrings_open_with_verbs_or_nouns() -> None:
    """Not with What, Whether or Of, as sentences without a subject do."""
    opened = 0
    for file in files():
        for node in ast.walk(tree_of(file)):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                opened += (ast.get_docstring(node) or "").startswith(("What ", "Whether ", "Of "))
    assert opened == 0


def test_sizes() -> None:
    """Classes have at most 200 lines, functions 60."""
    long = []
    for file in files():
        for node in ast.walk(tree_of(file)):
            most = 200 if isinstance(node, ast.ClassDef) else 60
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or 0) - node.lineno + 1
                documentation = ast.get_docstring(node, clean=False)
                lines -= len(documentation.splitlines()) if documentation else 0
                long += [f"{file}: {node.name}"] if lines > most else []
    assert long == []


def test_the_formatter_is_obeyed() -> None:
    skipped = {
        file: (PYTHON / file).read_text(encoding="utf-8").count("fmt: skip") for file in files()
    }
    assert sum(skipped.values()) < 30, {file: n for file, n in skipped.items() if n}


def test_types_say_what_they_are() -> None:
    """`Any` is for what truly can be anything."""
    found = {
        file: len(re.findall(r"\bAny\b", (PYTHON / file).read_text(encoding="utf-8")))
        for file in files()
    }
    assert sum(found.values()) < 300, {file: n for file, n in found.items() if n > 5}

"""Every public name is on a page of the API, in a section with an example that is run."""

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from vegrad.reports.glossary import TERMS

DOCS = Path(__file__).parents[2] / "docs"
PAGES = sorted((DOCS / "api").glob("*.md"))
MODULES = ["vegrad", "vegrad.clipping", "vegrad.optim", "vegrad.theory", "vegrad.datasets"]
WITH_SKLEARN = ["vegrad.sklearn"]
WITH_TORCH = ["vegrad.torch", "vegrad.torch.callbacks"]
# Public names of modules without `__all__`.
NAMES = {
    "vegrad.optim": ["SGD", "Adam", "AdamW", "Lion", "Optimizer", "cosine", "warmup"],
    "vegrad.torch.callbacks": [
        "lightning_callback",
        "trainer_callback",
        "TensorBoard",
        "WandB",
        "named_scalars",
    ],
}
# Classes of what functions return: their sections show the function that makes them.
RESULTS = (
    "Clipped Comparison Cure Dataset Diagnosis Finding Flow History Measurement Rule Sequences \
Statistics TimeFlow"
)
DIRECTIVE = re.compile(r"^\.\. (?:auto\w+|py:data):: ([\w.]+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(?:python|pycon)\n(.*?)^```$", re.MULTILINE | re.DOTALL)

pytestmark = pytest.mark.skipif(not PAGES, reason="an installed package has no site")


def sections() -> Iterator[tuple[list[str], str]]:
    """The names that each section of the API's pages documents, and the code of its examples."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for section in re.split(r"^##+ ", text, flags=re.MULTILINE):
            yield DIRECTIVE.findall(section), "\n".join(BLOCK.findall(section))


def documented() -> dict[str, str]:
    return {name: code for names, code in sections() for name in names}


def found(path: str) -> object:
    """The object of a dotted path."""
    parts = path.split(".")
    for cut in range(len(parts), 0, -1):
        try:
            value: object = importlib.import_module(".".join(parts[:cut]))
        except ModuleNotFoundError:
            continue
        for part in parts[cut:]:
            value = getattr(value, part)
        return value
    raise AssertionError(f"{path} is no name")


@pytest.mark.parametrize("module", [*MODULES, *WITH_SKLEARN, *WITH_TORCH])
def test_every_public_name_is_on_a_page_with_an_example(module: str) -> None:
    if module in WITH_TORCH:
        pytest.importorskip("torch")
    if module in WITH_SKLEARN:
        pytest.importorskip("sklearn", minversion="1.6")
    code_of, others = documented(), ("vegrad.torch", "vegrad.sklearn")
    objects = {id(found(name)): name for name in code_of if not name.startswith(others)}
    missing, without = [], []
    package = importlib.import_module(module)
    for name in NAMES.get(module) or package.__all__:
        value = getattr(package, name)
        if isinstance(value, ModuleType):
            continue
        path = f"{module}.{name}"
        path = path if path in code_of else objects.get(id(value), path)
        if path not in code_of:
            missing.append(path)
        elif (
            not re.search(rf"\b{re.escape(name)}(?!\w)", code_of[path])
            and name not in RESULTS.split()
        ):
            without.append(path)
    assert missing == []
    assert without == []


def test_every_section_with_a_name_has_an_example() -> None:
    bare = [name for names, code in sections() if not code for name in names]
    assert [name for name in bare if not isinstance(found(name), ModuleType)] == []


def test_examples_are_code() -> None:
    """A block that is a session has its prompts, one that is a script has none."""
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for language, code in re.findall(r"^```(python|pycon)\n(.*?)^```$", text, re.M | re.S):
            assert code.startswith(">>> ") == (language == "pycon"), f"{page.name}: {code}"
            if language == "python":
                ast.parse(code)


def test_the_glossary_has_every_kind_and_every_heading() -> None:
    """What messages call a finding, and what stands over the columns of a diagnosis."""
    names = {name for term in TERMS for name in term.names}
    rules = (DOCS.parent / "python" / "vegrad" / "diagnosis" / "rules").glob("*.py")
    text = "".join(path.read_text(encoding="utf-8") for path in rules)
    kinds = set(re.findall(r'\bkind="(?!stable)(\w+)"', text))  # a sort has a kind, too
    assert {"vanishing", "exploding", "dead"} < kinds <= names
    assert {"gain", "expected", "flat", "rms", "δ", "α", "reach", "carry", "LSUV"} <= names


def test_no_word_is_in_the_glossary_twice() -> None:
    names = [name for term in TERMS for name in term.names]
    assert sorted(names) == sorted(set(names))

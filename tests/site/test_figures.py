"""The figures that pages show are those of the files that the benchmarks wrote."""

import runpy
from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"

pytestmark = pytest.mark.skipif(not DOCS.exists(), reason="an installed package has no site")


def test_the_figures_of_the_page_are_those_of_the_results() -> None:
    """`python docs/_ext/figures.py` writes them anew."""
    figures = runpy.run_path(str(DOCS / "_ext" / "figures.py"))
    text = figures["PAGE"].read_text(encoding="utf-8")
    assert figures["written"](text) == text
    assert all(f"<!-- figures: {name} -->" in text for name in figures["PARTS"])

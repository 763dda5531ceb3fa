"""The page of a run that was recorded: its training, without modules."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import vegrad

from tests.reports.runs import made_up, with_a_spike
from tests.reports.test_page import Page


def test_a_recorded_run_has_a_page_and_a_picture(tmp_path: Path) -> None:
    found = vegrad.diagnose_run(with_a_spike().with_about(path="a/<b>run.jsonl"))
    html = found.to_html(tmp_path / "run.html")
    page = Page(html)
    for words in ("The training", "Spikes", "moved first", "learning-rate-high", "a/<b>run.jsonl"):
        assert words in page.text, words
    assert "The modules" not in page.text
    assert len(html.encode()) < 100_000
    assert "Gradient by depth over time" in Page(found._repr_html_()).text
    pytest.importorskip("matplotlib")
    assert len(found.plot(tmp_path / "run.png").axes) == 6


def test_of_a_very_long_run_a_page_is_small() -> None:
    step = np.arange(200_000.0)
    loss = 1 + np.exp(-step / 1e4) * np.random.default_rng(0).uniform(0.9, 1.1, len(step))
    run = made_up(len(step), 2, step=step, loss=loss)
    tracemalloc.start()
    found = vegrad.diagnose_run(run)
    assert tracemalloc.get_traced_memory()[1] < 200e6
    tracemalloc.stop()
    html = found.to_html()
    assert len(html.encode()) < 100_000
    short = run.thinned()
    assert 300 < short.steps <= 1000
    assert short.gradient_log2.shape == (short.steps, 2)
    assert short.thinned() is short

"""Two runs or diagnoses side by side: what parted first and where, in numbers, words and pages."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.noted import Noted
from vegrad.reports import comparison, run_charts
from vegrad.runs.departures import first_away
from vegrad.runs.run import COLUMNS, Run

from tests.reports.runs import finding, made_up
from tests.reports.test_page import Page


def parted(column: str, place: int, times: float, seed: int = 1, **options: Any) -> Run:
    """Return a run whose column is so many times as large from a step on."""
    run = made_up(seed=seed, **options)
    values = getattr(run, column).copy()
    values[place:] = (
        values[place:] + math.log2(times) if values.ndim > 1 else values[place:] * times
    )
    return made_up(seed=seed, **options, **{column: values})


def test_chance_alone_is_no_departure() -> None:
    for seed in range(1, 30):
        assert vegrad.compare(made_up(seed=0), made_up(seed=seed)).departures == ()


@pytest.mark.parametrize("place", [0, 3, 60, 190])
@pytest.mark.parametrize("column", ["loss", "gradient_norm", "learning_rate"])
def test_a_column_departs_at_its_step(column: str, place: int) -> None:
    other = parted(column, place, 3.0)
    found = {one.what: one for one in vegrad.compare(made_up(seed=1), other).departures}
    assert abs(found[column].step - place) <= (0 if column == "learning_rate" else 2)
    assert found[column].times_log2 == pytest.approx(math.log2(3), abs=0.2)


def test_the_module_that_parts_first_is_named() -> None:
    sizes = made_up(seed=1).gradient_log2.copy()
    sizes[100:, 4] += 5
    sizes[110:, :4] -= 3
    loss = made_up(seed=1).loss.copy()
    loss[130:] *= 2
    other = made_up(seed=1, gradient_log2=sizes, loss=loss)
    both = vegrad.compare(made_up(seed=1), other, names=("base", "new"))
    assert (both.first.what, both.first.name, both.first.step) == ("module", "block.4.linear", 100)
    assert [one.step for one in both.departures] == [100, 110, 110, 110, 110, 130]
    assert both.same_until == 130  # the made-up norm is the same in both
    text = str(both)
    for words in (
        "from step 100 on the gradient of block.4.linear is 32.0 times as large in new as in base",
        "step 110: the gradient of block.",
        "; 3 other modules part there too",
        "step 130: the loss is 2.00 times as large in new as in base",
        "before step 130 they are the same to the last bit",
    ):
        assert words in " ".join(text.split()), words


def test_what_is_not_finite_or_0() -> None:
    loss = made_up().loss.copy()
    loss[50:] = np.nan
    other = made_up(loss=loss, nonfinite={"loss": 50.0})
    both = vegrad.compare(made_up(), other, names=("base", "new"))
    assert (both.first.what, both.first.step, both.first.is_finite) == ("loss", 50, False)
    assert "from step 50 on the loss is not finite in new, and " in str(both)
    sizes = made_up().gradient_log2.copy()
    sizes[70:, 2] = -np.inf
    both = vegrad.compare(made_up(gradient_log2=sizes), made_up(), names=("base", "new"))
    assert (both.first.name, both.first.step, both.first.values[0]) == ("block.2.linear", 70, 0.0)
    assert "the gradient of block.2.linear is 0 in base, and " in str(both)
    assert "0 in base only" in both.to_html()
    unknown = made_up(loss=np.full(200, np.nan))
    assert vegrad.compare(made_up(), unknown).departures == ()


def test_losses_below_0() -> None:
    loss = made_up().loss - 1.2
    other = loss.copy()
    other[80:] -= 3
    both = vegrad.compare(made_up(loss=loss), made_up(loss=other))
    assert (both.first.what, both.first.step) == ("loss", 80)
    assert math.isnan(both.first.times_log2) or both.first.values[1] < 0
    assert "the loss is -0." in str(both)


def test_findings_and_settings_that_differ() -> None:
    about = {"model": "Blocks", "settings": {"optimizer": "AdamW", "optimizer: eps": 1e-8}}
    first = made_up(noted=(Noted(5, finding()), Noted(7, finding(cause="dead-units"))))
    second = made_up(noted=(Noted(5, finding()), Noted(90, finding(cause="clip-too-small"))))
    both = vegrad.compare(first, second.with_about(**about))
    assert [(one.cause, one.steps) for one in both.findings] == [
        ("dead-units", (7, None)),
        ("clip-too-small", (None, 90)),
    ]
    assert both.settings == {"optimizer": ("SGD", "AdamW"), "optimizer: eps": ("–", 1e-8)}
    assert both.differ
    assert both.departures == ()
    text = str(both)
    assert "dead-units" in text
    assert "step 90" in text
    assert "AdamW" in text


def test_the_same_run_twice() -> None:
    both = vegrad.compare(made_up(), made_up())
    assert (both.differ, both.first, both.same_until) == (False, None, math.inf)
    assert "the 200 steps that both have are the same to the last bit" in repr(both)
    assert json.dumps(both.to_dict(), allow_nan=False)


# -------------------------------------------------------------------------- what cannot be compared


def test_unlike_models() -> None:
    names = tuple(f"layer.{n}" for n in range(12))
    both = vegrad.compare(made_up(), made_up(modules=12)).sizes
    assert len(both) == 12
    other = made_up()
    object.__setattr__(other, "modules", names)
    both = vegrad.compare(made_up(), other)
    assert both.sizes == ()
    text = " ".join(str(both).split())
    assert "only a has block.0.linear" in text
    assert "the models differ: no gradient of a module is compared" in text
    Page(both.to_html())
    deeper = vegrad.compare(made_up(modules=12), made_up(modules=14))
    assert "of their modules the 12 are compared that both have" in " ".join(str(deeper).split())


def test_runs_without_a_common_step() -> None:
    with pytest.raises(ValueError, match=r"no step in common: a has steps 0 to 199, b no step"):
        vegrad.compare(made_up(), made_up(0, 0))
    later = made_up(step=500 + np.arange(200.0))
    with pytest.raises(ValueError, match=r"base has steps 0 to 199, new steps 500 to 699"):
        vegrad.compare(made_up(), later, names=("base", "new"))
    some = vegrad.compare(made_up(), made_up(step=2 * np.arange(200.0)))
    assert some.steps == (0.0, 198.0, 100)


def test_runs_with_nothing_in_common() -> None:
    empty = np.full(200, np.nan)
    bare = made_up(200, 0, loss=empty, gradient_norm=empty, clipped_norm=empty)
    both = vegrad.compare(made_up(), bare)
    assert "nothing that both have recorded can be compared" in str(both)
    assert both.to_html()


def test_wrong_arguments(tmp_path: Path) -> None:
    run = made_up()
    net = vegrad.MLP([4, 8, 2], seed=0)
    found = vegrad.diagnose(net, np.ones((8, 4)), np.ones((8, 2)))
    for two, options, error, words in (
        ((run, 3), {}, TypeError, "b must be a run .* not int"),
        ((net, run), {}, TypeError, "a must be a run .* not MLP"),
        ((run, found), {}, TypeError, "both must be runs, or both diagnoses, not a Run and a Dia"),
        ((run, run), {"names": "ab"}, ValueError, "names must be two words, not 'ab'"),
        ((run, run), {"names": ("a",)}, ValueError, "names must be two words"),
        ((run, run), {"names": ("x", "x")}, ValueError, "must differ, not both be 'x'"),
        ((run, tmp_path / "no.jsonl"), {}, FileNotFoundError, "no.jsonl"),
    ):
        with pytest.raises(error, match=words):
            vegrad.compare(*two, **options)
    damaged = tmp_path / "damaged.json"
    damaged.write_text('{"loss": [')
    with pytest.raises(ValueError, match=r"damaged\.json"):
        vegrad.compare(run, str(damaged))


# -------------------------------------------------------------------------------- shown in all ways


def test_the_page_has_all_and_cannot_be_harmed(tmp_path: Path) -> None:
    evil = "</script><img src=x onerror=alert(1)>"
    noted = (Noted(3, finding(cause=evil)),)
    other = parted("gradient_log2", 100, 9.0, modules=1000, steps=1000, noted=noted)
    other = other.with_about(settings={evil: evil})
    both = vegrad.compare(made_up(1000, 1000, seed=1), other, names=("base", evil))
    html = both.to_html(tmp_path / "both.html")
    assert (tmp_path / "both.html").read_text(encoding="utf-8") == html
    assert len(html.encode()) < 300_000
    page = Page(html)
    assert not page.all("img")
    for words in ("Settings that differ", "Findings that differ", "Numbers of both", "Ratio of"):
        assert words in page.text, words
    assert len(page.all("image")) == 2
    assert json.loads(page.scripts[0])["differ"] is True
    assert "onerror=alert(1)" in page.text
    output = both._repr_html_()
    assert len(output.encode()) < 60_000
    assert not Page(output).all("img")


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    both = vegrad.compare(made_up(), parted("loss", 80, 3.0))
    figure = both.plot(tmp_path / "both.png")
    assert [axes.get_ylabel() for axes in figure.axes][1:4] == [
        "loss",
        "gradient norm",
        "update / weight",
    ]
    nothing = np.full(200, np.nan)
    run = made_up(200, 0, loss=nothing, gradient_norm=nothing, update_ratio=nothing)
    with pytest.raises(ValueError, match="there is nothing to draw"):
        vegrad.compare(run, run).plot()


def test_files_and_histories(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((128, 8))
    histories = []
    for rate in (0.01, 0.05):
        net = vegrad.MLP([8, 16, 1], seed=0)
        options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "seed": 0, "progress": False}
        optimizer = vegrad.SGD(rate)
        histories.append(net.fit(x, x[:, :1], optimizer=optimizer, on_finding=None, **options))
        histories[-1].save(tmp_path / f"{rate}.json")
    both = vegrad.compare(*histories)
    files = vegrad.compare(tmp_path / "0.01.json", str(tmp_path / "0.05.json"))
    assert files.names == ("0.01.json", "0.05.json")
    assert files.departures == both.departures
    assert both.first.what == "learning_rate"
    for place, history in enumerate(histories):
        (tmp_path / f"run{place}").mkdir()
        history.save(tmp_path / f"run{place}" / "history.json")
    files = vegrad.compare(*(tmp_path / f"run{place}" / "history.json" for place in (0, 1)))
    assert files.names == ("run0", "run1")


# ------------------------------------------------------------------------------------- diagnoses


def judged(depth: int = 12, activation: str = "tanh", scaled: int | None = None) -> Any:
    rng = np.random.default_rng(0)
    net = vegrad.MLP([16] * depth + [4], activation=activation, seed=0, loss="cross_entropy")
    if scaled is not None:
        net.parameters[f"layers.{scaled}.weight"][...] *= 1e-4
    return vegrad.diagnose(net, rng.standard_normal((64, 16)), rng.integers(0, 4, 64))


def test_two_diagnoses_part_at_a_layer(tmp_path: Path) -> None:
    both = vegrad.compare(judged(), judged(scaled=6), names=("before", "after"))
    assert both.first.what == "layer"
    assert both.first.name in ("5", "6")
    assert abs(both.first.times_log2) > 4
    assert ("weight-scale", (None, 0)) in [(one.cause, one.steps) for one in both.findings]
    page = Page(both.to_html())
    assert "Layer by layer" in page.text
    assert f"the gradient at layer {both.first.name} is" in str(both)
    pytest.importorskip("matplotlib")
    both.plot(tmp_path / "both.png")
    settings = vegrad.compare(judged(), judged(activation="sigmoid")).settings
    assert settings["activation"] == ("tanh", "sigmoid")


def test_diagnoses_of_unlike_depth_and_the_same() -> None:
    both = vegrad.compare(judged(12), judged(20))
    assert both.sizes == ()
    assert "only b has 12" in " ".join(str(both).split())
    assert "do not differ by a factor of two" in str(vegrad.compare(judged(), judged()))


# ---------------------------------------------------------------------------------------- the rule


def test_first_away() -> None:
    rng = np.random.default_rng(0)
    away = 0.1 * rng.standard_normal((300, 3))
    away[100:, 1] += 2
    away[50, 2] = 40.0  # a single spike is no departure
    assert first_away(away, 0.5).tolist() == [-1, 100, -1]
    assert first_away(np.zeros((0, 2)), 0.5).tolist() == [-1, -1]
    assert first_away(np.array([[3.0, np.nan]]), 0.5).tolist() == [0, -1]
    wild = away.copy()
    wild[120:, 1] += 30 * rng.standard_normal(180)
    assert first_away(wild, 0.5)[1] == 100


def test_words_of_the_headline() -> None:
    both = vegrad.compare(made_up(), parted("loss", 80, 0.25), names=("one", "two"))
    assert "times as large in two as in one" in comparison.headline(both)


def test_a_norm_after_a_clip_that_was_told_only_where_it_clipped() -> None:
    run = made_up()
    clipped = run.clipped_norm < run.gradient_norm
    assert clipped.any()
    log = made_up(clipped_norm=np.where(clipped, run.clipped_norm, np.nan))
    both = vegrad.compare(run, log)
    assert both.departures == ()
    share = both.figures["steps that were clipped, %"]
    assert share[0] == share[1] == 100 * clipped.mean()
    assert "after it" in run_charts.course(log)


def test_recurrent_diagnoses_are_compared_step_by_step() -> None:
    random = np.random.default_rng(0)
    rows, classes = random.normal(size=(8, 30, 4)).astype("f"), random.integers(0, 3, 8)
    two = [vegrad.RNN(4, 16, 3, cell="tanh", loss="cross_entropy", seed=0) for _ in range(2)]
    two[1].parameters["rnn.weight_hh_l0"][...] *= 2
    both = vegrad.compare(*(vegrad.diagnose(one, rows, classes) for one in two))
    assert both.first is not None
    assert both.first.what == "time"
    assert "before the last is" in str(both)
    assert len(both.sizes) == 30
    assert both.sizes[-1][0] == "at the last step"
    assert both.figures["reach of layer 0, steps"][0] < both.figures["reach of layer 0, steps"][1]
    shorter = vegrad.diagnose(two[0], rows[:, 10:], classes)
    assert len(vegrad.compare(vegrad.diagnose(two[0], rows, classes), shorter).sizes) == 20


@pytest.mark.parametrize(
    ("steps", "first"), [(60, "median of the first 5"), (3, "median of the first 3"), (1, "first")]
)
def test_figures_of_several_steps_say_so(steps: int, first: str) -> None:
    runs = []
    for count in (60, steps):
        columns = {name: np.full(count, np.nan) for name in COLUMNS}
        columns |= {"step": np.arange(count), "loss": 60.0 - np.arange(count)}
        runs.append(Run(**columns))
    figures, few = vegrad.compare(*runs).figures, min(steps, 5)
    assert figures[f"loss, {first}"] == (61 - (few + 1) / 2,) * 2
    last = figures[f"loss, {first.replace('first', 'last')}"]
    assert last == ((few + 1) / 2, 60 - steps + (few + 1) / 2)

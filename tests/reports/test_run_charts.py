"""A run as charts and pictures: the heat map, its colours, and what is beside it."""

import struct
import zlib
from base64 import b64decode
from pathlib import Path

import numpy as np
import pytest
from vegrad.reports import heat, run_charts, run_picture, spikes

from tests.reports.runs import finding, made_up, with_a_spike
from tests.reports.test_page import Page, luminance


def pixels(file: bytes) -> np.ndarray:
    """Return the numbers in a PNG of one byte a pixel, after a look at its parts."""
    assert file[:8] == b"\x89PNG\r\n\x1a\n"
    place, parts = 8, {}
    while place < len(file):
        length, name = struct.unpack(">I4s", file[place : place + 8])
        content = file[place + 8 : place + 8 + length]
        (check,) = struct.unpack(">I", file[place + 8 + length : place + 12 + length])
        assert check == zlib.crc32(name + content)
        parts[name], place = content, place + 12 + length
    width, height = struct.unpack(">II", parts[b"IHDR"][:8])
    lines = np.frombuffer(zlib.decompress(parts[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert (lines[:, 0] == 0).all()
    return lines[:, 1:]


def test_the_colours_rise_in_lightness_and_are_told_from_what_is_lost() -> None:
    colours = ["#" + one.tobytes().hex() for one in heat.palette()[3:]]
    bright = [luminance(one) for one in colours]
    assert (np.diff(bright) > 0).all()
    assert bright[-1] / bright[0] > 50
    lost, infinite = heat.palette()[1].astype(float), heat.palette()[2].astype(float)
    for other in (lost, infinite):
        assert np.abs(heat.palette()[3:].astype(float) - other).sum(axis=1).min() > 120


def test_cells_have_medians_of_modules_and_largest_of_steps() -> None:
    sizes = np.log2(np.array([[1.0, 10, 100], [3, 30, 300]]).T * 1e-3)
    run = made_up(3, 2, gradient_log2=sizes)
    cells = heat.cells_of(run)
    assert cells is not None
    np.testing.assert_allclose(cells.log10, np.log10([[1e-3, 1e-2, 0.1], [3e-3, 3e-2, 0.3]]))
    assert cells.steps == (0.0, 3.0)
    assert cells.rows == ((0, 0), (1, 1))
    few = heat.cells_of(run, columns=1, rows=1)
    assert few is not None
    np.testing.assert_allclose(few.log10, [[-1.0]])  # the lower median of two
    assert few.rows == ((0, 1),)


def test_cells_of_uneven_steps_go_on_until_the_next() -> None:
    step = np.array([0.0, 1, 2, 10, 20])
    sizes = np.arange(5.0)[:, None] * np.log2(10.0)
    run = made_up(5, 1, step=step, gradient_log2=sizes)
    cells = heat.cells_of(run)
    assert cells is not None
    assert cells.log10.shape == (1, 21)
    np.testing.assert_allclose(cells.log10[0], [0, 1, *[2] * 8, *[3] * 10, 4])
    for columns in range(1, 30):
        found = heat.cells_of(run, columns)
        assert found is not None
        assert np.isfinite(found.log10).all()


def test_what_is_not_a_size_has_a_colour_of_its_own() -> None:
    sizes = np.array([[np.nan, -np.inf, -40.0, -10.0, 0.0, np.inf]])
    found = heat.shades(sizes, (-10.0, 0.0), -37.9)
    assert found.tolist() == [[0, 1, 1, 3, heat.SHADES + 2, 2]]
    address = heat.as_address(found)
    file = b64decode(address.removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(pixels(file), found)
    assert heat.colour_of(0.0, (-10.0, 0.0)) == heat.RAMP[-1]
    assert heat.colour_of(np.nan, (-10.0, 0.0)) == ""


def test_nothing_to_draw() -> None:
    for run in (
        made_up(0, 0),
        made_up(5, 0),
        made_up(5, 3, gradient_log2=np.full((5, 3), np.nan)),
    ):
        assert heat.cells_of(run) is None
        assert run_charts.heat(run) == []
    zeros = np.full((5, 3), -np.inf)
    assert "exactly 0" in run_charts.course(made_up(5, 3, gradient_log2=zeros, floor_log2=-np.inf))
    assert "the floor" in run_charts.course(made_up(5, 3, gradient_log2=zeros))


def test_the_chart_tells_all_columns_and_findings() -> None:
    run = with_a_spike()
    page = Page(f"<main>{run_charts.course(run)}</main>")
    for words in (
        "Gradient by depth over time",
        "before the clip",
        "after it",
        "Update over weight",
        "Learning rate",
        "spike",
        "step 124: learning-rate-high",
        "block.0.linear",
        "The first module is at the top",
    ):
        assert words in page.text, words
    images = [one["href"] or "" for one in page.all("image")]
    assert len(images) == 2  # the map, and its colours
    assert pixels(b64decode(images[0].partition(",")[2])).shape == (12, 160)
    assert "floor" not in page.text


def test_the_floor_is_marked_where_gradients_come_near_it() -> None:
    run = made_up(gradient_log2=made_up().gradient_log2 - 110)
    page = Page(f"<main>{run_charts.course(run)}</main>")
    assert "1.2e-38: the dtype's floor" in page.text
    assert "0, or below 1.2e-38, the floor" in page.text


@pytest.mark.parametrize("modules", [1, 2, 60, 1000])
@pytest.mark.parametrize("steps", [1, 2, 1000])
def test_charts_of_all_sizes_stay_small(modules: int, steps: int) -> None:
    html = run_charts.course(made_up(steps, modules))
    Page(f"<main>{html}</main>")
    assert len(html.encode()) < 120_000


def test_many_findings_are_counted() -> None:
    noted = tuple(type(one)(n, one.finding) for n in range(9) for one in with_a_spike().noted)
    assert "and 3 more" in run_charts.course(made_up(noted=noted))


# ---------------------------------------------------------------------------------------- spikes


def test_a_spike_tells_which_module_moved_first_and_in_which_batch() -> None:
    run = with_a_spike(batch="shard 7")
    title, moved = spikes.words(run, run.spikes[0])
    assert title.startswith("step 120, batch shard 7: loss 6")
    assert title.endswith("times the median of the steps before")
    assert moved.startswith("the gradient of block.3.linear moved first and most, at step 118: to ")
    found = run.moved(run.spikes[0])
    assert found is not None
    assert found.times == pytest.approx(64, rel=0.3)
    page = Page(f"<main>{spikes.section(run)}</main>")
    rows = [a for a in page.all("th") if a.get("scope") == "row"]
    assert len(rows) == 7
    assert "shard 7" in page.text


def test_names_are_escaped_and_long_ones_cut() -> None:
    evil = "<img src=x onerror=alert(1)>" + "x" * 500
    run = with_a_spike(batch=evil)
    run = made_up(
        modules=2,
        gradient_log2=run.gradient_log2[:, :2],
        spikes=run.spikes,
        noted=(type(run.noted[0])(3, finding(cause=evil)),),
    )
    object.__setattr__(run, "modules", (evil, evil))
    html = run_charts.course(run) + spikes.section(run)
    page = Page(f"<main>{html}</main>")
    assert not page.all("img")
    assert "x" * 500 not in spikes.section(run)


def test_only_the_highest_spikes_are_shown() -> None:
    run = with_a_spike()
    many = made_up(spikes=run.spikes * 8)
    text = Page(f"<main>{spikes.section(many)}</main>").text
    assert "The 5 highest of 8." in text
    assert spikes.section(made_up()) == ""


# --------------------------------------------------------------------------------------- pictures


def test_the_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    figure = run_picture.plot_run(with_a_spike(), tmp_path / "run.png")
    titles = [axes.get_ylabel() for axes in figure.axes]
    assert titles[1:5] == ["loss", "gradient norm", "update / weight", "learning rate"]
    assert figure.axes[0].get_title("left") == "Gradient by depth over time"
    assert any("learning-rate-high" in one.get_text() for one in figure.axes[0].texts)
    assert (tmp_path / "run.png").stat().st_size > 20_000
    assert len(run_picture.plot_run(made_up(5, 0)).axes) == 4
    floor = run_picture.plot_run(made_up(gradient_log2=made_up().gradient_log2 - 110))
    assert "the dtype ends" in floor.axes[-1].get_ylabel()
    with pytest.raises(ValueError, match="no step to draw"):
        run_picture.plot_run(made_up(0, 0))
    with pytest.raises(ValueError, match="must end in"):
        run_picture.plot_run(made_up(), "run.txt")
    assert run_picture.heat_figure(made_up(5, 0)) is None

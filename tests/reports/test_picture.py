"""Pictures by matplotlib: whole files with the names that were asked for."""

import re
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.diagnosis.history import History

pytest.importorskip("matplotlib")

RNG = np.random.default_rng(3)
X, Y = RNG.standard_normal((40, 6)), RNG.standard_normal((40, 2))


def trained(**options: int) -> History:
    network = vegrad.MLP([6, 8, 2], activation="tanh", seed=0)
    return network.fit(X, Y, optimizer=vegrad.SGD(0.1), progress=False, **options)


def test_pictures_of_a_training(tmp_path: Path) -> None:
    history = trained(epochs=3, batch_size=10, gauge_every=1)
    history.plot(tmp_path / "bare")
    history.plot(tmp_path / "a.svg")
    history.plot_descent(tmp_path / "b.png", "A title")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"bare.png", "a.svg", "b.png"}
    assert (tmp_path / "bare.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="doc"):
        history.plot(tmp_path / "a.doc")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        history.plot(tmp_path / "nowhere" / "a.png")
    assert {path.name for path in tmp_path.iterdir()} == names


def test_what_never_changed_has_no_panel() -> None:
    bare = trained(epochs=2, batch_size=10)
    assert [axes.get_title() for axes in bare.plot().axes] == ["loss", "gradient norm"]
    network = vegrad.MLP([6, 8, 2], activation="tanh", seed=0)
    optimizer = vegrad.SGD(0.1, clip=vegrad.clipping.GlobalNorm(0.1))
    clipped = network.fit(X, Y, optimizer=optimizer, epochs=2, batch_size=10, progress=False)
    titles = [axes.get_title() for axes in clipped.plot().axes]
    assert titles == ["loss", "gradient norm", "clip's factor"]


def test_a_descent_tells_of_steps_not_looked_at_and_of_guessing() -> None:
    few = trained(epochs=4, batch_size=10, gauge_every=5).plot_descent(guess=0.7).axes[0]
    assert few.get_xlabel().endswith(" steps looked at (gauge_every)")
    assert any(np.allclose(line.get_ydata(), 0.7) for line in few.lines)
    every = trained(epochs=1, batch_size=10, gauge_every=1).plot_descent().axes[0]
    assert "looked at" not in every.get_xlabel()


def test_a_descent_that_ends_in_nan_was_looked_at_nevertheless() -> None:
    sizes = [6, *[16] * 12, 2]
    network = vegrad.MLP(sizes, activation="relu", init="normal", sigma_w=2.5, seed=0)
    more = {"epochs": 2, "batch_size": 10, "gauge_every": 1, "on_finding": None, "progress": False}
    history = network.fit(X, Y, optimizer=vegrad.SGD(1.0), **more)
    words = history.plot_descent().axes[0].get_xlabel()
    assert re.search(r"; \d+ of \d+ steps without a finite loss$", words)


def test_a_history_of_few_decades_has_plain_numbers() -> None:
    axes = trained(epochs=2, batch_size=10).plot().axes[0]
    assert axes.get_yscale() == "linear"


def test_an_empty_training_and_one_without_looks(tmp_path: Path) -> None:
    History().plot(tmp_path / "a.png")
    with pytest.raises(ValueError, match="gauge_every=1"):
        trained(epochs=1, batch_size=10, gauge_every=0).plot_descent(tmp_path / "b.png")


@pytest.mark.parametrize("depth", [1, 2, 130])
def test_pictures_of_a_flow(depth: int, tmp_path: Path) -> None:
    network = vegrad.MLP([6, *[8] * (depth - 1), 2], activation="sigmoid", seed=0)
    diagnosis = vegrad.diagnose(network, X, Y)
    path = tmp_path / "flow.png"
    assert diagnosis.plot(path).axes
    assert path.read_bytes()[:4] == b"\x89PNG"


def test_a_figure_without_a_file() -> None:
    """It shows itself in a notebook, and belongs to no window."""
    history = trained(epochs=1, batch_size=10, gauge_every=1)
    diagnosis = vegrad.diagnose(vegrad.MLP([6, 8, 2], seed=0), X, Y)
    for figure in (diagnosis.plot(), history.plot(), history.plot_descent(title="A title")):
        assert figure.axes
        assert figure._repr_png_()[:4] == b"\x89PNG"


def test_a_slow_machine_is_not_told_of_its_legends(monkeypatch: pytest.MonkeyPatch) -> None:
    """Matplotlib warns where a place that nobody asked for takes a second to find."""
    legends = pytest.importorskip("matplotlib.legend")
    monkeypatch.setattr(legends.time, "perf_counter", count(0, 2).__next__)
    history = trained(epochs=1, batch_size=10, gauge_every=1)
    for figure in (vegrad.diagnose(vegrad.MLP([6, 8, 2], seed=0), X, Y).plot(), history.plot()):
        assert any(axes.get_legend() for axes in figure.axes)
        figure._repr_png_()


def test_panels_that_say_nothing_are_left_out() -> None:
    def panels(**options: object) -> list[str]:
        options = {"activation": "tanh", "init": "glorot_uniform"} | options
        network = vegrad.MLP([6, *[8] * 9, 2], seed=0, **options)
        return [one.get_title("left") for one in vegrad.diagnose(network, X, Y).plot().axes]

    large = ["The gradient, layer by layer", "Gain = weights × derivative"]
    assert panels(activation="sigmoid") == large
    assert panels(init="normal", sigma_w=6.0) == [*large, "Saturated and dead", "Activations"]
    assert panels(init="normal", sigma_w=0.3) == [*large, "Activations"]


def test_a_flow_alone_is_drawn_without_a_verdict(tmp_path: Path) -> None:
    network = vegrad.MLP([3, 8, 8, 2], seed=0)
    network.backward(np.ones((4, 3)), np.ones((4, 2)))
    figure = network.flow.plot(tmp_path / "flow.svg")
    assert figure.get_suptitle().startswith("Flow of 3 layers: the first gets")
    assert (tmp_path / "flow.svg").exists()

"""`vegrad predict`: a price comes out as a price, and a class by its name."""

import csv
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad import datasets
from vegrad.cli import main
from vegrad.cli.guessing import beside_guessing, guess_told, in_words
from vegrad.datasets import Dataset, Preparation
from vegrad.datasets.csv_files import read
from vegrad.datasets.preparation import Column
from vegrad.diagnosis.history import EPOCHS, LAYERS, History

from tests.patches import run_as_file


def houses(path: Path, *, price: bool = True) -> str:
    random = np.random.default_rng(0)
    area, city = random.uniform(40, 160, 120), random.choice(["Rome", "Paris"], 120)
    prices = 50_000 + 2_000 * area + 90_000 * (city == "Paris")
    with path.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file, delimiter=";")
        lines.writerow(["nr", "area", "city", "price"][: 3 + price])
        for n in range(120):
            row = [n, f"{area[n]:.2f}".replace(".", ","), city[n], round(prices[n])]
            lines.writerow(row[: 3 + price])
    return str(path)


def trained(folder: Path, target: str, *more: str) -> str:
    arguments = ["--data", houses(folder / "houses.csv"), "--target", target, "--out", str(folder)]
    assert main(["train", *arguments, "--epochs", "60", "--quiet", "--lr", "0.01", *more]) == 0
    return str(folder / "vegrad-network.safetensors")


def test_a_price_comes_out_as_a_price(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "price")
    told = capsys.readouterr().out
    assert "cells between semicolons, decimal commas\n" in told
    assert re.search(r", R² 0\.9\d+ \(always the mean: -?0\.\d{3}\), error ", told)
    assert "in the target's units\n" in told
    new = houses(tmp_path / "new.csv", price=False)
    assert main(["predict", network, new, "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["price"]
    with (tmp_path / "houses.csv").open(encoding="utf-8") as file:
        true = [float(row["price"]) for row in csv.DictReader(file, delimiter=";")]
    found = np.array([float(one) for (one,) in rows])
    np.testing.assert_array_equal(found, vegrad.MLP.load(network).predict(new))  # all digits
    capsys.readouterr()
    assert main(["predict", network, new]) == 0
    printed = capsys.readouterr().out.splitlines()[1:]
    np.testing.assert_array_equal([float(one) for one in printed], found)
    apart = found - true
    assert np.sqrt(np.mean(apart**2)) < 0.2 * np.std(true)


def test_a_class_comes_out_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "city", "--drop", "nr")
    told = capsys.readouterr().out
    assert "left out: nr (as asked)" in told
    assert "(always the commonest: " in told
    assert main(["predict", network, houses(tmp_path / "new.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], set(lines[1:])) == ("city", {"Rome", "Paris"})


def test_a_guess_knows_the_rows_learnt_from_alone() -> None:
    """What is commonest, or the mean, of the rows held out is not known when one guesses."""
    wine, history = datasets.load("wine"), History()
    epoch = {"epoch_loss": 1.0, "validation_loss": 0.5, "validation_accuracy": 0.5}
    history.add_epoch(**dict.fromkeys((*EPOCHS, *LAYERS), 0.0) | epoch)
    learnt, held = np.arange(59), np.arange(50, 70)  # nine of the 20 are of class 0
    network = vegrad.MLP([13, 3], loss="cross_entropy", seed=0)
    found = beside_guessing(wine, wine.y, network, learnt, held, history)
    right = [network.forward(wine.x[one]).argmax(1) == wine.y[one] for one in (held[:9], held[9:])]
    each = np.mean([np.mean(one) for one in right])
    assert found == {"guessing_accuracy": 9 / 20, "class_accuracy": pytest.approx(each)}
    mixed = beside_guessing(wine, wine.y, network, np.arange(100), held, history)
    assert mixed == {"guessing_accuracy": 9 / 20}  # no class is nearly all
    del found["class_accuracy"]
    told = in_words({"validation_accuracy": 0.45} | found)
    assert told == " (no better than always the commonest: 45.0 %)"
    assert in_words(found | {"class_accuracy": 0.5}).endswith(", 50.0 % if each class counts alike")
    assert in_words({"validation_accuracy": 0.5} | found) == " (always the commonest: 45.0 %)"
    target = np.arange(10.0)[:, None]
    numbers = Dataset("n", target, target, ("x",), True, ())
    found = beside_guessing(
        numbers, target, vegrad.MLP([1, 1], seed=0), np.arange(5), np.arange(5, 10), history
    )
    assert found["r2"] == pytest.approx(1 - 0.5 / 2)
    assert found["guessing_r2"] == pytest.approx(1 - (2 + 25) / 2)
    told = in_words(found | {"r2": -20.0})
    assert told == ", R² -20.000 (no better than always the mean: -12.500)"


def test_a_mean_far_from_zero_is_told_by_what_differs(tmp_path: Path) -> None:
    lines = [f"{n},{1e9 + n / 10}" for n in range(61)]
    (tmp_path / "far.csv").write_text("\n".join(["a,y", *lines]) + "\n", encoding="utf-8")
    data = datasets.load(tmp_path / "far.csv", "y")
    assert guess_told(data, "mse")[0].startswith("y: 1000000003 ± 1.7607; ")


@pytest.mark.parametrize(("name", "told"), [("p.parquet", "'p.parquet'"), ("p.xlsx", "'p.xlsx'")])
def test_predictions_are_text(name: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["predict", "none.safetensors", "none.csv", "--out", name]) == 2
    assert f"--out must end in .csv, .tsv or .txt, not {told}\n" in capsys.readouterr().err


def test_predictions_between_tabs(tmp_path: Path) -> None:
    network = vegrad.MLP([1, 2], seed=0)
    labels = ("left,right", "up\tdown")
    network.preparation = Preparation(
        (Column("a", "number"),), "way, or none", labels, np.zeros(1), np.ones(1)
    )
    network.save(tmp_path / "n")
    (tmp_path / "new.csv").write_text("a\n1\n-1\n", encoding="utf-8")
    line = ["predict", str(tmp_path / "n"), str(tmp_path / "new.csv")]
    assert main([*line, "--out", str(tmp_path / "p.tsv")]) == 0
    text = (tmp_path / "p.tsv").read_text(encoding="utf-8")
    assert text.splitlines()[0] == "way, or none"
    assert set(text.splitlines()[1:]) <= {"left,right", '"up\tdown"'}


def test_the_preparation_stays_with_the_network(tmp_path: Path) -> None:
    network = vegrad.MLP.load(trained(tmp_path, "price"))
    new = houses(tmp_path / "new.csv")
    prices = network.predict(new)
    network.save(tmp_path / "again.safetensors")
    again = vegrad.MLP.load(tmp_path / "again.safetensors")
    np.testing.assert_array_equal(again.predict(new), prices)
    assert again.preparation is not None
    assert network.preparation is not None
    assert again.preparation.to_dict() == network.preparation.to_dict()
    with pytest.raises(TypeError, match="rows must be a frame or the path of a table, not list"):
        network.predict([[1.0]])


def test_a_network_that_knows_of_no_table(tmp_path: Path) -> None:
    network = vegrad.MLP([2, 1], seed=0)
    with pytest.raises(ValueError, match="the network knows nothing of a table"):
        network.predict(houses(tmp_path / "new.csv"))


def test_a_training_goes_on_with_its_own_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "houses.csv"
    trained(tmp_path, "price", "--checkpoint", "state")
    arguments = ["train", "--data", str(data), "--target", "price", "--out", str(tmp_path), "-q"]
    again = [*arguments, "--lr", "0.01", "--epochs", "61", "--checkpoint", "state", "--resume"]
    assert main(again) == 0
    lines = data.read_text(encoding="utf-8").splitlines(keepends=True)
    cells = lines[1].split(";")
    data.write_text("".join([lines[0], f"{cells[0]};1e6;{cells[2]};{cells[3]}", *lines[2:]]))
    before = (tmp_path / "state").read_bytes()
    capsys.readouterr()
    assert main(again) == 2
    told = capsys.readouterr().err
    assert "state: the table must be the one that the training began with" in told
    assert (tmp_path / "state").read_bytes() == before


def test_what_new_rows_lack_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    towns = [["Rome", "Paris", "Oslo"][n % 3] for n in range(30)]
    lines = [f"{n % 7},{town},{n % 7 + len(town)}" for n, town in enumerate(towns)]
    (tmp_path / "old.csv").write_text("\n".join(["a,town,y", *lines]) + "\n", encoding="utf-8")
    arguments = ["--data", str(tmp_path / "old.csv"), "--target", "y", "--out", str(tmp_path)]
    assert main(["train", *arguments, "--loss", "mse", "--epochs", "1", "--quiet"]) == 0
    network, new = str(tmp_path / "vegrad-network.safetensors"), tmp_path / "new.csv"
    new.write_text("a,town\n1,Rome\n,Rome\n3,Berlin\n4,\n,\n", encoding="utf-8")
    capsys.readouterr()
    assert main(["predict", network, str(new)]) == 0
    shown = capsys.readouterr()
    assert len(shown.out.splitlines()) == 5
    assert shown.err.splitlines() == [
        "vegrad: lines without a cell, left out: 1",
        'vegrad: cells without a value, treated as in training: "a" (1), "town" (1)',
        'vegrad: words that training has not seen, taken for none of the known: "town" (1)',
    ]
    with pytest.warns(UserWarning, match=r'has not seen, .*: "town" \(1\)') as caught:
        vegrad.MLP.load(network).predict(new)
    assert [one.filename for one in caught] == [__file__]
    new.write_text("a,town\n1,Rome\n3,Oslo\n", encoding="utf-8")
    assert main(["predict", network, str(new)]) == 0
    assert capsys.readouterr().err == ""


def test_columns_that_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "price")
    (tmp_path / "new.csv").write_text("rooms\n3\n", encoding="utf-8")
    assert main(["predict", network, str(tmp_path / "new.csv")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert 'must have the columns "nr", "area", "city" that the network has learnt from' in told


DEEP = ("--depth", "8", "--width", "16", "--init", "normal", "--sigma-w", "0.3", "--lr", "0.01")


@pytest.mark.parametrize("goal", ["0.3", "1e-9"], ids=["reached", "not reached"])
def test_a_cured_network_knows_of_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], goal: str
) -> None:
    data, path = houses(tmp_path / "houses.csv"), str(tmp_path / "cured.safetensors")
    asked = ("--target", "price", "--goal", goal, "--steps", "60", "--budget", "2")
    main(["cure", "--data", data, *asked, *DEEP, "--save", path, "--patch", f"{path}.py"])
    known = vegrad.datasets.load(data, "price")
    shift, scale = known.target_units
    told = (
        f"price: {round(shift, -1):.0f} ± {scale:.0f}; baseline: loss 1, R² 0 (always the mean)\n"
    )
    shown = capsys.readouterr().out
    assert told in shown
    assert f"network, before training: {path}\n" in shown
    network = vegrad.MLP.load(path)
    wanted = network.forward(known.x)[:, 0] * scale + shift
    np.testing.assert_allclose(network.predict(data), wanted, rtol=1e-6)
    assert main(["predict", path, houses(tmp_path / "new.csv", price=False)]) == 0
    assert capsys.readouterr().out.startswith("price\n")


def test_a_patch_of_a_table_makes_a_network_that_predicts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    houses(Path("houses.csv"))
    line = "cure --data houses.csv --target price --drop nr --fill mean --goal 0.2 --steps 200"
    sick = (
        "--depth",
        "20",
        "--width",
        "16",
        "--init",
        "normal",
        "--sigma-w",
        "0.3",
        "--lr",
        "0.01",
    )
    assert main([*line.split(), *sick, "--quiet", "--patch", "patch.py"]) == 0
    names = run_as_file(Path("patch.py").read_text(encoding="utf-8"))
    assert names["data"].columns == ("area", "city=Rome")  # as asked
    true = names["data"].y[:, 0] * names["data"].target_units[1] + names["data"].target_units[0]
    found = names["network"].predict("houses.csv")
    assert np.sqrt(np.mean((found - true) ** 2)) < 0.5 * np.std(true)


def test_a_cure_that_scales_the_data_scales_what_is_predicted(tmp_path: Path) -> None:
    data = vegrad.datasets.load(houses(tmp_path / "houses.csv"), "price")
    assert data.units is not None
    (shift, scale), (mean, size) = data.units, data.target_units
    x, y = data.x * scale + shift, data.y * size + mean  # as they stood in the file
    network = vegrad.MLP([3, 16, 1], activation="tanh", seed=0)
    assert data.preparation is not None
    once = np.where(scale > 0, 1.0, 0.0)
    network.preparation = replace(
        data.preparation, shift=0 * shift, scale=once, target_shift=0.0, target_scale=1.0
    )
    np.testing.assert_allclose(network.preparation.inputs(read(tmp_path / "houses.csv")), x)
    cured = vegrad.cure(network, x, y, steps=100)
    assert cured.scaling is not None
    assert cured.target_scaling is not None
    by, (moved, times) = cured.scaling, cured.target_scaling
    wanted = cured.network.forward((x - by[0]) / by[1]) * times + moved
    found = cured.network.predict(tmp_path / "houses.csv")
    np.testing.assert_allclose(found, wanted[:, 0], rtol=1e-5)
    assert 200_000 < found.mean() < 400_000
    assert network.preparation.target_scale == 1.0  # the given one's stays


def test_scaled_classes_come_out_by_what_they_are_compared_with() -> None:
    column = Column("a", "number")
    plain = Preparation((column,), "c", ("x", "y", "z"), np.zeros(1), np.ones(1))
    moved = plain.scaled(target=(np.array([0.0, 5.0, 0.0]), 2.0))
    outputs = np.array([[1.0, 0.0, 0.0], [9.0, 0.0, 0.0]])
    assert plain.outputs(outputs).tolist() == ["x", "x"]
    assert moved.outputs(outputs).tolist() == ["y", "x"]
    again = Preparation.from_dict(json.loads(json.dumps(moved.to_dict())))
    assert again.outputs(outputs).tolist() == ["y", "x"]
    with pytest.raises(ValueError, match="target_shift must be a number, or have one for each"):
        Preparation.from_dict(moved.to_dict() | {"target_shift": [1.0, 2.0]})


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames_are_predicted_by_a_file_of_a_network(tmp_path: Path, library: str) -> None:
    frames = pytest.importorskip(library)
    network = vegrad.MLP.load(trained(tmp_path, "price"))
    table = read(tmp_path / "houses.csv")
    frame = frames.DataFrame(
        {"city": table.words[2], "nr": table.numbers[:, 0], "area": table.numbers[:, 1]}
    )
    np.testing.assert_allclose(network.predict(frame), network.predict(tmp_path / "houses.csv"))
    with pytest.raises(ValueError, match='the frame must have the columns "nr", "city" that'):
        network.predict(frames.DataFrame({"area": [1.0]}))


def test_all_that_is_wrong_is_one_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "price")
    data = ["--data", str(tmp_path / "houses.csv"), "--out", str(tmp_path)]
    assert main(["train", *data, "--target", "prise", "--drop", "town"]) == 2
    told = capsys.readouterr().err
    assert 'the columns "prise", "town" are not in ' in told
    assert "exist: --force overwrites" in told
    (tmp_path / "new.csv").write_text("nr,area\n1,wide\n", encoding="utf-8")
    assert main(["predict", network, str(tmp_path / "new.csv")]) == 2
    told = capsys.readouterr().err
    assert 'must have the column "city" that' in told
    assert "line 2, column \"area\": must be numbers, not 'wide'" in told
    (tmp_path / "new.csv").write_text("nr,area,city\n", encoding="utf-8")
    assert main(["predict", network, str(tmp_path / "new.csv")]) == 2
    assert "new.csv has names but no rows\n" in capsys.readouterr().err


def test_predictions_replace_no_file_unasked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    network, path = trained(tmp_path, "price"), tmp_path / "p.csv"
    path.write_text("mine", encoding="utf-8")
    line = ["predict", network, str(tmp_path / "houses.csv"), "--out", str(path)]
    assert main(line) == 2
    assert "p.csv exists: --force overwrites" in capsys.readouterr().err
    assert path.read_text(encoding="utf-8") == "mine"
    assert main([*line, "--force"]) == 0
    assert path.read_text(encoding="utf-8").startswith("price\n")


def test_a_network_of_very_many_columns_is_saved(tmp_path: Path) -> None:
    """The header of a file may not be long."""
    count = 20_000
    columns = tuple(Column(f"c{n}", "number", fill=n / 7) for n in range(count))
    made = Preparation(columns, "y", (), np.arange(count) / 3, np.ones(count), 5.0, 2.0)
    network = vegrad.MLP([count, 1], seed=0)
    network.preparation = made
    network.save(tmp_path / "wide.safetensors")
    assert int.from_bytes((tmp_path / "wide.safetensors").read_bytes()[:8], "little") < 10**6
    again = vegrad.MLP.load(tmp_path / "wide.safetensors").preparation
    assert again is not None
    assert again.to_dict() == made.to_dict()
    assert made.packed().keys() == {"zlib"}
    for broken in ("x", "eA==", 3):
        with pytest.raises(ValueError, match=r"."):
            Preparation.unpacked({"zlib": broken})

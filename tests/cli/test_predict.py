"""`vegrad predict`: a price comes out as a price, and a class by its name."""

import csv
from pathlib import Path

import numpy as np
import pytest
import vegrad
from vegrad.cli import main


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
    assert ", R² 0.9" in told
    assert "in the target's units\n" in told
    new = houses(tmp_path / "new.csv", price=False)
    assert main(["predict", network, new, "--out", str(tmp_path / "p.csv")]) == 0
    with (tmp_path / "p.csv").open(encoding="utf-8") as file:
        header, *rows = csv.reader(file)
    assert header == ["price"]
    with (tmp_path / "houses.csv").open(encoding="utf-8") as file:
        true = [float(row["price"]) for row in csv.DictReader(file, delimiter=";")]
    apart = np.array([float(one) for (one,) in rows]) - true
    assert np.sqrt(np.mean(apart**2)) < 0.2 * np.std(true)


def test_a_class_comes_out_by_its_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "city", "--drop", "nr")
    told = capsys.readouterr().out
    assert "left out: nr (as asked)" in told
    assert "(always the commonest: " in told
    assert main(["predict", network, houses(tmp_path / "new.csv")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert (lines[0], set(lines[1:])) == ("city", {"Rome", "Paris"})


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


def test_columns_that_lack(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    network = trained(tmp_path, "price")
    (tmp_path / "new.csv").write_text("rooms\n3\n", encoding="utf-8")
    assert main(["predict", network, str(tmp_path / "new.csv")]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert 'must have the columns "nr", "area", "city" that the network has learnt from' in told


def test_a_file_that_is_there_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of all files most of all the table whose rows are predicted."""
    network, new = trained(tmp_path, "price"), houses(tmp_path / "new.csv", price=False)
    before = Path(new).read_bytes()
    capsys.readouterr()
    assert main(["predict", network, new, "--out", new]) == 2
    said = f"vegrad: error: {new} exists: --force overwrites, --out FILE writes elsewhere\n"
    assert capsys.readouterr().err == said
    assert Path(new).read_bytes() == before
    assert main(["predict", network, new, "--out", str(tmp_path / "no" / "p.csv")]) == 2
    assert main(["predict", network, new, "--out", new, "--force"]) == 0
    assert Path(new).read_text().startswith("price\n")

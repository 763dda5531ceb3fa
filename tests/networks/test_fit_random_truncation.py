"""Training with a truncation at random, and streams that are stopped and gone on with."""

from __future__ import annotations

import json
import math
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

ROWS, T, SIZES = 6, 12, (3, 5, 2)


def data(targets: str) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    shape = (ROWS, T) if targets == "all" else (ROWS,)
    return rng.standard_normal((ROWS, T, SIZES[0])), rng.uniform(size=(*shape, SIZES[2]))


def make(targets: str, cell: str = "gru") -> vegrad.RNN:
    return vegrad.RNN(*SIZES, cell=cell, targets=targets, dtype="float64", seed=4)


def fit(net: vegrad.RNN, x: Any, target: Any, **options: Any) -> vegrad.History:
    options = {"epochs": 1, "batch_size": 3, "seed": 1, "gauge_every": None} | options
    options = {"optimizer": vegrad.SGD(1.0), "progress": False, "on_finding": None} | options
    return net.fit(x, target, **options)


class Cut:
    """Cuts of a truncation at random of mean length 4, as if they had been drawn."""

    def __init__(self, kept: tuple[bool, ...]) -> None:
        self.kept = kept

    def factors(self, steps: int) -> np.ndarray:
        assert steps == len(self.kept)
        return np.where(self.kept, 4 / 3, 0.0)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("cell", ["tanh", "relu", "gru", "lstm"])
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("lengths", [None, [4, 1, 2, 4, 3, 4]])
def test_the_mean_step_is_that_of_the_full_gradient(
    targets: str, cell: str, lengths: list[int] | None
) -> None:
    """Over all ways to cut 4 steps, as often as each is drawn; steps of rate 1 are gradients."""
    x, target = data(targets)
    x, target = x[:, :4], target[:, :4] if targets == "all" else target
    options = {"batch_size": ROWS, "lengths": lengths}
    whole, mean = make(targets, cell), 0.0
    fit(whole, x, target, **options)
    for kept in product([True, False], repeat=4):
        net = make(targets, cell)
        fit(net, x, target, truncation=Cut(kept), **options)
        chance = math.prod(0.75 if one else 0.25 for one in kept)
        mean += chance * np.concatenate([p.ravel() for p in net.parameters.values()])
    wanted = np.concatenate([p.ravel() for p in whole.parameters.values()])
    np.testing.assert_allclose(mean, wanted, rtol=1e-12, atol=1e-13)


def test_draws_are_as_frequent_as_they_should_be() -> None:
    """So that the mean of what they multiply is 1 for every number of steps."""
    factors = vegrad.RandomTruncation(4, seed=0).factors(200_000).reshape(-1, 10)
    assert set(np.unique(factors)) == {0.0, 4 / 3}
    products = np.cumprod(factors, axis=1)
    error = products.std(axis=0) / len(products) ** 0.5
    np.testing.assert_array_less(np.abs(products.mean(axis=0) - 1), 4 * error)


@pytest.mark.parametrize("targets", ["last", "all"])
def test_the_same_seed_takes_the_same_steps(targets: str) -> None:
    x, target = data(targets)
    losses = [
        fit(make(targets), x, target, epochs=3, truncation=vegrad.RandomTruncation(3, seed)).loss
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(losses[0], losses[1])
    assert (losses[0] != losses[2]).any()


@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_resume_goes_on_with_the_draws(tmp_path: Path, targets: str) -> None:
    x, target = data(targets)
    whole, half, other = make(targets), make(targets), make(targets)
    wanted = fit(whole, x, target, epochs=4, truncation=vegrad.RandomTruncation(3, 7))
    first = vegrad.RandomTruncation(3, 7)
    fit(half, x, target, epochs=2, truncation=first, checkpoint=tmp_path / "half")
    then = vegrad.RandomTruncation(3, 7)
    history = fit(other, x, target, epochs=4, truncation=then, resume=tmp_path / "half")
    np.testing.assert_array_equal(history.loss, wanted.loss)
    for name, parameter in whole.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], parameter)


def as_stream(kind: str, folder: Path, x: np.ndarray, target: np.ndarray) -> tuple[Any, Any]:
    """Return the data as windows of 5 steps, or as memory maps."""
    if kind == "windows":
        return np.split(x, [5, 10], axis=1), np.split(target, [5, 10], axis=1)
    np.save(folder / "x.npy", x)
    np.save(folder / "target.npy", target)
    return tuple(np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("x", "target"))


@pytest.mark.parametrize("kind", ["windows", "map"])
@pytest.mark.parametrize("random", [False, True])
def test_a_stream_goes_on_where_it_was_left(tmp_path: Path, kind: str, random: bool) -> None:
    """Resumed from a checkpoint, and from a network that was saved and loaded."""
    x, target = as_stream(kind, tmp_path, *data("all"))

    def options() -> dict[str, Any]:
        if random:
            return {"truncation": vegrad.RandomTruncation(3, 7)}
        return {"truncation": None if kind == "windows" else 5}

    whole, half = make("all"), make("all")
    wanted = fit(whole, x, target, epochs=4, **options())
    kept = fit(half, x, target, epochs=2, checkpoint=tmp_path / "half", **options())
    np.testing.assert_array_equal(kept.loss, wanted.loss[: len(kept.loss)])
    other = make("all")
    history = fit(other, x, target, epochs=4, resume=tmp_path / "half", **options())
    np.testing.assert_array_equal(history.loss, wanted.loss)
    half.save(tmp_path / "net")
    loaded = vegrad.RNN.load(tmp_path / "net")
    for net in (half, loaded):
        fit(net, x, target, **options())
    for name, parameter in whole.parameters.items():
        np.testing.assert_array_equal(other.parameters[name], parameter)
        np.testing.assert_array_equal(loaded.parameters[name], half.parameters[name])


@pytest.mark.parametrize("kind", ["windows", "map"])
@pytest.mark.parametrize(("row", "step"), [(4, 7), (0, 11)])
def test_a_nan_in_a_stream_is_found_by_row_and_step(
    tmp_path: Path, kind: str, row: int, step: int
) -> None:
    x, target = data("all")
    x[row, step, 2] = np.nan
    stream = as_stream(kind, tmp_path, x, target)
    history = fit(make("all"), *stream, truncation=5 if kind == "map" else None)
    (found,) = (one for one in history.findings if one.kind == "nonfinite")
    assert [found.evidence[name] for name in ("row", "step", "column")] == [row, step, 2]


@pytest.mark.parametrize("kind", ["windows", "map"])
def test_a_label_in_a_stream_is_refused_by_row_and_step(tmp_path: Path, kind: str) -> None:
    """It is read only when the training comes there, in whatever order the rows are."""
    x, labels = data("all")[0], np.zeros((ROWS, T), int)
    labels[2, 7] = 5
    stream = as_stream(kind, tmp_path, x, labels)
    net = vegrad.RNN(*SIZES, targets="all", loss="cross_entropy", seed=0)
    with pytest.raises(ValueError, match=r"labels from 0 to 1, but target\[2, 7\] is 5"):
        fit(net, *stream, truncation=5 if kind == "map" else None)
    fit(net, *stream, truncation=5 if kind == "map" else None, lengths=[T, T, 7, T, T, T])


def test_a_resume_that_fails_has_changed_nothing(tmp_path: Path) -> None:
    x, target = data("all")
    path = tmp_path / "half"
    fit(make("all"), x, target, checkpoint=path, truncation=vegrad.RandomTruncation(3, 7))
    arrays = load_file(path)
    with safe_open(path, framework="numpy") as file:
        about = json.loads(file.metadata()["vegrad"])
    about["cuts"]["drawn"] = -1
    save_file(arrays, path, {"vegrad": json.dumps(about)})
    optimizer, cuts = vegrad.AdamW(0.1), vegrad.RandomTruncation(3, 7)
    before = optimizer.state_dict(), cuts.state_dict()
    net = make("all")
    with pytest.raises(ValueError, match="drawn must be at least 0, not -1"):
        fit(net, x, target, optimizer=optimizer, epochs=2, truncation=cuts, resume=path)
    assert (optimizer.state_dict(), cuts.state_dict()) == before

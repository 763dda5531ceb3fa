"""One training of a recurrent network by several processes: as by one, and equal on all ranks."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.networks.test_distributed import Comm, by_mpi, columns, together

INPUTS, STEPS = 3, 9


def data(rows: int, targets: str, loss: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, STEPS, INPUTS))
    wanted = x[..., :2] if targets == "all" else x[:, :3, :2].sum(axis=1)
    return x, wanted.argmax(-1) if loss == "cross_entropy" else wanted


def network(targets: str = "last", loss: str = "mse", seed: int = 0, **more: Any) -> vegrad.RNN:
    asked = {"cell": "lstm", "dtype": "float64"} | more
    return vegrad.RNN(INPUTS, 5, 2, targets=targets, loss=loss, seed=seed, **asked)


def fitted(comm: Any, net: vegrad.RNN, x, target, **more: Any) -> SimpleNamespace:
    clip = vegrad.clipping.GlobalNorm(0.5)
    asked = {"epochs": 2, "batch_size": 8, "seed": 1, "progress": False, "gauge_every": 3} | more
    asked.setdefault("optimizer", vegrad.AdamW(0.01, clip=clip))
    history = net.fit(x, target, comm=comm, on_finding=None, **asked)
    weights = np.concatenate([array.ravel() for array in net.parameters.values()])
    return SimpleNamespace(weights=weights, history=history)


TRUNCATIONS = [None, 4, (2, 5), (4, 4)]


@settings(max_examples=20, deadline=None)
@given(
    size=st.integers(1, 4),
    batch=st.integers(1, 12),
    rows=st.integers(2, 20),
    targets=st.sampled_from(["last", "all"]),
    loss=st.sampled_from(["mse", "cross_entropy"]),
    truncation=st.sampled_from(TRUNCATIONS),
    cell=st.sampled_from(["tanh", "lstm", "gru"]),
    ragged=st.booleans(),
)
def test_as_one_process_on_the_whole_batch(
    size, batch, rows, targets, loss, truncation, cell, ragged
) -> None:
    x, target = data(rows, targets, loss)
    lengths = np.random.default_rng(2).integers(1, STEPS + 1, rows) if ragged else None
    asked = {"batch_size": batch, "lengths": lengths, "truncation": truncation}
    one = fitted(None, network(targets, loss, cell=cell), x, target, **asked)
    many = together(
        size, lambda comm: fitted(comm, network(targets, loss, cell=cell), x, target, **asked)
    )
    for each in many:
        assert np.array_equal(each.weights, many[0].weights)
        np.testing.assert_allclose(each.weights, one.weights, rtol=1e-9, atol=1e-10)
        for got, first, wanted in zip(
            *map(columns, (each.history, many[0].history, one.history)), strict=True
        ):
            assert np.array_equal(got, first, equal_nan=True)
            assert got.shape == wanted.shape
        np.testing.assert_allclose(each.history.loss, one.history.loss, rtol=1e-9)
        np.testing.assert_allclose(each.history.gradient_norm, one.history.gradient_norm, rtol=1e-7)


def test_in_float32() -> None:
    x, target = data(24, "all", "mse")
    more = {"truncation": (3, 6)}
    one = fitted(None, network("all", dtype="float32"), x, target, **more)
    many = together(
        3, lambda comm: fitted(comm, network("all", dtype="float32"), x, target, **more)
    )
    np.testing.assert_allclose(many[0].weights, one.weights, rtol=1e-4, atol=1e-6)
    assert np.array_equal(many[0].weights, many[2].weights)


def test_draws_at_random_are_the_same_on_all(tmp_path: Path) -> None:
    x, target = data(16, "all", "mse")

    def cut(comm: Comm | None) -> SimpleNamespace:
        seed = 0 if comm is None else comm.rank  # only that of rank 0 counts
        more = {"truncation": vegrad.RandomTruncation(3, seed=seed)}
        return fitted(comm, network("all"), x, target, **more)

    one, many = cut(None), together(3, cut)
    np.testing.assert_allclose(many[1].weights, one.weights, rtol=1e-9, atol=1e-10)
    assert np.array_equal(many[1].weights, many[0].weights)


def test_windows_that_come_one_by_one() -> None:
    x, target = data(10, "all", "mse")
    parts = [np.split(array, 3, axis=1) for array in (x, target)]
    one = fitted(None, network("all"), *parts)
    many = together(2, lambda comm: fitted(comm, network("all"), *parts))
    np.testing.assert_allclose(many[1].weights, one.weights, rtol=1e-9, atol=1e-10)


def test_it_goes_on_from_a_checkpoint(tmp_path: Path) -> None:
    x, target = data(16, "all", "mse")
    more = {"truncation": 4, "epochs": 4}
    whole = together(2, lambda comm: fitted(comm, network("all"), x, target, **more))
    kept = tmp_path / "kept"
    half = more | {"epochs": 2, "checkpoint": kept}
    together(2, lambda comm: fitted(comm, network("all"), x, target, **half))
    again = together(2, lambda comm: fitted(comm, network("all"), x, target, resume=kept, **more))
    assert np.array_equal(again[0].weights, whole[1].weights)


@pytest.mark.parametrize("name", ["x", "lengths", "truncation", "network"])
def test_ranks_that_were_given_different_things(name: str) -> None:
    def fit(comm: Comm) -> Any:
        x, target = data(8, "all", "mse")
        rank, lengths = comm.rank, np.full(8, 6)
        asked = {"lengths": lengths, "truncation": 3}
        if name == "lengths":
            asked["lengths"] = lengths + rank
        if name == "truncation":
            asked["truncation"] = 3 + rank
        net = network("all", cell=("gru", "lstm")[rank] if name == "network" else "gru")
        return fitted(comm, net, x + rank * (name == "x"), target, **asked)

    for error in together(2, fit):
        assert isinstance(error, ValueError)
        assert f"{name} must be the same on all ranks, but is " in str(error)


def test_with_mpi(tmp_path: Path) -> None:
    """Three real processes, with a batch that they cannot share evenly."""
    apart = by_mpi(
        3,
        tmp_path / "train.py",
        "import numpy as np\n"
        "from mpi4py import MPI\n"
        "from tests.networks.test_distributed_recurrent import data, fitted, network\n"
        "comm = MPI.COMM_WORLD\n"
        "given = (*data(23, 'all', 'mse'),)\n"
        "lengths = np.arange(23) % 9 + 1\n"
        "more = dict(lengths=lengths, truncation=(3, 5))\n"
        "found = fitted(comm, network('all', seed=comm.rank), *given, **more)\n"
        "again = fitted(comm, network('all', seed=comm.rank), *given, **more)\n"
        "everyone = comm.gather((found.weights, again.weights))\n"
        "if comm.rank == 0:\n"
        "    assert all(np.array_equal(a, everyone[0][0]) for one in everyone for a in one)\n"
        "    one = fitted(None, network('all'), *given, **more)\n"
        "    print(comm.size, float(np.abs(everyone[0][0] - one.weights).max()))\n",
    )
    assert apart < 1e-10

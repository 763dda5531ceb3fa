"""One training by several processes: as by one, and equal on all ranks."""

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given, settings
from hypothesis import strategies as st

WAIT = 60.0  # seconds after which a rank that is not waited for any more gives up


class Ranks:
    """The memory that the ranks of a fake communicator share: threads of this process."""

    def __init__(self, size: int) -> None:
        self.size, self.barrier = size, threading.Barrier(size)
        self.values: list[Any] = [None] * size

    def all(self, rank: int, value: Any) -> list[Any]:
        self.values[rank] = value
        self.barrier.wait(WAIT)
        values = list(self.values)
        self.barrier.wait(WAIT)
        return values


class Comm:
    def __init__(self, ranks: Ranks, rank: int) -> None:
        self.ranks, self.rank, self.sums = ranks, rank, 0

    def Get_rank(self) -> int:  # noqa: N802
        return self.rank

    def Get_size(self) -> int:  # noqa: N802
        return self.ranks.size

    def allgather(self, value):
        return self.ranks.all(self.rank, value)

    def bcast(self, value):
        return self.ranks.all(self.rank, value)[0]

    def Bcast(self, array) -> None:  # noqa: N802
        array[...] = self.ranks.all(self.rank, array.copy())[0]

    def Allreduce(self, sent, received) -> None:  # noqa: N802
        self.sums += 1
        received[...] = sum(self.ranks.all(self.rank, received.copy()))


def together(size: int, work: Callable[[Comm], Any]) -> list[Any]:
    """Return what each rank returns, or the error it raises."""
    ranks = Ranks(size)
    results: list[Any] = [None] * size

    def run(rank: int) -> None:
        try:
            results[rank] = work(Comm(ranks, rank))
        except Exception as error:
            results[rank] = error

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def data(rows: int = 96, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.integers(3, size=rows)
    return rng.standard_normal((rows, 8)) + 3.0 * np.eye(8)[labels], labels


def network(seed: int = 0, **more: Any) -> vegrad.MLP:
    given = {"loss": "cross_entropy", "dtype": "float64"} | more
    return vegrad.MLP([8, 16, 3], seed=seed, **given)


def fitted(comm: Any, net: vegrad.MLP, x, target, **more: Any) -> SimpleNamespace:
    clip = vegrad.clipping.GlobalNorm(0.5)
    asked = {"epochs": 3, "batch_size": 32, "seed": 1, "progress": False, "gauge_every": 4} | more
    asked.setdefault("optimizer", vegrad.AdamW(0.01, clip=clip))
    history = net.fit(x, target, comm=comm, **asked)
    weights = np.concatenate([array.ravel() for array in net.parameters.values()])
    return SimpleNamespace(weights=weights, history=history)


def columns(history: vegrad.History) -> list[np.ndarray]:
    names = ("loss", "gradient_norm", "coefficient", "alpha", "step_length", "gradient_log2")
    return [np.asarray(getattr(history, name), np.float64) for name in names]


@settings(max_examples=12, deadline=None)
@given(
    size=st.integers(1, 5),
    batch=st.integers(1, 40),
    rows=st.integers(3, 50),
    loss=st.sampled_from(["cross_entropy", "mse", "binary_cross_entropy"]),
    dtype=st.sampled_from(["float64", "float32"]),
)
def test_as_one_process_on_the_whole_batch(size, batch, rows, loss, dtype) -> None:
    x, labels = data(rows)
    target = labels if loss == "cross_entropy" else np.eye(3)[labels]
    asked = {"batch_size": batch, "on_finding": None}
    more = {"loss": loss, "dtype": dtype}
    one = fitted(None, network(**more), x, target, **asked)
    many = together(size, lambda comm: fitted(comm, network(**more), x, target, **asked))
    near = 1e-12 if dtype == "float64" else 1e-5
    for each in many:
        assert np.array_equal(each.weights, many[0].weights)
        assert each.weights == pytest.approx(one.weights, rel=100 * near, abs=100 * near)
        for got, first, wanted in zip(
            *map(columns, (each.history, many[0].history, one.history)), strict=True
        ):
            assert np.array_equal(got, first, equal_nan=True)
            assert got.shape == wanted.shape


def test_float64_is_the_same_to_rounding() -> None:
    x, labels = data()
    one = fitted(None, network(), x, labels)
    many = together(3, lambda comm: fitted(comm, network(), x, labels))
    assert many[2].weights == pytest.approx(one.weights, rel=1e-9, abs=1e-12)
    for got, wanted in zip(*map(columns, (many[2].history, one.history)), strict=True):
        assert got == pytest.approx(wanted, rel=1e-6, abs=1e-9, nan_ok=True)


def test_again_it_is_the_same_to_the_bit_and_all_begin_as_rank_0() -> None:
    x, labels = data()
    once = together(3, lambda comm: fitted(comm, network(comm.rank), x, labels))
    again = together(3, lambda comm: fitted(comm, network(5 * comm.rank), x, labels))
    other = together(3, lambda comm: fitted(comm, network(comm.rank + 7), x, labels))
    assert np.array_equal(once[1].weights, again[2].weights)
    assert not np.array_equal(once[1].weights, other[1].weights)
    unseeded = together(2, lambda comm: fitted(comm, network(), x, labels, seed=None))
    assert np.array_equal(unseeded[0].weights, unseeded[1].weights)


def test_one_sum_of_the_gradients_a_step() -> None:
    x, labels = data()

    def sums(comm: Comm) -> int:
        fitted(comm, network(), x, labels, gauge_every=None)
        return comm.sums

    assert together(2, sums) == [2 * 9] * 2  # nine steps: the gradients, and the loss


def test_rank_0_alone_is_asked_prints_and_writes(tmp_path: Path, capfd) -> None:
    x, labels = data()
    called: list[int] = []

    def fit(comm: Comm) -> int:
        def stop_at_2(_, history) -> bool:
            called.append(comm.rank)
            return history.epochs == 2

        asked = {"callbacks": [stop_at_2], "checkpoint": tmp_path / "kept", "progress": True}
        asked |= {"log": tmp_path / "log.jsonl", "validation": data(32, 1)}
        return fitted(comm, network(), x, labels, **asked).history.epochs

    assert together(3, fit) == [2, 2, 2]
    assert called == [0, 0]
    assert capfd.readouterr().err.count("epoch 1/3") == 1
    assert sorted(one.name for one in tmp_path.iterdir()) == ["kept", "log.jsonl"]
    resumed = together(
        2, lambda comm: fitted(comm, network(), x, labels, resume=tmp_path / "kept").history.epochs
    )
    assert resumed == [3, 3]


@pytest.mark.parametrize("way", ["stop", "raise", "asked", "warn"])
def test_findings_end_all_ranks_at_once(way: str, recwarn) -> None:
    x, labels = data()
    ways = {"asked": lambda finding: True}

    def fit(comm: Comm) -> Any:
        own = {"optimizer": vegrad.SGD(1e4), "epochs": 30, "on_finding": ways.get(way, way)}
        return fitted(comm, network(), x, labels, **own).history

    first, second = together(2, fit)
    if way == "raise":
        assert [type(one) for one in (first, second)] == [vegrad.FindingError] * 2
        first, second = first.history, second.history
    assert [one.finding.kind for one in first.noted] == [one.finding.kind for one in second.noted]
    assert first.noted
    assert first.steps == second.steps
    assert (first.steps < 90) == (way != "warn")
    assert len({str(one.message) for one in recwarn}) == len(recwarn)  # none is told twice


def test_an_error_of_rank_0_is_one_of_all(tmp_path: Path) -> None:
    x, labels = data()
    gone = tmp_path / "no" / "folder" / "kept"
    first, second = together(2, lambda comm: fitted(comm, network(), x, labels, checkpoint=gone))
    assert isinstance(first, FileNotFoundError)
    assert isinstance(second, RuntimeError)
    assert "rank 0 has raised FileNotFoundError" in str(second)


def change(name: str) -> Callable[[int], dict[str, Any]]:
    return {
        "x": lambda rank: {"x": data()[0][: 96 - rank]},
        "target": lambda rank: {"target": (data()[1] + rank) % 3},
        "network": lambda rank: {"net": network(activation=("tanh", "relu")[rank])},
        "optimizer": lambda rank: {"optimizer": vegrad.SGD(0.1 + rank)},
        "epochs": lambda rank: {"epochs": 2 + rank},
        "batch_size": lambda rank: {"batch_size": 2 + rank},
        "validation x": lambda rank: {"validation": data(8, rank)},
    }[name]


@pytest.mark.parametrize(
    "name", ["x", "target", "network", "optimizer", "epochs", "batch_size", "validation x"]
)
def test_ranks_that_were_given_different_things(name: str) -> None:
    def fit(comm: Comm) -> Any:
        x, labels = data()
        own = {"x": x, "target": labels, "net": network()} | change(name)(comm.rank)
        if name == "x":
            own["target"] = own["target"][: len(own["x"])]
        return fitted(comm, own.pop("net"), own.pop("x"), own.pop("target"), **own)

    for error in together(2, fit):
        assert isinstance(error, ValueError)
        assert f"{name} must be the same on all ranks, but is " in str(error)
        assert "on rank 1: each takes all rows" in str(error)


@pytest.mark.parametrize("comm", [0, "world", object()])
def test_what_is_no_communicator(comm: object) -> None:
    x, labels = data()
    with pytest.raises(TypeError, match="comm must be a communicator of mpi4py"):
        fitted(comm, network(), x, labels)


def test_with_mpi(tmp_path: Path) -> None:
    """Four real processes, with a batch that they cannot share evenly."""
    apart = by_mpi(
        4,
        tmp_path / "train.py",
        "import numpy as np, sys, vegrad\n"
        "from mpi4py import MPI\n"
        "from tests.networks.test_distributed import data, fitted, network\n"
        "comm = MPI.COMM_WORLD\n"
        "found = fitted(comm, network(comm.rank), *data(), batch_size=30)\n"
        "everyone = comm.gather(found.weights)\n"
        "if comm.rank == 0:\n"
        "    assert all(np.array_equal(one, everyone[0]) for one in everyone)\n"
        "    alone = fitted(MPI.COMM_SELF, network(), *data(), batch_size=30)\n"
        "    one = fitted(None, network(), *data(), batch_size=30)\n"
        "    assert np.allclose(alone.weights, one.weights, rtol=1e-12)\n"
        "    print(comm.size, float(np.abs(everyone[0] - one.weights).max()))\n",
    )
    assert apart < 1e-12


def by_mpi(ranks: int, script: Path, text: str) -> float:
    """Run a script on so many ranks, and return the last word that it prints; skip without MPI."""
    pytest.importorskip("mpi4py")
    program = shutil.which("mpiexec")
    if program is None:
        pytest.skip("there is no mpiexec")
    script.write_text(text)
    root = str(Path(__file__).parents[2])
    asked = [program, "--version"]
    version = subprocess.run(asked, capture_output=True, text=True, check=False).stdout
    more = ["--allow-run-as-root", "--oversubscribe"] if "Open" in version else []
    ran = subprocess.run(
        [program, *more, "-n", str(ranks), sys.executable, "-m", "mpi4py", str(script)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([root, *sys.path])},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    size, apart = ran.stdout.split()
    assert size == str(ranks)
    return float(apart)

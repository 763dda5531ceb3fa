"""Candidates trained by workers: the outcome is that of one after another, whatever happens."""

from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.treatment import foresight


def rows(scale: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=256)
    return scale * (rng.standard_normal((256, 8)) + 3.0 * np.eye(8)[labels]), labels


CASES: dict[str, Callable[[], tuple[vegrad.MLP, np.ndarray, np.ndarray]]] = {
    "vanishing": lambda: (make(activation="sigmoid"), *rows()),
    "scaled": lambda: (make(activation="relu"), *rows(1e4)),
    "exploding": lambda: (make(activation="relu", init="normal", sigma_w=4.0), *rows()),
    "recurrent": lambda: (
        vegrad.RNN(2, 16, 1, cell="lstm", seed=0),
        np.random.default_rng(0).standard_normal((64, 12, 2)),
        np.random.default_rng(1).standard_normal((64, 1)),
    ),
    "regression": lambda: (
        vegrad.MLP([8, *[32] * 25, 1], activation="tanh", seed=0),
        rows()[0],
        rows()[0][:, :1] * 3,
    ),
}


def make(**options: Any) -> vegrad.MLP:
    return vegrad.MLP([8, *[32] * 18, 3], loss="cross_entropy", seed=0, **options)


def cured(name: str, executor: Any = None, **more: Any) -> vegrad.Cure:
    network, x, target = CASES[name]()
    return vegrad.cure(network, x, target, steps=150, executor=executor, **more)


def assert_same(one: vegrad.Cure, other: vegrad.Cure) -> None:
    assert (one.reached, one.patch, one.cost) == (other.reached, other.patch, other.cost)
    assert len(one.attempts) == len(other.attempts)
    for a, b in zip(one.attempts, other.attempts, strict=True):
        assert (a.name, a.change, a.why, a.loss, a.steps, a.passes, a.ended) == (
            b.name, b.change, b.why, b.loss, b.steps, b.passes, b.ended
        )  # fmt: skip
    for name, array in one.network.parameters.items():
        assert np.array_equal(array, other.network.parameters[name])


class Here(Executor):
    """Trains as soon as it is asked; counts what was used of it."""

    def __init__(self) -> None:
        self.given: list[Future] = []

    def submit(self, function, /, *arguments, **_) -> Future:
        future: Future = Future()
        future.set_running_or_notify_cancel()
        future.set_result(function(*arguments))
        self.given.append(future)
        return future


@pytest.fixture(scope="module")
def processes() -> Iterator[ProcessPoolExecutor]:
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.parametrize("name", CASES)
def test_the_outcome_is_that_of_one_after_another(name: str) -> None:
    here = Here()
    assert_same(cured(name), cured(name, here))
    assert here.given


@pytest.mark.parametrize("name", ["vanishing", "scaled"])
def test_of_processes_and_threads_too(name: str, processes: ProcessPoolExecutor) -> None:
    alone = cured(name)
    assert_same(alone, cured(name, processes))
    with ThreadPoolExecutor(2) as threads:
        assert_same(alone, cured(name, threads))


def test_of_a_pool_too() -> None:
    alone = cured("vanishing")
    with get_context("spawn").Pool(2) as pool:
        assert_same(alone, cured("vanishing", pool))


@pytest.mark.parametrize("engine", ["loky", "dask", "ray"])
def test_of_engines_that_people_run(engine: str) -> None:
    alone = cured("vanishing")
    if engine == "loky":
        loky = pytest.importorskip("loky")
        assert_same(alone, cured("vanishing", loky.get_reusable_executor(2)))
    elif engine == "dask":
        distributed = pytest.importorskip("dask.distributed")
        options = {"n_workers": 2, "threads_per_worker": 1, "dashboard_address": None}
        with distributed.Client(**options) as client:
            assert_same(alone, cured("vanishing", client.get_executor()))
    else:
        ray = pytest.importorskip("ray")
        pools = pytest.importorskip("ray.util.multiprocessing")
        try:
            with pools.Pool(2) as pool:
                assert_same(alone, cured("vanishing", pool))
        finally:
            ray.shutdown()


def test_what_a_worker_has_trained_is_not_trained_again(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[int] = []  # blocks of steps
    known = foresight.Replay._here

    def counted(self: foresight.Replay) -> Any:
        if self._trainer is None:
            begun.append(len(self._orders))
        return known(self)

    monkeypatch.setattr(foresight.Replay, "_here", counted)
    cure = cured("vanishing", Here())
    trained = [one for one in cure.attempts if one.steps]
    assert trained
    # The proof may look where no worker did, after the few steps that its shortest training took.
    assert begun in ([], [1])


class Lost(Executor):
    """Loses every point, or takes none."""

    def __init__(self, *, refuses: bool = False) -> None:
        self.refuses, self.asked = refuses, 0

    def submit(self, function, /, *arguments, **_) -> Future:
        self.asked += 1
        if self.refuses:
            raise RuntimeError("cannot schedule new futures after shutdown")
        future: Future = Future()
        future.set_running_or_notify_cancel()
        future.set_exception(OSError("the machine went away"))
        return future


@pytest.mark.parametrize("refuses", [False, True])
def test_an_executor_that_fails_is_done_without(refuses: bool) -> None:
    lost = Lost(refuses=refuses)
    with pytest.warns(RuntimeWarning, match="the executor has failed, and the search") as warned:
        cure = cured("vanishing", lost)
    assert len(warned) == 1
    assert_same(cured("vanishing"), cure)
    assert lost.asked == 1 or not refuses


def test_what_cannot_be_pickled_is_trained_here(processes: ProcessPoolExecutor) -> None:
    optimizer = vegrad.Adam(lambda step: 1e-3)
    with pytest.warns(RuntimeWarning, match=r"the executor has failed.*(pickle|lambda)"):
        cure = cured("vanishing", processes, optimizer=optimizer)
    assert_same(cured("vanishing", optimizer=optimizer), cure)


def test_what_waits_is_taken_back() -> None:
    class Waiting(Here):
        def submit(self, function, /, *arguments, **_) -> Future:
            self.given.append(Future())
            return self.given[-1]

    waiting = Waiting()
    assert_same(cured("vanishing"), cured("vanishing", waiting))
    assert waiting.given
    assert all(one.cancelled() for one in waiting.given)


def test_what_is_no_executor() -> None:
    with pytest.raises(TypeError, match=r"executor must have submit\(\).*not be 'two'"):
        cured("vanishing", "two")

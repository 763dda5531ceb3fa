"""The same bits for every number of threads; forks, several Python threads; memory."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import _core

SHAPES = [([8, 8], 1), ([64] * 6, 64), ([512, 512, 512, 10], 300), ([5, 3, 70, 2], 1000),
          ([200, 1, 200], 37), ([100] * 20, 1), ([16, 1030, 3], 65), ([300, 700, 260, 9], 3),
          ([64, 40, 100, 33, 128, 17, 9], 700)]  # fmt: skip


def train(sizes: list[int], rows: int, *, steps: int = 2, **options: Any) -> dict[str, np.ndarray]:
    """A few steps of gradient descent; everything there is to see afterwards."""
    net = vegrad.MLP(sizes, seed=3, **options)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((rows, sizes[0]))
    target: Any = rng.uniform(size=(rows, sizes[-1]))
    if net.config["loss"] == "cross_entropy":
        target = rng.integers(0, sizes[-1], rows)
    losses = []
    for _ in range(steps):
        losses.append(net.backward(x, target))
        for name, gradient in net.gradients.items():
            net.parameters[name][...] -= 0.1 * gradient
    seen = {f"d {name}": gradient.copy() for name, gradient in net.gradients.items()}
    flow = {name: np.asarray(value) for name, value in net.flow.to_dict().items()}
    return seen | flow | {"losses": np.array(losses), "output": net.forward(x)}


def assert_same_bits(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.tobytes() == other[name].tobytes(), f"{name} differs"


# ------------------------------------------------------------------------------- the same bits


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("sizes", "rows"), SHAPES)
@pytest.mark.usefixtures("keep_threads")
def test_every_thread_count_gives_the_same_bits(
    isa: str, sizes: list[int], rows: int, dtype: str
) -> None:
    for options in (
        {},
        {"activation": "gelu", "norm": "layer", "residual": True, "loss": "cross_entropy"},
        {"activation": "relu", "norm": "rms", "loss": "binary_cross_entropy"},
    ):
        seen = []
        for count in (1, 2, 3, 7):
            vegrad.set_num_threads(count)
            assert vegrad.num_threads() == count
            seen.append(train(sizes, rows, dtype=dtype, **options))
        for other in seen[1:]:
            assert_same_bits(seen[0], other)


@pytest.mark.usefixtures("keep_threads")
def test_far_regimes_give_the_same_bits(isa: str) -> None:
    for sigma_w in (0.01, 30.0):
        options = {"activation": "relu", "init": "normal", "sigma_w": sigma_w, "steps": 1}
        seen = []
        for count in (1, 2, 3, 7):
            vegrad.set_num_threads(count)
            seen.append(train([60] * 60, 150, **options))
        for other in seen[1:]:
            assert_same_bits(seen[0], other)


@pytest.mark.parametrize("kind", ["nt", "nn", "tn"])
@pytest.mark.usefixtures("keep_threads")
def test_products_give_the_same_bits(isa: str, kind: str) -> None:
    rng = np.random.default_rng(0)
    a = rng.standard_normal((301, 517) if kind != "tn" else (517, 301)).astype("float32")
    b = rng.standard_normal((258, 517) if kind == "nt" else (517, 258)).astype("float32")
    seen = []
    for count in (1, 2, 3, 7):
        vegrad.set_num_threads(count)
        seen.append(_core.matmul(a, b, kind).tobytes())
    assert len(set(seen)) == 1


def test_passes_repeat_to_the_bit(isa: str, threads: int) -> None:
    first = train([64] * 8, 130, norm="layer")
    for _ in range(3):
        assert_same_bits(first, train([64] * 8, 130, norm="layer"))


def test_the_kernels_leave_the_processors_mode_alone(threads: int) -> None:
    """Subnormals are flushed inside the kernels only."""
    train([8, 8, 8], 5)
    tiny = np.float32(2.0**-126)
    half = np.array([0.5], "float32")
    assert (half * tiny)[0] == 2.0**-127
    assert np.float64(2.0**-1022) * 0.5 == 2.0**-1023


# ------------------------------------------------------------------------- forks and threads


def wait_for(child: int, seconds: float) -> int:
    """The exit status of a child process; one that hangs is killed."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError(f"the child still ran after {seconds} seconds")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python's own, with threads about
def test_a_child_of_a_process_that_has_trained_can_train(threads: int) -> None:
    shape, options = ([128] * 6, 200), {"activation": "tanh"}
    want = train(*shape, **options)
    for _ in range(3):
        child = os.fork()
        if child == 0:
            code = 1
            try:
                assert vegrad.num_threads() == threads
                assert_same_bits(want, train(*shape, **options))
                vegrad.set_num_threads(2)
                assert_same_bits(want, train(*shape, **options))
                code = 0
            finally:
                os._exit(code)
        assert wait_for(child, 600) == 0
        assert_same_bits(want, train(*shape, **options))  # and the parent still can


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.usefixtures("keep_threads")
def test_a_fork_while_another_thread_trains() -> None:
    """Whatever lock the other thread held at that moment is not held in the child for ever."""
    vegrad.set_num_threads(2)
    want = train([64] * 4, 100)
    stop = threading.Event()

    def keep_training() -> None:
        while not stop.is_set():
            train([128] * 4, 200)

    other = threading.Thread(target=keep_training)
    other.start()
    try:
        for _ in range(10):
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    assert_same_bits(want, train([64] * 4, 100))
                    code = 0
                finally:
                    os._exit(code)
            assert wait_for(child, 600) == 0
    finally:
        stop.set()
        other.join()


def test_several_python_threads_at_once(threads: int) -> None:
    """On different networks: each sees what it would see alone."""
    jobs = [([32 + 16 * i] * 5, 40 + 50 * i) for i in range(5)]
    alone = [train(*job, steps=3) for job in jobs]
    together: list[Any] = [None] * len(jobs)

    def work(place: int) -> None:
        for _ in range(5):
            together[place] = train(*jobs[place], steps=3)

    workers = [threading.Thread(target=work, args=(i,)) for i in range(len(jobs))]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(600)
        assert not worker.is_alive()
    for one, other in zip(alone, together, strict=True):
        assert_same_bits(one, other)


def test_the_interpreter_runs_on_during_a_pass() -> None:
    """The GIL is released: another thread counts while a long pass runs."""
    net = vegrad.MLP([1024] * 9, seed=0)
    x = np.ones((2048, 1024), "float32")
    ticks: list[float] = []
    stop = threading.Event()

    def tick() -> None:
        while not stop.is_set():
            ticks.append(time.perf_counter())
            time.sleep(0.001)

    net.backward(x[:8], x[:8])
    ticker = threading.Thread(target=tick)
    ticker.start()
    most = 0  # ticks within one pass; other processes may leave the ticker no core during some
    for _ in range(100):
        first, start = len(ticks), time.perf_counter()
        net.backward(x, x)
        end = time.perf_counter()
        most = max(most, sum(start < moment < end for moment in ticks[first:]))
        if most >= 5:
            break
    stop.set()
    ticker.join()
    assert most >= 5


# --------------------------------------------------------------- the number of threads, the ISA


@pytest.mark.parametrize(
    ("count", "error", "said"),
    [(0, ValueError, "0"), (-2, ValueError, "-2"), (1.5, TypeError, "float|integer|int"),
     ("2", TypeError, "str|integer|int"), (None, TypeError, "None|integer|int"),
     (2**40, (ValueError, OverflowError), "1099511627776|large|range")],
)  # fmt: skip
def test_bad_thread_counts(count: Any, error: type[Exception], said: str) -> None:
    before = vegrad.num_threads()
    with pytest.raises(error, match=said):
        vegrad.set_num_threads(count)
    assert vegrad.num_threads() == before


def ask(expression: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a fresh Python with these variables says."""
    names = ("VEGRAD_NUM_THREADS", "OMP_NUM_THREADS", "VEGRAD_ISA")
    clean = {name: value for name, value in os.environ.items() if name not in names}
    return subprocess.run(
        [sys.executable, "-c", f"import vegrad; print({expression})"],
        env=clean | environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip


def test_thread_count_from_the_environment() -> None:
    count = "vegrad.num_threads()"
    assert ask(count, VEGRAD_NUM_THREADS="3").stdout == "3\n"
    assert ask(count, OMP_NUM_THREADS="5").stdout == "5\n"
    assert ask(count, OMP_NUM_THREADS="5", VEGRAD_NUM_THREADS="2").stdout == "2\n"
    available = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert ask(count).stdout == f"{1 if _core.is_plain() else available}\n"
    set_later = ask(f"vegrad.set_num_threads(4) or {count}", VEGRAD_NUM_THREADS="3")
    assert set_later.stdout == "4\n"


@pytest.mark.parametrize("value", ["0", "-1", "many", "2.5", "3x", "99999999999999999999"])
def test_a_thread_count_that_is_none_is_said_at_import(value: str) -> None:
    answer = ask("vegrad.num_threads()", VEGRAD_NUM_THREADS=value)
    assert answer.returncode != 0
    assert "VEGRAD_NUM_THREADS" in answer.stderr
    assert value in answer.stderr


@pytest.mark.parametrize("value", ["4,2", "", "none"])
def test_other_programs_values_of_omp_num_threads_do_no_harm(value: str) -> None:
    answer = ask("vegrad.num_threads() >= 1", OMP_NUM_THREADS=value)
    assert answer.stdout == "True\n", answer.stderr


@pytest.mark.parametrize("name", _core.isas())
def test_the_instruction_set_from_the_environment(name: str) -> None:
    assert ask("vegrad.isa()", VEGRAD_ISA=name).stdout == f"{name}\n"


def test_the_best_instruction_set_is_chosen() -> None:
    assert ask("vegrad.isa()").stdout == f"{_core.isas()[0]}\n"
    assert _core.isas()[-1] == "baseline" or _core.isas() == ("neon",)


@pytest.mark.parametrize("name", ["sse9", "AVX2", "avx512,avx2"])
def test_an_unknown_instruction_set_is_an_error_at_import(name: str) -> None:
    answer = ask("vegrad.isa()", VEGRAD_ISA=name)
    assert answer.returncode != 0
    assert "ImportError" in answer.stderr
    message = answer.stderr.strip().splitlines()[-1]
    assert name in message
    assert all(known in message for known in _core.isas()), message


def test_instruction_sets_agree(isa: str) -> None:
    """Not to the bit (FMA rounds once), but closely."""
    got = train([40] * 6, 50, activation="gelu", dtype="float64", steps=1)
    before = vegrad.isa()
    _core.use_isa("baseline" if "baseline" in _core.isas() else before)
    want = train([40] * 6, 50, activation="gelu", dtype="float64", steps=1)
    _core.use_isa(before)
    for name, array in want.items():
        np.testing.assert_allclose(got[name], array, rtol=1e-9, atol=1e-12, err_msg=name)


# -------------------------------------------------------------------------------------- memory


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("residual", [False, True])
def test_workspace_bytes_grow_with_the_batch_and_the_network(residual: bool, dtype: str) -> None:
    net = vegrad.MLP([20, 50, 50, 50, 3], residual=residual, dtype=dtype)
    sizes = [net.workspace_bytes(batch) for batch in (1, 2, 10, 64, 65, 300, 3000)]
    assert all(isinstance(size, int) and size > 0 for size in sizes)
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]
    itemsize = np.dtype(dtype).itemsize
    assert sizes[-1] < 40 * itemsize * 3000 * sum(net.config["sizes"])  # in proportion
    deeper = vegrad.MLP([20, *[50] * 30, 3], residual=residual, dtype=dtype)
    assert deeper.workspace_bytes(3000) > net.workspace_bytes(3000)


def resident_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096
    except OSError:
        pytest.skip("no /proc/self/statm here")


def least_growth(body: Callable[[], None], enough: int) -> int:
    """Return by how many bytes the process grows in a call: the least of up to five calls.

    A sanitizer keeps what was given back, up to a limit: what leaks goes on growing.
    """
    least, calls = sys.maxsize, 0
    while least >= enough and calls < 5:
        before, calls = resident_bytes(), calls + 1
        body()
        least = min(least, resident_bytes() - before)
    return least


def test_no_memory_is_taken_in_the_steady_state() -> None:
    """200 passes of a network whose outputs alone would be 60 MB if each pass leaked them."""
    net = vegrad.MLP([64, 256, 256, 64], seed=0)
    x = target = np.ones((256, 64), "float32")
    smaller = x[:100], target[:100]
    for _ in range(5):
        net.backward(x, target)
        net.forward(x)
    workspace = net.workspace_bytes(256)

    def steps() -> None:
        for step in range(200):
            net.backward(*((x, target) if step % 2 else smaller))
            net.forward(x)
            net.loss(x, target)

    assert least_growth(steps, 4 * 2**20) < 4 * 2**20
    assert net.workspace_bytes(256) == workspace


def test_networks_give_their_memory_back() -> None:
    def some(count: int = 60) -> None:
        for seed in range(count):
            net = vegrad.MLP([128, 512, 128], seed=seed)
            net.backward(np.ones((200, 128)), np.ones((200, 128)))

    some(5)
    assert least_growth(some, 16 * 2**20) < 16 * 2**20  # one network holds about 2 MB


def test_the_number_of_threads_may_change_during_a_pass() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((256, 192)).astype("float32")
    want = vegrad.MLP([192] * 5, seed=0)
    want.backward(x, x)
    finished = threading.Event()

    def change() -> None:
        n = 0
        while not finished.is_set():
            vegrad.set_num_threads(1 + n % 16)
            n += 1

    changer = threading.Thread(target=change)
    before = vegrad.num_threads()
    changer.start()
    try:
        for _ in range(60):
            net = vegrad.MLP([192] * 5, seed=0)  # its workspace fits the threads of the moment
            net.backward(x, x)
            for name, gradient in net.gradients.items():
                np.testing.assert_array_equal(gradient, want.gradients[name], err_msg=name)
    finally:
        finished.set()
        changer.join()
        vegrad.set_num_threads(before)

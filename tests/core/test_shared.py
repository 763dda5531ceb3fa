"""What several threads may share, as docs/explanation/numerics.md says; also under sanitizers."""

import threading
from collections.abc import Callable

import numpy as np
import pytest
import vegrad

THREADS, TURNS = 3, 25


def at_once(*work: Callable[[int], None], turns: int = TURNS) -> None:
    """Run each piece of work in a thread of its own, so often, all at the same time."""
    begin, errors = threading.Barrier(len(work)), []

    def repeat(piece: Callable[[int], None]) -> None:
        begin.wait()
        try:
            for turn in range(turns):
                piece(turn)
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(piece,)) for piece in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


@pytest.mark.usefixtures("keep_threads")
@pytest.mark.parametrize("count", [1, 2])
def test_passes_over_one_network(count: int) -> None:
    """Each is whole, whatever the others do, and so is the flow."""
    vegrad.set_num_threads(count)
    random = np.random.default_rng(0)
    net = vegrad.MLP([9, *[33] * 4, 2], seed=0)
    batches = [random.standard_normal((5 + 60 * n, 9)).astype("float32") for n in range(THREADS)]
    outputs = [net.forward(x) for x in batches]
    losses = [net.backward(x, x[:, :2]) for x in batches]

    def passing(n: int) -> Callable[[int], None]:
        def once(turn: int) -> None:
            assert net.forward(batches[n]).tobytes() == outputs[n].tobytes()
            assert net.backward(batches[n], batches[n][:, :2]) == losses[n]
            assert net.loss(batches[n], batches[n][:, :2]) == pytest.approx(losses[n])

        return once

    def looking(turn: int) -> None:
        assert np.isfinite(net.flow.delta_log2).all()
        assert len(net.flow.gradient_log2) == net.depth

    at_once(*map(passing, range(THREADS)), looking)


@pytest.mark.usefixtures("keep_threads")
def test_passes_over_one_recurrent_network() -> None:
    vegrad.set_num_threads(2)
    random = np.random.default_rng(0)
    net = vegrad.RNN(3, 17, 2, cell="lstm", targets="all", layers=2, seed=0)
    shapes = [(2, 5), (9, 3), (1, 12)]
    batches = [random.standard_normal((*shape, 3)).astype("float32") for shape in shapes]
    outputs = [net.forward(x) for x in batches]
    losses = [net.backward(x, x[..., :2]) for x in batches]

    def passing(n: int) -> Callable[[int], None]:
        def once(turn: int) -> None:
            assert net.forward(batches[n]).tobytes() == outputs[n].tobytes()
            assert net.backward(batches[n], batches[n][..., :2]) == losses[n]

        return once

    def looking(turn: int) -> None:
        h, c = net.state
        assert h.shape == c.shape
        assert h.shape[1] in (2, 9, 1)
        assert net.flow.delta_log2.shape[0] == 2

    at_once(*map(passing, range(len(shapes))), looking)


def test_one_optimizer_over_parameters_of_each_thread() -> None:
    """A step waits for the others; what is kept of each parameter is of all its steps."""
    optimizer = vegrad.Adam(1e-3, clip=vegrad.clipping.GlobalNorm(1.0))
    parameters = [{f"p{n}": np.ones((65, 33), np.float32)} for n in range(THREADS)]
    gradients = [{f"p{n}": np.full((65, 33), 0.5 + n, np.float32)} for n in range(THREADS)]

    def stepping(n: int) -> Callable[[int], None]:
        return lambda turn: optimizer.step(parameters[n], gradients[n]) and None

    at_once(*map(stepping, range(THREADS)), lambda turn: optimizer.state_dict() and None)
    state = optimizer.state_dict()["state"]
    assert [state[f"p{n}"]["step"] for n in range(THREADS)] == [TURNS] * THREADS


def test_functions_over_arrays() -> None:
    """All may read the same one; each writes to its own."""
    shared = np.random.default_rng(0).standard_normal((200, 301)).astype("float32")
    want = vegrad.norm(shared)

    def working(turn: int) -> None:
        assert vegrad.norm(shared) == want
        assert vegrad.measure({"a": shared}).total.norm == want
        own = [shared.copy()]
        assert vegrad.clip_by_global_norm_(own, 1.0).norm == want
        assert vegrad.norm(own) == pytest.approx(1.0)

    at_once(working, working, working)


def test_a_network_and_an_optimizer_of_each_thread() -> None:
    x = np.random.default_rng(0).standard_normal((40, 7))
    options = {"epochs": 1, "batch_size": 8, "progress": False, "on_finding": None, "seed": 0}

    def trained() -> bytes:
        net = vegrad.MLP([7, 19, 2], seed=0)
        net.fit(x, x[:, :2], optimizer=vegrad.Adam(0.01), **options)
        return b"".join(p.tobytes() for p in net.parameters.values())

    want = trained()

    def training(turn: int) -> None:
        assert trained() == want

    at_once(training, training, turns=5)

"""The core on PyTorch's threads, as many as PyTorch has, or on its own threads."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator

import numpy as np
import pytest
import vegrad
from vegrad import _core

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402


@pytest.fixture(autouse=True, params=[2, 3])
def torch_threads(request: pytest.FixtureRequest, keep_threads: None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    vegrad.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def buffers() -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(30_000) for _ in range(20)]


def test_results_are_the_same_on_whoever_s_threads() -> None:
    found = buffers()
    torch.ones(500, 500).mm(torch.ones(500, 500))  # so that PyTorch has started them
    norms = []
    for threads in (1, 2, 3):
        vegrad.set_num_threads(threads)
        norms += [vegrad.norm(found) for _ in range(20)]
    assert len(set(norms)) == 1


def test_errors_come_through() -> None:
    def limit(_: float) -> float:
        raise ZeroDivisionError("of a callback")

    grads = buffers()
    for _ in range(3):
        with pytest.raises(ZeroDivisionError, match="of a callback"):
            _core.clip("global_norm", grads, limit)
    grads[3][17] = np.nan
    with pytest.raises(vegrad.NonFiniteGradientError, match=r"grads\[3\]"):
        vegrad.clip_by_global_norm_(grads, 1.0)


def test_several_callers_at_once() -> None:
    torch.manual_seed(0)
    layers = [one for _ in range(6) for one in (torch.nn.Linear(64, 64), torch.nn.Tanh())]
    x = torch.randn(200, 64)
    want, right = None, []

    def work() -> None:
        model = ours.fuse(
            torch.nn.Sequential(
                *[type(one)(64, 64) if isinstance(one, torch.nn.Linear) else one for one in layers]
            )
        )
        model.load_state_dict(state)
        for _ in range(20):
            model.zero_grad()
            model(x).square().mean().backward()
            norm = ours.clip_grad_norm_(model.parameters(), 1e9)
            right.append(torch.equal(norm, want))

    plain = ours.fuse(torch.nn.Sequential(*layers))
    state = {name: one.clone() for name, one in plain.state_dict().items()}
    plain(x).square().mean().backward()
    want = ours.clip_grad_norm_(plain.parameters(), 1e9)
    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert right == [True] * 80


FORKED = """
import os, numpy as np, torch, vegrad, vegrad.torch
torch.set_num_threads(2)
vegrad.set_num_threads(2)
grads = [np.ones(100_000) for _ in range(10)]
assert vegrad.norm(grads) == 1e3
child = os.fork()
if child == 0:
    os._exit(0 if vegrad.norm(grads) == 1e3 else 1)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert vegrad.norm(grads) == 1e3
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
def test_a_child_of_fork_has_none_of_them() -> None:
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", FORKED], timeout=600)
    assert done.returncode == 0


def test_an_optimizer_that_several_threads_use() -> None:
    """States that one thread moves out and in again are not written by another's kernels."""
    code = """
import threading, torch, vegrad.torch
params = [torch.nn.Parameter(torch.ones(200_000)) for _ in range(3)]
for one in params:
    one.grad = torch.ones_like(one)
optimizer = vegrad.torch.AdamW(params)
failed = []

def use(look):
    try:
        for _ in range(60):
            optimizer.step()
            if look:
                optimizer.state_dict()
    except BaseException as error:
        failed.append(error)

threads = [threading.Thread(target=use, args=(look,)) for look in (True, False, True, False)]
for one in threads:
    one.start()
for one in threads:
    one.join()
assert not failed, failed
assert all(one.isfinite().all() for one in params)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

"""Forks while other threads are at work, and daemon threads when Python ends."""

import os
import subprocess
import sys

import pytest

HEAD = """
import os, signal, sys, threading, time
import numpy as np
import vegrad

vegrad.set_num_threads(2)
random = np.random.default_rng(0)
x = random.standard_normal((256, 64)).astype("float32")
sequences = random.standard_normal((64, 20, 8)).astype("float32")
mlp = vegrad.MLP([64] * 8, seed=0)
rnn = vegrad.RNN(8, 32, 8, cell="lstm", targets="all", seed=0)
optimizer = vegrad.Adam(1e-3, clip=vegrad.clipping.AutoClip(50.0))
parameters, gradients = [np.ones((512, 512), "float32")], [np.ones((512, 512), "float32")]

def fit():  # a network of its own: two trainings of one would write to the same weights
    rule = vegrad.clipping.AutoClip(50.0)
    optimizer = vegrad.Adam(1e-3, clip=rule)
    trained = vegrad.MLP([64] * 4, seed=0)
    trained.fit(x, x, epochs=3, batch_size=8, optimizer=optimizer, progress=False)

jobs = {
    "forward": lambda: mlp.forward(x),
    "backward": lambda: mlp.backward(x, x),
    "recurrent": lambda: rnn.backward(sequences, sequences),
    "step": lambda: optimizer.step(parameters, gradients),
    "fit": fit,
}
job = jobs[sys.argv[1]]
started, stop = threading.Event(), threading.Event()

def keep_on():
    while not stop.is_set():
        job()
        started.set()
"""

FORK = """
job()
threading.Thread(target=keep_on).start()
started.wait()
for _ in range(15):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            job()
            job()
            code = 0
        finally:
            os._exit(code)
    assert os.waitpid(child, 0)[1] == 0
stop.set()
print("every child has done it")
"""

DAEMON = """
for _ in range(2):
    threading.Thread(target=keep_on, daemon=True).start()
started.wait()
print("over")
"""

JOBS = ["forward", "backward", "recurrent", "step", "fit"]


def run(script: str, job: str) -> str:
    """What a script prints; it is ended if it hangs."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", HEAD + script, job],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("job", JOBS)
def test_a_child_uses_what_another_thread_used_at_the_fork(job: str) -> None:
    assert run(FORK, job) == "every child has done it\n"


@pytest.mark.parametrize("job", JOBS)
def test_python_ends_while_daemon_threads_are_at_work(job: str) -> None:
    for _ in range(3):
        assert run(DAEMON, job) == "over\n"

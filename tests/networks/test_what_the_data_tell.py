"""What is said of the data does not depend on the network; what a network learnt is no fault."""

import numpy as np
import vegrad
from vegrad.arrays.checks import Array

STEPS, LAST = 60, 13  # the last step that has to do with the target


def task(rows: int, seed: int = 1) -> tuple[Array, Array]:
    """Draw sequences whose class is the signs of two early steps."""
    rng = np.random.default_rng(seed)
    x = 0.3 * rng.standard_normal((rows, STEPS, 3))
    signs, each = rng.integers(0, 2, (rows, 2)), np.arange(rows)
    for column, (first, end) in enumerate(((2, 8), (8, LAST + 1))):
        step = rng.integers(first, end, rows)
        x[each, step, column] += 4 * signs[:, column] - 2
        x[each, step, 2] += 2
    return x, 2 * signs[:, 0] + signs[:, 1]


def network(seed: int) -> vegrad.RNN:
    return vegrad.RNN(3, 24, 4, cell="lstm", loss="cross_entropy", seed=seed)


def test_where_the_target_lies_is_the_datas_alone() -> None:
    x, label = task(600)
    said = []
    for seed in range(3):
        (finding,) = vegrad.diagnose(network(seed), x, label).findings
        assert finding.evidence["needed"] == STEPS - LAST - 1
        said.append(finding.message.partition("; but")[0])
    assert said == said[:1] * 3
    assert said[0].startswith("at least ")


def test_a_cell_that_has_learnt_to_remember_does_not_explode() -> None:
    x, label = task(600)
    net = network(0)
    adam = vegrad.Adam(1e-2, clip=vegrad.clipping.GlobalNorm(1.0))
    more = {"batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    net.fit(x, label, optimizer=adam, epochs=30, gauge_every=None, **more)
    net.backward(x, label)
    assert net.flow.left_log2.max() < np.log2(10)
    assert vegrad.diagnose(net, x, label).healthy

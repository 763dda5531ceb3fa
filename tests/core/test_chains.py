"""Backward chains: to the bit what layer by layer gives, whatever they expected, and right.

One thread goes layer by layer, so it is what the others are held to. A chain expects the shifts of
the pass before; each sequence below has passes where they hold, and some where they do not.
"""

from typing import Any

import numpy as np
import pytest
import vegrad

from tests.core.flow_checks import data, measure

EVENTS = ["none", "vanishing", "exploding", "far", "bias", "nan"]
MIXED = [64, 8, 128, 17, 64, 32, 100, 64, 40, 64, 300, 64, 64, 33, 8, 128, 64, 16, 64, 64, 10]


def happen(event: str, net: Any, x: np.ndarray) -> None:
    """Something that no chain has reason to expect, in the middle of the network."""
    layer = net.depth // 2
    weight, bias = (net.parameters[f"layers.{layer}.{name}"] for name in ("weight", "bias"))
    if event in ("vanishing", "exploding", "far"):
        weight *= {"vanishing": 1e-4, "exploding": 1e5, "far": 1e-18}[event]
    elif event == "bias":
        bias += 30
    elif event == "nan":
        x[len(x) // 2, 0] = np.nan


def passes(event: str, sizes: list[int], rows: int, *, flow: bool, **options: Any) -> list[bytes]:
    """All that can be seen of eight passes; the event comes in the fifth."""
    net = vegrad.MLP(sizes, seed=3, **options)
    x, target = data(rows, sizes[0], sizes[-1])
    seen = []
    for number in range(8):
        if number == 4:
            happen(event, net, x)
        loss = net.backward(x * 0.9**number, target, flow=flow)
        seen.append(np.float64(loss).tobytes())
        seen += [gradient.tobytes() for gradient in net.gradients.values()]
        if flow:
            seen += [np.asarray(value).tobytes() for value in net.flow.to_dict().values()]
        if number == 1:
            for name, gradient in net.gradients.items():
                net.parameters[name][...] -= 0.01 * gradient
    return seen


@pytest.mark.parametrize("event", EVENTS)
@pytest.mark.parametrize(
    ("sizes", "rows"),
    [([64] * 4, 64), ([64] * 51, 64), ([32] * 81, 33), (MIXED, 70), ([128] * 19, 129),
     ([64] * 18, 129)],
)  # fmt: skip
@pytest.mark.usefixtures("keep_threads")
def test_the_bits_of_layer_by_layer(event: str, sizes: list[int], rows: int) -> None:
    for options in (
        {"activation": "tanh", "flow": True},
        {"activation": "sigmoid", "flow": False},  # shifts all the way down
        {"activation": "relu", "init": "normal", "sigma_w": 3.0, "flow": True},  # the same, up
        {"activation": "gelu", "residual": True, "flow": True},
        {"activation": "selu", "init": "lecun_normal", "dtype": "float64", "flow": False},
    ):
        vegrad.set_num_threads(1)
        alone = passes(event, sizes, rows, **options)
        for count in (2, 3):
            vegrad.set_num_threads(count)
            assert passes(event, sizes, rows, **options) == alone, (options, count)


def test_batches_that_alternate(threads: int) -> None:
    """Each finds in the shifts of the last pass those of the other batch."""
    net, fresh = (vegrad.MLP([64] * 30, activation="sigmoid", seed=1) for _ in range(2))
    x, target = data(129, 64, 64)
    for number in range(40):
        rows = (129, 40)[number // 4 % 2]
        size = np.float32(1 + number % 3)
        net.backward(size * x[:rows], target[:rows])
    fresh.backward(size * x[:rows], target[:rows])  # its first pass goes layer by layer
    for name, gradient in fresh.gradients.items():
        np.testing.assert_array_equal(net.gradients[name], gradient)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "options",
    [
        {"activation": "tanh", "init": "lecun_normal"},
        {"activation": "sigmoid"},
        {"activation": "tanh", "init": "normal", "sigma_w": 0.5, "residual": True},
        {"activation": "identity", "init": "normal", "sigma_w": 4.0},
    ],
)
def test_against_the_reference(isa: str, threads: int, options: dict[str, Any], dtype: str) -> None:
    net = vegrad.MLP([64] * 20 + [10], dtype=dtype, seed=2, **options)
    x, target = data(70, 64, 10)
    for _ in range(3):  # the last one in chains
        net.backward(x, target)
    measure(net, x, target)

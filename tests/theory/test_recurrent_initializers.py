"""Initial weights of recurrent networks: names, shapes, seeds, and what each scheme promises."""

from typing import Any

import numpy as np
import pytest
from vegrad.theory.cells import GATES
from vegrad.theory.recurrent_initializers import (
    RECURRENT_INITIALIZERS,
    draw_recurrent_parameters,
)

INPUTS, HIDDEN, OUTPUTS, LAYERS = 5, 64, 3, 2


def draw(cell: str, init: str = "default", **more: Any) -> dict[str, np.ndarray]:
    options: dict[str, Any] = {"seed": 3, "layers": LAYERS} | more
    if init == "chrono":
        options.setdefault("time_scale", 100)
    layers = options.pop("layers")
    return draw_recurrent_parameters(INPUTS, HIDDEN, OUTPUTS, cell, layers, init, **options)


PAIRS = [(cell, init) for init, row in RECURRENT_INITIALIZERS.items() for cell in row.cells]


@pytest.mark.parametrize(("cell", "init"), PAIRS)
def test_names_shapes_and_seeds(cell: str, init: str) -> None:
    drawn, rows = draw(cell, init), len(GATES[cell]) * HIDDEN
    assert {name: one.shape for name, one in drawn.items()} == {
        "rnn.weight_ih_l0": (rows, INPUTS),
        "rnn.weight_hh_l0": (rows, HIDDEN),
        "rnn.bias_ih_l0": (rows,),
        "rnn.bias_hh_l0": (rows,),
        "rnn.weight_ih_l1": (rows, HIDDEN),
        "rnn.weight_hh_l1": (rows, HIDDEN),
        "rnn.bias_ih_l1": (rows,),
        "rnn.bias_hh_l1": (rows,),
        "head.weight": (OUTPUTS, HIDDEN),
        "head.bias": (OUTPUTS,),
    }
    assert all(one.dtype == np.float64 for one in drawn.values())
    again, default = draw(cell, init), draw(cell)
    for name, one in drawn.items():
        np.testing.assert_array_equal(one, again[name])
    np.testing.assert_array_equal(drawn["head.weight"], default["head.weight"])
    other = draw(cell, init, seed=4)
    assert np.any(other["rnn.weight_ih_l0"] != drawn["rnn.weight_ih_l0"])
    assert np.any(draw(cell, init, seed=None)["head.bias"] != drawn["head.bias"])


@pytest.mark.parametrize("cell", GATES)
def test_default_is_that_of_pytorch(cell: str) -> None:
    for one in draw(cell).values():
        assert np.abs(one).max() <= HIDDEN**-0.5
        error = 1.0 / np.sqrt(one.size)
        assert one.std() == pytest.approx((3 * HIDDEN) ** -0.5, rel=3 * error)


@pytest.mark.parametrize("cell", GATES)
def test_orthogonal_gate_by_gate(cell: str) -> None:
    drawn, default = draw(cell, "orthogonal"), draw(cell)
    for layer in range(LAYERS):
        for block in np.split(drawn[f"rnn.weight_hh_l{layer}"], len(GATES[cell])):
            np.testing.assert_allclose(block @ block.T, np.eye(HIDDEN), atol=1e-13)
        same = f"rnn.weight_ih_l{layer}"
        np.testing.assert_array_equal(drawn[same], default[same])
    # Drawn uniformly: the mean eigenvalue is small, where QR without fixed signs has a bias.
    first = drawn["rnn.weight_hh_l0"][:HIDDEN]
    assert abs(np.trace(first)) < 5.0


def test_identity() -> None:
    drawn = draw("relu", "identity")
    for layer in range(LAYERS):
        np.testing.assert_array_equal(drawn[f"rnn.weight_hh_l{layer}"], np.eye(HIDDEN))
        assert not drawn[f"rnn.bias_ih_l{layer}"].any()
        assert not drawn[f"rnn.bias_hh_l{layer}"].any()
        assert drawn[f"rnn.weight_ih_l{layer}"].std() == pytest.approx(0.001, rel=0.15)


@pytest.mark.parametrize("cell", ["tanh", "relu"])
@pytest.mark.parametrize("variance", [0.1, 1.0, 9.0])
def test_critical_weights_keep_the_gradient(cell: str, variance: float) -> None:
    hidden, steps, rows = 256, 60, 8
    rng = np.random.default_rng(0)
    drawn = draw_recurrent_parameters(
        32, hidden, 1, cell, 2, "critical", input_variance=variance, seed=1
    )
    x = rng.standard_normal((steps, rows, 32)) * np.sqrt(variance)
    for layer in range(2):
        w, u = drawn[f"rnn.weight_ih_l{layer}"], drawn[f"rnn.weight_hh_l{layer}"]
        b = drawn[f"rnn.bias_ih_l{layer}"] + drawn[f"rnn.bias_hh_l{layer}"]
        h, outputs = np.zeros((rows, hidden)), []
        for one in x:
            z = one @ w.T + h @ u.T + b
            h = np.tanh(z) if cell == "tanh" else np.maximum(z, 0)
            outputs.append(h)
        d, sizes = rng.standard_normal((rows, hidden)), []
        for h in outputs[::-1]:
            sizes.append(np.log(np.linalg.norm(d)))
            d = (d * ((1 - h * h) if cell == "tanh" else (h > 0))) @ u
        # Of relu the same units stay on, so that chance does not average out over the steps: one
        # draw of 256 units lies within ±0.05 a step of 1 (standard deviation of eight draws).
        spread = 0.03 if cell == "tanh" else 0.1
        assert (sizes[0] - sizes[40]) / 40 == pytest.approx(0.0, abs=spread)
        x = np.array(outputs)


@pytest.mark.parametrize(("cell", "gate"), [("lstm", 1), ("gru", 1)])
def test_chrono(cell: str, gate: int) -> None:
    drawn = draw_recurrent_parameters(2, 4000, 1, cell, 1, "chrono", time_scale=100, seed=0)
    b_ih, b_hh = (np.split(drawn[f"rnn.bias_{one}_l0"], len(GATES[cell])) for one in ("ih", "hh"))
    assert not b_hh[gate].any()
    times = np.exp(b_ih[gate])
    assert times.min() >= 1
    assert times.max() <= 99
    assert times.mean() == pytest.approx(50, rel=0.03)
    if cell == "lstm":
        np.testing.assert_array_equal(b_ih[0], -b_ih[1])
        assert not b_hh[0].any()
    else:
        assert b_hh[0].any()


@pytest.mark.parametrize("cell", ["lstm", "gru"])
@pytest.mark.parametrize("init", ["default", "orthogonal"])
def test_forget_bias_is_the_sum_of_both(cell: str, init: str) -> None:
    drawn, without = draw(cell, init, forget_bias=2), draw(cell, init)
    for layer in range(LAYERS):
        total = drawn[f"rnn.bias_ih_l{layer}"] + drawn[f"rnn.bias_hh_l{layer}"]
        assert np.all(total[HIDDEN : 2 * HIDDEN] == 2.0)
        assert np.all(total[:HIDDEN] != 2.0)
        for name in (f"rnn.weight_ih_l{layer}", f"rnn.weight_hh_l{layer}"):
            np.testing.assert_array_equal(drawn[name], without[name])


@pytest.mark.parametrize(
    ("error", "words", "options"),
    [
        (ValueError, "cell must be one of", {"cell": "LSTM"}),
        (TypeError, "cell must be one of", {"cell": 3}),
        (ValueError, "init must be one of", {"init": "xavier"}),
        (ValueError, 'init="identity" is for cell tanh and relu', {"init": "identity"}),
        (ValueError, 'init="critical" is for cell tanh', {"init": "critical", "cell": "gru"}),
        (ValueError, 'init="chrono" is for cell lstm', {"cell": "tanh", "init": "chrono"}),
        (ValueError, "needs time_scale", {"init": "chrono", "time_scale": None}),
        (ValueError, "at least 2 steps", {"init": "chrono", "time_scale": 1}),
        (ValueError, "time_scale goes with", {"time_scale": 10}),
        (ValueError, "input_variance goes with", {"input_variance": 1.0}),
        (
            ValueError,
            "finite and positive",
            {"cell": "tanh", "init": "critical", "input_variance": 0},
        ),
        (ValueError, "forget_bias is for", {"cell": "tanh", "forget_bias": 1.0}),
        (ValueError, "forget_bias must be finite", {"forget_bias": float("nan")}),
        (TypeError, "forget_bias must be a number", {"forget_bias": "1"}),
        (ValueError, "does not go with", {"init": "chrono", "forget_bias": 1.0}),
        (ValueError, "layers must be at least 1", {"layers": 0}),
    ],
)
def test_errors(error: type[Exception], words: str, options: dict[str, Any]) -> None:
    with pytest.raises(error, match=words):
        draw(**({"cell": "lstm"} | options))

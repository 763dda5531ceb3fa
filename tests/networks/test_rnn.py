"""Recurrent networks from Python: arguments, files, states, and what they refuse."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad

from tests import reference_recurrent as reference

CELLS = ("tanh", "relu", "lstm", "gru")
every_cell = pytest.mark.parametrize("cell", CELLS)


def make(cell: str = "lstm", **options: Any) -> vegrad.RNN:
    return vegrad.RNN(3, 5, 2, **{"cell": cell, "layers": 2, "seed": 1} | options)


def data(B: int = 4, T: int = 6, **options: Any) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(2)
    shape = (B, T, 2) if options.get("targets") == "all" else (B, 2)
    return rng.standard_normal((B, T, 3)), rng.standard_normal(shape)


@every_cell
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_names_shapes_and_values_are_pytorchs(cell: str, dtype: str) -> None:
    torch = pytest.importorskip("torch")
    net = make(cell, dtype=dtype)
    name = "RNN" if cell in ("tanh", "relu") else cell.upper()
    options = {"nonlinearity": cell} if name == "RNN" else {}
    module = torch.nn.ModuleDict(
        {
            "rnn": getattr(torch.nn, name)(3, 5, 2, batch_first=True, **options),
            "head": torch.nn.Linear(5, 2),
        }
    ).to(getattr(torch, dtype))
    assert list(net.parameters) == list(module.state_dict())
    module.load_state_dict({k: torch.from_numpy(v) for k, v in net.parameters.items()})
    x, target = data()
    loss = net.backward(x, target)
    h, _ = module["rnn"](torch.tensor(x, dtype=getattr(torch, dtype)))
    wanted = torch.tensor(target, dtype=h.dtype)
    result = torch.nn.functional.mse_loss(module["head"](h[:, -1]), wanted)
    result.backward()
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert loss == pytest.approx(result.item(), rel=tolerance)
    for key, parameter in module.named_parameters():
        grad = parameter.grad.numpy()
        off = np.abs(net.gradients[key] - grad).max()
        assert off <= tolerance * np.abs(grad).max()


def test_a_seed_gives_the_same_network_in_both_dtypes() -> None:
    a, b = make(dtype="float32"), make(dtype="float64")
    for name, array in a.parameters.items():
        np.testing.assert_array_equal(array, b.parameters[name].astype("float32"))


@pytest.mark.parametrize(
    ("options", "check"),
    [
        ({"init": "orthogonal", "cell": "gru"}, lambda p: p["rnn.weight_hh_l1"][:5]),
        ({"init": "identity", "cell": "relu"}, lambda p: p["rnn.weight_hh_l0"]),
    ],
)
def test_initializations_reach_the_parameters(options: dict[str, Any], check: Any) -> None:
    U = check(make(**options, dtype="float64").parameters)
    np.testing.assert_allclose(U @ U.T, np.eye(5), atol=1e-12)


def test_a_forget_bias_stands_in_one_of_two_vectors() -> None:
    for cell, rows in (("lstm", slice(5, 10)), ("gru", slice(5, 10))):
        parameters = make(cell, forget_bias=2.0).parameters
        total = parameters["rnn.bias_ih_l1"] + parameters["rnn.bias_hh_l1"]
        np.testing.assert_array_equal(total[rows], 2.0)
        assert 0 in (parameters["rnn.bias_ih_l1"][5], parameters["rnn.bias_hh_l1"][5])


@every_cell
def test_files_hold_it_to_the_bit(cell: str, tmp_path: Path) -> None:
    init = {"init": "chrono", "time_scale": 10} if cell in ("lstm", "gru") else {}
    net = make(cell, targets="all", loss="cross_entropy", **init)
    net.save(tmp_path / "net")
    other = vegrad.RNN.load(tmp_path / "net")
    assert other.config == net.config
    for name, array in net.parameters.items():
        np.testing.assert_array_equal(array, other.parameters[name])
    with pytest.raises(ValueError, match="RNN"):
        vegrad.MLP.load(tmp_path / "net")


def test_it_says_what_it_is() -> None:
    text = repr(make("gru", forget_bias=1.0))
    assert text.startswith("RNN(3, 5, 2, cell='gru', layers=2, targets='last', loss='mse', ")
    assert "forget_bias=1.0" in text
    assert "time_scale" not in text


@every_cell
def test_a_state_may_come_as_arrays_of_any_kind(cell: str) -> None:
    net, (x, target) = make(cell), data()
    net.forward(x)
    state = net.state
    loss = net.backward(x, target, state=state)
    as_lists = [part.tolist() for part in state]
    assert net.backward(x, target, state=as_lists) == loss
    assert net.backward(x, target, state=[part.astype("float64") for part in state]) == loss
    if len(state) == 1:
        assert net.backward(x, target, state=state[0]) == loss
    assert net.backward(x, target) != loss


def test_a_pass_leaves_copies_of_the_state() -> None:
    net, (x, _) = make(), data()
    net.forward(x)
    h, c = net.state
    kept = h.copy()
    net.forward(2 * x)
    np.testing.assert_array_equal(h, kept)
    assert c.shape == h.shape == (2, 4, 5)


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("x of two axes", {"x": np.zeros((6, 3))}, r"x must have shape \(B, T, 3\), not \(6, 3\); one"),
    ("other inputs", {"x": np.zeros((4, 6, 2))}, r"x must have shape \(B, T, 3\), not \(4, 6, 2\)"),
    ("no rows", {"x": np.zeros((0, 6, 3))}, "at least one row"),
    ("no steps", {"x": np.zeros((4, 0, 3))}, "at least one step"),
    ("text", {"x": np.full((4, 6, 3), "a")}, "x must be an array of real numbers"),
    ("short target", {"target": np.zeros((3, 2))}, r"shape \(4, 2\), not \(3, 2\)"),
    ("zero length", {"lengths": [1, 0, 2, 3]}, r"from 1 to 6, .* but lengths\[1\] is 0"),
    ("long", {"lengths": [6, 7, 2, 3]}, r"lengths\[1\] is 7"),
    ("lengths of others", {"lengths": [1, 2, 3]}, r"shape \(4,\), one a row, not \(3,\)"),
    ("float lengths", {"lengths": [1.0, 2, 3, 4]}, "lengths must be integers, not float64"),
    ("a state of another batch", {"state": (np.zeros((2, 3, 5)), np.zeros((2, 4, 5)))},
     r"state\[0\] must have shape \(L, B, H\) = \(2, 4, 5\), not \(2, 3, 5\)"),
    ("half a state", {"state": np.zeros((2, 4, 5))}, r"state must be \(h, c\), each"),
    ("k2 < k1", {"truncation": (5, 3)}, "at least the k1 = 5 steps that are new, not k2 = 3"),
    ("no window", {"truncation": 0}, "truncation must be at least 1, not 0"),
    ("three numbers", {"truncation": (1, 2, 3)}, r"truncation must be K or \(k1, k2\), not 3"),
    ("half a step", {"truncation": 2.5}, r"truncation must be K, \(k1, k2\) or .*, not float"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_what_does_not_fit_is_refused_before_anything_changes(
    change: dict[str, Any], message: str
) -> None:
    net, (x, target) = make(), data()
    net.backward(x, target)
    before = {name: array.copy() for name, array in net.gradients.items()}
    arguments = {"x": x, "target": target} | change
    with pytest.raises((TypeError, ValueError), match=message):
        net.backward(**arguments)
    for name, array in net.gradients.items():
        np.testing.assert_array_equal(array, before[name])


def test_labels_count_only_where_a_row_has_the_step() -> None:
    net = make(targets="all", loss="cross_entropy")
    x, target = data()[0], np.ones((4, 6), int)
    lengths = [3, 6, 1, 2]
    loss = net.loss(x, target, lengths=lengths)
    target[0, 3:] = -100
    target[2, 1:] = 7
    assert net.loss(x, target, lengths=lengths) == loss
    target[3, 1] = 2
    with pytest.raises(ValueError, match=r"labels from 0 to 1, but target\[3, 1\] is 2"):
        net.loss(x, target, lengths=lengths)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"cell": "elman"}, ValueError, "cell must be one of tanh, relu, lstm, gru, not 'elman'"),
        ({"cell": 3}, TypeError, "cell must be one of"),
        ({"targets": "first"}, ValueError, "targets must be one of last, all, not 'first'"),
        ({"layers": 0}, ValueError, "layers must be at least 1, not 0"),
        ({"hidden": 2.0}, TypeError, "hidden must be an integer, not float"),
        ({"init": "xavier"}, ValueError, "init must be one of default, orthogonal"),
        ({"init": "identity"}, ValueError, "identity.* is for cell tanh and relu, not 'lstm'"),
        ({"init": "chrono"}, ValueError, "chrono.* needs time_scale"),
        ({"cell": "tanh", "forget_bias": 1.0}, ValueError, "forget_bias is for cell lstm and gru"),
        ({"forget_bias": math.inf}, ValueError, "forget_bias must be finite, not inf"),
        ({"dtype": "float16"}, TypeError, "dtype must be float32 or float64, not float16"),
    ],
)
def test_arguments_that_do_not_go_together(
    change: dict[str, Any], error: type[Exception], message: str
) -> None:
    sizes = {"inputs": 3, "hidden": 5, "outputs": 2}
    with pytest.raises(error, match=message):
        vegrad.RNN(**sizes | change)


def test_no_flow_before_a_pass() -> None:
    net, (x, target) = make(), data()
    with pytest.raises(RuntimeError, match="no flow yet"):
        _ = net.flow
    net.backward(x, target, flow=False)
    with pytest.raises(RuntimeError, match="no flow yet"):
        _ = net.flow


@every_cell
@pytest.mark.parametrize("targets", ["last", "all"])
def test_truncations_reach_the_core(cell: str, targets: str) -> None:
    net, (x, target) = make(cell, targets=targets, dtype="float64"), data(targets=targets)
    for truncation, window in ((2, (2, 2)), ((2, 5), (2, 5)), (None, None), (9, (9, 9))):
        loss = net.backward(x, target, truncation=truncation)
        wanted = reference.run(net.parameters, x, target, **net.config, window=window)
        assert loss == pytest.approx(wanted.loss, rel=1e-12)
        for name, gradient in wanted.gradients.items():
            np.testing.assert_allclose(
                net.gradients[name], np.ldexp(*gradient), rtol=1e-9, atol=1e-13
            )


class Halves:
    """A truncation at random that is not."""

    def factors(self, steps: int) -> np.ndarray:
        return np.full(steps, 0.5)

    def state_dict(self) -> dict[str, object]:
        return {}

    def load_state_dict(self, state: Any) -> None:
        pass


@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_truncation_at_random_gives_factors(targets: str) -> None:
    net, (x, target) = make(targets=targets, dtype="float64"), data(targets=targets)
    net.backward(x, target, truncation=Halves())
    wanted = reference.run(net.parameters, x, target, **net.config, factors=np.full(6, 0.5))
    for name, gradient in wanted.gradients.items():
        np.testing.assert_allclose(net.gradients[name], np.ldexp(*gradient), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("cell", CELLS)
def test_one_of_everything(cell: str) -> None:
    net = vegrad.RNN(1, 1, 1, cell=cell, seed=0)
    loss = net.backward(np.ones((1, 1, 1)), np.ones((1, 1)), lengths=[1], truncation=1)
    assert math.isfinite(loss)
    assert net.backward(np.ones((1, 1, 1)), np.ones(1)) == loss
    assert net.flow.reach.shape == (1,)


def test_a_million_steps_with_a_truncation() -> None:
    """Its memory is that of the steps that gradients go back."""
    net = vegrad.RNN(1, 4, 1, cell="gru", targets="all", seed=0)
    x = np.zeros((1, 1_000_000, 1), "float32")
    assert net.workspace_bytes(1, 1_000_000, 20) < 1_000_000
    assert math.isfinite(net.backward(x, x, truncation=20))


def test_a_pass_that_pays_for_no_second_thread_takes_none() -> None:
    net, before = vegrad.RNN(8, 64, 1, seed=0), vegrad.num_threads()
    found = []
    for threads in (1, 3):  # each has memory of its own
        vegrad.set_num_threads(threads)
        found.append([net.workspace_bytes(*shape) for shape in ((1, 100), (4, 4), (16, 100))])
    vegrad.set_num_threads(before)
    one, three = found
    assert one[:2] == three[:2]
    assert one[2] < three[2]


def test_memory_grows_with_the_steps_by_what_the_way_back_needs() -> None:
    for cell, kept in (("lstm", 6), ("gru", 5), ("tanh", 2)):
        net = vegrad.RNN(64, 64, 1, cell=cell, targets="all", seed=0)
        grown = net.workspace_bytes(16, 200) - net.workspace_bytes(16, 100)
        assert grown < 1.2 * 4 * kept * 100 * 16 * 64

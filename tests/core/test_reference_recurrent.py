"""The reference of recurrent networks against PyTorch, central differences and closed forms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tests import reference_recurrent as reference
from tests.reference import Scaled, value

torch = pytest.importorskip("torch")

CELLS = tuple(reference.GATES)
LOSSES = ("mse", "cross_entropy", "binary_cross_entropy")
every_cell = pytest.mark.parametrize("cell", CELLS)
both_targets = pytest.mark.parametrize("targets", ["last", "all"])


def draw(
    cell: str, sizes: tuple[int, int, int], layers: int, seed: int = 0
) -> dict[str, np.ndarray]:
    """Parameters with PyTorch's names and shapes."""
    rng, (I, H, O) = np.random.default_rng(seed), sizes  # noqa: E741
    G, parameters = reference.GATES[cell] * H, {}
    for layer in range(layers):
        parameters[f"rnn.weight_ih_l{layer}"] = rng.standard_normal((G, H if layer else I))
        parameters[f"rnn.weight_hh_l{layer}"] = rng.standard_normal((G, H))
        parameters[f"rnn.bias_ih_l{layer}"] = rng.standard_normal(G)
        parameters[f"rnn.bias_hh_l{layer}"] = rng.standard_normal(G)
    parameters |= {"head.weight": rng.standard_normal((O, H)), "head.bias": rng.standard_normal(O)}
    return {name: 0.6 * array for name, array in parameters.items()}


def draw_data(
    cell: str, sizes: tuple[int, int, int], layers: int, B: int, T: int, *, targets: str,
    loss: str, seed: int = 1,
) -> dict[str, Any]:  # fmt: skip
    """x, target, lengths and state."""
    rng, (I, H, O) = np.random.default_rng(seed), sizes  # noqa: E741
    shape = (B, T) if targets == "all" else (B,)
    target: np.ndarray = rng.standard_normal((*shape, O))
    if loss == "cross_entropy":
        target = rng.integers(0, O, shape)
    if loss == "binary_cross_entropy":
        target = rng.choice([0.0, 1.0, 0.25], (*shape, O))
    return {
        "x": rng.standard_normal((B, T, I)),
        "target": target,
        "lengths": rng.integers(1, T + 1, B),
        "state": [rng.standard_normal((layers, B, H)) for _ in range(reference.STATES[cell])],
    }


def torch_module(cell: str, parameters: dict[str, np.ndarray], layers: int) -> tuple[Any, Any]:
    G, I = parameters["rnn.weight_ih_l0"].shape  # noqa: E741
    H, O = G // reference.GATES[cell], len(parameters["head.bias"])  # noqa: E741
    if cell in ("tanh", "relu"):
        rnn = torch.nn.RNN(I, H, layers, nonlinearity=cell, batch_first=True)
    else:
        rnn = getattr(torch.nn, cell.upper())(I, H, layers, batch_first=True)
    head = torch.nn.Linear(H, O)
    modules = torch.nn.ModuleDict({"rnn": rnn, "head": head}).double()
    modules.load_state_dict({name: torch.tensor(array) for name, array in parameters.items()})
    return rnn, head


def torch_loss(loss: str, output: Any, target: np.ndarray) -> Any:
    functional = {
        "mse": torch.nn.functional.mse_loss,
        "cross_entropy": torch.nn.functional.cross_entropy,
        "binary_cross_entropy": torch.nn.functional.binary_cross_entropy_with_logits,
    }
    return functional[loss](output, torch.tensor(target))


def torch_rows(rnn: Any, head: Any, data: dict[str, Any]) -> tuple[Any, list[Any], list[Any]]:
    """Run each row by itself; return states as leaves, outputs of each row, and final states."""
    leaves = [torch.tensor(part, requires_grad=True) for part in data["state"]]
    outputs, ends = [], []
    for row, length in enumerate(data["lengths"]):
        begin = tuple(leaf[:, row : row + 1] for leaf in leaves)
        x = torch.tensor(data["x"][row : row + 1, :length])
        h, end = rnn(x, begin if len(begin) == 2 else begin[0])
        outputs.append(head(h[0]))
        ends.append(end if isinstance(end, tuple) else (end,))
    return leaves, outputs, ends


def assert_close(got: Any, wanted: Any, tolerance: float = 1e-12) -> None:
    got = value(got) if isinstance(got, Scaled) else np.asarray(got)
    wanted = np.asarray(wanted)
    assert got.shape == wanted.shape
    assert np.max(np.abs(got - wanted), initial=0.0) <= tolerance * np.max(np.abs(wanted))


@every_cell
@both_targets
@pytest.mark.parametrize("loss", LOSSES)
def test_everything_is_pytorchs(cell: str, targets: str, loss: str) -> None:
    sizes, layers, B, T = (3, 5, 4), 2, 4, 7
    parameters = draw(cell, sizes, layers)
    data = draw_data(cell, sizes, layers, B, T, targets=targets, loss=loss)
    found = reference.run(parameters, **data, cell=cell, targets=targets, loss=loss)

    rnn, head = torch_module(cell, parameters, layers)
    leaves, outputs, ends = torch_rows(rnn, head, data)
    if targets == "last":
        output, target = torch.stack([o[-1] for o in outputs]), data["target"]
        assert_close(found.output, output.detach())
    else:
        output = torch.cat(outputs)
        target = np.concatenate(
            [t[:n] for t, n in zip(data["target"], data["lengths"], strict=True)]
        )
        for row, one in enumerate(outputs):
            assert_close(value(found.output)[row, : len(one)], one.detach())
            assert not value(found.output)[row, len(one) :].any()
    result = torch_loss(loss, output, target)
    result.backward()
    assert found.loss == pytest.approx(result.item(), rel=1e-13)
    for number, part in enumerate(found.state):
        assert_close(part, torch.cat([end[number] for end in ends], dim=1).detach())
    for module, prefix in ((rnn, "rnn"), (head, "head")):
        for name, parameter in module.named_parameters():
            assert_close(found.gradients[f"{prefix}.{name}"], parameter.grad)
    for got, leaf in zip(found.state_gradients, leaves, strict=True):
        assert_close(np.array([value(layer) for layer in got]), leaf.grad)


@every_cell
@both_targets
def test_gradients_are_central_differences(cell: str, targets: str) -> None:
    sizes, options = (2, 3, 2), {"cell": cell, "targets": targets, "loss": "mse"}
    parameters = draw(cell, sizes, 2, seed=3)
    data = draw_data(cell, sizes, 2, 3, 5, targets=targets, loss="mse", seed=4)
    found = reference.run(parameters, **data, **options)
    for name, array in parameters.items():
        index = np.unravel_index(array.size // 2, array.shape)
        losses = []
        for sign in (1, -1):
            moved = parameters | {name: array.copy()}
            moved[name][index] += sign * 1e-5
            losses.append(reference.run(moved, **data, **options).loss)
        wanted = (losses[0] - losses[1]) / 2e-5
        assert value(found.gradients[name])[index] == pytest.approx(wanted, rel=1e-6, abs=1e-9)


def torch_windows(
    cell: str, parameters: dict[str, np.ndarray], data: dict[str, Any], window: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Gradients of windows over targets at each step: each is cut off from what is before it."""
    layers = len(data["state"][0])
    rnn, head = torch_module(cell, parameters, layers)
    T = data["x"].shape[1]
    x, target = torch.tensor(data["x"]), torch.tensor(data["target"])
    for begin, end, new in reference.windows(T, "all", window):
        state = tuple(torch.tensor(part) for part in data["state"])
        state = state if len(state) == 2 else state[0]
        with torch.no_grad():
            if begin:
                state = rnn(x[:, :begin], state)[1]
        h, _ = rnn(x[:, begin:end], state)
        output = head(h[:, new - begin :])
        ((output - target[:, new:end]) ** 2).sum().div(target.numel()).backward()
    return {
        f"{prefix}.{name}": parameter.grad.numpy()
        for module, prefix in ((rnn, "rnn"), (head, "head"))
        for name, parameter in module.named_parameters()
    }


@every_cell
@pytest.mark.parametrize("window", [(1, 1), (3, 3), (1, 4), (2, 5), (4, 9), (11, 11), (20, 20)])
def test_windows_cut_the_gradient_off(cell: str, window: tuple[int, int]) -> None:
    sizes, layers = (3, 4, 2), 2
    parameters = draw(cell, sizes, layers)
    data = draw_data(cell, sizes, layers, 3, 11, targets="all", loss="mse")
    data["lengths"] = None
    found = reference.run(parameters, **data, cell=cell, targets="all", window=window)
    for name, wanted in torch_windows(cell, parameters, data, window).items():
        assert_close(found.gradients[name], wanted)


@every_cell
def test_a_window_of_one_target_is_a_shorter_sequence(cell: str) -> None:
    sizes, layers, window = (3, 4, 2), 2, 3
    parameters = draw(cell, sizes, layers)
    data = draw_data(cell, sizes, layers, 4, 8, targets="last", loss="mse")
    data["lengths"] = np.array([8, 3, 5, 1])
    found = reference.run(parameters, **data, cell=cell, window=(1, window))
    one_by_one: dict[str, np.ndarray] = {}
    for row, length in enumerate(data["lengths"]):
        cut = max(length - window, 0)
        alone = {k: v[row : row + 1] for k, v in data.items() if k in ("x", "target")}
        state = [part[:, row : row + 1] for part in data["state"]]
        if cut:
            before = reference.run(
                parameters, alone["x"][:, :cut], alone["target"], cell=cell, state=state
            )
            state = list(before.state)
        x = alone["x"][:, cut:length]
        one = reference.run(parameters, x, alone["target"], cell=cell, state=state)
        for name, gradient in one.gradients.items():
            one_by_one[name] = one_by_one.get(name, 0) + value(gradient) / len(data["lengths"])
    for name, gradient in one_by_one.items():
        assert_close(found.gradients[name], gradient)


@every_cell
@both_targets
def test_factors_cut_or_scale_what_goes_back(cell: str, targets: str) -> None:
    sizes, layers, T = (3, 4, 2), 2, 6
    parameters = draw(cell, sizes, layers)
    data = draw_data(cell, sizes, layers, 3, T, targets=targets, loss="mse")
    data["lengths"] = None
    options = {"cell": cell, "targets": targets}
    full = reference.run(parameters, **data, **options)
    same = reference.run(parameters, **data, **options, factors=np.ones(T))
    thirds = np.where(np.arange(T) % 3 == 0, 0.0, 1.0)
    cut = reference.run(parameters, **data, **options, factors=thirds)
    chunks = reference.run(parameters, **data, **options, window=(3, 3))
    half = reference.run(parameters, **data, **options, factors=np.r_[0.5, np.ones(T - 1)])
    for name, gradient in full.gradients.items():
        assert_close(same.gradients[name], value(gradient), 0.0)
        assert_close(cut.gradients[name], value(chunks.gradients[name]))
        assert_close(half.gradients[name], value(gradient), 0.0)
    for got, wanted in zip(half.state_gradients, full.state_gradients, strict=True):
        for a, b in zip(got, wanted, strict=True):
            assert_close(a, 0.5 * value(b))


def test_sizes_are_right_far_beyond_float64() -> None:
    """A linear chain that halves what it is given, forward and back."""
    T, H = 3000, 4
    parameters = draw("relu", (1, H, 1), 1)
    parameters["rnn.weight_hh_l0"] = 0.5 * np.eye(H)
    for name in ("rnn.weight_ih_l0", "rnn.bias_ih_l0", "rnn.bias_hh_l0"):
        parameters[name] = np.zeros_like(parameters[name])
    state = [np.ones((1, 2, H))]
    x, target = np.zeros((2, T, 1)), np.ones((2, 1))
    flow = reference.run(parameters, x, target, cell="relu", state=state).flow
    assert_close(flow["hidden_log2"][0], -np.arange(1.0, T + 1))
    assert_close(flow["gain_log2"][0], -np.ones(T))
    assert_close(np.diff(flow["delta_log2"][0]), np.ones(T - 1), 1e-9)
    assert (flow["carry_log2"] == -math.inf).all()


def test_an_lstm_that_carries_all_has_a_gain_of_its_forget_gate() -> None:
    """With U = 0 nothing goes through the matrix, and κ alone goes back."""
    T, H = 50, 3
    parameters = draw("lstm", (2, H, 1), 1)
    parameters["rnn.weight_hh_l0"] *= 0.0
    data = draw_data("lstm", (2, H, 1), 1, 3, T, targets="last", loss="mse")
    data["x"] *= 0.0
    flow = reference.run(parameters, **data | {"lengths": None}, cell="lstm").flow
    bias = parameters["rnn.bias_ih_l0"] + parameters["rnn.bias_hh_l0"]
    f = 1.0 / (1.0 + np.exp(-bias[H : 2 * H]))
    assert_close(flow["carry_mean"][0], f)
    assert (flow["carry_log2"] <= np.log2(f.max()) + 1e-12).all()
    assert_close(flow["carry_log2"][0, 0], np.log2(f.max()), 1e-3)  # the largest is left
    assert (flow["matrix_log2"][0, 1:] == -math.inf).all()
    assert np.isnan(flow["matrix_log2"][0, 0])
    assert_close(flow["cell_gain_log2"], flow["carry_log2"])

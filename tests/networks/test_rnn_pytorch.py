"""Recurrent networks beside PyTorch's, whose weights they take."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")
B, T, SIZES, LAYERS = 6, 50, (5, 17, 4), 2


def theirs(net: vegrad.RNN) -> tuple[Any, Any]:
    """Return PyTorch's recurrent module and head, with copies of the network's weights."""
    cell = net.config["cell"]
    kind = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}.get(cell, torch.nn.RNN)
    more = {"nonlinearity": cell} if cell in ("tanh", "relu") else {}
    rnn = kind(SIZES[0], SIZES[1], LAYERS, batch_first=True, dtype=torch.float64, **more)
    head = torch.nn.Linear(SIZES[1], SIZES[2], dtype=torch.float64)
    state = {name: torch.tensor(array) for name, array in net.parameters.items()}
    rnn.load_state_dict({k[4:]: v for k, v in state.items() if k.startswith("rnn.")})
    head.load_state_dict({k[5:]: v for k, v in state.items() if k.startswith("head.")})
    return rnn, head


def loss_of(loss: str, output: Any, target: np.ndarray) -> Any:
    wanted = torch.tensor(target)
    if loss == "cross_entropy":
        return torch.nn.functional.cross_entropy(output.reshape(-1, SIZES[2]), wanted.reshape(-1))
    if loss == "mse":
        return torch.nn.functional.mse_loss(output, wanted)
    return torch.nn.functional.binary_cross_entropy_with_logits(output, wanted)


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy"])
def test_outputs_states_and_gradients_are_pytorchs(
    isa: str, cell: str, targets: str, loss: str
) -> None:
    """To 1e-12 of the largest."""
    net = vegrad.RNN(
        *SIZES, cell=cell, layers=LAYERS, targets=targets, loss=loss, dtype="float64", seed=1
    )
    rng = np.random.default_rng(2)
    x, shape = rng.standard_normal((B, T, SIZES[0])), (B, T) if targets == "all" else (B,)
    target = rng.uniform(size=(*shape, SIZES[2]))
    if loss == "cross_entropy":
        target = rng.integers(0, SIZES[2], shape)
    rnn, head = theirs(net)
    h, state = rnn(torch.tensor(x))
    output = head(h if targets == "all" else h[:, -1])
    wanted = loss_of(loss, output, target)
    wanted.backward()
    pairs = [(net.backward(x, target), wanted), *zip(net.state, as_tuple(state), strict=True)]
    pairs.append((net.forward(x), output))
    of_torch = {f"rnn.{name}": p for name, p in rnn.named_parameters()}
    of_torch |= {f"head.{name}": p for name, p in head.named_parameters()}
    pairs += [(gradient, of_torch[name].grad) for name, gradient in net.gradients.items()]
    for got, want in pairs:
        array = want.detach().numpy()
        np.testing.assert_allclose(got, array, rtol=0, atol=1e-12 * np.abs(array).max())


def as_tuple(state: Any) -> tuple[Any, ...]:
    return state if isinstance(state, tuple) else (state,)

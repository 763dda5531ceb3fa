"""Measure how far the gradient goes back through time in nn.LSTM, nn.GRU and nn.RNN."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch.reading import cells  # noqa: E402

from tests.torch.recurrent_models import KINDS, LOSS, UNITS, data, made, times  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def looked_at(model: nn.Module, x: torch.Tensor) -> list[Any]:
    with cells.heard(model) as calls, torch.no_grad():
        model(x)
    return cells.recurrences(model, calls)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("LSTM", {}),
        ("LSTM", {"proj_size": 8}),
        ("LSTM", {"bias": False}),
        ("LSTM", {"bidirectional": True, "num_layers": 2}),
        ("GRU", {"batch_first": False}),
        ("GRU", {"bidirectional": True, "num_layers": 2}),
        ("RNN", {}),
        ("RNN", {"nonlinearity": "relu"}),
    ],
)
def test_outputs_are_those_of_pytorch(kind: str, options: dict[str, Any]) -> None:
    """The outputs of the last layer are compared, direction by direction."""
    model = made(kind, **options).double()
    model.cells.double()
    x, _ = data(model, 12, rows=5)
    cells = looked_at(model, x.double())
    given = x.double() if model.cells.batch_first else x.double().transpose(0, 1)
    wanted = model.cells(given)[0]
    wanted = (wanted.transpose(0, 1) if model.cells.batch_first else wanted).detach()
    last = cells[-2:] if options.get("bidirectional") else cells[-1:]
    outputs = [torch.from_numpy(one.look(0)) for one in last]
    outputs[1:] = [one.flip(0) for one in outputs[1:]]
    torch.testing.assert_close(torch.cat(outputs, -1), wanted)


def _lstm(z: torch.Tensor, h: torch.Tensor, state: list[torch.Tensor]) -> list[torch.Tensor]:
    i, f, g, o = (z + h).chunk(4, -1)
    c = f.sigmoid() * state[1] + i.sigmoid() * g.tanh()
    return [o.sigmoid() * c.tanh(), c]


def _gru(z: torch.Tensor, h: torch.Tensor, state: list[torch.Tensor]) -> list[torch.Tensor]:
    (r, u, n), (hr, hu, hn) = z.chunk(3, -1), h.chunk(3, -1)
    new = (n + (r + hr).sigmoid() * hn).tanh()
    return [torch.lerp(new, state[0], (u + hu).sigmoid())]


def _rnn(z: torch.Tensor, h: torch.Tensor, state: list[torch.Tensor]) -> list[torch.Tensor]:
    return [(z + h).tanh()]


FORMULAS = {"LSTM": _lstm, "GRU": _gru, "RNN": _rnn}


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_those_of_autograd(kind: str) -> None:
    """Autograd goes once through all steps, to the inputs' part of the pre-activations."""
    model = made(kind).double()
    x, _ = data(model, 10, rows=4)
    (one,) = looked_at(model, x.double())
    own = {part: torch.from_numpy(values) for part, values in one.own.items()}
    parts, state = [], [torch.zeros(4, UNITS).double() for _ in range(2)]
    for at in torch.from_numpy(one.x):
        part = (at @ own["ih"].T + own["b_ih"]).requires_grad_()
        state = FORMULAS[kind](part, state[0] @ own["hh"].T + own["b_hh"], state)
        parts.append(part)
    given = torch.from_numpy(np.random.default_rng(0).standard_normal((4, UNITS)))
    found = torch.autograd.grad((state[0] * given).sum() / given.norm(), parts)
    wanted = [float(gradient.norm().log2()) for gradient in found][::-1]
    np.testing.assert_allclose(one.sizes[:, 0], wanted, rtol=1e-9)


def test_sizes_are_right_beyond_the_dtype() -> None:
    """Each of 60 steps multiplies the gradient by 1e-9, so that it ends at 1e-531."""
    model = made("RNN", nonlinearity="relu")
    with torch.no_grad():
        for parameter in model.cells.parameters():
            parameter.zero_()
        model.cells.weight_hh_l0.copy_(1e-9 * torch.eye(UNITS))
        model.cells.bias_ih_l0.fill_(1.0)
    (one,) = looked_at(model, data(model, 60)[0])
    assert one.sizes[-1, 0] / np.log2(10) == pytest.approx(-9 * 59, rel=1e-3)


def test_rows_and_steps_of_every_kind_of_input() -> None:
    module = nn.GRU(12, UNITS)
    x = torch.randn(40, 3, 12)
    packed = nn.utils.rnn.pack_padded_sequence(x, [40, 30, 7], enforce_sorted=True)
    for given, shape in (
        (x, (40, 3)),
        (x[:, 0], (40, 1)),
        (packed, (30, 2)),
        (torch.randn(200, 50, 12), (64, 8)),
    ):
        with cells.heard(module) as calls:
            module(given)
        (one,) = cells.recurrences(module, calls)
        assert tuple(one.x.shape[:2]) == shape
    with cells.heard(module) as calls:
        module(torch.randn(2, 3, 12))
    assert cells.recurrences(module, calls) == []  # too few steps to look back


class ByHand(nn.Module):
    """A loop over the steps that calls a cell, or a whole module, at each of them."""

    def __init__(self, cell: nn.Module, whole: bool = False) -> None:
        super().__init__()
        self.cell, self.out, self.whole = cell, nn.Linear(UNITS, 10), whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        state = None
        for at in x.unbind(1):
            if self.whole:
                _, state = self.cell(at[None], state)
            else:
                state = self.cell(at) if state is None else self.cell(at, state)
        h = state[0] if isinstance(state, tuple) else state
        return self.out(h.reshape(-1, UNITS))


@pytest.mark.parametrize(
    ("cell", "name"),
    [
        (nn.LSTMCell(12, UNITS), "weight_hh"),
        (nn.GRUCell(12, UNITS, bias=False), "weight_hh"),
        (nn.RNNCell(12, UNITS), "weight_hh"),
        (nn.LSTM(12, UNITS), "weight_hh_l0"),
    ],
)
def test_cells_called_in_a_loop_are_measured(cell: nn.Module, name: str) -> None:
    model = ByHand(cell, isinstance(cell, nn.LSTM))
    x = torch.randn(16, 30, 12, generator=torch.Generator().manual_seed(0))
    target = torch.arange(16) % 10
    found = ours.diagnose(model, LOSS, x, target, resamples=0)
    assert found.healthy, found.summary
    assert found.through_time[0]["steps"] == 30
    times(model, f"cell.{name}", 20.0)
    (finding,) = ours.diagnose(model, LOSS, x, target, resamples=0).findings
    assert finding.kind == "exploding"
    assert finding.sites[1].name == f"cell.{name}"

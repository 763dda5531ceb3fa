"""The gradient through time of nn.LSTM, nn.GRU and nn.RNN: how far it goes, and what stops it."""

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch.reading import cells  # noqa: E402

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]

UNITS = 32
LOSS = nn.CrossEntropyLoss()
KINDS = {"LSTM": nn.LSTM, "GRU": nn.GRU, "RNN": nn.RNN}


class Reader(nn.Module):
    """Words or numbers, cells, and a class of the last output or of each."""

    def __init__(self, kind: str = "LSTM", words: bool = False, each: bool = False, **options: Any):
        super().__init__()
        options = {"batch_first": True} | options
        self.words = nn.Embedding(30, 12) if words else nn.Identity()
        self.cells = KINDS[kind](12, UNITS, **options)
        outputs = options.get("proj_size") or UNITS
        self.out = nn.Linear(outputs * (2 if options.get("bidirectional") else 1), 10)
        self.each = each

    def forward(self, x: Any) -> Any:
        x = self.words(x)
        x = x if self.cells.batch_first else x.transpose(0, 1)
        y, _ = self.cells(x)
        y = y if self.cells.batch_first else y.transpose(0, 1)
        return self.out(y).transpose(1, 2) if self.each else self.out(y[:, -1])


def made(kind: str = "LSTM", seed: int = 0, **options: Any) -> Any:
    torch.manual_seed(seed)
    return Reader(kind, **options)


def data(model: Any, steps: int = 40, rows: int = 16) -> tuple[Any, Any]:
    random = torch.Generator().manual_seed(1)
    words = isinstance(model.words, nn.Embedding)
    shape = (rows, steps)
    x = torch.randint(0, 30, shape, generator=random)
    x = x if words else torch.randn(*shape, 12, generator=random)
    return x, torch.randint(0, 10, shape if model.each else shape[:1], generator=random)


def diagnosed(model: Any, steps: int = 40) -> Any:
    return ours.diagnose(model, LOSS, *data(model, steps), resamples=0)


def times(model: Any, name: str, factor: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)


def looked_at(model: Any, x: Any) -> list[Any]:
    with cells.heard(model) as calls, torch.no_grad():
        model(x)
    return cells.recurrences(model, calls)


# What is measured ------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "options"), [
    ("LSTM", {}), ("LSTM", {"proj_size": 8}), ("LSTM", {"bias": False}),
    ("LSTM", {"bidirectional": True, "num_layers": 2}), ("GRU", {"batch_first": False}),
    ("GRU", {"bidirectional": True, "num_layers": 2}), ("RNN", {}),
    ("RNN", {"nonlinearity": "relu"}),
])  # fmt: skip
def test_cells_are_pytorchs(kind: str, options: dict[str, Any]) -> None:
    """The outputs of the last layer, direction by direction."""
    model = made(kind, **options).double()
    model.cells.double()
    x, _ = data(model, 12, rows=5)
    cells = looked_at(model, x.double())
    given = x.double() if model.cells.batch_first else x.double().transpose(0, 1)
    wanted = model.cells(given)[0]
    wanted = (wanted.transpose(0, 1) if model.cells.batch_first else wanted).detach()
    last = cells[-2:] if options.get("bidirectional") else cells[-1:]
    outputs = [one.look(0) for one in last]
    outputs[1:] = [one.flip(0) for one in outputs[1:]]
    torch.testing.assert_close(torch.cat(outputs, -1), wanted)


@pytest.mark.parametrize("kind", KINDS)
def test_sizes_are_autograds(kind: str) -> None:
    """The gradient of the inputs' part of the pre-activations, by one pass through all steps."""
    model = made(kind).double()
    x, _ = data(model, 10, rows=4)
    (one,) = looked_at(model, x.double())
    cell = cells.CELLS[one.mode]
    parts, state = [], [torch.zeros(1, 4, UNITS).double() for _ in one.widths]
    for at in one.x:
        part = (at @ one.own["ih"].T + one.own["b_ih"])[None].requires_grad_()
        state = cell(part, state[0] @ one.own["hh"].T + one.own["b_hh"], state, {})
        parts.append(part)
    random = torch.Generator().manual_seed(0)
    given = torch.randn(4, UNITS, generator=random, dtype=torch.float64)
    found = torch.autograd.grad((state[0] * given).sum() / given.norm(), parts)
    wanted = [float(gradient.norm().log2()) for gradient in found][::-1]
    np.testing.assert_allclose(one.sizes[:, 0], wanted, rtol=1e-9)


def test_sizes_are_right_beyond_the_dtype() -> None:
    """0.001 times an orthogonal matrix, step by step: 10^-3 each, 10^-189 in all of float64."""
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
    for given, shape in ((x, (40, 3)), (x[:, 0], (40, 1)), (packed, (30, 2)),
                         (torch.randn(200, 50, 12), (64, 8))):  # fmt: skip
        with cells.heard(module) as calls:
            module(given)
        (one,) = cells.recurrences(module, calls)
        assert tuple(one.x.shape[:2]) == shape
    with cells.heard(module) as calls:
        module(torch.randn(2, 3, 12))
    assert cells.recurrences(module, calls) == []  # nothing to look back at


class ByHand(nn.Module):
    """A loop over cells, or over calls of a module."""

    def __init__(self, cell: Any, whole: bool = False) -> None:
        super().__init__()
        self.cell, self.out, self.whole = cell, nn.Linear(UNITS, 10), whole

    def forward(self, x: Any) -> Any:
        state = None
        for at in x.unbind(1):
            if self.whole:
                _, state = self.cell(at[None], state)
            else:
                state = self.cell(at) if state is None else self.cell(at, state)
        h = state[0] if isinstance(state, tuple) else state
        return self.out(h.reshape(-1, UNITS))


@pytest.mark.parametrize(("cell", "name"), [
    (nn.LSTMCell(12, UNITS), "weight_hh"), (nn.GRUCell(12, UNITS, bias=False), "weight_hh"),
    (nn.RNNCell(12, UNITS), "weight_hh"), (nn.LSTM(12, UNITS), "weight_hh_l0"),
])  # fmt: skip
def test_loops_over_cells_too(cell: Any, name: str) -> None:
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


# What is found ---------------------------------------------------------------------------------


def initialized(model: Any, how: str) -> Any:
    for name, parameter in model.cells.named_parameters():
        if how in ("orthogonal", "forget 1") and "weight_hh" in name:
            nn.init.orthogonal_(parameter)
        if how == "forget 1" and "bias" in name:
            nn.init.zeros_(parameter)
            if "bias_ih" in name:
                nn.init.ones_(parameter.data[UNITS : 2 * UNITS])
        if how == "xavier" and "weight" in name:
            nn.init.xavier_normal_(parameter)
    return model


@pytest.mark.parametrize("steps", [5, 30, 200])
@pytest.mark.parametrize(("kind", "how", "options"), [
    ("LSTM", "", {"num_layers": 3, "words": True}), ("LSTM", "forget 1", {"num_layers": 2}),
    ("LSTM", "orthogonal", {"proj_size": 8, "each": True}), ("LSTM", "xavier", {"bias": False}),
    ("LSTM", "", {"num_layers": 3, "dropout": 0.5, "proj_size": 8, "words": True}),
    ("GRU", "", {"bidirectional": True, "num_layers": 2}), ("GRU", "orthogonal", {"words": True}),
    ("RNN", "", {"batch_first": False}), ("RNN", "orthogonal", {"num_layers": 2}),
    ("RNN", "", {"nonlinearity": "relu", "bidirectional": True}),
])  # fmt: skip
def test_fresh_ones_are_healthy(kind: str, how: str, options: dict[str, Any], steps: int) -> None:
    found = diagnosed(initialized(made(kind, **options), how), steps)
    assert found.healthy, found.summary
    assert "through time" in str(found)


SICK = [
    ("LSTM", "weight_hh_l0", 20.0, "exploding"), ("LSTM", "weight_hh_l1", 20.0, "exploding"),
    ("GRU", "weight_hh_l1", 20.0, "exploding"), ("RNN", "weight_hh_l0", 20.0, "exploding"),
    ("LSTM", "weight_hh_l0", 1e-3, "vanishing"), ("GRU", "weight_hh_l0", 1e-3, "vanishing"),
    ("RNN", "weight_hh_l1", 1e-3, "vanishing"), ("LSTM", "weight_ih_l0", 1e3, "vanishing"),
    ("GRU", "weight_ih_l1", 1e3, "saturated"), ("LSTM", "weight_ih_l1", 1e-5, "vanishing"),
    ("RNN", "weight_ih_l0", 1e-3, "vanishing"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name", "factor", "verdict"), SICK)
def test_a_sick_weight_is_named_with_its_factor(
    kind: str, name: str, factor: float, verdict: str
) -> None:
    model = made(kind, num_layers=2)
    times(model, f"cells.{name}", factor)
    found = diagnosed(model)
    assert found.verdict == verdict
    assert len(found.findings) == 1
    (finding,) = found.findings
    assert finding.sites[1].name == f"cells.{name}"
    assert finding.evidence["factor"] == pytest.approx(1 / factor, rel=0.1)
    assert finding.advice == f"multiply cells.{name} by {finding.edit.factor:.3g}."
    assert found.rows[finding.layers[0]]["module"] == "cells"
    assert found.apply(model)
    assert diagnosed(model).healthy


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(("kind", "gate", "value"), [
    ("LSTM", "forget", -20.0), ("GRU", "update", -20.0), ("GRU", "update", 20.0),
])  # fmt: skip
def test_a_closed_gate_is_named_by_its_rows(kind: str, gate: str, value: float, both: bool) -> None:
    model = made(kind)
    biases = ["bias_ih_l0", "bias_hh_l0"] if both else ["bias_hh_l0"]
    for name in biases:
        nn.init.constant_(model.cells.get_parameter(name).data[UNITS : 2 * UNITS], value)
    found = diagnosed(model)
    finding = found.findings[0]
    assert found.verdict == "vanishing"
    where = " and ".join(f"cells.{name}[32:64]" for name in biases)
    assert finding.advice == (
        f"set {where} ({'those' if both else 'that'} of the {gate} gate) to 0.")  # fmt: skip
    assert found.apply(model)
    assert diagnosed(model).healthy


def test_a_forget_gates_one_is_left_alone() -> None:
    model = initialized(made(), "forget 1")
    nn.init.constant_(model.cells.bias_hh_l0.data[UNITS : 2 * UNITS], -20.0)
    (finding,) = diagnosed(model).findings
    assert finding.advice == "set cells.bias_hh_l0[32:64] (that of the forget gate) to 0."


def test_one_gate_of_a_matrix_and_two_matrices() -> None:
    model = made("GRU")
    with torch.no_grad():
        model.cells.weight_hh_l0[64:] *= 100
    (finding,) = diagnosed(model).findings
    assert finding.advice.startswith("multiply cells.weight_hh_l0[64:96] (that of the new gate) by")
    model = made("RNN")
    times(model, "cells.weight_hh_l0", 50)
    times(model, "cells.weight_ih_l0", 50)
    found = diagnosed(model)
    (finding,) = found.findings
    assert "multiply cells.weight_hh_l0 by" in finding.advice
    assert "multiply cells.weight_ih_l0 by" in finding.advice
    assert found.apply(model)
    assert diagnosed(model).healthy


def test_small_weights_of_large_inputs_are_healthy() -> None:
    model = made("GRU")
    times(model, "cells.weight_ih_l0", 1e-3)
    x, target = data(model)
    assert not ours.diagnose(model, LOSS, x, target, resamples=0).healthy
    assert ours.diagnose(model, LOSS, 1e3 * x, target, resamples=0).healthy
    times(model, "cells.weight_ih_l0", 1e3)
    found = ours.diagnose(model, LOSS, 1e3 * x, target, resamples=0)
    assert found.verdict == "saturated"
    assert found.findings[0].advice.startswith(
        "scale its inputs, whose root mean square is 1.01e+03"
    )


def test_what_explodes_comes_before_the_nan_that_it_makes() -> None:
    model = made("RNN")
    times(model, "cells.weight_hh_l0", 40)
    found = diagnosed(model, 300)
    assert [finding.kind for finding in found.findings] == ["exploding", "nonfinite"]
    assert found.findings[0].sites[1].name == "cells.weight_hh_l0"


def test_how_far_it_reaches_is_told() -> None:
    found = diagnosed(made(num_layers=2))
    rows = found.to_dict()["through_time"]
    assert [row["parameter"] for row in rows] == ["cells.weight_hh_l0", "cells.weight_hh_l1"]
    for row in rows:
        assert row["steps"] == 40
        assert row["reach"] == pytest.approx(row["fresh_reach"], abs=2)
        assert row["gain"] == pytest.approx(row["fresh_gain"], rel=0.1)
    assert f"{rows[0]['reach']:>7} of 40 steps" in str(found)
    model = made()
    nn.init.constant_(model.cells.bias_hh_l0.data[UNITS : 2 * UNITS], 10.0)
    row = diagnosed(model).through_time[0]
    assert row["reach"] == 40  # which never forgets, and is healthy
    assert row["fresh_reach"] < 20


def test_a_reverse_direction_that_is_used_at_its_first_step_is_a_note() -> None:
    model = made(bidirectional=True)
    found = diagnosed(model)
    assert found.healthy
    assert "cells.weight_hh_l0_reverse got no gradient" in found.notes[0]
    assert not diagnosed(made(bidirectional=True, each=True)).notes


def test_recurrent_weights_that_begin_at_zero_are_healthy() -> None:
    model = made("RNN")
    nn.init.zeros_(model.cells.weight_hh_l0)
    assert diagnosed(model).healthy


def test_what_is_made_of_parameters_is_not_named() -> None:
    model = made("RNN")
    times(model, "cells.weight_hh_l0", 20)
    nn.utils.parametrizations.weight_norm(model.cells, "weight_hh_l0")
    found = diagnosed(model)
    finding = found.findings[0]
    assert found.verdict == "exploding"
    assert len(finding.sites) == 1
    assert finding.edit is None
    assert "draw its recurrent weights again" in finding.advice


def test_depth_is_compared_with_fresh_weights_too() -> None:
    """Three layers of few outputs lose three decades when fresh; one that is off loses more."""
    model = made(num_layers=3, proj_size=2, words=True)
    assert diagnosed(model).healthy
    times(model, "cells.weight_ih_l0", 1e-5)
    found = diagnosed(model)
    assert found.verdict == "vanishing"


def test_everything_is_left_as_it_was() -> None:
    model = made(num_layers=2, dropout=0.5)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    diagnosed(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not model.cells._forward_pre_hooks


# What is done about it -------------------------------------------------------------------------


def memory(steps: int) -> tuple[Any, Any]:
    """The first word is to be known at the end."""
    words = torch.randint(0, 4, (512,), generator=torch.Generator().manual_seed(0))
    x = torch.zeros(512, steps, 12)
    x[:, 0, :4] = 3.0 * nn.functional.one_hot(words, 4)
    return x, words


def in_noise() -> tuple[Any, Any]:
    """What is there all the time."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 10, (512,), generator=random)
    x = torch.randn(512, 16, 12, generator=random)
    return x + 1.5 * nn.functional.one_hot(words, 12)[:, None], words


def cured(model: Any, task: tuple[Any, Any], **options: Any) -> Any:
    return ours.cure(
        model, LOSS, *task, optimizer=lambda given: torch.optim.Adam(given, lr=1e-2), **options
    )


@pytest.mark.parametrize(("kind", "factor", "task"), [
    ("LSTM", 100.0, in_noise()), ("GRU", 20.0, in_noise()), ("RNN", 20.0, in_noise()),
    ("RNN", 1e-3, memory(6)),
])  # fmt: skip
def test_a_factor_is_a_cure(kind: str, factor: float, task: tuple[Any, Any]) -> None:
    model = made(kind)
    before = model.cells.weight_hh_l0.detach().clone()
    times(model, "cells.weight_hh_l0", factor)
    found = cured(model, task)
    assert found.cured, found.summary
    assert found.after.healthy
    assert [one.name for one in found.attempts if one.accepted] == ["recurrent parameters"]
    assert '    model.get_parameter("cells.weight_hh_l0").mul_(' in found.patch
    ratio = model.cells.weight_hh_l0.detach() / before  # it is done in place
    assert float(ratio.mean()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("kind", "steps"), [("LSTM", 6), ("GRU", 10)])
def test_a_gates_bias_is_a_cure(kind: str, steps: int) -> None:
    model = made(kind)
    nn.init.constant_(model.cells.bias_hh_l0.data[UNITS : 2 * UNITS], -20.0)
    found = cured(model, memory(steps))
    assert found.cured, found.summary
    assert 'model.get_parameter("cells.bias_hh_l0")[32:64].zero_()' in found.patch
    assert not model.cells.bias_hh_l0[32:64].any()
    assert model.cells.bias_hh_l0[:32].all()


def test_what_does_not_help_is_not_done() -> None:
    """A network that can do without the recurrent weight."""
    model = made("GRU")
    times(model, "cells.weight_hh_l0", 1e-3)
    before = model.cells.weight_hh_l0.detach().clone()
    x, target = memory(3)
    found = cured(model, (x.flip(1), target))
    assert found.before.verdict == "vanishing"
    assert "nothing to cure" in found.summary
    assert torch.equal(model.cells.weight_hh_l0, before)

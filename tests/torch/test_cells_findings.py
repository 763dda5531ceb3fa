"""Find and cure what stops the gradient through time in nn.LSTM, nn.GRU and nn.RNN."""

from typing import Any

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

from tests.torch.recurrent_models import (  # noqa: E402
    LOSS,
    UNITS,
    Reader,
    data,
    diagnosed,
    made,
    times,
)

pytestmark = [
    pytest.mark.usefixtures("one_torch_thread"),
    pytest.mark.filterwarnings("ignore:LSTM with projections is not supported with oneDNN"),
]


def initialized(model: Reader, how: str) -> Reader:
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
@pytest.mark.parametrize(
    ("kind", "how", "options"),
    [
        ("LSTM", "", {"num_layers": 3, "words": True}),
        ("LSTM", "forget 1", {"num_layers": 2}),
        ("LSTM", "orthogonal", {"proj_size": 8, "each": True}),
        ("LSTM", "xavier", {"bias": False}),
        ("LSTM", "", {"num_layers": 3, "dropout": 0.5, "proj_size": 8, "words": True}),
        ("GRU", "", {"bidirectional": True, "num_layers": 2}),
        ("GRU", "orthogonal", {"words": True}),
        ("RNN", "", {"batch_first": False}),
        ("RNN", "orthogonal", {"num_layers": 2}),
        ("RNN", "", {"nonlinearity": "relu", "bidirectional": True}),
    ],
)
def test_fresh_cells_are_healthy(kind: str, how: str, options: dict[str, Any], steps: int) -> None:
    found = diagnosed(initialized(made(kind, **options), how), steps)
    assert found.healthy, found.summary
    assert "through time" in str(found)


FAULTS = [
    ("LSTM", "weight_hh_l0", 20.0, "exploding"),
    ("LSTM", "weight_hh_l1", 20.0, "exploding"),
    ("GRU", "weight_hh_l1", 20.0, "exploding"),
    ("RNN", "weight_hh_l0", 20.0, "exploding"),
    ("LSTM", "weight_hh_l0", 1e-3, "vanishing"),
    ("GRU", "weight_hh_l0", 1e-3, "vanishing"),
    ("RNN", "weight_hh_l1", 1e-3, "vanishing"),
    ("LSTM", "weight_ih_l0", 1e3, "vanishing"),
    ("GRU", "weight_ih_l1", 1e3, "saturated"),
    ("LSTM", "weight_ih_l1", 1e-5, "vanishing"),
    ("RNN", "weight_ih_l0", 1e-3, "vanishing"),
]


@pytest.mark.parametrize(("kind", "name", "factor", "verdict"), FAULTS)
def test_a_wrong_weight_is_named_with_its_factor(
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
    assert finding.advice.startswith(f"multiply cells.{name} by {finding.edit.factor:.3g}")
    assert found.rows[finding.layers[0]]["module"] == "cells"
    assert found.apply(model)
    assert diagnosed(model).healthy


@pytest.mark.parametrize("both", [False, True])
@pytest.mark.parametrize(
    ("kind", "gate", "value"),
    [
        ("LSTM", "forget", -20.0),
        ("GRU", "update", -20.0),
        ("GRU", "update", 20.0),
    ],
)
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
        f"set {where} ({'those' if both else 'that'} of the {gate} gate) to 0."
    )
    assert found.apply(model)
    assert diagnosed(model).healthy


def test_a_forget_gates_bias_of_one_is_left_alone() -> None:
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


def test_an_explosion_is_named_before_the_nan_that_it_causes() -> None:
    model = made("RNN")
    times(model, "cells.weight_hh_l0", 40)
    found = diagnosed(model, 300)
    assert [finding.kind for finding in found.findings] == ["exploding", "nonfinite"]
    assert found.findings[0].sites[1].name == "cells.weight_hh_l0"


def test_the_reach_of_the_gradient_is_reported() -> None:
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
    assert row["reach"] == 40  # A cell that never forgets is healthy.
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


def test_a_weight_computed_from_parameters_is_not_named() -> None:
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
    """Three fresh layers of few outputs lose three decades; a faulty one loses more."""
    model = made(num_layers=3, proj_size=2, words=True)
    assert diagnosed(model).healthy
    times(model, "cells.weight_ih_l0", 1e-5)
    found = diagnosed(model)
    assert found.verdict == "vanishing"


def test_the_model_is_left_as_it_was() -> None:
    model = made(num_layers=2, dropout=0.5)
    before = {name: one.clone() for name, one in model.state_dict().items()}
    state = torch.random.get_rng_state()
    diagnosed(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
    assert all(one.grad is None for one in model.parameters())
    assert not model.cells._forward_pre_hooks


class Bitwise(nn.Module):
    """A classifier by an LSTM, of which the loss may see other than the last step's outputs."""

    def __init__(self, seen: str, **options: Any) -> None:
        super().__init__()
        self.cells = nn.LSTM(12, UNITS, batch_first=True, **options)
        self.head = nn.Linear(UNITS * (1 + self.cells.bidirectional), 4)
        self.seen = seen

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        outputs, (state, _) = self.cells(x)
        seen = {"last": outputs[:, -1], "mean": outputs.mean(1), "state": state[-1]}
        return self.head(seen[self.seen])


@pytest.mark.parametrize(
    ("seen", "options", "healthy"),
    [
        ("last", {}, False),
        ("last", {"num_layers": 2}, False),
        ("state", {}, False),
        ("mean", {}, True),  # each step has a gradient of its own
        ("last", {"bidirectional": True}, True),  # early steps are the last ones for a direction
    ],
)
def test_what_is_told_too_early_for_a_cell(
    seen: str, options: dict[str, Any], healthy: bool
) -> None:
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 4, (512,), generator=random)
    x = 0.3 * torch.randn(512, 100, 12, generator=random)
    x[:, 0] += 3.0 * nn.functional.one_hot(words, 12)
    torch.manual_seed(0)
    found = ours.diagnose(Bitwise(seen, **options), LOSS, x, words, resamples=0)
    assert found.healthy == healthy
    if not healthy:
        assert found.findings[0].rule == "forgets-what-is-needed"
        assert found.apply(Bitwise(seen, **options))


# Cures -----------------------------------------------------------------------------------------


def memory(steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a task in which the first word must be known at the end."""
    words = torch.randint(0, 4, (512,), generator=torch.Generator().manual_seed(0))
    x = torch.zeros(512, steps, 12)
    x[:, 0, :4] = 3.0 * nn.functional.one_hot(words, 4)
    return x, words


def in_noise() -> tuple[torch.Tensor, torch.Tensor]:
    """Make a task in which every step shows the class, in noise."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 10, (512,), generator=random)
    x = torch.randn(512, 16, 12, generator=random)
    return x + 1.5 * nn.functional.one_hot(words, 12)[:, None], words


def cured(model: nn.Module, task: tuple[torch.Tensor, torch.Tensor], **options: Any) -> vegrad.Cure:
    return ours.cure(
        model, LOSS, *task, optimizer=lambda given: torch.optim.Adam(given, lr=1e-2), **options
    )


@pytest.mark.parametrize(
    ("kind", "factor", "task"),
    [
        ("LSTM", 100.0, in_noise()),
        ("GRU", 20.0, in_noise()),
        ("RNN", 20.0, in_noise()),
        ("RNN", 1e-3, memory(6)),
    ],
)
def test_scaling_by_the_factor_cures_the_model(
    kind: str, factor: float, task: tuple[torch.Tensor, torch.Tensor]
) -> None:
    model = made(kind)
    before = model.cells.weight_hh_l0.detach().clone()
    times(model, "cells.weight_hh_l0", factor)
    found = cured(model, task)
    assert found.cured, found.summary
    assert found.after.healthy
    assert [one.name for one in found.attempts if one.accepted] == ["what the diagnosis says"]
    assert '    model.get_parameter("cells.weight_hh_l0").mul_(' in found.patch
    ratio = model.cells.weight_hh_l0.detach() / before  # The model itself is changed.
    assert float(ratio.mean()) == pytest.approx(1.0, rel=0.1)


@pytest.mark.parametrize(("kind", "steps"), [("LSTM", 6), ("GRU", 10)])
def test_resetting_a_gates_bias_cures_the_model(kind: str, steps: int) -> None:
    model = made(kind)
    nn.init.constant_(model.cells.bias_hh_l0.data[UNITS : 2 * UNITS], -20.0)
    found = cured(model, memory(steps))
    assert found.cured, found.summary
    assert 'model.get_parameter("cells.bias_hh_l0")[32:64].zero_()' in found.patch
    assert not model.cells.bias_hh_l0[32:64].any()
    assert model.cells.bias_hh_l0[:32].all()


def test_a_change_that_does_not_help_is_not_made() -> None:
    """The task can be learnt without the recurrent weight."""
    model = made("GRU")
    times(model, "cells.weight_hh_l0", 1e-3)
    before = model.cells.weight_hh_l0.detach().clone()
    x, target = memory(3)
    found = cured(model, (x.flip(1), target))
    assert found.before.verdict == "vanishing"
    assert "nothing to cure" in found.summary
    assert torch.equal(model.cells.weight_hh_l0, before)


@pytest.mark.parametrize(("kind", "remedy"), [("RNN", "until gradients keep their size")])
def test_a_task_that_needs_memory_is_learned(kind: str, remedy: str) -> None:
    """The class is shown in noise, at the first of many steps."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 4, (512,), generator=random)
    x = 0.3 * torch.randn(512, 60, 12, generator=random)
    x[:, 0] += 3.0 * nn.functional.one_hot(words, 12)
    found = cured(made(kind), (x, words), steps=600)
    assert found.cured, found.summary
    assert remedy in next(one.change for one in found.attempts if one.accepted)

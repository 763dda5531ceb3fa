"""Say that a recurrent module forgets only where something says that its task needs it."""

import re

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

from tests.torch.recurrent_models import LOSS, Reader, data, made  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")
STEPS = 60


def class_at(step: int, rows: int = 512, every: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    """Make noise with the class shown at one step, or at every one."""
    random = torch.Generator().manual_seed(0)
    words = torch.randint(0, 4, (rows,), generator=random)
    x = 0.3 * torch.randn(rows, STEPS, 12, generator=random)
    shown = slice(None) if every else slice(step, step + 1)
    x[:, shown, :4] += 3.0 * nn.functional.one_hot(words, 4)[:, None]
    return x, words


def judged(
    model: Reader, x: torch.Tensor, words: torch.Tensor, memory: int = 0
) -> vegrad.Diagnosis:
    return ours.diagnose(model, LOSS, x, words, resamples=0, memory=memory)


def opens_its_gates(found: vegrad.Diagnosis, model: Reader) -> None:
    """Check that a finding says how far the gradient gets, and that its edit makes it get there."""
    (finding,) = found.findings
    assert (finding.kind, finding.cause) == ("vanishing", "gate-bias")
    assert finding.evidence["reach"] < 25
    gain = finding.evidence["wanted_gain"]
    assert gain**STEPS == pytest.approx(1e-3)
    edit = finding.edit
    assert edit.rows == (32, 64)  # of the forget, or update, gate
    carry = float(found.reading.cells[0].expected[0, 0])
    opened = 1 / (1 + np.exp(-(np.log(carry / (1 - carry)) + edit.amount)))
    assert opened == pytest.approx(gain, abs=2e-3)
    assert found.apply(model)


def test_a_target_shown_at_the_first_step_is_out_of_an_lstms_reach() -> None:
    model = made()
    found = judged(model, *class_at(0))
    (finding,) = found.findings
    needed = finding.evidence["needed"]
    assert needed == STEPS - 1
    assert -11 < finding.evidence["decades"] <= -8  # no training is known to learn from less
    assert re.match(
        rf"at least 9\d % of the target can be told, by a linear fit, from what lies before "
        rf"the last {needed:.0f} of {STEPS} steps, and nothing from those; but only .*e-11 of "
        r"the gradient of cells \(layer 0\)",
        finding.message,
    )
    opens_its_gates(found, model)
    assert judged(model, *class_at(0)).healthy


@pytest.mark.parametrize("kind", ["GRU", "RNN"])
def test_other_cells_learn_from_less_than_any_limit(kind: str) -> None:
    assert judged(made(kind), *class_at(0)).healthy


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_what_is_said_to_be_needed_is_out_of_reach(kind: str) -> None:
    model = made(kind)
    found = judged(model, *class_at(0), memory=STEPS)
    assert found.findings[0].evidence["needed"] == STEPS
    opens_its_gates(found, model)
    assert judged(model, *class_at(0), memory=STEPS).healthy


def test_a_target_that_the_last_steps_tell_is_in_reach() -> None:
    model = made()
    assert judged(model, *class_at(STEPS - 2)).healthy
    assert judged(model, *class_at(0, every=True)).healthy


def test_nothing_is_said_of_few_rows_or_of_targets_by_chance() -> None:
    model = made()
    assert judged(model, *class_at(0, rows=32)).healthy
    x, words = class_at(0)
    shuffled = words[torch.randperm(512, generator=torch.Generator().manual_seed(1))]
    assert judged(model, x, shuffled).healthy


def test_what_the_user_says_is_needed() -> None:
    model = made()
    x, target = data(model, STEPS)
    assert ours.diagnose(model, LOSS, x, target, resamples=0).healthy
    assert ours.diagnose(model, LOSS, x, target, resamples=0, memory=5).healthy
    (finding,) = ours.diagnose(model, LOSS, x, target, resamples=0, memory=50).findings
    assert finding.message.startswith("what the task needs lies 50 steps back, but only ")
    assert finding.evidence["needed"] == 50
    assert finding.evidence["decades"] < -3


def test_a_cell_without_a_carry_is_scaled() -> None:
    model = made("RNN")
    found = judged(model, *class_at(0), memory=STEPS)
    (finding,) = found.findings
    assert finding.cause == "recurrent-weights"
    wanted = finding.evidence["wanted_gain"] / finding.evidence["gain"]
    assert finding.edit.factor == pytest.approx(wanted, rel=1e-3)
    assert found.apply(model)
    (rest,) = judged(model, *class_at(0), memory=STEPS).findings  # tanh saturates: better, not well
    assert rest.evidence["reach"] > 1.5 * finding.evidence["reach"]
    assert rest.evidence["decades"] > finding.evidence["decades"] + 6


def test_a_cell_without_a_carry_is_exchanged_where_it_cannot_be_scaled() -> None:
    model = made("RNN")
    torch.nn.init.zeros_(model.cells.weight_hh_l0)
    (finding,) = judged(model, *class_at(0), memory=STEPS).findings
    assert finding.edit is None
    assert "use a cell with a carry (LSTM, GRU)" in str(finding.advice)


def test_parts_of_a_gain_are_those_of_theory() -> None:
    """What fresh weights give is what the formula of tied weights expects."""
    model = made()
    x, target = data(model, 64, rows=64)
    cell = ours.diagnose(model, LOSS, x, target, resamples=0).reading.cells[0]
    gain = 2 ** ((cell.sizes[40] - cell.sizes[10]) / 30)
    np.testing.assert_allclose(gain, cell.expected.sum(axis=0), rtol=0.1)  # single draws
    assert gain.mean() == pytest.approx(cell.expected.sum(axis=0).mean(), rel=0.03)


def test_a_cure_takes_the_memory() -> None:
    model = made()
    x, target = data(model, STEPS)
    assert ours.cure(model, LOSS, x, target, steps=10).before.healthy
    cure = ours.cure(model, LOSS, x, target, steps=10, memory=50)
    assert cure.before.findings[0].evidence["needed"] == 50
    with pytest.raises(ValueError, match="memory"):
        ours.cure(model, LOSS, x, target, memory=-1)

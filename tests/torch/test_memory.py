"""Say that a recurrent module forgets only where something says that its task needs it."""

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


@pytest.mark.parametrize("kind", ["LSTM", "GRU"])
def test_a_target_shown_at_the_first_step_is_out_of_reach(kind: str) -> None:
    model = made(kind)
    found = judged(model, *class_at(0))
    (finding,) = found.findings
    assert (finding.kind, finding.cause) == ("vanishing", "gate-bias")
    assert finding.evidence["reach"] < 25
    assert finding.evidence["needed"] == STEPS
    assert "but the target depends on what lies further back" in finding.message
    gain = finding.evidence["wanted_gain"]
    assert gain**STEPS == pytest.approx(1e-3)
    edit = finding.edit
    assert edit.rows == (32, 64)  # of the forget, or update, gate
    carry = float(found.reading.cells[0].expected[0, 0])
    opened = 1 / (1 + np.exp(-(np.log(carry / (1 - carry)) + edit.amount)))
    assert opened == pytest.approx(gain, abs=2e-3)
    assert found.apply(model)
    assert judged(model, *class_at(0)).healthy


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
    assert "the task needs what lies 50 steps back" in finding.message


def test_a_cell_without_a_carry_is_scaled_or_exchanged() -> None:
    (finding,) = judged(made("RNN"), *class_at(0)).findings
    assert finding.cause == "recurrent-weights"
    gain = finding.evidence["gain"]
    assert finding.edit is None or finding.edit.factor == pytest.approx(
        finding.evidence["wanted_gain"] / gain, rel=1e-3
    )


def test_parts_of_a_gain_are_those_of_theory() -> None:
    """What fresh weights give is what the formula of tied weights expects."""
    model = made()
    x, target = data(model, 64, rows=64)
    cell = ours.diagnose(model, LOSS, x, target, resamples=0).reading.cells[0]
    gain = 2 ** ((cell.sizes[40] - cell.sizes[10]) / 30)
    np.testing.assert_allclose(gain, cell.expected.sum(axis=0), rtol=0.1)  # single draws
    assert gain.mean() == pytest.approx(cell.expected.sum(axis=0).mean(), rel=0.03)

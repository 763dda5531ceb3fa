"""One step of many tells of the target, and next to nothing of the gradient gets to it."""

import numpy as np
import pytest
import vegrad

Data = tuple[np.ndarray, np.ndarray]
RULE = "forgets-what-is-needed"


def bit(steps: int, at: int, rows: int = 1000) -> Data:
    """Ask for the sign of a number at one step."""
    x = np.random.default_rng(5).standard_normal((rows, steps, 2))
    return x, (x[:, at, 0] > 0).astype(int)


def made(cell: str = "lstm") -> vegrad.RNN:
    return vegrad.RNN(2, 16, 2, cell=cell, loss="cross_entropy", seed=0)


@pytest.mark.parametrize(("steps", "at"), [(100, 3), (60, 0)])
def test_diagnose_finds_it(steps: int, at: int) -> None:
    (finding,) = vegrad.diagnose(made(), *bit(steps, at)).findings
    assert finding.rule == RULE


def test_the_healthy_sentence_names_the_option() -> None:
    found = vegrad.diagnose(made(), *bit(40, 3))
    assert found.healthy
    assert found.summary.endswith("if the task needs more, say so with memory=K")
    assert "of 40 steps back" in found.summary
    assert "all" not in found.summary
    x, target = bit(40, 3)
    far = vegrad.RNN(2, 16, 2, init="chrono", time_scale=40, loss="cross_entropy", seed=0)
    known = vegrad.diagnose(far, x, target, memory=37).summary
    assert "gets all 40 steps back" in known
    assert "and the task needs 37" in known
    assert "memory=K" not in known


def trained(cell: str, seed: int) -> vegrad.History:
    return made(cell).fit(
        *bit(100, 3, rows=2000),
        optimizer=vegrad.AdamW(1e-2),
        epochs=6,
        batch_size=32,
        seed=seed,
        progress=False,
        on_finding=None,
    )


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_a_training_that_stalls_is_not_told_to_step_further(cell: str) -> None:
    findings = trained(cell, 0).findings
    assert findings[0].rule == RULE
    assert "learning-rate-low" not in {one.cause for one in findings}


def test_nor_is_one_of_plain_cells_whatever_its_course() -> None:
    found = [trained("tanh", seed).findings for seed in range(6)]
    assert "learning-rate-low" not in {one.cause for some in found for one in some}
    rules = [some[0].rule for some in found]  # what it has forgotten differs with the rounding
    assert rules.count(RULE) >= 5, rules


def test_one_with_a_rate_that_is_too_low_is() -> None:
    history = made().fit(
        *bit(100, 97),
        optimizer=vegrad.SGD(1e-5),
        epochs=4,
        batch_size=32,
        seed=0,
        progress=False,
        on_finding=None,
    )
    assert [one.cause for one in history.findings] == ["learning-rate-low"]


def test_a_cure_that_fails_blames_the_reach() -> None:
    found = vegrad.cure(made(), *bit(40, 3), steps=100)
    assert not found.reached
    (lesson,) = found.about
    assert "of the gradient gets to what the target depends on" in lesson
    assert "more width is no help" in lesson


def test_a_cure_gives_gates_for_the_length_their_time() -> None:
    rate = vegrad.Adam(1e-2)
    found = vegrad.cure(made(), *bit(40, 3, rows=2000), steps=1000, optimizer=rate)
    assert found.reached
    assert "chrono" in found.summary


def test_a_cure_takes_the_memory() -> None:
    found = vegrad.cure(made(), *bit(40, 3), steps=20, memory=37)
    assert found.before.findings[0].evidence["needed"] == 37


def test_a_memory_beyond_the_sequences_is_refused() -> None:
    x, labels = bit(40, 3)
    with pytest.raises(ValueError, match="memory must be at most the 40 steps of x, not 41"):
        vegrad.diagnose(made(), x, labels, memory=41)
    with pytest.raises(ValueError, match="memory must be at most the 40 steps of x, not 41"):
        vegrad.cure(made(), x, labels, memory=41)

"""Judge and cure own recurrent networks, each with a task that it cannot learn as it is."""

from functools import partial

import numpy as np
import pytest
import vegrad
from vegrad.flow.edits import (
    Chrono,
    Edit,
    Orthogonal,
    SetCell,
    Shift,
    Steady,
    Truncate,
)
from vegrad.flow.subject import Refusal
from vegrad.networks import treatment
from vegrad.networks.recurrent_subject import RecurrentSubject, SequenceData
from vegrad.treatment.conclusion import UNSEEN
from vegrad.treatment.remedies import REMEDIES
from vegrad.treatment.search import Search

UNITS = 32
FORGET = (UNITS, 2 * UNITS)


def shown_once(steps: int, at: int = 0, rows: int = 512) -> tuple[np.ndarray, np.ndarray]:
    """Make noise with the class shown at one step."""
    random = np.random.default_rng(0)
    classes = random.integers(0, 4, rows)
    x = 0.3 * random.standard_normal((rows, steps, 12))
    x[np.arange(rows), at, classes] += 3.0
    return x.astype(np.float32), classes


def made(cell: str = "lstm", seed: int = 0, **options: object) -> vegrad.RNN:
    return vegrad.RNN(12, UNITS, 4, cell=cell, loss="cross_entropy", seed=seed, **options)


# Diagnosis ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cell", "steps"), [("lstm", 60), ("gru", 90)])
def test_a_cell_that_forgets_what_is_needed_gets_its_bias(cell: str, steps: int) -> None:
    network, data = made(cell), shown_once(steps)
    needed = {} if cell == "lstm" else {"memory": steps}  # of others data are no evidence
    (finding,) = vegrad.diagnose(network, *data, **needed).findings
    assert (finding.kind, finding.cause) == ("vanishing", "gate-bias")
    evidence = finding.evidence
    assert evidence["gain"] == pytest.approx(evidence["carry"] + evidence["matrix"], rel=0.1)
    assert evidence["expected_gain"] == pytest.approx(evidence["gain"], rel=0.1)
    assert isinstance(finding.edit, Shift)
    assert finding.edit.rows == FORGET
    found = vegrad.diagnose(network, *data, **needed)
    assert found.apply(network) == ("rnn.bias_ih_l0",)
    assert vegrad.diagnose(network, *data).healthy


@pytest.mark.parametrize(("cell", "steps"), [("lstm", 35), ("gru", 90), ("tanh", 90)])
def test_what_trainings_come_through_is_no_finding(cell: str, steps: int) -> None:
    """Less than a thousandth, but enough: all of these learn, as bench/recurrent_field.py tells."""
    assert vegrad.diagnose(made(cell), *shown_once(steps)).healthy


def test_what_near_steps_tell_too_is_no_finding() -> None:
    x, target = shown_once(120)
    assert not vegrad.diagnose(made(), x, target).healthy
    x[np.arange(len(x)), 110, target] += 0.5
    assert vegrad.diagnose(made(), x, target).healthy


def test_layers_share_a_finding() -> None:
    (finding,) = vegrad.diagnose(made(layers=2), *shown_once(120)).findings
    names = {site.name for site in finding.sites if site.kind == "parameter"}
    assert names == {"rnn.bias_ih_l0", "rnn.bias_ih_l1"}
    assert "before the last 119 of 120 steps, and nothing from those" in finding.message


def test_what_is_within_reach_or_not_said_is_no_finding() -> None:
    assert vegrad.diagnose(made(), *shown_once(60, at=55)).healthy
    x, target = shown_once(60, rows=32)  # too few to know
    assert vegrad.diagnose(made(), x, target).healthy
    assert not vegrad.diagnose(made(), x, target, memory=50).healthy
    assert vegrad.diagnose(made(), x, target, memory=8).healthy


@pytest.mark.parametrize(
    ("cell", "name", "factor", "kind"),
    [
        ("lstm", "rnn.weight_hh_l0", 20.0, "exploding"),
        ("gru", "rnn.weight_hh_l1", 20.0, "exploding"),
        ("tanh", "rnn.weight_hh_l0", 1e-3, "vanishing"),
        ("lstm", "rnn.weight_ih_l1", 1e-5, "vanishing"),
    ],
)
def test_a_wrong_matrix_is_named_with_its_factor(
    cell: str, name: str, factor: float, kind: str
) -> None:
    network = made(cell, layers=2)
    x, target = shown_once(40, rows=16)
    assert vegrad.diagnose(network, x, target).healthy
    network.parameters[name][...] *= factor
    found = vegrad.diagnose(network, x, target)
    (finding,) = found.findings
    assert (finding.kind, finding.sites[1].name) == (kind, name)
    assert finding.evidence["factor"] == pytest.approx(1 / factor, rel=0.1)
    assert found.apply(network)
    assert vegrad.diagnose(network, x, target).healthy


def test_a_nan_is_named_by_row_step_and_input() -> None:
    x, target = shown_once(40)
    x[3, 17, 2] = np.nan
    found = vegrad.diagnose(made(), x, target)
    assert found.verdict == "nonfinite"
    assert "x[3, 17, 2]" in found.findings[0].message
    lengths = np.full(512, 40)
    lengths[3] = 17  # it lies beyond
    assert vegrad.diagnose(made(), x, target, lengths=lengths).healthy


def test_lengths_and_memory_are_of_recurrent_networks() -> None:
    network = vegrad.MLP([3, 4, 1])
    x, target = np.zeros((4, 3)), np.zeros((4, 1))
    with pytest.raises(ValueError, match=r"go with a vegrad\.RNN"):
        vegrad.diagnose(network, x, target, memory=3)
    with pytest.raises(ValueError, match=r"go with a vegrad\.RNN"):
        vegrad.cure(network, x, target, lengths=[1, 1, 1, 1])
    with pytest.raises(ValueError, match=r"go with a vegrad\.RNN"):
        vegrad.cure(network, x, target, memory=3)


# Edits -------------------------------------------------------------------------------------------


def edited(network: vegrad.RNN, edit: Edit) -> tuple[RecurrentSubject, object]:
    subject = RecurrentSubject(network, SequenceData(*shown_once(20)))
    return subject, subject.apply(edit)


def test_orthogonal_matrices_gate_by_gate() -> None:
    network = made()
    _, done = edited(network, Orthogonal(("rnn.weight_hh_l0",)))
    assert done.changed == ("rnn.weight_hh_l0",)
    for block in np.split(network.parameters["rnn.weight_hh_l0"], 4):
        np.testing.assert_allclose(block @ block.T, np.eye(UNITS), atol=1e-5)


def test_chrono_biases() -> None:
    network = made()
    names = ("rnn.bias_ih_l0", "rnn.bias_hh_l0")
    edited(network, Chrono(names, FORGET, 100, (0, UNITS)))
    bias = network.parameters["rnn.bias_ih_l0"]
    times = np.exp(bias[UNITS : 2 * UNITS])
    assert 1 <= times.min() < 30 < 70 < times.max() <= 99
    np.testing.assert_allclose(bias[:UNITS], -bias[UNITS : 2 * UNITS])
    assert not network.parameters["rnn.bias_hh_l0"][: 2 * UNITS].any()
    assert network.parameters["rnn.bias_hh_l0"][2 * UNITS :].all()


def test_steady_weights_keep_the_gradient() -> None:
    network = made("tanh")
    before = vegrad.diagnose(network, *shown_once(60, rows=32)).reading.cells[0]
    edited(network, Steady(("rnn.weight_hh_l0",), 0.3, "tanh"))
    after = vegrad.diagnose(network, *shown_once(60, rows=32)).reading.cells[0]
    assert before.sizes[-1, 0] < -40
    assert after.sizes[-1, 0] > -10


def test_another_cell_and_truncation() -> None:
    subject, done = edited(made("tanh"), SetCell("lstm"))
    assert subject.network.config["cell"] == "lstm"
    assert 'cell="lstm"' not in done.lines[-1]  # it is the default
    assert isinstance(edited(made(), Truncate(5, 10))[1], Refusal)
    subject = RecurrentSubject(made(targets="all"), SequenceData(np.zeros((4, 9, 12)), np.zeros(4)))
    subject.apply(Truncate(5, 10))
    assert subject.truncation == (5, 10)


# Cures -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "steps", "taken", "verdict", "remedy"),
    [
        ("lstm", 120, 1000, "vanishing", "bias"),
        ("lstm", 40, 600, "vanishing", "bias"),
        ("gru", 90, 600, "healthy", "bias"),
        ("tanh", 90, 600, "healthy", "use LSTM cells, with time scales up to 90 steps"),
    ],
)
def test_a_class_shown_at_the_first_step_is_learned(
    cell: str, steps: int, taken: int, verdict: str, remedy: str
) -> None:
    network, (x, target) = made(cell), shown_once(steps)
    before = {name: array.copy() for name, array in network.parameters.items()}
    cure = vegrad.cure(network, x, target, steps=taken, optimizer=vegrad.Adam(1e-2))
    assert cure.before.verdict == verdict
    assert cure.cured, cure.summary
    assert remedy in next(one.change for one in cure.attempts if one.accepted)
    assert all((network.parameters[name] == one).all() for name, one in before.items())
    names = {"network": network, "x": x, "target": target}
    exec(cure.patch.partition("network.fit(")[0], names)
    made_so, cured = names["network"].parameters, cure.network.parameters
    assert all((made_so[name] == cured[name]).all() for name in cured)


def test_lengths_come_through() -> None:
    x, target = shown_once(40)
    lengths = np.random.default_rng(0).integers(30, 41, 512)
    options = {"lengths": lengths, "steps": 400, "optimizer": vegrad.Adam(1e-2)}
    cure = vegrad.cure(made("gru"), x, target, budget=3, **options)
    assert cure.cured, cure.summary
    assert not cure.patch or "lengths=lengths" in cure.patch


def test_a_rate_that_was_not_held_to_the_end_is_no_cure() -> None:
    x, target = shown_once(40)
    lengths = np.random.default_rng(0).integers(30, 41, 512)
    options = {"lengths": lengths, "steps": 400, "optimizer": vegrad.Adam(1e-3)}
    cure = vegrad.cure(made("gru"), x, target, budget=1.5, **options)  # too little to see it held
    assert not cure.cured
    assert cure.summary.startswith("improved, but not seen to stay at accuracy")
    assert cure.about == (UNSEEN,)


def test_an_explosion_is_clipped_or_scaled() -> None:
    network, (x, target) = made("tanh"), shown_once(20, at=18)
    network.parameters["rnn.weight_hh_l0"][...] *= 20
    cure = vegrad.cure(network, x, target, steps=300, optimizer=vegrad.Adam(1e-2))
    assert cure.before.verdict == "exploding"
    assert cure.cured, cure.summary


def echoed(rows: int = 256, steps: int = 40) -> tuple[np.ndarray, np.ndarray]:
    """Make numbers that are asked for two steps later."""
    x = np.random.default_rng(0).standard_normal((rows, steps, 12)).astype(np.float32)
    target = np.zeros((rows, steps, 1), np.float32)
    target[:, 2:] = x[:, :-2, :1]
    return x, target


@pytest.mark.parametrize(("cell", "factor"), [("tanh", 4), ("gru", 8)])
def test_an_explosion_is_stopped_by_a_truncation_if_by_nothing_else(
    cell: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = vegrad.RNN(12, UNITS, 1, cell=cell, targets="all", seed=0)
    network.parameters["rnn.weight_hh_l0"][...] *= factor
    options = {"steps": 300, "optimizer": vegrad.Adam(3e-3)}
    cure = vegrad.cure(network, *echoed(), **options)
    assert cure.before.verdict == "exploding"
    assert cure.cured, cure.summary
    assert "multiply rnn.weight_hh_l0" in cure.attempts[-1].change
    only = [remedy for remedy in REMEDIES if remedy.name == "truncate"]
    monkeypatch.setattr(treatment, "Search", partial(Search, remedies=only))
    cure = vegrad.cure(network, *echoed(), budget=3, **options)
    assert cure.cured, cure.summary
    assert "truncation=(" in cure.patch


def test_what_is_needed_from_afar_is_not_cut_off() -> None:
    network = vegrad.RNN(12, UNITS, 1, cell="relu", targets="all", seed=0)
    network.parameters["rnn.weight_hh_l0"][...] *= 4
    cure = vegrad.cure(network, *echoed(), steps=50, memory=30)
    assert not any(one.name == "truncate" and one.change for one in cure.attempts)

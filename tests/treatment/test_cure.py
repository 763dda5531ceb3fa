"""Cures: what was planted is found and put right, and nothing is made worse."""

import sys
from collections.abc import Callable, Mapping
from math import isnan
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad.flow.edits import Initialize, SetActivation, together
from vegrad.networks.editor import clone, written
from vegrad.reports.cure import BEST, DONE, ONCE, is_shown, row
from vegrad.treatment.attempts import LUCK
from vegrad.treatment.goal import goal_for
from vegrad.treatment.outcome import Attempt, Ended
from vegrad.treatment.progress import Look
from vegrad.treatment.rates import wanted_rate
from vegrad.treatment.remedies import FLOW, FOLLOWING, REMEDIES, TRAINING
from vegrad.treatment.trial import Trial

from tests.patches import run_as_file

Parameters = Mapping[str, Any]
RNG = np.random.default_rng(3)
CENTRES = RNG.standard_normal((4, 16)) * 1.5
LABELS = RNG.integers(0, 4, 600)
X = CENTRES[LABELS] + RNG.standard_normal((600, 16))
GOAL = 0.9


def build(depth: int = 20, width: int = 32, outputs: int = 4, **options: Any) -> vegrad.MLP:
    options = {
        "activation": "tanh",
        "init": "critical",
        "loss": "cross_entropy",
        "seed": 0,
    } | options
    return vegrad.MLP([16, *[width] * (depth - 1), outputs], **options)


def treat(network: vegrad.MLP, x: Any = X, target: Any = LABELS, **options: Any) -> vegrad.Cure:
    """Cured, with what holds for every cure checked."""
    options = {"goal": GOAL, "steps": 300, "optimizer": vegrad.Adam(2e-3)} | options
    before = {name: array.copy() for name, array in network.parameters.items()}
    held = x.copy(), target.copy(), network.config | {}
    cure = vegrad.cure(network, x, target, **options)
    for name, array in network.parameters.items():
        np.testing.assert_array_equal(array, before[name])
    np.testing.assert_array_equal(x, held[0])
    np.testing.assert_array_equal(target, held[1])
    assert network.config == held[2]
    assert options["optimizer"].steps == 0
    assert 0 <= cure.cost <= options.get("budget", 1.5)
    passes = sum(attempt.passes for attempt in cure.attempts)
    assert passes <= cure.cost * cure.steps + 1e-9
    accepted = [attempt for attempt in cure.attempts if attempt.accepted]
    assert len(accepted) == cure.cured or not cure.reached
    if cure.proof is not None:
        assert cure.proof["before"].steps <= cure.proof["after"].steps == cure.proof.steps
        if accepted:  # never worse
            assert not cure.proof.loss[0] < cure.proof.loss[1] or cure.reached
    if not accepted:
        for name, array in cure.network.parameters.items():
            np.testing.assert_array_equal(array, before[name])
    if cure.patch:
        run_as_file(cure.patch, network=clone(network), x=x, target=target)
    assert all(len(line) <= 80 for line in str(cure).splitlines())
    assert len(str(cure).splitlines()) <= 30
    return cure


def edited(edit: Callable[[Parameters], None], **options: Any) -> vegrad.MLP:
    network = build(**options)
    edit(network.parameters)
    return network


def scaled(layer: int, factor: float) -> Callable[[Parameters], None]:
    def edit(parameters: Parameters) -> None:
        parameters[f"layers.{layer}.weight"][...] *= factor

    return edit


def biased(layer: int, amount: float) -> Callable[[Parameters], None]:
    def edit(parameters: Parameters) -> None:
        parameters[f"layers.{layer}.bias"][...] += amount

    return edit


def not_a_number(parameters: Parameters) -> None:
    parameters["layers.3.weight"][1, 2] = np.nan


SICK = {
    "a weak layer": (lambda: edited(scaled(7, 1e-3)), "what the diagnosis says"),
    "a strong layer": (lambda: edited(scaled(7, 1e3)), "what the diagnosis says"),
    "a strong ReLU layer": (
        lambda: edited(scaled(4, 1e3), activation="relu", init="he_normal", depth=8),
        "what the diagnosis says",
    ),
    "saturating biases": (lambda: edited(biased(5, 30.0)), "what the diagnosis says"),
    "a dead layer": (
        lambda: edited(biased(3, -50.0), activation="relu", init="he_normal", depth=8),
        "what the diagnosis says",
    ),
    "not a number": (lambda: edited(not_a_number), "what the diagnosis says"),
    "weak layers": (lambda: build(init="normal", sigma_w=0.3), "what the diagnosis says"),
    "strong ReLU layers": (
        lambda: build(activation="relu", init="normal", sigma_w=4.0),
        "scale every layer",
    ),
    "deep sigmoid": (
        lambda: build(activation="sigmoid", init="glorot_uniform"),
        "what the diagnosis says",
    ),
}


@pytest.mark.parametrize("name", SICK)
def test_sick_networks_are_cured_by_the_smallest_change(name: str) -> None:
    make, remedy = SICK[name]
    network = make()
    cure = treat(network)
    assert cure.cured, str(cure)
    assert not cure.before.healthy
    accepted = [attempt for attempt in cure.attempts if attempt.accepted]
    assert remedy in (None, accepted[0].name), str(cure)
    assert cure.after.expected is not None
    assert cure.proof is not None
    assert cure.proof.accuracy[1] >= GOAL
    assert not cure.proof.accuracy[0] >= GOAL
    cure.network.fit(X, LABELS, optimizer=cure.optimizer, epochs=15, batch_size=32, seed=5,
                     progress=False)  # fmt: skip
    right = np.mean(cure.network.forward(X).argmax(1) == LABELS)
    assert right >= GOAL - 0.05


@pytest.mark.parametrize("name", SICK)
def test_the_patch_makes_the_cured_network(name: str) -> None:
    network = SICK[name][0]()
    cure = treat(network)
    code, _, fit = cure.patch.partition("network.fit(")
    assert fit.endswith(")\n")
    space: dict[str, Any] = {"network": network, "x": X, "target": LABELS}
    exec(code, space)
    assert space["network"].config == cure.network.config
    for key, array in cure.network.parameters.items():
        np.testing.assert_array_equal(space["network"].parameters[key], array)
    optimizer = eval(fit.partition("optimizer=")[2].partition(",\n")[0], {"vegrad": vegrad})
    assert repr(optimizer) == repr(cure.optimizer)


def test_the_same_seed_gives_the_same_cure() -> None:
    first, second = (treat(build(init="normal", sigma_w=0.3)) for _ in range(2))
    assert first.to_dict() == second.to_dict()


# ------------------------------------------------------------------------- data and training


def test_unscaled_data_are_scaled() -> None:
    cure = treat(build(depth=4), X * 100 + 300, goal=0.97)
    assert cure.cured, str(cure)
    assert [a.name for a in cure.attempts if a.accepted] == ["scale the data"]
    assert cure.scaling is not None
    space: dict[str, Any] = {"network": build(depth=4), "x": X * 100 + 300}
    exec(cure.patch.partition("network.fit(")[0], space)
    np.testing.assert_allclose(space["x"].mean(axis=0), 0, atol=1e-6)
    np.testing.assert_allclose(space["x"].std(axis=0), 1, rtol=1e-6)


@pytest.mark.parametrize("rate", [1e-6, 100.0])
def test_the_learning_rate_comes_from_the_gauge(rate: float) -> None:
    cure = treat(build(depth=4), optimizer=vegrad.SGD(rate))
    assert cure.before.healthy
    assert cure.cured, str(cure)
    assert cure.optimizer.rate() != rate
    assert cure.network.config == build(depth=4).config


@pytest.mark.parametrize(("after", "wanted"), [(50.0, 0.2), (3e4, 0.04), (np.inf, 0.04)])
def test_the_further_the_first_step_is_thrown_the_smaller_the_rate(
    after: float, wanted: float
) -> None:
    loss = np.array([2.0, after, np.inf])
    history = SimpleNamespace(steps=3, learning_rate=np.ones(3), findings=(), loss=loss,
                              gradient_norm=np.ones(3),
                              loss_after=np.array([after, np.nan, np.nan]))  # fmt: skip
    rate = wanted_rate(history)
    assert rate == (pytest.approx(wanted), "the loss left its range")


def test_a_healthy_network_is_left_alone() -> None:
    cure = treat(build(depth=4))
    assert (cure.reached, cure.cured, cure.attempts, cure.patch) == (True, False, (), "")
    assert cure.cost < 1.1
    assert "nothing to cure" in cure.summary


def test_a_finding_that_does_not_keep_a_network_from_learning() -> None:
    """The given network comes back if it reaches the goal in as many steps."""
    cure = treat(edited(scaled(1, 1e-3), depth=3), goal=0.26)
    assert (cure.reached, cure.cured, cure.patch) == (True, False, "")
    assert not cure.before.healthy
    assert cure.attempts
    assert "as it is" in cure.summary


def test_regression() -> None:
    target = np.sin(X[:, :1]) + X[:, 1:2]
    network = build(outputs=1, loss="mse", init="normal", sigma_w=0.3)
    cure = treat(network, target=target, goal=0.4)
    assert cure.cured, str(cure)
    assert cure.proof is not None
    assert cure.proof.loss[1] <= 0.4 < cure.proof.loss[0]
    assert isnan(cure.proof.accuracy[1])


def test_two_classes() -> None:
    target = (LABELS > 1).astype(float)[:, None]
    network = build(outputs=1, loss="binary_cross_entropy", init="normal", sigma_w=0.3)
    assert treat(network, target=target).cured


# ------------------------------------------------------------------------------ what cannot be


def test_noise_is_called_noise() -> None:
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    for network in (build(depth=4), build(activation="sigmoid", init="glorot_uniform")):
        cure = treat(network, target=noise)
        assert not cure.reached
        assert cure.attempts
        assert "looks independent of x" in cure.about[0]
        assert "not cured" in cure.summary or "short of" in cure.summary


def test_learnable_data_are_not_called_noise() -> None:
    cure = treat(build(depth=3, width=1))
    assert not cure.reached
    assert "can be learnt" in cure.about[0]


@pytest.mark.parametrize(("x", "target", "words"), [
    (np.full((100, 16), 2.5), LABELS[:100], "x is the same in every row"),
    (X[:100], np.zeros(100, int), "the target is the same in every row"),
])  # fmt: skip
def test_nothing_to_learn(x: Any, target: Any, words: str) -> None:
    cure = treat(build(activation="sigmoid", init="glorot_uniform"), x, target)
    assert not cure.cured
    assert words in cure.about[0]
    assert cure.cost < 0.05


def test_values_that_are_not_finite_end_it() -> None:
    x = X.copy()
    x[3, 4] = np.nan
    cure = treat(build(), x)
    assert not cure.reached
    assert "x[3, 4] is nan" in cure.summary


def test_clipping_is_said_not_to_cure_vanishing() -> None:
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    cure = treat(build(activation="sigmoid", init="glorot_uniform"), target=noise, budget=4.0)
    said = [attempt for attempt in cure.attempts if attempt.name == "clip"]
    assert "cannot" in said[0].why
    assert said[0].why in " ".join(str(cure).split())


@pytest.mark.filterwarnings("ignore::vegrad.diagnosis.alarms.FindingWarning")  # of a patch's fit
@pytest.mark.parametrize(("budget", "steps", "batch_size"), [
    (1.0, 120, 32), (1.2, 120, 32), (3.0, 120, 32), (1.5, 40, 8), (1.5, 5, 100), (1.5, 500, 1),
])  # fmt: skip
def test_the_budget_is_kept(budget: float, steps: int, batch_size: int) -> None:
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    for network in (build(activation="sigmoid"), build(depth=3)):
        treat(network, target=noise, budget=budget, steps=steps, batch_size=batch_size)


@pytest.mark.parametrize("budget", [1.0, 1.2, 3.0])
def test_a_small_budget_does_not_pass_over_the_smallest_change(budget: float) -> None:
    """In a deep narrow network, too, where much of the budget is kept for skip connections."""
    cure = treat(edited(scaled(7, 1e-3), depth=24), budget=budget)
    assert cure.reached
    assert {a.name for a in cure.attempts if a.steps} == {"what the diagnosis says"}


def test_a_cure_by_luck_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    """A change that reaches the goal with one order of the rows only: the next is tried."""

    class OnlyInOrder(Trial):
        @property
        def reached(self) -> bool:
            lucky = self.seed == 0 or "skip connections" in self.treatment.words
            return lucky and super().reached

    monkeypatch.setattr(sys.modules["vegrad.treatment.attempts"], "Trial", OnlyInOrder)
    cure = treat(build(init="normal", sigma_w=0.3), budget=4.0)
    assert "skip connections" in cure.summary
    tried = [a for a in cure.attempts if a.steps and not a.accepted]
    assert "reached the goal" not in {attempt.why for attempt in tried}
    assert tried[0].why == LUCK
    assert "by luck" in str(cure)
    assert tried[0].passes > tried[0].steps * 1.9  # both trainings are paid for


def test_what_the_diagnosis_advises_is_tried_first() -> None:
    """The very edit, and what stands after it in the table is none that was tried before."""
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    cure = treat(build(activation="sigmoid", init="glorot_uniform"), target=noise, budget=4.0)
    advised = SetActivation("relu"), Initialize("he_normal")
    assert cure.before.findings[0].edit == together(*advised)
    rows = [attempt for attempt in cure.attempts if is_shown(attempt)]
    assert rows[0].name == "what the diagnosis says"
    assert rows[0].steps
    assert rows[0].change == "use relu, with new weights (he_normal)"
    assert rows[0].change not in {one.change for one in rows[1:]}


def test_data_that_are_scaled_may_leave_nothing_that_is_said() -> None:
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    cure = treat(build(depth=4, activation="relu", init="he_normal"), X * 300, target=noise)
    assert cure.attempts[0].name == "scale the data"
    assert not cure.reached


@pytest.mark.parametrize(
    ("ended", "mark"), [("reached", DONE), ("luck", ONCE), ("slow", BEST), ("learns-nothing", BEST)]
)
def test_what_was_chosen_is_marked_by_the_way_it_ended(ended: Ended, mark: str) -> None:
    before = vegrad.diagnose(build(), X, LABELS)
    chosen = Attempt("clip", "", True, "", before, before, 10, ended=ended)
    assert row(chosen)[-1] == mark


def test_in_deep_narrow_networks_most_is_kept_for_skip_connections() -> None:
    noise = np.random.default_rng(1).integers(0, 4, len(X))
    skips = {remedy.name for remedy in REMEDIES if remedy.skips}
    shares = []
    for width in (8, 128):
        cure = treat(build(depth=30, width=width, init="normal", sigma_w=0.3), target=noise)
        plain = [a.passes for a in cure.attempts if a.name.partition(", learning")[0] not in skips]
        shares.append(sum(plain) / cure.steps)
    assert shares[0] <= 1.5 - 1.25 < shares[1]


@pytest.mark.parametrize(("options", "error"), [
    ({"budget": 0.5}, ValueError), ({"budget": "1"}, ValueError), ({"steps": 0}, ValueError),
    ({"batch_size": 0}, ValueError), ({"optimizer": "adam"}, TypeError),
    ({"x": X[:, :3]}, ValueError), ({"goal": -1.0}, ValueError), ({"goal": 1.5}, ValueError),
])  # fmt: skip
def test_bad_arguments(options: dict[str, Any], error: type[Exception]) -> None:
    arguments = {"x": X, "target": LABELS} | options
    with pytest.raises(error):
        vegrad.cure(build(depth=2), **arguments)


def test_the_table_of_remedies() -> None:
    names = [remedy.name for remedy in REMEDIES]
    assert len(set(names)) == len(names)
    for remedy in (*REMEDIES, *FOLLOWING):
        assert remedy.kinds
        assert remedy.kinds <= FLOW | TRAINING


def test_a_written_network_is_the_network() -> None:
    network = build(norm="layer", residual=True, dtype="float64", init="normal", sigma_w=1.5)
    again = eval(written(network.config), {"vegrad": vegrad})
    assert again.config == network.config


# ---------------------------------------------------------------------- targets, patches, progress


@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("optimizer", [vegrad.Adam(3e-3), vegrad.SGD(0.02)])
def test_targets_are_scaled(columns: int, optimizer: vegrad.optim.Optimizer) -> None:
    target = 1e4 * (np.sin(X[:, :columns]) + X[:, 1 : 1 + columns]) + 1e5
    network = build(depth=3, outputs=columns, loss="mse")
    cure = treat(network, target=target, optimizer=optimizer, goal=None)
    assert cure.cured, str(cure)
    assert "scale the target" in cure.summary
    assert cure.target_scaling is not None
    assert cure.proof is not None
    variance = float(np.mean(target.var(axis=0)))
    assert cure.goal.wanted == pytest.approx(variance / 2)  # in the user's units, as is the proof
    assert cure.proof.loss[1] <= cure.goal.wanted < cure.proof.loss[0]
    assert cure.proof["after"].loss[0] == pytest.approx(variance, rel=3.0)
    names = run_as_file(cure.patch, network=clone(network), x=X, target=target)
    shift, scale = cure.target_scaling
    np.testing.assert_allclose(names["target"] * scale + shift, target, rtol=1e-5)
    output = names["network"].forward(names["x"]) * names["target_scale"] + names["target_shift"]
    assert np.mean((output - target) ** 2) < cure.goal.wanted


def test_patches_of_odd_optimizers_run() -> None:
    """A clip whose limit is never reached is left out; a schedule: `treat` runs the patch."""
    clip = vegrad.clipping.GlobalNorm(np.inf)
    cure = treat(build(depth=3), optimizer=vegrad.SGD(300.0, clip=clip))
    assert cure.cured, str(cure)
    assert "clip=" not in cure.patch
    names: dict[str, Any] = {"schedule": vegrad.optim.cosine(1e-6, 300)}
    found = vegrad.cure(build(depth=3), X, LABELS, optimizer=vegrad.SGD(names["schedule"]),
                        goal=GOAL, steps=300)  # fmt: skip
    assert found.cured, str(found)
    assert "* schedule(step)" in found.patch
    names |= {"network": build(depth=3), "x": X, "target": LABELS}
    output = run_as_file(found.patch, **names)["network"].forward(X)
    assert np.mean(output.argmax(1) == LABELS) > GOAL - 0.05


def test_goals_of_two_classes_are_shares() -> None:
    for low, high in ((1.0, 2.0), (-1.0, 1.0), (0.2, 0.9), (0.0, 1.0)):
        target = np.where(LABELS > 1, high, low)[:, None]
        goal = goal_for("binary_cross_entropy", target, None)
        assert goal.base <= goal.wanted <= 1.0
        assert goal.guess >= 0.0


def test_a_training_that_falls_steadily_goes_on() -> None:
    """Nothing but time is missing: a fifth of the way at a quarter of a training is no end."""
    goal = goal_for("mse", np.array([[-1.0], [1.0]]), 0.5)
    points = [(20 * n, 1.0 - 0.0008 * 20 * n, np.nan) for n in range(11)]
    falling = SimpleNamespace(points=points, goal=goal, steps=800, way=goal.way(0.84, np.nan))
    assert Trial.on_the_way.fget(falling)  # type: ignore[attr-defined]
    falling.steps = 400
    assert not Trial.on_the_way.fget(falling)  # type: ignore[attr-defined]


def test_progress_is_told() -> None:
    looks: list[Look] = []
    treat(build(init="normal", sigma_w=0.3), progress=looks.append)
    assert "what the diagnosis says" in {look.name for look in looks}
    assert all(0 <= look.step <= look.steps for look in looks)
    with pytest.raises(TypeError, match="progress must be"):
        vegrad.cure(build(depth=2), X, LABELS, progress="yes")  # type: ignore[arg-type]

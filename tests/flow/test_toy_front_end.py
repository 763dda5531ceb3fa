"""A front end of its own for a two-layer NumPy net: diagnosis and cure need nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from math import log2, nan
from typing import Any, Self, cast

import numpy as np
import pytest
from vegrad.arrays.checks import Array
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.edits import Edit, Scale, ScaleData
from vegrad.flow.flow import Flow
from vegrad.flow.reading import Chain, Layer, Parameter, Reading
from vegrad.flow.subject import Code, Refusal
from vegrad.flow.wording import Vocabulary
from vegrad.treatment.data import ArrayData
from vegrad.treatment.goal import Plan, goal_for
from vegrad.treatment.outcome import Outcome
from vegrad.treatment.script import Script
from vegrad.treatment.search import Search

NAMES = ("first.weight", "second.weight")
Net = dict[str, Array]


def drawn(inputs: int, hidden: int, outputs: int) -> Net:
    random, sizes = np.random.default_rng(0), (inputs, hidden, outputs)
    shapes = [(o, i) for i, o in pairwise(sizes)]
    return {n: random.normal(0, s[1] ** -0.5, s) for n, s in zip(NAMES, shapes, strict=True)}


def forward(net: Net, x: Array) -> tuple[Array, Array]:
    h = np.tanh(x @ net["first.weight"].T)
    return h, h @ net["second.weight"].T


def losses(z: Array, target: Array) -> Array:
    top = z - z.max(axis=1, keepdims=True)
    rest: Array = np.log(np.exp(top).sum(axis=1)) - top[np.arange(len(z)), target]
    return rest


def backward(net: Net, x: Array, target: Array) -> tuple[float, list[Array], Flow]:
    """Return the loss, the gradients and the flow."""
    h, z = forward(net, x)
    e = np.exp(z - z.max(axis=1, keepdims=True))
    top = (e / e.sum(axis=1, keepdims=True) - np.eye(z.shape[1])[target]) / len(x)
    through = top @ net["second.weight"]
    low, slope = through * (1 - h**2), 1 - h**2
    grads = [low.T @ x, top.T @ h]
    with np.errstate(divide="ignore"):
        size = [np.log2(np.linalg.norm(one)) for one in (low, top, through, *grads)]
    pre = [x @ net["first.weight"].T, z]
    flow = Flow(
        activation_rms=np.array([np.sqrt(np.mean(h**2)), np.sqrt(np.mean(z**2))]),
        preactivation_mean=np.array([one.mean() for one in pre]),
        preactivation_std=np.array([one.std() for one in pre]),
        saturated=np.array([np.mean(slope < 0.05), 0.0]),
        dead=np.zeros(2),
        delta_log2=np.array(size[:2]),
        gradient_log2=np.array(size[3:]),
        weight_gain_log2=np.array([size[2] - size[1]]),
        activation_gain_log2=np.array([size[0] - size[2]]),
    )
    return float(losses(z, target).mean()), grads, flow


@dataclass
class Training:
    """Gradient descent."""

    net: Net
    data: ArrayData
    history: History

    def advance(self, order: Array) -> str:
        rows: list[list[float]] = []
        for batch in order:
            loss, grads, flow = backward(self.net, *self.data.take(batch))
            for name, grad in zip(NAMES, grads, strict=True):
                self.net[name] = self.net[name] - 0.5 * grad
            rows.append([loss, np.sqrt(sum(np.sum(g**2) for g in grads)), 1.0, 0.5, *[nan] * 5])
        table, mean = np.array(rows), float(np.mean([row[0] for row in rows]))
        self.history.add_steps(table.T)
        self.history.add_epoch(
            epoch_steps=len(rows), epoch_loss=mean, clipped_share=0.0, validation_loss=nan,
            validation_accuracy=nan, gradient_log2=flow.gradient_log2.tolist(),
            update_log2=[nan, nan],
        )  # fmt: skip
        return ""

    def evaluate(self, rows: Array) -> tuple[float, float]:
        x, target = self.data.take(rows)
        z = forward(self.net, x)[1]
        return float(losses(z, target).mean()), float(np.mean(z.argmax(axis=1) == target))


@dataclass
class ToySubject:
    net: Net
    data: ArrayData
    vocabulary: Vocabulary = field(default_factory=Vocabulary)
    noun = "toy"
    early = 0

    def read(self, x: Any, target: Any, *, resamples: int, seed: int) -> Reading:
        loss, _, flow = backward(self.net, x, target)
        sizes = {n: log2(np.sqrt(np.mean(w**2))) for n, w in self.net.items()}
        parameters = {n: Parameter(n, w.shape, sizes[n]) for n, w in self.net.items()}
        layers = tuple(Layer(name.removesuffix(".weight"), name, None) for name in NAMES)
        chain = Chain(layers=layers, flow=flow, activation="tanh")
        about = {"toy": "two layers"}
        return Reading(vocabulary=self.vocabulary, about=about, loss=loss, parameters=parameters,
                       chain=chain)  # fmt: skip

    def copy(self) -> Self:
        return replace(self, net={name: weight.copy() for name, weight in self.net.items()})

    def apply(self, edit: Edit, rows: Array | None = None) -> Code | Refusal:
        script = Script(net=self.net, x=self.data.x)
        match edit:
            case Scale((name,), factor):
                script.run(f'net["{name}"] *= {factor!r}')
                return Code(script.lines, (name,))
            case ScaleData():
                script.run("x = (x - x.mean(axis=0)) / x.std(axis=0)")
                self.data = replace(self.data, x=cast(Array, script.names["x"]))
                return Code(script.lines)
        return Refusal(f"a toy knows no {type(edit).__name__}")

    def write(self, other: Self) -> None:
        self.net.update(other.net)

    def diagnosed(self, x: Any, target: Any, *, theory: bool) -> Diagnosis:
        return Diagnosis.of(self.read(x, target, resamples=0, seed=0))

    def looking(self, rows: int) -> float:
        return float(rows)

    def trainer(self, history: History, *, batch_size: int, gauge_every: int, seed: int) -> Any:
        return Training(self.copy().net, self.data, history)

    def patch(self, words: str, lines: Sequence[str], *, steps: int, batch_size: int) -> str:
        return "\n".join([f"# {words}", *lines])


# The tests --------------------------------------------------------------------------------------


def task() -> ArrayData:
    """Two classes with borders at x₀ = -1, 0 and 1: no signs of x tell them apart."""
    x = np.random.default_rng(1).normal(size=(400, 2))
    return ArrayData(x, (x[:, 0] ** 3 > x[:, 0]).astype(np.intp))


def cured(net: Net, data: ArrayData) -> Outcome:
    plan = Plan(goal_for("cross_entropy", data.target, 0.9), 600, 32, 0, 1.5)
    return Search(ToySubject(net, data), plan).run()[0]


def test_a_healthy_toy_is_left_alone() -> None:
    outcome = cured(drawn(2, 24, 2), task())
    assert outcome.before.healthy
    assert (outcome.reached, outcome.patch) == (True, "")
    assert "the toy reaches accuracy 90 % as it is" in outcome.summary


def test_a_weak_layer_is_found_and_put_right() -> None:
    net, data = drawn(2, 24, 2), task()
    net["second.weight"] *= 1e-4
    before = Diagnosis.of(ToySubject(net, data).read(data.x, data.target, resamples=0, seed=0))
    finding = before.findings[0]
    assert (finding.kind, finding.layers, finding.blame) == ("vanishing", (1,), "weights")
    assert finding.advice.startswith("multiply second.weight by")
    attempt = cured(net, data).attempts[1]
    assert attempt.name == "what the diagnosis says"
    assert attempt.after is not None
    assert attempt.after.healthy


def test_a_strong_layer_is_cured_and_the_patch_does_it() -> None:
    net, data = drawn(2, 24, 2), task()
    net["second.weight"] *= 1e3
    outcome = cured(net, data)
    assert outcome.before.verdict == "exploding"
    assert outcome.cured, str(outcome)
    assert [a.name for a in outcome.attempts if a.accepted] == ["what the diagnosis says"]
    exec(outcome.patch, {"net": net})
    assert cured(net, data).before.healthy


def test_data_that_saturate_it_are_scaled() -> None:
    data = replace(task(), x=task().x * 1000)
    outcome = cured(drawn(2, 24, 2), data)
    assert outcome.before.verdict == "saturated"
    assert outcome.cured, str(outcome)
    assert [a.name for a in outcome.attempts if a.accepted] == ["scale the data"]
    names: dict[str, Any] = {"x": data.x}
    exec(outcome.patch, names)
    assert names["x"].std(axis=0) == pytest.approx(np.ones(2))


def test_what_the_front_end_refuses_is_said() -> None:
    net = drawn(2, 24, 2)
    net["first.weight"] *= 300.0
    noise = np.random.default_rng(2).integers(0, 2, 400)
    outcome = cured(net, replace(task(), target=noise))
    assert not outcome.reached
    assert "a toy knows no Lsuv" in {attempt.why for attempt in outcome.attempts}

"""The zoo: its reference against the specification, its labels, its peers, a smoke run."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad

from tests import reference

BENCH = Path(__file__).parents[2] / "bench"
pytestmark = pytest.mark.skipif(not BENCH.is_dir(), reason="an installed package has no bench")
pytest.importorskip("sklearn")
sys.path.insert(0, str(BENCH))
if BENCH.is_dir():
    from zoo import __main__ as program
    from zoo import examine, families, peers, table
    from zoo import reference as labels

SEED = 2351  # whose first specimens are small
RNG = np.random.default_rng(0)
X = RNG.standard_normal((20, 6))
TARGETS = {
    "mse": RNG.standard_normal((20, 3)),
    "cross_entropy": RNG.integers(0, 3, 20),
    "binary_cross_entropy": RNG.integers(0, 2, (20, 3)).astype(float),
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = vegrad.num_threads()
    yield
    vegrad.set_num_threads(before)


def layers_of(network: vegrad.MLP) -> Any:
    return examine._layers(network)


@pytest.mark.parametrize("loss", TARGETS)
@pytest.mark.parametrize(("norm", "residual"), [(None, False), ("layer", True), ("rms", False)])
@pytest.mark.parametrize("activation", reference.ACTIVATIONS)
def test_the_gradients_of_the_reference(
    activation: str, norm: str | None, residual: bool, loss: str
) -> None:
    network = vegrad.MLP(
        [6, 8, 8, 8, 3],
        activation=activation,
        norm=norm,
        residual=residual,
        loss=loss,
        init="normal",
        sigma_w=1.5,
        sigma_b=0.3,
        seed=1,
    )
    ours = labels.run(network.config, layers_of(network), X, TARGETS[loss])
    theirs = reference.run(network.parameters, X, TARGETS[loss], **network.config)
    assert ours.loss == pytest.approx(theirs.loss, rel=1e-12)
    decades = theirs.flow["delta_log2"] * np.log10(2)
    np.testing.assert_allclose(ours.delta_log10, decades, atol=1e-12)
    for layer, pair in enumerate(ours.gradients):
        for part, gradient in zip(("weight", "bias"), pair, strict=True):
            wanted = reference.value(theirs.gradients[f"layers.{layer}.{part}"])
            np.testing.assert_allclose(gradient, wanted, atol=1e-12 * np.abs(wanted).max())


def test_chains_beyond_floats() -> None:
    network = vegrad.MLP([6] + [8] * 500 + [3], init="normal", sigma_w=0.02, seed=0)
    passed = labels.run(network.config, layers_of(network), X, TARGETS["mse"])
    theirs = reference.run(network.parameters, X, TARGETS["mse"], **network.config)
    assert passed.delta_log10[0] < -700
    decades = theirs.flow["delta_log2"] * np.log10(2)
    np.testing.assert_allclose(passed.delta_log10, decades, atol=1e-9)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_training_of_the_reference(name: str) -> None:
    """Against vegrad's optimizers, on the batches that the reference draws."""
    network = vegrad.MLP([6, 8, 3], loss="cross_entropy", dtype="float64", seed=0)
    optimizer = {"name": name, "lr": 0.03, "momentum": 0.9, "clip": 0.5}
    trained = labels.train(
        network.config,
        layers_of(network),
        X,
        TARGETS["cross_entropy"],
        optimizer=optimizer,
        target_score=2.0,
        steps=7,
        batch=20,
        seed=3,
    )
    assert (trained.reached, trained.steps) == (False, 7)
    clip = vegrad.clipping.GlobalNorm(0.5)
    peer = vegrad.SGD(0.03, 0.9, clip=clip) if name == "sgd" else vegrad.Adam(0.03, clip=clip)
    for _ in range(7):
        network.backward(X, TARGETS["cross_entropy"])
        peer.step(network.parameters, network.gradients)
    for (weight, bias), layer in zip(trained.layers, range(2), strict=True):
        np.testing.assert_allclose(weight, network.parameters[f"layers.{layer}.weight"], rtol=1e-8)
        np.testing.assert_allclose(bias, network.parameters[f"layers.{layer}.bias"], atol=1e-8)


def test_the_training_stops_at_the_target_and_at_nan() -> None:
    x, target, loss, outputs = families.data("blob")
    options = {"target_score": 0.7, "steps": 400, "batch": 32, "seed": 0}
    network = vegrad.MLP([2, 16, outputs], activation="relu", loss=loss, seed=0)
    ends = []
    for rate in (0.02, 1e200):
        optimizer = {"name": "sgd", "lr": rate, "momentum": 0.9, "clip": None}
        with np.errstate(all="ignore"):
            ends.append(
                labels.train(
                    network.config, layers_of(network), x, target, optimizer=optimizer, **options
                )
            )
    assert (ends[0].reached, ends[1].reached) == (True, False)
    assert ends[0].steps < 400
    assert ends[1].steps < 400


@pytest.mark.parametrize(("fault", "decades", "reached", "wanted"), [
    (None, (-1.0, 0.5), True, "healthy"),
    (None, (-1.0, 0.5), False, "unclear"),
    (None, (-3.1, 0.0), True, "unclear"),
    (None, (-3.1, 0.0), False, "vanishing"),
    (None, (-3.1, 5.0), False, "exploding"),
    ({"kind": "weak"}, (-1.0, 0.0), False, "weak"),
    ({"kind": "weak"}, (-1.0, 0.0), True, "unclear"),
])  # fmt: skip
def test_labels(fault: Any, decades: Any, reached: bool, wanted: str) -> None:
    assert examine.label({"fault": fault}, decades, reached) == wanted


def test_a_specimen_is_drawn_from_its_seed_and_number_alone() -> None:
    drawn = [families.draw(0, number) for number in range(60)]
    assert drawn == [families.draw(0, number) for number in range(60)]
    assert drawn != [families.draw(1, number) for number in range(60)]
    assert drawn == json.loads(json.dumps(drawn))
    assert len({specimen["family"] for specimen in drawn}) > 10


@pytest.mark.parametrize(("edit", "said"), [
    (lambda p: None, {"SageMaker Debugger": "healthy", "AUTOTRAINER": "healthy",
                      "DeepDiagnosis": "healthy", "torchmortem": "healthy"}),
    (lambda p: p["layers.3.weight"].fill(1e-9), {"SageMaker Debugger": "vanishing",
                                                 "AUTOTRAINER": "healthy",
                                                 "DeepDiagnosis": "vanishing",
                                                 "torchmortem": "healthy"}),
    (lambda p: p["layers.1.bias"].fill(100), {"DeepDiagnosis": "saturated"}),
    (lambda p: p["layers.1.weight"].fill(np.nan), {"SageMaker Debugger": "exploding"}),
])  # fmt: skip
def test_peers(edit: Any, said: dict[str, str]) -> None:
    network = vegrad.MLP([6, 8, 8, 8, 8, 3], activation="tanh", init="lecun_normal", seed=0)
    edit(network.parameters)
    with np.errstate(all="ignore"):
        passed = labels.run(network.config, layers_of(network), X, TARGETS["mse"])
    verdicts = peers.verdicts(network.config, passed, 1.0, 0.1)
    assert said.items() <= verdicts.items()


def test_absolute_limits_move_with_the_scale_of_the_loss() -> None:
    network = vegrad.MLP([6, 8, 8, 3], activation="tanh", init="lecun_normal", seed=0)
    passed = labels.run(network.config, layers_of(network), X, TARGETS["mse"])
    assert peers.verdicts(network.config, passed, 1e-6, 0.1)["DeepDiagnosis"] == "vanishing"


def test_a_quick_run_is_stopped_and_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two specimens are there already, and a line that was cut off; the rest is examined."""
    file = tmp_path / "zoo.jsonl"
    monkeypatch.setattr(program, "BLOCK", 4)
    first = [examine.examine(families.draw(SEED, number)) for number in (1, 2)]
    lines = [json.dumps(record | {"steps_allowed": examine.STEPS}) for record in first]
    file.write_text("\n".join(lines) + '\n{"number": 3, "cut', encoding="utf-8")
    records = program.run(SEED, 2, file, program.executor_of("processes", 1), progress=False)
    assert [record["number"] for record in records] == list(range(len(records)))
    again = {record["number"]: record["seconds"] for record in records}
    assert [again[number] for number in (1, 2)] == [record["seconds"] for record in first]
    assert len(file.read_text(encoding="utf-8").splitlines()) == len(records) + 1
    labels = [record["label"] for record in records]
    assert labels.count("healthy") >= 2
    healthy = [record for record in records if record["label"] == "healthy"]
    assert all(table.right(record) for record in healthy)
    treated = [record["cure"] for record in records if "cure" in record]
    assert treated
    assert all(cure["cost"] <= 1.5 for cure in treated)
    assert not any(cure["patch_raised"] for cure in treated)
    assert program.main(["--table", "--file", str(file)]) == 0
    text = capsys.readouterr().out
    for name in (
        "right verdict",
        "false alarms",
        "right layer named",
        "cured: vanishing",
        *peers.PEERS,
    ):
        assert name in text
    command = [sys.executable, "-X", "utf8", str(BENCH / "zoo"), "--table", "--file", str(file)]
    done = subprocess.run(command, capture_output=True, check=True, encoding="utf-8")
    assert done.stdout == text
    with pytest.raises(SystemExit, match="another zoo"):
        program.run(SEED + 1, 2, file, program.executor_of("threads", 1), progress=False)

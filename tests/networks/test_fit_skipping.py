"""Trainings whose clip leaves out steps, or learns: what is left out, and what a checkpoint has."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

from tests.reference_rules import SkipSpike

SETTINGS = (3.0, 20, 8)
BATCH = 8


def data(sequences: bool) -> tuple[np.ndarray, np.ndarray]:
    """Rows of which a batch in ten has targets far from all others."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40 * BATCH, 6, 3) if sequences else (40 * BATCH, 3))
    target = x.mean(1) if sequences else x[:, :2].copy()
    target = target[:, :2]
    target[np.arange(len(x)) // BATCH % 10 == 9] *= 30
    return x, target


def make(sequences: bool) -> Any:
    if sequences:
        return vegrad.RNN(3, 5, 2, loss="mse", seed=0, dtype="float64")
    return vegrad.MLP([3, 8, 2], loss="mse", seed=0, dtype="float64")


def fit(net: Any, optimizer: vegrad.optim.Optimizer, **more: Any) -> vegrad.History:
    sequences = isinstance(net, vegrad.RNN)
    options = {"epochs": 2, "shuffle": False, "progress": False, "gauge_every": None} | more
    history: vegrad.History = net.fit(
        *data(sequences), optimizer=optimizer, batch_size=BATCH, on_finding=None, **options
    )
    return history


@pytest.mark.parametrize("sequences", [False, True])
def test_fit_leaves_out_what_a_loop_leaves_out(sequences: bool) -> None:
    net, plain = make(sequences), make(sequences)
    optimizer = vegrad.AdamW(0.01, clip=clipping.SkipSpike(*SETTINGS))
    history = fit(net, optimizer)
    theirs, steps = SkipSpike(*SETTINGS), vegrad.AdamW(0.01)
    x, target = data(sequences)
    losses, skipped = [], 0
    for first in [*range(0, len(x), BATCH)] * 2:
        loss = plain.backward(x[first : first + BATCH], target[first : first + BATCH])
        losses.append(loss)
        if theirs.skips(vegrad.norm(plain.gradients), loss):
            skipped += 1
        else:
            steps.step(plain.parameters, plain.gradients)
    assert 3 < skipped < 12
    assert optimizer.steps == 80 - skipped
    np.testing.assert_allclose(history.loss, losses, rtol=1e-9)
    for name, weight in net.parameters.items():
        np.testing.assert_allclose(weight, plain.parameters[name], rtol=1e-9)
    assert len(optimizer.clip.losses) == len(optimizer.clip.norms) == 20  # type: ignore[union-attr]


def test_the_loss_alone_can_leave_out_a_step() -> None:
    """In a loop: the norms are all alike, one loss is not."""
    optimizer = vegrad.SGD(0.1, clip=clipping.SkipSpike(*SETTINGS))
    weight, grad = np.ones(3), np.full(3, 0.01)
    said = [
        optimizer.step(weight, grad, loss=50.0 if step == 15 else 1.0 + step % 2)
        for step in range(20)
    ]
    assert [one.skipped for one in said] == [step == 15 for step in range(20)]
    assert optimizer.steps == 19
    np.testing.assert_allclose(weight, 1 - 19 * 0.001)


def header(path: Path) -> dict[str, Any]:
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    found: dict[str, Any] = json.loads(content[8 : 8 + size])
    return found


@pytest.mark.parametrize(
    "rule",
    [
        clipping.SkipSpike(*SETTINGS),
        clipping.AutoClip(50),
        clipping.ZClip(warmup=70),
        clipping.AdaGC(start=10),
        clipping.GlobalNorm(1.0),
    ],
    ids=lambda rule: type(rule).__name__,
)
def test_a_checkpoint_has_the_rule_and_goes_on(rule: clipping.Rule, tmp_path: Path) -> None:
    path, start = tmp_path / "state", rule.state_dict()

    def optimizer() -> vegrad.optim.Optimizer:
        rule.load_state_dict(start)
        fresh = type(rule)(**{name: getattr(rule, name) for name in rule._arguments})
        return vegrad.AdamW(0.01, clip=fresh)

    whole, half, other = make(False), make(False), make(False)
    fit(whole, expected := optimizer(), epochs=3)
    fit(half, optimizer(), epochs=1, checkpoint=path)
    fit(other, resumed := optimizer(), epochs=3, resume=path)
    assert resumed.state_dict()["clip"] == expected.state_dict()["clip"]
    for name, weight in other.parameters.items():
        assert weight.tobytes() == whole.parameters[name].tobytes()
    about = json.loads(header(path)["__metadata__"]["vegrad"])
    assert not any(isinstance(value, list) for value in about["optimizer"]["clip"].values())


def test_a_checkpoint_of_many_norms_has_a_short_header(tmp_path: Path) -> None:
    path, rule = tmp_path / "state", clipping.AutoClip()
    for norm in np.random.default_rng(0).lognormal(0, 3, 20_000).tolist():
        rule._seen.add(norm)
    net, optimizer = make(False), vegrad.SGD(0.01, clip=rule)
    fit(net, optimizer, epochs=1, checkpoint=path)
    assert int.from_bytes(path.read_bytes()[:8], "little") < 20_000
    fresh = vegrad.SGD(0.01, clip=clipping.AutoClip())
    fit(make(False), fresh, epochs=1, resume=path)
    assert fresh.clip.state_dict() == rule.state_dict()  # type: ignore[union-attr]


def test_a_checkpoint_with_a_broken_rule(tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "state"
    fit(make(False), vegrad.SGD(0.01, clip=clipping.AutoClip()), epochs=1, checkpoint=path)
    about = header(path)["__metadata__"]
    for broken in (np.array([3.0, 1.0]), np.array([np.nan]), np.ones((2, 2))):
        save_file(load_file(path) | {"clip.norms": broken}, path, about)
        net, optimizer = make(False), vegrad.SGD(0.01, clip=clipping.AutoClip())
        before = optimizer.state_dict()
        with pytest.raises(ValueError, match="state cannot be read as vegrad's"):
            fit(net, optimizer, epochs=2, resume=path)
        assert optimizer.state_dict() == before

"""The log of `fit`: what the history has is in the file, also after a resume."""

from pathlib import Path

import numpy as np
import pytest
import vegrad

X = np.random.default_rng(0).normal(size=(120, 5)).astype(np.float32)
Y = (X[:, 0] > 0).astype(int)
OPTIONS = {"batch_size": 20, "progress": False, "on_finding": None, "seed": 0}


def network() -> vegrad.MLP:
    return vegrad.MLP([5, 8, 8, 2], loss="cross_entropy", seed=0)


def test_the_steps_of_a_training(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    history = network().fit(
        X,
        Y,
        optimizer=vegrad.SGD(0.5, clip=vegrad.clipping.GlobalNorm(0.1)),
        epochs=5,
        validation=(X, Y),
        log=path,
        **OPTIONS,  # type: ignore[arg-type]
    )
    run = vegrad.read_run(path)
    assert np.allclose(run.loss, history.loss, rtol=1e-5)
    assert np.allclose(run.clipped_norm, history.gradient_norm * history.coefficient, rtol=1e-5)
    assert run.modules == ("layers.0.weight", "layers.1.weight", "layers.2.weight")
    ends = np.cumsum(history.epoch_steps).astype(int) - 1
    assert np.allclose(run.gradient_log2[ends], history.gradient_log2, atol=0.006)
    assert np.allclose(run.validation_loss[ends], history.validation_loss, rtol=1e-5)
    assert run.about["model"] == "MLP"
    assert vegrad.diagnose_run(path).healthy


def test_a_resumed_training_goes_on(tmp_path: Path) -> None:
    path, checkpoint = tmp_path / "run.jsonl", tmp_path / "checkpoint"
    for epochs, resume in ((2, None), (4, checkpoint)):
        history = network().fit(
            X,
            Y,
            optimizer=vegrad.Adam(1e-2),
            epochs=epochs,
            checkpoint=checkpoint,
            resume=resume,
            log=path,
            **OPTIONS,  # type: ignore[arg-type]
        )
    run = vegrad.read_run(path)
    assert run.step.tolist() == list(range(24))
    assert np.allclose(run.loss, history.loss, rtol=1e-5)


def test_the_verdict_of_a_log_and_a_history_is_that_of_the_training(tmp_path: Path) -> None:
    path, checkpoint, file = (tmp_path / name for name in ("run.jsonl", "state", "history.json"))
    net, options = network(), {**OPTIONS, "checkpoint": checkpoint, "log": path}
    history = net.fit(X, Y, optimizer=vegrad.Adam(1e-9), epochs=8, gauge_every=5, **options)
    assert [one.cause for one in history.findings] == ["learning-rate-low"]
    assert not history.noted
    history.save(file)
    for recorded in (path, file):
        run = vegrad.read_run(recorded)
        assert [(one.step, one.finding.cause) for one in run.noted] == [(48, "learning-rate-low")]
        found = vegrad.diagnose_run(recorded).findings
        assert [one.message for one in found] == [history.findings[0].message]
    options["resume"] = checkpoint  # what the first eight epochs told is superseded
    net.fit(X, Y, optimizer=vegrad.Adam(1e-9), epochs=9, gauge_every=5, **options)
    assert [one.step for one in vegrad.read_run(path).noted] == [54]


def test_a_training_that_ends_early_is_logged(tmp_path: Path) -> None:
    path, x = tmp_path / "run.jsonl", X.copy()
    x[70] = np.nan
    with pytest.raises(vegrad.NonFiniteGradientError):
        network().fit(
            x,
            Y,
            optimizer=vegrad.SGD(0.1, clip=vegrad.clipping.GlobalNorm(1.0)),
            epochs=2,
            shuffle=False,
            log=path,
            **OPTIONS,  # type: ignore[arg-type]
        )
    run = vegrad.read_run(path)
    assert run.steps >= 3
    assert run.noted
    vegrad.RunLog(path, modules=run.modules, about={"model": "MLP"}, first_step=9).close()


def test_a_recurrent_network(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    rnn = vegrad.RNN(3, 6, 2, loss="cross_entropy", seed=0)
    x = np.random.default_rng(1).normal(size=(60, 7, 3)).astype(np.float32)
    target = (x[:, 0, 0] > 0).astype(int)
    optimizer = vegrad.SGD(0.1)
    history = rnn.fit(x, target, optimizer=optimizer, epochs=3, log=path, **OPTIONS)  # type: ignore[arg-type]
    run = vegrad.read_run(path)
    assert np.allclose(run.loss, history.loss, rtol=1e-5)
    assert run.modules[0] == "rnn.weight_ih_l0"
    with pytest.raises(ValueError, match="is the log of another run"):
        network().fit(X, Y, optimizer=optimizer, epochs=1, log=path, **OPTIONS)  # type: ignore[arg-type]

"""Training: the steps, the history, and checkpoints that go on as if never stopped."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

ROWS, SIZES = 37, [6, 12, 9, 3]


def data(rows: int = ROWS, loss: str = "cross_entropy") -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((rows, SIZES[0]))
    if loss == "cross_entropy":
        return x, rng.integers(0, SIZES[-1], rows)
    return x, rng.uniform(size=(rows, SIZES[-1]))


def make(loss: str = "cross_entropy", **options: Any) -> vegrad.MLP:
    return vegrad.MLP(SIZES, loss=loss, seed=2, **options)


def optimizer(lr: Any = 0.01) -> vegrad.AdamW:
    return vegrad.AdamW(lr, clip=clipping.ZClip(warmup=3, z_threshold=1.0))


def fit(net: vegrad.MLP, steps_of: Any = None, **options: Any) -> vegrad.History:
    x, target = data(loss=net.config["loss"])
    options = {"epochs": 3, "batch_size": 8, "seed": 11, "progress": False} | options
    return net.fit(x, target, optimizer=steps_of or optimizer(), **options)


def weights(net: vegrad.MLP) -> list[bytes]:
    return [parameter.tobytes() for parameter in net.parameters.values()]


@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy"])
@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("clip", [True, False])
def test_it_is_the_loop_that_one_would_write(
    loss: str, shuffle: bool, dtype: str, clip: bool
) -> None:
    """Steps are the same to the bit, but for the norm, which the backward pass sums otherwise."""
    net, plain = make(loss, dtype=dtype), make(loss, dtype=dtype)
    x, target = data(loss=loss)
    of_fit, steps = (optimizer() if clip else vegrad.AdamW(0.01) for _ in range(2))
    history = fit(net, of_fit, shuffle=shuffle, validation=data(20, loss))
    random, losses, norms, rates = np.random.default_rng(11), [], [], []
    off = 0 if not clip else 1e-6 if dtype == "float32" else 1e-14
    for _ in range(3):
        order = random.permutation(ROWS) if shuffle else np.arange(ROWS)
        for start in range(0, ROWS, 8):
            rows = order[start : start + 8]
            losses.append(plain.backward(x[rows], target[rows]))
            before = [w.copy() for n, w in plain.parameters.items() if n.endswith("weight")]
            clipped = steps.step(plain.parameters, plain.gradients)
            norms.append(clipped.norm)
            rates.append(clipped.coefficient)
    for name, weight in net.parameters.items():
        size = np.abs(plain.parameters[name]).max()
        np.testing.assert_allclose(weight, plain.parameters[name], rtol=0, atol=off * size)
    np.testing.assert_allclose(history.loss, losses, rtol=off)
    np.testing.assert_allclose(history.gradient_norm, norms, rtol=off or 1e-6)
    np.testing.assert_allclose(history.coefficient, rates, rtol=off)
    np.testing.assert_array_equal(history.learning_rate, [0.01] * 15)
    assert np.isnan(history.alpha).tolist() == [False] + [True] * 14
    np.testing.assert_array_equal(history.epoch_steps, [5] * 3)
    sizes = [8, 8, 8, 8, ROWS - 32]  # the mean is that of rows, not of batches
    means = np.average(np.reshape(losses, (3, 5)), axis=1, weights=sizes)
    np.testing.assert_allclose(history.epoch_loss, means)
    share = (np.reshape(rates, (3, 5)) < 1).mean(1)
    np.testing.assert_allclose(history.clipped_share, share)
    if loss == "cross_entropy" and clip:
        assert 0 < share.mean() < 1
    np.testing.assert_allclose(
        history.validation_loss[-1], plain.loss(*data(20, loss)), rtol=off, atol=0
    )
    np.testing.assert_allclose(
        history.gradient_log2[-1], plain.flow.gradient_log2, rtol=0, atol=8 * off
    )
    after = [w for n, w in plain.parameters.items() if n.endswith("weight")]
    moved = [
        np.log2(np.linalg.norm(np.float64(a) - b) / np.linalg.norm(np.float64(b)))
        for a, b in zip(after, before, strict=True)
    ]
    np.testing.assert_allclose(history.update_log2[-1], moved, atol=1e-3)


def test_the_gauge_on_a_parabola() -> None:
    """With one layer and a mean square, the loss along a step is a parabola and alpha is exact."""
    x, target = data(loss="mse")

    def one_step(lr: float) -> tuple[float, list[float]]:
        net = vegrad.MLP([SIZES[0], SIZES[-1]], dtype="float64", seed=0)
        before = net.loss(x, target)
        history = net.fit(
            x,
            target,
            optimizer=vegrad.SGD(lr),
            epochs=2,
            batch_size=30,
            seed=0,
            shuffle=False,
            progress=False,
            gauge_every=1,
            on_finding=lambda _: None,
        )
        return float(history.alpha[0]), [before, *history.loss]

    alpha, _ = one_step(0.1)
    assert -1 < alpha < 0
    best = 0.1 / (1 + alpha)
    assert one_step(best)[0] == pytest.approx(0, abs=1e-9)
    assert one_step(2 * best)[0] == pytest.approx(1, abs=1e-9)
    assert one_step(3 * best)[0] == pytest.approx(2, abs=1e-9)
    assert one_step(1e-9 * best)[0] == pytest.approx(-1, abs=1e-6)


@pytest.mark.parametrize("every", [None, 0, 1, 2, 7])
def test_the_gauge_changes_nothing(every: int | None) -> None:
    net, plain = make(), make()
    history = fit(net, gauge_every=every)
    expected = fit(plain, gauge_every=None)
    assert weights(net) == weights(plain)
    np.testing.assert_array_equal(history.loss, expected.loss)
    np.testing.assert_array_equal(history.gradient_log2, expected.gradient_log2)
    looked = [bool(every) and n % every == 0 for n in range(15)]
    assert (~np.isnan(history.alpha)).tolist() == looked


def test_what_the_gauge_writes_down() -> None:
    """Length, losses and slopes of a step agree with a step made by hand in float64."""
    net, plain = make(dtype="float64"), make(dtype="float64")
    x, target = data()
    steps = (vegrad.SGD(0.3, clip=clipping.GlobalNorm(0.2)) for _ in range(2))
    history = fit(net, next(steps), epochs=1, batch_size=ROWS, shuffle=False, gauge_every=1)
    before = plain.backward(x, target)
    start = {name: (p.copy(), plain.gradients[name].copy()) for name, p in plain.parameters.items()}
    next(steps).step(plain.parameters, plain.gradients)
    after = plain.backward(x, target)
    moved = {name: plain.parameters[name] - p for name, (p, _) in start.items()}
    length = np.sqrt(sum((m**2).sum() for m in moved.values()))
    assert length == pytest.approx(0.06)  # the rate times the clipped norm
    slope = sum((moved[name] * g).sum() for name, (_, g) in start.items()) / length
    slope_after = sum((m * plain.gradients[name]).sum() for name, m in moved.items()) / length
    got = [getattr(history, name)[0] for name in ("loss", "step_length", "loss_after")]
    np.testing.assert_allclose(got, [before, length, after], rtol=1e-12)
    np.testing.assert_allclose(history.slope, slope, rtol=1e-9)
    np.testing.assert_allclose(history.slope_after, slope_after, rtol=1e-9)
    values = before, after, slope * length, slope_after * length
    equations = np.array([[1, 0, 0], [1, 1, 1], [0, 1, 0], [0, 1, 2]], float)
    _, b, c = np.linalg.lstsq(equations, np.array(values), rcond=None)[0]
    assert history.alpha[0] == pytest.approx(-(b + 2 * c) / b, rel=1e-9)


def test_accuracy() -> None:
    for loss in ("cross_entropy", "binary_cross_entropy", "mse"):
        net = make(loss)
        x, target = data(20, loss)
        accuracy = fit(net, validation=(x, target)).validation_accuracy[-1]
        output = net.forward(x)
        if loss == "cross_entropy":
            assert accuracy == (output.argmax(1) == target).mean()
        elif loss == "mse":
            assert np.isnan(accuracy)
        else:
            assert accuracy == ((output > 0) == (target > 0.5)).mean()


def test_it_learns() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    x, labels = datasets.load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, labels = (x[order] - 8) / 6, labels[order]
    net = vegrad.MLP(
        [64, 64, 10], activation="relu", init="he_normal", loss="cross_entropy", seed=0
    )
    history = net.fit(
        x[:1400],
        labels[:1400],
        optimizer=vegrad.AdamW(2e-3),
        epochs=12,
        batch_size=32,
        validation=(x[1400:], labels[1400:]),
        seed=0,
        progress=False,
    )
    assert history.validation_accuracy[-1] > 0.96
    assert history.epoch_loss[-1] < 0.1 * history.epoch_loss[0]


# --------------------------------------------------------------------------- stopping and going on


@pytest.mark.parametrize("lr", [0.01, vegrad.optim.cosine(0.02, 12, warmup=3)])
def test_a_resume_goes_on_bit_for_bit(tmp_path: Path, lr: Any) -> None:
    path, validation = tmp_path / "state", data(20)
    whole = make()
    expected = fit(whole, optimizer(lr), epochs=6, validation=validation)
    fit(make(), optimizer(lr), epochs=2, checkpoint=path, validation=validation)
    other = vegrad.MLP(SIZES, loss="cross_entropy", seed=99)
    steps = optimizer(lr)
    history = fit(
        other, steps, epochs=6, seed=1234, resume=path, checkpoint=path, validation=validation
    )
    assert weights(other) == weights(whole)
    assert steps.steps == 30
    for name, column in expected.to_dict().items():
        np.testing.assert_array_equal(getattr(history, name), np.array(column))
    again = make()
    assert fit(again, optimizer(lr), epochs=6, resume=path).epochs == 6  # nothing is left to do
    assert weights(again) == weights(whole)


def test_a_foreign_or_broken_checkpoint_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state"
    fit(make(), checkpoint=path)
    content = path.read_bytes()

    def refused(said: str, net: vegrad.MLP | None = None, steps: Any = None, **more: Any) -> None:
        net = net or make()
        steps = steps or optimizer()
        before, kept = weights(net), repr(steps.state_dict())
        with pytest.raises(ValueError, match=f"state(:| cannot be read as vegrad's:) .*{said}"):
            fit(net, steps, resume=path, **more)
        assert weights(net) == before
        assert repr(steps.state_dict()) == kept

    refused("activation must be 'tanh' as it was, not 'relu'", make(activation="relu"))
    refused("batch_size must be 8 as it was, not 9", batch_size=9)
    refused("shuffle must be True", shuffle=False)
    refused("must be of SGD, not of AdamW", steps=vegrad.SGD(clip=clipping.ZClip()))
    refused("clip", steps=vegrad.AdamW())
    path.write_bytes(content[:-20])
    refused(".")
    make().save(path)
    refused("'MLP', not 'checkpoint'")
    with pytest.raises(FileNotFoundError):
        fit(make(), resume=tmp_path / "nothing")


KILLED = """
import sys, numpy as np, vegrad
sys.path.insert(0, {tests!r})
from tests.networks.test_fit import fit, make
fit(make(), epochs=100000, checkpoint={path!r})
"""


@pytest.mark.skipif(os.name != "posix", reason="kill -9")
def test_a_kill_at_any_moment_leaves_a_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "state"
    code = KILLED.format(tests=str(Path(__file__).parents[2]), path=str(path))
    rng = np.random.default_rng()
    epochs = 0
    for _ in range(4):
        process = subprocess.Popen([sys.executable, "-c", code])
        while not path.exists():
            assert process.poll() is None
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 0.1))
        process.send_signal(signal.SIGKILL)
        process.wait()
        net = make()
        history = fit(net, epochs=0, resume=path)
        assert history.epochs >= 1
        expected = make()
        fit(expected, epochs=history.epochs)
        assert weights(net) == weights(expected)
        epochs += history.epochs
        path.unlink()
    assert epochs >= 4


def test_ctrl_c_leaves_the_network_as_a_step_left_it() -> None:
    net, stopped = make(), make()
    calls = []

    def interrupt(network: vegrad.MLP, history: vegrad.History) -> None:
        calls.append(history.epochs)
        if history.epochs == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit(stopped, epochs=9, callbacks=[interrupt])
    fit(net, epochs=2)
    assert calls == [1, 2]
    assert weights(net) == weights(stopped)


def test_a_callback_may_end_it() -> None:
    seen = []
    history = fit(
        make(), epochs=9, callbacks=[lambda n, h: h.epochs == 3, lambda n, h: seen.append(1)]
    )
    assert history.epochs == len(seen) == 3


def test_a_gradient_that_is_not_finite() -> None:
    net = make("mse")
    x, target = data(loss="mse")
    x[:] = 1e30
    net.parameters["layers.0.weight"][...] = 1e30
    before = weights(net)
    with pytest.raises(vegrad.NonFiniteGradientError) as error:
        net.fit(
            x,
            np.full_like(target, np.inf),
            optimizer=optimizer(),
            epochs=1,
            batch_size=8,
            progress=False,
            on_finding=lambda _: None,
        )
    assert "in step 0 of training, in epoch 1" in error.value.__notes__
    assert error.value.history.steps == 0  # type: ignore[attr-defined]
    assert weights(net) == before


# --------------------------------------------------------------------------------------- history


def test_a_history_in_files(tmp_path: Path) -> None:
    history = fit(make(), validation=data(20))
    history.save(tmp_path / "h.json")
    again = vegrad.History.from_dict(json.loads((tmp_path / "h.json").read_text()))
    assert repr(again.to_dict()) == repr(history.to_dict())
    assert "NaN" not in (tmp_path / "h.json").read_text()
    odd = history.to_dict() | {"loss": [float("inf"), *history.loss[1:].tolist()]}
    vegrad.History.from_dict(odd).save(tmp_path / "odd.json")
    columns = json.loads((tmp_path / "odd.json").read_text())
    assert repr(vegrad.History.from_dict(columns).to_dict()) == repr(odd)
    history.save(tmp_path / "h.csv")
    with open(tmp_path / "h.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["loss"]) for row in rows] == history.loss.tolist()
    assert [row["epoch"] for row in rows] == [str(n // 5) for n in range(15)]
    assert float(rows[4]["validation_loss"]) == history.validation_loss[0]
    assert float(rows[14]["gradient_log2.2"]) == history.gradient_log2[2, 2]
    assert rows[3]["validation_loss"] is None
    with pytest.raises(ValueError, match=r"\.json or \.csv, not '\.txt'"):
        history.save(tmp_path / "h.txt")
    with pytest.raises(ValueError, match="must have loss"):
        vegrad.History.from_dict({})
    with pytest.raises(AttributeError, match="no losses; its columns: loss"):
        _ = history.losses
    way = f"{history.epoch_loss[0]:.4g} → {history.epoch_loss[-1]:.4g}"
    assert repr(history) == f"<History of 3 epochs, 15 steps: loss {way}>"
    assert {"loss", "gradient_norm", "epoch_loss", "gradient_log2", "plot"} <= set(dir(history))


def test_a_history_as_a_picture(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    fit(make(), validation=data(20)).plot(tmp_path / "h.png")
    assert (tmp_path / "h.png").read_bytes().startswith(b"\x89PNG")


def test_progress_without_a_terminal_is_a_line_an_epoch(capsys: pytest.CaptureFixture[str]) -> None:
    fit(make(), progress=True, validation=data(20))
    said = capsys.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"epoch {n}/3" for n in (1, 2, 3)]
    assert all("loss" in s and "gradient" in s and "clipped" in s and "rows/s" in s for s in lines)
    fit(make(), progress=False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"epochs": -1}, ValueError, "epochs must be at least 0, not -1"),
        ({"epochs": 1.5}, TypeError, "epochs must be an integer, not float"),
        ({"gauge_every": -1}, ValueError, "gauge_every must be at least 0, not -1"),
        ({"batch_size": 0}, ValueError, "batch_size must be at least 1, not 0"),
        ({"steps_of": "adam"}, TypeError, "optimizer must be one of vegrad.optim's, not str"),
        ({"validation": (np.ones((3, 5)), [0, 1, 2])}, ValueError, r"\(B, 6\), not \(3, 5\)"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], said: str) -> None:
    net = make()
    before = weights(net)
    with pytest.raises(error, match=said):
        fit(net, **options)
    assert weights(net) == before

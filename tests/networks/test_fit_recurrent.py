"""The training of recurrent networks: whole sequences, windows, streams, and resumes."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

ROWS, T, SIZES = 21, 10, (3, 6, 2)


def data(targets: str, loss: str = "mse", rows: int = ROWS) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(5)
    shape = (rows, T) if targets == "all" else (rows,)
    x = rng.standard_normal((rows, T, SIZES[0])).astype("float32")
    if loss == "cross_entropy":
        return x, rng.integers(0, SIZES[2], shape)
    return x, rng.uniform(size=(*shape, SIZES[2])).astype("float32")


def lengths() -> np.ndarray:
    return np.random.default_rng(6).integers(1, T + 1, ROWS)


def make(targets: str = "last", cell: str = "lstm", **options: Any) -> vegrad.RNN:
    return vegrad.RNN(*SIZES, cell=cell, targets=targets, seed=2, **options)


def optimizer() -> vegrad.AdamW:
    return vegrad.AdamW(0.01, clip=clipping.ZClip(warmup=3, z_threshold=1.0))


def fit(net: vegrad.RNN, x: Any = None, target: Any = None, **options: Any) -> vegrad.History:
    if x is None:
        x, target = data(net.config["targets"], net.config["loss"])
    options = {"epochs": 3, "batch_size": 8, "seed": 11, "progress": False} | options
    options = {"optimizer": optimizer(), "on_finding": None} | options
    return net.fit(x, target, **options)


def bits(net: vegrad.RNN) -> list[bytes]:
    return [parameter.tobytes() for parameter in net.parameters.values()]


def steps_of(
    x: np.ndarray, target: np.ndarray, long: np.ndarray | None, truncation: Any
) -> list[tuple[int, int, int]]:
    """Windows as one would write them: first step, first new step, end."""
    if target.ndim < 3 or truncation is None:
        return [(0, 0, T)]
    k1, k2 = truncation if isinstance(truncation, tuple) else (truncation, truncation)
    longest = T if long is None else int(long.max())
    ends = [*range(k1, T, k1), T]
    begins = [0, *ends[:-1]]
    return [
        (max(end - k2, 0) if k2 > k1 else begin, begin, end)
        for begin, end in zip(begins, ends, strict=True)
        if begin < longest
    ]


@pytest.mark.parametrize("cell", ["tanh", "relu", "lstm", "gru"])
@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("truncation", [None, 4, T, (3, 3)])
@pytest.mark.parametrize("unequal", [False, True])
def test_it_is_the_loop_that_one_would_write(
    cell: str, targets: str, truncation: Any, unequal: bool
) -> None:
    net, plain = make(targets, cell), make(targets, cell)
    x, target = data(targets)
    long = lengths() if unequal else None
    of_fit, steps = optimizer(), optimizer()
    history = fit(net, optimizer=of_fit, lengths=long, truncation=truncation)
    random, losses, counts, means = np.random.default_rng(11), [], list[int](), list[float]()
    for _ in range(3):
        first = len(losses)
        order = random.permutation(ROWS)
        for start in range(0, ROWS, 8):
            rows, state = order[start : start + 8], None
            own = None if long is None else long[rows]
            for _, begin, end in steps_of(x, target, own, truncation):
                here = np.full(len(rows), True) if own is None else own > begin
                options: dict[str, Any] = {}
                if own is not None:
                    options["lengths"] = np.minimum(own[here], end) - begin
                if targets == "last":
                    options["truncation"] = truncation
                if state is not None:
                    options["state"] = tuple(part[:, here] for part in state)
                batch = x[rows][here, begin:end]
                wanted = target[rows][here, begin:end] if targets == "all" else target[rows]
                sizes = options.get("lengths", np.full(len(batch), end - begin))
                counts.append(sizes.sum() if targets == "all" else len(batch))
                losses.append(plain.backward(batch, wanted, **options))
                after = plain.state
                if state is None:
                    state = after
                for part, new in zip(state, after, strict=True):
                    part[:, here] = new
                steps.step(plain.parameters, plain.gradients)
        means.append(np.average(losses[first:], weights=counts[first:]))
    assert bits(net) == bits(plain)
    np.testing.assert_array_equal(history.loss, losses)
    np.testing.assert_allclose(history.epoch_loss, means)
    assert of_fit.steps == steps.steps


def test_windows_that_overlap_go_back_into_the_one_before() -> None:
    """The second window has steps 2 … 5, and only its steps 4 and 5 have losses."""
    net, plain = make("all", dtype="float64"), make("all", dtype="float64")
    x, target = data("all")
    x, target = x[:4, :6], target[:4, :6]
    sgd = {"optimizer": vegrad.SGD(0.1), "gauge_every": None, "shuffle": False}
    history = fit(net, x, target, truncation=(4, 5), epochs=1, batch_size=4, **sgd)
    steps = vegrad.SGD(0.1)
    first = plain.backward(x[:, :4], target[:, :4])
    steps.step(plain.parameters, plain.gradients)
    plain.forward(x[:, :1])  # with the weights as they are now
    state = plain.state
    both = plain.backward(x[:, 1:], target[:, 1:], state=state)
    whole = {name: 5 * gradient for name, gradient in plain.gradients.items()}
    known = plain.backward(x[:, 1:4], target[:, 1:4], state=state)
    new = {name: (whole[name] - 3 * g) / 2 for name, g in plain.gradients.items()}
    steps.step(plain.parameters, new)
    np.testing.assert_allclose(history.loss, [first, (5 * both - 3 * known) / 2], rtol=1e-12)
    for name, parameter in net.parameters.items():
        np.testing.assert_allclose(parameter, plain.parameters[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("unequal", [False, True])
@pytest.mark.parametrize("truncation", [3, (2, 5), (3, 10)])
def test_memory_maps_and_windows_are_the_array(
    tmp_path: Path, truncation: Any, unequal: bool
) -> None:
    x, target = data("all")
    options: dict[str, Any] = {"lengths": lengths() if unequal else None}
    net = make("all")
    history = fit(net, x, target, truncation=truncation, **options)
    for name, array in (("x", x), ("target", target)):
        np.save(tmp_path / f"{name}.npy", array)
    maps = [np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("x", "target")]
    mapped = make("all")
    assert (fit(mapped, *maps, truncation=truncation, **options).loss == history.loss).all()
    assert bits(mapped) == bits(net)
    if isinstance(truncation, int):
        cuts = range(truncation, T, truncation)
        windows = make("all")
        fit(windows, np.split(x, cuts, axis=1), np.split(target, cuts, axis=1), **options)
        assert bits(windows) == bits(net)


@pytest.mark.parametrize("truncation", [None, 3, (2, 5)])
@pytest.mark.parametrize("unequal", [False, True])
def test_a_resume_goes_on_as_if_never_stopped(
    tmp_path: Path, truncation: Any, unequal: bool
) -> None:
    options = {"truncation": truncation, "lengths": lengths() if unequal else None}
    whole, half = make("all"), make("all")
    wanted = fit(whole, epochs=4, **options)
    fit(half, epochs=2, checkpoint=tmp_path / "half", **options)
    other = make("all", forget_bias=3.0)
    history = fit(other, epochs=4, resume=tmp_path / "half", **options)
    assert bits(other) == bits(whole)
    np.testing.assert_array_equal(history.loss, wanted.loss)
    np.testing.assert_array_equal(history.alpha, wanted.alpha)
    with pytest.raises(ValueError, match="the fit's truncation must be"):
        fit(make("all"), epochs=4, resume=tmp_path / "half", **options | {"truncation": 7})


class Cuts:
    """Factors drawn at random, which a checkpoint goes on with."""

    def __init__(self) -> None:
        self.drawn = 0

    def factors(self, steps: int) -> np.ndarray:
        self.drawn += 1
        return np.random.default_rng(self.drawn).choice([0.0, 1.25], steps)

    def state_dict(self) -> dict[str, object]:
        return {"drawn": self.drawn}

    def load_state_dict(self, state: Any) -> None:
        self.drawn = state["drawn"]


@pytest.mark.parametrize("targets", ["last", "all"])
def test_a_truncation_at_random_goes_on_with_its_draws(tmp_path: Path, targets: str) -> None:
    whole, half = make(targets), make(targets)
    fit(whole, epochs=4, truncation=Cuts())
    fit(half, epochs=2, checkpoint=tmp_path / "half", truncation=Cuts())
    other = make(targets)
    fit(other, epochs=4, resume=tmp_path / "half", truncation=Cuts())
    assert bits(other) == bits(whole)
    assert bits(other) != bits(half)


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("truncation", [None, 3, (2, 4), Cuts])
def test_the_gauge_changes_nothing(targets: str, truncation: Any) -> None:
    found = []
    for every in (None, 1, 3):
        net = make(targets)
        chosen = truncation() if truncation is Cuts else truncation
        history = fit(net, gauge_every=every, truncation=chosen, lengths=lengths())
        found.append((bits(net), history.loss.tolist()))
        if every:
            assert not np.isnan(history.alpha[::every]).any()
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("targets", ["last", "all"])
@pytest.mark.parametrize("loss", ["mse", "cross_entropy", "binary_cross_entropy"])
def test_rows_held_out_are_evaluated(targets: str, loss: str) -> None:
    net, long = make(targets, loss=loss), lengths()
    x, target = data(targets, loss)
    history = fit(net, x, target, validation=(x, target, long))
    assert history.validation_loss[-1] == net.loss(x, target, lengths=long)
    accuracy = history.validation_accuracy[-1]
    if loss == "mse":
        assert math.isnan(accuracy)
        return
    output = net.forward(x, lengths=long)
    right = (
        output.argmax(-1) == target if loss == "cross_entropy" else (output > 0) == (target > 0.5)
    )
    if targets == "all":
        right = right[np.arange(T) < long[:, None]]
    assert accuracy == right.mean()


@pytest.mark.parametrize("truncation", [None, 3])
@pytest.mark.parametrize(("row", "step"), [(0, 0), (17, 8)])
def test_a_nan_is_found_by_row_and_step(truncation: Any, row: int, step: int) -> None:
    x, target = data("all")
    x[row, step, 1] = math.nan
    net = make("all")
    sgd = vegrad.SGD(0.1)
    history = fit(net, x, target, optimizer=sgd, epochs=1, shuffle=False, truncation=truncation)
    (found,) = (one for one in history.findings if one.kind == "nonfinite")
    assert found.cause == "nonfinite-input"
    assert [found.evidence[name] for name in ("row", "step", "column")] == [row, step, 1]
    assert f"x[{row}, {step}, 1] is nan" in found.message


def test_a_nan_beyond_a_rows_length_is_no_finding() -> None:
    x, target = data("all")
    long = np.full(ROWS, 5)
    x[:, 5:], target[:, 5:] = math.nan, math.inf
    history = fit(make("all"), x, target, lengths=long)
    assert np.isfinite(history.loss).all()
    assert not [one for one in history.findings if one.kind == "nonfinite"]


def test_losses_that_differ_by_window_are_no_rise() -> None:
    """The loss of late steps is a hundred times that of early ones, in every epoch."""
    x = np.random.default_rng(0).standard_normal((64, 60, 1)).astype("float32")
    target = 0.3 * x * np.linspace(0.1, 10, 60, dtype="float32")[:, None]
    net = vegrad.RNN(1, 8, 1, cell="gru", targets="all", seed=0)
    history = net.fit(x, target, optimizer=vegrad.Adam(1e-3), epochs=6, batch_size=16, seed=0,
                      truncation=5, progress=False, on_finding=None)  # fmt: skip
    assert history.windows == 12
    assert not [one for one in history.findings if one.kind == "overshooting"]


def test_a_stream_of_a_million_steps() -> None:
    """Windows that are made when they are asked for."""

    class Windows(list[np.ndarray]):
        def __getitem__(self, number: Any) -> Any:
            return np.sin(np.arange(100.0) + 100 * number)[None, :, None]

    made = Windows([np.zeros(0)] * 10_000)
    net = vegrad.RNN(1, 4, 1, cell="gru", targets="all", seed=0)
    history = net.fit(made, made, optimizer=vegrad.SGD(0.01), epochs=1, batch_size=1, seed=0,
                      progress=False, on_finding=None)  # fmt: skip
    assert history.steps == 10_000
    assert history.loss[-1] < history.loss[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"truncation": (5, 3)}, "not k2 = 3"),
        ({"lengths": [0] * ROWS}, r"lengths\[0\] is 0"),
        ({"x": [np.zeros((ROWS, 5, 3)), np.zeros((ROWS - 1, 5, 3))]}, "target must have as many"),
        ({"batch_size": 0}, "batch_size must be at least 1, not 0"),
        ({"x": np.zeros((ROWS, 3))}, r"x must have shape \(B, T, 3\)"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_first_step(
    change: dict[str, Any], message: str
) -> None:
    net = make("all")
    before = bits(net)
    x, target = data("all")
    options = {"x": x, "target": target} | change
    with pytest.raises(ValueError, match=message):
        fit(net, **options)
    assert bits(net) == before


def test_windows_must_fit_each_other() -> None:
    x, target = data("all")
    net = make("all")
    windows = [x[:, :5], x[:-1, 5:]]
    with pytest.raises(ValueError, match=r"x\[1\] must have 21 rows as x\[0\], not 20"):
        fit(net, windows, [target[:, :5], target[:, 5:]])
    with pytest.raises(ValueError, match="comes in 2 windows already"):
        fit(net, [x[:, :5], x[:, 5:]], [target[:, :5], target[:, 5:]], truncation=2)
    with pytest.raises(ValueError, match='needs a network with targets="all"'):
        fit(make("last"), [x[:, :5], x[:, 5:]], target[:, 0])


# Findings ---------------------------------------------------------------------------------------


def shown(steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Make noise with the class shown at the first step."""
    rng = np.random.default_rng(0)
    target = rng.integers(0, 4, 512)
    x = 0.3 * rng.standard_normal((512, steps, 6)).astype("float32")
    x[np.arange(512), 0, target] += 3.0
    return x, target


def trained(network: vegrad.RNN, steps: int = 20, **options: Any) -> list[tuple[str, int]]:
    arguments: dict[str, Any] = {"optimizer": vegrad.Adam(1e-3), "epochs": 1} | options
    history = network.fit(
        *shown(steps), batch_size=32, seed=0, progress=False, on_finding=None, **arguments
    )
    return [(one.finding.rule, one.step) for one in history.noted]


def classifier(cell: str = "lstm") -> vegrad.RNN:
    return vegrad.RNN(6, 16, 4, cell=cell, loss="cross_entropy", seed=0)


def test_a_healthy_training_has_no_findings() -> None:
    assert not trained(classifier("gru"), 10, optimizer=vegrad.Adam(1e-2), epochs=3)


def test_the_first_batch_is_judged() -> None:
    assert trained(classifier(), 120) == [("forgets-what-is-needed", 0)]
    network = classifier("tanh")
    network.parameters["rnn.weight_hh_l0"][...] *= 20
    assert trained(network)[0] == ("through-time", 0)
    network = classifier()
    network.parameters["head.weight"][0, 0] = math.nan
    assert trained(network)[0] == ("nonfinite-pass", 0)


def test_steps_are_judged() -> None:
    found = trained(classifier("tanh"), optimizer=vegrad.SGD(30.0), epochs=2)
    assert found[0][0] in ("long-steps", "overshooting")
    assert 0 < found[0][1] < 20


def test_ends_of_epochs_are_judged() -> None:
    def shrunk(network: vegrad.RNN, history: vegrad.History) -> None:
        if history.epochs == 2:
            network.parameters["rnn.weight_hh_l0"][...] *= 1e-4

    found = trained(classifier(), optimizer=vegrad.SGD(1e-6), epochs=3, callbacks=[shrunk])
    assert ("through-time", 48) in found


def test_a_plateau_of_steps_of_usual_size_is_no_reason_to_raise_the_rate() -> None:
    random = np.random.default_rng(3)
    x = random.standard_normal((200, 30, 2))
    label = (x[:, 0, 0] > 0).astype(int)
    more = {"epochs": 15, "batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    for rate, low in ((0.01, False), (1e-5, True)):
        net = vegrad.RNN(2, 16, 2, cell="lstm", loss="cross_entropy", seed=0)
        history = net.fit(x, label, optimizer=vegrad.Adam(rate), **more)
        found = [one for one in history.findings if one.cause == "learning-rate-low"]
        assert bool(found) == low, found
        assert all(one.evidence["wanted"] < 0.01 for one in found)

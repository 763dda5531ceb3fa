"""What a training's history says of its steps, and the picture of the descent."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping
from vegrad.diagnosis.history import EPOCHS, LAYERS, STEPS

from tests.spiral import spiral


def quadratic(
    rate: float, steps: int = 40, every: int = 1, start: float = 1.0, moved: float = -10.0
) -> vegrad.History:
    """Descent on the parabola 2 + ½ w², as fit would write it down; a step an epoch."""
    w, columns = start, []
    for step in range(steps):
        after = w - rate * w
        length = abs(after - w)
        looked = step % every == 0
        seen = [rate - 1, length, 2 + after**2 / 2, -abs(w), after * np.sign(after - w)]
        gauge = seen if looked else [np.nan] * 5
        columns.append([2 + w**2 / 2, abs(w), 1.0, rate, *gauge])
        w = after
    return history_of(np.array(columns), [1] * steps, moved)


def history_of(steps: Any, epochs: list[int], moved: float = -10.0) -> vegrad.History:
    losses = np.split(steps[:, 0], np.cumsum(epochs)[:-1])
    of_epoch = {
        "epoch_steps": epochs,
        "epoch_loss": [float(np.mean(loss)) for loss in losses],
        **{name: [0.0] * len(epochs) for name in EPOCHS[2:]},
        **{name: [[moved]] * len(epochs) for name in LAYERS},
    }
    return vegrad.History.from_dict(dict(zip(STEPS, steps.T.tolist(), strict=True)) | of_epoch)


def found(history: vegrad.History) -> dict[str, Any]:
    return {finding.kind: finding for finding in history.findings}


def test_good_steps_are_not_complained_of() -> None:
    for rate in (0.05, 0.3, 1.0, 1.3):
        assert quadratic(rate, start=4.0).findings == ()
    assert vegrad.History().findings == ()


def test_overshooting_names_the_rate_that_lands_at_the_minimum() -> None:
    climbing = found(quadratic(2.1))["overshooting"]
    assert climbing.severity == "critical"
    assert climbing.evidence["wanted"] == pytest.approx(1.0)  # of this parabola
    assert climbing.evidence["step"] == 0
    assert climbing.evidence["climbs"] == 1.0
    assert "lower the learning rate from 2.1 to 1," in climbing.advice
    assert "global norm at 0.48," in climbing.advice  # 1 is the norm of the step that climbs
    past = found(quadratic(1.8, start=4.0))["overshooting"]
    assert past.severity == "warning"
    assert past.evidence["wanted"] == pytest.approx(1.0)
    assert past.evidence["climbs"] == 0


def test_a_loss_that_leaves_its_range_is_overshooting() -> None:
    history = quadratic(0.5, steps=1)
    for name in ("loss_after", "alpha"):
        history._steps[STEPS.index(name), 0] = np.inf
    finding = found(history)["overshooting"]
    assert "wanted" not in finding.evidence  # no parabola says
    assert finding.edit is None
    assert "by powers of ten" in finding.advice
    assert "α +inf" in finding.message


def test_stalled() -> None:
    baby = found(quadratic(1e-5, moved=float(np.log2(1e-5))))["stalled"]
    assert baby.evidence["wanted"] == pytest.approx(1.0)
    assert baby.evidence["alpha"] == pytest.approx(1e-5 - 1)
    assert "baby steps, 1/100000 of the way" in baby.message
    assert "towards 1," in baby.advice
    plateau = found(quadratic(1e-5, moved=-14.0))["stalled"]  # whose minimum is beyond all weights
    assert plateau.evidence["wanted"] == pytest.approx(1e-5 * 2**9)
    assert "at which steps would move the weights by 0.03 of their size" in plateau.advice
    flat = found(quadratic(0.9, start=0.1))["stalled"]  # it is at the minimum of its direction
    assert "reach the minimum" in flat.message
    assert "diagnose" in flat.advice
    unseen = quadratic(1e-5, every=1)
    unseen._steps[4:] = np.nan
    assert "wanted" not in found(unseen)["stalled"].evidence
    assert found(quadratic(1e-5, steps=19)) == {}  # too early to say


def test_stalled_in_spite_of_what_batches_differ_by() -> None:
    """The first batch happens to have a larger loss than the others."""
    history = quadratic(1e-5, start=1.0)
    assert found(history)["stalled"].evidence["fall"] < 0.001
    lucky = quadratic(1e-5, start=1.0)
    for name in ("loss", "loss_after"):
        lucky._steps[STEPS.index(name), 0] += 1.0
    for name in ("loss", "loss_after"):
        lucky._steps[STEPS.index(name), 1:] -= 0.3
    assert found(lucky)["stalled"].evidence["fall"] < 0.001
    for name in STEPS[4:]:  # unseen, it looks like progress
        lucky._steps[STEPS.index(name)] = np.nan
    assert found(lucky) == {}


def test_baby_steps_stall_though_the_loss_falls() -> None:
    """Far from a minimum even a ten-thousandth of the way is much of the loss, for a while."""
    falling = quadratic(1e-4, steps=4000, start=30.0)
    assert falling.loss[-1] < 0.5 * falling.loss[0]
    assert "baby steps" in found(falling)["stalled"].message
    assert found(quadratic(2e-3, steps=400, start=30.0)) == {}
    for step in range(0, 4000, 8):  # an eighth of them lands: nobody stalls
        falling._steps[STEPS.index("alpha"), step] = -0.2
    assert found(falling) == {}


def test_a_loss_that_was_thrown_far_is_critical() -> None:
    """It has come back below its first value, but what the network knew is gone."""
    history = quadratic(1.8, start=4.0)
    assert found(history)["overshooting"].severity == "warning"
    history._steps[STEPS.index("loss"), 1] = 101 * history.loss[0]
    assert found(history)["overshooting"].severity == "critical"


def test_oscillating() -> None:
    loss = np.array([1.0, 0.5, 0.6, 0.4, 0.5, 0.3, 0.25, 0.2])
    steps = np.full((8, len(STEPS)), np.nan)
    steps[:, :4] = np.stack([loss, loss, np.ones(8), np.full(8, 0.3)], 1)
    finding = found(history_of(steps, [1] * 8))["oscillating"]
    assert finding.evidence["share"] == pytest.approx(2 / 7)
    assert finding.evidence["step"] == 2
    assert "from 0.3 to 0.1" in finding.advice
    steps[:, 0] = np.sort(loss)[::-1]
    assert found(history_of(steps, [1] * 8)) == {}
    assert found(history_of(steps[:4], [1] * 4)) == {}


@pytest.mark.parametrize(("rate", "kind"), [(1e-6, "stalled"), (0.1, None), (30.0, "overshooting")])
def test_a_training_says_so(rate: float, kind: str | None, capsys: Any) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(200, 8))
    target = (x[:, 0] + x[:, 1] > 0).astype(int)
    net = vegrad.MLP([8, 16, 2], loss="cross_entropy", seed=0)
    expected = pytest.warns(UserWarning, match=f"{kind}: ") if kind else nullcontext()
    with expected:
        history = net.fit(x, target, optimizer=vegrad.SGD(rate), epochs=8, batch_size=20, seed=0,
                          gauge_every=3)  # fmt: skip
    kinds = [finding.kind for finding in history.findings]
    assert kinds[:1] == ([kind] if kind else [])
    said = capsys.readouterr().err
    assert "epoch 8/8" in said
    assert "→" not in said  # advice comes with the warning alone


DEEP = [8] + [24] * 29 + [3]


def exploding(clip: Any = None) -> vegrad.History:
    """30 tanh layers, Glorot, full batch, a rate that is far too large."""
    rng = np.random.default_rng(1)
    x = rng.normal(size=(300, 8))
    target = np.argmax(x[:, :3], axis=1)
    net = vegrad.MLP(DEEP, loss="cross_entropy", seed=0)
    return net.fit(x, target, optimizer=vegrad.SGD(2.0, clip=clip), epochs=40, batch_size=300,
                   seed=0, gauge_every=1, progress=False, on_finding=lambda _: None)  # fmt: skip


def test_a_clip_saves_what_explodes(tmp_path: Path) -> None:
    loose, held = exploding(), exploding(clipping.GlobalNorm(0.05))
    assert loose.loss.max() > 3 * loose.loss[0]
    assert found(loose)["overshooting"].severity == "critical"
    assert held.loss[-1] < 0.8 * held.loss[0]
    assert held.clipped_share.max() == 1
    image = pytest.importorskip("matplotlib.image")
    sizes = set()
    for name, history in (("loose", loose), ("held", held)):
        history.plot_descent(tmp_path / f"{name}.png", name)
        pixels = image.imread(tmp_path / f"{name}.png")
        assert pixels.std() > 0.03
        sizes.add(pixels.tobytes())
    assert len(sizes) == 2


def test_a_descent_needs_looks(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = quadratic(0.5)
    history._steps[STEPS.index("step_length")] = np.nan
    with pytest.raises(ValueError, match="gauge_every=1"):
        history.plot_descent(tmp_path / "x.png")
    assert not (tmp_path / "x.png").exists()


def test_a_descent_of_a_run_that_ends_in_nan(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    history = quadratic(40.0, steps=30)  # 1e47
    for name in ("loss", "loss_after"):
        history._steps[STEPS.index(name), history.steps - 1] = np.nan
    history.plot_descent(tmp_path / "x.png")
    assert pytest.importorskip("matplotlib.image").imread(tmp_path / "x.png").std() > 0.03


def changed(history: vegrad.History, **columns: Any) -> vegrad.History:
    content = history.to_dict()
    for name, values in columns.items():
        content[name] = list(values)
    return vegrad.History.from_dict(content)


def test_a_step_uphill_is_no_overshoot() -> None:
    """Momentum, Adam and noise go uphill on a batch now and then, whatever the rate."""
    climbing = quadratic(2.1)
    assert "overshooting" in found(climbing)
    falling = np.linspace(8, 2, 40)
    uphill = changed(climbing, slope=np.abs(climbing.slope), loss=falling)
    assert found(uphill) == {}


def test_one_look_in_three_is_no_alarm() -> None:
    good = quadratic(0.3, start=4.0, every=16)
    looked = np.flatnonzero(~np.isnan(good.alpha))
    assert len(looked) == 3
    after, alpha = good.loss_after, good.alpha
    after[looked[1]], alpha[looked[1]] = 1.2 * good.loss[looked[1]], 1.4
    assert found(changed(good, loss_after=after, alpha=alpha)) == {}
    enough = quadratic(0.3, start=4.0, every=4)  # ten, of which half climb
    looked, after = np.flatnonzero(~np.isnan(enough.alpha)), enough.loss_after
    after[looked[::2]] = 1.2 * enough.loss[looked[::2]]
    assert found(changed(enough, loss_after=after))["overshooting"].severity == "warning"


def test_no_rate_that_is_not_possible() -> None:
    """A parabola through a loss that rose a millionfold leads next to nowhere."""
    wild = quadratic(2.1)
    finding = found(changed(wild, loss_after=1e7 * wild.loss))["overshooting"]
    assert "wanted" not in finding.evidence
    assert finding.edit is None


def test_updates_that_are_large_and_help_little() -> None:
    history = quadratic(1.0, start=0.4)  # from 2.08 to 2
    flat = changed(history, alpha=np.full(40, 0.1), update_log2=[[-3.0]] * 40)
    finding = found(flat)["overshooting"]
    assert finding.evidence["wanted"] == pytest.approx(1 / 1.1)
    usual = changed(history, alpha=np.full(40, 0.1), update_log2=[[-9.0]] * 40)
    assert "overshooting" not in found(usual)


def test_a_swing_near_the_lowest_loss_is_none() -> None:
    loss = np.array([1.0, 0.5, 0.1, 0.01, 0.02, 0.005, 0.012, 0.003, 0.009])
    steps = np.full((9, len(STEPS)), np.nan)
    steps[:, :4] = np.stack([loss, loss, np.ones(9), np.full(9, 0.3)], 1)
    assert found(history_of(steps, [1] * 9)) == {}
    steps[5:, 0] += [0.3, 0.0, 0.3, 0.0]
    assert "oscillating" in found(history_of(steps, [1] * 9))


def deep(seed: int = 0) -> vegrad.MLP:
    """Return a network that explodes, on which a rate of 0.1 is far too high."""
    sizes = [2, *[32] * 15, 3]
    more = {"activation": "relu", "init": "normal", "sigma_w": 2.0, "loss": "cross_entropy"}
    return vegrad.MLP(sizes, seed=seed, **more)  # type: ignore[arg-type]


def fitted(net: vegrad.MLP, optimizer: Any, epochs: int = 10, every: int = 10) -> vegrad.History:
    more = {"epochs": epochs, "batch_size": 32, "seed": 0, "progress": False, "on_finding": None}
    return net.fit(*spiral(), optimizer=optimizer, gauge_every=every, **more)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_limit_that_is_advised_after_an_explosion_helps(seed: int) -> None:
    blown = found(fitted(deep(seed), vegrad.SGD(0.1)))
    over = blown["overshooting"]
    assert over.evidence["step"] == 0  # it climbs from there on end
    assert blown["nonfinite"].cause == "learning-rate-high"
    limit = float(over.advice.split("global norm at ")[1].split(",")[0])
    net = deep(seed)
    history = fitted(net, vegrad.SGD(0.1, clip=clipping.GlobalNorm(limit)), 30)
    x, label = spiral()
    assert np.mean(net.forward(x).argmax(1) == label) > 0.8  # unclipped it is lost
    assert history.findings == ()


def test_adam_is_advised_no_limit_where_its_first_steps_are_too_long() -> None:
    over = found(fitted(deep(), vegrad.Adam(0.5)))["overshooting"]
    assert "global norm" not in over.advice


def test_single_steps_that_are_left_out_are_not_lost() -> None:
    history = quadratic(0.3, start=4.0)
    columns = {name: getattr(history, name).copy() for name in STEPS}
    columns["gradient_norm"][[5, 39]] = np.inf
    steps = np.stack(list(columns.values()), axis=1)
    assert "nonfinite" not in found(history_of(steps, [1] * 40))
    steps[-3:, 1] = np.nan
    assert found(history_of(steps, [1] * 40))["nonfinite"].evidence["count"] == 3


@pytest.mark.parametrize("optimizer", [vegrad.SGD, vegrad.Adam])
def test_a_rate_of_0_is_named_and_a_tiny_one_is_not_too_high(optimizer: Any) -> None:
    for seed in range(3):
        net = vegrad.MLP([2, 32, 32, 3], activation="tanh", loss="cross_entropy", seed=seed)
        (still,) = fitted(net, optimizer(0.0)).findings
        assert (still.kind, still.cause) == ("stalled", "learning-rate-low")
        assert still.message.startswith("the learning rate is 0")
        for rate in (1e-9, 1e-8):
            (tiny,) = fitted(net, optimizer(rate)).findings
            assert (tiny.kind, tiny.cause) == ("stalled", "learning-rate-low")
            assert "fell by" not in tiny.message  # but for noise


def test_a_loss_that_has_risen_blames_the_step_that_led_there() -> None:
    blown = found(fitted(deep(), vegrad.SGD(0.1, clip=clipping.GlobalNorm(220.0))))
    assert blown["overshooting"].evidence["step"] == 0
    unseen = found(fitted(deep(), vegrad.SGD(0.1), every=0))["overshooting"]
    assert unseen.evidence["step"] == 0
    assert "global norm" not in unseen.advice  # its own may be that of a step that was too long

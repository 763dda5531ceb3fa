"""The rules that learn, held to their authors' code on long random series, at limits that bite."""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest
from vegrad import clipping
from vegrad.clipping import percentiles

from tests import reference_clipping as reference
from tests import reference_rules as published

STEPS = 3000


def norms(seed: int, scale: float = 1.0) -> Iterator[float]:
    """Norms that sink slowly as in a training, with a spike at one step in fifty."""
    rng = np.random.default_rng(seed)
    for step in range(STEPS):
        size = rng.lognormal(0.5 - step / STEPS, 0.3)
        yield float(scale * size * (rng.pareto(1.0) + 3 if rng.random() < 0.02 else 1))


def after(rule: clipping.Rule, norm: float) -> float:
    said = rule.apply_(np.array([norm]))
    assert said.clipped == (said.norm_after < norm)
    return said.norm_after


ZCLIPS: dict[str, dict[str, Any]] = {
    "default": {},
    "a cap that bites": {"max_grad_norm": 0.8},
    "no cap": {"max_grad_norm": None},
    "mean": {"clip_option": "mean", "max_grad_norm": None},
    "mean and cap": {"clip_option": "mean", "max_grad_norm": 1.2},
    "percentile": {"mode": "percentile", "max_grad_norm": None},
    "percentile and cap": {"mode": "percentile", "max_grad_norm": 1.0, "z_threshold": 1.0},
    "harder": {"clip_factor": 0.5, "max_grad_norm": 2.0, "z_threshold": 1.5},
    "spikes forgotten": {"skip_update_on_spike": True, "max_grad_norm": 1.0},
    "percentile, spikes forgotten": {"mode": "percentile", "skip_update_on_spike": True},
    "quick": {"alpha": 0.5, "warmup": 1, "max_grad_norm": 3.0},
}


@pytest.mark.parametrize("settings", ZCLIPS.values(), ids=list(ZCLIPS))
def test_zclip(settings: dict[str, Any]) -> None:
    mine, theirs = clipping.ZClip(**settings), published.ZClip(**settings)
    clipped = []
    for step, norm in enumerate(norms(1)):
        want = min(norm, theirs.limit(norm))
        assert after(mine, norm) == pytest.approx(want, rel=1e-9), f"step {step}"
        clipped.append(want < norm)
    assert 10 < sum(clipped) < STEPS - 10
    if settings.get("max_grad_norm", 1.0) is not None:
        assert mine.mean != pytest.approx(mine.max_grad_norm, rel=1e-3)  # it knows no cap


def test_zclip_caps_every_step() -> None:
    """After the warm-up as in it: a norm of 3 that is no outlier is brought down to the cap."""
    rule = clipping.ZClip(warmup=3, max_grad_norm=1.0)
    assert [after(rule, norm) for norm in (2.9, 3.0, 3.1, 3.0, 3.0)] == pytest.approx([1.0] * 5)
    assert rule.mean == pytest.approx(3.0)


@pytest.mark.parametrize("settings", ZCLIPS.values(), ids=list(ZCLIPS))
@pytest.mark.parametrize("scale", [1e-200, 1e200])
def test_zclip_at_any_scale(scale: float, settings: dict[str, Any]) -> None:
    """Norms and cap in another unit: the same steps, though no square is a float64."""
    cap = settings.get("max_grad_norm", 1.0)
    other = settings | {"max_grad_norm": None if cap is None else cap * scale}
    if scale < 1:  # where the 1e-6 is all of the denominator
        other |= {"z_threshold": settings.get("z_threshold", 2.5) * scale * 1e6}
    rule = clipping.ZClip(**other)
    for norm in norms(2, scale):
        assert 0 < after(rule, norm) <= norm
    assert rule.mean is not None
    assert rule.deviation is not None
    assert 0 < rule.mean / scale < 10
    assert 0 < rule.deviation / scale < 10


def test_zclip_at_a_large_scale_is_zclip() -> None:
    mine = clipping.ZClip(max_grad_norm=None)
    plain = clipping.ZClip(max_grad_norm=None)
    for norm in norms(3):
        large = after(mine, norm * 2.0**660)
        assert large * 2.0**-660 == pytest.approx(after(plain, norm), rel=1e-4)  # but for the 1e-6


@pytest.mark.parametrize("percentile", [0, 10, 50, 97.3, 100])
def test_autoclip(percentile: float) -> None:
    mine, theirs = clipping.AutoClip(percentile), published.AutoClip(percentile)
    for step, norm in enumerate(norms(4)):
        want = min(norm, theirs.limit(norm))
        assert after(mine, norm) == pytest.approx(want, rel=1e-12), f"step {step}"


def test_autoclip_after_more_norms_than_it_keeps() -> None:
    mine, theirs = clipping.AutoClip(30), published.AutoClip(30)
    rng = np.random.default_rng(5)
    for step, norm in enumerate(rng.lognormal(0, 2, percentiles.EXACT + 2000).tolist()):
        if step < percentiles.EXACT - 20:
            theirs.history.append(norm)
            after(mine, norm)
            continue
        want = min(norm, theirs.limit(norm))
        exact = step < percentiles.EXACT
        assert after(mine, norm) == pytest.approx(want, rel=1e-12 if exact else 2.0**-11)
    assert sum(mine.counts) == step + 1


@pytest.mark.parametrize("percentile", [0.0, 3.0, 50.0, 99.0, 100.0])
def test_percentiles_of_any_numbers(percentile: float) -> None:
    rng = np.random.default_rng(6)
    numbers = np.concatenate(
        [10.0 ** rng.uniform(-320, 308, 6000), rng.lognormal(0, 0.1, 6000), np.zeros(300)]
    )
    rng.shuffle(numbers)
    ours = percentiles.Percentiles()
    for place, number in enumerate(numbers.tolist()):
        if place % 211 == 0:
            want = float(np.percentile(numbers[: place + 1], percentile))
            got = ours.with_one_more(percentile, number)
            off = 1e-13 if place < percentiles.EXACT else 2.0**-11
            assert got == pytest.approx(want, rel=off, abs=2.3e-308)
        ours.add(number)
    assert len(ours) == len(numbers)
    again = percentiles.Percentiles(ours.values, ours.counts)
    assert (again.values, again.counts) == (ours.values, ours.counts)
    assert again.with_one_more(percentile, 1.0) == ours.with_one_more(percentile, 1.0)


ADAGCS: dict[str, tuple[float, float, int, float]] = {
    "default": (1.04, 0.99, 100, 1.0),
    "a limit that bites": (1.04, 0.9, 20, 0.3),
    "from the first step": (1.5, 0.95, 0, 1.0),
    "below one": (0.98, 0.5, 10, math.inf),
    "below one, from the first step": (0.9, 0.5, 0, 1.0),
}


@pytest.mark.parametrize("settings", ADAGCS.values(), ids=list(ADAGCS))
def test_adagc_with_buffers_that_come_and_go(settings: tuple[float, float, int, float]) -> None:
    """One is often missing, and one comes only after two hundred steps."""
    mine, theirs = clipping.AdaGC(*settings), published.AdaGC(*settings)
    rng = np.random.default_rng(7)
    clipped = 0
    for step in range(600):
        places = [
            p for p in range(4) if not ((p == 1 and rng.random() < 0.4) or p == 3 > step / 70)
        ]
        exact = [rng.lognormal(0, 0.5) * rng.standard_normal(3) for _ in places]
        want = reference.clip(theirs(exact, ["float64"] * len(places), places), exact)
        grads: list[np.ndarray | None] = [None] * 4
        for place, grad in zip(places, exact, strict=True):
            grads[place] = grad.copy()
        said = mine.apply_(grads)
        assert said.clipped == want.clipped, f"step {step}"
        for place, grad in zip(places, want.grads, strict=True):
            np.testing.assert_allclose(grads[place], grad, rtol=1e-9)
        clipped += said.clipped
    assert clipped > 50
    assert mine.averages == pytest.approx({str(p): g for p, g in theirs.gamma.items()}, rel=1e-9)


SPIKES: dict[str, tuple[float, int, int]] = {
    "default": (6, 128, 64),
    "sensitive": (2, 30, 20),
    "a long wait": (3, 10, 50),
}


@pytest.mark.parametrize("losses", [False, True])
@pytest.mark.parametrize("settings", SPIKES.values(), ids=list(SPIKES))
def test_skip_spike(settings: tuple[float, int, int], losses: bool) -> None:
    mine, theirs = clipping.SkipSpike(*settings), published.SkipSpike(*settings)
    rng = np.random.default_rng(8)
    skipped = 0
    for step, norm in enumerate(norms(9)):
        loss = float(rng.standard_normal() * (20 if rng.random() < 0.01 else 1)) if losses else None
        grad = np.array([norm])
        said = mine.apply_(grad, loss=loss)
        assert said.skipped == theirs.skips(norm, loss), f"step {step}"
        assert (said.norm, grad[0], said.clipped) == (norm, norm, False)
        skipped += said.skipped
    assert 10 < skipped < STEPS / 5


FAST = partial(clipping.SkipSpike, 3, 10, 5)


def test_skip_spike_of_norms_that_are_all_the_same() -> None:
    """A deviation of 0 and a mean that is rounded leave nothing out; a rise does."""
    for size in (0.1, 1 / 3, 1e-300, 1e200, 0.0):
        rule = FAST()
        assert not any(rule.apply_(np.array([size])).skipped for _ in range(50))
        assert rule.apply_(np.array([size * 1.01 + 1e-308])).skipped
        assert rule.apply_(np.array([1e300 + size * 100])).skipped


def test_skip_spike_gets_used_to_higher_norms() -> None:
    rule = FAST()
    rng = np.random.default_rng(10)
    skipped = [
        rule.apply_(np.array([rng.normal(size, 0.1)])).skipped for size in [1.0] * 40 + [50.0] * 40
    ]
    assert skipped[40]
    assert not any(skipped[:40])
    assert not any(skipped[45:])


@pytest.mark.parametrize("loss", [math.nan, math.inf, -math.inf])
def test_skip_spike_and_a_loss_that_is_not_finite(loss: float) -> None:
    """It is left out unless it is -inf, which is not above anything, and never remembered."""
    rule = FAST()
    assert not rule.apply_(np.array([1.0]), loss=loss).skipped  # before `after`
    for step in range(20):
        rule.apply_(np.array([1.0 + step % 2]), loss=1.0)
    assert rule.apply_(np.array([1.0]), loss=loss).skipped == (loss != -math.inf)
    assert rule.losses == [1.0] * 10
    assert not rule.apply_(np.array([1.0]), loss=1.0).skipped


def test_skip_spike_without_a_loss_or_with_one_at_times() -> None:
    rule = FAST()
    for step in range(12):
        rule.apply_(np.array([1.0 + step % 2]), loss=1.0 if step % 4 == 0 else None)
    assert (len(rule.norms), len(rule.losses)) == (10, 3)
    assert not rule.apply_(np.array([1.0]), loss=100.0).skipped  # the fifth is the first judged
    assert rule.apply_(np.array([1.0]), loss=1e6).skipped


@pytest.mark.parametrize("loss", ["1", [1.0], np.ones(2), True])
def test_a_loss_that_is_none(loss: Any) -> None:
    rule, grad = FAST(), np.array([3.0])
    with pytest.raises(TypeError, match="loss must be a real number"):
        rule.apply_(grad, loss=loss)
    assert rule.norms == []

"""Trainings that a signal ends: what they leave agrees, whenever it comes."""

import os
import signal
import threading
from itertools import count
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping
from vegrad.networks import training

from tests.networks.test_fit import fit, make, weights


@pytest.mark.skipif(os.name != "posix", reason="signals")
def test_a_signal_is_answered_within_an_epoch() -> None:
    """A long epoch is few calls of the core, which looks for signals between steps."""
    rng = np.random.default_rng(0)
    x, target = rng.normal(size=(900_000, 6)), rng.integers(0, 3, 900_000)
    net, plain = make(), make()
    held = clipping.GlobalNorm(0.5)
    timer = threading.Timer(0.05, signal.raise_signal, [signal.SIGINT])

    def rate(step: int) -> float:
        """Start the timer when the training is well under way, however long that took."""
        if step == 1000:
            timer.start()
        return 1e-3

    with pytest.raises(KeyboardInterrupt) as stopped:
        net.fit(
            x,
            target,
            optimizer=vegrad.AdamW(rate, clip=held),
            epochs=9,
            batch_size=8,
            seed=5,
            progress=False,
            gauge_every=None,
        )
    history = stopped.value.history  # type: ignore[attr-defined]
    assert history.epochs == 0
    assert 0 < history.steps < 112_500
    order = np.random.default_rng(5).permutation(len(x))[: 8 * history.steps]
    plain.fit(
        x[order],
        target[order],
        optimizer=vegrad.AdamW(clip=held),
        epochs=1,
        batch_size=8,
        shuffle=False,
        progress=False,
        gauge_every=None,
    )
    assert weights(net) == weights(plain)  # as the last step left them


@pytest.mark.parametrize(
    ("owner", "name", "call"), [(training, "_columns", 1), (clipping.GlobalNorm, "prepare", 2)]
)
def test_a_signal_beside_the_core_loses_no_step(
    owner: Any, name: str, call: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may come when the core has taken steps that the history does not have yet."""
    plain, calls = getattr(owner, name), count(1)

    def cut(*given: Any) -> Any:
        if next(calls) == call:
            raise KeyboardInterrupt
        return plain(*given)

    cut_off = vegrad.AdamW(0.01, clip=clipping.GlobalNorm(1e9))
    monkeypatch.setattr(owner, name, cut)
    with pytest.raises(KeyboardInterrupt) as stopped:
        fit(make(), cut_off)
    monkeypatch.undo()
    history = stopped.value.history  # type: ignore[attr-defined]
    assert history.steps == cut_off.steps > 0
    whole = fit(make(), vegrad.AdamW(0.01, clip=clipping.GlobalNorm(1e9)))
    np.testing.assert_array_equal(history.loss, whole.loss[: history.steps])

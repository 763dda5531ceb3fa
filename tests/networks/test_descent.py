"""The loss along the steps of a training, held to what the network itself says."""

import numpy as np
import pytest
import vegrad
from vegrad.clipping import GlobalNorm, Norm
from vegrad.networks.descent import descend

RNG = np.random.default_rng(0)
X = RNG.standard_normal((60, 5)).astype(np.float32)
Y = RNG.integers(0, 3, 60)


def network() -> vegrad.MLP:
    return vegrad.MLP([5, 16, 3], activation="tanh", loss="cross_entropy", dtype="float64", seed=1)


def test_a_step_is_what_training_does_and_its_loss_what_the_network_says() -> None:
    net, same = network(), network()
    found = descend(net, X, Y, optimizer=vegrad.SGD(0.5), steps=6)
    history = same.fit(X, Y, optimizer=vegrad.SGD(0.5), epochs=6, batch_size=60, shuffle=False,
                       gauge_every=1, progress=False)  # fmt: skip
    np.testing.assert_allclose(found.loss[:-1], history.loss, rtol=1e-9)
    np.testing.assert_allclose(found.length, history.step_length, rtol=1e-9)
    np.testing.assert_allclose([look.alpha for look in found.looks], history.alpha, rtol=1e-5)
    assert found.loss[-1] == pytest.approx(same.loss(X, Y), rel=1e-12)
    middle = network()
    for name, one in middle.parameters.items():
        one[...] = network().parameters[name]
    middle.backward(X, Y)
    for name, one in middle.parameters.items():
        one -= 0.5 * 0.5 * middle.gradients[name]
    half = np.interp(0.5, found.looks[0].places, found.looks[0].loss)
    assert half == pytest.approx(middle.loss(X, Y), rel=1e-9)
    share = np.bincount(Y) / len(Y)
    assert found.guess == pytest.approx(-(share * np.log(share)).sum())


def test_batches_are_seen_over_the_loss_of_all_rows() -> None:
    net = network()
    found = descend(net, X, Y, optimizer=vegrad.Adam(0.01), steps=20, batch_size=7, looks=5)
    assert len(found.looks) == 5
    assert len(found.loss) == 21
    assert found.whole
    assert found.loss[-1] == pytest.approx(net.loss(X, Y), rel=1e-12)
    for look in found.looks:
        assert look.loss[-1] == pytest.approx(found.loss[look.step + 1], rel=1e-9)


def test_without_the_clip_only_where_it_just_shortens() -> None:
    clipped = descend(network(), X, Y, optimizer=vegrad.SGD(1.0, clip=GlobalNorm(0.05)), steps=2)
    look = clipped.looks[0]
    assert clipped.coefficient[0] < 1
    assert look.beyond[0] == 1
    assert look.beyond[-1] == pytest.approx(min(1 / clipped.coefficient[0], 3))
    assert look.ghost[0] == pytest.approx(look.loss[-1], rel=1e-9)
    for optimizer in (
        vegrad.SGD(1.0, momentum=0.9, clip=GlobalNorm(0.05)),
        vegrad.SGD(1.0, clip=Norm(0.01)),
        vegrad.Adam(0.1, clip=GlobalNorm(0.05)),
    ):
        found = descend(network(), X, Y, optimizer=optimizer, steps=2)
        assert found.coefficient[0] < 1
        assert not len(found.looks[0].beyond)


def test_a_descent_ends_where_nothing_is_finite() -> None:
    optimizer = vegrad.SGD(1e38, clip=GlobalNorm(np.inf))
    net = vegrad.MLP([5, 16, 3], activation="relu", loss="cross_entropy", seed=1)
    found = descend(net, X, Y, optimizer=optimizer, steps=30)
    assert len(found.length) < 30
    assert len(found.loss) == len(found.length) + 1

"""Arguments of optimizers that change between steps, copies, pickles and schedules."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping


def steps(optimizer: vegrad.optim.Optimizer, weight: np.ndarray, count: int = 3) -> np.ndarray:
    for step in range(count):
        optimizer.step([weight], [np.random.default_rng(step).standard_normal(weight.shape)])
    return weight


@pytest.mark.parametrize(
    ("made", "name", "value", "wanted"),
    [
        (lambda: vegrad.AdamW(0.1, weight_decay=0.5), "weight_decay", 0, {"weight_decay": 0.0}),
        (lambda: vegrad.Adam(0.1), "betas", [0.5, 0.6], {"betas": (0.5, 0.6)}),
        (lambda: vegrad.Adam(0.1), "eps", 0.1, {"eps": 0.1}),
        (lambda: vegrad.Adam(0.1), "amsgrad", True, {"amsgrad": True}),
        (lambda: vegrad.Lion(0.1), "maximize", True, {"maximize": True}),
        (lambda: vegrad.SGD(0.1, 0.9), "nesterov", True, {"nesterov": True}),
        (lambda: vegrad.SGD(0.1, 0.9), "momentum", 0.5, {"momentum": 0.5}),
        (lambda: vegrad.SGD(0.1, 0.9), "dampening", 0.5, {"dampening": 0.5}),
        (lambda: vegrad.SGD(0.1, 0.9), "lr", 1, {"lr": 1.0}),
    ],
)
def test_an_argument_counts_from_the_next_step(
    made: Callable[[], vegrad.optim.Optimizer], name: str, value: Any, wanted: dict[str, Any]
) -> None:
    changed, whole = made(), made()
    one, other = steps(changed, np.ones(5)), steps(whole, np.ones(5))
    setattr(changed, name, value)
    assert getattr(changed, name) == wanted[name]
    state = whole.state_dict()
    if name == "amsgrad":
        for kept in state["state"].values():
            kept["largest_square"] = np.zeros(5)
    state["arguments"] |= wanted
    whole.load_state_dict(state)
    assert changed.steps == 3
    assert repr(changed) == repr(whole)
    assert steps(changed, one).tobytes() == steps(whole, other).tobytes()
    assert steps(made(), np.ones(5), 6).tobytes() != one.tobytes()


def test_momentum_that_is_switched_on_begins_with_the_next_gradient() -> None:
    optimizer, weight = vegrad.SGD(1.0), np.zeros(1)
    optimizer.step(weight, np.ones(1))
    optimizer.momentum, optimizer.dampening = 0.5, 0.5
    optimizer.step(weight, np.ones(1))  # the gradient as it stands
    assert weight == -2.0
    optimizer.step(weight, np.ones(1))  # 0.5 + 0.5
    assert weight == -3.0


@pytest.mark.parametrize(
    ("name", "bad", "error", "said"),
    [
        ("lr", -1, ValueError, "lr must be at least 0, not -1"),
        ("lr", float("nan"), ValueError, "lr must be at least 0, not nan"),
        ("lr", float("inf"), ValueError, "lr must be finite, not inf"),
        ("lr", "x", TypeError, "lr must be a real number, not str"),
        (
            "clip",
            3,
            TypeError,
            "clip must be a rule of vegrad.clipping, as GlobalNorm.1.0., or None, not int",
        ),
        ("momentum", -1, ValueError, "momentum must be at least 0"),
        ("momentum", 0, ValueError, "nesterov must come with a momentum"),
        ("nesterov", 1, TypeError, "nesterov must be True or False"),
        ("weight_decy", 0.1, AttributeError, "weight_decy"),
        ("betas", (0.9, 0.9), AttributeError, "betas"),
    ],
)
def test_arguments_are_checked_when_they_change(
    name: str, bad: Any, error: type[Exception], said: str
) -> None:
    optimizer = vegrad.SGD(0.1, 0.9, nesterov=True)
    before = repr(optimizer)
    with pytest.raises(error, match=said):
        setattr(optimizer, name, bad)
    assert repr(optimizer) == before


COPIES = [copy.copy, copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))]


@pytest.mark.parametrize("copied", COPIES, ids=["copy", "deepcopy", "pickle"])
@pytest.mark.parametrize("kind", [vegrad.SGD, vegrad.Adam, vegrad.AdamW, vegrad.Lion])
def test_copies_have_a_state_of_their_own(copied: Any, kind: type[vegrad.optim.Optimizer]) -> None:
    made = kind(vegrad.optim.cosine(0.1, 10, warmup=2), clip=clipping.AutoClip(50))
    weight = steps(made, np.ones(5))
    other, second = weight.copy(), copied(made)
    before = repr(made.state_dict())
    assert repr(second.state_dict()) == before
    assert second.lr == made.lr
    steps(second, other)
    assert repr(made.state_dict()) == before
    assert steps(made, weight).tobytes() == other.tobytes()


def test_schedules_at_their_ends() -> None:
    cosine, warmup = vegrad.optim.cosine, vegrad.optim.warmup
    assert [cosine(1.0, 10, warmup=10)(step) for step in (0, 9, 10, 11)] == [0.1, 1.0, 0.0, 0.0]
    assert [cosine(1.0, 10, final=0.5)(step) for step in (0, 10, 99)] == [1.0, 0.5, 0.5]
    assert cosine(1.0, 0)(0) == 0.0
    assert warmup(1.0, 0)(0) == 1.0
    assert repr(cosine(1e-3, 10, warmup=2)) == "cosine(0.001, 10, warmup=2)"
    assert repr(warmup(1e-3, 10)) == "warmup(0.001, 10)"
    for rate in (cosine(1.0, 10), warmup(1.0, 10)):
        with pytest.raises(ValueError, match="step must be at least 0, not -1"):
            rate(-1)
    with pytest.raises(ValueError, match="lr must be finite, not inf"):
        cosine(float("inf"), 10)


def test_a_state_whose_names_do_not_match_is_refused_at_the_first_step() -> None:
    made, weights = vegrad.Adam(0.1), {"a": np.ones(3), "b": np.ones(2)}
    made.step(weights, {"a": np.ones(3), "b": np.ones(2)})
    fresh = vegrad.Adam(0.1)
    fresh.load_state_dict(pickle.loads(pickle.dumps(made.state_dict())))
    for _ in range(2):
        with pytest.raises(ValueError, match=r"such as 'a', but the first is 'model\.a'"):
            fresh.step({"model.a": np.ones(3)}, {"model.a": np.ones(3)})
    # One that matches is enough: parameters come and go.
    fresh.step({"b": np.ones(2), "c": np.ones(1)}, {"b": np.ones(2), "c": np.ones(1)})
    fresh.step({"d": np.ones(1)}, {"d": np.ones(1)})


def test_a_clipped_can_be_pickled() -> None:
    clipped = vegrad.clip_by_global_norm_([np.ones(3), np.ones(1)], 1.0)
    again = pickle.loads(pickle.dumps(clipped))
    assert repr(again) == repr(clipped)
    assert again.norms.tobytes() == clipped.norms.tobytes()
    assert again.dtypes == clipped.dtypes


def test_without_a_clip_nothing_is_counted() -> None:
    clipped = vegrad.SGD(0.1).step(np.ones(2), np.array([np.nan, 1.0]))
    assert clipped.nonfinite == 0
    assert repr(clipped).startswith("Clipped(norm=nan, norm_after=nan, coefficient=1, ")

"""States of rules and optimizers: what they hold, and what is refused when one is loaded."""

import json
import math
import pickle
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping


def stepped(optimizer: Any, shape: tuple[int, ...] = (2, 3)) -> Any:
    weights = np.ones(shape)
    for step in range(3):
        optimizer.step({"a": weights}, {"a": np.full(shape, 1.0 + step)})
    return optimizer


# --------------------------------------------------------------------------------------- optimizers


@pytest.mark.parametrize("kind", [vegrad.Adam, vegrad.AdamW, vegrad.Lion, vegrad.SGD])
@pytest.mark.parametrize("shape", [(2, 3), (), (0, 3), (2, 1, 3)])
def test_arrays_have_the_shapes_of_the_weights(kind: Any, shape: tuple[int, ...]) -> None:
    more = {"momentum": 0.9} if kind is vegrad.SGD else {}
    state = stepped(kind(0.1, **more), shape).state_dict()
    arrays = {name: one for name, one in state["state"]["a"].items() if name != "step"}
    assert {one.shape for one in arrays.values()} == {shape}
    fresh = kind(0.1, **more)
    fresh.load_state_dict(pickle.loads(pickle.dumps(state)))
    fresh.step({"a": np.ones(shape)}, {"a": np.ones(shape)})


def test_flat_arrays_of_version_0_1_0_are_taken() -> None:
    state = stepped(vegrad.AdamW(0.1)).state_dict()
    kept = state["state"]["a"]
    state["state"]["a"] = kept | {name: kept[name].ravel() for name in ("mean", "square")}
    fresh = vegrad.AdamW(0.1)
    fresh.load_state_dict(state)
    assert fresh.state_dict()["state"]["a"]["mean"].shape == (6,)
    fresh.step({"a": np.ones((2, 3))}, {"a": np.ones((2, 3))})
    assert fresh.state_dict()["state"]["a"]["mean"].shape == (2, 3)
    with pytest.raises(ValueError, match=r"must have shape \(2, 3\)"):
        fresh.step({"a": np.ones(6)}, {"a": np.ones(6)})


@pytest.mark.parametrize("order", ["C", "F"])
def test_elements_stay_with_their_weights(order: Any) -> None:
    weights = np.ones((2, 3), order=order)
    gradient = np.arange(6.0).reshape(2, 3)
    optimizer = vegrad.SGD(0.1, 0.9)
    optimizer.step(weights, gradient)
    np.testing.assert_array_equal(optimizer.state_dict()["state"]["0"]["momentum"], gradient)


@pytest.mark.parametrize("optimizer", [vegrad.AdamW(), vegrad.SGD(), vegrad.SGD(0.1, 0.9)])
def test_another_shape_is_refused(optimizer: Any) -> None:
    stepped(optimizer)
    weights = np.ones((3, 2))
    said = r'params\["a"\] must have shape \(2, 3\) and float64 as in the steps before, not shape'
    with pytest.raises(ValueError, match=said + r" \(3, 2\) and float64"):
        optimizer.step({"a": weights}, {"a": np.ones((3, 2))})
    with pytest.raises(ValueError, match=said + r" \(2, 3\) and float32"):
        optimizer.step({"a": np.ones((2, 3), np.float32)}, {"a": np.ones((2, 3))})
    assert (weights == 1).all()


def put(*path: Any) -> Callable[[Any], None]:
    """Return what sets an entry of a state."""

    def change(state: Any) -> None:
        for name in path[:-2]:
            state = state[name]
        state[path[-2]] = path[-1]

    return change


def negative(state: Any) -> None:
    state["state"]["a"]["square"][1, 2] = -1e-30


BROKEN: list[tuple[Callable[[Any], None], str]] = [
    (negative, "the state of a must have no negative number in square, a mean of squares"),
    (put("state", "a", "step", 10**19), "have a step from 0 to 2^63 - 1, not 10000000000000000000"),
    (put("state", "a", "step", -1), "the state of a must have a step from 0 to 2^63 - 1, not -1"),
    (put("state", "a", "step", 1.5), "the state of a must have an integer as step, not float"),
    (put("state", "a", "step", True), "the state of a must have an integer as step, not bool"),
    (put("state", "a", "squares", np.ones((2, 3))), "the state of a must not have 'squares'"),
    (put("state", "a", "mean", np.ones(6)), "the state of a must have arrays of one dtype and"),
    (put("state", "a", "mean", np.ones((2, 3), np.float32)), "arrays of one dtype and shape"),
    (put("state", "a", "mean", np.ones((2, 3), int)), "an array of float32 or float64 as mean"),
    (put("state", "a", [1, 2]), "the state of a must be a dictionary, not list"),
    (put("state", "a", {"mean": np.ones(2), "step": 1}), "the state of a must have square"),
    (put("momenta", {}), "state must have optimizer, arguments, steps, state, clip only, not mom"),
    (put("steps", 10**19), "steps must be at most 9223372036854775807, not 10000000000000000000"),
]


@pytest.mark.parametrize(("change", "said"), BROKEN, ids=[said for _, said in BROKEN])
def test_what_no_optimizer_can_have_had(change: Callable[[Any], None], said: str) -> None:
    state = stepped(vegrad.AdamW(0.1)).state_dict()
    change(state)
    fresh = vegrad.AdamW(0.1)
    with pytest.raises(ValueError, match=re.escape(said)):
        fresh.load_state_dict(state)
    assert fresh.steps == 0
    assert fresh.state_dict()["state"] == {}


def test_what_training_can_lead_to_is_loaded() -> None:
    """NaN among the squares, and a count of steps set back (Adam on Local Time, 2024)."""
    state = stepped(vegrad.AdamW(0.1)).state_dict()
    state["state"]["a"]["square"][0, 0] = math.nan
    state["state"]["a"]["step"] = 0
    fresh = vegrad.AdamW(0.1)
    fresh.load_state_dict(state)
    assert repr(fresh.state_dict()) == repr(state)


def test_a_schedule_has_to_be_given_again() -> None:
    schedule = vegrad.optim.cosine(5e-2, 100)
    state = stepped(vegrad.AdamW(schedule)).state_dict()
    fresh = vegrad.AdamW()
    with pytest.raises(ValueError, match=r"its lr was a function, and the optimizer's is 0\.001: "):
        fresh.load_state_dict(state)
    assert fresh.steps == 0
    for lr in (schedule, lambda step: 1e-3):
        again = vegrad.AdamW(lr)
        again.load_state_dict(state)
        assert (again.lr, again.steps) == (lr, 3)


@pytest.mark.parametrize("schedule", [vegrad.optim.cosine(0.1, 10), vegrad.optim.warmup(0.1, 10)])
def test_steps_of_a_schedule_are_integers(schedule: Any) -> None:
    with pytest.raises(TypeError, match="step must be an integer, not float"):
        schedule(1.5)
    assert schedule(np.int64(3)) == schedule(3)


# -------------------------------------------------------------------------------------------- rules


@pytest.mark.parametrize(
    "rule",
    [
        clipping.Norm(1.0, ord=math.inf),
        clipping.GlobalNorm(math.inf),
        clipping.Value(np.float32("inf")),
        clipping.AdaGC(max_norm=math.inf),
        clipping.ZClip(max_grad_norm=None),
        clipping.SkipSpike(math.inf),
    ],
)
def test_states_of_rules_are_plain_json(rule: Any) -> None:
    rule.apply_([np.ones(3), np.ones(2)])
    state = json.loads(json.dumps(rule.state_dict(), allow_nan=False))
    fresh = type(rule)(0.5) if isinstance(rule, clipping.Norm | clipping.Value) else None
    fresh = fresh or type(rule)(*([0.5] if isinstance(rule, clipping.GlobalNorm) else []))
    fresh.load_state_dict(state)
    assert repr(fresh) == repr(rule)
    assert fresh.state_dict() == rule.state_dict()


@pytest.mark.parametrize("name", ["maxnorm", "max_norms", "rule", "Nonfinite"])
def test_misspelt_arguments_of_rules(name: str) -> None:
    rule = clipping.GlobalNorm(1.0)
    with pytest.raises(AttributeError, match=f"GlobalNorm has no argument {name}"):
        setattr(rule, name, 0.1)
    with pytest.raises(AttributeError, match=r"maxnorm \(did you mean max_norm\?\)"):
        rule.maxnorm = 0.1  # type: ignore[attr-defined]
    rule.max_norm = np.float32(0.5)
    assert rule.max_norm == 0.5


def test_unknown_keys_of_a_rule() -> None:
    rule = clipping.ZClip()
    with pytest.raises(ValueError, match="only, not variance"):
        rule.load_state_dict(rule.state_dict() | {"variance": -1})


# ---------------------------------------------------------------------------------- without a limit


def test_without_a_limit_views_that_overlap_are_measured() -> None:
    broad = np.broadcast_to(np.ones(3), (4, 3))
    windows = np.lib.stride_tricks.sliding_window_view(np.arange(9.0), 3)
    for call in (vegrad.clip_by_global_norm_, vegrad.clip_by_norm_):
        for one in (broad, windows):
            assert call(one, None).norm == pytest.approx(float(np.linalg.norm(one)))
            with pytest.raises(ValueError, match=r"overlap itself|writable"):
                call(one, None, nonfinite="zero")


def test_memory_that_is_no_array_is_named() -> None:
    array = pytest.importorskip("array")
    for one in (array.array("d", [3.0, 4.0]), memoryview(np.ones(3))):
        said = f"not {type(one).__name__}: pass numpy.asarray\\(\\) of it"
        for passed, label in ((one, "buffers"), ([one], r"buffers\[0\]"), ({"a": one}, r'\["a"\]')):
            with pytest.raises(TypeError, match=f"{label} must be an array.* {said}"):
                vegrad.norm(passed)
        assert vegrad.norm(np.asarray(one)) > 0

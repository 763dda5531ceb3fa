"""The rules of vegrad.clipping: against the reference, through JSON, and beside NaN."""

import json
import math
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

from tests import reference_clipping as reference
from tests import reference_rules as published
from tests.reference_buffers import make, to_float64

STEPS = 60
SHAPES = [(4, 3), (7,), ()]
DTYPES = ["float64", "float32", "float64"]

# Rules and their references with several settings; the limits are near the norms of `gradients`.
WITH_STATE: dict[str, tuple[Callable[..., Any], Any]] = {
    "AutoClip": (clipping.AutoClip, published.AutoClip()),
    "AutoClip-90": (partial(clipping.AutoClip, 90.0), published.AutoClip(90)),
    "AutoClip-0": (partial(clipping.AutoClip, percentile=0), published.AutoClip(0)),
    "ZClip": (clipping.ZClip, published.ZClip()),
    "ZClip-free": (
        partial(clipping.ZClip, warmup=10, max_grad_norm=1e9),
        published.ZClip(warmup=10, max_grad_norm=1e9),
    ),
    "ZClip-quick": (partial(clipping.ZClip, 0.5, 1.0, 2, 1e9), published.ZClip(0.5, 1.0, 2, 1e9)),
    "AdaGC": (clipping.AdaGC, published.AdaGC()),
    "AdaGC-quick": (
        partial(clipping.AdaGC, ratio=1.5, beta=0.8, start=3, max_norm=2.0),
        published.AdaGC(1.5, 0.8, 3, 2.0),
    ),
    "AdaGC-free": (
        partial(clipping.AdaGC, 2.0, 0.5, 1, math.inf),
        published.AdaGC(2.0, 0.5, 1, math.inf),
    ),
    "SkipSpike": (partial(clipping.SkipSpike, 2.0, 10, 8), None),
}
CLIPPING = [rule for rule, (_, theirs) in WITH_STATE.items() if theirs is not None]
STATELESS: dict[str, tuple[Callable[..., Any], Callable[[Any, Any], Any]]] = {
    "Value": (partial(clipping.Value, 0.3), lambda g, w: vegrad.clip_by_value_(g, 0.3)),
    "Norm": (partial(clipping.Norm, 0.5), lambda g, w: vegrad.clip_by_norm_(g, 0.5)),
    "Norm-1": (
        partial(clipping.Norm, 0.5, ord=1),
        lambda g, w: vegrad.clip_by_norm_(g, 0.5, ord=1),
    ),
    "GlobalNorm": (
        partial(clipping.GlobalNorm, 0.5),
        lambda g, w: vegrad.clip_by_global_norm_(g, 0.5),
    ),
    "GlobalNorm-inf": (
        partial(clipping.GlobalNorm, 0.5, ord=math.inf),
        lambda g, w: vegrad.clip_by_global_norm_(g, 0.5, ord=math.inf),
    ),
    "BlockRMS": (partial(clipping.BlockRMS, 0.2), lambda g, w: vegrad.clip_by_block_rms_(g, 0.2)),
    "Adaptive": (
        partial(clipping.Adaptive, 0.02, eps=0.1),
        lambda g, w: vegrad.adaptive_clip_(g, w, 0.02, eps=0.1),
    ),
}
with_state = pytest.mark.parametrize("rule", list(WITH_STATE))
without_state = pytest.mark.parametrize("rule", list(STATELESS))


def gradients(step: int) -> list[np.ndarray]:
    """Make gradients with norms of about 3, and sometimes ten times that, as in training."""
    rng = np.random.default_rng(step)
    size = 0.8 * rng.lognormal(0.0, 0.3) * (10 if step % 13 == 12 else 1)
    return [
        np.asarray(size * make(rng, "float64", shape, "plain"), dtype)
        for shape, dtype in zip(SHAPES, DTYPES, strict=True)
    ]


def with_names(arrays: list[np.ndarray]) -> dict[str, np.ndarray]:
    return dict(zip("abc", arrays, strict=True))


def bits(said: Any, grads: list[np.ndarray]) -> tuple[Any, ...]:
    """Return all results of a step."""
    numbers = np.array([said.norm, said.norm_after, said.coefficient, *said.norms])
    flags = (said.clipped, said.skipped, said.nonfinite)
    return numbers.tobytes(), flags, [g.tobytes() for g in grads]


# ------------------------------------------------------------------------ against the reference


@pytest.mark.parametrize("rule", CLIPPING)
def test_many_steps(rule: str) -> None:
    make_one, theirs = WITH_STATE[rule]
    mine, theirs = make_one(), deepcopy(theirs)
    # AdaGC uses norms after clipping, in which the float32 elements have been rounded.
    off = 2.0**-23 if rule.startswith("AdaGC") else 1e-12
    clipped = []
    for step in range(150 if rule == "AdaGC" else STEPS):
        grads = gradients(step)
        exact = to_float64(grads)
        want = reference.clip(theirs(exact, DTYPES), exact)
        said = mine.apply_(grads)
        assert said.norm == pytest.approx(want.norm, rel=1e-13)
        assert said.clipped == want.clipped, f"step {step}"
        assert said.coefficient == pytest.approx(want.coefficient, rel=off), f"step {step}"
        for got, expected, dtype in zip(to_float64(grads), want.grads, DTYPES, strict=True):
            u = 2.0**-24 if dtype == "float32" else 0.0
            np.testing.assert_allclose(got, expected, rtol=off + u, err_msg=f"step {step}")
        clipped.append(said.clipped)
    assert any(clipped)
    assert not all(clipped) or rule in ("AdaGC", "ZClip")  # whose limit of 1 is below all of them


@without_state
def test_rules_without_a_state_are_the_functions(rule: str) -> None:
    make_one, function = STATELESS[rule]
    mine = make_one()
    params = [np.full(shape, 0.7) for shape in SHAPES]
    for step in range(5):
        one, two = gradients(step), gradients(step)
        assert bits(mine.apply_(one, params), one) == bits(function(two, params), two)
        if rule != "Adaptive":
            one, two = gradients(step), gradients(step)
            assert bits(mine.apply_(one), one) == bits(function(two, params), two)


def test_adaptive_needs_parameters() -> None:
    grads = gradients(0)
    with pytest.raises(TypeError, match="params"):
        clipping.Adaptive().apply_(grads)
    assert [g.tobytes() for g in grads] == [g.tobytes() for g in gradients(0)]


def test_a_scripted_spike() -> None:
    """Compute ZClip by hand for mean 2, deviation 1 and a norm of 12."""
    rule = clipping.ZClip(alpha=0.9, z_threshold=2.5, warmup=2, max_grad_norm=100.0)
    for size in (1.0, 3.0):
        assert not rule.apply_(np.array([size])).clipped
    g = np.array([12.0])
    z = 10.0 / (1.0 + 1e-6)
    rule.apply_(g)
    target = 2.0 + 2.5 / (z / 2.5)
    assert g[0] == pytest.approx(target, rel=1e-14)
    mean = 0.9 * 2.0 + 0.1 * target
    deviation = math.sqrt(0.9 * 1.0 + 0.1 * (target - mean) ** 2)
    limit = mean + 2.5 * (deviation + 1e-6)
    assert not rule.apply_(np.array([limit * (1 - 1e-9)])).clipped
    again = clipping.ZClip(alpha=0.9, z_threshold=2.5, warmup=2, max_grad_norm=100.0)
    for size in (1.0, 3.0, 12.0):
        again.apply_(np.array([size]))
    assert again.apply_(np.array([limit * (1 + 1e-9)])).clipped


# ---------------------------------------------------------------------------------- the state


@pytest.mark.parametrize("stop", [0, 1, 5, 25, 40])
@with_state
def test_a_state_goes_through_json(rule: str, stop: int) -> None:
    make_one = WITH_STATE[rule][0]
    first = make_one()
    for step in range(stop):
        first.apply_(gradients(step))
    text = json.dumps(first.state_dict())
    second = make_one()
    second.load_state_dict(json.loads(text))
    assert json.dumps(second.state_dict()) == text
    for step in range(stop, STEPS):
        one, two = gradients(step), gradients(step)
        assert bits(first.apply_(one), one) == bits(second.apply_(two), two), f"step {step}"
    assert first.state_dict() == second.state_dict()


@with_state
def test_a_state_is_a_copy(rule: str) -> None:
    mine = WITH_STATE[rule][0]()
    for step in range(4):
        mine.apply_(gradients(step))
    state = mine.state_dict()
    text = json.dumps(state)
    for step in range(4, 8):
        mine.apply_(gradients(step))
    assert json.dumps(state) == text
    assert json.dumps(mine.state_dict()) != text
    other = WITH_STATE[rule][0]()
    other.load_state_dict(state)
    other.apply_(gradients(9))
    assert json.dumps(state) == text


@pytest.mark.parametrize("rule", [*WITH_STATE, *STATELESS])
def test_states_of_another_kind(rule: str) -> None:
    make_one = (WITH_STATE | STATELESS)[rule][0]
    mine = make_one()
    params = [np.ones(shape) for shape in SHAPES]
    for step in range(5):
        mine.apply_(gradients(step), params)
    before = mine.state_dict()
    assert json.loads(json.dumps(before)) == before
    assert before["rule"] == type(mine).__name__

    other = clipping.AutoClip() if type(mine) is clipping.Value else clipping.Value(1.0)
    with pytest.raises(ValueError, match=type(mine).__name__):
        mine.load_state_dict(other.state_dict())
    for key in before:
        with pytest.raises(ValueError, match=type(mine).__name__ if key == "rule" else key):
            mine.load_state_dict({k: v for k, v in before.items() if k != key})
    with pytest.raises((TypeError, ValueError)):
        mine.load_state_dict(None)
    assert mine.state_dict() == before
    mine.load_state_dict(before)
    assert mine.state_dict() == before


def test_buffers_that_come_and_go() -> None:
    """AdaGC recognizes its buffers by position or by name, and waits for those that are missing."""
    a, b, c = np.full((3, 1), 0.5)
    for first, others in [
        ([a, b], [[a, None], [None, b], [a], [a, b, c]]),
        ({"a": a, "b": b}, [{"b": b}, {"a": a, "b": None}, {"c": c, "a": a}]),
    ]:
        rule = clipping.AdaGC(start=2)
        for _ in range(3):
            rule.apply_(first)
        for other in others:
            state = deepcopy(rule.averages)
            assert not rule.apply_(other).clipped
            present = rule.averages.keys() - state.keys()
            assert present == ({"2"} if len(other) == 3 else {"c"} if "c" in other else set())
            assert rule.averages.items() >= state.items()
        large = {name: 2 * g for name, g in zip("ab", (a, b), strict=True)}
        assert rule.apply_(large if isinstance(first, dict) else [*large.values()]).clipped


def test_buffers_by_name_in_another_order() -> None:
    one, two = clipping.AdaGC(start=2), clipping.AdaGC(start=2)
    for step in range(8):
        forwards = with_names(gradients(step))
        backwards = dict(reversed(with_names(gradients(step)).items()))
        one.apply_(forwards)
        two.apply_(backwards)
        for name in "abc":  # the joint norm is summed in another order
            np.testing.assert_allclose(forwards[name], backwards[name], rtol=2.0**-22)


# ------------------------------------------------------------------------- what is not finite


@pytest.mark.parametrize("rule", [*WITH_STATE, *STATELESS])
def test_a_refusal_names_the_buffer(rule: str) -> None:
    mine = (WITH_STATE | STATELESS)[rule][0]()
    params = [np.ones(shape) for shape in SHAPES]
    named = (WITH_STATE | STATELESS)[rule][0]()
    for step in range(4):
        grads = gradients(step)
        grads[1][5] = math.nan
        for it, label, name, passed, beside in [
            (mine, "grads[1]", 1, grads, params),
            (named, 'grads["b"]', "b", with_names(grads), with_names(params)),
        ]:
            with pytest.raises(vegrad.NonFiniteGradientError) as caught:
                it.apply_(passed, beside)
            assert (caught.value.name, caught.value.index) == (name, (5,))
            assert label in str(caught.value)
        mine.apply_(gradients(step), params)
        named.apply_(with_names(gradients(step)), with_names(params))


def spoiled(step: int, bad: float) -> list[np.ndarray]:
    grads = gradients(step)
    for g in grads:
        g[(0,) * g.ndim] = bad
    return grads


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("policy", ["raise", "skip", "propagate"])
@with_state
def test_no_state_absorbs_what_is_not_finite(rule: str, policy: str, bad: float) -> None:
    mine, clean = (WITH_STATE[rule][0](nonfinite=policy) for _ in range(2))
    for step in range(40):
        grads = gradients(step)
        clean_grads = gradients(step)
        assert bits(mine.apply_(grads), grads) == bits(clean.apply_(clean_grads), clean_grads)
        if step % 3:
            continue
        state = mine.state_dict()
        grads = spoiled(step, bad)
        if policy == "raise":
            with pytest.raises(vegrad.NonFiniteGradientError):
                mine.apply_(grads)
        else:
            said = mine.apply_(grads)
            assert said.nonfinite == 3
            # What propagates is a spike, once there are enough norms to tell.
            spike = rule == "SkipSpike" and len(state["norms"]) >= state["after"] - 1
            assert said.skipped == (policy == "skip" or spike)
        assert mine.state_dict() == state
        if policy != "propagate" or said.skipped:
            assert [g.tobytes() for g in grads] == [g.tobytes() for g in spoiled(step, bad)]


@with_state
def test_zeroed_elements_are_absorbed_as_zeros(rule: str) -> None:
    mine, zeros = (WITH_STATE[rule][0](nonfinite="zero") for _ in range(2))
    for step in range(30):
        one, two = spoiled(step, math.nan), spoiled(step, 0.0)
        said = mine.apply_(one)
        assert said.nonfinite == 3
        assert zeros.apply_(two).norm == said.norm
        if said.skipped:  # a step that is left out changes nothing
            assert rule == "SkipSpike"
            assert math.isnan(one[0][0, 0])
            continue
        assert [g.tobytes() for g in one] == [g.tobytes() for g in two]
    assert mine.state_dict() == zeros.state_dict()


# ------------------------------------------------------------------------------ making a rule


@pytest.mark.parametrize("rule", [*WITH_STATE, *STATELESS])
def test_a_repr_makes_the_rule(rule: str) -> None:
    mine = (WITH_STATE | STATELESS)[rule][0]()
    again = eval(repr(mine), vars(clipping) | {"inf": math.inf})
    assert type(again) is type(mine)
    assert repr(again) == repr(mine)
    assert again.state_dict() == mine.state_dict()


@pytest.mark.parametrize(
    ("make_one", "error", "said"),
    [
        (lambda: clipping.AutoClip(101), ValueError, ["percentile", "100", "101"]),
        (lambda: clipping.AutoClip(-1), ValueError, ["percentile", "-1"]),
        (lambda: clipping.AutoClip(math.nan), ValueError, ["percentile", "nan"]),
        (lambda: clipping.AutoClip("10"), TypeError, ["percentile", "number", "str"]),
        (lambda: clipping.ZClip(alpha=1.5), ValueError, ["alpha", "1.5"]),
        (lambda: clipping.ZClip(z_threshold=math.nan), ValueError, ["z_threshold", "nan"]),
        (lambda: clipping.ZClip(warmup=0), ValueError, ["warmup", "0"]),
        (lambda: clipping.ZClip(warmup=2.5), TypeError, ["warmup", "integer", "float"]),
        (lambda: clipping.ZClip(max_grad_norm=-1.0), ValueError, ["max_grad_norm", "-1"]),
        (lambda: clipping.ZClip(mode="mean"), ValueError, ["mode", "zscore, percentile", "'mean'"]),
        (lambda: clipping.ZClip(clip_option="z"), ValueError, ["clip_option", "mean", "'z'"]),
        (lambda: clipping.ZClip(clip_factor=math.inf), ValueError, ["clip_factor", "inf"]),
        (lambda: clipping.ZClip(skip_update_on_spike=1), TypeError, ["skip_update_on_spike", "1"]),
        (lambda: clipping.SkipSpike(math.nan), ValueError, ["sigmas", "nan"]),
        (lambda: clipping.SkipSpike(window=1), ValueError, ["window", "2", "1"]),
        (lambda: clipping.SkipSpike(after=2), ValueError, ["after", "3", "2"]),
        (lambda: clipping.AdaGC(beta=-0.1), ValueError, ["beta", "-0.1"]),
        (lambda: clipping.AdaGC(ratio=math.nan), ValueError, ["ratio", "nan"]),
        (lambda: clipping.AdaGC(start=-1), ValueError, ["start", "-1"]),
        (lambda: clipping.AdaGC(max_norm=-2), ValueError, ["max_norm", "-2"]),
        (lambda: clipping.Value(-1.0), ValueError, ["limit", "-1"]),
        (lambda: clipping.Norm(math.nan), ValueError, ["max_norm", "nan"]),
        (lambda: clipping.Norm(1.0, ord=0), ValueError, ["ord", "0"]),
        (lambda: clipping.GlobalNorm("1"), TypeError, ["max_norm", "number", "str"]),
        (lambda: clipping.BlockRMS(-0.5), ValueError, ["max_rms", "-0.5"]),
        (lambda: clipping.Adaptive(-0.01), ValueError, ["clipping", "-0.01"]),
        (lambda: clipping.Adaptive(eps=-1e-3), ValueError, ["eps", "-0.001"]),
        (lambda: clipping.Value(1.0, nonfinite="ignore"), ValueError, ["nonfinite", "'ignore'"]),
        (lambda: clipping.AutoClip(nonfinite=None), (TypeError, ValueError), ["nonfinite", "None"]),
    ],
)
def test_bad_settings(make_one: Callable[[], Any], error: Any, said: list[str]) -> None:
    with pytest.raises(error) as caught:
        make_one()
    for part in said:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("rule", "name", "bad", "error", "said"),
    [
        (clipping.GlobalNorm(1.0), "max_norm", -1, ValueError, "max_norm must be at least 0"),
        (clipping.GlobalNorm(1.0), "max_norm", math.nan, ValueError, "max_norm must be at least"),
        (clipping.Norm(1.0), "max_norm", "x", TypeError, "max_norm must be a real number, not str"),
        (clipping.Norm(1.0), "ord", 0, ValueError, "ord must be above 0"),
        (clipping.Value(1.0), "nonfinite", "stop", ValueError, "nonfinite must be one of raise"),
        (clipping.Adaptive(), "eps", -1, ValueError, "eps must be at least 0, not -1"),
        (clipping.AutoClip(), "percentile", 200, ValueError, "percentile must be from 0 to 100"),
        (clipping.ZClip(), "warmup", 0, ValueError, "warmup must be at least 1, not 0"),
        (clipping.AdaGC(), "beta", 1.0, ValueError, "beta must be from 0 to below 1"),
    ],
)
def test_settings_may_change_and_are_checked_again(
    rule: clipping.Rule, name: str, bad: Any, error: type[Exception], said: str
) -> None:
    before = repr(rule)
    with pytest.raises(error, match=said):
        setattr(rule, name, bad)
    assert repr(rule) == before


def test_a_limit_that_changes_between_steps() -> None:
    rule, grad = clipping.GlobalNorm(10.0), np.array([3.0, 4.0])
    assert not rule.apply_(grad).clipped
    rule.max_norm = 1
    assert rule.apply_(grad).norm_after == pytest.approx(1.0)
    assert repr(rule) == "GlobalNorm(max_norm=1.0, ord=2.0, nonfinite='raise')"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_units_with_weights_that_are_not_finite_are_not_clipped(bad: float) -> None:
    grad = np.full((2, 2), 100.0)
    clipping.Adaptive(0.01).apply_(grad, np.array([[1.0, bad], [3.0, 4.0]]))
    np.testing.assert_allclose(np.linalg.norm(grad, axis=1), [np.sqrt(2) * 100, 0.05])

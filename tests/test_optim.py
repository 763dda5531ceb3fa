"""The optimizers against their formulas and against PyTorch."""

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given
from hypothesis import strategies as st
from vegrad import clipping

from tests.reference_optim import Reference

SHAPES = [(5, 7), (13,), (), (0, 3), (64, 33), (4097,)]
both_dtypes = pytest.mark.parametrize("dtype", ["float32", "float64"])


MAKERS: dict[str, Callable[..., vegrad.optim.Optimizer]] = {
    "sgd": lambda **o: vegrad.SGD(0.01, **o),
    "momentum": lambda **o: vegrad.SGD(0.01, 0.9, 0.2, 0.1, **o),
    "nesterov": lambda **o: vegrad.SGD(0.01, 0.9, 0.0, 0.1, True, **o),
    "adam": lambda **o: vegrad.Adam(0.01, weight_decay=0.1, **o),
    "adamw": lambda **o: vegrad.AdamW(0.01, (0.8, 0.99), 1e-6, **o),
    "amsgrad": lambda **o: vegrad.AdamW(0.01, amsgrad=True, **o),
    "lion": lambda **o: vegrad.Lion(0.01, weight_decay=0.1, **o),
}
every_optimizer = pytest.mark.parametrize("maker", MAKERS.values(), ids=MAKERS.keys())


def arrays(seed: int, dtype: Any = np.float64, shapes: Any = SHAPES) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def away_from_a_sign_change(reference: Reference, g: Any) -> Any:
    """Change the gradient so that rounding cannot decide the sign of a step of Lion."""
    u = reference.a["betas"][0] * reference.m + (1 - reference.a["betas"][0]) * g
    return np.where(np.abs(u) < 1e-3, g + 0.1, g)


@both_dtypes
@every_optimizer
@pytest.mark.parametrize("maximize", [False, True])
def test_the_formula(isa: str, maker: Any, maximize: bool, dtype: str) -> None:
    optimizer = maker(maximize=maximize)
    params = arrays(0, dtype)
    references = [Reference(optimizer) for _ in params]
    right = [np.array(p, np.float64) for p in params]
    for step in range(30):
        grads = arrays(step + 1, dtype)
        if isinstance(optimizer, vegrad.Lion):
            sign = -1 if maximize else 1
            pairs = zip(references, grads, strict=True)
            grads = [
                np.asarray(sign * away_from_a_sign_change(r, sign * g), dtype) for r, g in pairs
            ]
        kept = [g.tobytes() for g in grads]
        optimizer.step(params, grads)
        assert [g.tobytes() for g in grads] == kept
        right = [
            r.step(p, np.float64(g), 0.01) for r, p, g in zip(references, right, grads, strict=True)
        ]
    eps = float(np.finfo(dtype).eps)
    for got, want in zip(params, right, strict=True):
        # Each step rounds the weight (about 1 to 4 in size) and its move.
        np.testing.assert_allclose(got, want, rtol=0, atol=30 * 8 * eps)


@both_dtypes
@every_optimizer
@given(
    shape=st.one_of(
        st.integers(0, 70).map(lambda n: (n,)),
        st.tuples(st.integers(0, 9), st.integers(1, 20)),
        st.sampled_from([(4095,), (4096,), (4097,), (300, 41)]),
    ),
    strided=st.sampled_from(["plain", "transposed", "sliced", "reversed"]),
    kind=st.sampled_from(["float16", "float32", "float64"]),
)
def test_shapes_strides_and_gradients_of_other_types(
    isa: str, maker: Any, dtype: str, shape: tuple[int, ...], strided: str, kind: str
) -> None:
    """The bits are those of plain arrays of the weights' dtype."""
    p, g = arrays(1, dtype, [shape])[0], arrays(2, kind, [shape])[0]
    plain, optimizer, other = p.copy(), maker(), maker()

    def lay(array: np.ndarray) -> np.ndarray:
        if strided == "transposed":
            return np.asfortranarray(array)
        if strided == "sliced":
            room = np.full([2 * n for n in array.shape], 7, array.dtype)
            view = room[tuple(slice(None, None, 2) for _ in array.shape)]
            view[...] = array
            return view
        if strided == "reversed":
            return array[tuple(slice(None, None, -1) for _ in array.shape)].copy()[
                tuple(slice(None, None, -1) for _ in array.shape)
            ]
        return array.copy()

    laid = lay(p)
    for _ in range(3):
        optimizer.step(laid, lay(g))
        other.step(plain, g.astype(dtype))
    assert laid.tobytes() == plain.tobytes()
    if strided == "sliced" and laid.size:
        assert (laid.base[tuple(slice(1, None, 2) for _ in shape)] == 7).all()


RULES: list[Callable[[], clipping.Rule]] = [
    partial(clipping.Value, 0.5),
    partial(clipping.Norm, 1.0),
    partial(clipping.Norm, 1.0, ord=1),
    partial(clipping.GlobalNorm, 3.0),
    partial(clipping.GlobalNorm, 1e9),
    partial(clipping.GlobalNorm, 2.0, ord=float("inf")),
    partial(clipping.BlockRMS, 0.1),
    partial(clipping.Adaptive, 0.05),
    partial(clipping.AutoClip, 30),
    partial(clipping.ZClip, warmup=2, z_threshold=0.5),
    partial(clipping.AdaGC, 1.01, 0.9, 2),
    partial(clipping.SkipSpike, 0.5, 4, 3),
]


@both_dtypes
@every_optimizer
@pytest.mark.parametrize("rule", range(len(RULES)))
def test_a_clip_inside_is_a_clip_before(isa: str, maker: Any, rule: int, dtype: str) -> None:
    inside, outside, before = maker(clip=RULES[rule]()), maker(), RULES[rule]()
    one, other = arrays(0, dtype), arrays(0, dtype)
    exact = isinstance(before, clipping.Value)
    for step in range(6):
        grads = arrays(step + 1, dtype)
        clipped = [g.copy() for g in grads]
        want = before.apply_(clipped, other)
        got = inside.step(one, grads)
        if not want.skipped:
            outside.step(other, clipped)
        assert (got.norm, got.clipped, got.skipped) == (want.norm, want.clipped, want.skipped)
        # The adaptive rule uses the weights, which are no longer exactly the same.
        apart = 1e-5 if isinstance(before, clipping.Adaptive) else 1e-12
        assert got.coefficient == pytest.approx(want.coefficient, rel=apart)
        assert got.norm_after == pytest.approx(want.norm_after, rel=1e-6)
        np.testing.assert_array_equal(got.norms, want.norms)
    for a, b in zip(one, other, strict=True):
        # Inside, the factor is rounded before the product; outside, the product is rounded.
        if exact:
            assert a.tobytes() == b.tobytes()
        elif inside.__class__ is not vegrad.Lion:
            np.testing.assert_allclose(a, b, rtol=0, atol=6 * 8 * float(np.finfo(dtype).eps))


@every_optimizer
@pytest.mark.usefixtures("keep_threads")
def test_the_same_bits_on_any_number_of_threads(isa: str, maker: Any) -> None:
    seen = []
    for count in (1, 2, 3, 7):
        vegrad.set_num_threads(count)
        shapes = [(300, 501), (70_000,), (11,)]
        params, optimizer = arrays(0, np.float32, shapes), maker(clip=clipping.GlobalNorm(1.0))
        for step in range(3):
            optimizer.step(params, arrays(step, np.float32, shapes))
        seen.append([p.tobytes() for p in params])
    assert seen[1:] == seen[:1] * 3


@every_optimizer
def test_nonfinite(isa: str, maker: Any) -> None:
    def run(policy: str) -> tuple[Any, list[np.ndarray], Any]:
        optimizer = maker(clip=clipping.GlobalNorm(1.0, nonfinite=policy))
        params = arrays(0)
        optimizer.step(params, arrays(1))
        kept, state = [p.copy() for p in params], repr(optimizer.state_dict())
        bad = arrays(2)
        bad[1][3] = np.inf
        if policy == "raise":
            with pytest.raises(vegrad.NonFiniteGradientError, match=r"grads\[1\].*inf at \(3,\)"):
                optimizer.step(params, bad)
        else:
            clipped = optimizer.step(params, bad)
            assert clipped.nonfinite == 1
            assert clipped.skipped is (policy == "skip")
        if policy in ("raise", "skip"):
            assert repr(optimizer.state_dict()) == state
            for p, k in zip(params, kept, strict=True):
                assert p.tobytes() == k.tobytes()
        return optimizer, params, bad

    for policy in ("raise", "skip"):
        run(policy)
    _, zeroed, bad = run("zero")
    bad[1][3] = 0
    params, optimizer = arrays(0), maker(clip=clipping.GlobalNorm(1.0))
    optimizer.step(params, arrays(1))
    optimizer.step(params, bad)
    for p, z in zip(params, zeroed, strict=True):
        assert p.tobytes() == z.tobytes()
    _, spread, _ = run("propagate")
    assert not np.isfinite(spread[1][3])


@every_optimizer
@pytest.mark.parametrize("named", [False, True])
def test_a_state_goes_on_bit_for_bit(maker: Any, named: bool) -> None:
    def grads(step: int) -> Any:
        found: list[Any] = arrays(step)
        if step % 3 == 2:
            found[0] = None  # a buffer without a gradient keeps its state and its number of steps
        return dict(zip("abcdef", found, strict=True)) if named else found

    def start() -> Any:
        return dict(zip("abcdef", arrays(0), strict=True)) if named else arrays(0)

    def values(params: Any) -> list[bytes]:
        return [p.tobytes() for p in (params.values() if named else params)]

    whole, params = maker(clip=clipping.AutoClip(50)), start()
    for step in range(8):
        whole.step(params, grads(step))
    half, others = maker(clip=clipping.AutoClip(50)), start()
    for step in range(4):
        half.step(others, grads(step))
    state = half.state_dict()
    frozen = copy.deepcopy(state)
    json.dumps({k: v for k, v in state.items() if k != "state"})
    assert list(state["state"]) == (list("abcdef") if named else list("012345"))
    assert [one["step"] for one in state["state"].values()] == [3, 4, 4, 4, 4, 4]
    half.step(start(), grads(4))  # a state is a copy
    fresh = maker(clip=clipping.AutoClip(50))
    fresh.load_state_dict(state)
    assert fresh.steps == 4
    for step in range(4, 8):
        fresh.step(others, grads(step))
    assert values(others) == values(params)
    assert repr(state) == repr(frozen)


def test_states_that_are_none_of_its_own() -> None:
    optimizer, params = vegrad.AdamW(clip=clipping.GlobalNorm(1.0)), arrays(0)
    optimizer.step(params, arrays(1))
    good = optimizer.state_dict()

    def refused(state: Any, said: str, error: type[Exception] = ValueError) -> None:
        before = repr(optimizer.state_dict())
        with pytest.raises(error, match=said):
            optimizer.load_state_dict(state)
        assert repr(optimizer.state_dict()) == before

    refused(vegrad.Adam().state_dict(), "must be of AdamW, not of Adam")
    refused([], "must be a mapping, not list", TypeError)
    refused({k: v for k, v in good.items() if k != "steps"}, "must have steps")
    refused(good | {"clip": None}, "clip")
    refused(good | {"clip": clipping.Norm(1).state_dict()}, "must be of GlobalNorm, not of Norm")
    refused(good | {"arguments": good["arguments"] | {"betas": (2, 0.9)}}, r"betas\[0\]")
    refused(good | {"state": {"0": {"step": 1, "mean": np.zeros(3)}}}, "must have square")
    unequal = {"step": 1, "mean": np.zeros(3), "square": np.zeros(4)}
    refused(good | {"state": {"0": unequal}}, "one dtype and shape")


def test_what_was_seen_before_must_fit() -> None:
    optimizer = vegrad.Adam()
    optimizer.step([np.ones(3)], [np.ones(3)])
    optimizer.step([np.ones(3), np.ones(4)], [np.ones(3), np.ones(4)])  # new buffers may be added
    for bad, got in (
        (np.ones(5), r"\(5,\) and float64"),
        (np.ones(3, np.float32), r"\(3,\) and float32"),
    ):
        kept = bad.copy()
        with pytest.raises(
            ValueError, match=rf"params\[0\] must have shape \(3,\) and float64.*{got}"
        ):
            optimizer.step([bad], [np.ones(bad.shape)])
        np.testing.assert_array_equal(bad, kept)


def test_bad_buffers() -> None:
    p, g = np.ones(4), np.ones(4)
    frozen = np.ones(4)
    frozen.flags.writeable = False
    for params, grads, error, said in (
        ([p], [g, g], ValueError, "params must have 2 entries like grads, not 1"),
        ([p], [np.ones(5)], ValueError, r"params\[0\] must have the shape of grads\[0\], \(5,\)"),
        ({"a": p}, {"b": g}, ValueError, 'params must have the names of grads.*"b"'),
        ([p], {"b": g}, TypeError, "params must be a mapping like grads"),
        ([None], [g], TypeError, r"params\[0\] must be an array"),
        ([frozen], [g], ValueError, r"params\[0\] must be writable"),
        ([np.ones(4, np.float16)], [g], TypeError, "must be float32 or float64, not float16"),
        ([np.ones(4, int)], [g], TypeError, r"params\[0\].*int64"),
        ([p, p], [g, g.copy()], ValueError, r"params\[0\] and params\[1\] must not overlap"),
        ([p], [p], ValueError, r"params\[0\] and grads\[0\] must not overlap"),
    ):
        with pytest.raises(error, match=said):
            vegrad.SGD(0.1).step(params, grads)
    np.testing.assert_array_equal(p, 1)
    vegrad.SGD(0.1).step([p, p.copy()], [g, g])  # one gradient for two is read only


@pytest.mark.parametrize(
    ("make", "error", "said"),
    [
        (lambda: vegrad.SGD(-1), ValueError, "lr must be at least 0, not -1"),
        (lambda: vegrad.SGD(float("nan")), ValueError, "lr"),
        (lambda: vegrad.SGD("1"), TypeError, "lr must be a real number, not str"),
        (lambda: vegrad.SGD(1, -0.1), ValueError, "momentum"),
        (lambda: vegrad.SGD(1, nesterov=True), ValueError, "nesterov must come with a momentum"),
        (lambda: vegrad.SGD(1, 0.9, 0.1, nesterov=True), ValueError, "without dampening"),
        (lambda: vegrad.Adam(betas=(0.9, 1)), ValueError, r"betas\[1\]"),
        (lambda: vegrad.Adam(betas=0.9), TypeError, "betas must be two numbers, not 0.9"),
        (lambda: vegrad.AdamW(eps=-1), ValueError, "eps"),
        (lambda: vegrad.AdamW(weight_decay=-1), ValueError, "weight_decay"),
        (lambda: vegrad.AdamW(amsgrad=1), TypeError, "amsgrad must be True or False, not 1"),
        (lambda: vegrad.Lion(clip=1.0), TypeError, "clip must be a rule of vegrad.clipping"),
        (lambda: vegrad.SGD(lambda step: -1.0).step([np.ones(1)], [np.ones(1)]), ValueError, "lr"),
    ],
)
def test_bad_arguments(make: Any, error: type[Exception], said: str) -> None:
    with pytest.raises(error, match=said):
        make()


def test_schedules() -> None:
    rise = vegrad.optim.warmup(2.0, 4)
    assert [rise(step) for step in range(6)] == [0.5, 1.0, 1.5, 2.0, 2.0, 2.0]
    wave = vegrad.optim.cosine(2.0, 10, final=0.5, warmup=2)
    assert [wave(step) for step in (0, 1, 2, 6, 10, 99)] == pytest.approx([1, 2, 2, 1.25, 0.5, 0.5])
    optimizer, p = vegrad.SGD(rise), np.zeros(1)
    for _ in range(3):
        optimizer.step(p, np.ones(1))
    assert p == -3.0
    with pytest.raises(ValueError, match="warmup must be at most steps, 3, not 4"):
        vegrad.optim.cosine(1, 3, warmup=4)


TORCH: dict[str, Any] = {
    "SGD": [
        {},
        {"momentum": 0.9},
        {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1},
        {"momentum": 0.9, "nesterov": True, "maximize": True},
    ],
    "Adam": [{}, {"weight_decay": 0.1, "amsgrad": True}, {"betas": (0.5, 0.7), "maximize": True}],
    "AdamW": [{}, {"weight_decay": 0.3, "amsgrad": True}, {"eps": 1e-3, "maximize": True}],
}


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-13)])
@pytest.mark.parametrize(("name", "options"), [(n, o) for n, all_ in TORCH.items() for o in all_])
def test_torch_agrees_over_200_steps(
    isa: str, name: str, options: dict[str, Any], dtype: str, tolerance: float
) -> None:
    torch = pytest.importorskip("torch")
    theirs = [torch.nn.Parameter(torch.tensor(p)) for p in arrays(0, dtype)]
    ours = [torch.nn.Parameter(p.detach().clone()) for p in theirs]
    stepper = getattr(torch.optim, name)(theirs, lr=0.01, **options)
    clip = clipping.GlobalNorm(3.0) if "weight_decay" in options else None
    optimizer = getattr(vegrad, name)(0.01, clip=clip, **options)
    for step in range(200):
        for parameter, gradient in zip(theirs, arrays(step + 1, dtype), strict=True):
            parameter.grad = torch.tensor(gradient)
        if step % 5 == 4:
            theirs[1].grad = None
        optimizer.step(ours, [p.grad if p.grad is None else p.grad.clone() for p in theirs])
        if clip:
            # PyTorch adds 1e-6 to the norm, and sums it in the gradients' dtype.
            norm = vegrad.norm([p.grad for p in theirs])
            for parameter in theirs:
                if parameter.grad is not None and norm > 3.0:
                    parameter.grad *= 3.0 / norm
        stepper.step()
    largest = max(p.abs().max().item() for p in theirs if p.numel())
    for got, want in zip(ours, theirs, strict=True):
        if got.numel():
            assert (got - want).abs().max().item() <= tolerance * largest

"""Buffers nested in mappings and sequences: the same bits as a flat list, and what differs said."""

import copy
import math
from collections import OrderedDict, UserList, deque, namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
import vegrad
from hypothesis import given
from hypothesis import strategies as st
from vegrad import clipping

Layer = namedtuple("Layer", ["kernel", "bias"])
A, B = np.array([3.0, 0.0], np.float32), np.array([[0.0], [4.0]])


def leaves(tree: object, *path: object) -> Iterator[tuple[str, np.ndarray]]:
    """Yield (name, array) of each buffer in the order in which they stand."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield from leaves(value, *path, key)
    elif isinstance(tree, Sequence):
        for place, value in enumerate(tree):
            yield from leaves(value, *path, place)
    elif tree is not None:
        assert isinstance(tree, np.ndarray)
        yield ".".join(map(str, path)), tree


def changed(tree: Any, change: Callable[[np.ndarray], Any]) -> Any:
    """Return a tree of the same form, its mappings the other way round, with other arrays."""
    if isinstance(tree, Mapping):
        return {key: changed(value, change) for key, value in reversed(tree.items())}
    if isinstance(tree, Sequence):
        return [changed(value, change) for value in tree]
    return None if tree is None else change(tree)


def array(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    dtype = (np.float32, np.float64)[seed % 2]
    return rng.standard_normal([(), (3,), (2, 5), (0, 4), (300,)][seed % 5]).astype(dtype)


def containers(inside: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    lists = st.lists(inside, max_size=4)
    names = st.dictionaries(st.sampled_from(["w", "b", 0, "layers"]), inside, max_size=4)
    return st.one_of(
        lists,
        lists.map(tuple),
        lists.map(UserList),
        st.tuples(inside, inside).map(lambda two: Layer(*two)),
        names,
        names.map(OrderedDict),
        names.map(MappingProxyType),
    )


trees = containers(
    st.recursive(st.one_of(st.none(), st.integers(0, 99).map(array)), containers, max_leaves=12)
)


@given(tree=trees, p=st.sampled_from([2, 1, math.inf, 3.5]))
def test_measured_as_a_flat_list(tree: Any, p: float) -> None:
    names = [name for name, _ in leaves(tree)]
    flat = [buffer for _, buffer in leaves(tree)]
    assert vegrad.norm(tree, p) == vegrad.norm(flat, p)
    assert vegrad.norms(tree, p).tobytes() == vegrad.norms(flat, p).tobytes()
    nested = vegrad.measure(tree, histogram=True)
    assert nested.names == names
    plain = vegrad.measure(flat, histogram=True)
    assert repr(nested.buffers) == repr(plain.buffers)
    assert repr(nested.total) == repr(plain.total)


CLIPS: list[Callable[[Any, Any], Any]] = [
    lambda g, w: vegrad.clip_by_value_(g, 0.3),
    lambda g, w: vegrad.clip_by_norm_(g, 0.3),
    lambda g, w: vegrad.clip_by_global_norm_(g, 0.3),
    lambda g, w: vegrad.clip_by_block_rms_(g, 0.3),
    lambda g, w: vegrad.adaptive_clip_(g, w, 0.1),
    lambda g, w: clipping.AutoClip().apply_(g),
    lambda g, w: clipping.ZClip(max_grad_norm=0.3).apply_(g),
    lambda g, w: clipping.Adaptive(0.1).apply_(g, w),
]


@given(tree=trees, clip=st.sampled_from(CLIPS))
def test_clipped_as_a_flat_list(tree: Any, clip: Callable[[Any, Any], Any]) -> None:
    weights = changed(tree, lambda g: np.full(g.shape, 0.5))
    flat = [buffer.copy() for _, buffer in leaves(tree)]
    nested = clip(tree, weights)
    plain = clip(flat, [np.full(g.shape, 0.5) for g in flat])
    assert [g.tobytes() for _, g in leaves(tree)] == [g.tobytes() for g in flat]
    assert repr(nested) == repr(plain)
    assert nested.norms.tobytes() == plain.norms.tobytes()


def test_adagc_knows_its_buffers_by_their_paths() -> None:
    nested, plain = clipping.AdaGC(start=2), clipping.AdaGC(start=2)
    for step in range(6):
        rng = np.random.default_rng(step)
        tree = {"a": [rng.standard_normal(4), None], "b": {"c": rng.standard_normal(3)}}
        flat = [buffer.copy() for _, buffer in leaves(tree)]
        nested.apply_(tree)
        plain.apply_(flat)
        assert [g.tobytes() for _, g in leaves(tree)] == [g.tobytes() for g in flat]
    assert nested.averages == dict(zip(["a.0", "b.c"], plain.averages.values(), strict=True))
    nested.apply_({"a": [np.ones(4), np.ones(2)], "b": {"c": np.ones(3)}})  # one more: it may come
    assert set(nested.averages) == {"a.0", "a.1", "b.c"}
    with pytest.raises(ValueError, match=r'\["a\.0"\] and grads\["a"\]\[0\] must have different'):
        nested.apply_({"a.0": np.ones(4), "a": [np.ones(2)]})
    clipping.AdaGC().apply_(iter([[np.ones(2)], None]))


# ------------------------------------------------------------------------------------ optimizers

OPTIMIZERS: list[Callable[[], Any]] = [
    lambda: vegrad.SGD(0.1, 0.9, clip=clipping.GlobalNorm(0.5)),
    lambda: vegrad.AdamW(0.1),
    lambda: vegrad.Lion(0.1),
]


@given(tree=trees, make=st.sampled_from(OPTIMIZERS))
def test_steps_as_over_a_flat_list(tree: Any, make: Callable[[], Any]) -> None:
    pairs = list(leaves(tree))
    params = changed(tree, np.ones_like)  # its mappings have another order
    nested, plain = make(), make()
    flat = [np.ones_like(buffer) for _, buffer in pairs]
    names = {name for name, _ in pairs}
    for _ in range(3):
        nested.step(params, tree)
        plain.step(flat, [buffer for _, buffer in pairs])
        fresh = make()  # goes on from its state
        fresh.load_state_dict(nested.state_dict())
        nested = fresh
    want = {name: one.tobytes() for (name, _), one in zip(pairs, flat, strict=True)}
    assert {name: one.tobytes() for name, one in leaves(params)} == want
    assert nested.state_dict()["state"].keys() == names


def test_none_passes_over_whatever_is_there() -> None:
    params = {"frozen": {"w": np.ones(2)}, "head": [np.ones(2), np.ones(3)], "empty": {}}
    vegrad.SGD(1.0).step(params, {"frozen": None, "head": [None, np.ones(3)], "empty": {}})
    assert {name: one.tolist() for name, one in leaves(params)} == {
        "frozen.w": [1, 1],
        "head.0": [1, 1],
        "head.1": [0, 0, 0],
    }
    vegrad.SGD(1.0).step(params, {"head": [np.ones(2), None], "empty": None, "frozen": None})
    assert params["head"][0].tolist() == [0, 0]
    vegrad.SGD(1.0).step([[np.ones(2)], None], [None, None])


@pytest.mark.parametrize(
    ("params", "grads", "error", "said"),
    [
        ({"a": [A]}, {"a": {"b": A}}, TypeError, 'params["a"] must be a mapping like grads["a"], '),
        (
            {"a": A},
            {"a": [A]},
            TypeError,
            'params["a"] must be a sequence like grads["a"], not one',
        ),
        (
            {"a": [A]},
            {"a": A},
            TypeError,
            'params["a"] must be one buffer like grads["a"], not a s',
        ),
        ([A, [A]], [A, A], TypeError, "params[1] must be one buffer like grads[1], not a seq"),
        ([A, A], [A, [A]], TypeError, "params[1] must be a sequence like grads[1], not one buffer"),
        (
            {"a": None},
            {"a": [A]},
            TypeError,
            'params["a"] must be a sequence like grads["a"], not N',
        ),
        (
            {"a": [None]},
            {"a": [A]},
            TypeError,
            'params["a"][0] must be an array or a CPU tensor, n',
        ),
        ([[A, A]], [[A]], ValueError, "params[0] must have 1 entries like grads[0], not 2"),
        ([[A], A], [[A]], ValueError, "params must have 1 entries like grads, not 2"),
        (
            {"a": {"b": A}},
            {"a": {"c": A}},
            ValueError,
            'params["a"] must have the names of grads["a',
        ),
        (
            {1: {"b": A, 2: A}},
            {1: {"b": A}},
            ValueError,
            "grads[1] must have the names of params[1]",
        ),
        ([{"b": A}], [{"b": B}], ValueError, 'params[0]["b"] must have the shape of grads[0]["b"]'),
        (
            [{"b": 1.0}],
            [{"b": B}],
            TypeError,
            'params[0]["b"] must be an array, a CPU tensor, or a ',
        ),
        ([[A]], {"a": [A]}, TypeError, "params must be a mapping like grads, not a sequence"),
    ],
)
def test_trees_that_differ(params: Any, grads: Any, error: type[Exception], said: str) -> None:
    params, grads = copy.deepcopy(params), copy.deepcopy(grads)
    before = copy.deepcopy(params)
    for call in (vegrad.SGD(0.1).step, lambda p, g: vegrad.adaptive_clip_(g, p)):
        with pytest.raises(error) as caught:
            call(params, grads)
        assert said in str(caught.value)
    assert repr(params) == repr(before)


def test_two_buffers_of_one_name() -> None:
    params = {"a.b": np.ones(2), "a": {"b": np.ones(2)}}
    grads = changed(params, np.copy)
    with pytest.raises(ValueError, match=r"must have different names, but both are a\.b"):
        vegrad.AdamW(0.1).step(params, grads)
    with pytest.raises(
        ValueError, match=r'params\[1\] and params\["1"\] must have different names'
    ):
        vegrad.SGD(0.1).step({1: np.ones(2), "1": np.ones(2)}, {1: A, "1": A})
    assert vegrad.clip_by_global_norm_(grads, 1.0).clipped  # keeps nothing by name
    assert vegrad.measure(grads).names == ["a.b", "a.b"]


# ---------------------------------------------------------------------------- what is no such tree


@pytest.mark.parametrize(
    ("passed", "said"),
    [
        ({"a": {"b": [None, 1.5]}}, r'grads\["a"\]\["b"\]\[1\] must be .* not float'),
        ([[[1]]], r"grads\[0\]\[0\]\[0\] must be an array, .* or a sequence or mapping .* not int"),
        ({"a": "text"}, r'grads\["a"\] must be .* not str'),
        ([[b"text"], A], r"grads\[0\]\[0\] must be .* not bytes"),
        ([[bytearray(3)], A], r"grads\[0\]\[0\] must be .* not bytearray"),
        ({("a", 1): (g for g in [A])}, r"grads\[\('a', 1\)\] must be .* not generator"),
        ([{A.size}], r"grads\[0\] must be .* not set"),
        ([{"a": A.astype(int)}], r'grads\[0\]\["a"\] must be float16, .* not int64'),
        (Layer(A, {"a": A.astype(int)}), r'grads\[1\]\["a"\] must be float16, .* not int64'),
        (deque([A, [A > 0]]), r"grads\[1\]\[0\] must be float16, .* not bool"),
    ],
)
def test_no_buffers_inside(passed: Any, said: str) -> None:
    with pytest.raises(TypeError, match=said):
        vegrad.clip_by_global_norm_(passed, 1.0)
    with pytest.raises(TypeError, match=said.replace("grads", "buffers")):
        vegrad.measure(passed)


def test_labels_after_a_nested_container() -> None:
    with pytest.raises(TypeError, match=r"buffers\[2\] must be .* not float"):
        vegrad.norm([[A, A, A], {"a": A}, 2.0])
    with pytest.raises(TypeError, match=r'buffers\["c"\]\[1\] must be .* not float'):
        vegrad.norm({"a": A, "b": {"b": A}, "c": [[A, A], 2.0]})


def test_the_first_element_that_is_not_finite() -> None:
    bad = np.array([1.0, math.nan])
    for passed, label, name in [
        ({"a": [A, {"b": bad}]}, 'grads["a"][1]["b"]', "a.1.b"),
        ([A, None, [A], bad], "grads[3]", 3),
        ({"a": [A], 7: bad}, "grads[7]", 7),
    ]:
        with pytest.raises(vegrad.NonFiniteGradientError) as caught:
            vegrad.clip_by_norm_(changed(passed, np.copy), 1.0)
        assert str(caught.value).startswith(label + " must be finite, but is nan at (1,)")
        assert (caught.value.name, caught.value.index) == (name, (1,))
    assert vegrad.measure({"a": [bad]}).total.first_nonfinite == ("a.0", (1,))


def test_shared_memory_is_named_by_its_paths() -> None:
    with pytest.raises(ValueError, match=r'grads\["a"\]\[0\] and grads\["b"\]\["c"\] must not ov'):
        vegrad.clip_by_norm_({"a": [B], "b": {"c": B}}, 1.0)


@pytest.mark.parametrize("passed", [[[]], {"a": {}}, [[None], {}, ()], {"a": [{"b": [None]}]}])
def test_nothing_inside(passed: Any) -> None:
    assert vegrad.norm(passed) == 0.0
    assert vegrad.norms(passed).shape == (0,)
    assert vegrad.measure(passed).names == []
    assert vegrad.clip_by_global_norm_(passed, 1.0).norm == 0.0
    vegrad.AdamW().step(passed, passed)


def nest(depth: int) -> Any:
    tree: Any = A
    for level in range(depth):
        tree = [tree] if level % 2 else {"a": tree}
    return tree


def test_as_deep_as_64() -> None:
    assert vegrad.norm(nest(64)) == 3.0
    for depth in (65, 66, 100_000):
        tree = nest(depth)
        with pytest.raises(
            ValueError, match=r"buffers must be nested at most 64 deep, but buffers\["
        ):
            vegrad.norm(tree)
        while isinstance(tree, list | dict):  # else Python frees it by recursion
            tree = tree[0] if isinstance(tree, list) else tree.pop("a")


class Endless(Mapping[str, object]):
    """Holds a fresh one of itself."""

    def __getitem__(self, key: str) -> object:
        return Endless()

    def __iter__(self) -> Iterator[str]:
        return iter("ab")

    def __len__(self) -> int:
        return 2


def test_what_contains_itself() -> None:
    ring: list[Any] = [A]
    ring.append({"a": [ring, ring]})
    said = r'buffers\[1\]\["a"\]\[0\] must not be buffers itself, which it lies in'
    with pytest.raises(TypeError, match=said):
        vegrad.norm(ring)
    with pytest.raises(
        TypeError, match=r'grads\["x"\]\[1\]\["a"\]\[0\] must not be grads\["x"\] its'
    ):
        vegrad.clip_by_norm_({"x": ring}, 1.0)
    assert vegrad.norm([[A], [A]]) == pytest.approx(math.sqrt(18))
    twice = [B]
    assert vegrad.norm([twice, {"a": twice}]) == pytest.approx(math.sqrt(32))  # lies in none
    with pytest.raises(ValueError, match=r"nested at most 64 deep, but buffers.* is a Endless"):
        vegrad.norm(Endless())


class Broken(Endless):
    """Fails where it is read."""

    def __getitem__(self, key: str) -> object:
        raise OSError("in the middle")


class Twice(Endless):
    """Has one name for two buffers, which no real mapping has."""

    def items(self) -> Any:
        return [("a", np.ones(2)), ("a", np.ones(2))]


def test_a_mapping_that_has_a_name_twice() -> None:
    assert vegrad.norm([Twice()]) == 2.0
    with pytest.raises(ValueError, match=r'params\[0\] must have the names of .* has no \["a"\]'):
        vegrad.SGD(0.1).step([Twice()], [Twice()])


def test_errors_inside_are_passed_on() -> None:
    for passed in ([A, Broken()], {"a": [Broken()]}):
        with pytest.raises(OSError, match="in the middle"):
            vegrad.norm(passed)


# --------------------------------------------------------------------------------- other libraries


def test_tensors_in_a_tree() -> None:
    torch = pytest.importorskip("torch")
    grads = {"encoder": {"kernel": torch.full((2, 2), 3.0), "bias": None}, "heads": [torch.ones(4)]}
    params = {
        "encoder": {"kernel": torch.ones(2, 2), "bias": torch.ones(2)},
        "heads": [A.repeat(2)],
    }
    assert vegrad.norm(grads) == pytest.approx(math.sqrt(40))
    optimizer = vegrad.SGD(1.0, 0.9)
    optimizer.step(params, grads)
    assert params["encoder"]["kernel"].tolist() == [[-2, -2], [-2, -2]]
    assert list(optimizer.state_dict()["state"]) == ["encoder.kernel", "heads.0"]
    grads["heads"].append(torch.ones(2, dtype=torch.int64))
    with pytest.raises(TypeError, match=r'buffers\["heads"\]\[1\] must be float16.* not int64'):
        vegrad.measure(grads)


def test_jax_trees() -> None:
    jax = pytest.importorskip("jax")
    grads = {"params": {"Dense_0": {"kernel": jax.numpy.ones((2, 2)), "bias": jax.numpy.ones(5)}}}
    assert vegrad.norm(grads) == 3.0
    names = vegrad.measure(grads).names
    assert names == ["params.Dense_0.kernel", "params.Dense_0.bias"]
    with pytest.raises(ValueError, match=r'grads\["params"\]\["Dense_0"\]\["kernel"\].*writable'):
        vegrad.clip_by_norm_(grads, 1.0)

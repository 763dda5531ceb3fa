"""Lists of many small buffers that come again, one of them changed in between.

What is remembered of a list (its descriptor, its places, where a state lies) must never stand for
what a buffer was at the call before: its memory may be gone.
"""

import gc
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import vegrad
from vegrad import clipping

MANY, LIMIT = 80, 1.5  # more than are looked at on one thread; below every norm here
PLACE = 41


def draw(dtype: Any = np.float32) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    return [random.standard_normal(5 + i % 40).astype(dtype) for i in range(MANY)]


def reshaped(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = arrays[PLACE][:4].copy()
    assert vegrad.norm(arrays) > 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # NumPy's, from 2.5 on
        arrays[PLACE].shape = (2, 2)


def resized(arrays: list[np.ndarray]) -> None:
    arrays[PLACE].resize(5000, refcheck=False)
    arrays[PLACE][...] = 0.25


def shrunk(arrays: list[np.ndarray]) -> None:
    arrays[PLACE].resize(1, refcheck=False)


def emptied(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = np.empty(0, np.float32)


def turned(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = arrays[PLACE][::-1]


def spread(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = np.full(90, 3, np.float32)[::3]


def widened(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = arrays[PLACE].astype(np.float64)


def halved(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = arrays[PLACE].astype(np.float16)


def gone(arrays: list[np.ndarray]) -> None:
    arrays[PLACE] = None  # type: ignore[call-overload]


def freed(arrays: list[np.ndarray]) -> None:
    """Every array goes, and others come, some of which lie where one was."""
    arrays.clear()
    gc.collect()
    arrays += [np.full(7 + i % 30, 0.5, np.float32) for i in range(MANY)]


CHANGES = [reshaped, resized, shrunk, emptied, turned, spread, widened, halved, gone, freed]
every_change = pytest.mark.parametrize("change", CHANGES)


def joint(arrays: list[Any]) -> float:
    return float(np.sqrt(sum(np.square(np.float64(a)).sum() for a in arrays if a is not None)))


@every_change
def test_a_norm_and_a_clip_of_the_changed_list(change: Callable[..., None], threads: int) -> None:
    arrays = draw()
    for _ in range(2):
        vegrad.clip_by_global_norm_(list(arrays), 1e9)
    change(arrays)
    before = [None if a is None else np.array(a, np.float64) for a in arrays]
    right = joint(arrays)
    assert vegrad.norm(list(arrays)) == pytest.approx(right, rel=1e-12)
    done = vegrad.clip_by_global_norm_(list(arrays), LIMIT)
    assert done.norm == pytest.approx(right, rel=1e-12)
    assert done.norm_after == pytest.approx(joint(arrays), rel=1e-12)
    for got, was in zip(arrays, before, strict=True):
        if got is not None and was is not None:
            np.testing.assert_allclose(got, was * (LIMIT / right), rtol=1e-3)


def test_a_list_in_which_one_is_read_only_now() -> None:
    arrays = draw()
    vegrad.clip_by_global_norm_(list(arrays), 1e9)
    arrays[PLACE].flags.writeable = False
    kept = [a.tobytes() for a in arrays]
    with pytest.raises(ValueError, match=rf"grads\[{PLACE}\] must be writable"):
        vegrad.clip_by_global_norm_(list(arrays), LIMIT)
    assert [a.tobytes() for a in arrays] == kept
    assert vegrad.norm(list(arrays)) == pytest.approx(joint(arrays), rel=1e-12)


def test_a_list_in_which_one_has_another_dtype_now() -> None:
    arrays = draw()
    vegrad.norm(list(arrays))
    arrays[PLACE] = arrays[PLACE].view(np.int32)
    with pytest.raises(TypeError, match=rf"buffers\[{PLACE}\] must be .*, not int32"):
        vegrad.norm(list(arrays))


def test_what_was_only_read_may_overlap_but_not_be_written() -> None:
    """The same buffers at the same places, of which more are written at the second call."""
    p, q, g = (np.full(8, 3, np.float32) for _ in range(3))
    optimizer = vegrad.SGD(0.0)
    optimizer.step([p, q], [g, g])
    with pytest.raises(ValueError, match=r"grads\[2\] and grads\[3\] must not overlap"):
        vegrad.clip_by_global_norm_([p, q, g, g], 1.0)
    assert (g == 3).all()


@pytest.mark.parametrize("clip", [None, clipping.GlobalNorm(LIMIT), clipping.Value(0.5)], ids=str)
def test_steps_whose_buffers_are_replaced(clip: Any, threads: int) -> None:
    """Parameters and gradients in new memory at each step take the steps of those that stay."""
    one, other = vegrad.AdamW(0.1, clip=clip), vegrad.AdamW(0.1, clip=clip)
    stay, move = draw(), draw()
    for step in range(4):
        grads = [np.float32(step + 1) * a for a in draw()]
        one.step(list(stay), list(grads))
        old = move
        move = [a.copy() for a in old]
        kept = [a.tobytes() for a in old]
        other.step(list(move), [g.copy() for g in grads])
        assert [a.tobytes() for a in old] == kept
        assert [a.tobytes() for a in move] == [a.tobytes() for a in stay]
        del old
        gc.collect()


def test_a_step_after_a_state_was_loaded_in_between() -> None:
    one, other = vegrad.AdamW(0.1), vegrad.AdamW(0.1)
    stay, same, grads = draw(), draw(), draw()
    for _ in range(3):
        one.step(list(stay), list(grads))
        other.step(list(same), list(grads))
        other.load_state_dict(other.state_dict())
        gc.collect()
        assert [a.tobytes() for a in same] == [a.tobytes() for a in stay]


def tensor_changes() -> dict[str, Callable[[Any, Any], None]]:
    torch = pytest.importorskip("torch")

    def data(param: Any, _: Any) -> None:
        param.data = param.data.clone()

    def grad_data(_: Any, grad: Any) -> None:
        grad.data = grad.data.clone()

    def set_(param: Any, grad: Any) -> None:
        with torch.no_grad():
            param.set_(param.detach().clone())
            grad.set_(grad.clone())

    def resize_(_: Any, grad: Any) -> None:
        size = grad.shape
        grad.resize_(100_000).resize_(size)

    def turned(_: Any, grad: Any) -> None:
        grad.data = grad.data.clone().t().contiguous().t()

    return {one.__name__: one for one in (data, grad_data, set_, resize_, turned)}


@pytest.mark.parametrize("change", ["data", "grad_data", "set_", "resize_", "turned"])
def test_tensors_in_other_memory(change: str, threads: int) -> None:
    torch = pytest.importorskip("torch")
    import vegrad.torch

    changed = tensor_changes()[change]
    torch.manual_seed(0)
    values = [torch.randn(4 + i % 9, 3) for i in range(MANY)]
    slopes = [torch.randn(4 + i % 9, 3) for i in range(MANY)]
    sides = []
    for _ in range(2):
        params = [torch.nn.Parameter(one.clone()) for one in values]
        for param, slope in zip(params, slopes, strict=True):
            param.grad = slope.clone()
        clip = clipping.GlobalNorm(LIMIT)
        sides.append((params, vegrad.torch.AdamW(params, 0.1, clip=clip)))
    (stay, one), (move, other) = sides
    for _ in range(3):
        one.step()
        other.step()
        vegrad.torch.clip_grad_norm_(stay, 50.0)
        vegrad.torch.clip_grad_norm_(move, 50.0)
        old = move[PLACE].detach()
        changed(move[PLACE], move[PLACE].grad)
        assert all(map(torch.equal, stay, move))
        assert all(torch.equal(a.grad, b.grad) for a, b in zip(stay, move, strict=True))
        if change in ("data", "set_"):
            assert old.data_ptr() != move[PLACE].data_ptr()


def test_a_parameter_in_other_memory_leaves_the_old_alone() -> None:
    torch = pytest.importorskip("torch")
    import vegrad.torch

    params = [torch.nn.Parameter(torch.ones(3)) for _ in range(MANY)]
    for param in params:
        param.grad = torch.ones(3)
    optimizer = vegrad.torch.SGD(params, 0.5)
    optimizer.step()
    old = params[PLACE].data
    params[PLACE].data = old.clone()
    params[PLACE + 1].grad = None
    optimizer.step()
    assert old.tolist() == params[PLACE + 1].tolist() == [0.5] * 3
    assert params[PLACE].tolist() == params[0].tolist() == [0.0] * 3

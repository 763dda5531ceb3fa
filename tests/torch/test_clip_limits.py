"""Limits that are tensors, arrays or infinite, beside PyTorch where it takes them too."""

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
import vegrad  # noqa: E402
import vegrad.torch as ours  # noqa: E402
from torch.nn import utils  # noqa: E402
from vegrad import clipping  # noqa: E402


def parameters(values: list[list[float]], dtypes: list[Any]) -> list[Any]:
    found = [torch.nn.Parameter(torch.zeros(len(v), dtype=d)) for v, d in zip(values, dtypes)]  # noqa: B905
    for one, value in zip(found, values, strict=True):
        one.grad = torch.tensor(value, dtype=one.dtype)
    return found


DTYPES = {
    "float32": [torch.float32, torch.float32],
    "mixed": [torch.float32, torch.float64],
    "some for PyTorch": [torch.float32, torch.complex64],
    "all for PyTorch": [torch.complex64, torch.complex64],
}


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1.0])
@pytest.mark.parametrize("limit", [math.inf, 1.0, 0.0])
@pytest.mark.parametrize("dtypes", DTYPES.values(), ids=list(DTYPES))
def test_what_is_not_finite_as_in_pytorch(bad: float, limit: float, dtypes: list[Any]) -> None:
    """Also without a limit: PyTorch's factor is then NaN, for all gradients."""
    values = [[3.0, bad], [4.0, 5.0]]
    mine, theirs = parameters(values, dtypes), parameters(values, dtypes)
    norm = ours.clip_grad_norm_(mine, limit)
    torch.testing.assert_close(norm, utils.clip_grad_norm_(theirs, limit), equal_nan=True)
    for one, other in zip(mine, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, equal_nan=True)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_no_limit_without_compat_changes_nothing(bad: float) -> None:
    params = parameters([[3.0, bad], [4.0, 5.0]], DTYPES["float32"])
    norm = ours.clip_grad_norm_(params, math.inf, compat=False)
    assert not math.isfinite(norm)
    torch.testing.assert_close(params[1].grad, torch.tensor([4.0, 5.0]))


LIMITS = {
    "a tensor": lambda: torch.tensor(0.5),
    "a tensor with a gradient": lambda: torch.tensor(0.5, requires_grad=True),
    "an array": lambda: np.array(0.5),
    "a float32": lambda: np.float32(0.5),
    "an integer": lambda: np.array(1),
}


@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad")
@pytest.mark.parametrize("name", LIMITS)
def test_limits_of_all_kinds(name: str) -> None:
    limit: Any = LIMITS[name]()
    number = float(limit.item())
    for call in (
        lambda grad, limit: vegrad.clip_by_value_(grad, limit),
        lambda grad, limit: vegrad.clip_by_norm_(grad, limit),
        lambda grad, limit: vegrad.clip_by_global_norm_(grad, limit, ord=limit),
        lambda grad, limit: vegrad.clip_by_block_rms_(grad, limit),
        lambda grad, limit: vegrad.adaptive_clip_(grad, grad + 1, limit, eps=limit),
        lambda grad, limit: clipping.GlobalNorm(limit).apply_(grad),
        lambda grad, limit: clipping.ZClip(max_grad_norm=limit).apply_(grad),
    ):
        one, other = np.array([3.0, 4.0]), np.array([3.0, 4.0])
        call(one, limit)
        call(other, number)
        np.testing.assert_array_equal(one, other)
    assert repr(clipping.GlobalNorm(limit)) == repr(clipping.GlobalNorm(number))
    params = [parameters([[3.0, 4.0]], [torch.float32]) for _ in range(3)]
    for clip in ("clip_grad_norm_", "clip_grad_value_"):
        getattr(ours, clip)(params[0], limit)
        getattr(ours, clip)(params[1], number)
        torch.testing.assert_close(params[0][0].grad, params[1][0].grad)
    ours.clip_grads_with_norm_(params[2], limit, torch.tensor(5.0))
    torch.testing.assert_close(params[2][0].grad.norm().item(), number)


@pytest.mark.parametrize(
    "limit",
    [
        *(torch.ones(1), torch.ones(2), np.ones(1), torch.tensor(True), np.array("1"), 1j),
        torch.empty((), device="meta"),  # has no value
    ],
)
def test_limits_that_are_none(limit: Any) -> None:
    with pytest.raises(TypeError, match="max_norm must be a real number, not"):
        vegrad.clip_by_global_norm_(np.ones(3), limit)
    with pytest.raises(TypeError, match="limit must be a real number, not"):
        clipping.Value(limit)


@pytest.mark.parametrize(
    "limit", [10**400, -(10**400), 10**5000, Fraction(-(10**400), 3)], ids=range(4)
)
def test_limits_beyond_all_numbers(limit: Any) -> None:
    """A message is no longer than a screen, whatever it is of."""
    for call in (
        lambda: vegrad.clip_by_global_norm_(np.ones(3), limit),
        lambda: vegrad.clip_by_value_(np.ones(3), limit),
        lambda: vegrad.norm(np.ones(3), limit),
        lambda: clipping.AdaGC(ratio=limit),
        lambda: vegrad.SGD(limit),
        lambda: vegrad.theory.critical_point("tanh", limit),
        lambda: vegrad.theory.expected_flow(vegrad.MLP([2, 1]), input_rms=limit),
    ):
        with pytest.raises(ValueError, match=" must be ") as caught:
            call()
        assert len(str(caught.value)) < 200

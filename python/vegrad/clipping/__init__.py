"""Clipping of gradients in place, and the rules that training loops apply.

`grads` is one buffer, or a sequence or mapping of buffers, nested as `vegrad.measure` takes them. A
buffer is a NumPy array or a CPU tensor that speaks DLPack, of float16, bfloat16, float32 or
float64, with any shape and strides. `None` entries are passed over. All checks come before the
first write. Parameters of a PyTorch model are refused, as they are no gradients: TypeError.

Norms of float16, bfloat16 and float32 buffers accumulate in float64, those of float64 buffers in
scaled sums, so that a norm is right whenever every element is finite. Results have the same bits
with any number of threads and on every instruction set. A norm that exceeds its limit by no more
than the rounding of the elements explains is left alone, so that clipping twice changes nothing.
Nothing is written where nothing is clipped.

Memory is written behind the back of PyTorch's version counter: clip after the backward pass, not
between a forward pass that keeps a tensor and its backward pass. `vegrad.torch` counts.

`nonfinite` says what happens if an element is inf or NaN: "raise" (NonFiniteGradientError, nothing
changes), "skip" (nothing changes), "zero" (such elements become 0) or "propagate" (the formula is
applied as it stands).
"""

from __future__ import annotations

from vegrad import _core
from vegrad._core import Clipped, NonFiniteGradientError
from vegrad.arrays import checks
from vegrad.arrays.checks import Buffers, Number, Policy
from vegrad.clipping.learning import AdaGC, AutoClip, ZClip
from vegrad.clipping.rules import Adaptive, BlockRMS, GlobalNorm, Norm, Rule, Value
from vegrad.clipping.skipping import SkipSpike

__all__ = [
    "AdaGC",
    "Adaptive",
    "AutoClip",
    "BlockRMS",
    "Clipped",
    "GlobalNorm",
    "NonFiniteGradientError",
    "Norm",
    "Rule",
    "SkipSpike",
    "Value",
    "ZClip",
    "adaptive_clip_",
    "clip_by_block_rms_",
    "clip_by_global_norm_",
    "clip_by_norm_",
    "clip_by_value_",
]


def clip_by_value_(grads: Buffers, limit: Number, *, nonfinite: Policy = "raise") -> Clipped:
    """Clip every element: g ← min(max(g, -limit), limit). The norms that it returns are L2 norms.

    The limit is rounded to the dtype of each buffer.

    Args:
        grads: one buffer, or a sequence or mapping of buffers, nested as you like.
        limit: the largest magnitude of an element, at least 0; inf clips nothing.
        nonfinite: what to do about elements that are inf or NaN: "raise", "skip", "zero" or
            "propagate".

    Raises:
        TypeError, ValueError: a buffer or an argument does not fit; nothing has changed.
        NonFiniteGradientError: an element is not finite and nonfinite is "raise"; nothing has
            changed.
    """
    return _core.clip(
        "value",
        checks.as_gradients(grads),
        checks.as_limit("limit", limit),
        2.0,
        checks.as_policy(nonfinite),
    )


def clip_by_norm_(
    grads: Buffers, max_norm: Number | None, *, ord: Number = 2, nonfinite: Policy = "raise"
) -> Clipped:
    """Clip each buffer by its own norm N: g ← g · min(1, max_norm / N).

    With max_norm=None the gradients are only measured, and may be read-only or overlap themselves
    as views do; but nonfinite="zero" still writes zeros.

    Args:
        grads: as for `clip_by_value_`.
        max_norm: the largest norm of a buffer, at least 0, or None.
        ord: the order of the norm, above 0; inf for the largest magnitude.
        nonfinite: as for `clip_by_value_`.

    Raises:
        TypeError, ValueError, NonFiniteGradientError: as `clip_by_value_` does.
    """
    limit = checks.as_limit_or_none("max_norm", max_norm)
    return _core.clip(
        "norm", checks.as_gradients(grads), limit, checks.as_order(ord), checks.as_policy(nonfinite)
    )


def clip_by_global_norm_(
    grads: Buffers, max_norm: Number | None, *, ord: Number = 2, nonfinite: Policy = "raise"
) -> Clipped:
    """Clip all buffers by their joint norm N: g ← g · min(1, max_norm / N).

    With max_norm=None the gradients are only measured, and may be read-only or overlap themselves
    as views do; but nonfinite="zero" still writes zeros. Source: Pascanu et al. 2013,
    arXiv:1211.5063.

    Args:
        grads: as for `clip_by_value_`.
        max_norm: the largest joint norm, at least 0, or None.
        ord: the order of the norm, above 0; inf for the largest magnitude.
        nonfinite: as for `clip_by_value_`.

    Raises:
        TypeError, ValueError, NonFiniteGradientError: as `clip_by_value_` does.
    """
    limit = checks.as_limit_or_none("max_norm", max_norm)
    return _core.clip(
        "global_norm",
        checks.as_gradients(grads),
        limit,
        checks.as_order(ord),
        checks.as_policy(nonfinite),
    )


def clip_by_block_rms_(grads: Buffers, max_rms: Number, *, nonfinite: Policy = "raise") -> Clipped:
    """Clip each buffer by its root mean square: g ← g · min(1, max_rms / RMS(g)).

    The norms that it returns are L2 norms.

    Args:
        grads: as for `clip_by_value_`.
        max_rms: the largest root mean square of a buffer, at least 0.
        nonfinite: as for `clip_by_value_`.

    Raises:
        TypeError, ValueError, NonFiniteGradientError: as `clip_by_value_` does.
    """
    return _core.clip(
        "block_rms",
        checks.as_gradients(grads),
        checks.as_limit("max_rms", max_rms),
        2.0,
        checks.as_policy(nonfinite),
    )


def adaptive_clip_(
    grads: Buffers,
    params: Buffers,
    clipping: Number = 0.01,
    *,
    eps: Number = 1e-3,
    nonfinite: Policy = "raise",
) -> Clipped:
    """Clip the gradient of each unit in proportion to its weights (Brock et al. 2021).

    For each unit, M = clipping · max(‖W‖, eps); where ‖G‖ > M, G ← G · M / max(‖G‖, 1e-6). The
    units are counted by the first axis: a unit is a row of an (out, in) weight. A buffer with one
    axis or none is one unit. All norms are L2 norms. Only gradients are looked through for what is
    not finite: a unit with a NaN or inf among its weights is not clipped. Source: arXiv:2102.06171;
    the authors' own code takes a weight with a single column as one unit, as it does a vector.

    Args:
        grads: as for `clip_by_value_`.
        params: the parameters, buffers with the same names (or number), nesting and shapes; their
            dtypes may differ from those of the gradients.
        clipping: λ, the largest ratio of gradient to weight.
        eps: the value that stands for ‖W‖ if that is smaller.
        nonfinite: as for `clip_by_value_`, about the gradients.

    Raises:
        TypeError, ValueError, NonFiniteGradientError: as `clip_by_value_` does.
    """
    ratio, least = checks.as_limit("clipping", clipping), checks.as_limit("eps", eps)
    return _core.clip(
        "adaptive",
        checks.as_gradients(grads),
        ratio,
        2.0,
        checks.as_policy(nonfinite),
        params,
        least,
    )

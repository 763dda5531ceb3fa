"""The clipping functions in a table, with their formulas, and the check of one call."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import vegrad

from tests import reference_clipping as reference
from tests.reference_buffers import assert_close, assert_rounded, laid_out, make, to_float64
from tests.reference_clipping import Formula


class Function(NamedTuple):
    """A clipping function: its call, its formula, and the sizes that its limit is compared with."""

    call: Callable[..., Any]  # (grads, params, limit, **options)
    formula: Callable[..., Formula]  # (params, limit, dtypes)
    sizes: Callable[[list[np.ndarray], list[np.ndarray]], list[float]]
    p: float = 2


def of_each(size: Callable[[np.ndarray], float]) -> Callable[..., list[float]]:
    return lambda grads, params: [size(g) for g in grads if g.size]


def unit_ratios(grads: list[np.ndarray], params: list[np.ndarray]) -> list[float]:
    """Return ‖G_i‖/max(‖W_i‖, ε) of every unit, which is compared with λ."""
    ratios = []
    for G, W in zip(grads, params, strict=True):
        for i in [...] if G.ndim <= 1 else range(len(G)):
            M = max(float(reference.norm([W[i]])), 1e-3)
            ratios.append(float(reference.norm([G[i]]).over(M)))
    return ratios


def global_norm(p: float) -> Function:
    return Function(
        lambda grads, params, limit, **kw: vegrad.clip_by_global_norm_(grads, limit, ord=p, **kw),
        lambda params, limit, dtypes: reference.global_norm(limit, p, dtypes=dtypes),
        lambda grads, params: [float(reference.norm(grads, p))],
        p,
    )


def by_norm(p: float) -> Function:
    return Function(
        lambda grads, params, limit, **kw: vegrad.clip_by_norm_(grads, limit, ord=p, **kw),
        lambda params, limit, dtypes: reference.by_norm(limit, p, dtypes=dtypes),
        of_each(lambda g: float(reference.norm([g], p))),
        p,
    )


FUNCTIONS = {
    "value": Function(
        lambda grads, params, limit, **kw: vegrad.clip_by_value_(grads, limit, **kw),
        lambda params, limit, dtypes: reference.value(limit, dtypes=dtypes),
        of_each(lambda g: float(np.max(np.abs(g)))),
    ),
    "norm": by_norm(2),
    "norm-1": by_norm(1),
    "norm-inf": by_norm(math.inf),
    "global": global_norm(2),
    "global-1": global_norm(1),
    "global-3": global_norm(3),
    "global-half": global_norm(0.5),
    "global-inf": global_norm(math.inf),
    "rms": Function(
        lambda grads, params, limit, **kw: vegrad.clip_by_block_rms_(grads, limit, **kw),
        lambda params, limit, dtypes: reference.block_rms(limit, dtypes=dtypes),
        of_each(lambda g: float(reference.norm([g]).over(math.sqrt(g.size)))),
    ),
    "adaptive": Function(
        lambda grads, params, limit, **kw: vegrad.adaptive_clip_(grads, params, limit, **kw),
        lambda params, limit, dtypes: reference.adaptive(params, limit, dtypes=dtypes),
        unit_ratios,
    ),
}


def some_limit(function: str, grads: list[Any], params: list[Any], fraction: float) -> float:
    """Return a limit that is this fraction of a typical size that it is compared with."""
    sizes = FUNCTIONS[function].sizes(to_float64(grads), to_float64(params))
    sizes = sorted(size for size in sizes if 0 < size < math.inf)
    return fraction * (sizes[len(sizes) // 2] if sizes else 1.0)


def assert_clips(
    function: str,
    grads: list[Any],
    params: list[Any],
    dtypes: list[str],
    limit: float,
    policy: str = "raise",
    bases: list[np.ndarray] | None = None,
) -> Any:
    """Check one call against the reference: buffers, the memory around them, and the result."""
    call, formula, _, p = FUNCTIONS[function]
    before, exact = [g.tobytes() for g in grads], to_float64(grads)
    around = [(base.copy(), base) for base in bases or []]
    want = reference.clip(formula(to_float64(params), limit, dtypes), exact, nonfinite=policy, p=p)

    said = call(grads, params, limit, nonfinite=policy)
    after = to_float64(grads)
    for k, (got, expected) in enumerate(zip(after, want.grads, strict=True)):
        if want.written[k]:
            assert_rounded(got, expected, dtypes[k])
            known = ~np.isnan(expected)
            np.testing.assert_array_equal(np.signbit(got[known]), np.signbit(expected[known]))
        else:
            assert grads[k].tobytes() == before[k], f"buffer {k} was written"
    for was, base in around:
        assert_only_the_views_changed(was, base, grads)

    assert (said.clipped, said.skipped, said.nonfinite) == (
        want.clipped,
        want.skipped,
        want.nonfinite,
    )
    assert [type(x) for x in (said.clipped, said.skipped, said.nonfinite)] == [bool, bool, int]
    assert [type(x) for x in (said.norm, said.norm_after, said.coefficient)] == [float] * 3
    assert_close(said.norm, want.norm, say="norm")
    assert_close(said.norm_after, float(reference.norm(after, p)), say="norm_after")
    assert said.norms.shape == (len(grads),)
    for got, expected in zip(said.norms.tolist(), want.norms, strict=True):
        assert_close(got, expected, say="norms")
    if not math.isnan(want.norm):
        # A factor below the normal range of float64 is as exact as it can be.
        assert_close(said.coefficient, want.coefficient, floor=2.0**-1073, say="coefficient")
    return said


def assert_only_the_views_changed(was: np.ndarray, base: np.ndarray, views: list[Any]) -> None:
    """Check that every byte of `base` outside the views is as it was."""
    inside = np.zeros(base.size, bool)
    start = base.ctypes.data
    for view in views:
        if view.size and np.may_share_memory(view, base):
            steps = np.indices(view.shape).reshape(view.ndim, view.size)
            bytes_in = view.ctypes.data - start + np.array(view.strides, int) @ steps
            inside[bytes_in // base.itemsize] = True
    flat = [a.reshape(-1)[~inside].tobytes() for a in (was, base)]
    assert flat[0] == flat[1], "memory beside the view was written"


def build(
    cases: list[tuple[Any, str, str]], dtypes: list[str], seed: int
) -> tuple[list[Any], list[Any], list[np.ndarray]]:
    """Make gradients in their layouts, parameters of their shapes, and the arrays they view."""
    rng = np.random.default_rng(seed)
    pairs = [
        laid_out(make(rng, dtype, shape, kind), layout)
        for (shape, kind, layout), dtype in zip(cases, dtypes, strict=True)
    ]
    params = [make(rng, "float32", shape, "plain") for shape, _, _ in cases]
    return [view for view, _ in pairs], params, [base for _, base in pairs]

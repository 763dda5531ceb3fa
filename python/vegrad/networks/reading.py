"""One pass of a `vegrad.MLP`, as a reading."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from math import hypot, inf, isfinite, log2, nan
from typing import Any

import numpy as np

from vegrad.arrays.checks import Array, FloatArray, as_array, as_batch, as_target
from vegrad.arrays.measurement import norms
from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.rules.columns import FAR
from vegrad.flow.data import Compared, Input, KnownLoss, NonFiniteData, NonFiniteValue, Spread
from vegrad.flow.finding import Finding
from vegrad.flow.flow import Flow
from vegrad.flow.reading import INPUT, Chain, Layer, Operation, Parameter, Reading
from vegrad.flow.resampling import resampled
from vegrad.flow.wording import DECADE
from vegrad.networks.network import Examined, Network
from vegrad.networks.rows import Batch
from vegrad.networks.vocabulary import LayerVocabulary
from vegrad.networks.what_if import ScaledInputs
from vegrad.theory.expected import ExpectedFlow, expected_flow

LOSSES = {
    "mse": "mse_loss",
    "cross_entropy": "cross_entropy",
    "binary_cross_entropy": "binary_cross_entropy_with_logits",
}
PARTS = 64  # quantiles


def read(
    network: Network, x: Any, target: Any, *, resamples: int, seed: int, theory: bool = True
) -> Reading:
    """Run a network forward and back, which overwrites its gradients and flow, and read it."""
    config = network.config
    depth = len(config["sizes"]) - 1
    vocabulary = LayerVocabulary(depth)
    problem = _check_finite("x", x, config) or _check_finite("target", target, config)
    if problem is not None:
        return Reading(vocabulary=vocabulary, about=dict(config), problem=problem)
    batch = _checked(x, target, config)
    seen = network.examined(batch.x, batch.target)
    loss, flow = seen.loss, _flow_of(network)
    underflowed, overflowed = _lost(network, flow)
    chain = Chain(
        layers=tuple(
            Layer(f"layers.{n}", f"layers.{n}.weight", f"layers.{n}.bias", config["norm"], width)
            for n, width in enumerate(config["sizes"][1:])
        ),
        flow=flow,
        activation=config["activation"],
        output=config["output"],
        norm=config["norm"],
        residual=config["residual"],
        batches=_resampled(seen, resamples, seed),
        expected=expected_or_none(network, x) if theory else None,
        underflowed=underflowed,
        overflowed=overflowed,
    )
    return Reading(
        vocabulary=vocabulary,
        about=dict(config),
        dtype=config["dtype"],
        loss=loss,
        loss_kind=config["loss"],
        operations=_operations(config, flow),
        parameters=_parameters(network, flow),
        compared=_compared(network, seen, target),
        losses=(_known_loss(batch.target, seen, loss, config),),
        inputs=(Input.of("x", batch.x),),
        what_if=ScaledInputs(network, batch.x, lambda twin, x: twin.backward(x, batch.target)),
        chain=chain,
    )


def _checked(x: Any, target: Any, config: Mapping[str, Any]) -> Batch:
    """Return the rows as a pass takes them; errors are those of the shapes that were given."""
    rows = as_batch(x, config["sizes"][0], np.dtype(config["dtype"]))
    outputs, dtype = config["sizes"][-1], rows.dtype
    return Batch(rows, as_target(target, len(rows), outputs, dtype, config["loss"]))


def _compared(network: Network, seen: Examined, target: object) -> tuple[Compared, ...]:
    """Write down the output beside the target, as the loss compares them."""
    outputs, config = seen.outputs, network.config
    wanted = as_array(target, "target")
    if wanted.ndim < outputs.ndim and config["loss"] != "cross_entropy":
        wanted = wanted[:, None]
    layers = len(config["sizes"]) - 1
    made = 2 * layers + (layers - 1) * (config["norm"] is not None) - 1
    residual = config["residual"] and config["sizes"][-2] == config["sizes"][-1]
    if residual or not np.isfinite(outputs).all():
        return ()
    return (compared_outputs(outputs, wanted, seen.loss, config, made + _skips(config)),)


def compared_outputs(
    outputs: Array, wanted: Array, loss: float, config: Mapping[str, Any], place: int
) -> Compared:
    """Write down outputs (N, O) beside targets; `place` is the operation that made them."""
    return Compared(
        LOSSES[config["loss"]],
        _spread(outputs),
        _spread(wanted),
        place,
        value=loss,
        units=outputs.shape[1],
        labels=config["loss"] == "cross_entropy",
    )


def _known_loss(target: Array, seen: Examined, loss: float, config: Mapping[str, Any]) -> KnownLoss:
    known = known_loss(target, loss, config)
    if config["loss"] == "binary_cross_entropy":
        right = (target > 0.5).reshape(len(target), -1)
        ones = right.mean(axis=0)
        wrong = float(np.mean((seen.outputs > 0).reshape(right.shape) != right))
        return replace(known, wrong=wrong, guess=float(np.minimum(ones, 1 - ones).mean()))
    if config["loss"] != "cross_entropy" or seen.outputs.ndim != 2:
        return known
    commonest = np.bincount(target.ravel()).max() / target.size
    wrong = float(np.mean(seen.outputs.argmax(1) != target.ravel()))
    return replace(known, wrong=wrong, guess=1 - float(commonest))


def known_loss(target: Array, loss: float, config: Mapping[str, Any]) -> KnownLoss:
    """Write down the loss beside that of the best output that is the same for all rows."""
    return KnownLoss(config["loss"], loss, best_constant(target, config["loss"]))


def best_constant(target: Array, loss: str) -> float:
    """Return the mean loss of the best output that is the same for all rows."""
    if loss == "cross_entropy":
        share = np.bincount(target.ravel()) / target.size
        share = share[share > 0]
        return float(-(share * np.log(share)).sum())
    wanted = target.reshape(len(target), -1)
    if loss == "mse":
        with np.errstate(all="ignore"):  # an infinite target
            return float(wanted.var(axis=0, dtype=np.float64).mean())
    mean = np.clip(wanted.mean(axis=0, dtype=np.float64), 1e-12, 1 - 1e-12)
    return float(-(mean * np.log(mean) + (1 - mean) * np.log1p(-mean)).mean())


def _skips(config: Mapping[str, Any]) -> int:
    """Return the number of skip connections, which are operations too."""
    sizes = config["sizes"]
    return sum(a == b for a, b in pairwise(sizes)) if config["residual"] else 0


def _spread(values: Array) -> Spread:
    """Return where numbers lie."""
    numbers = np.asarray(values, np.float64)
    nearest = np.rint(np.linspace(0, numbers.size - 1, PARTS)).astype(np.intp)
    parts = np.sort(values, axis=None)[nearest].astype(np.float64)  # narrow ones sort faster
    return Spread(
        numbers.shape,
        float(numbers.min()),
        float(numbers.max()),
        float(numbers.mean()),
        float(numbers.std()),
        tuple(parts.tolist()),
        whole=bool((numbers == np.round(numbers)).all()),
    )


def _operations(config: Mapping[str, Any], flow: Flow) -> tuple[Operation, ...]:
    """Write down the pass as the operations that it consists of, with δ where it was measured."""
    found: list[Operation] = []
    below, sizes = INPUT, config["sizes"]

    def add(
        kind: str,
        name: str,
        *also: int,
        parameters: Sequence[str] = (),
        delta: float = nan,
        size: float = nan,
    ) -> int:
        below, rms = (before, *also), -inf if size == 0 else log2(size)
        found.append(Operation(kind, name, below, tuple(parameters), rms, delta))
        return len(found) - 1

    last = len(sizes) - 2
    for n in range(last + 1):
        before, start, name = below, below, f"layers.{n}"
        own, delta = (f"{name}.weight", f"{name}.bias"), float(flow.delta_log2[n])
        size = hypot(float(flow.preactivation_mean[n]), float(flow.preactivation_std[n]))
        before = add("linear", name, parameters=own, delta=delta, size=size)
        if config["norm"] is not None and n < last:
            before = add(f"{config['norm']}_norm", name)
        before = add(config["output" if n == last else "activation"], name)
        if config["residual"] and sizes[n] == sizes[n + 1]:
            before = add("add", name, start)
        below = before
    before = below
    add(config["loss"], "loss")
    return tuple(found)


def _parameters(network: Network, flow: Flow) -> dict[str, Parameter]:
    found = {}
    sizes = norms(network.parameters).tolist()
    for (name, value), norm in zip(network.parameters.items(), sizes, strict=True):
        is_weight, layer = name.endswith("weight"), int(name.split(".")[1])
        found[name] = Parameter(
            name,
            value.shape,
            log2(norm) - log2(value.size) / 2 if 0 < norm < inf else -inf,
            gradient_log2=float(flow.gradient_log2[layer]) if is_weight else nan,
            nonfinite=None if isfinite(norm) else first_nonfinite(value),
            copies=_copies(value) if is_weight else (False, False),
        )
    return found


def _copies(weight: Array) -> tuple[bool, bool]:
    """Return True where all rows are equal, and all columns: see `Parameter.copies`."""
    rows, columns = weight.shape
    if (weight[0, 0] != weight[-1, 0]) and (weight[0, 0] != weight[0, -1]):
        return False, False
    return (
        rows > 1 and bool((weight == weight[:1]).all()),
        columns > 1 and bool((weight == weight[:, :1]).all()),
    )


def first_nonfinite(value: Array) -> NonFiniteValue | None:
    """Return the first element that is NaN or infinite, if there is one."""
    bad = ~np.isfinite(value)
    if not bad.any():
        return None
    place = tuple(int(n) for n in np.argwhere(bad)[0])
    return NonFiniteValue(place, float(value[place]), int(bad.sum()))


def _lost(network: Network, flow: Flow) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the layers whose true weight gradient is finite, while the dtype's is 0 or inf."""
    weights = [one for name, one in network.gradients.items() if name.endswith("weight")]
    sizes = norms(weights)
    usual = (sizes > 0) & (sizes < inf)  # which needs no closer look
    suspects = np.flatnonzero(np.isfinite(flow.gradient_log2) & ~usual).tolist()
    return (
        tuple(i for i in suspects if not weights[i].any()),
        tuple(i for i in suspects if np.isinf(weights[i]).any()),
    )


def _resampled(seen: Examined, count: int, seed: int) -> FloatArray:
    """Return gains (count, L - 1), as if of batches as large as this one.

    Each row goes its own way and the loss is a mean over rows, so δ of a batch that is drawn again
    consists of the rows' own.
    """
    squares, exponents = seen.row_squares, seen.exponents
    finite = bool(np.isfinite(squares.sum()))

    def gains(rows: Array) -> FloatArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            if finite:  # how often each row was drawn
                sums = squares @ np.bincount(rows, minlength=squares.shape[1])
            else:
                sums = squares[:, rows].sum(axis=1)
            sizes = np.log2(sums) / 2 + exponents
            found: FloatArray = sizes[:-1] - sizes[1:]
        return found

    return resampled(gains, squares.shape[1], len(squares) - 1, count, seed)


def expected_or_none(network: Network, x: object) -> ExpectedFlow | None:
    """Return what theory expects of the network on x (B, I), where it has a say."""
    try:
        return expected_flow(network, as_array(x, "x"))
    # Of inputs that are all zero, or too large, or a normalization of one unit theory says nothing.
    except (ValueError, ZeroDivisionError):
        return None


def _check_finite(name: str, value: object, config: Mapping[str, Any]) -> NonFiniteData | None:
    """Return what is not finite in the data as the network sees them.

    The shapes are judged by `backward`.
    """
    array, dtype = as_array(value, name), np.dtype(config["dtype"])
    if array.dtype.kind in "biu" or array.ndim not in (1, 2):
        return None
    if name == "x" and array.shape[-1] != config["sizes"][0]:
        return None
    with np.errstate(over="ignore"):
        seen = array.astype(dtype)
    first = first_nonfinite(seen)
    if first is None:
        return None
    finite = isfinite(array[first.index])
    return NonFiniteData(
        "data" if name == "x" else "target",
        name,
        first,
        rows=int((~np.isfinite(seen)).reshape(len(seen), -1).any(axis=1).sum()),
        of=len(seen),
        too_large_for=dtype.name if finite else "",
    )


# For a training -----------------------------------------------------------------------------------

# A first batch that need not be judged: its loss, in those of the best constant output, its sizes,
# and the log2 of its gradients.
USUAL, PLAIN, FAINT = 2.0, 20.0, 20.0
NARROWEST = 0.01  # spread of a column, of a few rows, over the largest


def is_usual(network: Network, batch: Batch, constant: float) -> bool:
    """Return True if one pass shows nothing that comes near to a limit of any rule.

    It takes a tenth of a judgement's time, which short trainings would feel. What it cannot
    see, such as a bounded output, is judged. `constant` is the loss of the best constant output.
    """
    loss = network.backward(batch.x, batch.target)
    if network.config["output"] != "identity" or not loss < USUAL * constant:
        return False
    if not 1 / PLAIN < constant < PLAIN:
        return False
    if not _is_scaled(batch.x):
        return False
    flow = _flow_of(network)
    gains, std, sizes = flow.delta_log2, flow.preactivation_std, flow.gradient_log2
    even = abs(sizes).max() < FAINT and gains.max() - gains.min() < USUAL * DECADE / 2
    alive = max(flow.dead.max(), flow.saturated[:-1].max(initial=0.0)) < 0.6
    if not (even and alive and std.min() > 1 / PLAIN and std.max() < PLAIN):
        return False
    weights = [w for w in network.parameters.values() if w.ndim == 2]
    return not any((w[:1] == w[1:2]).all() for w in weights if len(w) > 1)


def _is_scaled(x: Array) -> bool:
    """Return True if no rule on inputs (N, I) can have anything to say of them."""
    spread = np.ptp(x, axis=0)
    spread = spread[spread > 0]
    near = float(np.linalg.norm(x)) < FAR * x.size**0.5
    return near and bool(len(spread)) and float(spread.min()) > NARROWEST * float(spread.max())


def judged(network: Network, batch: Batch, resamples: int) -> tuple[Finding, ...]:
    """Judge a network as it is on these rows, by one pass and `resamples` more."""
    found = read(network, batch.x, batch.target, resamples=resamples, seed=0, theory=False)
    return judge(in_training(found, batch))


def in_training(found: Reading, batch: Batch) -> Reading:
    """Return a reading of some rows in which these have the numbers that they have among all."""
    if found.problem is None or batch.rows is None:
        return found
    return replace(found, problem=found.problem.among(batch.rows, batch.count))


def _flow_of(network: Network) -> Flow:
    """Return the flow through layers that the last pass has measured."""
    flow = network.flow
    assert isinstance(flow, Flow)
    return flow

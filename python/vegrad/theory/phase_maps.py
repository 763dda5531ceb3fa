"""Random networks measured over σ_w, σ_b, depth and width, beside what theory expects of them.

Schoenholz et al. 2017 (arXiv:1611.01232) measured such maps: gradients vanish on one side of the
critical line and explode on the other, and networks train down to about six depth scales.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from hashlib import sha256
from itertools import product
from math import inf, isfinite, log2, nan
from os import PathLike
from typing import TypeVar, cast

import numpy as np

from vegrad import _core
from vegrad.arrays.checks import Array, FloatArray, Number, as_array, as_batch, as_count, as_finite
from vegrad.arrays.shown import shown
from vegrad.datasets.dataset import as_dataset
from vegrad.optim import SGD
from vegrad.pictures import Figure
from vegrad.sweeps import Executor, Outcome, Pool, spread
from vegrad.sweeps.record import Numbers
from vegrad.theory import phase_picture
from vegrad.theory.correlation import depth_scales
from vegrad.theory.gaussian import activation_of, check_sigma
from vegrad.theory.initializers import draw_parameters
from vegrad.theory.meanfield import chi, critical_point

AXES = ("sigma_w", "sigma_b", "depth", "width")
V = TypeVar("V", int, float)

ROWS = 32  # of random inputs, where there are no data
REACH = 6.0  # depth scales down to which a network trains
Tell = Callable[[int, int], object]
Axes = tuple[tuple[float, ...], tuple[float, ...], tuple[int, ...], tuple[int, ...]]


@dataclass(frozen=True)
class Point:
    """One place of the map: networks of `depth` layers with weights, hidden ones `width` wide."""

    sigma_w: float
    sigma_b: float
    depth: int
    width: int


@dataclass(frozen=True)
class PhaseMap:
    """Measurements at every point of a map, beside what theory expects there.

    W, B, D and N are the numbers of σ_w, σ_b, depths and widths.
    """

    activation: str
    sigma_w: tuple[float, ...]
    sigma_b: tuple[float, ...]
    depth: tuple[int, ...]
    width: tuple[int, ...]
    gain_log2: FloatArray
    """(W, B, D, N): log2 of the factor of ‖δ‖ a layer, in the mean over layers and draws; nan where
    nothing was measured."""
    accuracy: FloatArray
    """(W, B, D, N): the share of the rows that the trained network tells right; nan without
    training."""
    expected_gain_log2: FloatArray
    """(W, B): ½ log2 χ₁, what `gain_log2` comes to in deep, wide networks."""
    reach: FloatArray
    """(W, B): six depth scales, down to which networks train; inf on the critical line."""
    critical: FloatArray
    """(B,): the critical σ_w of each σ_b; nan where there is none."""
    problems: Mapping[object, str] = field(default_factory=dict)
    """By the `Point`, why nothing was measured there."""

    def plot(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the gain over σ_w and σ_b, or σ_w and depth, with theory's line over it.

        Where networks were trained, their accuracy stands beside. Of axes that are not drawn, the
        first value is taken. Return matplotlib's figure.

        Raises:
            ImportError: matplotlib is not installed.
            ValueError: the suffix of the path is unknown, or σ_w has only one value.
            OSError: the file cannot be written; nothing half-written is left.
        """
        return phase_picture.draw(self, path)

    def __str__(self) -> str:
        return phase_picture.text(self)


def phase_map(
    activation: str,
    sigma_w: Number | Sequence[Number],
    sigma_b: Number | Sequence[Number] = 0.0,
    depth: int | Sequence[int] = 50,
    width: int | Sequence[int] = 100,
    *,
    draws: int = 3,
    data: tuple[object, object] | None = None,
    steps: int = 0,
    lr: Number = 0.01,
    batch_size: int = 32,
    seed: int = 0,
    executor: Executor | Pool | None = None,
    file: str | PathLike[str] | None = None,
    tell: Tell | None = None,
    negative_slope: Number = 0.01,
) -> PhaseMap:
    """Measure random networks at every combination of σ_w, σ_b, depth and width.

    At each point `draws` networks with weights N(0, σ_w²/fan_in) and biases N(0, σ_b²) run one pass
    each, in float32 and without underflow; with `steps`, they are trained by plain SGD too. A point
    draws its networks from a seed of its own, so that the numbers are the same for any number of
    workers, and of any part of the map.

    Args:
        activation: of the hidden layers, a name of `vegrad.MLP`.
        sigma_w: of the weights, a value or some.
        sigma_b: of the biases, a value or some.
        depth: layers with weights, a number or some.
        width: units of a hidden layer, a number or some.
        draws: networks a point.
        data: (x, labels): x (N, I), labels (N,) whole numbers; None for 32 rows of random inputs,
            which cannot be trained on.
        steps: of the training; 0 for none.
        lr: the training's learning rate.
        batch_size: rows of a step, and of the pass that measures the gain.
        seed: another seed, other networks.
        executor: hands the points out: a `concurrent.futures.Executor`, that of
            `dask.distributed.Client.get_executor()`, `mpi4py.futures.MPIPoolExecutor`, loky's,
            or a pool with `apply_async`, as Ray's.
            Workers in processes of their own take one thread each. None measures here.
        file: gets a line for each point as it comes; the same call goes on from it.
        tell: called with the number of points that are done, and that of all.
        negative_slope: of leaky_relu, for what theory expects.

    Raises:
        TypeError, ValueError: before anything is measured, if an argument does not fit or the file
            is of another map. A single point that fails ends nothing: `PhaseMap.problems` has it.
        SweepError: the executor broke down; what had come is in the file.
    """
    activation_of(activation, float(negative_slope))
    points, axes = _points(sigma_w, sigma_b, depth, width)
    settings = Settings(
        activation,
        as_count("draws", draws, 1),
        as_count("steps", steps),
        as_finite("lr", lr),
        as_count("batch_size", batch_size, 1),
        as_count("seed", seed),
    )
    x, labels = _data(data, settings.steps)
    about = settings.__dict__ | {"data": _fingerprint(x, labels)}
    measured = dict[Point, Outcome[Point]]()
    measure = partial(_measure, settings, x, labels)
    for outcome in spread(measure, points, about=about, executor=executor, file=file):
        measured[outcome.point] = outcome
        if tell is not None:
            tell(len(measured), len(points))
    return _map(activation, axes, measured, float(negative_slope))


@dataclass(frozen=True)
class Settings:
    """All that is the same at every point."""

    activation: str
    draws: int
    steps: int
    lr: float
    batch_size: int
    seed: int


def _points(
    sigma_w: object, sigma_b: object, depth: object, width: object
) -> tuple[list[Point], Axes]:
    axes: Axes = (
        _values("sigma_w", sigma_w, check_sigma),
        _values("sigma_b", sigma_b, check_sigma),
        _values("depth", depth, partial(as_count, least=1)),
        _values("width", width, partial(as_count, least=1)),
    )
    return [Point(*one) for one in product(*axes)], axes


def _values(name: str, given: object, check: Callable[[str, object], V]) -> tuple[V, ...]:
    """Return the value or values of an axis, all different."""
    many = isinstance(given, Sequence | np.ndarray) and not isinstance(given, str)
    some: Iterable[object] = given if many else (given,)  # type: ignore[assignment]
    values = tuple(check(name, one) for one in some)
    if not values:
        raise ValueError(f"{name} must have a value, got none")
    if len(set(values)) < len(values):
        raise ValueError(f"{name} has a value twice: {shown(list(values))}")
    return values


def _data(data: tuple[object, object] | None, steps: int) -> tuple[Array, Array | None]:
    if data is None:
        if steps:
            raise ValueError("training takes data=(x, labels), got None")
        rng = np.random.default_rng(0)
        return rng.standard_normal((ROWS, 64)).astype(np.float32), None
    if not isinstance(data, tuple | list) or len(data) != 2:
        raise TypeError(f"data must be (x, labels), not {type(data).__name__}")
    x, y = (as_array(one, name) for one, name in zip(data, ("x", "labels"), strict=True))
    if y.ndim and x.ndim and len(x) != len(y):
        raise ValueError(f"data must have a label for each row, not {len(y)} for {len(x)} rows")
    found = as_dataset("data", x, y)
    if not found.classes:
        raise ValueError("labels must be classes, but they are numbers")
    if not np.isfinite(found.x).all():
        raise ValueError("x must be finite")
    return as_batch(found.x, found.x.shape[1], np.float32), found.y


def _fingerprint(x: Array, labels: Array | None) -> str:
    content = x.tobytes() + (b"" if labels is None else labels.tobytes())
    return sha256(content).hexdigest()[:16]


def _seed(settings: Settings, point: Point, draw: int) -> int:
    """Return the seed of a draw, which depends on nothing but the point."""
    packed = struct.pack("<dd", point.sigma_w, point.sigma_b)
    key = [settings.seed, draw, point.depth, point.width, *struct.unpack("<4I", packed)]
    return int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0] >> np.uint64(1))


def _measure(settings: Settings, x: Array, labels: Array | None, point: Point) -> Numbers:
    """Measure at one point, in whatever process this is."""
    found = [_one(settings, x, labels, point, draw) for draw in range(settings.draws)]
    gains, accuracies = np.array(found, np.float64).T
    return {"gain_log2": _plain(np.mean(gains)), "accuracy": _plain(np.mean(accuracies))}


def _plain(value: np.float64) -> float | None:
    return float(value) if isfinite(value) else None


def _one(
    settings: Settings, x: Array, labels: Array | None, point: Point, draw: int
) -> tuple[float, float]:
    """Return the gain of a network and, if there is a training, its accuracy after that."""
    outputs = 10 if labels is None else int(labels.max()) + 1
    sizes = (x.shape[1], *[point.width] * (point.depth - 1), outputs)
    loss = "mse" if labels is None else "cross_entropy"
    network = _core.Network(
        list(sizes), settings.activation, "identity", loss, None, False, "float32"
    )
    seed = _seed(settings, point, draw)
    parameters = network.parameters()
    drawn = draw_parameters(sizes, "normal", point.sigma_w, point.sigma_b, seed)
    for number, (weight, bias) in enumerate(drawn):
        parameters[f"layers.{number}.weight"][...] = weight
        parameters[f"layers.{number}.bias"][...] = bias
    rng = np.random.default_rng([seed, 1])
    if labels is None:
        rows, target = x, rng.standard_normal((len(x), outputs)).astype(np.float32)
    else:
        some = rng.permutation(len(x))[: settings.batch_size]
        rows, target = x[some], labels[some]
    network.backward(rows, target, True, point.depth)
    sizes_log2 = network.flow()["delta_log2"]
    gain = (sizes_log2[0] - sizes_log2[-1]) / max(len(sizes_log2) - 1, 1)
    if not settings.steps or labels is None:
        return float(gain), nan
    return float(gain), _trained(network, settings, x, labels, rng)


def _trained(
    network: _core.Network, settings: Settings, x: Array, labels: Array, rng: np.random.Generator
) -> float:
    """Train by plain SGD and return the share of rows that are told right."""
    optimizer = SGD(settings.lr)
    parameters, gradients = network.parameters(), network.gradients()
    depth = len(parameters) // 2
    for _ in range(settings.steps):
        some = rng.integers(len(x), size=settings.batch_size)
        network.backward(x[some], labels[some], False, depth)
        optimizer.step(parameters, gradients)
    output = cast(Array, network.forward(x))
    right = (output.argmax(axis=1) == labels) & np.isfinite(output).all(axis=1)
    return float(np.mean(right))


def _map(
    activation: str,
    axes: Axes,
    measured: dict[Point, Outcome[Point]],
    slope: float,
) -> PhaseMap:
    shape = tuple(len(values) for values in axes)
    found = {name: np.full(shape, nan) for name in ("gain_log2", "accuracy")}
    problems: dict[object, str] = {}
    for place in np.ndindex(shape):
        i, j, k, m = place
        point = Point(axes[0][i], axes[1][j], axes[2][k], axes[3][m])
        outcome = measured[point]
        if outcome.numbers is None:
            problems[point] = outcome.problem
            continue
        for name, values in found.items():
            number = outcome.numbers.get(name)
            values[place] = nan if number is None else number
    gains, reach = np.full(shape[:2], nan), np.full(shape[:2], nan)
    for i, j in np.ndindex(shape[:2]):
        at = (activation, axes[0][i], axes[1][j])
        factor = chi(*at, negative_slope=slope)
        gains[i, j] = 0.5 * log2(factor) if factor > 0 else -inf
        scales = depth_scales(*at, negative_slope=slope)
        reach[i, j] = REACH * min(abs(scales.gradient), abs(scales.correlation))
    lines = [critical_point(activation, b, negative_slope=slope) for b in axes[1]]
    critical = np.array([nan if line is None else line.sigma_w for line in lines])
    measured_ones = found["gain_log2"], found["accuracy"]
    return PhaseMap(activation, *axes, *measured_ones, gains, reach, critical, problems)

"""Watch a training with optax: sizes of gradients and steps, kept in the optimizer's state."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan, sqrt
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import tree_flatten_with_path

from vegrad.arrays.checks import Array, FloatArray, as_count
from vegrad.arrays.shown import shown
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.flow.course import Course
from vegrad.flow.gradients import Gradients
from vegrad.flow.reading import Module, Reading
from vegrad.flow.watched import Sample, Update, Watched
from vegrad.flow.wording import exp2
from vegrad.jax.editor import JaxVocabulary
from vegrad.jax.sizes import norm_log2
from vegrad.jax.tree import name_of

SAMPLES = 16  # rows whose changes rules are given: the first, the last and some between
WINDOW = 10  # rows before a NaN that are asked for growth


class WatchState(NamedTuple):
    """The state of `watch`: R rows of a training, of which later ones stand further apart.

    Row n is of step n times `apart`; the last one, of the last step, wherever that stands.
    """

    step: jax.Array
    """The number of steps."""
    apart: jax.Array
    steps: jax.Array
    """The number of each row's step, (R,); -1 where none was yet."""
    loss: jax.Array
    """(R,); nan where it was not given."""
    gradients: object
    """A tree like the parameters, with log2 of the norm of each leaf's gradient, (R,)."""
    updates: object
    """The same of what a step adds."""
    weights: object
    """The same of the leaves before it."""
    shapes: object
    """The shapes of the leaves."""
    inner: object
    """The state of the optimizer within."""


def watch(optimizer: object = None, *, rows: int = 256, axis_name: str | None = None) -> object:
    """Return an optimizer that keeps sizes of gradients, steps and weights in its state.

    What it returns is an optax transformation and changes no update. All is kept in arrays as
    logarithms, which neither overflow nor underflow, so that it works inside `jit`, `scan`, `pmap`
    and `shard_map`. `vegrad.jax.report` judges the state.

    Args:
        optimizer: an optax transformation, which is watched. Without one, what comes to it in a
            chain is taken for the gradient, and nothing is known of the steps.
        rows: of the record; when they are full, every other one is dropped.
        axis_name: of the devices on which the leaves lie in parts, whose norms are then joint.

    Its `update` takes the loss as `value=`, as optax's line searches do; without it, the course of
    the loss is not judged.

    Raises:
        ImportError: optax is not installed.
        TypeError: for an optimizer without init and update.
    """
    import optax

    rows = 2 * (as_count("rows", rows, 8) // 2)
    if optimizer is None:
        optimizer = optax.identity()
        stepped = False
    elif not (hasattr(optimizer, "init") and hasattr(optimizer, "update")):
        raise TypeError(f"optimizer must be an optax transformation, not {shown(optimizer)}")
    else:
        stepped = True
    within = optax.with_extra_args_support(optimizer)  # of any transformation

    def init(params: object) -> WatchState:
        def empty() -> object:
            return jax.tree.map(lambda _: jnp.full(rows, jnp.nan, jnp.float32), params)

        none, shapes = (
            jnp.full(rows, -1, jnp.int32),
            jax.tree.map(lambda one: jnp.array(jnp.shape(one), jnp.int32), params),
        )
        nans = jnp.full(rows, jnp.nan, jnp.float32)
        begin = jnp.int32(0), jnp.int32(1), none, nans
        return WatchState(*begin, empty(), empty(), empty(), shapes, within.init(params))

    def update(
        grads: object, state: WatchState, params: object = None, **extra: object
    ) -> tuple[object, WatchState]:
        updates, inner = within.update(grads, state.inner, params, **extra)
        full = -(-state.step // state.apart) >= rows
        apart = jnp.where(full, 2 * state.apart, state.apart)
        row = -(-state.step // apart)

        def written(column: jax.Array, value: jax.Array, none: float) -> jax.Array:
            thinned = jnp.concatenate([column[::2], jnp.full(rows // 2, none, column.dtype)])
            return jnp.where(full, thinned, column).at[row].set(value.astype(column.dtype))

        def sizes(columns: object, tree: object) -> object:
            if tree is None:
                return columns
            return jax.tree.map(
                lambda c, one: written(c, norm_log2(jnp.asarray(one), axis_name), jnp.nan),
                columns,
                tree,
            )

        loss = jnp.asarray(extra.get("value", jnp.nan), jnp.float32).reshape(())
        return updates, WatchState(
            state.step + 1,
            apart,
            written(state.steps, state.step, -1),
            written(state.loss, loss, jnp.nan),
            sizes(state.gradients, grads),
            sizes(state.updates, updates if stepped else None),
            sizes(state.weights, params),
            state.shapes,
            inner,
        )

    return optax.GradientTransformationExtraArgs(init, update)


# The report -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NonFinite:
    """A gradient that was not finite, as the first of a training."""

    step: int
    module: str
    phase: str = "gradient"
    parameter: str = ""
    cause: str = ""
    operation: str = ""
    epsilon: float = nan
    reading: object = None

    @property
    def seen_in(self) -> str:
        """The phase."""
        return self.phase

    @property
    def message(self) -> str:
        """It in words."""
        return f"the gradient of {self.module} is not finite at step {self.step}"


def report(state: object, *, order: Sequence[str] | None = None) -> Diagnosis:
    """Judge a training by the state of an optimizer that `watch` has made.

    Steps that are too long or do nothing are found by the loss, the gradients' norms and what a
    step changes; a gradient that is not finite, by its leaf.

    Args:
        state: of the optimizer, or a tuple or tree that holds it, as `optax.chain` returns, or
            those of several parts, as `optax.multi_transform` does; of several devices (`pmap`),
            that of the first counts.
        order: names of weights from the input to the output, as `params.Dense_0.kernel`. If the
            steps show nothing, their last gradients are judged as `vegrad.diagnose_gradients` does.

    Raises:
        TypeError: for a state in which `watch` has no part.
        ValueError: for one that has seen no step, or an order of unknown names.
    """
    record = _Record(_found(state))
    reading = Reading(
        vocabulary=JaxVocabulary(),
        about={"steps": record.count, "parameters": len(record.names)},
        modules=record.modules(),
        watched=record.watched(),
    )
    found = Diagnosis.of(reading)
    if order is None:
        return found
    unknown = [name for name in order if name not in record.names]
    if unknown:
        raise ValueError(f"order must name leaves of the parameters; unknown: {shown(unknown[0])}")
    if found.findings:
        return found
    last = {name: float(record.gradients[name][-1]) for name in order}
    chain = Gradients(norms_log2=last, chain=tuple(order))
    about = {"chain": list(order), "steps": record.count}
    return Diagnosis.of(replace(reading, about=about, modules=(), gradients=chain))


def _found(state: object) -> list[WatchState]:
    """Return the states of `watch` within a tree, on the CPU: those of the same steps."""
    kind = lambda one: isinstance(one, WatchState)  # noqa: E731
    found = [*filter(kind, jax.tree.leaves(state, is_leaf=kind))]
    if not found:
        raise TypeError(
            f"state must hold that of vegrad.jax.watch(), not only a {type(state).__name__}"
        )
    found = [_on_host(one) for one in found]
    return [one for one in found if np.array_equal(one.steps, found[0].steps)]


def _on_host(state: WatchState) -> WatchState:
    # flax.nnx keeps each array of a state in a variable.
    single = {n: jax.tree.leaves(getattr(state, n))[0] for n in ("step", "apart", "steps", "loss")}
    found = state._replace(**single, inner=())
    while np.ndim(found.step):  # of several devices
        found = jax.tree.map(lambda one: one[0], found)
    return WatchState(*jax.tree.map(np.asarray, found))


def _named(trees: Iterable[object]) -> dict[str, Array]:
    """Return the leaves of all trees by name."""
    pairs = (pair for tree in trees for pair in tree_flatten_with_path(tree)[0])
    return {name_of(path): one for path, one in pairs}


def _joint(sizes: Sequence[float]) -> float:
    """Return the norm of several arrays of which log2 of the norms are given."""
    with np.errstate(invalid="ignore"):
        return exp2(float(np.logaddexp2.reduce(2.0 * np.array(sizes))) / 2)


class _Record:
    """The rows of a training by leaf."""

    def __init__(self, states: Sequence[WatchState]) -> None:
        state = states[0]
        self.count = int(state.step)
        if not self.count:
            raise ValueError("state has seen no step: there is nothing to judge")
        self.rows = np.flatnonzero(state.steps >= 0)
        self.steps = state.steps[self.rows].astype(np.float64)
        self.loss = state.loss[self.rows].astype(np.float64)
        self.gradients = self._columns(one.gradients for one in states)
        self.updates = self._columns(one.updates for one in states)
        self.weights = self._columns(one.weights for one in states)
        shapes = _named(one.shapes for one in states)
        self.shapes = {name: tuple(one.tolist()) for name, one in shapes.items()}
        self.names = list(self.gradients)
        sizes = np.stack([self.gradients[name] for name in self.names])
        with np.errstate(invalid="ignore"):
            self.norm = np.exp2(np.logaddexp2.reduce(2.0 * sizes) / 2)
        self.norm[~(sizes < inf).all(axis=0)] = nan

    def _columns(self, trees: Iterable[object]) -> dict[str, FloatArray]:
        return {name: one[self.rows].astype(np.float64) for name, one in _named(trees).items()}

    def modules(self) -> tuple[Module, ...]:
        """Return a row for each module that leaves belong to, with its last gradient."""
        own: dict[str, list[float]] = {}
        for name in self.names:
            own.setdefault(name.rpartition(".")[0] or name, []).append(self.gradients[name][-1])
        return tuple(Module(name, nan, nan, _joint(one), True) for name, one in own.items())

    def watched(self) -> Watched:
        """Return what rules on steps ask for."""
        lost = np.flatnonzero(~np.isfinite(self.norm))
        first = None if not len(lost) else self._lost(int(lost[0]))
        known = np.isfinite(self.loss).any()
        empty = np.full((len(self.rows), len(self.modules())), nan)
        course = Course(step=self.steps, loss=self.loss, norm=self.norm, rms=empty, delta=empty)
        zeros = int(np.argmax(np.append(self.norm[::-1] != 0, True)))
        return Watched(
            step=self.count - 1,
            norm=float(self.norm[-1]),
            nonfinite=first,
            growth=nan if first is None else self._growth(int(lost[0])),
            losses=tuple(self.loss.tolist()),
            samples=self._samples(),
            course=course if known else None,
            zeros=zeros,
        )

    def _lost(self, row: int) -> NonFinite:
        bad = [name for name in self.names if not self.gradients[name][row] < inf]
        return NonFinite(int(self.steps[row]), bad[-1])

    def _growth(self, row: int) -> float:
        """Return how many times the gradient's norm or the loss grew before a row."""
        found = [0.0]
        for values in (self.norm, np.abs(self.loss)):
            before = values[max(row - WINDOW, 0) : row]
            before = before[np.isfinite(before) & (before > 0)]
            found.append(float(before.max() / before[0]) if len(before) else 0.0)
        return max(found)

    def _samples(self) -> tuple[Sample, ...]:
        """Return what steps have changed, where that was seen."""
        places = np.linspace(0, len(self.rows) - 1, min(len(self.rows), SAMPLES)).astype(int)
        several = (self._sample(int(n)) for n in places)
        return tuple(one for one in several if one.updates)

    def _sample(self, row: int) -> Sample:
        found = list[Update]()
        for name, shape in self.shapes.items():
            count = int(np.prod(shape, dtype=float))
            sizes = [one[name] for one in (self.weights, self.updates, self.gradients)]
            weight, change, gradient = (exp2(float(one[row])) / sqrt(count or 1) for one in sizes)
            if all(map(isfinite, (weight, change, gradient))):
                first = exp2(float(sizes[0][0])) / sqrt(count or 1)
                inputs = max(count // max(shape[-1], 1), 1) if len(shape) > 1 else 1
                found.append(
                    Update(
                        name=name,
                        matrix=len(shape) > 1,
                        weight=weight,
                        change=change,
                        gradient=gradient,
                        first=first,
                        count=count,
                        inputs=inputs,
                        still=nan,
                    )
                )
        step = int(self.steps[row])
        return Sample(step=step, optimizer=0, rate=nan, peak=nan, dtype="", updates=tuple(found))

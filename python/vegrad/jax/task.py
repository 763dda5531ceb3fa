"""Trace a pure loss, run it forward and back, and run it as if something were changed."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.arrays.checks import FloatArray
from vegrad.flow.edits import Edit, ScaleData, parts
from vegrad.flow.reading import Effect, Reading
from vegrad.flow.subject import Refusal
from vegrad.jax.editor import edited
from vegrad.jax.graph import Graph
from vegrad.jax.passes import Measured, Pass
from vegrad.jax.program import Program
from vegrad.jax.reading import Given, Reader, outputs_of
from vegrad.jax.tree import Init, Tree, check_leaf
from vegrad.theory.expected import ExpectedFlow

DRAWS = 8
Loss = Callable[..., jax.Array]


@dataclass
class Task(Given):
    """A loss that is traced once and run as often as rules ask for."""

    passes: int = 0
    """How many what-ifs have been run."""

    @classmethod
    def of(
        cls, loss: Loss, params: object, batch: Sequence[object], init: Init | None, seed: int
    ) -> Task:
        """Trace a loss.

        Raises:
            TypeError: for a leaf that is no array, or a loss that returns anything but one number.
            ValueError: for a loss that depends on no parameter, a tree without arrays, or a batch
                without rows.
        """
        tree = Tree.of(params)
        flat, form = jax.tree_util.tree_flatten(tuple(batch))
        names = _names(loss, batch)
        for name, one in zip(names, flat, strict=True):
            if not isinstance(one, int | float):
                check_leaf(one, name)

        def pure(leaves: list[jax.Array], rows: list[jax.Array]) -> jax.Array:
            given = tree.joined(dict(zip(tree.leaves, leaves, strict=True)))
            return _checked(loss(given, *jax.tree_util.tree_unflatten(form, rows)))

        rows = [jnp.asarray(one) for one in flat]
        for name, row in zip(names, rows, strict=True):
            if not row.size:
                raise ValueError(f"{name} must have a row at least, not the shape {row.shape}")
        closed = jax.make_jaxpr(pure)(list(tree.leaves.values()), rows)
        program = Program.of(closed, len(tree.leaves), len(rows))
        if axes := program.axes():
            program = Program.of(closed, len(tree.leaves), len(rows), axes=axes)
            names_of = list(tree.leaves)
            tree = tree.cut({names_of[n]: axis for n, axis in axes.items()})
        if program.loss not in program.learns:
            raise ValueError("loss must return a loss that depends on params")
        return cls(tree, init, seed, rows, names, Pass(Graph(program)))

    def measured(self, leaves: Mapping[str, jax.Array]) -> Measured:
        """Return what a pass with these leaves shows."""
        return self.runner.run(list(leaves.values()), self.batch)

    def read(self, leaves: Mapping[str, jax.Array]) -> Reading:
        """Return the reading of the loss with these leaves."""
        return Reader(self, leaves, self.measured(leaves), self, self.drawn).reading()

    def drawn(self, chain: Sequence[int]) -> ExpectedFlow | None:
        """Return mean and spread of the flow over trees drawn anew."""
        found = list[tuple[FloatArray, ...]]()
        for number in range(DRAWS):
            fresh = self.tree.drawn(self.init, self.seed + 1 + number)
            old = self.tree.leaves  # of which zeros stay zeros
            fresh = {n: one * jnp.any(old[n] != 0).astype(one.dtype) for n, one in fresh.items()}
            sizes = self.measured(fresh)
            found.append((outputs_of(self.runner.graph, sizes, chain), sizes.delta[list(chain)]))
        outputs, deltas = zip(*found, strict=True)
        return ExpectedFlow.of_draws(outputs, deltas) if np.isfinite(deltas).all() else None

    # What if ------------------------------------------------------------------------------------

    def effect(self, edit: Edit | None) -> Effect | None:
        """Return loss and gradients had this been done; None if it cannot be."""
        changed = self._changed(edit)
        if changed is None:
            return None
        task, leaves = changed
        found = task.measured(leaves)
        sizes = dict(zip(leaves, found.gradients.tolist(), strict=True))
        return Effect(found.loss, sizes)

    def reading(self, edit: Edit) -> Reading | None:
        """Read the loss as if this had been done."""
        changed = self._changed(edit)
        return None if changed is None else changed[0].read(changed[1])

    def _changed(self, edit: Edit | None) -> tuple[Task, Mapping[str, jax.Array]] | None:
        self.passes += 1
        done = parts(edit) if edit is not None else ()
        task, values = self, [one for one in done if not isinstance(one, ScaleData)]
        if len(values) < len(done):
            into = self.runner.graph.entering()
            batch = [_scaled(one) if n in into else one for n, one in enumerate(self.batch)]
            task = replace(self, batch=batch)
        leaves = self.tree.leaves
        for one in values:
            found = edited(replace(self.tree, leaves=leaves), one, self.init, self.seed)
            if isinstance(found, Refusal):
                return None
            leaves = found
        return task, leaves


def _names(loss: Loss, batch: Sequence[object]) -> tuple[str, ...]:
    """Name the parts of a batch as the loss does: x, y, batch["image"]."""
    try:
        known = list(inspect.signature(loss).parameters.values())[1:]
    except (TypeError, ValueError):
        known = []
    single = [one.name for one in known if one.kind is not one.VAR_POSITIONAL]
    single += [f"batch[{n}]" for n in range(len(single), len(batch))]
    return tuple(
        name + jax.tree_util.keystr(path)
        for name, one in zip(single, batch, strict=False)
        for path, _ in jax.tree_util.tree_flatten_with_path(one)[0]
    )


def _checked(loss: jax.Array) -> jax.Array:
    """Return a loss as one number; raise TypeError for anything else."""
    wanted = "loss must return one number, the mean loss"
    if isinstance(loss, tuple | list | dict):
        hint = ": leave out what has_aux=True would take, lambda *args: loss(*args)[0]"
        kind = f"{type(loss).__name__} of {len(loss)}"
        raise TypeError(f"{wanted}, not a {kind}{hint if isinstance(loss, tuple) else ''}")
    if not hasattr(loss, "dtype") or not jnp.issubdtype(loss.dtype, jnp.floating):
        raise TypeError(f"{wanted}, not {getattr(loss, 'dtype', type(loss).__name__)}")
    if loss.size != 1:
        raise TypeError(f"{wanted}, not an array of the shape {loss.shape}: take its mean()")
    return loss.reshape(())


def _scaled(values: jax.Array) -> jax.Array:
    """Return columns of mean 0 and standard deviation 1."""
    if values.ndim < 2 or not jnp.issubdtype(values.dtype, jnp.floating):
        return values
    axes = tuple(range(values.ndim - 1))
    std = values.std(axis=axes, keepdims=True)
    return (values - values.mean(axis=axes, keepdims=True)) / jnp.where(std > 0, std, 1.0)

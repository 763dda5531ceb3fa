"""Edits of trees: JAX's arrays do not change, so that each makes a new tree."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.flow.edits import Edit, Initialize, Redraw, Scale, Shift, Zero, parts
from vegrad.flow.finding import Finding
from vegrad.flow.subject import Refusal
from vegrad.flow.wording import Vocabulary
from vegrad.jax.tree import Init, Tree, drawn, fans, is_vector

# What weights' variance is times of 1/fan_in, of fan_in and fan_out.
SCHEMES: dict[str, Callable[[int, int], float]] = {
    "lecun_normal": lambda fan_in, fan_out: 1.0,
    "he_normal": lambda fan_in, fan_out: 2.0,
    "glorot_normal": lambda fan_in, fan_out: 2.0 * fan_in / (fan_in + fan_out),
}


class JaxVocabulary(Vocabulary):
    """The words for JAX: leaves by their paths, and the functions of jax.nn."""

    cuts = "a stop_gradient()"
    off = "stop_gradient()"
    freezing = "leave them out of what is differentiated"
    keeping = "keep them in the tree of parameters"
    loss = "the loss function"
    tells_loss = "give the optimizer's update() the loss as value="
    trains = "run normalizations in training mode (use_running_average=False)"

    def activation(self, name: str) -> str:
        """Write the function of an activation."""
        found = ACTIVATIONS[name].jax
        return f"the activation {name}" if found is None else f"jax.{found.function}"

    def scheme(self, name: str) -> str:
        """Write the initializer that draws weights like this."""
        known = f"jax.nn.initializers.{name}()" if name in SCHEMES else f"{name} weights"
        return "the trees that init draws" if name == "default" else known


def edited(
    tree: Tree, edit: Edit, init: Init | None, seed: int
) -> Mapping[str, jax.Array] | Refusal:
    """Return the leaves of a tree after an edit, or why it cannot be done.

    Raises:
        TypeError, ValueError: if `init` returns a tree of other leaves.
    """
    leaves = dict(tree.leaves)
    for part in parts(edit):
        names = getattr(part, "parameters", ())
        unknown = [name for name in names if name not in leaves]
        if unknown:
            return Refusal(f"the tree has no leaf {unknown[0]}")
        match part:
            case Scale(_, factor, rows):
                leaves |= {n: _at(leaves[n], rows, lambda one: one * factor) for n in names}
            case Zero(_, rows):
                leaves |= {n: _at(leaves[n], rows, jnp.zeros_like) for n in names}
            case Shift(_, amount, rows):
                leaves |= {n: _at(leaves[n], rows, lambda one: one + amount) for n in names}
            case Redraw():
                fresh = replace(tree, leaves=leaves).drawn(init, seed)
                leaves |= {n: fresh[n] if init is not None else _alone(n, fresh[n]) for n in names}
            case Initialize("default"):
                leaves = tree.drawn(init, seed)
            case Initialize(scheme) if scheme in SCHEMES:
                random = np.random.default_rng(seed)
                for name, one in tree.leaves.items():
                    if not is_vector(name, one) and "embed" not in name.lower():
                        both = fans(name, one)
                        leaves[name] = drawn(random, name, one, both[0] / SCHEMES[scheme](*both))
            case _:
                what = JaxVocabulary().edit(part)
                return Refusal(f"{what}: this is done in the program, not to the parameters")
    return leaves


def _alone(name: str, leaf: jax.Array) -> jax.Array:
    """Return a vector as it begins: the scale of a normalization at 1, a bias at 0."""
    if not is_vector(name, leaf):
        return leaf
    return jnp.ones_like(leaf) if name.endswith("scale") else jnp.zeros_like(leaf)


def _at(
    leaf: jax.Array, rows: tuple[int, int] | None, change: Callable[[jax.Array], jax.Array]
) -> jax.Array:
    """Return a leaf that is changed, or some rows of its first axis."""
    if rows is None:
        return change(leaf).astype(leaf.dtype)
    part = leaf[rows[0] : rows[1]]
    return leaf.at[rows[0] : rows[1]].set(change(part).astype(leaf.dtype))


def apply_(
    params: object, edit: Edit | Finding, *, init: Init | None = None, seed: int = 0
) -> object:
    """Return a tree of parameters after an edit; the tree that is given stays as it is.

    Args:
        params: the tree.
        edit: one of `vegrad.flow.edits`, or a finding, whose edit is done.
        init: called with a key, returns a tree like params, for edits that draw weights again.
            Without it matrices are drawn as LeCun does, normal with a variance of 1/fan_in.
        seed: of that key.

    Raises:
        TypeError: for what is neither an edit nor a finding, or a leaf that is no array.
        ValueError: for an edit that is not one of values (another activation, a learning rate), or
            of leaves that the tree has not, and for a finding without an edit.
    """
    chosen = edit.edit if isinstance(edit, Finding) else edit
    if chosen is None:
        raise ValueError("edit must be a finding that has an edit; the advice of this one has none")
    if not isinstance(chosen, Edit):
        kind = type(edit).__name__
        raise TypeError(f"edit must be one of vegrad.flow.edits or a vegrad.Finding, not {kind}")
    tree = Tree.of(params).cut_for(
        n for one in parts(chosen) for n in getattr(one, "parameters", ())
    )
    found = edited(tree, chosen, init, seed)
    if isinstance(found, Refusal):
        raise ValueError(f"edit cannot be applied: {found.why}")
    return tree.joined(found)

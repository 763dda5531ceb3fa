"""Trees of parameters as JAX has them: their leaves by name, and trees drawn anew."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import inf, log2, prod

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import GetAttrKey, tree_flatten_with_path

from vegrad.arrays.shown import shown

Init = Callable[[jax.Array], object]
"""Draws a tree of parameters anew, of a key."""
PLACE = re.compile(r"\[((?::, )*)\d+\]")
"""Where a name says which layer of a stack is meant: blocks[3].kernel, blocks[:, 3].kernel."""


@dataclass(frozen=True)
class Tree:
    """A tree of parameters, taken apart: the leaves that are trained by name, and all else."""

    leaves: Mapping[str, jax.Array]
    """Arrays of real numbers, in the order of the tree."""
    others: tuple[object, ...]
    """All leaves in their order, with None in the places of those that are trained."""
    form: jax.tree_util.PyTreeDef
    axes: Mapping[str, int] = field(default_factory=dict)
    """Of the leaves that were cut into one for each layer: the axis on which these lie."""

    @classmethod
    def of(cls, params: object, name: str = "params") -> Tree:
        """Take a tree apart.

        Integers, keys and functions stay as they are, and so do plain numbers that are attributes:
        Equinox and Flax keep them beside weights (a dropout's rate).

        Raises:
            TypeError: for another leaf that is neither an array nor a function.
            ValueError: for a tree without an array of floats, an array that was deleted or donated.
        """
        pairs, form = tree_flatten_with_path(params)
        leaves: dict[str, jax.Array] = {}
        others = list[object]()
        for path, leaf in pairs:
            named = bool(path) and isinstance(path[-1], GetAttrKey)
            setting = named and isinstance(leaf, int | float)
            if not (callable(leaf) or setting) or hasattr(leaf, "dtype"):
                check_leaf(leaf, name + jax.tree_util.keystr(path))
            trained = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
            if trained:
                leaves[name_of(path)] = jnp.asarray(leaf)
            others.append(None if trained else leaf)
        if not leaves:
            raise ValueError(f"{name} must have an array of floats, which could be trained")
        return cls(leaves, tuple(others), form)

    def joined(self, leaves: Mapping[str, jax.Array]) -> object:
        """Return a tree of the same form with other leaves."""
        trained = iter(self._whole(leaves))
        all_of_them = [next(trained) if one is None else one for one in self.others]
        return jax.tree_util.tree_unflatten(self.form, all_of_them)

    def _whole(self, leaves: Mapping[str, jax.Array]) -> Iterator[jax.Array]:
        """Yield the leaves as they were before some were cut."""
        for name, several in groupby(leaves.items(), lambda one: stack_of(one[0], self.axes)):
            own = [one for _, one in several]
            yield jnp.stack(own, self.axes[name]) if name in self.axes else own[0]

    def cut(self, axes: Mapping[str, int]) -> Tree:
        """Return the tree with stacks of layers cut into a leaf for each layer.

        Args:
            axes: of the leaves that are stacks, the axis on which their layers lie.
        """
        leaves: dict[str, jax.Array] = {}
        for name, one in self.leaves.items():
            axis = axes.get(name, one.ndim)
            count = one.shape[axis] if axis < one.ndim else 0
            parts = {place_in(name, axis, n): jnp.take(one, n, axis) for n in range(count)}
            leaves |= parts or {name: one}
        return replace(self, leaves=leaves, axes=axes)

    def cut_for(self, names: Iterable[str]) -> Tree:
        """Return the tree with those stacks cut of which names mean a layer."""
        unknown = [name for name in names if name not in self.leaves]
        found = {PLACE.sub("", name): PLACE.search(name) for name in unknown}
        return self.cut({n: at[1].count(":") for n, at in found.items() if at and n in self.leaves})

    def drawn(self, init: Init | None, seed: int) -> dict[str, jax.Array]:
        """Return leaves drawn anew: by `init`, else matrices as LeCun draws them.

        Raises:
            TypeError, ValueError: if `init` returns a tree of other leaves.
        """
        if init is None:
            random = np.random.default_rng(seed)
            return {
                name: one if is_vector(name, one) else drawn(random, name, one, fans(name, one)[0])
                for name, one in self.leaves.items()
            }
        fresh = Tree.of(init(jax.random.key(seed)), "init(key)").cut(self.axes).leaves
        for name, one in self.leaves.items():
            shape = jnp.shape(fresh[name]) if name in fresh else None
            if shape != one.shape:
                got = "has no such leaf" if shape is None else f"is of the shape {shape}"
                raise ValueError(
                    f"init(key) must return a tree like params, whose {shown(name)} has the shape "
                    f"{one.shape}, but what it returns {got}"
                )
        return {name: fresh[name] for name in self.leaves}


def check_leaf(leaf: object, label: str) -> None:
    """Raise TypeError or ValueError for a leaf that is no array which can be read."""
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        raise TypeError(
            f"{label} must be an array, not {shown(leaf)} ({type(leaf).__name__}): jnp.asarray() "
            "makes one; what is no parameter belongs outside of the tree"
        )
    if getattr(leaf, "is_deleted", bool)():
        raise ValueError(
            f"{label} was deleted or donated (donate_argnums): pass the array that took its place"
        )


def name_of(path: tuple[object, ...]) -> str:
    """Write a path as a name: params.Dense_0.kernel, layers.0.weight."""
    parts = [_part(one) for one in path]
    if len(parts) > 1 and parts[-1] == "value":  # flax.nnx keeps each array in a variable
        del parts[-1]
    return ".".join(parts) or "params"


def place_in(name: str, axis: int, number: int) -> str:
    """Write the name of a layer's part of a stack, as it is indexed: blocks[3].kernel."""
    module, dot, last = name.rpartition(".")
    index = f"[{':, ' * axis}{number}]"
    return f"{module}{index}.{last}" if dot else name + index


def stack_of(name: str, stacks: Mapping[str, int]) -> str:
    """Return the name of the stack that a leaf was cut from; its own of others."""
    whole = PLACE.sub("", name)
    return whole if whole in stacks else name


def _part(key: object) -> str:
    found = (getattr(key, one, None) for one in ("name", "key", "idx"))
    return str(next((one for one in found if one is not None), key)).strip(".")


def fans(name: str, leaf: jax.Array) -> tuple[int, int]:
    """Return fan_in and fan_out of a matrix by its name.

    Only Equinox's weights are (out, in), and only projections into heads (in, heads, out).
    """
    first, last = leaf.shape[0], leaf.shape[-1]
    module, _, kind = PLACE.sub("", name).rpartition(".")
    if kind == "weight":
        return prod(leaf.shape[1:]), first * prod(leaf.shape[2:])
    if leaf.ndim == 3 and module.rpartition(".")[2] in ("query", "key", "value"):
        return first, prod(leaf.shape[1:])
    return prod(leaf.shape[:-1]), last * prod(leaf.shape[:-2])


def is_vector(name: str, leaf: jax.Array) -> bool:
    """Return True of vectors, also those of several axes: of heads, of stacked layers."""
    return leaf.ndim < 2 or PLACE.sub("", name).rpartition(".")[2] in ("bias", "b", "scale")


def drawn(random: np.random.Generator, name: str, leaf: jax.Array, inputs: float) -> jax.Array:
    """Return normal numbers of the variance 1/inputs, of a leaf's shape; tables get variance 1."""
    size = 1.0 if "embed" in name.lower() else max(inputs, 1e-30) ** -0.5
    return jnp.asarray((size * random.standard_normal(leaf.shape)).astype(leaf.dtype))


def size_of(leaf: jax.Array) -> float:
    """Return log2 of the root mean square of a leaf: -inf of zeros, and of what is not finite."""
    values = np.asarray(leaf).astype(np.float64)
    with np.errstate(all="ignore"):
        top = float(np.abs(values).max(initial=0.0))
        if not 0 < top < inf:
            return -inf
        return log2(top) + log2(float(np.mean((values / top) ** 2))) / 2

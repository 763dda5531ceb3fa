"""Diagnose pure functions of trees of parameters."""

from __future__ import annotations

from collections.abc import Collection

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.jax.task import Loss, Task
from vegrad.jax.tree import Init


def diagnose(
    loss: Loss,
    params: object,
    *batch: object,
    init: Init | None = None,
    history: History | None = None,
    seed: int = 0,
    ignore: Collection[str] = (),
) -> Diagnosis:
    """Judge the gradients of a pure loss by one forward and backward pass of a batch.

    The loss is traced, and its jaxpr read as a graph: products with weights and convolutions,
    activations (however they are written), normalizations, sums, attention. One pass measures what
    each makes and δ there, in logarithms that are right where the dtype underflows or overflows.
    Equal layers are compiled once, and once for all calls. Where layers follow each other, gains
    are taken apart into weights × derivative, as `vegrad.diagnose` does it. A scan over layers
    whose weights are stacked is judged layer by layer (blocks[3].kernel). One that multiplies what
    it carries with parameters is a recurrent cell. What a while or a derivative of one's own
    contains is judged by the sizes of its leaves alone. A parameter is blamed only if putting it
    right changes gradients by decades.

    Args:
        loss: called with params and the batch, returns the mean loss, one number; it may be jitted.
        params: a tree of arrays: of flax.linen or haiku, an `nnx.State`, an Equinox module, or of
            one's own. Integers, keys and functions in it stay as they are.
        batch: what else the loss takes. Without any, the loss has closed over its data.
        init: called with a key (`jax.random.key`), returns a tree like params: then leaves are
            judged beside trees drawn anew, and edits draw by it.
        history: a `vegrad.History` of the training, whose findings are added.
        seed: seed of trees drawn anew.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Returns:
        A Diagnosis; it has `flow` if the layers are a chain. `vegrad.jax.apply_` makes a new tree
        of a finding's edit.

    Raises:
        TypeError: for a loss that cannot be called or returns anything but one number (a tuple, as
            with has_aux), and for a leaf that is no array.
        ValueError: for a loss that depends on no parameter, and for an array that was deleted. NaN
            and inf are no errors, but findings.
    """
    if not callable(loss):
        raise TypeError(f"loss must be callable, not {type(loss).__name__}")
    if init is not None and not callable(init):
        raise TypeError(f"init must be callable with a key, not {type(init).__name__}")
    if history is not None and not isinstance(history, History):
        raise TypeError(f"history must be a vegrad.History, not {type(history).__name__}")
    ignored, seed = as_ignored(ignore), as_count("seed", seed)
    task = Task.of(loss, params, batch, init, seed)
    return Diagnosis.of(task.read(task.tree.leaves), history).ignoring(ignored)

"""Expect the flow of a chain that theory has no formulas for by drawing its weights anew.

Theory does not know convolutions, pooling, BatchNorm, or blocks with the normalization before or
after a skip connection. So each layer of a copy gets new weights of the initialization that its own
look like, and the same batch is run. The mean over several such copies is what to expect, and what
differs from one to the next is chance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import partial
from math import inf, isfinite, nan, sqrt

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import DECADE
from vegrad.theory.expected import ExpectedFlow
from vegrad.torch import models
from vegrad.torch.monitor.modules import tensor_in
from vegrad.torch.reading import passes
from vegrad.torch.reading.initialization import TORCH, Drawing, drawn_as, own_initialization
from vegrad.torch.reading.trace import Layer

DRAWS = 8
MOST_ROWS = 256


def expected(
    task: passes.Task, run: passes.Pass, drawing: Drawing, seed: int
) -> ExpectedFlow | None:
    """Return mean and spread over several drawings of the weights.

    Args:
        task: the model, of which copies are drawn and run; its loss; a batch, of which at most 256
            rows are used.
        run: a pass of the model as it is.
        drawing: the initialization that most of its layers look to have.
        seed: seed of the new weights.

    Returns:
        None if the weights cannot be drawn: they are computed from other parameters (as by a weight
        norm), the model cannot be copied, or the layers that it runs depend on the data.
    """
    names = [run.trace.names.get(id(layer.weight), "") for layer in run.trace.layers]
    twin = _copied(task.model) if all(names) else None
    if twin is None:
        return None
    rows, take = passes.row_count(task.x, task.target), passes.rows_of(task.x, task.target)
    x, target = task.x, task.target
    if take is not None and rows > MOST_ROWS:
        x, target = take(np.linspace(0, rows - 1, MOST_ROWS).astype(np.intp))
    # A user who made the model after torch.manual_seed(seed) would get it once more from that seed.
    own = int(np.random.SeedSequence([seed, DRAWS]).generate_state(1, np.uint64)[0] >> 1)
    random = torch.Generator().manual_seed(own)
    found: list[tuple[FloatArray, ...]] = []
    for _ in range(DRAWS):
        for layer, name in zip(run.trace.layers, names, strict=True):
            _draw(twin, name, layer, own_initialization(layer, drawing), random)
        again = passes.forward(twin, task.loss_fn, x, target)
        if len(again.trace.layers) != len(run.trace.layers) or not again.path:
            return None
        passes.backward(again)
        again.path[:] = run.path
        outputs = np.log2(np.maximum(passes.output_rms(again), 1e-300))
        sizes = np.array([again.sizes.get(place, -np.inf) for place in again.path])
        found.append((outputs, sizes - sizes[-1], passes.gains(again)))
    outputs, deltas, gains = (np.array(values) for values in zip(*found, strict=True))
    with np.errstate(invalid="ignore"):
        return ExpectedFlow(
            2.0 ** outputs.mean(axis=0),
            _spread(outputs),
            deltas.mean(axis=0),
            _spread(deltas),
            gains.mean(axis=0),
            _spread(gains),
        )


def decades(task: passes.Task, drawn: Sequence[str], ends: tuple[str, str]) -> float:
    """Return log10 of δ at the first module over δ at the last, with some modules drawn anew.

    Args:
        task: the model, of which a copy is run; its loss; a batch.
        drawn: names of the modules whose parameters are reset.
        ends: names of the two modules at which δ is measured.

    Returns:
        nan if the model cannot be copied, or if no gradient comes to the modules.
    """
    twin = _copied(task.model)
    if twin is None:
        return nan
    outputs: dict[str, Tensor | None] = {}

    def keep(name: str, module: Module, args: object, output: object) -> None:
        outputs.setdefault(name, tensor_in(output))

    for name in ends:
        twin.get_submodule(name).register_forward_hook(partial(keep, name))
    torch.manual_seed(DRAWS)
    for name in drawn:
        reset = twin.get_submodule(name).reset_parameters
        assert callable(reset)
        reset()
    loss = task.loss_fn(models.called(twin, task.x), task.target)
    wanted = [one for name in ends if (one := outputs.get(name)) is not None and one.requires_grad]
    if len(wanted) < len(ends):
        return nan
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    first, last = (-inf if one is None else models.size_log2(one) for one in found)
    return (first - last) / DECADE if isfinite(last) else nan


def _copied(model: Module) -> Module | None:
    """Return a copy of the model; None if it holds something that cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError):
        return None


def _spread(values: FloatArray) -> FloatArray:
    """Return half of the width about the mean in which 19 of 20 further drawings lie.

    The quantile of Student's t is expanded in that of the normal distribution, 1.96.
    """
    degrees, z = len(values) - 1, 1.96
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    wider: FloatArray = values.std(axis=0, ddof=1) * t / 2.0 * sqrt(1.0 + 1.0 / len(values))
    return wider


def _draw(
    model: Module, name: str, layer: Layer, drawing: Drawing, random: torch.Generator
) -> None:
    """Draw a layer's weights and biases from an initialization; zeros stay zeros."""
    variance, sigma_b, row = drawn_as(layer, drawing)
    uniform = drawing.init == TORCH or drawing.init.endswith("uniform")
    with torch.no_grad():
        if bool(layer.weight.detach().any()):
            weight = torch.empty(tuple(layer.weight.shape))
            if row is not None and row.orthogonal:
                flat = weight.flatten(1)
                nn.init.orthogonal_(flat, sqrt(variance * max(flat.shape)), generator=random)
                weight = flat.reshape(weight.shape)
            elif uniform:
                weight.uniform_(-sqrt(3.0 * variance), sqrt(3.0 * variance), generator=random)
            else:
                weight.normal_(0.0, sqrt(variance), generator=random)
            model.get_parameter(name).copy_(weight)
        bias = name.removesuffix("weight") + "bias"
        parameters = dict(model.named_parameters())
        if layer.bias is None or bias not in parameters or not isfinite(sigma_b):
            return
        drawn = torch.empty(tuple(layer.bias.shape))
        if drawing.init == TORCH:
            drawn.uniform_(-sqrt(3.0) * sigma_b, sqrt(3.0) * sigma_b, generator=random)
        else:
            drawn.normal_(0.0, sigma_b, generator=random)
        parameters[bias].copy_(drawn)

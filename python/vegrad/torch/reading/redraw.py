"""Expect the flow of a chain that theory has no formulas for by drawing its weights anew.

Theory does not know convolutions, pooling, BatchNorm, or blocks with the normalization before or
after a skip connection. So each layer gets new weights of the initialization that its own look
like, and the same batch is run, several times; then its own weights are put back. The mean is what
to expect, and what differs from one drawing to the next is chance.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite, sqrt

import numpy as np
import torch
from torch import Tensor, nn

from vegrad.arrays.checks import FloatArray
from vegrad.theory.expected import ExpectedFlow
from vegrad.torch import models
from vegrad.torch.reading import passes
from vegrad.torch.reading.initialization import TORCH, Drawing, drawn_as, own_initialization
from vegrad.torch.reading.trace import Layer
from vegrad.torch.reading.what_if import borrowed

DRAWS = 8
MOST_ROWS = 256


def expected(
    task: passes.Task, run: passes.Pass, drawing: Drawing, seed: int
) -> ExpectedFlow | None:
    """Return mean and spread over several drawings of the weights.

    Args:
        task: the model, whose weights are drawn and put back; its loss; a batch, of which at most
            256 rows are used.
        run: a pass of the model as it is.
        drawing: the initialization that most of its layers look to have.
        seed: seed of the new weights.

    Returns:
        None if the weights cannot be drawn, as they are computed from other parameters (by a weight
        norm), or if the layers that the model runs depend on the data.
    """
    names = [run.trace.names.get(id(layer.weight), "") for layer in run.trace.layers]
    if not all(names):
        return None
    rows, take = passes.row_count(task.x, task.target), passes.rows_of(task.x, task.target)
    if take is not None and rows > MOST_ROWS:
        x, target = take(np.linspace(0, rows - 1, MOST_ROWS).astype(np.intp))
        task = task._replace(x=x, target=target)
    # A user who made the model after torch.manual_seed(seed) would get it once more from that seed.
    own = int(np.random.SeedSequence([seed, DRAWS]).generate_state(1, np.uint64)[0] >> 1)
    random = torch.Generator().manual_seed(own)
    drawings = [own_initialization(layer, drawing) for layer in run.trace.layers]
    found: list[tuple[FloatArray, ...]] = []
    parameters = dict(task.model.named_parameters())
    with models.untouched(task.model, task.loss_fn), borrowed(task.model.parameters()):
        for _ in range(DRAWS):
            for layer, name, one in zip(run.trace.layers, names, drawings, strict=True):
                _draw(parameters, name, layer, one, random)
            again = passes.replayed(task, run, deep=True)
            if again is None:
                return None
            sizes, inputs, output = again
            outputs = np.log2(np.maximum([*inputs[1:], models.rms(output)], 1e-300))
            found.append((outputs, sizes))
    return ExpectedFlow.of_draws(*zip(*found, strict=True))


def _draw(
    parameters: Mapping[str, Tensor],
    name: str,
    layer: Layer,
    drawing: Drawing,
    random: torch.Generator,
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
            parameters[name].copy_(weight)
        bias = name.removesuffix("weight") + "bias"
        if layer.bias is None or bias not in parameters or not isfinite(sigma_b):
            return
        drawn = torch.empty(tuple(layer.bias.shape))
        if drawing.init == TORCH:
            drawn.uniform_(-sqrt(3.0) * sigma_b, sqrt(3.0) * sigma_b, generator=random)
        else:
            drawn.normal_(0.0, sigma_b, generator=random)
        parameters[bias].copy_(drawn)

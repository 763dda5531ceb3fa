"""What to expect of a model that theory has no formulas for: its flow with weights drawn anew.

Convolutions, pooling, BatchNorm, blocks with the normalization before or after a skip connection:
each layer gets new weights of the initialization that its own look like, the same batch goes
through, and what comes out differently each time is chance.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import inf, isfinite, nan, sqrt
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import Module

from vegrad.arrays.checks import FloatArray
from vegrad.flow.wording import DECADE
from vegrad.theory.expected import ExpectedFlow
from vegrad.torch import models
from vegrad.torch.monitor.modules import tensor_in
from vegrad.torch.reading import passes
from vegrad.torch.reading.initialization import TORCH, drawn_as, own_initialization
from vegrad.torch.reading.trace import Layer

DRAWS = 8
MOST_ROWS = 256


def expected(
    model: Module,
    loss_fn: Any,
    x: Any,
    target: Any,
    run: passes.Pass,
    config: dict[str, Any],
    seed: int,
) -> ExpectedFlow | None:
    """Mean and spread over drawings of the weights, on at most 256 rows; None if there are none.

    Args:
        model: as it is; a copy is drawn and run.
        loss_fn: as for `diagnose`.
        x: inputs.
        target: of the loss.
        run: a pass of the model as it is.
        config: of that pass, with its initialization.
        seed: of the drawings.
    """
    names = [run.trace.names.get(id(layer.weight), "") for layer in run.trace.layers]
    if not all(names):
        return None  # made of others, as by a weight norm
    take = passes.rows_of(x, target)
    if take is not None and len(target) > MOST_ROWS:
        x, target = take(np.linspace(0, len(target) - 1, MOST_ROWS).astype(np.intp))
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError):  # it holds what cannot be copied
        return None
    # Not the seed itself: who made the model after torch.manual_seed(seed) would get it once more.
    own = int(np.random.SeedSequence([seed, DRAWS]).generate_state(1, np.uint64)[0] >> 1)
    random = torch.Generator().manual_seed(own)
    found: list[tuple[FloatArray, ...]] = []
    for _ in range(DRAWS):
        for layer, name in zip(run.trace.layers, names, strict=True):
            _draw(twin, name, layer, own_initialization(layer, config), random)
        again = passes.forward(twin, loss_fn, x, target)
        if len(again.trace.layers) != len(run.trace.layers) or not again.path:
            return None  # what is run depends on the data
        passes.backward(again)
        again.path[:] = run.path
        came = np.log2(np.maximum(passes.output_rms(again), 1e-300))
        sizes = np.array([again.sizes.get(place, -np.inf) for place in again.path])
        found.append((came, sizes - sizes[-1], passes.gains(again)))
    logs: list[FloatArray] = [np.array(values) for values in zip(*found, strict=True)]
    outputs, deltas, gains = logs
    with np.errstate(invalid="ignore"):
        return ExpectedFlow(
            2.0 ** outputs.mean(axis=0), _spread(outputs), deltas.mean(axis=0), _spread(deltas),
            gains.mean(axis=0), _spread(gains),
        )  # fmt: skip


def decades(
    model: Module, loss_fn: Any, x: Any, target: Any, drawn: Sequence[str], ends: tuple[str, str]
) -> float:  # fmt: skip
    """log10 of δ at the first module over δ at the second, with some modules' parameters reset.

    nan where it cannot be told.
    """
    try:
        twin = copy.deepcopy(model)
    except (RuntimeError, TypeError):
        return nan
    outputs: dict[str, Any] = {}
    for name in ends:

        def keep(one: Any, args: Any, output: Any, name: str = name) -> None:
            outputs.setdefault(name, tensor_in(output))

        twin.get_submodule(name).register_forward_hook(keep)
    torch.manual_seed(DRAWS)
    for name in drawn:
        one: Any = twin.get_submodule(name)
        one.reset_parameters()
    loss = loss_fn(models.called(twin, x), target)
    wanted = [outputs.get(name) for name in ends]
    if any(one is None or not one.requires_grad for one in wanted):
        return nan
    found = torch.autograd.grad(loss, wanted, allow_unused=True)
    first, last = (-inf if one is None else models.size_log2(one) for one in found)
    return (first - last) / DECADE if isfinite(last) else nan


def _spread(values: FloatArray) -> FloatArray:
    """Two of them hold nineteen of twenty further drawings, as Student's t has it."""
    degrees, z = len(values) - 1, 1.96
    t = z + (z**3 + z) / (4 * degrees) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * degrees**2)
    wider: FloatArray = values.std(axis=0, ddof=1) * t / 2.0 * sqrt(1.0 + 1.0 / len(values))
    return wider


def _draw(
    model: Module, name: str, layer: Layer, config: dict[str, Any], random: torch.Generator
) -> None:
    """A layer's weights and biases, of this initialization; zeros stay zeros."""
    variance, sigma_b, row = drawn_as(layer, config)
    shape = tuple(layer.weight.shape)
    with torch.no_grad():
        if bool(layer.weight.detach().any()):
            weight = torch.empty(shape)
            if row is not None and row.orthogonal:
                flat = weight.flatten(1)
                nn.init.orthogonal_(flat, sqrt(variance * max(flat.shape)), generator=random)
                weight = flat.reshape(shape)
            elif config["init"] == TORCH or config["init"].endswith("uniform"):
                weight.uniform_(-sqrt(3.0 * variance), sqrt(3.0 * variance), generator=random)
            else:
                weight.normal_(0.0, sqrt(variance), generator=random)
            model.get_parameter(name).copy_(weight)
        bias = name.removesuffix("weight") + "bias"
        parameters = dict(model.named_parameters())
        if layer.bias is None or bias not in parameters or not isfinite(sigma_b):
            return
        drawn = torch.empty(tuple(layer.bias.shape))
        if config["init"] == TORCH:
            drawn.uniform_(-sqrt(3.0) * sigma_b, sqrt(3.0) * sigma_b, generator=random)
        else:
            drawn.normal_(0.0, sigma_b, generator=random)
        parameters[bias].copy_(drawn)

"""Read the sizes of a model's parameters, and what each is used for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import inf, isfinite, log2, nan, prod

import torch
from torch import Tensor, nn
from torch.nn import Module

from vegrad.flow.data import NonFiniteValue
from vegrad.flow.reading import MAPS, Operation, Parameter
from vegrad.torch import architecture, models
from vegrad.torch.reading.call import NORMS, PRODUCTS
from vegrad.torch.reading.graph import Graph

MULTIPLIES = MAPS | PRODUCTS | {"multi_head_attention_forward", "bilinear", "matmul"}
NO_COPIES = False, False
SOME = 3  # maps in one: queries, keys and values


def read_parameters(
    model: Module, graph: Graph, gradients: Mapping[str, float], drawn: Collection[str] = ()
) -> dict[str, Parameter]:
    """Read the sizes of all parameters, and of a normalization's statistics where these are used.

    Args:
        model: the model.
        graph: of a pass.
        gradients: log2 of the norms of gradients, by name.
        drawn: names of matrices of which rules will ask how they were drawn.
    """
    used = _uses(graph.operations)
    modules = dict(model.named_modules())
    found = {}
    for name, parameter in model.named_parameters():
        if not models.is_measurable(parameter):
            found[name] = Parameter(name, ())
            continue
        size, values = models.size_log2(parameter), parameter.detach()
        use, owner = used.get(name), modules[name.rpartition(".")[0]]
        role = _role(name, values, use, owner)
        # A frozen parameter may be a mask of infinities.
        judged = parameter.requires_grad or name in gradients
        found[name] = Parameter(
            name,
            tuple(values.shape),
            size - log2(max(values.numel(), 1)) / 2 if isfinite(size) else -inf,
            mean=float(values.double().mean()) if role == "bias" else nan,
            role=role,
            trained=parameter.requires_grad,
            fans=_fans(values, use, owner) if role in ("map", "recurrent") else (0, 0),
            blocks=_blocks(values) if role == "map" else (),
            kurtosis=_kurtosis(values) if name in drawn else nan,
            gradient_log2=gradients.get(name, nan),
            lost=not gradients.get(name, 0.0) < inf,
            reached=graph.reached is None
            or id(parameter) in graph.reached
            or gradients.get(name, -inf) > -inf,  # reversible layers run backward by themselves
            nonfinite=first_nonfinite(values) if judged and not size < inf else None,
            copies=(_are_equal(values, 0), _are_equal(values, 1)) if role == "map" else NO_COPIES,
        )
    return found | _statistics(model, graph)


def _uses(operations: Sequence[Operation]) -> dict[str, Operation]:
    """Return the first operation that multiplies with each parameter; else the first of all."""
    found: dict[str, Operation] = {}
    for one in operations:
        for name in one.parameters:
            known = found.setdefault(name, one)
            if one.kind in MULTIPLIES and known.kind not in MULTIPLIES:
                found[name] = one
    return found


def _role(name: str, values: Tensor, use: Operation | None, owner: Module) -> str:
    """Return what a parameter is for: see `Parameter.role`."""
    kind = "" if use is None else use.kind
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return "recurrent" if values.ndim > 1 else "bias"
    if isinstance(owner, nn.Embedding | nn.EmbeddingBag) or kind.startswith("embedding"):
        return "table"
    last = name.rpartition(".")[2]
    if values.ndim < 2:
        if "bias" in last or (kind in MAPS and use is not None and use.parameters[0] != name):
            return "bias"
        norm = kind in NORMS or "norm" in type(owner).__name__.lower()
        return "norm" if norm and values.ndim == 1 and last == "weight" else ""
    plain = isinstance(owner, architecture.LAYERS) and last == "weight"
    return "map" if plain or kind in MULTIPLIES else ""


def _fans(values: Tensor, use: Operation | None, owner: Module) -> tuple[int, int]:
    """Return fan_in and fan_out: a weight is stored (out, in), or the other way round."""
    kind = "" if use is None else use.kind
    first, second, *kernel = values.shape
    field = prod(kernel)
    if isinstance(owner, nn.RNNBase | nn.RNNCellBase):
        return owner.hidden_size, first
    if values.ndim == 2 and kind not in MAPS and kind != "multi_head_attention_forward":
        first, second = second, first  # x @ W
    elif values.ndim == 3 and kind in PRODUCTS:  # a stack of such
        return second, values.shape[2]
    elif "transpose" in kind:
        first, second = second, first
    return second * field, first * field


def _blocks(values: Tensor) -> tuple[float, ...]:
    """Return log2 of the root mean squares of a third of the rows each, if there are thirds."""
    if len(values) % SOME or not values.numel():
        return ()
    each = log2(values.numel() / SOME) / 2
    return tuple(models.size_log2(one) - each for one in values.chunk(SOME))


def _are_equal(values: Tensor, axis: int) -> bool:
    """Return True if a matrix has the same numbers at all places along an axis."""
    count = values.shape[axis]
    if count < 2 or not values.numel():
        return False
    corner = values.flatten(2)[..., 0] if values.ndim > 2 else values
    corner = corner.select(1 - axis, 0)  # few numbers, which nearly always tell
    if not bool((corner == corner[0]).all()):
        return False
    return bool((values == values.narrow(axis, 0, 1)).all())


def _kurtosis(matrix: Tensor) -> float:
    rms = models.rms(matrix)
    if not 0 < rms < inf:
        return nan
    squares = (matrix.float() / rms).square()
    return float(squares.square().mean())


def first_nonfinite(values: Tensor) -> NonFiniteValue | None:
    """Return the first element that is NaN or infinite; None if there is none."""
    values = values.detach()
    bad = ~torch.isfinite(values)
    if not bool(bad.any()):
        return None
    first = tuple(int(n) for n in bad.nonzero()[0])
    value = values[first]
    return NonFiniteValue(
        first, float(value.abs() if value.is_complex() else value), int(bad.sum())
    )


def _statistics(model: Module, graph: Graph) -> dict[str, Parameter]:
    """Return the running variances that normalized the batch, beside the batch's own."""
    found = {}
    for name, buffer in model.named_buffers():
        batch = graph.variances.get(id(buffer))
        if batch is not None:
            mean = float(buffer.double().mean())
            size = log2(mean) if 0 < mean < inf else -inf
            found[name] = Parameter(
                name, tuple(buffer.shape), size, role="variance", batch_log2=batch
            )
    return found

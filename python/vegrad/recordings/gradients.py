"""Diagnoses from what was recorded: gradients of any framework's network, or a history."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from vegrad.arrays.checks import listed
from vegrad.arrays.measurement import Measurement, measure
from vegrad.arrays.shown import shown
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.flow.gradients import Gradients
from vegrad.flow.reading import Reading
from vegrad.flow.wording import DECADE, Vocabulary


def diagnose_gradients(
    gradients: Any,
    parameters: Any = None,
    order: Sequence[Any] | None = None,
    *,
    ignore: Collection[str] = (),
) -> Diagnosis:
    """Judge gradients that were recorded anywhere, without the network that they belong to.

    The chain goes through the weights (buffers of two and more axes, or all, if there is none),
    from the layer nearest the input. Compared are logarithms of norms between neighbouring layers,
    never sizes, so that neither the loss's scale nor the batch matters; norms are exact beyond the
    range of float64. A weight's gradient is the product of δ and the layer's input: where one grows
    as the other shrinks it shows nothing, so the biases' gradients, sums of δ, are looked at too.
    Which factor of a layer is at fault cannot be seen from gradients alone: `diagnose` tells.

    Args:
        gradients: buffers, as everywhere: a mapping, a sequence or one; None entries are passed
            over.
        parameters: buffers of the same names (or number): then what a step moves, relative to the
            weights, is part of the evidence.
        order: names, or positions, from input to output, of the buffers that make the chain; the
            order given, if None.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Returns:
        A Diagnosis with `measurement`, without `flow`.

    Raises:
        TypeError, ValueError: for what is no buffer; an order of unknown names; parameters of
            other names; what is no name of a cause in ignore. NaN and inf are a finding.
    """
    ignored = as_ignored(ignore)
    names, values = _named(gradients)
    measurement = measure(dict(zip(names, values, strict=True)))
    recorded = Gradients(
        norms_log2={
            name: one.norm_log2 for name, one in zip(names, measurement.buffers, strict=True)
        },
        chain=_chain(names, values, order),
        biases=tuple(n for n in names if n.endswith("bias")) if order is None else (),
        ratios={} if parameters is None else _ratios(names, measurement, parameters),
        measurement=measurement,
    )
    return Diagnosis.of(reading_of(recorded)).ignoring(ignored)


def diagnose_history(history: History, *, ignore: Collection[str] = ()) -> Diagnosis:
    """Judge a training from its history: its steps, and the weights' gradients in its last epoch.

    Args:
        history: of the training.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Raises:
        TypeError: if it is no History.
        TypeError, ValueError: for what is no name of a cause in ignore.
    """
    ignored = as_ignored(ignore)
    if not isinstance(history, History):
        raise TypeError(f"history must be a vegrad.History, not {type(history).__name__}")
    sizes = history.gradient_log2[-1] if history.epochs else []
    chain = {f"layers.{layer}.weight": float(size) for layer, size in enumerate(sizes)}
    recorded = Gradients(norms_log2=chain, chain=tuple(chain))
    return Diagnosis.of(reading_of(recorded, epochs=history.epochs), history).ignoring(ignored)


def reading_of(recorded: Gradients, **about: object) -> Reading:
    """Return the reading of gradients alone."""
    return Reading(
        vocabulary=Vocabulary(),
        about=about or {"chain": list(recorded.chain)},
        gradients=recorded,
    )


def _named(gradients: Any) -> tuple[list[str], list[Any]]:
    if isinstance(gradients, Mapping):
        items = listed("gradients", gradients.items())
        pairs = [(str(name), value) for name, value in items if value is not None]
    elif hasattr(gradients, "__dlpack__") or not hasattr(gradients, "__iter__"):
        pairs = [("0", gradients)]
    else:
        entries = listed("gradients", gradients)
        pairs = [(str(n), value) for n, value in enumerate(entries) if value is not None]
    return [name for name, _ in pairs], [value for _, value in pairs]


def _chain(names: list[str], values: list[Any], order: Sequence[Any] | None) -> tuple[str, ...]:
    if order is not None:
        chain = [str(name) for name in order]
        unknown = [name for name in chain if name not in names]
        if unknown or len(set(chain)) < len(chain):
            twice = next((name for name in chain if chain.count(name) > 1), "")
            what = f"unknown: {shown(unknown[0])}" if unknown else f"{shown(twice)} is there twice"
            raise ValueError(f"order must name some of gradients, each once; {what}")
        return tuple(chain)
    shapes = zip(names, map(np.shape, values), strict=True)
    weights = [name for name, shape in shapes if len(shape) > 1 and 0 not in shape]
    return tuple(weights or names)


def _ratios(names: list[str], measurement: Measurement, parameters: Any) -> dict[str, float]:
    """log10 of ‖gradient‖/‖parameter‖ by name."""
    theirs, values = _named(parameters)
    missing = [name for name in names if name not in theirs]
    if missing:
        raise ValueError(
            f"parameters must have every name that gradients has; there is no {shown(missing[0])}"
        )
    weights = measure(dict(zip(theirs, values, strict=True)))
    return {
        name: (one.norm_log2 - weights.buffers[theirs.index(name)].norm_log2) / DECADE
        for name, one in zip(names, measurement.buffers, strict=True)
    }

"""One pass of a `vegrad.RNN`, as a reading."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from math import inf, isfinite, log2, nan

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.arrays.measurement import norms
from vegrad.diagnosis.judge import judge
from vegrad.diagnosis.rules import memory
from vegrad.flow.data import Compared, Input, NonFiniteData, NonFiniteValue
from vegrad.flow.finding import Finding
from vegrad.flow.lags import Lags
from vegrad.flow.reading import Operation, Parameter, Reading
from vegrad.flow.recurrence import LEAST_STEPS, MOST_ROWS, MOST_STEPS, PARTS, Recurrence
from vegrad.flow.time_flow import TimeFlow
from vegrad.networks.network import Network
from vegrad.networks.reading import compared_outputs, first_nonfinite, in_training, known_loss
from vegrad.networks.recurrent_network import RecurrentNetwork
from vegrad.networks.rows import Batch
from vegrad.networks.sequences import Lengths
from vegrad.networks.vocabulary import RecurrentVocabulary
from vegrad.networks.what_if import ScaledInputs


def read(network: RecurrentNetwork, batch: Batch, seed: int = 0) -> Reading:
    """Run a network forward and back, which overwrites its gradients and flow, and read it.

    Args:
        network: the network.
        batch: arguments of its pass, which were checked.
        seed: of weights drawn anew.
    """
    config, vocabulary = network.config, RecurrentVocabulary()
    problem = _nonfinite_data("x", batch) or _nonfinite_data("target", batch)
    if problem is not None:
        return Reading(vocabulary=vocabulary, about=dict(config), problem=problem)
    loss = network.backward(batch.x, batch.target, lengths=batch.lengths)
    flow = network.flow
    assert isinstance(flow, TimeFlow)
    operations = _operations(network)
    outputs, wanted = network.compared(batch)
    compared: tuple[Compared, ...] = ()
    if np.isfinite(outputs).all():
        compared = (compared_outputs(outputs, wanted, loss, config, len(operations) - 2),)
    one_a_row = config["targets"] == "last" and batch.lengths is None
    return Reading(
        vocabulary=vocabulary,
        about=dict(config),
        dtype=config["dtype"],
        loss=loss,
        loss_kind=config["loss"],
        operations=operations,
        parameters=_parameters(network),
        compared=compared,
        losses=(known_loss(wanted, loss, config),),
        inputs=(Input.of("x", batch.x),) if batch.lengths is None else (),
        what_if=ScaledInputs(network, batch.x, partial(_run, batch)),
        time_flow=flow,
        cells=tuple(_cells(network, batch, seed)),
        lags=Lags.of(batch.x, batch.target) if one_a_row else None,
    )


def _run(batch: Batch, twin: Network, x: Array) -> float:
    """Run a network forward and back on other inputs of a batch."""
    assert isinstance(twin, RecurrentNetwork)
    return twin.backward(x, batch.target, lengths=batch.lengths)


def judged(network: RecurrentNetwork, batch: Batch) -> tuple[Finding, ...]:
    """Judge a network as it is on these rows, by one pass."""
    return judge(in_training(read(network, batch), batch))


def forgotten(
    network: RecurrentNetwork, batch: Batch, first: RecurrentNetwork | None
) -> tuple[Finding, ...]:
    """Return what a network that learns nothing forgets of these rows, though its target needs it.

    `first` is the network before its training. Nothing is said of data in which something is not
    finite.
    """
    now = read(network, batch)
    return memory.forgotten(now, lambda: now if first is None else read(first, batch))


# A first batch that need not be judged: its loss, in those of the best constant output, and limits
# of its gradient's size at any step over that at the last, in log2.
USUAL, SMALL, LARGE = 2.0, -10.0, 2.0


def is_usual(network: RecurrentNetwork, batch: Batch, constant: float) -> bool:
    """Return True if one pass shows nothing that comes near to a limit of any rule.

    It takes a small part of the time of a judgement, which short trainings would feel. `constant`
    is the loss of the best constant output.
    """
    loss = network.backward(batch.x, batch.target, lengths=batch.lengths)
    if not loss < USUAL * constant:
        return False
    weights = [w for w in network.parameters.values() if w.ndim == 2]
    if any((w[:1] == w[1:2]).all() for w in weights if len(w) > 1):
        return False
    flow = network.flow
    assert isinstance(flow, TimeFlow)
    with np.errstate(invalid="ignore"):
        sizes = np.cumsum(flow.passed_log2[:, :0:-1], axis=1)
    return bool((sizes > SMALL).all() and (sizes < LARGE).all())


def _operations(network: RecurrentNetwork) -> tuple[Operation, ...]:
    """Write down the pass: the layers, the head and the loss."""
    found = [
        Operation(network.config["cell"], f"rnn (layer {n})", (n - 1,), tuple(_names(n).values()))
        for n in range(network.config["layers"])
    ]
    count = len(found)
    found.append(Operation("linear", "head", (count - 1,), ("head.weight", "head.bias")))
    return (*found, Operation(network.config["loss"], "loss", (count,)))


def _names(layer: int) -> dict[str, str]:
    """Return the names of a layer's parameters by part."""
    return {part: f"rnn.{PARTS[part]}_l{layer}" for part in ("ih", "hh", "b_ih", "b_hh")}


def _parameters(network: RecurrentNetwork) -> dict[str, Parameter]:
    """Measure the parameters and their gradients."""
    found, gradients = {}, network.gradients
    sizes, own = norms(network.parameters).tolist(), norms(gradients).tolist()
    for (name, value), norm, size in zip(network.parameters.items(), sizes, own, strict=True):
        role = "bias" if "bias" in name else "map" if name == "head.weight" else "recurrent"
        found[name] = Parameter(
            name,
            value.shape,
            log2(norm) - log2(value.size) / 2 if 0 < norm < inf else -inf,
            role=role,
            fans=value.shape[::-1] if value.ndim == 2 else (0, 0),
            gradient_log2=log2(size) if 0 < size < inf else -inf if not size else nan,
            nonfinite=None if isfinite(norm) else first_nonfinite(value),
            lost=not isfinite(size),
            copies=_copies(network, name),
        )
    return found


def _copies(network: RecurrentNetwork, name: str) -> tuple[bool, bool]:
    """Return True where all units that a weight makes are copies, and all that it reads."""
    weight = network.parameters[name]
    if weight.ndim < 2 or "_hh_" in name:
        return False, False
    alike = weight.shape[1] > 1 and bool((weight == weight[:, :1]).all())
    if "_ih_" not in name or (weight[0] != weight[1 % len(weight)]).any():
        return False, alike
    own = [network.parameters[name.replace("weight_ih", PARTS[p])] for p in ("hh", "b_ih", "b_hh")]
    units = own[0].shape[1]
    matrices = own[0].reshape(-1, units, units)  # alike for all are a diagonal, and what is beside
    blocks = [one.reshape(len(matrices), units, -1) for one in (weight, *own[1:])]
    blocks.append(np.diagonal(matrices, axis1=1, axis2=2)[..., None])
    blocks.append(matrices[:, ~np.eye(units, dtype=bool)][..., None])
    return units > 1 and all(bool((one == one[:, :1]).all()) for one in blocks), alike


def _cells(network: RecurrentNetwork, batch: Batch, seed: int) -> Iterator[Recurrence]:
    """Look at each layer, on some rows of the last steps."""
    length = batch.x.shape[1]
    # The longer half of the rows, of which all have the steps that are looked at.
    lengths = np.full(len(batch.x), length) if batch.lengths is None else batch.lengths
    steps = int(np.median(lengths))
    rows = np.flatnonzero(lengths >= steps)
    rows = rows[np.linspace(0, len(rows) - 1, min(MOST_ROWS, len(rows))).astype(np.intp)]
    x = np.stack([batch.x[row, lengths[row] - steps : lengths[row]] for row in rows], axis=1)
    x = x[-MOST_STEPS:].astype(np.float64)
    if len(x) < LEAST_STEPS:
        return
    for layer in range(network.config["layers"]):
        names = _names(layer)
        own = {part: network.parameters[n].astype(np.float64) for part, n in names.items()}
        if not all(np.isfinite(one).all() for one in (*own.values(), x)):
            return
        cell = Recurrence("rnn", network.config["cell"], names, own, x, steps)
        x = cell.look(seed)
        yield cell


# The data ---------------------------------------------------------------------------------------


def _nonfinite_data(name: str, batch: Batch) -> NonFiniteData | None:
    """Return the first value of x or the target that is not finite.

    What lies beyond a row's length counts nowhere.
    """
    values = batch.x if name == "x" else batch.target
    bad = ~np.isfinite(values)
    if batch.lengths is not None and values.ndim == batch.x.ndim:
        bad &= _there(batch.lengths, values)
    if not bad.any():
        return None
    index = tuple(int(n) for n in np.argwhere(bad)[0])
    return NonFiniteData(
        "data" if name == "x" else "target",
        name,
        NonFiniteValue(index, float(values[index]), int(bad.sum())),
        rows=int(bad.reshape(len(bad), -1).any(axis=1).sum()),
        of=len(values),
        steps=values.ndim == batch.x.ndim,
    )


def _there(lengths: Lengths, values: Array) -> Array:
    """Return True where a row has the step (B, T, 1)."""
    return (np.arange(values.shape[1]) < lengths[:, None])[..., None]

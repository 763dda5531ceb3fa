"""The diagnosis of own networks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.networks.mlp import MLP
from vegrad.networks.network import check_network
from vegrad.networks.reading import read
from vegrad.networks.recurrent_subject import RecurrentSubject, as_memory
from vegrad.networks.rnn import RNN
from vegrad.networks.subject import NetworkSubject


def diagnose(
    network: MLP | RNN,
    x: Any,
    target: Any,
    *,
    history: History | None = None,
    resamples: int = 4,
    seed: int = 0,
    theory: bool = True,
    ignore: Collection[str] = (),
    lengths: object = None,
    memory: int = 0,
) -> Diagnosis:
    """Judge the gradients of `network` by one forward and backward pass.

    Args:
        network: a `vegrad.MLP` or `vegrad.RNN`, whose `.gradients` and `.flow` are overwritten.
        x: the inputs (B, I), or sequences (B, T, I).
        target: as for the network's `backward`.
        history: of its training, whose findings are taken in.
        resamples: batches of at most 256 rows drawn from this one with replacement, which tell how
            far the gains depend on the batch; those of an MLP are put together from the rows of the
            one pass.
        seed: of that draw.
        theory: True to work out what theory expects of an MLP, which takes a sixth of a
            millisecond a layer, the first time a little more, and changes no verdict.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.
        lengths: of sequences, as for `RNN.backward`.
        memory: how many steps back lies what the task needs, of recurrent networks. If they forget
            it, that is a finding; without it, only where the targets themselves tell of it.

    Raises:
        TypeError: network is none of these, or history is no `vegrad.History`.
        TypeError, ValueError: as `MLP.backward`; but NaN and infinity in the data are a finding.
            Also for what is no name of a cause in ignore.
    """
    check_network(network)
    count, ignored = as_count("resamples", resamples), as_ignored(ignore)
    if isinstance(network, RNN):
        given = x if lengths is None else (x, lengths)
        subject = RecurrentSubject(network, memory=as_memory(memory, x))
        found = subject.read(given, target, resamples=count, seed=seed)
        return Diagnosis.of(found, history, RecurrentSubject).ignoring(ignored)
    if lengths is not None or memory:
        raise ValueError("lengths and memory go with a vegrad.RNN, not with a vegrad.MLP")
    reading = read(network, x, target, resamples=count, seed=seed, theory=theory)
    return Diagnosis.of(reading, history, NetworkSubject).ignoring(ignored)

"""The diagnosis of own networks."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from vegrad.arrays.checks import as_count
from vegrad.diagnosis.catalogue.table import as_ignored
from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.diagnosis.history import History
from vegrad.networks.mlp import MLP
from vegrad.networks.reading import read
from vegrad.networks.subject import NetworkSubject


def diagnose(
    network: MLP,
    x: Any,
    target: Any,
    *,
    history: History | None = None,
    resamples: int = 4,
    seed: int = 0,
    theory: bool = True,
    ignore: Collection[str] = (),
) -> Diagnosis:
    """Judge the gradients of `network` by one forward and backward pass.

    Args:
        network: a `vegrad.MLP`, whose `.gradients` and `.flow` are overwritten.
        x: the inputs (B, I).
        target: as for `MLP.backward`.
        history: of its training, whose findings are taken in.
        resamples: further passes, over at most 256 rows drawn from the batch with replacement,
            which tell how far the gains depend on the batch; 0 for one pass only.
        seed: of that draw.
        theory: True to work out what theory expects, which takes a millisecond or two a layer
            and changes no verdict.
        ignore: names of causes whose findings are left out, as `vegrad explain` lists them.

    Raises:
        TypeError, ValueError: as `MLP.backward`; but NaN and infinity in the data are a finding.
            Also for what is no name of a cause in ignore.
    """
    count, ignored = as_count("resamples", resamples), as_ignored(ignore)
    reading = read(network, x, target, resamples=count, seed=seed, theory=theory)
    return Diagnosis.of(reading, history, NetworkSubject).ignoring(ignored)

"""What can be told of a `vegrad.RNN` and its data, as a reading."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.diagnosis.judge import judge
from vegrad.flow.data import NonFiniteData, NonFiniteValue
from vegrad.flow.finding import Finding
from vegrad.flow.reading import Reading
from vegrad.networks.rows import Batch
from vegrad.networks.sequences import Lengths
from vegrad.networks.vocabulary import RecurrentVocabulary


def judge_data(config: Mapping[str, object], batch: Batch) -> tuple[Finding, ...]:
    """Return what is wrong with the data of a batch: values that are not finite."""
    problem = nonfinite_data("x", batch) or nonfinite_data("target", batch)
    if problem is None:
        return ()
    return judge(Reading(vocabulary=RecurrentVocabulary(), about=dict(config), problem=problem))


def nonfinite_data(name: str, batch: Batch) -> NonFiniteData | None:
    """Return the first value of x or the target that is not finite, by row and step among all.

    What lies beyond a row's length counts nowhere.
    """
    values = batch.x if name == "x" else batch.target
    bad = ~np.isfinite(values)
    if batch.lengths is not None and values.ndim == batch.x.ndim:
        bad &= _there(batch.lengths, values)
    if not bad.any():
        return None
    row, *rest = (int(n) for n in np.argwhere(bad)[0])
    number = row if batch.rows is None else int(batch.rows[row])
    return NonFiniteData(
        "data" if name == "x" else "target",
        name,
        NonFiniteValue((number, *rest), float(values[(row, *rest)]), int(bad.sum())),
        rows=int(bad.reshape(len(bad), -1).any(axis=1).sum()),
        of=len(values),
        steps=values.ndim == batch.x.ndim,
    )


def _there(lengths: Lengths, values: Array) -> Array:
    """Return True where a row has the step (B, T, 1)."""
    return (np.arange(values.shape[1]) < lengths[:, None])[..., None]

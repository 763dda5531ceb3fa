"""Predict rows of a table by a network that has learnt from one."""

from __future__ import annotations

import warnings
from os import PathLike
from pathlib import Path

from vegrad.arrays.checks import Array
from vegrad.datasets.files import read_table
from vegrad.datasets.frames import as_table, is_frame
from vegrad.datasets.table import Table
from vegrad.diagnosis.alarms import user_level
from vegrad.networks.network import Network


def predict(network: Network, rows: object) -> Array:
    """Return what the outputs for a table mean: classes (B,), or numbers in the target's units.

    The rows are put through what was done to those that were learnt from (`network.preparation`).

    Args:
        network: the one whose method this is.
        rows: a frame of pandas or polars, or the path of a table; more columns than the network has
            learnt from do not matter.

    Words that training has not seen are taken for none of those that it knows, with a warning.

    Raises:
        TypeError, ValueError: for rows that are no table, and columns that are missing, all in one
            error; if the network has no preparation.
    """
    preparation = network.preparation
    if preparation is None:
        raise ValueError(
            "the network knows nothing of a table: it must have learnt from one by vegrad train, "
            "or net.preparation = data.preparation be set; of arrays, call net.forward(x)"
        )
    table = table_of(rows)
    x = preparation.inputs(table)
    if table is not rows:  # who reads a table says what is odd in it
        for said in preparation.unseen(table):
            warnings.warn(said, UserWarning, user_level())
    if x.shape[1] != network.config["sizes"][0]:
        wanted = network.config["sizes"][0]
        raise ValueError(f"the preparation must make {wanted} columns, not {x.shape[1]}")
    outputs: Array = network.forward(x)
    return preparation.outputs(outputs)


def table_of(rows: object, sheet: str | None = None) -> Table:
    """Return the rows as a table: one as it is, a frame, or the path of a file (of a sheet)."""
    if isinstance(rows, Table):
        return rows
    if is_frame(rows):
        return as_table(rows)
    if isinstance(rows, str | PathLike):
        return read_table(Path(rows), sheet=sheet)
    raise TypeError(f"rows must be a frame or the path of a table, not {type(rows).__name__}")

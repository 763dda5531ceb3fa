"""Tables as people have them: what no network can take, said of all columns at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from vegrad.arrays.checks import Array, refuse_masked
from vegrad.arrays.shown import shown, some


def names_of(x: object) -> Sequence[str]:
    """Return the columns of a table (N, I) in words: names of a frame's, numbers of others'."""
    columns = getattr(x, "columns", range(np.asarray(x).shape[1]))
    return [shown(one) if isinstance(one, str) else str(one) for one in columns]


def check_table(x: object) -> None:
    """Raise ValueError that names the columns without numbers, and those without any value.

    Of a masked array it is a TypeError.
    Shapes, kinds and single values are left to scikit-learn.
    """
    refuse_masked(x, "X")
    table = np.asarray(x) if hasattr(x, "__array__") or isinstance(x, list | tuple) else NONE
    if table.ndim != 2 or not len(table) or table.dtype.kind not in "OUSMf":
        return
    if table.dtype.kind == "f" and not np.isnan(table[0]).any():
        return
    names, words, blank = names_of(x), list[str](), list[str]()
    for name, column in zip(names, table.T, strict=True):
        example = _no_number(column)
        if example is not None:
            words.append(f"{name} ({example})")
        elif _is_blank(column):
            blank.append(name)
    said = []
    if words:
        every = len(words) == len(names)
        what = "no column of numbers, only" if every else "columns that are no numbers:"
        encode = "encode them (OneHotEncoder, OrdinalEncoder) or leave them out"
        said.append(f"X has {what} {some(words, 4)}: {encode}")
    if blank:
        said.append(f"X has columns without any value, only NaN: {some(blank, 4)}: leave them out")
    if said:
        raise ValueError("; ".join(said))


NONE = np.zeros(0)


def _no_number(column: Array) -> str | None:
    """Return a value of a column that is text or a date; None if there is none."""
    if column.dtype.kind == "f":
        return None
    for value in column.tolist():
        try:
            float(value)
        except ValueError:
            return shown(str(value))
        except TypeError:  # what else it may be, scikit-learn says
            if hasattr(value, "isoformat"):
                return str(value)
    return None


def _is_blank(column: Array) -> bool:
    """Return True if a column has no value but NaN and None."""
    try:
        return bool(np.isnan(column.astype(np.float64)).all())
    except (TypeError, ValueError):
        return False


def warn_of_copies(x: Array, target: Array, names: Sequence[str]) -> None:
    """Warn of columns of x (N, I) that are one of the target (N, O), or of 0 and 1 its opposite."""
    few = np.linspace(0, len(x) - 1, min(len(x), 64)).astype(np.intp)
    same = set[int]()
    for column in target.reshape(len(target), -1).T if len(x) > 2 else ():
        opposite = 1 - column if np.isin(column[few], (0, 1)).all() else column
        for kind in (column, opposite) if np.ptp(column) else ():
            alike = np.flatnonzero((x[few] == kind[few, None]).all(axis=0)).tolist()
            same |= {n for n in alike if (x[:, n] == kind).all()}
    if same:
        said = some([names[n] for n in sorted(same)], 4)
        tells = "for rows whose target is not known yet, that tells nothing: leave it out"
        warnings.warn(f"X has the target among its columns: {said}; {tells}", stacklevel=4)

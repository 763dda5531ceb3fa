"""Tables as people have them: what no network can take, said of all columns at once."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np

from vegrad.arrays.checks import Array
from vegrad.arrays.shown import shown, some


def names_of(x: object) -> Sequence[str]:
    """Return the columns of a table in words: by their names, if it is a frame, or numbers."""
    columns = getattr(x, "columns", None)
    if columns is not None:
        return [shown(str(name)) for name in columns]
    return [str(number) for number in range(np.asarray(x).shape[1])]


def check_table(x: object) -> None:
    """Raise ValueError that names the columns without numbers, and those without any value.

    The shape and single values are left to scikit-learn.
    """
    if not hasattr(x, "__array__") and not isinstance(x, list | tuple):
        return  # sparse, or no table
    table = np.asarray(x)
    if table.ndim != 2 or not len(table) or table.dtype.kind not in "OUSMf":
        return
    names = names_of(x)
    if table.dtype.kind == "f":
        blank = [
            n for n in np.flatnonzero(np.isnan(table[0])).tolist() if np.isnan(table[:, n]).all()
        ]
        words = list[str]()
    else:
        examples = {n: one for n, column in enumerate(table.T) if (one := _no_number(column))}
        words = [f"{names[n]} ({one})" for n, one in examples.items()]
        blank = [n for n, column in enumerate(table.T) if n not in examples and _is_blank(column)]
    missing = [names[n] for n in blank]
    wrong = []
    if words and len(words) == table.shape[1]:
        wrong.append(f"X has no column of numbers: its columns are {some(words, 4)}")
    elif words:
        wrong.append(f"X has columns that are no numbers: {some(words, 4)}")
    if words:
        wrong[-1] += "; encode them (OneHotEncoder, OrdinalEncoder) or leave them out"
    if missing:
        wrong.append(
            f"X has columns without a single value, only NaN: {some(missing, 4)}; leave them out"
        )
    if wrong:
        raise ValueError(". ".join(wrong))


def _no_number(column: Array) -> str | None:
    """Return a value of a column that is text or a date; None if there is none."""
    if column.dtype.kind == "M":
        return str(column[0])
    try:
        column.astype(np.float64)
    except ValueError:
        for value in column:
            try:
                float(value)
            except ValueError:
                return shown(str(value))
    except TypeError:
        dates = [str(value) for value in column if hasattr(value, "isoformat")]
        return dates[0] if dates else None  # what else it may be, scikit-learn says
    return None


def _is_blank(column: Array) -> bool:
    """Return True if a column has no value but NaN and None."""
    try:
        return bool(np.isnan(column.astype(np.float64)).all())
    except (TypeError, ValueError):
        return False


def warn_of_copies(x: Array, target: Array, names: Sequence[str]) -> None:
    """Warn of columns of x (N, I) that are a column of the target (N, O), or 1 less it."""
    wanted = target.reshape(len(target), -1)
    if len(x) < 3:
        return
    few = np.linspace(0, len(x) - 1, min(len(x), 64)).astype(np.intp)
    for column in wanted.T:
        if np.ptp(column) == 0:
            continue
        flipped = 1 - column if set(np.unique(column)) <= {0, 1} else column
        for kind in (column, flipped):
            alike = np.flatnonzero((x[few] == kind[few, None]).all(axis=0)).tolist()
            same = [names[n] for n in alike if (x[:, n] == kind).all()]
            if same:
                warnings.warn(
                    f"X has the target among its columns: {some(same, 4)}; a network that learns "
                    "it learns nothing for rows whose target is not known. Leave it out",
                    stacklevel=3,
                )
                return

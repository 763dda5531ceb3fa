"""The sequences that a recurrent network is trained on, whole or window by window."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from vegrad.arrays.checks import Array, as_array, as_target, cast
from vegrad.networks import sequences
from vegrad.networks.rows import Batch, Rows, print_of
from vegrad.networks.sequences import Cuts, Lengths, window_of

_ENOUGH = 2**20  # numbers that tell how large targets are


class Shape(NamedTuple):
    """All that a recurrent network says of the data that it takes."""

    inputs: int
    outputs: int
    dtype: np.dtype[np.generic]
    loss: str
    every_step: bool


class SequenceRows(Rows):
    """Sequences (N, T, I) with targets, of which a step takes some rows: all of T, or a window.

    Nothing is copied but what a step takes, so that arrays may be memory maps, and sequences may
    come as windows of any sort that yields one after the other.

    Args:
        shape: of the network.
        x: (N, T, I), or a sequence of windows (N, K, I) that follow each other.
        target: one for all, or if there is one a step, cut as x.
        lengths: of the rows, as for `RNN.backward`.
        truncation: likewise. Where there is a target at each step, a step is taken after each
            window, and the state is carried over.

    Raises:
        TypeError, ValueError: for what does not fit.
    """

    parts: Sequence[object]
    targets: Sequence[object]

    def __init__(
        self,
        shape: Shape,
        x: object,
        target: object,
        lengths: object = None,
        truncation: object = None,
    ) -> None:
        self.shape, self.truncation = shape, sequences.as_truncation(truncation)
        self.cuts = self.truncation if isinstance(self.truncation, Cuts) else None
        if sequences.is_windows(x):
            assert isinstance(x, Sequence)
            self.parts, self.targets, edges = self._windows(x, target)
        else:
            one = as_array(x, "x")
            sequences.check_sequences(one, shape.inputs, "x")
            self.parts, self.targets = [one], [target]
            edges = [0, one.shape[1]]
        self.edges = np.array(edges)
        """Where the parts begin, and the end of the last (parts + 1,)."""
        self.rows, self.total = len(as_array(self.parts[0], "x")), edges[-1]
        self.lengths = sequences.as_lengths(lengths, self.rows, self.total)
        if len(self.parts) == 1:
            self._check_target()
        self.window = window_of(self.truncation)
        ends = edges[1:]
        if len(self.parts) == 1 and self.window is not None and shape.every_step:
            ends = [*range(self.window[0], self.total, self.window[0]), self.total]
        self.bounds = list(pairwise([0, *ends]))
        """First and last step + 1 of what is new in each window."""
        self.windows = len(self.bounds)

    def _windows(
        self, x: Sequence[object], target: object
    ) -> tuple[Sequence[object], Sequence[object], list[int]]:
        if not self.shape.every_step:
            raise ValueError('x in windows needs a network with targets="all"; give one array')
        if not isinstance(target, Sequence) or len(target) != len(x):
            got = f"{len(target)}" if isinstance(target, Sequence) else type(target).__name__
            raise ValueError(f"target must have as many windows as x, {len(x)}, not {got}")
        if self.truncation is not None and not isinstance(self.truncation, Cuts):
            raise ValueError(
                f"truncation goes with one array for x; it comes in {len(x)} windows already"
            )
        edges, rows = [0], 0
        for number in range(len(x)):
            part = as_array(x[number], f"x[{number}]")
            sequences.check_sequences(part, self.shape.inputs, f"x[{number}]")
            rows = rows or len(part)
            if len(part) != rows:
                raise ValueError(f"x[{number}] must have {rows} rows as x[0], not {len(part)}")
            wanted = as_array(target[number], f"target[{number}]")
            sequences.check_targets(
                wanted, len(part), part.shape[1], self.shape.outputs, self.shape.loss
            )
            edges.append(edges[-1] + part.shape[1])
        return x, target, edges

    def _check_target(self) -> None:
        """Check the whole target at once; of a memory map only its shape and kind."""
        target, shape = as_array(self.targets[0], "target"), self.shape
        if isinstance(target, np.memmap) and shape.every_step:
            sequences.check_targets(target, self.rows, self.total, shape.outputs, shape.loss)
        else:
            self.targets = [self._as_target(target, self.rows, self.total, self.lengths)]

    def _as_target(
        self,
        target: object,
        rows: int,
        steps: int,
        lengths: Lengths | None,
        part_of: tuple[Array, int] | None = None,
    ) -> Array:
        shape = self.shape
        if not shape.every_step:
            return as_target(target, rows, shape.outputs, shape.dtype, shape.loss)
        return sequences.as_targets(
            target, rows, steps, lengths, shape.outputs, shape.dtype, shape.loss, part_of
        )

    def __len__(self) -> int:
        return self.rows

    @property
    def settings(self) -> Mapping[str, object]:
        """Settings that must be the same where a training goes on, as plain JSON types."""
        truncation: object = None if self.window is None else list(self.window)
        return {"rows": self.rows, "steps": self.total, "truncation": truncation}

    def prints(self) -> dict[str, str]:
        """Return a print of each array; of windows that come one by one, of none but their number.

        Those of a stream may not be read twice.
        """
        if len(self.parts) > 1:
            return {"windows": str(self.windows)}
        found = {"x": self.parts[0], "target": self.targets[0], "lengths": self.lengths}
        return {name: print_of(as_array(a, name)) for name, a in found.items() if a is not None}

    def counted(self, rows: Array, window: int) -> int:
        """Return the number of targets that some rows have in a window of their steps."""
        if not self.shape.every_step:
            return len(rows)
        begin, end = self.bounds[window]
        if self.lengths is None:
            return len(rows) * (end - begin)
        return int(np.clip(self.lengths[rows], begin, end).sum()) - begin * len(rows)

    @property
    def wanted(self) -> Array:
        """The targets that count: one a row, or one a step of each row; of a stream the first."""
        if not self.shape.every_step:
            return as_array(self.targets[0], "target")
        found: list[Array] = []
        size = 0
        for bounds in self.bounds:
            one = self.piece(np.arange(self.rows), *bounds)
            if one is None or size >= _ENOUGH:
                break  # no row has steps in the windows after it, or there are enough
            found.append(flat(one.target, one.lengths))
            size += found[-1].size
        return np.concatenate(found)

    def steps(self, order: Array, batch_size: int) -> npt.NDArray[np.int64]:
        """Return the number of windows that each batch of rows has."""
        if self.lengths is None:
            return np.full(-(-len(order) // batch_size), len(self.bounds), np.int64)
        longest = np.maximum.reduceat(self.lengths[order], np.arange(0, len(order), batch_size))
        begins = np.array([begin for begin, _ in self.bounds])
        return np.searchsorted(begins, longest).astype(np.int64)

    def there(self, rows: Array, window: int) -> Array:
        """Return True for those of some rows that have steps in a window."""
        if self.lengths is None:
            return np.ones(len(rows), bool)
        return np.asarray(self.lengths[rows] > self.bounds[window][0])

    def first_step(self, window: int) -> int:
        """Return the step where a window begins: before what is new in it, if windows overlap."""
        begin, end = self.bounds[window]
        if self.window is None or len(self.bounds) == 1 or self.window[1] == self.window[0]:
            return begin
        return max(0, end - self.window[1])

    def piece(self, rows: Array, begin: int, end: int) -> Batch | None:
        """Return steps from `begin` to `end` of those rows that have some; None if none has."""
        lengths = None
        if self.lengths is not None:
            rows = rows[self.lengths[rows] > begin]
            lengths = np.minimum(self.lengths[rows], end) - begin
        if not len(rows):
            return None
        x = cast(self._cut(self.parts, rows, begin, end), self.shape.dtype)
        if self.shape.every_step:
            target = self._cut(self.targets, rows, begin, end)
        else:
            target = as_array(self.targets[0], "target")[rows]
        wanted = self._as_target(target, len(rows), end - begin, lengths, (rows, begin))
        return Batch(x, wanted, lengths, rows, len(self))

    def _cut(self, parts: Sequence[object], rows: Array, begin: int, end: int) -> Array:
        """Return steps of rows, from one part or from several that follow each other."""
        found = []
        first = int(np.searchsorted(self.edges, begin, "right")) - 1
        for number in range(first, len(parts)):
            at = int(self.edges[number])
            if at >= end:
                break
            part = as_array(parts[number], "x")
            found.append(part[rows, max(begin - at, 0) : end - at])
        return found[0] if len(found) == 1 else np.concatenate(found, axis=1)

    def take(self, rows: Array, *, whole: bool = False) -> Batch:
        """Return these rows for a look at the network: their first window, if not `whole`."""
        found = self.piece(rows, 0, self.total if whole else self.bounds[0][1])
        assert found is not None
        return found

    def broken(self) -> Array:
        """Return the numbers of the rows with values that are not finite."""
        bad = np.zeros(self.rows, bool)
        for bounds in self.bounds:
            one = self.piece(np.arange(self.rows), *bounds)
            if one is not None and one.rows is not None:
                bad[one.rows] |= ~finite(one)
        return np.flatnonzero(bad)


def flat(values: Array, lengths: Lengths | None) -> Array:
    """Return values of rows and steps (B, T, …) as (N, …), those beyond a row's length left out."""
    if lengths is None:
        return values.reshape(-1, *values.shape[2:])
    return values[there(lengths, values.shape[1])]


def there(lengths: Lengths, steps: int) -> npt.NDArray[np.bool_]:
    """Return True where a row has a step (B, steps)."""
    return np.arange(steps) < lengths[:, None]


def finite(batch: Batch) -> npt.NDArray[np.bool_]:
    """Return True for rows whose values are all finite, as far as they count (B,)."""
    good = np.ones(len(batch.x), bool)
    for values in (batch.x, batch.target):
        if values.dtype.kind != "f":
            continue
        known = np.asarray(np.isfinite(values).reshape(*values.shape[:2], -1).all(axis=2))
        if batch.lengths is not None and values.ndim == batch.x.ndim:
            known |= ~there(batch.lengths, known.shape[1])
        good &= known.all(axis=1)
    return good

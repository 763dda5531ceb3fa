"""The parts that the experiments share: digits, training, tables, pictures.

Each experiment is a program: `python bench/experiments/NAME.py` prints what theory or the
literature says beside what `vegrad.MLP` does, and writes NAME.json, with the same tables for the
gallery, and NAME.png next to itself.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import vegrad
from matplotlib.figure import Figure
from vegrad import datasets

SEEDS = (0, 1, 2)
BATCH = 64
TRAIN = 1400  # of the 1797 digits; the rest is for testing
INK, BLUE, ORANGE = "#22313f", "#0072b2", "#d55e00"
GREEN, RED, FAINT = "#1b7f4b", "#b3261e", "#9aa5b1"
TABLES: list[list[list[str]]] = []  # that were printed, for the file beside the program
Rows = tuple[np.ndarray, np.ndarray]


def digits(seed: int) -> tuple[Rows, Rows]:
    """Load standardized digits with labels: 1400 rows for training, 397 for testing."""
    data = datasets.load("digits")
    order = np.random.default_rng([seed, 1797]).permutation(len(data.x))
    x, y = data.x[order].astype(np.float32), data.y[order]
    return (x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:])


def accuracy(net: vegrad.MLP, rows: Rows) -> float:
    """Share of the rows whose largest output is their label; 0.1, as by chance, if one is NaN."""
    output = net.forward(rows[0])
    if not np.isfinite(output).all():
        return 0.1
    return float(np.mean(np.argmax(output, axis=1) == rows[1]))


def train(net: vegrad.MLP, rows: Rows, steps: int, lr: float, seed: int) -> np.ndarray:
    """Train by plain SGD for whole epochs, at least so many steps; return each step's loss."""
    epochs = -(-steps // -(-len(rows[0]) // BATCH))
    history = net.fit(
        *rows,
        optimizer=vegrad.SGD(lr),
        epochs=epochs,
        batch_size=BATCH,
        seed=seed,
        progress=False,
        gauge_every=None,
    )
    return np.asarray(history.loss)


def growth(net: vegrad.MLP, rows: Rows, layers: slice) -> float:
    """Mean of ln ‖δ_l‖²/‖δ_{l+1}‖² over these layers."""
    net.backward(rows[0][:256], rows[1][:256])
    return float(2 * np.log(2) * np.mean(net.flow.gain_log2[layers]))


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Compute the mean over seeds and its standard error."""
    return float(np.mean(values)), float(np.std(values, ddof=1) / np.sqrt(len(values)))


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns as wide as needed; the first is aligned left, the others right."""
    cells = [list(head), *([str(cell) for cell in row] for row in rows)]
    TABLES.append(cells)
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    for row in cells:
        first, rest = row[0].ljust(widths[0]), zip(row[1:], widths[1:], strict=True)
        print("  ".join([first, *(cell.rjust(width) for cell, width in rest)]).rstrip())


def picture(title: str) -> tuple[Figure, Any]:
    """Make a sheet with one panel."""
    sheet = Figure(figsize=(7, 4.2), layout="constrained")
    panel = sheet.subplots()
    panel.set_title(title, loc="left", fontsize=11, fontweight="bold", color=INK)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(color="#e6eaee", linewidth=0.8)
    panel.set_axisbelow(True)
    return sheet, panel


def _written(row: Sequence[str]) -> str:
    return json.dumps(row, ensure_ascii=False)


def save(sheet: Figure, program: str) -> None:
    """Save the sheet and the tables beside the program, under the program's name."""
    path = Path(program).with_suffix(".png")
    tables = "],\n[".join(",\n ".join(map(_written, one)) for one in TABLES)
    path.with_suffix(".json").write_text(f"[[{tables}]]\n", encoding="utf-8")
    sheet.savefig(path, dpi=90)
    print(f"picture: {path.name}, {path.stat().st_size / 1000:.0f} kB; {time.process_time():.0f} s")

"""The form of a run's log: JSON, a line for each thing, the first of which is the header.

    {"vegrad_run": 1, "modules": ["0", "2"], "floor_log2": -126.0, "about": {"model": "Net"}}
    {"from": 0, "process": 4711}
    {"step": 0, "loss": 2.3, "norm": 1.4, "clipped": 1, "rate": 0.001, "update": 0.002}
    {"sizes": 0, "log2": [-1.5, -0.7]}
    {"validated": 0, "loss": 2.4}
    {"order": [1, 0]}
    {"about": {"settings": {…}}}
    {"finding": {…}}
    {"spike": {…}}

"order" has the places of the modules as they ran; "about" adds to that of the header. "from"
begins a stretch: what stands above it of this step and later ones is superseded. A number that is
not known is left out. NaN is null, and infinities are "inf" and "-inf".

The file stays bounded. Of the first 2²⁰ steps each has a line; then every second one up to step
2²¹, every fourth up to 2²², and so on. Sizes of modules are written at the first 64 steps, then at
every second up to the 128th, and so on until it is every 16th; later ever more rarely, so that
there are 2²⁰ numbers at most for each doubling of the steps.
"""

from __future__ import annotations

from math import isfinite

from vegrad.diagnosis.noted import Json, plain_number

FORMAT = 1
KEY = "vegrad_run"
COLUMNS = {
    "loss": "loss",
    "norm": "gradient_norm",
    "clipped": "clipped_norm",
    "rate": "learning_rate",
    "update": "update_ratio",
}
"""The columns of a Run, by their names in the file."""
EACH = 1 << 20  # steps of which each has a line
DENSE, SPARSE = 64, 16  # steps with the sizes of modules, and their distance later
NUMBERS = 1 << 20  # sizes of modules, for each doubling of the steps
LONGEST = 1 << 20  # bytes of a line: what is longer is none of ours


def has_line(step: int) -> bool:
    """Return True if a step has a line."""
    return step < EACH or step % (1 << (step.bit_length() - EACH.bit_length() + 1)) == 0


def has_sizes(step: int, modules: int) -> bool:
    """Return True if the sizes of this many modules are written at a step."""
    early = min(1 << max(step.bit_length() - DENSE.bit_length() + 1, 0), SPARSE)
    if step % early or not modules or not has_line(step):
        return False
    late = (step * modules) // (2 * NUMBERS)
    return step % (1 << late.bit_length()) == 0


def number(value: float) -> str:
    """Return a number as JSON has it, with six digits."""
    if isfinite(value):
        return format(value, ".6g")
    return "null" if value != value else '"inf"' if value > 0 else '"-inf"'


def size(value: float) -> Json:
    """Return the logarithm of a size as JSON has it, to a hundredth."""
    return round(value, 2) if isfinite(value) else plain_number(value)

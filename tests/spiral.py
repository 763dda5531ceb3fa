"""Three arms of a spiral: a small task that networks learn to 100 %."""

import numpy as np
from vegrad.arrays.checks import Array


def spiral(rows: int = 300, seed: int = 0) -> tuple[Array, Array]:
    """Return three arms in a plane, whose columns have standard deviations of about 0.45."""
    random = np.random.default_rng(seed)
    label, far = random.integers(0, 3, rows), random.uniform(0.2, 1, rows)
    angle = 5 * far + label * 2 * np.pi / 3
    x = np.c_[far * np.cos(angle), far * np.sin(angle)]
    return x + 0.02 * random.standard_normal(x.shape), label

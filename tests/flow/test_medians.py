"""Gains that are far from the rest, each beside the median of all others."""

import numpy as np
from vegrad.flow.trend import SHIFT, Gains


def test_each_gain_is_held_to_all_others() -> None:
    """As one reads it: leave one out, and take the median of what is left."""
    random = np.random.default_rng(0)
    for count in (*range(12), 41):
        gains = random.standard_normal(count) * 3
        gains[random.random(count) < 0.15] *= 20
        total = np.where(random.random(count) < 0.1, -np.inf, gains)
        local = np.where(np.isfinite(total), total, np.nan)
        wanted = {}
        for place in range(count):
            others = np.delete(local, place)
            others = others[np.isfinite(others)]
            usual = float(np.median(others)) if others.size > 2 else 0.0
            spread = 1.4826 * float(np.median(np.abs(others - usual))) if others.size > 2 else 0.0
            if total[place] == -np.inf or abs(local[place] - usual) >= max(SHIFT, 6 * spread):
                wanted[place] = usual
        assert Gains(total, total, np.zeros(count), local).broken == wanted

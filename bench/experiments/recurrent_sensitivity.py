"""R5. A long memory makes the loss sensitive though nothing explodes: Zucchet & Orvieto 2024.

h_t = λ h_{t-1} + x_t with white x (arXiv:2405.21064): mean squares of h and of its derivatives over
400 sequences of 20 time scales, beside closed forms; plain, and with inputs times γ = √(1 - λ²).
"""

import numpy as np
from common import BLUE, GREEN, INK, ORANGE, SEEDS, picture, save, table
from vegrad import theory

SEQUENCES, DECAYS = 400, (0.5, 0.9, 0.99)


def simulate(decay: float, seed: int) -> np.ndarray:
    """Return mean squares of h, ∂h/∂λ, and with γ ∂h/∂λ, ∂h/∂ν and ∂h/∂ν with γ held."""
    rng = np.random.default_rng(seed)
    steps = int(20 / -np.log(decay)) + 20
    gamma, by_nu = np.sqrt(1 - decay**2), decay * np.log(decay)
    h, e, moved = np.zeros((3, SEQUENCES))
    total, counted = np.zeros(5), 0
    for t in range(steps):
        x = rng.standard_normal(SEQUENCES)
        # γ follows λ: with h times γ its derivative is γ e + (dγ/dλ) (h/γ), kept as one sum.
        moved = decay * moved + gamma * h - decay / gamma * x
        h, e = decay * h + x, decay * e + h
        if t >= steps // 2:
            squares = (h, e, moved, by_nu * moved, by_nu * gamma * e)
            total += [np.mean(one**2) for one in squares]
            counted += 1
    return total / counted


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows, seen = [], {}
    for decay in DECAYS:
        s = theory.sensitivity(decay)
        found = np.array([simulate(decay, seed) for seed in SEEDS])
        seen[decay] = found.mean(0)
        wanted = (s.state, s.unnormalized, s.follows, s.follows_nu, s.held_nu)
        names = ("E h²", "E(∂h/∂λ)²", "γ follows: ∂λ", "γ follows: ∂ν", "γ held: ∂ν")
        for name, expected, values in zip(names, wanted, found.T, strict=True):
            error = values.std(ddof=1) / len(SEEDS) ** 0.5
            off = f"{100 * (values.mean() / expected - 1):+.1f} %"
            measured = f"{values.mean():.4g} ± {error:.2g}"
            rows.append((f"λ = {decay:g}, {name}", f"{expected:.4g}", measured, off))
    table(("", "closed form", "measured", "off by"), rows)
    sheet, panel = picture("How sensitive an output is to its unit's memory")
    scales = np.geomspace(1.5, 1000, 60)
    curves = [theory.sensitivity(float(np.exp(-1 / scale))) for scale in scales]
    points = -1 / np.log(np.array(DECAYS))
    for place, (name, label, colour) in enumerate(
        (
            ("state", "E h²", INK),
            ("unnormalized", "E(∂h/∂λ)²", ORANGE),
            ("follows", "the same, inputs times γ", BLUE),
            ("follows_nu", "by ν, λ = exp(-exp ν)", GREEN),
        )
    ):
        panel.loglog(scales, [getattr(one, name) for one in curves], color=colour, label=label)
        panel.loglog(points, [seen[d][place] for d in DECAYS], "o", color=colour, markersize=5)
    panel.set_xlabel("time scale -1/ln λ in steps")
    panel.legend(frameon=False)
    save(sheet, __file__)


if __name__ == "__main__":
    main()

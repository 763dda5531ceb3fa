"""R6. Lyapunov exponents of a driven tanh cell: largest ½ ln χ, mean ln σ_u - ½ + E ln φ′.

80 units, 500 steps after a transient of 50, QR of the Jacobians' product at every step (Engelken et
al. 2020, arXiv:2006.02427). The spread of the spectrum is how unlike the directions are remembered.
"""

import numpy as np
from common import BLUE, ORANGE, SEEDS, picture, save, table
from vegrad import theory
from vegrad.theory import cells

HIDDEN, STEPS, TRANSIENT, GIVEN = 80, 500, 50, 0.25


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    rows = []
    sheet, panel = picture("Lyapunov exponents of a driven tanh cell with 80 units")
    for colour, sigma in ((BLUE, 1.0), (ORANGE, 1.5)):
        expected, found = theory.expected_lyapunov(sigma, GIVEN), []
        for seed in SEEDS:
            rng = np.random.default_rng(seed)
            weights = {
                "ih": GIVEN**0.5 * np.eye(HIDDEN)[None],
                "hh": rng.standard_normal((1, HIDDEN, HIDDEN)) * sigma / HIDDEN**0.5,
            }
            x = rng.standard_normal((STEPS + TRANSIENT, 1, HIDDEN))
            run = cells.run("tanh", weights, x)
            spectrum = theory.lyapunov_exponents(run, transient=TRANSIENT)
            found.append((spectrum[0], spectrum.mean()))
            label = f"σ_u = {sigma:g}" if seed == SEEDS[0] else None
            panel.plot(np.arange(1, HIDDEN + 1), spectrum, color=colour, alpha=0.7, label=label)
        for name, wanted, values in zip(
            ("largest", "mean"), expected, np.array(found).T, strict=True
        ):
            error = values.std(ddof=1) / len(SEEDS) ** 0.5
            measured = f"{values.mean():.4f} ± {error:.4f}"
            apart = f"{values.mean() - wanted:+.4f}"
            rows.append((f"σ_u = {sigma:g}, {name}", f"{wanted:.5f}", measured, apart))
            panel.axhline(wanted, color=colour, linewidth=1, linestyle="--")
    table(("", "theory", "measured", "off by"), rows)
    panel.set_xlabel("exponent, the largest first")
    panel.set_ylabel("nats a step")
    panel.legend(frameon=False, title="dashed: expected largest and mean")
    save(sheet, __file__)


if __name__ == "__main__":
    main()

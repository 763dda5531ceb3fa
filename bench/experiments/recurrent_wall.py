"""R11. The wall of a single unit: Pascanu, Mikolov & Bengio 2013 (arXiv:1211.5063).

x_t = w σ(x_{t-1}) + b from x_0 = ½ over 50 steps, loss (σ(x_50) - 0.7)². On the wall the gradient
is 200 times as large as beside it, and one step of gradient descent from there goes far off, to
where there is no gradient any more; clipped, it does not.
"""

import numpy as np
from common import BLUE, ORANGE, picture, save, table
from vegrad import clip_by_global_norm_
from vegrad.theory.cells import sigmoid

STEPS, TARGET, START, RATE = 50, 0.7, 0.5, 0.5
REGION = (3.0, 6.5), (-4.0, 0.0)  # of w and of b, around the wall
TOP, FOOT = (4.3, -2.18), (5.0, -2.25)
REFERENCE = {TOP: (0.0284135, -8.6246, -14.3234), FOOT: (0.0432965, 0.0541, 0.0596)}


def wall(w: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the loss and its derivatives by w and b, each of the shape of w and b together."""
    w, b = np.broadcast_arrays(np.asarray(w, float), np.asarray(b, float))
    x, dw, db = np.full(w.shape, START), np.zeros(w.shape), np.zeros(w.shape)
    for _ in range(STEPS):
        gate = sigmoid(x)
        dw, db = gate.value + w * gate.slope * dw, 1 + w * gate.slope * db
        x = w * gate.value + b
    out = sigmoid(x)
    error = out.value - TARGET
    return error**2, 2 * error * out.slope * dw, 2 * error * out.slope * db


def main() -> None:
    """Run the experiment; print its tables and draw its picture."""
    rows, sizes = [], []
    for point in (TOP, FOOT):
        loss, dw, db = (float(one) for one in wall(*point))
        sizes.append(np.hypot(dw, db))
        expected = "{:.6f}, {:.4f}, {:.4f}".format(*REFERENCE[point])
        rows.append(
            (f"w {point[0]:g}, b {point[1]:g}", expected, f"{loss:.6f}, {dw:.4f}, {db:.4f}")
        )
    table(("", "loss, ∂w, ∂b expected", "found"), rows)
    print(f"the gradient at the wall is {sizes[0] / sizes[1]:.0f} times that beside it")
    sheet, panel = picture("Loss of one unit over 50 steps, with one step of descent from the wall")
    w, b = np.linspace(3, 9, 240), np.linspace(-5.5, 5.5, 240)
    loss = wall(w[None, :], b[:, None])[0]
    mesh = panel.pcolormesh(w, b, loss, cmap="viridis", shading="nearest", rasterized=True)
    sheet.colorbar(mesh, ax=panel, label="loss")
    moves = []
    for name, limit, colour in (("plain", None, ORANGE), ("clipped at 1", 1.0, BLUE)):
        gradient = np.array([float(one) for one in wall(*TOP)[1:]])
        clip_by_global_norm_([gradient], limit)
        end = np.array(TOP) - RATE * gradient
        inside = all(low <= one <= high for one, (low, high) in zip(end, REGION, strict=True))
        loss, *slopes = (float(one) for one in wall(*end))
        row = (name, f"{end[0]:.3f}, {end[1]:.3f}", f"{loss:.4f}", f"{np.hypot(*slopes):.1e}")
        moves.append((*row, "yes" if inside else "no"))
        arrow = {"arrowstyle": "->", "color": colour, "linewidth": 2}
        panel.annotate("", end, TOP, arrowprops=arrow)
        panel.plot([], [], color=colour, label=name)
    table(("step of 0.5", "w, b after", "loss", "‖gradient‖", "in the region"), moves)
    (left, right), (low, high) = REGION
    sides = (left, right, right, left, left), (low, low, high, high, low)
    panel.plot(*sides, color="white", linewidth=1, linestyle=":")
    panel.plot(*TOP, "o", color="white", markersize=5)
    panel.set_xlabel("w")
    panel.set_ylabel("b")
    panel.legend(loc="lower right")
    save(sheet, __file__)


if __name__ == "__main__":
    main()

"""Steps of a recurrent layer in the kernels' layout, and what they must give, in float64."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from vegrad import _core

Array = npt.NDArray[np.float64]
SLOTS = {"tanh": 1, "relu": 1, "lstm": 4, "gru": 4}
SLOTS_OF_U = {"tanh": [0], "relu": [0], "lstm": [0, 1, 2, 3], "gru": [0, 1, 3]}
SQUARES = ("delta", "passed", "carried", "state", "matrix")


def sigmoid(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


class Step:
    """One step forward and back of random numbers. place: where an array is put (guard pages)."""

    def __init__(
        self,
        cell: str,
        rows: int,
        hidden: int,
        dtype: str,
        seed: int = 0,
        place: Callable[[np.ndarray], np.ndarray] = np.array,
    ) -> None:
        self.cell, self.rows, self.hidden, self.dtype = cell, rows, hidden, np.dtype(dtype)
        self.place, self.random = place, np.random.default_rng(seed)
        unit = 64 // self.dtype.itemsize
        self.slot = -(-hidden // unit) * unit
        gates = len(SLOTS_OF_U[cell])
        u = self.random.standard_normal((gates * hidden, hidden)) / np.sqrt(hidden)
        self.recurrent = place(u.astype(self.dtype))
        self.arrays: dict[str, np.ndarray | None] = {
            "recurrent": place(_core.pack_cell(cell, self.recurrent, False)),
            "bias": place(self.padded(1, SLOTS[cell])[0]),
            "gates": self.padded(rows, SLOTS[cell]),
            "h_squares": place(np.zeros(rows, self.dtype)),
        }
        for name in ("h_before", "c_before"):
            self.arrays[name] = self.padded(rows)
        for name in ("h", "c"):
            self.arrays[name] = place(np.zeros((rows, self.slot), self.dtype))

    def padded(self, rows: int, slots: int = 1) -> np.ndarray:
        whole = np.zeros((rows, slots, self.slot), self.dtype)
        whole[:, :, : self.hidden] = self.random.standard_normal((rows, slots, self.hidden))
        return self.place(whole.reshape(rows, -1))

    def of(self, name: str) -> Array:
        """(rows, hidden), or (slots, rows, hidden), without padding; which must be zero."""
        array = self.arrays[name]
        assert array is not None
        parts = array.reshape(-1, array.shape[-1] // self.slot, self.slot).transpose(1, 0, 2)
        if name != "gates" or self.cell in ("lstm", "gru"):
            assert not parts[:, :, self.hidden :].any(), f"{name} has something in its padding"
        got = parts[:, :, : self.hidden].astype(np.float64)
        return got[0] if len(got) == 1 else got

    def forward(self) -> dict[str, Array]:
        """What is to come out; then the arrays hold what came out."""
        w = self.of("gates").reshape(-1, self.rows, self.hidden)
        bias = self.arrays["bias"]
        assert bias is not None
        b = bias.reshape(-1, 1, self.slot)[:, :, : self.hidden].astype(np.float64)
        h, c = self.of("h_before"), self.of("c_before")
        u = h @ self.recurrent.astype(np.float64).T
        u = u.reshape(self.rows, -1, self.hidden).transpose(1, 0, 2)
        _core.cell_forward(self.cell, self.hidden, self.arrays)
        with np.errstate(over="ignore"):
            return forward(self.cell, w, u, b, h, c)

    def go_back(self, *, fresh: bool = False, last: bool = False, scaled: bool = True) -> None:
        """Prepare a step back. fresh, last and not scaled: without what may be missing."""
        arrays, rows = self.arrays, self.rows
        arrays["recurrent"] = self.place(_core.pack_cell(self.cell, self.recurrent, True))
        arrays["after"] = self.padded(rows, SLOTS[self.cell])
        arrays["local"], arrays["carried"] = self.padded(rows), self.padded(rows)
        for name in ("scale", "local_scale"):
            values = self.random.standard_normal(rows).astype(self.dtype)
            arrays[name] = self.place(values) if scaled else None
        arrays["delta"] = self.place(np.zeros((rows, self.slot), self.dtype))
        for name in SQUARES:
            arrays[name + "_squares"] = self.place(np.zeros(rows, self.dtype))
        if fresh:  # neither is read
            arrays["carried"][:, : self.hidden] = np.nan
            arrays["after"][:] = np.nan
        if last:
            arrays["gates"] = None
        self.fresh = fresh

    def column(self, name: str) -> Array:
        array = self.arrays[name]
        return np.ones((self.rows, 1)) if array is None else array.astype(np.float64)[:, None]

    def backward(self) -> dict[str, Array]:
        """As forward(): δ, the slots' α, what is carried on, and the sums of squares."""
        carries = self.cell in ("lstm", "gru") and not self.fresh
        nothing = np.zeros((self.rows, self.hidden))
        scale = self.column("scale")
        carried = scale * self.of("carried") if carries else nothing
        product = nothing
        if not self.fresh:
            after = self.of("after").reshape(-1, self.rows, self.hidden)[SLOTS_OF_U[self.cell]]
            whole = after.transpose(1, 0, 2).reshape(self.rows, -1)
            product = scale * (whole @ self.recurrent.astype(np.float64))
        passed = product if self.cell == "lstm" else product + carried
        delta = passed + self.column("local_scale") * self.of("local")
        want = {"delta": delta, "passed": passed}
        if self.arrays["gates"] is None:
            if self.cell == "lstm":
                want["carried"] = carried
        else:
            states = {name: self.of(name) for name in ("gates", "h", "h_before", "c", "c_before")}
            want |= backward(self.cell, delta, product, carried, states)
        _core.cell_backward(self.cell, self.hidden, self.arrays, self.fresh)
        return want


def forward(cell: str, w: Array, u: Array, b: Array, h: Array, c: Array) -> dict[str, Array]:
    """h, c and the slots from W x, U h and the biases (slots, rows, hidden)."""
    if cell in ("tanh", "relu"):
        z = w[0] + u[0] + b[0]
        return {"h": np.tanh(z) if cell == "tanh" else np.maximum(z, 0)}
    if cell == "lstm":
        i, f, g, o = w + u + b
        i, f, g, o = sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)
        c = f * c + i * g
        return {"h": o * np.tanh(c), "c": c, "gates": np.stack([i, f, g, o])}
    r, z = (sigmoid(w[s] + u[s] + b[s]) for s in (0, 1))
    m = u[2] + b[3]
    n = np.tanh(w[2] + b[2] + r * m)
    return {"h": (1 - z) * n + z * h, "gates": np.stack([r, z, n, m])}


def backward(
    cell: str, delta: Array, product: Array, carried: Array, states: dict[str, Array]
) -> dict[str, Array]:
    """The slots' α, what is carried on, κ and the matrix's part."""
    if cell == "tanh":
        return {"gates": delta * (1 - states["h"] ** 2)}
    if cell == "relu":
        return {"gates": delta * (states["h"] > 0)}
    if cell == "lstm":
        i, f, g, o = states["gates"]
        y = np.tanh(states["c"])
        through = o * (1 - y * y)
        k = carried + delta * through
        gates = [
            k * g * i * (1 - i),
            k * states["c_before"] * f * (1 - f),
            k * i * (1 - g * g),
            delta * y * o * (1 - o),
        ]
        return {"gates": np.stack(gates), "carried": k * f, "state": k, "matrix": product * through}
    r, z, n, m = states["gates"]
    nu = delta * (1 - z) * (1 - n * n)
    gates = [nu * m * r * (1 - r), delta * (states["h_before"] - n) * z * (1 - z), nu, nu * r]
    return {"gates": np.stack(gates), "carried": delta * z, "matrix": product}

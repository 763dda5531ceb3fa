"""The first layer's gradient of deep sigmoid networks, as each library reports it.

Glorot weights, 64 wide, mean square error, the same weights and rows for all; NumPy, PyTorch and
JAX in float32, vegrad in float32 with its log2 size, beside NumPy in float64 (whose range, down to
1e-308, holds both networks).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import numpy as np
from common import BLUE, FAINT, picture, save, table
from vegrad import MLP

WIDTH, BATCH = 64, 64
DEPTHS = (50, 200)


def plain(weights: list[np.ndarray], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Compute ∂loss/∂W_1 in the arrays' dtype; the last layer is the identity."""
    h = [x]
    for weight in weights[:-1]:
        h.append(1 / (1 + np.exp(-(h[-1] @ weight.T))))
    delta = (h[-1] @ weights[-1].T - target) * x.dtype.type(2 / target.size)
    for weight, value in zip(weights[:0:-1], h[:0:-1], strict=True):
        delta = (delta @ weight) * value * (1 - value)
    return delta.T @ x


def with_torch(weights: list[np.ndarray], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Compute the same by PyTorch's autograd."""
    torch = importlib.import_module("torch")
    tensors = [torch.tensor(weight, requires_grad=True) for weight in weights]
    h = torch.tensor(x)
    for weight in tensors[:-1]:
        h = torch.sigmoid(h @ weight.T)
    torch.nn.functional.mse_loss(h @ tensors[-1].T, torch.tensor(target)).backward()
    gradient: np.ndarray = tensors[0].grad.numpy()
    return gradient


def with_jax(weights: list[np.ndarray], x: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Compute the same by JAX's grad."""
    jax = importlib.import_module("jax")

    def loss(parameters: list[Any]) -> Any:
        h = x
        for weight in parameters[:-1]:
            h = jax.nn.sigmoid(h @ weight.T)
        return ((h @ parameters[-1].T - target) ** 2).mean()

    return np.asarray(jax.grad(loss)([jax.numpy.asarray(weight) for weight in weights])[0])


def log10_norm(gradient: np.ndarray) -> float:
    """log10 of the norm, computed in float64 so that no square underflows."""
    with np.errstate(divide="ignore"):
        return float(np.log10(np.linalg.norm(gradient.astype(np.float64))))


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    others: dict[str, Callable[..., np.ndarray]] = {
        "NumPy": plain,
        "PyTorch": with_torch,
        "JAX": with_jax,
    }
    rows, curves = [], []
    for depth in DEPTHS:
        net = MLP([WIDTH] * (depth + 1), activation="sigmoid", seed=0)
        rng = np.random.default_rng(1)
        x, target = rng.standard_normal((2, BATCH, WIDTH)).astype(np.float32)
        weights = [net.parameters[f"layers.{layer}.weight"] for layer in range(depth)]
        wide = [weight.astype(np.float64) for weight in weights]
        right = log10_norm(plain(wide, x.astype(np.float64), target.astype(np.float64)))
        rows.append((depth, "NumPy, float64", f"1e{right:.3f}", ""))
        for name, gradient in others.items():
            try:
                size = log10_norm(gradient(weights, x, target))
            except ImportError:
                continue
            seen = "0.0" if size == -np.inf else f"1e{size:.3f}"
            wrong = "all" if size == -np.inf else f"{abs(10 ** (size - right) - 1):.0e}"
            rows.append((depth, name, seen, wrong))
        net.backward(x, target)
        size = net.flow.gradient_log2[0] * np.log10(2)
        wrong = f"{abs(10 ** (size - right) - 1):.0e}"
        rows.append((depth, "vegrad, .flow", f"1e{size:.3f}", wrong))
        curves.append(net.flow.gradient_log2 * np.log10(2))
    table(("layers", "‖∂loss/∂W_1‖", "", "off by"), rows)
    sheet, panel = picture("Size of each layer's gradient, sigmoid")
    for curve, colour in zip(curves, (FAINT, BLUE), strict=True):
        panel.plot(range(len(curve)), curve, color=colour, label=f"{len(curve)} layers")
    for end, words, side in (
        (-37.9, "float32's normal range ends", "bottom"),
        (-44.9, "and its last bit", "top"),
    ):
        panel.axhline(end, color="#b3261e", linewidth=0.8)
        panel.text(0, end, words, va=side, fontsize=8, color="#b3261e")
    panel.set_xlabel("layer")
    panel.set_ylabel("log10 ‖∂loss/∂W‖")
    panel.legend(frameon=False, loc="lower right")
    save(sheet, __file__)


if __name__ == "__main__":
    main()

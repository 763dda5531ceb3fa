"""R12. A default LSTM of 200 steps ends below float32: users find 0 and a pass 20 times as slow.

PyTorch's default LSTM, I = H = 128, 32 rows of unit inputs, a loss of the last output. A gradient
keeps 0.607 of itself a step (theory: mean forget gate plus matrix part), so at the first step it is
0.607^200 = 10^-43 times what it was: subnormal in float32, or 0, and arithmetic on subnormals costs
some processors a hundred times as much. vegrad keeps a power of two a step: the same numbers as
PyTorch in float64, in a pass that knows no subnormals.
"""

import time
from collections.abc import Callable
from functools import partial
from statistics import median

import numpy as np
import torch
import vegrad
from common import BLUE, FAINT, INK, RED, SEEDS, mean_and_error, picture, save, table

STEPS, BATCH, HIDDEN, REPEATS = 200, 32, 128, 5
GAIN = 0.606  # the coherent formula for default weights
NORMAL, LEAST = 2.0**-126, 2.0**-149  # the least normal and the least subnormal number of float32


class Problem:
    """PyTorch's module and vegrad's network with the same weights, data and loss."""

    def __init__(self, seed: int) -> None:
        torch.manual_seed(seed)
        self.lstm, self.head = torch.nn.LSTM(HIDDEN, HIDDEN), torch.nn.Linear(HIDDEN, 1)
        self.x, self.target = torch.randn(STEPS, BATCH, HIDDEN), torch.randn(BATCH, 1)
        self.network = vegrad.RNN(HIDDEN, HIDDEN, 1, cell="lstm", targets="last")
        parameters = [*self.lstm.parameters(), *self.head.parameters()]
        for ours, theirs in zip(self.network.parameters.values(), parameters, strict=True):
            ours[...] = theirs.detach().numpy()
        self.rows = np.ascontiguousarray(self.x.transpose(0, 1).numpy())

    def vegrad_pass(self) -> None:
        """Go forward and backward."""
        self.network.backward(self.rows, self.target.numpy())

    def torch_pass(self, flush: bool) -> None:
        """Go forward and backward in PyTorch, with subnormals flushed or not."""
        torch.set_flush_denormal(flush)
        for module in (self.lstm, self.head):
            module.zero_grad()
        out = self.head(self.lstm(self.x)[0][-1])
        torch.nn.functional.mse_loss(out, self.target).backward()
        torch.set_flush_denormal(False)

    def torch_sizes(self, dtype: torch.dtype) -> np.ndarray:
        """Return log10 of the rms of δ_t, which PyTorch shows if the steps are its own calls."""
        cell = torch.nn.LSTMCell(HIDDEN, HIDDEN).to(dtype)
        names = {name: f"{name}_l0" for name, _ in cell.named_parameters()}
        with torch.no_grad():
            for name, parameter in cell.named_parameters():
                parameter.copy_(getattr(self.lstm, names[name]))
        h = c = torch.zeros(BATCH, HIDDEN, dtype=dtype)
        states = []
        for x in self.x.to(dtype):
            h, c = cell(x, (h, c))
            h.retain_grad()
            states.append(h)
        out = torch.nn.functional.linear(h, self.head.weight.to(dtype), self.head.bias.to(dtype))
        torch.nn.functional.mse_loss(out, self.target.to(dtype)).backward()
        sizes = [float(one.grad.double().square().mean().sqrt()) for one in states]
        with np.errstate(divide="ignore"):
            return np.log10(sizes)


def milliseconds(calls: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return median times of calls in turns, after one of each that does not count."""
    found: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(REPEATS + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if repeat:
                found[name].append(1e3 * (time.perf_counter() - start))
    return {name: median(times) for name, times in found.items()}


def main() -> None:
    """Run the experiment; print its table and draw its picture."""
    torch.set_num_threads(1)
    vegrad.set_num_threads(1)
    rows, gains = [], []
    sheet, panel = picture("What is left of a gradient, 200 steps of a default LSTM")
    for seed in SEEDS:
        problem = Problem(seed)
        problem.vegrad_pass()
        ours = problem.network.flow.delta_log2[0] * np.log10(2)
        double, single = (problem.torch_sizes(dtype) for dtype in (torch.float64, torch.float32))
        gains.append(float(10 ** ((ours[0] - ours[-1]) / (STEPS - 1))))
        off = float(np.abs(ours - double).max())
        ms = milliseconds(
            {
                "vegrad": problem.vegrad_pass,
                "torch": partial(problem.torch_pass, False),
                "flushed": partial(problem.torch_pass, True),
            }
        )
        rows.append(
            (
                f"seed {seed}",
                f"{ours[0]:.2f}",
                f"{double[0]:.2f}",
                "0" if np.isinf(single[0]) else f"{single[0]:.2f}",
                f"{off:.0e}",
                *(f"{ms[name]:.0f}" for name in ("vegrad", "flushed", "torch")),
            )
        )
        if seed == SEEDS[0]:
            steps = np.arange(1, STEPS + 1)
            panel.plot(steps, double, color=FAINT, linewidth=5, label="PyTorch, float64")
            panel.plot(steps, ours, color=BLUE, label="vegrad, float32")
            shown = np.where(np.isinf(single), np.nan, single)
            panel.plot(steps, shown, color=RED, label="PyTorch, float32")
    head = (
        "first δ, log10",
        "vegrad",
        "float64",
        "PyTorch",
        "off",
        "vegrad ms",
        "flushed",
        "as is",
    )
    table(head, rows)
    mean, error = mean_and_error(gains)
    print(f"gain a step {mean:.4f} ± {error:.4f}; the formula says {GAIN}")
    panel.axhspan(np.log10(LEAST), np.log10(NORMAL), color=INK, alpha=0.08, linewidth=0)
    panel.text(STEPS, np.log10(NORMAL), "subnormal in float32 ", ha="right", va="top", fontsize=8)
    panel.set_xlabel("step")
    panel.set_ylabel("log10 of the rms of ∂loss/∂h")
    panel.legend(frameon=False, fontsize=8)
    save(sheet, __file__)


if __name__ == "__main__":
    main()

"""The rows of bench/recurrent.py, and one layer's pass in each library.

A pass is forward and backward through one layer with a gradient that enters at every step; it gives
the gradients of all weights, all biases and the inputs. All libraries have the same numbers, in
float32, time first.
"""

from dataclasses import dataclass

import numpy as np
from common import Task, hold, winner
from vegrad.benchmark import peers

GATES = {"lstm": 4, "gru": 3, "tanh": 1}
# Numbers a step, row and unit that the way back needs: the gates, in whose place their gradients
# come, which the products over all steps take; h; and c.
KEPT = {"lstm": 6, "gru": 5, "tanh": 2}
TOLERANCE = 2e-4  # of float32 over hundreds of steps, relative to the largest element


@dataclass(frozen=True)
class Row:
    """A shape, and what is asked of it: shares by threads, and ratios by cell."""

    steps: int
    batch: int
    inputs: int
    hidden: int
    shares: tuple[float, float]
    over_torch: dict[str, float]
    over_jax: float

    @property
    def label(self):
        """Return the shape as text."""
        return f"{self.steps}, {self.batch}, {self.inputs}, {self.hidden}"


ROWS = [
    Row(200, 32, 128, 128, (0.75, 0.62), {"lstm": 1.1, "gru": 1.6, "tanh": 1.45}, 1.7),
    Row(100, 16, 64, 64, (0.65, 0.45), {"lstm": 1.1, "gru": 4.5, "tanh": 3.5}, 1.3),
    Row(100, 1, 64, 64, (0.60, 0.60), {"lstm": 2, "gru": 15, "tanh": 5}, 1.4),
    Row(100, 32, 64, 256, (0.80, 0.68), {"lstm": 1.05, "gru": 1.25, "tanh": 1.3}, 1.7),
    Row(50, 64, 256, 512, (0.88, 0.80), {"lstm": 1.0, "gru": 1.1, "tanh": 1.0}, 1.5),
]


@dataclass(frozen=True)
class Case:
    """A row with a cell."""

    row: Row
    cell: str

    @property
    def flops(self):
        """Floating-point operations of the products, forward and backward, ∂x included."""
        row, gates = self.row, GATES[self.cell]
        return 6 * gates * row.steps * row.batch * row.hidden * (row.inputs + row.hidden)

    @property
    def flops_of_all_steps(self):
        """Those of the four products that take all steps at once: all but the two with U."""
        row, gates = self.row, GATES[self.cell]
        return 2 * gates * row.steps * row.batch * row.hidden * (3 * row.inputs + row.hidden)

    @property
    def weight_bytes(self):
        """Bytes of the recurrent weights, which every step reads once forward and once back."""
        return 4 * GATES[self.cell] * self.row.hidden**2

    def numbers(self):
        """Draw x, the output's gradient, and PyTorch's weights, the same at every call."""
        row, random = self.row, np.random.default_rng(0)
        gates, limit = GATES[self.cell] * row.hidden, row.hidden**-0.5
        x = random.standard_normal((row.steps, row.batch, row.inputs), np.float32)
        d_out = random.standard_normal((row.steps, row.batch, row.hidden), np.float32)
        shapes = (gates, row.inputs), (gates, row.hidden), (gates,), (gates,)
        weights = [random.uniform(-limit, limit, shape).astype(np.float32) for shape in shapes]
        return x, d_out, weights


def module(cell, *sizes, **options):
    """Make PyTorch's module of a cell."""
    import torch

    return {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU, "tanh": torch.nn.RNN}[cell](
        *sizes, **options
    )


def torch_pass(case, change=lambda module: module, dtype="float32", flush=False):
    """Return a call of PyTorch's module, which returns the output and all gradients."""
    import torch

    *arrays, weights = case.numbers()
    x, d_out = (torch.from_numpy(one.astype(dtype)) for one in arrays)
    model = module(case.cell, case.row.inputs, case.row.hidden, dtype=x.dtype)
    with torch.no_grad():
        for parameter, array in zip(model.parameters(), weights, strict=True):
            parameter.copy_(torch.from_numpy(array))
    model = change(model)
    leaves = [x.requires_grad_(), *model.parameters()]

    def call():
        if flush:
            torch.set_flush_denormal(True)
        for leaf in leaves:
            leaf.grad = None
        out, _ = model(x)
        out.backward(d_out)
        if flush:
            torch.set_flush_denormal(False)
        return [out, *(leaf.grad for leaf in leaves)]

    return call


def vegrad_pass(case):
    """Return a call of the core's layer."""
    from vegrad import _core

    x, d_out, weights = case.numbers()
    row = case.row
    layer = _core.RecurrentLayer(row.inputs, row.hidden, case.cell, "float32")
    h0 = np.zeros((row.batch, row.hidden), np.float32)
    c0 = h0.copy() if case.cell == "lstm" else None

    def call():
        out, _, _, kept = layer.forward(x, None, h0, c0, *weights, True, False, True)
        dx, _, _, *gradients = layer.backward(kept, d_out, None, None, True)
        return [out, dx, *gradients]

    return call


def autograd_pass(case):
    """Return a call: vegrad's pass, and then a node of autograd's graph that does nothing.

    The node takes and gives tensors as that of `vegrad.torch.fuse` does: no fused pass is faster.
    """
    import torch

    class Nothing(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            return tuple(one.detach() for one in outputs)

        @staticmethod
        def backward(ctx, *gradients):
            return tuple(one.detach() for one in ctx.saved_tensors)

    *arrays, weights = case.numbers()
    x, d_out, *weights = map(torch.from_numpy, (*arrays, *weights))
    leaves = [x.requires_grad_(), *map(torch.nn.Parameter, weights)]
    state = torch.zeros(1, case.row.batch, case.row.hidden)
    outputs = [d_out, state, state][: 3 if case.cell == "lstm" else 2]
    core = vegrad_pass(case)

    def call():
        core()
        for leaf in leaves:
            leaf.grad = None
        Nothing.apply(*leaves)[0].backward(d_out)

    return call


def _jax_step(cell, turned):
    """Return the step of a scan: the state and the inputs' part of it give the next state."""
    from jax import nn, numpy

    def product(h, w):
        return h @ w if turned else h @ w.T

    def lstm(state, a, w, b):
        h, c = state
        i, f, g, o = numpy.split(a + product(h, w) + b, 4, axis=-1)
        c = nn.sigmoid(f) * c + nn.sigmoid(i) * numpy.tanh(g)
        return nn.sigmoid(o) * numpy.tanh(c), c

    def gru(state, a, w, b):
        (ar, az, an), (mr, mz, mn) = (
            numpy.split(one, 3, axis=-1) for one in (a, product(state[0], w) + b)
        )
        r, z = nn.sigmoid(ar + mr), nn.sigmoid(az + mz)
        return ((1 - z) * numpy.tanh(an + r * mn) + z * state[0],)

    def tanh(state, a, w, b):
        return (numpy.tanh(a + product(state[0], w) + b),)

    return {"lstm": lstm, "gru": gru, "tanh": tanh}[cell]


def jax_pass(case, turned):
    """Return a call of a compiled scan; W·x of all steps is one product before it.

    Weights are stored (in, out) if turned. (Unrolling the scan made it slower.)
    """
    import jax

    x, d_out, weights = case.numbers()
    w_ih, w_hh, *biases = weights
    matrices = [one.T.copy() if turned else one for one in (w_ih, w_hh)]
    step = _jax_step(case.cell, turned)

    def outputs(x, w_ih, w_hh, b_ih, b_hh):
        a = x @ (w_ih if turned else w_ih.T) + b_ih
        zeros = jax.numpy.zeros((case.row.batch, case.row.hidden), x.dtype)

        def one(state, a):
            state = step(state, a, w_hh, b_hh)
            return state, state[0]

        start = (zeros,) * (2 if case.cell == "lstm" else 1)
        return jax.lax.scan(one, start, a)[1]

    @jax.jit
    def program(d_out, *arguments):
        out, back = jax.vjp(outputs, *arguments)
        return out, *back(d_out)

    arguments = jax.device_put((d_out, x, *matrices, *biases))

    def call():
        out, dx, *gradients = jax.block_until_ready(program(*arguments))
        if turned:
            gradients[:2] = [one.T for one in gradients[:2]]
        return [out, dx, *gradients]

    return call


def tasks(case, settings):
    """Make {name: task} of all libraries that are installed, each held to float64."""
    import vegrad.torch

    def arrays(found):
        return [np.asarray(getattr(one, "detach", lambda one=one: one)()) for one in found]

    right = arrays(torch_pass(case, dtype="float64")())

    def task(call):
        pairs = zip(arrays(call()), right, strict=True)
        off = max(float(np.abs(got - want).max() / np.abs(want).max()) for got, want in pairs)
        return Task(call, hold(f"{case.cell} {case.row.label}", off, TOLERANCE))

    found = {
        "vegrad": task(vegrad_pass(case)),
        "torch": task(torch_pass(case)),
        "torch flushed": task(torch_pass(case, flush=True)),
        "fuse": task(torch_pass(case, vegrad.torch.fuse)),
    }
    if peers.installed(peers.Jax):
        programs = {
            f"turned={turned}": task(jax_pass(case, turned)) for turned in settings["turned"]
        }
        found["jax"] = winner(programs, settings)
    return found


def network(case, targets="all", outputs=1):
    """Make the core's recurrent network of a row, with PyTorch's default weights, and a call.

    The call goes forward and backward through it, with the flow or without.
    """
    import torch
    from vegrad import _core

    row = case.row
    parameters = [one for part in defaults(case, outputs) for one in part.parameters()]
    sizes = row.inputs, row.hidden, outputs
    made = _core.Recurrent(*sizes, case.cell, 1, targets, "mse", "float32")
    for array, parameter in zip(made.parameters().values(), parameters, strict=True):
        array[...] = parameter.detach().numpy()
    torch.manual_seed(1)
    x = torch.randn(row.batch, row.steps, row.inputs).numpy()
    middle = (row.steps,) if targets == "all" else ()
    target = torch.randn(row.batch, *middle, outputs).numpy()

    def call(flow=True):
        return made.backward(x, target, None, None, None, None, flow)

    return made, call


def defaults(case, outputs):
    """Make PyTorch's module of a cell and a Linear on it, with their default weights."""
    import torch

    torch.manual_seed(0)
    rnn = module(case.cell, case.row.inputs, case.row.hidden)
    return rnn, torch.nn.Linear(case.row.hidden, outputs)


def last_output(case, flush):
    """Return a call: PyTorch's module and a Linear on its last output, subnormals flushed or not.

    It does the same as `network(case, "last")` does: no gradient of the inputs.
    """
    import torch

    rnn, head = defaults(case, 1)
    torch.manual_seed(1)
    x = torch.randn(case.row.batch, case.row.steps, case.row.inputs).transpose(0, 1).contiguous()
    target = torch.randn(case.row.batch, 1)
    parameters = [*rnn.parameters(), *head.parameters()]

    def call():
        torch.set_flush_denormal(flush)
        for parameter in parameters:
            parameter.grad = None
        loss = torch.nn.functional.mse_loss(head(rnn(x)[0][-1]), target)
        loss.backward()
        torch.set_flush_denormal(False)
        return loss.item()

    return call

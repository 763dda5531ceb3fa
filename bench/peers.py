"""The same forward and backward pass, written for each library as its users would write it.

`step()` runs one pass, and returns when the loss and the gradients of all weights and biases are
in memory; `result()` gives them. Nobody is asked for the gradient with respect to the data.
"""

import importlib.util
import math
import operator
import statistics
import timeit

import numpy as np


class Problem:
    """The weights (out, in), biases, data and target of a row: float32, the same for all."""

    def __init__(self, row, seed=0):
        random = np.random.default_rng(seed)
        n, self.row = row.width, row
        bound = {"glorot_uniform": math.sqrt(3 / n), "linear": math.sqrt(1 / n)}[row.init]
        bias_bound = {"glorot_uniform": 0.1, "linear": bound}[row.init]

        def uniform(limit, *shape):
            return random.uniform(-limit, limit, shape).astype(np.float32)

        self.layers = [(uniform(bound, n, n), uniform(bias_bound, n)) for _ in range(row.layers)]
        self.x = random.standard_normal((row.batch, n), np.float32)
        self.target = random.standard_normal((row.batch, n), np.float32)


class Lists:
    """Pure Python: lists of lists of floats (which are float64), one thread."""

    name, title, module = "lists", "Python lists", None

    def __init__(self, problem):
        self.sigmoid = problem.row.activation == "sigmoid"
        self.layers = [(weight.tolist(), bias.tolist()) for weight, bias in problem.layers]
        self.x, self.target = problem.x.tolist(), problem.target.tolist()

    @classmethod
    def expected_seconds(cls, row):
        """A guess, from one dot product, that only decides whether the row is run at all."""
        values = [0.5] * row.width
        product = timeit.timeit(lambda: sum(map(operator.mul, values, values)), number=100) / 100
        return product / row.width * row.flops / 2

    def activate(self, z):
        if self.sigmoid:
            return [1 / (1 + math.exp(-value)) for value in z]
        return list(map(math.tanh, z))

    def step(self):
        def product(rows, columns):
            return [[sum(map(operator.mul, row, column)) for column in columns] for row in rows]

        def transpose(rows):
            return list(zip(*rows, strict=True))

        outputs, last = [self.x], len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            z = [list(map(operator.add, row, bias)) for row in product(outputs[-1], weight)]
            outputs.append(z if index == last else [self.activate(row) for row in z])
        delta = [list(map(operator.sub, h, t)) for h, t in transpose([outputs[-1], self.target])]
        count = len(delta) * len(delta[0])
        self.loss = sum(value * value for row in delta for value in row) / count
        delta = [[2 / count * value for value in row] for row in delta]
        self.gradients = []
        for index in range(last, -1, -1):
            columns = transpose(delta)
            d_weight = product(columns, transpose(outputs[index]))
            self.gradients.append((d_weight, [sum(column) for column in columns]))
            if index:
                delta = product(delta, transpose(self.layers[index][0]))
                for d, h in zip(delta, outputs[index], strict=True):
                    slope = (v * (1 - v) if self.sigmoid else 1 - v * v for v in h)
                    d[:] = map(operator.mul, d, slope)
        self.gradients.reverse()

    def result(self):
        return self.loss, self.gradients


class NumPy:
    """NumPy with every buffer allocated beforehand and every operation in place."""

    name, title, module = "numpy", "NumPy", "numpy"

    def __init__(self, problem, dtype=np.float32):
        self.sigmoid = problem.row.activation == "sigmoid"
        self.layers = [(w.astype(dtype), b.astype(dtype)) for w, b in problem.layers]
        self.x, self.target = problem.x.astype(dtype), problem.target.astype(dtype)
        self.outputs = [self.x] + [np.empty_like(self.x) for _ in self.layers]
        self.delta, self.before, self.slope = (np.empty_like(self.x) for _ in range(3))
        self.gradients = [(np.empty_like(w), np.empty_like(b)) for w, b in self.layers]

    def activate_(self, z):
        if self.sigmoid:
            np.exp(np.negative(z, out=z), out=z)
            np.reciprocal(np.add(z, 1, out=z), out=z)
        else:
            np.tanh(z, out=z)

    def times_slope_(self, delta, h):
        np.multiply(h, h, out=self.slope)
        np.subtract(h if self.sigmoid else 1, self.slope, out=self.slope)
        delta *= self.slope

    def step(self):
        last = len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            z = np.matmul(self.outputs[index], weight.T, out=self.outputs[index + 1])
            z += bias
            if index < last:
                self.activate_(z)
        delta, before = self.delta, self.before
        np.subtract(self.outputs[-1], self.target, out=delta)
        self.loss = float(np.vdot(delta, delta)) / delta.size
        delta *= 2 / delta.size
        for index in range(last, -1, -1):
            d_weight, d_bias = self.gradients[index]
            np.matmul(delta.T, self.outputs[index], out=d_weight)
            np.sum(delta, axis=0, out=d_bias)
            if index:
                np.matmul(delta, self.layers[index][0], out=before)
                self.times_slope_(before, self.outputs[index])
                delta, before = before, delta

    def result(self):
        return self.loss, self.gradients


class Torch:
    """PyTorch eager with autograd; the gradients are set to None first, as zero_grad() does."""

    name, title, module = "torch", "PyTorch", "torch"
    flush = False

    @staticmethod
    def prepare(threads):
        import torch

        torch.set_num_threads(threads)

    def __init__(self, problem):
        import torch

        self.torch = torch
        self.activation = getattr(torch, problem.row.activation)
        self.layers = [
            [torch.tensor(array, requires_grad=True) for array in pair] for pair in problem.layers
        ]
        self.x, self.target = torch.tensor(problem.x), torch.tensor(problem.target)

    def step(self):
        if self.flush:
            self.torch.set_flush_denormal(True)
        functional = self.torch.nn.functional
        h, last = self.x, len(self.layers) - 1
        for index, (weight, bias) in enumerate(self.layers):
            weight.grad = bias.grad = None
            h = functional.linear(h, weight, bias)
            if index < last:
                h = self.activation(h)
        self.loss = functional.mse_loss(h, self.target)
        self.loss.backward()
        if self.flush:
            self.torch.set_flush_denormal(False)

    def result(self):
        return self.loss.item(), [[x.grad.numpy() for x in pair] for pair in self.layers]


class TorchFlushed(Torch):
    """The same with subnormal numbers flushed to zero on the calling thread."""

    name, title, flush = "torch-flushed", "PyTorch flushed", True


class Jax:
    """jit(value_and_grad) of three programs; the fastest of them on this row takes part."""

    name, title, module = "jax", "JAX", "jax"

    @staticmethod
    def prepare(threads):
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)  # each step is waited for anyway

    def __init__(self, problem):
        import jax

        self.jax = jax
        activate = {"tanh": jax.numpy.tanh, "sigmoid": jax.nn.sigmoid}[problem.row.activation]
        self.data = jax.device_put((problem.x, problem.target))
        turned = [(w.T.copy(), b) for w, b in problem.layers]  # (in, out), the custom in JAX
        hidden = tuple(np.stack(arrays) for arrays in zip(*turned[:-1], strict=True))

        def unrolled(parameters, x, target, product=operator.matmul):
            for index, (weight, bias) in enumerate(parameters):
                z = product(x, weight) + bias
                x = activate(z) if index < len(parameters) - 1 else z
            return jax.numpy.mean((x - target) ** 2)

        def transposed(parameters, x, target):
            return unrolled(parameters, x, target, lambda h, weight: h @ weight.T)

        def scanned(parameters, x, target):
            def layer(h, pair):
                return activate(h @ pair[0] + pair[1]), None

            return unrolled([parameters[1]], jax.lax.scan(layer, x, parameters[0])[0], target)

        programs = {
            "unrolled": (unrolled, turned),
            "unrolled, (out, in) weights": (transposed, problem.layers),
            "scan": (scanned, (hidden, turned[-1])),
        }
        candidates = {
            name: (jax.jit(jax.value_and_grad(program)), jax.device_put(parameters))
            for name, (program, parameters) in programs.items()
        }
        self.variant = min(candidates, key=lambda name: self.seconds(*candidates[name]))
        self.program, self.parameters = candidates[self.variant]

    def seconds(self, program, parameters):
        self.program, self.parameters = program, parameters
        self.step()  # compiles
        repeat = 3 + int(0.3 / timeit.timeit(self.step, number=1))
        return statistics.median(timeit.repeat(self.step, number=1, repeat=repeat))

    def step(self):
        self.value = self.jax.block_until_ready(self.program(self.parameters, *self.data))

    def result(self):
        loss, gradients = self.value
        if self.variant == "scan":
            gradients = [*zip(*gradients[0], strict=True), gradients[1]]
        if self.variant != "unrolled, (out, in) weights":
            gradients = [(weight.T, bias) for weight, bias in gradients]
        return float(loss), gradients


class Vegrad:
    """vegrad with the flow of every layer measured in the same pass."""

    name, title, module = "vegrad", "vegrad", "vegrad"
    flow, dtype = True, "float32"

    def __init__(self, problem):
        import vegrad

        row = problem.row
        sizes = [row.width] * (row.layers + 1)
        self.network = vegrad.MLP(sizes, activation=row.activation, dtype=self.dtype, seed=0)
        self.x, self.target = (a.astype(self.dtype) for a in (problem.x, problem.target))
        for index, (weight, bias) in enumerate(problem.layers):
            self.network.parameters[f"layers.{index}.weight"][...] = weight
            self.network.parameters[f"layers.{index}.bias"][...] = bias

    def step(self):
        self.loss = self.network.backward(self.x, self.target, flow=self.flow)

    def result(self):
        names = [f"layers.{index}." for index in range(self.network.depth)]
        got = self.network.gradients
        return self.loss, [(got[name + "weight"], got[name + "bias"]) for name in names]


class VegradWithoutFlow(Vegrad):
    """vegrad with the loss and the gradients alone."""

    name, title, flow = "vegrad-noflow", "vegrad, no flow", False


class VegradFloat64(Vegrad):
    """vegrad in float64, with the flow."""

    name, title, dtype = "vegrad-float64", "vegrad float64", "float64"


PEERS = (Lists, NumPy, Torch, TorchFlushed, Jax, VegradWithoutFlow, VegradFloat64, Vegrad)


def installed(peer):
    return peer.module is None or importlib.util.find_spec(peer.module) is not None


def largest_difference(result, reference):
    """How far a result is from the reference, relative to each gradient's largest element.

    What lies below float32's normal range counts for nothing there: some libraries flush it.
    """
    (loss, gradients), (right_loss, right_gradients) = result, reference
    worst = abs(loss - right_loss) / abs(right_loss)
    for pair, right_pair in zip(gradients, right_gradients, strict=True):
        for got, right in zip(pair, right_pair, strict=True):
            got = np.asarray(got, np.float64)
            if got.shape != right.shape or not np.isfinite(got).all():
                return math.inf
            floor = 1e5 * np.finfo(np.float32).tiny
            worst = max(worst, np.abs(got - right).max() / (np.abs(right).max() + floor))
    return float(worst)

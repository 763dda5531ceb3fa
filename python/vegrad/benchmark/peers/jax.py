"""JAX, compiled; it is imported when the peer is made, and nowhere else."""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable
from functools import partial
from operator import attrgetter, matmul
from typing import Any, TypeAlias

import numpy as np

from vegrad.activations import ACTIVATIONS
from vegrad.benchmark.peers.activations import identity
from vegrad.benchmark.peers.problem import Peer, Problem, Result

Tree: TypeAlias = Any
"""An array of JAX, or tuples and lists of them, as compiled functions take and return them."""


def _activation(name: str) -> Callable[[Tree], Tree]:
    """Return JAX's function with the arguments that make it vegrad's."""
    import jax

    counterpart = ACTIVATIONS[name].jax
    if counterpart is None:
        return identity(name)
    return partial(attrgetter(counterpart.function)(jax), **counterpart.arguments)


class Jax(Peer):
    """The pass: jit(value_and_grad) of the fastest of three programs."""

    name, title, module = "jax", "JAX", "jax"

    @staticmethod
    def prepare(threads: int) -> None:
        """Make JAX run each step in the thread that calls it; the environment sets its threads."""
        import jax

        jax.config.update("jax_cpu_enable_async_dispatch", False)

    def __init__(self, problem: Problem) -> None:
        import jax

        self.jax: Any = jax
        activate = _activation(problem.case.activation)
        self.data = jax.device_put((problem.x, problem.target))
        turned = [(w.T.copy(), b) for w, b in problem.layers]  # (in, out), the custom in JAX

        def unrolled(parameters: Tree, x: Tree, target: Tree, product: Tree = matmul) -> Tree:
            for index, (weight, bias) in enumerate(parameters):
                z = product(x, weight) + bias
                x = activate(z) if index < len(parameters) - 1 else z
            return jax.numpy.mean((x - target) ** 2)

        def transposed(parameters: Tree, x: Tree, target: Tree) -> Tree:
            return unrolled(parameters, x, target, lambda h, weight: h @ weight.T)

        def scanned(parameters: Tree, x: Tree, target: Tree) -> Tree:
            def layer(h: Tree, pair: Tree) -> Tree:
                return activate(h @ pair[0] + pair[1]), None

            return unrolled([parameters[1]], jax.lax.scan(layer, x, parameters[0])[0], target)

        programs: dict[str, tuple[Callable[..., Tree], Tree]] = {
            "unrolled": (unrolled, turned),
            "unrolled, (out, in) weights": (transposed, problem.layers),
        }
        if len(turned) > 1:
            hidden = tuple(np.stack(arrays) for arrays in zip(*turned[:-1], strict=True))
            programs["scan"] = (scanned, (hidden, turned[-1]))
        candidates = {
            name: (jax.jit(jax.value_and_grad(program)), jax.device_put(parameters))
            for name, (program, parameters) in programs.items()
        }
        self.variant = min(candidates, key=lambda name: self._seconds(*candidates[name]))
        self.program, self.parameters = candidates[self.variant]

    def _seconds(self, program: Callable[..., Tree], parameters: Tree) -> float:
        self.program, self.parameters = program, parameters
        self.step()  # compiles
        repeat = 3 + int(0.3 / timeit.timeit(self.step, number=1))
        return statistics.median(timeit.repeat(self.step, number=1, repeat=repeat))

    def step(self) -> None:
        """Compute the loss and the gradients."""
        self.value = self.jax.block_until_ready(self.program(self.parameters, *self.data))

    def result(self) -> Result:
        """Return the loss and the gradients."""
        loss, gradients = self.value
        if self.variant == "scan":
            gradients = [*zip(*gradients[0], strict=True), gradients[1]]
        if self.variant != "unrolled, (out, in) weights":
            gradients = [(weight.T, bias) for weight, bias in gradients]
        return float(loss), gradients

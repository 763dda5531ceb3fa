"""Time training: ten epochs a call of a small network on the digits; lines of bench/buffers.py.

64-128-128-10, ReLU, cross-entropy, batches of 32 in a new order each epoch, joint norm clipped at
1, AdamW; the loss of each batch is kept. All libraries start from the same weights and see the
batches in the same order; after the first epoch they are held to a float64 run.
"""

from itertools import pairwise

import numpy as np
from common import OPTAX, Task, hold, lines, winner
from vegrad.benchmark.peers import Jax, Torch, installed

SIZES, BATCH, LR, MAX_NORM, DECAY = (64, 128, 128, 10), 32, 1e-3, 1.0, 1e-2
BETAS, EPS = (0.9, 0.999), 1e-8
EPOCHS = 10  # in each timed call
LARGEST_DIFFERENCE = 1e-3  # of a weight after 45 steps, relative to the largest


def problem():
    """Return x, labels, and the weight and bias of each layer in float64."""
    from vegrad import MLP, datasets

    data = datasets.load("digits")
    net = MLP(SIZES, activation="relu", init="he_normal", loss="cross_entropy", seed=0)
    arrays = [array.astype(np.float64) for array in net.parameters.values()]
    labels = data.target("cross_entropy").astype(np.int64)
    return np.ascontiguousarray(data.x, np.float32), labels, arrays


class Order:
    """A new order of the rows for each epoch, the same for every library."""

    def __init__(self, rows):
        self.rows, self.random = rows, np.random.default_rng(1)

    def batches(self):
        """Return the rows of each batch of the next epoch."""
        order = self.random.permutation(self.rows)
        return [order[i : i + BATCH] for i in range(0, self.rows, BATCH)]


class Loop:
    """A loop over epochs; a subclass has `epoch`, one epoch that returns the losses."""

    def epochs(self):
        """Train for all epochs of a call."""
        for _ in range(EPOCHS):
            self.epoch()


class NumPy(Loop):
    """NumPy, with every operation of a step in place where it can be."""

    def __init__(self, x, labels, parameters, dtype=np.float32):
        self.x, self.labels, self.order = x.astype(dtype), labels, Order(len(x))
        self.parameters = [array.astype(dtype) for array in parameters]
        self.means, self.squares, self.rooms = (
            [np.zeros_like(p) for p in self.parameters] for _ in range(3)
        )
        self.steps = 0

    def epoch(self):
        return [self.step(rows) for rows in self.order.batches()]

    def step(self, rows):
        """Make one step on a batch; return its loss before the step."""
        outputs = [self.x[rows]]
        labels, p = self.labels[rows], self.parameters
        last = len(p) - 2
        for i in range(0, len(p), 2):
            z = outputs[-1] @ p[i].T
            z += p[i + 1]
            outputs.append(z if i == last else np.maximum(z, 0, out=z))
        z = outputs.pop()
        z -= z.max(1, keepdims=True)
        chances = np.exp(z)
        sums = chances.sum(1, keepdims=True)
        every = np.arange(len(rows))
        loss = float(np.mean(np.log(sums[:, 0]) - z[every, labels]))
        chances /= sums
        chances[every, labels] -= 1
        delta = np.multiply(chances, chances.dtype.type(1 / len(rows)), out=chances)
        gradients = [None] * len(p)
        for i in range(last, -1, -2):
            h = outputs.pop()
            gradients[i], gradients[i + 1] = delta.T @ h, delta.sum(0)
            if i:
                delta = delta @ p[i]
                delta *= h > 0
        norm = np.sqrt(sum(float(np.vdot(g, g)) for g in gradients))
        if norm > MAX_NORM:
            for g in gradients:
                g *= g.dtype.type(MAX_NORM / norm)
        self.adamw(gradients)
        return loss

    def adamw(self, gradients):
        """Update the parameters; the gradients are overwritten."""
        self.steps += 1
        rate = LR / (1 - BETAS[0] ** self.steps)
        root = 1 / np.sqrt(1 - BETAS[1] ** self.steps)
        every = (self.parameters, gradients, self.means, self.squares, self.rooms)
        for p, g, mean, square, room in zip(*every, strict=True):
            p *= 1 - LR * DECAY
            np.subtract(g, mean, out=room)
            room *= 1 - BETAS[0]
            mean += room
            square *= BETAS[1]
            g *= g
            g *= 1 - BETAS[1]
            square += g
            np.sqrt(square, out=room)
            room *= root
            room += EPS
            np.divide(mean, room, out=room)
            room *= rate
            p -= room

    def result(self):
        return self.parameters


class Vegrad:
    """vegrad's `MLP.fit`."""

    def __init__(self, x, labels, parameters):
        import vegrad

        self.x, self.labels, self.random = x, labels, Order(len(x)).random
        self.net = vegrad.MLP(SIZES, activation="relu", loss="cross_entropy", seed=0)
        for mine, array in zip(self.net.parameters.values(), parameters, strict=True):
            mine[...] = array
        self.optimizer = vegrad.AdamW(LR, clip=vegrad.clipping.GlobalNorm(MAX_NORM))

    def epoch(self, epochs=1):
        history = self.net.fit(
            self.x,
            self.labels,
            optimizer=self.optimizer,
            epochs=epochs,
            batch_size=BATCH,
            seed=self.random,
            progress=False,
        )
        return history.loss

    def epochs(self):
        self.epoch(EPOCHS)

    def result(self):
        return list(self.net.parameters.values())


class Eager(Loop):
    """PyTorch: `nn.Sequential`, `clip_grad_norm_`, and AdamW with `options` for its variant."""

    def __init__(self, x, labels, parameters, **options):
        import torch

        self.torch, self.order = torch, Order(len(x))
        self.x, self.labels = torch.from_numpy(x), torch.from_numpy(labels)
        layers = []
        for i, o in pairwise(SIZES):
            layers += [torch.nn.Linear(i, o), torch.nn.ReLU()]
        self.net = torch.nn.Sequential(*layers[:-1])
        with torch.no_grad():
            for mine, array in zip(self.net.parameters(), parameters, strict=True):
                mine.copy_(torch.from_numpy(array))
        self.optimizer = torch.optim.AdamW(
            self.net.parameters(), lr=LR, weight_decay=DECAY, **options
        )

    def epoch(self):
        torch, losses = self.torch, []
        for rows in map(torch.from_numpy, self.order.batches()):
            self.optimizer.zero_grad()
            output = self.net(self.x[rows])
            loss = torch.nn.functional.cross_entropy(output, self.labels[rows])
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.net.parameters(), MAX_NORM)
            self.optimizer.step()
            losses.append(loss.item())
        return losses

    def result(self):
        return [p.detach().numpy() for p in self.net.parameters()]


class Compiled(Loop):
    """JAX and optax: one jitted step for each batch, or if `whole` one jitted epoch (a scan)."""

    def __init__(self, x, labels, parameters, whole=False):
        import jax
        import optax

        self.jax, self.order, self.whole = jax, Order(len(x)), whole
        weights = [array.T if array.ndim > 1 else array for array in parameters]  # (in, out)
        self.parameters = jax.device_put([array.astype(np.float32) for array in weights])
        clip = optax.clip_by_global_norm(MAX_NORM)
        optimizer = optax.chain(clip, optax.adamw(LR, *BETAS, EPS, weight_decay=DECAY))
        self.state = optimizer.init(self.parameters)
        x, labels = jax.device_put((x, labels.astype(np.int32)))

        def loss(p, rows):
            h = x[rows]
            for i in range(0, len(p), 2):
                h = h @ p[i] + p[i + 1]
                h = jax.nn.relu(h) if i < len(p) - 2 else h
            return optax.softmax_cross_entropy_with_integer_labels(h, labels[rows]).mean()

        def step(carry, rows):
            p, state = carry
            value, gradients = jax.value_and_grad(loss)(p, rows)
            updates, state = optimizer.update(gradients, state, p)
            return (optax.apply_updates(p, updates), state), value

        def epoch(carry, batches, rest):
            carry, losses = jax.lax.scan(step, carry, batches)
            carry, last = step(carry, rest)
            return carry, jax.numpy.append(losses, last)

        self.program = jax.jit(epoch if whole else step, donate_argnums=0)

    def epoch(self):
        batches, carry = self.order.batches(), (self.parameters, self.state)
        if self.whole:
            carry, losses = self.program(carry, np.stack(batches[:-1]), batches[-1])
            losses = np.asarray(losses).tolist()
        else:
            losses = []
            for rows in batches:
                carry, loss = self.program(carry, rows)
                losses.append(loss)
            losses = [float(loss) for loss in losses]
        self.parameters, self.state = self.jax.block_until_ready(carry)
        return losses

    def result(self):
        return [np.asarray(p).T for p in self.parameters]


def epochs(settings):
    """Yield the lines against each library that is installed."""
    x, labels, parameters = problem()
    exact = NumPy(x, labels, parameters, np.float64)
    losses = exact.epoch()

    def task(name, runner):
        found = np.abs(np.array(runner.epoch()) - losses).max() / max(losses)
        for mine, right in zip(runner.result(), exact.result(), strict=True):
            found = max(found, np.abs(mine - right).max() / np.abs(right).max())
        return Task(runner.epochs, hold(name, found, LARGEST_DIFFERENCE))

    start = (x, labels, parameters)
    tasks, asked = {"vegrad": task("fit", Vegrad(*start))}, {}
    if installed(Torch):
        kinds = {"for-loop": {"foreach": False}, "foreach": {"foreach": True}}
        kinds["fused"] = {"fused": True}
        variants = {name: task(name, Eager(*start, **kind)) for name, kind in kinds.items()}
        tasks["PyTorch eager"], asked["PyTorch eager"] = winner(variants, settings), 10
    if installed(Jax) and OPTAX:
        for title, whole in (("JAX, jit of a step", False), ("JAX, jit of the epoch", True)):
            tasks[title], asked[title] = task(title, Compiled(*start, whole=whole)), 2
    tasks["NumPy"], asked["NumPy"] = task("NumPy", NumPy(*start)), 5
    case = f"{EPOCHS} epochs, digits, 64-128-128-10"
    wanted = [(case, other, least, "vegrad", other, None, 1) for other, least in asked.items()]
    yield from lines(tasks, wanted, settings)

"""Time a clip and an optimizer's step beside PyTorch's fused ones: lines of bench/buffers.py."""

from functools import partial

import numpy as np
from common import ELEMENTS, MODES, OTHERS, Task, hold, lines, normals, reads, winner

LR, MAX_NORM = 1e-3, 1.0
ONE_BUFFER = 1 / 1.3  # at least: the time of one buffer over that of many that are as large


def make(name):
    """Return our optimizer, which clips by the joint norm, and PyTorch's as a function."""
    import torch
    import vegrad

    clip = vegrad.clipping.GlobalNorm(MAX_NORM)
    if name == "AdamW":
        return vegrad.AdamW(LR, clip=clip), partial(torch.optim.AdamW, lr=LR, fused=True)
    sgd = partial(torch.optim.SGD, lr=LR, momentum=0.9, fused=True)
    return vegrad.SGD(LR, 0.9, clip=clip), sgd


def parameters(source, gradients):
    """Make PyTorch's parameters of copies of the arrays, with their gradients."""
    import torch

    found = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in source]
    for parameter, gradient in zip(found, gradients, strict=True):
        parameter.grad = torch.from_numpy(gradient.copy())
    return found


def held(name, calls, stepped, source, right):
    """Make {title: task} of calls, after comparing how far their one step moved the weights.

    `stepped` has the weights after the step by title, `right` PyTorch's moves from `source`.
    """
    largest = max(np.abs(moved).max() for moved in right)
    resolution = float(np.finfo(np.float32).eps * 4 / largest)  # of weights of about 4
    tasks = {}
    for title, arrays in stepped.items():
        moved = (got - array for got, array in zip(arrays, source, strict=True))
        off = max(np.abs(a - b).max() for a, b in zip(moved, right, strict=True)) / largest
        tasks[title] = Task(calls[title], hold(f"{name}, {title}", off, OTHERS + resolution))
    return tasks


def step(case, name, count, shape, asked, settings):
    """Yield the lines about one optimizer, on NumPy arrays and on PyTorch's parameters.

    Every library has weights of its own, and gets the lists of them anew at each call.
    """
    import torch

    source, gradients = normals(2 * count, shape)[:count], normals(2 * count, shape)[count:]
    arrays = [array.copy() for array in source]
    tensors, others = parameters(source, gradients), parameters(source, gradients)
    (of_arrays, theirs), (of_tensors, _) = make(name), make(name)
    theirs = theirs(others)

    def torch_step(mode):
        torch.nn.utils.clip_grad_norm_(others, MAX_NORM, foreach=mode)
        theirs.step()

    calls = {
        "NumPy arrays": lambda: of_arrays.step(list(arrays), list(gradients)),
        "tensors": lambda: of_tensors.step(tensors, [one.grad for one in tensors]),
    }
    modes = {key: partial(torch_step, mode) for key, mode in MODES.items()}
    for call in (*calls.values(), modes["foreach=None"]):
        call()
    # All have made one step from the same weights: how far they went is compared.
    right = [other.detach().numpy() - array for other, array in zip(others, source, strict=True)]
    stepped = {"NumPy arrays": arrays, "tensors": [x.detach().numpy() for x in tensors]}
    tasks = held(name, calls, stepped, source, right)
    traffic = (8 if name == "AdamW" else 6) * sum(array.nbytes for array in source)
    large = traffic > 1e8
    against, size = f"clip_grad_norm_, {name}(fused=True)", traffic if large else None
    wanted = [(f"{case}, {title}", against, asked, title, "torch", size, 1) for title in tasks]
    if not large:  # what many buffers cost beyond the work: as much memory in one buffer has none
        weights, slope = (np.concatenate([x.ravel() for x in xs]) for xs in (source, gradients))
        of_one, _ = make(name)
        tasks["one"] = Task(partial(of_one.step, weights, slope))
        line = (f"{case}, NumPy arrays", "one buffer as large", ONE_BUFFER)
        wanted.append((*line, "NumPy arrays", "one", None, 1))
    tasks["torch"] = winner({mode: Task(call) for mode, call in modes.items()}, settings)
    if large and name == "AdamW":
        block, title = np.ones(ELEMENTS, np.float32), "NumPy arrays"
        tasks["traffic"] = winner(reads(block, settings["threads"]), settings)
        line = (f"{case}, {title}", "its traffic, read", 0.85, title, "traffic", traffic)
        wanted.append((*line, traffic / block.nbytes))
    return lines(tasks, wanted, settings)


def steps(settings):
    """Yield the lines about all optimizers."""
    yield from step("AdamW and clip, 100 of 512×512", "AdamW", 100, (512, 512), 1.5, settings)
    yield from step("AdamW and clip, 300 of 1000", "AdamW", 300, (1000,), 15, settings)
    yield from step("SGD, momentum and clip, 100 of 512×512", "SGD", 100, (512, 512), 1.6, settings)

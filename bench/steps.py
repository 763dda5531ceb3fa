"""The lines of bench/buffers.py on optimizers: a clip and a step, beside PyTorch's fused ones."""

from functools import partial

import numpy as np
from buffers import ELEMENTS, OTHERS, Task, hold, lines, normals, reads, winner

LR, MAX_NORM = 1e-3, 1.0


def make(name):
    """(ours, PyTorch's from parameters) of an optimizer with a clip by the joint norm."""
    import torch
    import vegrad

    clip = vegrad.clipping.GlobalNorm(MAX_NORM)
    if name == "AdamW":
        return vegrad.AdamW(LR, clip=clip), partial(torch.optim.AdamW, lr=LR, fused=True)
    sgd = partial(torch.optim.SGD, lr=LR, momentum=0.9, fused=True)
    return vegrad.SGD(LR, 0.9, clip=clip), sgd


def step(case, name, count, shape, asked, settings):
    """Arrays of NumPy, and PyTorch's parameters with their gradients, each passed afresh."""
    import torch

    source, gradients = normals(2 * count, shape)[:count], normals(2 * count, shape)[count:]

    def parameters():
        found = [torch.nn.Parameter(torch.from_numpy(array.copy())) for array in source]
        for parameter, gradient in zip(found, gradients, strict=True):
            parameter.grad = torch.from_numpy(gradient.copy())
        return found

    arrays, tensors, others = [array.copy() for array in source], parameters(), parameters()
    (of_arrays, theirs), (of_tensors, _) = make(name), make(name)
    theirs = theirs(others)

    def torch_step(mode):
        torch.nn.utils.clip_grad_norm_(others, MAX_NORM, foreach=mode)
        theirs.step()

    calls = {
        "NumPy arrays": lambda: of_arrays.step(list(arrays), list(gradients)),
        "tensors": lambda: of_tensors.step(tensors, [one.grad for one in tensors]),
    }
    modes = {f"foreach={mode}": partial(torch_step, mode) for mode in (None, True, False)}
    for call in (*calls.values(), modes["foreach=None"]):
        call()
    # Both have made one step from the same weights: how far they went is compared.
    right = [other.detach().numpy() - array for other, array in zip(others, source, strict=True)]
    largest = max(np.abs(moved).max() for moved in right)
    tasks = {}
    for title, stepped in (
        ("NumPy arrays", arrays),
        ("tensors", [x.detach().numpy() for x in tensors]),
    ):
        moved = (got - array for got, array in zip(stepped, source, strict=True))
        off = max(np.abs(a - b).max() for a, b in zip(moved, right, strict=True)) / largest
        resolution = float(np.finfo(np.float32).eps * 4 / largest)  # of weights of about 4
        tasks[title] = Task(calls[title], hold(f"{name}, {title}", off, OTHERS + resolution))
    traffic = (8 if name == "AdamW" else 6) * sum(array.nbytes for array in source)
    large = traffic > 1e8
    against = f"clip_grad_norm_, {name}(fused=True)"
    wanted = [
        (f"{case}, {title}", against, asked, title, "torch", traffic if large else None, 1)
        for title in tasks
    ]
    tasks["torch"] = winner({mode: Task(call) for mode, call in modes.items()}, settings)
    if large and name == "AdamW":
        block = np.ones(ELEMENTS, np.float32)
        tasks["traffic"] = winner(reads(block, settings["threads"]), settings)
        ratio = traffic / block.nbytes
        wanted.append(
            (
                f"{case}, NumPy arrays",
                "its traffic, read",
                0.85,
                "NumPy arrays",
                "traffic",
                traffic,
                ratio,
            )
        )
    return lines(tasks, wanted, settings)


def steps(settings):
    """All of them."""
    yield from step("AdamW and clip, 100 of 512×512", "AdamW", 100, (512, 512), 1.5, settings)
    yield from step("AdamW and clip, 300 of 1000", "AdamW", 300, (1000,), 15, settings)
    yield from step("SGD, momentum and clip, 100 of 512×512", "SGD", 100, (512, 512), 1.6, settings)

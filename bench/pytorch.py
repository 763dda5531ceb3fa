"""Time vegrad.torch beside PyTorch's own functions, on models as users pass them.

    python bench/pytorch.py               the table, on two threads; bench/results/pytorch.json
    python bench/pytorch.py --quick       a smoke run
    python bench/pytorch.py --markdown    the table of the last complete run

One process, bound to as many cores as threads, measures everything in turns. The line against
Cockpit needs `pip install cockpit-for-pytorch "setuptools<81"`.
"""

import importlib.util
import itertools
import json
import warnings
from functools import partial

import report
from common import MODES, Task, hold, lines, main, winner
from vegrad.benchmark import peers

MAX_NORM, LR = 1.0, 1e-3


def parameters_of(count, shape):
    """Make a model of so many parameters with gradients, the same at every call."""
    import torch

    torch.manual_seed(0)
    model = torch.nn.ParameterList(torch.nn.Parameter(torch.randn(shape)) for _ in range(count))
    for parameter in model.parameters():
        parameter.grad = torch.randn(shape)
    return model


def mlp():
    """Return model, x and target: 8 layers of 512, a batch of 128."""
    import torch

    torch.manual_seed(0)
    layers = (layer for _ in range(8) for layer in (torch.nn.Linear(512, 512), torch.nn.Tanh()))
    return torch.nn.Sequential(*layers), torch.randn(128, 512), torch.randn(128, 512)


def transformer():
    """Return model, x and target: 4 encoder layers of width 256, 8 sequences of 64."""
    import torch

    torch.manual_seed(0)
    layer = torch.nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False)
    return model, torch.randn(8, 64, 256), torch.randn(8, 64, 256)


def backward(model, x, target):
    """Compute the gradients of the mean square."""
    (model(x) - target).square().mean().backward()


def clip(case, count, shape, exceeded, asked, settings):
    """Compare clip_grad_norm_(model.parameters(), …); each library has a model of its own."""
    import torch
    import vegrad.torch

    ours, theirs = parameters_of(count, shape), parameters_of(count, shape)
    limit = {"now": 0.0}

    def call(function, model, **mode):
        limit["now"] *= 1 - 2**-16 if exceeded else 1  # so that every call exceeds it
        function(model.parameters(), limit["now"], **mode)

    norm = float(vegrad.torch.get_total_norm(p.grad for p in ours.parameters()))
    limit["now"] = norm / 2 if exceeded else 4 * norm
    ours_call = partial(call, vegrad.torch.clip_grad_norm_, ours)
    modes = {
        name: Task(partial(call, torch.nn.utils.clip_grad_norm_, theirs, foreach=mode))
        for name, mode in MODES.items()
    }
    ours_call()
    modes["foreach=None"].call()
    pairs = zip(ours.parameters(), theirs.parameters(), strict=True)
    off = max(float((a.grad - b.grad).abs().max() / b.grad.abs().max()) for a, b in pairs)
    tasks = {"vegrad": Task(ours_call, hold(case, off, 1e-4))}
    tasks["torch"] = winner(modes, settings)
    wanted = [(case, "clip_grad_norm_", asked, "vegrad", "torch", None, 1)]
    return lines(tasks, wanted, settings)


def step(case, make, asked, settings):
    """Compare the step of AdamW(clip=) with clip_grad_norm_ and AdamW(fused=True)."""
    import torch
    import vegrad.torch
    from vegrad.clipping import GlobalNorm

    ours, theirs = make(), make()
    stepping = vegrad.torch.AdamW(ours.parameters(), LR, clip=GlobalNorm(MAX_NORM))
    fused = torch.optim.AdamW(theirs.parameters(), LR, fused=True)

    def torch_step(mode):
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), MAX_NORM, foreach=mode)
        fused.step()

    start = [p.detach().clone() for p in ours.parameters()]
    stepping.step()
    torch_step(None)
    trios = zip(ours.parameters(), theirs.parameters(), start, strict=True)
    off = max(float((a - b).abs().max() / (b - s).abs().max()) for a, b, s in trios)
    tasks = {"vegrad": Task(stepping.step, hold(case, off, 1e-2))}
    modes = {name: Task(partial(torch_step, mode)) for name, mode in MODES.items()}
    tasks["torch"] = winner(modes, settings)
    wanted = [(case, "clip_grad_norm_, AdamW(fused)", asked, "vegrad", "torch", None, 1)]
    return lines(tasks, wanted, settings)


def with_gradients(problem):
    """Return the model of a problem, with gradients."""
    model, x, target = problem()
    backward(model, x, target)
    return model


def whole_step(problem, watched):
    """Make a task of a step of training, with a monitor or without."""
    import torch
    import vegrad.torch

    model, x, target = problem()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    monitor = vegrad.torch.Monitor(model, on_finding=None) if watched else None

    def call():
        optimizer.zero_grad()
        backward(model, x, target)
        optimizer.step()
        return monitor

    return Task(call)


def training(case, problem, asked, settings):
    """Compare whole steps with a monitor and without."""
    tasks = {"monitored": whole_step(problem, True), "bare": whole_step(problem, False)}
    wanted = [(f"Monitor, {case}", "the bare step", asked, "monitored", "bare", None, 1)]
    return lines(tasks, wanted, settings)


def beside_cockpit(case, problem, settings):
    """Compare whole steps with a monitor, and with Cockpit's economy setting at every step."""
    import torch
    from backpack import extend
    from cockpit import Cockpit
    from cockpit.utils.configuration import configuration

    model, x, target = problem()
    model, loss_of = extend(model), extend(torch.nn.MSELoss())
    each = torch.nn.MSELoss(reduction="none")
    optimizer = torch.optim.AdamW(model.parameters(), 1e-5, fused=True)
    cockpit, steps = Cockpit(model.parameters(), configuration("economy")), itertools.count()

    def call():
        optimizer.zero_grad()
        out, step = model(x), next(steps)
        loss, losses = loss_of(out, target), each(out, target).mean(1)
        info = {"batch_size": len(x), "individual_losses": losses, "loss": loss}
        with cockpit(step, info=info | {"optimizer": optimizer}):
            loss.backward(create_graph=cockpit.create_graph(step))
        optimizer.step()

    tasks = {"monitored": whole_step(problem, True), "cockpit": Task(call)}
    wanted = [(f"Monitor, {case}", "Cockpit, economy", 1, "monitored", "cockpit", None, 1)]
    return lines(tasks, wanted, settings)


def fused(case, layers, width, batch, asked, settings, direct=False):
    """Compare forward and backward passes of a tanh network as it is and fused."""
    import torch
    import vegrad.torch

    def make(change):
        torch.manual_seed(0)
        parts = [x for _ in range(layers) for x in (torch.nn.Linear(width, width), torch.nn.Tanh())]
        model = change(torch.nn.Sequential(*parts[:-1]))
        x, target = torch.randn(batch, width), torch.randn(batch, width)
        parameters = list(model.parameters())

        def call():
            for parameter in parameters:
                parameter.grad = None
            torch.nn.functional.mse_loss(model(x), target).backward()
            return [parameter.grad for parameter in parameters]

        return call

    plain, ours = make(lambda module: module), make(partial(vegrad.torch.fuse, direct=direct))
    pairs = zip(ours(), plain(), strict=True)
    off = max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs)
    tasks = {"fused": Task(ours, hold(case, off, 1e-3)), "plain": Task(plain)}
    return lines(tasks, [(case, "unfused", asked, "fused", "plain", None, 1)], settings)


def child(settings):
    """Measure everything in this process and print one JSON object."""
    warnings.simplefilter("ignore")
    peers.Torch.prepare(settings["threads"])
    found = []
    found += training("MLP 8×512, batch 128", mlp, 0.97, settings)
    found += training("transformer 4×256, 8×64", transformer, 0.97, settings)
    found += clip("clip, 100 of 512×512", 100, (512, 512), True, 1.45, settings)
    found += clip("the same, not reached", 100, (512, 512), False, 2.7, settings)
    found += clip("clip, 300 of 1000", 300, (1000,), True, 15, settings)
    found += clip("clip, 2000 of 100", 2000, (100,), True, 15, settings)
    large, small = partial(parameters_of, 100, (512, 512)), partial(parameters_of, 300, (1000,))
    found += step("AdamW(clip=), 100 of 512×512", large, 1.5, settings)
    found += step("AdamW(clip=), 300 of 1000", small, 12, settings)
    found += step("AdamW(clip=), transformer", partial(with_gradients, transformer), 1.5, settings)
    found += fused("fuse, 50×64×64", 50, 64, 64, 3.2, settings)
    found += fused("fuse, 20×256×128", 20, 256, 128, 1.7, settings)
    found += fused("fuse(direct=True), 50×64×64", 50, 64, 64, 4, settings, True)
    found += fused("fuse(direct=True), 20×256×128", 20, 256, 128, 1.8, settings, True)
    if importlib.util.find_spec("cockpit") is not None:  # last: it takes gigabytes
        found += beside_cockpit("MLP 8×512, batch 128", mlp, settings)
    print(json.dumps({"lines": found, "versions": report.versions()}))


if __name__ == "__main__":
    main(__file__, __doc__, child)

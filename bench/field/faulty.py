"""Small faulty networks of the kinds that published sets hold, and healthy ones beside them.

    python bench/field/faulty.py                what vegrad says of each, then the figures
    python bench/field/faulty.py --truth        no vegrad: which of them reach their data's goal
    python bench/field/faulty.py --cure         also vegrad.torch.cure of the faulty ones (slow)
    python bench/field/faulty.py --only REGEX   names that match

The kinds, and where a name has a number the question on Stack Overflow, are those of AUTOTRAINER
(ICSE 2021: Blob and Circle), DeepLocalize (ICSE 2021), DeepFD and DeepDiagnosis (ICSE 2022) and
UMLAUT (CHI 2021); the networks are written anew, for PyTorch and for data that needs no download.
A plain training labels them: a faulty one misses the goal of its data, a healthy one reaches it.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from sklearn import datasets
from torch import Tensor, nn

WATCHED = 150  # steps that the Monitor sees
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "elu": nn.ELU, "gelu": nn.GELU,
    "selu": nn.SELU, "leaky": nn.LeakyReLU, "silu": nn.SiLU, "softplus": nn.Softplus,
    "softmax": lambda: nn.Softmax(dim=1), "none": nn.Identity,
}  # fmt: skip


@dataclass
class Net:
    """A network, its data and its training; `causes` is empty for a healthy one."""

    name: str
    data: str
    hidden: str = "32 32"
    activation: str = "relu"
    output: str = "none"
    loss: str = "natural"
    optimizer: str = "Adam"
    rate: float = 3e-3
    settings: dict[str, Any] = field(default_factory=dict)
    init: str = "default"
    change: str = ""
    steps: int = 600
    clip: float | None = None
    causes: str = ""


def standard(x: Tensor) -> Tensor:
    return (x - x.mean(0)) / x.std(0).clamp(min=1e-6)


def load(name: str) -> tuple[Tensor, Tensor, int]:
    """Inputs as they come, targets, and the number of classes (0: a regression)."""
    if name == "blob":
        x, y = datasets.make_blobs(400, centers=3, cluster_std=1.0, random_state=0)
    elif name == "circle":
        x, y = datasets.make_circles(400, noise=0.1, factor=0.4, random_state=0)
    elif name == "xor":
        x = torch.tensor([[0.0, 0], [0, 1], [1, 0], [1, 1]]).repeat(50, 1).numpy()
        y = (x.sum(1) == 1).astype(int)
    elif name == "square":
        x = torch.linspace(0, 5, 200)[:, None].numpy()
        y = 5 * x[:, 0] ** 2
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    classes = 0 if name in ("diabetes", "square") else int(y.max()) + 1
    return torch.tensor(x, dtype=torch.float32), torch.tensor(y), classes


def change_data(net: Net, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Standardize, unless the row says what else is done to the data."""
    words = dict(part.partition("=")[::2] for part in net.change.split())
    x = x if "raw" in words else standard(x)
    if y.is_floating_point():
        y = y.float() if "rawy" in words else standard(y.float())
    x, y = x * float(words.get("x", 1)), y * float(words["y"]) if "y" in words else y
    if "nanx" in words:
        x[5, 0] = torch.nan
    if "nany" in words:
        y[5] = torch.nan
    return x, y


def initialize(model: nn.Sequential, how: str) -> None:
    """Draw the weights as the row says: "uniform a b", "normal s", "constant c", "bias b"."""
    kind, *numbers = how.split()
    values = [float(number) for number in numbers]
    for layer in model:
        if not isinstance(layer, nn.Linear):
            continue
        if kind == "uniform":
            nn.init.uniform_(layer.weight, values[0], values[1])
            nn.init.zeros_(layer.bias)
        elif kind == "normal":
            nn.init.normal_(layer.weight, 0, values[0])
        elif kind == "constant":
            nn.init.constant_(layer.weight, values[0])
            nn.init.zeros_(layer.bias)
        elif kind == "bias":
            nn.init.constant_(layer.bias, values[0])
        elif kind == "he":
            nn.init.kaiming_normal_(layer.weight)
            nn.init.zeros_(layer.bias)
        if kind == "first":
            nn.init.normal_(layer.weight, 0, values[0])
            return


def losses(net: Net, classes: int) -> tuple[nn.Module, int]:
    """Give the loss and how many outputs it wants."""
    if net.loss == "natural":
        net_loss = "mse" if classes == 0 else "bcelogits" if classes == 2 else "ce"
    else:
        net_loss = net.loss
    reduction = "sum" if net_loss.endswith("-sum") else "mean"
    made: nn.Module = {
        "mse": nn.MSELoss, "mae": nn.L1Loss, "huber": nn.HuberLoss, "bce": nn.BCELoss,
        "bcelogits": nn.BCEWithLogitsLoss, "ce": nn.CrossEntropyLoss, "ce-one": nn.CrossEntropyLoss,
        "mse-onehot": nn.MSELoss, "mse-flat": nn.MSELoss,
    }[net_loss.removesuffix("-sum")](reduction=reduction)  # fmt: skip
    many = net_loss.removesuffix("-sum") in ("ce", "mse-onehot")
    return made, classes if many else 1


def build(net: Net) -> tuple[nn.Module, nn.Module, Tensor, Tensor, Callable[[Any], Any]]:
    """Make a row's (model, loss, x, target, function from the parameters to the optimizer)."""
    torch.manual_seed(0)
    raw_x, raw_y, classes = load(net.data)
    x, y = change_data(net, raw_x, raw_y)
    loss, outputs = losses(net, classes)
    layers: list[nn.Module] = []
    inputs = x.shape[1]
    for width in net.hidden.split():
        layers += [nn.Linear(inputs, int(width)), ACTIVATIONS[net.activation]()]
        inputs = int(width)
    layers.append(nn.Linear(inputs, outputs))
    if net.output != "none":
        layers.append(ACTIVATIONS[net.output]())
    model = nn.Sequential(*layers)
    if net.init != "default":
        initialize(model, net.init)
    if net.loss == "mse-onehot":
        y = nn.functional.one_hot(y, classes).float()
    elif outputs == 1 and net.loss != "mse-flat":
        y = y.float()[:, None]
    elif net.loss == "mse-flat":
        y = y.float()
    make = getattr(torch.optim, net.optimizer)
    return model, loss, x, y, lambda p: make(p, lr=net.rate, **net.settings)


def train(net: Net, watch: Callable[[nn.Module], Any], steps: int) -> tuple[Any, nn.Module]:
    """Train a row; `watch` gets the model first, and its result comes back with the model."""
    model, loss_fn, x, y, make = build(net)
    watcher, optimizer = watch(model), make(model.parameters())
    generator = torch.Generator().manual_seed(0)
    for _ in range(steps):
        index = torch.randperm(len(x), generator=generator)[:32]
        optimizer.zero_grad()
        loss_fn(model(x[index]), y[index]).backward()
        if net.clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), net.clip)
        optimizer.step()
    return watcher, model


GOALS = {"blob": 0.12, "circle": 0.05, "xor": 0.01, "square": 0.05, "iris": 0.06, "wine": 0.03,
         "breast_cancer": 0.04, "digits": 0.05, "diabetes": 0.55}  # fmt: skip


def error(net: Net, model: nn.Module) -> float:
    """Share of wrong ones, or of the variance that is left unexplained."""
    _, raw_y, classes = load(net.data)
    _, _, x, y, _ = build(net)
    with torch.no_grad():
        out = model(x)
    if out.isnan().any():
        return 9.0
    if classes == 0:
        known = ~y.reshape(-1).isnan()
        residual = (out.reshape(-1) - y.reshape(-1))[known].square().mean()
        return (residual / y[known].var()).item()
    if out.shape[1] > 1:
        return (out.argmax(1) != raw_y).float().mean().item()
    if classes > 2:
        return (out[:, 0].round() != raw_y).float().mean().item()
    border = 0.0 if net.output == "none" and net.loss in ("natural", "bcelogits") else 0.5
    if net.loss == "bcelogits":
        border = 0.0  # what the loss takes for a logit
    return ((out[:, 0] > border) != (raw_y > 0)).float().mean().item()


def truth(nets: list[Net]) -> bool:
    """Print the labels of a plain training; True if each is as its row says."""
    fine = True
    for net in nets:
        _, model = train(net, lambda model: None, net.steps)
        left, goal = error(net, model), GOALS[net.data]
        ok = (left <= goal) is (not net.causes)
        fine = fine and ok
        print(f"{'' if ok else 'NOT SO '}{net.name}: error {left:.3f}, goal {goal}", flush=True)
    return fine


def first(diagnosis: Any) -> str | None:
    """Give the cause of the first finding; its kind in brackets if it has no cause."""
    if not diagnosis.findings:
        return None
    finding = diagnosis.findings[0]
    return getattr(finding, "cause", None) or f"({finding.kind})"


def ask(net: Net, cure: bool) -> dict[str, str | None]:
    """Ask `diagnose` and a Monitor (and `cure`) about a row."""
    import vegrad.torch as vt

    said: dict[str, str | None] = {}

    def attempt(tool: str, call: Callable[[], str | None]) -> None:
        try:
            said[tool] = call()
        except Exception as problem:  # a crash is a result
            said[tool] = f"CRASH {type(problem).__name__}: {problem}"[:160]

    def cured() -> str | None:
        model, loss_fn, x, y, make = build(net)
        outcome = vt.cure(model, loss_fn, x, y, optimizer=make(model.parameters()))
        return None if outcome.after.healthy else "not cured"

    attempt("diagnose", lambda: first(vt.diagnose(*build(net)[:4])))
    attempt("monitor", lambda: first(train(net, vt.Monitor, WATCHED)[0].report()))
    if cure and net.causes:
        attempt("cure", cured)
    return said


def compare(nets: list[Net], cure: bool) -> list[dict[str, Any]]:
    """Print a line for each row, and the figures."""
    rows = []
    for net in nets:
        said = ask(net, cure)
        words = [said[tool] for tool in ("diagnose", "monitor") if said[tool]]
        crash = any(word.startswith("CRASH") for word in said.values() if word)
        accepted = net.causes.split()
        right = bool(words) and all(word in accepted for word in words)
        rows.append(
            {
                "name": net.name,
                "sick": bool(accepted),
                "found": bool(words),
                "right": right,
                "crash": crash,
                "cured": "cure" in said and said["cure"] is None,
                "wanted": accepted,
                "said": said,
            }
        )
        mark = ("right" if right else "WRONG") if accepted else "ALARM" if words else "quiet"
        told = ", ".join(f"{tool} {word or 'healthy'}" for tool, word in said.items())
        print(f"{mark} {net.name}: {told}; wanted {'/'.join(accepted) or 'healthy'}", flush=True)
    sick = [row for row in rows if row["sick"]]
    well = [row for row in rows if not row["sick"]]
    print(
        f"found {sum(row['found'] for row in sick)} of {len(sick)}; "
        f"right cause first {sum(row['right'] for row in sick)}; "
        f"false alarms {sum(row['found'] for row in well)} of {len(well)}; "
        f"crashes {sum(row['crash'] for row in rows)}"
        + (f"; cured {sum(row['cured'] for row in sick)}" if cure else "")
    )
    return rows


def main() -> int:
    from nets import NETS

    parser = argparse.ArgumentParser(description="small faulty networks, and healthy ones")
    parser.add_argument("--truth", action="store_true")
    parser.add_argument("--cure", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--json", type=Path, help="write all answers into this file")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    nets = [net for net in NETS if re.search(options.only, net.name)]
    if options.truth:
        return 0 if truth(nets) else 1
    rows = compare(nets, options.cure)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return 0 if all(row["right"] if row["sick"] else not row["found"] for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Faults, planted in a model, its data or its loss.

Each kind is a function of a case, a healthy pass of it (`Seen`) and a random generator. It changes
the case and returns what it changed, or None where the model has nothing to plant it in.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch
from torch import Tensor, nn

from architectures.plain import Skip
from architectures.tasks import Case

QUERY = re.compile(r"(^|[._])(q|query|q_proj|to_q|q_lin|lin_query|query_proj)\.weight$")
KEY = re.compile(r"(^|[._])(k|key|k_proj|to_k|k_lin|lin_key|key_proj)\.weight$")
JOINT = re.compile(r"(qkv|qkv_proj|to_qkv|query_key_value|Wqkv|in_proj_weight)(\.weight)?$")
ACTIVATIONS = (nn.ReLU, nn.GELU, nn.SiLU, nn.ELU, nn.LeakyReLU, nn.ReLU6, nn.Hardswish, nn.Tanh)
ALSO = re.compile(r"(GELU|SiLU|ReLU|Swish|Mish|HardSwish|Activation)\w*$")  # of libraries' own
RECTIFIERS = (nn.ReLU, nn.ReLU6)


@dataclass(frozen=True)
class Planted:
    """What a fault has changed."""

    names: tuple[str, ...] = ()
    """The parameters or buffers at fault; empty if it is in the whole, the data or the loss."""
    about: str = "place"
    """"place", "norm" (a normalization or a bias), "attention", "whole" or "loss"."""

    @property
    def modules(self) -> frozenset[str]:
        """The paths of the modules at fault: of queries also those that the queries belong to."""
        own = frozenset(map(module_of, self.names))
        return own | frozenset(map(module_of, own)) if self.about == "attention" else own


@dataclass(frozen=True)
class Seen:
    """A healthy pass: log10 of the gradients' norms, and the modules in the order of their runs."""

    sizes: dict[str, float]
    ran: tuple[str, ...]
    rectified: tuple[str, ...]
    """Those whose outputs a ReLU takes as they are."""

    def lives(self, name: str) -> bool:
        """Return True if a parameter gets a gradient."""
        return isfinite(self.sizes.get(name, -torch.inf))


def module_of(name: str) -> str:
    """Return the path of the module that a parameter belongs to; its own name at the top."""
    return name.rpartition(".")[0] or name


def parameter(case: Case, name: str) -> Tensor:
    """Return the values of a parameter."""
    return dict(case.model.named_parameters(remove_duplicate=False))[name].data


def matrices(case: Case, seen: Seen) -> list[str]:
    """Return the weights that multiply, in the order in which their modules ran."""
    found = []
    for path in dict.fromkeys(seen.ran):
        module = case.model.get_submodule(path)
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            continue
        own = module.named_parameters(prefix=path, recurse=False)
        found += [n for n, p in own if p.ndim > 1 and p.numel() >= 32 and seen.lives(n)]
    return found


def middle(case: Case, seen: Seen, rng: random.Random) -> str | None:
    """Return a matrix that is neither first nor last, nor makes queries or keys."""
    inner = matrices(case, seen)[1:-1]
    return rng.choice([n for n in inner if not QUERY.search(n) and not KEY.search(n)] or [None])


def weights(factor: float) -> Any:
    """Multiply one matrix by a factor."""

    def plant(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
        name = middle(case, seen, rng)
        if name is None:
            return None
        parameter(case, name).mul_(factor)
        return Planted((name,))

    return plant


def norm(factor: float) -> Any:
    """Multiply a normalization's weights by a factor."""

    def plant(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
        modules = ((path, case.model.get_submodule(path)) for path in dict.fromkeys(seen.ran))
        found = [f"{path}.weight" for path, one in modules if "Norm" in type(one).__name__]
        found = [name for name in found if seen.lives(name)][1:]
        if not found:
            return None
        name = rng.choice(found)
        parameter(case, name).mul_(factor)
        return Planted((name,), "norm")

    return plant


def statistics(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Let a BatchNorm in evaluation mode divide by a standard deviation that is far too large."""
    modules = ((path, case.model.get_submodule(path)) for path in dict.fromkeys(seen.ran))
    kind = nn.modules.batchnorm._BatchNorm
    found = [p for p, one in modules if isinstance(one, kind) and one.track_running_stats][1:]
    if not found:
        return None
    path = rng.choice(found)
    case.model.eval()
    case.model.get_submodule(path).running_var.fill_(1e8)
    return Planted((f"{path}.running_var",), "norm")


def drawn(spread: float) -> Any:
    """Draw every matrix anew, normal with this standard deviation."""

    def plant(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
        for name in matrices(case, seen):
            parameter(case, name).normal_(0, spread)
        return Planted((), "whole")

    return plant


def sigmoids(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Replace every activation that is a module by a sigmoid."""
    done = 0
    for one in list(case.model.modules()):
        for name, inner in list(one.named_children()):
            own = not list(inner.children()) and ALSO.search(type(inner).__name__)
            if isinstance(inner, ACTIVATIONS) or own:
                setattr(one, name, nn.Sigmoid())
                done += 1
    return Planted((), "whole") if done > 1 else None


def no_skips(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Remove the skip connections of a model that is written out here."""
    skips = [one for one in case.model.modules() if isinstance(one, Skip)]
    for one in skips:
        one.on = False
    return Planted((), "whole") if len(skips) > 1 else None


def embedding(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Multiply an embedding by 100."""
    modules = case.model.named_modules()
    found = [f"{path}.weight" for path, one in modules if isinstance(one, nn.Embedding)]
    found = [name for name in found if seen.lives(name)]
    if not found:
        return None
    name = rng.choice(found)
    parameter(case, name).mul_(100)
    return Planted((name,))


def dead(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Set a bias before a ReLU so low that nothing passes."""
    found = [f"{path}.bias" for path in seen.rectified if seen.lives(f"{path}.bias")]
    if not found:
        return None
    name = rng.choice(found)
    parameter(case, name).fill_(-10)
    return Planted((name,), "norm")


def attention(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Multiply all queries by 1000, so that each looks at one key alone."""
    names = [name for name in seen.sizes if QUERY.search(name) and seen.lives(name)]
    for name in names:
        parameter(case, name).mul_(1000)
    if not names:
        names = [name for name in seen.sizes if JOINT.search(name) and seen.lives(name)]
        for name in names:
            values = parameter(case, name)
            values[: len(values) // 3].mul_(1000)
    return Planted(tuple(names), "attention") if names else None


def last(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Multiply the last matrix by 1000, if nothing shares it."""
    names = matrices(case, seen)
    tied = len(list(case.model.parameters())) < len(
        list(case.model.named_parameters(remove_duplicate=False))
    )
    if not names or tied:
        return None
    parameter(case, names[-1]).mul_(1000)
    return Planted((names[-1],))


def inputs(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Give inputs from 0 to 255."""

    def scaled(x: Any) -> Any:
        if isinstance(x, Tensor) and x.is_floating_point():
            return 255 * (x - x.min()) / (x.max() - x.min())
        return x

    first = {"sample", "hidden_states", "pixel_values", "input_values", "past_values"}
    if isinstance(case.x, dict):
        names = first & case.x.keys()
        case.x = case.x | {name: scaled(case.x[name]) for name in names}
        return Planted((), "whole") if names else None
    head, *rest = case.x if isinstance(case.x, tuple) else (case.x,)
    if not head.is_floating_point():
        return None
    case.x = (scaled(head), *rest) if rest else scaled(head)
    return Planted((), "whole")


def not_a_number(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Weigh the loss by a mask of which nothing is left, 0 / 0."""
    loss, mask = case.loss, torch.zeros(3)
    case.loss = lambda output, target: loss(output, target) * mask.sum() / mask.sum()
    return Planted((), "loss")


def overflow(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Run in float16, in which one matrix is too large."""
    name = middle(case, seen, rng)
    if name is None:
        return None
    parameter(case, name).mul_(1e6)
    kind = type(case.model)

    def forward(self: nn.Module, *x: Any, **named: Any) -> Any:
        with torch.autocast("cpu", torch.float16):
            return kind.forward(self, *x, **named)

    case.model.__class__ = type(kind.__name__, (kind,), {"forward": forward})
    return Planted((name,))


def forgetful(case: Case, seen: Seen, rng: random.Random) -> Planted | None:
    """Let the gates of all LSTMs forget everything at every step."""
    names = []
    for path, one in case.model.named_modules():
        for name, values in one.named_parameters(prefix=path, recurse=False):
            if isinstance(one, nn.LSTM) and ".bias_ih" in name:
                values.data[one.hidden_size : 2 * one.hidden_size] = -10
                names.append(name)
    return Planted(tuple(names), "norm") if names else None


Plant = Callable[[Case, Seen, random.Random], Planted | None]
COMMON: dict[str, Plant] = {
    "weights × 1e-3": weights(1e-3),
    "weights × 1e3": weights(1e3),
    "norm × 1e-4": norm(1e-4),
    "norm × 0": norm(0),
    "all weights N(0, 1)": drawn(1),
    "all weights N(0, 1e-3)": drawn(1e-3),
    "all activations sigmoid": sigmoids,
    "last layer × 1000": last,
    "inputs 0 to 255": inputs,
    "loss NaN": not_a_number,
    "float16 overflows": overflow,
}
RARE: dict[str, Plant] = {  # which few models have a place for; the first two fewest
    "forget bias -10": forgetful,
    "skips removed": no_skips,
    "running variance 1e8": statistics,
    "dead ReLU bias": dead,
    "embedding × 100": embedding,
    "attention saturated": attention,
}
FAULTS = COMMON | RARE
EVALUATED = "running variance 1e8"  # the fault that only evaluation mode shows


def order(name: str) -> list[str]:
    """Return the faults to try in an architecture: the rare ones, then the common ones."""
    rng = random.Random(name)
    rarest, rare, common = list(RARE)[:2], list(RARE)[2:], list(COMMON)
    rng.shuffle(rare)
    rng.shuffle(common)
    return rarest + rare + common


def plant(fault: str, name: str, case: Case, seen: Seen) -> tuple[Case, Planted | None]:
    """Return a case with a fault, and what was changed; the same at every call."""
    changed = replace(case)
    return changed, FAULTS[fault](changed, seen, random.Random(f"{name} {fault}"))

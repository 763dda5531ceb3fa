"""torch.optim's SGD, Adam and AdamW, and Lion, on vegrad's kernels, with the clip inside the step.

optimizer_step.py has the step that they share, optimizer_state.py where their states lie.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from vegrad.clipping import Rule
from vegrad.torch.optimizer_step import CoreStep, Group, Numbers


class SGD(CoreStep, torch.optim.SGD):
    """torch.optim.SGD, and its arguments, with `clip=`: a rule of vegrad.clipping."""

    _kind, _names = "sgd", {"momentum_buffer": "momentum"}
    _arguments = ("momentum", "dampening", "nesterov", "weight_decay", "maximize")

    def _numbers(self, group: Group) -> Numbers:
        return (
            float(group["momentum"]),
            float(group["dampening"]),
            group["nesterov"],
            float(group["weight_decay"]),
            group["maximize"],
        )


class Adam(CoreStep, torch.optim.Adam):
    """torch.optim.Adam, and its arguments, with `clip=`: a rule of vegrad.clipping."""

    _kind = "adam"
    _names: ClassVar[dict[str, str]] = {
        "exp_avg": "mean",
        "exp_avg_sq": "square",
        "max_exp_avg_sq": "largest_square",
    }
    _arguments = ("beta1", "beta2", "eps", "weight_decay", "amsgrad", "maximize", "decoupled")

    def _numbers(self, group: Group) -> Numbers:
        first, second = group["betas"]
        return (
            float(first),
            float(second),
            float(group["eps"]),
            float(group["weight_decay"]),
            group["amsgrad"],
            group["maximize"],
            group["decoupled_weight_decay"],
        )


class AdamW(Adam, torch.optim.AdamW):
    """torch.optim.AdamW, and its arguments, with `clip=`: a rule of vegrad.clipping."""


class Lion(CoreStep):
    """Lion (Chen et al. 2023, arXiv:2302.06675), with `clip=`: a rule of vegrad.clipping.

    u = β1 m + (1 - β1) g; p ← p (1 - lr · weight_decay) - lr · sign(u); m = β2 m + (1 - β2) g.

    Raises:
        ValueError: if lr or weight_decay is negative, or a beta is not from 0 to below 1.
    """

    _kind, _names = "lion", {"exp_avg": "mean"}
    _arguments = ("beta1", "beta2", "weight_decay", "maximize", "decoupled")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        *,
        maximize: bool = False,
        clip: Rule | None = None,
    ) -> None:
        if not lr >= 0 or not weight_decay >= 0:
            raise ValueError(f"lr and weight_decay must be at least 0, not {lr}, {weight_decay}")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas must be from 0 to below 1, not {betas}")
        numbers = {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay}
        super().__init__(
            params, numbers | {"maximize": maximize, "differentiable": False}, clip=clip
        )

    def _numbers(self, group: Group) -> Numbers:
        first, second = group["betas"]
        return float(first), float(second), float(group["weight_decay"]), group["maximize"], True

    @torch.no_grad()
    def _plain_step(self) -> None:
        for group in self.param_groups:
            (first, second), rate = group["betas"], group["lr"]
            for param in group["params"]:
                if param.grad is None:
                    continue
                if param.grad.is_sparse:
                    raise RuntimeError("Lion does not support sparse gradients")
                grad = -param.grad if group["maximize"] else param.grad
                mean = self.state[param].setdefault("exp_avg", torch.zeros_like(param))
                param.mul_(1 - rate * group["weight_decay"])
                param.sub_(rate * mean.lerp(grad.to(mean.dtype), 1 - first).sign())
                mean.lerp_(grad.to(mean.dtype), 1 - second)

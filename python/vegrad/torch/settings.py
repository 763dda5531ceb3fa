"""Settings of an optimizer, beside its rate, that may be why a sound model does not train."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import Module

from vegrad.diagnosis.diagnosis import Diagnosis
from vegrad.torch import models
from vegrad.torch.monitor.monitor import Monitor
from vegrad.torch.reading.losses import Loss
from vegrad.torch.trainer import ModelData

STEPS = 100  # that are watched: decay takes some to show
# Usual are a decay of 0.0005 with SGD, of 0.01 with AdamW, which is multiplied with the rate, and
# an ε of 1e-8.
DECAY, DECOUPLED, EPS = 0.01, 2e-3, 1e-3


def are_suspect(optimizer: torch.optim.Optimizer) -> bool:
    """Return True if a decay or an ε is so far from usual that it is worth to watch some steps."""
    for group in optimizer.param_groups:
        decay = float(group.get("weight_decay") or 0.0)
        apart = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay")
        if (decay * float(group["lr"]) > DECOUPLED) if apart else decay > DECAY:
            return True
        if float(group.get("eps") or 0.0) > EPS:
            return True
    return False


def watched(
    model: Module,
    loss_fn: Loss,
    optimizer: torch.optim.Optimizer,
    data: ModelData,
    *,
    batch_size: int,
    seed: int,
) -> Diagnosis | None:
    """Train for some steps and report what a Monitor sees; None if one of them raises.

    The model and the optimizer are changed.
    """
    random, size = np.random.default_rng(seed), min(batch_size, len(data))
    with torch.random.fork_rng(devices=models.gpus(model)), torch.enable_grad():
        torch.manual_seed(seed)
        monitor = Monitor(model, optimizer=optimizer, on_finding=lambda finding: None)
        try:
            for _ in range(STEPS):
                x, target = data.take(random.permutation(len(data))[:size])
                optimizer.zero_grad()
                loss = loss_fn(models.called(model, x), target)
                loss.backward()
                optimizer.step()
            return monitor.report()
        except Exception:  # of the user's code, which the search meets by itself
            return None
        finally:
            monitor.remove()

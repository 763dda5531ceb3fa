"""`vegrad.torch.cure` with its patch run as a file, on a copy of what was given."""

from typing import Any

import torch
import vegrad.torch as ours
from vegrad.torch.models import copied

from tests.patches import run_as_file

CURE = ours.cure


def run_patch(model: Any, found: Any, x: Any, target: Any = None) -> dict[str, Any]:
    """Return the names that a user has after the patch, which began with a copy of the model."""
    changed = copied(model)
    optimizer = torch.optim.Adam(changed.parameters())
    with torch.random.fork_rng():
        return run_as_file(found.patch, model=changed, x=x, target=target, optimizer=optimizer)


def cure(model: Any, loss_fn: Any, x: Any, target: Any, **options: Any) -> Any:
    """Cure a model; if there is a patch, it must run and make the cured model's parameters."""
    before = copied(model) if isinstance(model, torch.nn.Module) else model
    found = CURE(model, loss_fn, x, target, **options)
    if found.patch:
        made = run_patch(before, found, x, target)["model"]
        assert made.state_dict().keys() == found.model.state_dict().keys()
    return found

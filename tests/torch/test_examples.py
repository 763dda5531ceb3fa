"""The PyTorch examples of causes: the first piece has its fault, the second has not."""

from collections.abc import Callable
from types import SimpleNamespace as Names

import pytest

torch = pytest.importorskip("torch")

from vegrad.cli.explain import examples  # noqa: E402
from vegrad.diagnosis.catalogue.table import CAUSES  # noqa: E402

PRELUDE = "import torch\nfrom torch import nn\nfrom torch.nn import functional as F\n"


def gradient(module: object) -> float:
    """The size of a module's weight's gradient; 0 if it has none."""
    found = module.weight.grad  # type: ignore[attr-defined]
    return 0.0 if found is None else float(found.norm())


def is_finite(value: object) -> bool:
    return bool(torch.as_tensor(value).isfinite().all())


def grown(model: object) -> float:
    """How much larger the gradient of a chain's first layer is than that of its last."""
    layers = [m for m in model.modules() if hasattr(m, "weight")]  # type: ignore[attr-defined]
    return gradient(layers[0]) / gradient(layers[-1])


def per_step(x: object) -> float:
    """How the first step's gradient compares with the last one's."""
    return float(x.grad[:, 0].norm() / x.grad[:, -1].norm())  # type: ignore[attr-defined]


# True of the names that the first piece of an example leaves behind, false of those of the second.
FAULTY: dict[str, Callable[[Names], bool]] = {
    "weight-scale": lambda n: n.model[3].weight.grad.norm() > 50 * n.model[4].weight.grad.norm(),
    "weight-scale-all": lambda n: grown(n.model) < 1e-6,
    "activation-derivative": lambda n: grown(n.model) < 1e-6,
    "saturated-units": lambda n: (1 - n.hidden.square()).mean() < 1e-3,
    "dead-units": lambda n: gradient(n.model[0]) == 0,
    "recurrent-weights": lambda n: per_step(n.x) > 1e6,
    "gate-bias": lambda n: per_step(n.x) < 1e-6,
    "normalization-weight": lambda n: gradient(n.model[0]) < 1e-4,
    "running-statistics": lambda n: n.output.abs().max() > 100,
    "branch-scale": lambda n: n.stream.norm() > 1e4,
    "embedding-scale": lambda n: n.added.norm() < 1e-2 * n.stream.norm(),
    "zero-vectors": lambda n: n.x.grad.abs().max() > 1e6,
    "closed-gates": lambda n: gradient(n.down) == 0 and gradient(n.up) == 0,
    "symmetry": lambda n: bool((n.model[0].weight.grad.std(dim=0) < 1e-6).all()),
    "collapse": lambda n: n.nodes.std(dim=0).mean() < 1e-3,
    "saturated-attention": lambda n: n.attention.amax(dim=-1).mean() > 0.99,
    "logits-scale": lambda n: n.loss > 10,
    "detached": lambda n: gradient(n.encoder) == 0,
    "no-derivative": lambda n: gradient(n.encoder) == 0,
    "unregistered": lambda n: not n.parameters,
    "norm-of-one": lambda n: n.x.grad.norm() < 1e-6,
    "mixed-rows": lambda n: bool((n.tokens[:, 0] != n.sequences[0].T).any()),
    "nonfinite-input": lambda n: not is_finite(n.loss),
    "nonfinite-target": lambda n: not is_finite(n.loss),
    "nonfinite-weights": lambda n: not is_finite(n.loss),
    "input-scale": lambda n: (1 - n.hidden.square()).mean() < 0.1,
    "target-scale": lambda n: n.loss > 1e9,
    "target-range": lambda n: n.loss < 0,
    "constant-output": lambda n: gradient(getattr(n.model, "0", n.model)) == 0,
    "output-range": lambda n: n.output.max() < n.target.mean() - 2,
    "wrong-reduction": lambda n: n.loss > 100,
    "broadcast": lambda n: n.error.numel() > n.target.numel(),
    "double-softmax": lambda n: n.loss > 1.4,
    "empty-loss": lambda n: not is_finite(n.loss),
    "loss-normalizer": lambda n: n.loss > 1e6,
    "infeasible-alignment": lambda n: not is_finite(n.loss),
    "loss-domain": lambda n: not is_finite(n.loss),
    "sqrt-at-zero": lambda n: not is_finite(n.x.grad),
    "where-branch": lambda n: not is_finite(n.x.grad),
    "domain-edge": lambda n: not is_finite(n.x.grad),
    "zero-division": lambda n: not is_finite(n.mean),
    "masked-row": lambda n: not is_finite(n.attention),
    "overflow": lambda n: not is_finite(n.loss),
    "dtype-range": lambda n: not is_finite(n.energy),
    "learning-rate-high": lambda n: n.loss > 1e6,
    "learning-rate-low": lambda n: bool((n.weight == 1).all()),
    "no-zero-grad": lambda n: n.model.bias.grad > 5,
    "zero-grad-before-step": lambda n: n.model.bias.grad is None,
    "no-step": lambda n: bool((n.model.weight == n.before).all()),
    "steps-undone": lambda n: (n.model.weight - n.saved["weight"]).abs().max() < 0.015,
    "not-in-optimizer": lambda n: len(n.optimizer.param_groups[0]["params"]) < 4,
    "clip-before-backward": lambda n: gradient(n.model) > 1,
    "clip-before-unscale": lambda n: gradient(n.model) < 1e-3,
    "clip-too-small": lambda n: gradient(n.model) < 1e-3,
    "weight-decay": lambda n: n.model.weight.norm() < 0.2 * n.before,
    "optimizer-eps": lambda n: not is_finite(n.weight),
    "moving-target": lambda n: n.target.requires_grad,
    "oscillating": lambda n: (n.losses[-1] - n.losses[-2]).abs() > 0.01,
}


def run(code: str) -> Names:
    found: dict[str, object] = {}
    torch.manual_seed(0)
    exec(PRELUDE + code, found)
    return Names(**found)


def test_every_cause_has_an_example_and_a_check() -> None:
    assert list(examples()) == list(CAUSES)
    assert FAULTY.keys() == CAUSES.keys()


@pytest.mark.parametrize("cause", CAUSES)
def test_the_fault_is_there_and_is_mended(cause: str) -> None:
    example = examples()[cause]
    assert FAULTY[cause](run(example.fault))
    assert not FAULTY[cause](run(example.mended))


@pytest.mark.parametrize("cause", CAUSES)
def test_examples_are_short(cause: str) -> None:
    example = examples()[cause]
    for code in (example.fault, example.mended):
        lines = code.splitlines()
        assert len(lines) <= 12
        assert max(map(len, lines)) <= 100

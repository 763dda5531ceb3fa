"""Any model is diagnosed: a healthy one is called so, and what is sick in it is named.

Each task's truth is plain PyTorch's: Adam takes the loss of every healthy one down by a quarter in
100 steps; each fault changes the gradient of some matrix a hundredfold, or keeps the loss above
that of the best constant output.
"""

import json
from collections.abc import Callable
from typing import Any

import pytest

from tests.torch.odd_architectures import Block
from tests.torch.odd_structures import (
    CLASSES,
    TASKS,
    WIDTH,
    GraphConvolutions,
    Task,
    labelled,
    nodes,
)

torch = pytest.importorskip("torch")
import torch.nn.functional as F  # noqa: E402, N812
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.flow import edits  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WHOLE = (edits.Initialize, edits.Lsuv, edits.AddSkips, edits.Normalize, edits.SetActivation)


def state(model: Any) -> dict[str, Any]:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return {
        "values": {name: one.detach().clone() for name, one in tensors.items()},
        "gradients": {name: one.grad for name, one in model.named_parameters()},
        "trained": {name: one.requires_grad for name, one in model.named_parameters()},
        "training": {name: one.training for name, one in model.named_modules()},
        "hooks": {
            n: (len(m._forward_hooks), len(m._backward_hooks)) for n, m in model.named_modules()
        },
    }


def diagnosed(made: Task) -> Any:
    """Diagnose a task; check that all is left as it was, and that the report can be written."""
    before, random = state(made.model), torch.get_rng_state()
    found = ours.diagnose(made.model, made.loss, made.x, made.target)
    after = state(made.model)
    values = zip(before.pop("values").items(), after.pop("values").items(), strict=True)
    for (name, was), (same, now) in values:
        assert name == same
        torch.testing.assert_close(now, was, rtol=0, atol=0, equal_nan=True, msg=name)
    assert before == after
    assert not any(one is not None for one in after["gradients"].values())
    assert torch.equal(torch.get_rng_state(), random)
    assert str(found)
    assert json.dumps(found.to_dict())
    return found


def multiply(model: Any, name: str, factor: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)


def names(found: Any) -> list[str]:
    """Return what the first finding is about, the first three of it."""
    return [site.name for site in found.findings[0].sites[:3]]


def is_of_the_whole(found: Any) -> bool:
    """Return True if the first finding is about the network, not about one place in it."""
    first = found.findings[0]
    parts = () if first.edit is None else edits.parts(first.edit)
    return (
        len(first.sites) > 1
        or any(site.kind == "model" for site in first.sites)
        or any(isinstance(part, WHOLE) for part in parts)
    )


# What is healthy, and one matrix of it ---------------------------------------------------------


@pytest.mark.parametrize("name", TASKS)
def test_a_healthy_model_is_healthy(name: str) -> None:
    found = diagnosed(TASKS[name]())
    assert found.healthy, str(found)


@pytest.mark.parametrize("name", TASKS)
def test_a_matrix_of_another_size_is_found_and_named(name: str) -> None:
    made = TASKS[name]()
    multiply(made.model, made.weight, made.factor)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert set(names(found)) & made.named(), str(found)


def test_a_model_that_keeps_its_graph_is_diagnosed_twice() -> None:
    made = TASKS["graph_tensor_kept"]()
    assert diagnosed(made).to_dict() == diagnosed(made).to_dict()


# Numbers that are none -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    ["fourier_operator", "graph_dense", "causal_language_model", "lstm", "equation_in_forward",
     "vmap_in_forward", "checkpoint_reentrant", "weights_of_weight_norm", "transformer_encoder"],
)  # fmt: skip
def test_weights_that_are_no_numbers_are_named(name: str) -> None:
    made = TASKS[name]()
    multiply(made.model, made.weight, torch.nan)
    found = diagnosed(made)
    assert found.verdict == "nonfinite", str(found)
    assert made.weight in names(found), str(found)


@pytest.mark.parametrize("name", ["causal_language_model", "gru_by_hand", "graph_dense"])
@pytest.mark.parametrize("zero", [0.0, -1.0], ids=["inf", "nan"])
def test_a_loss_that_is_no_number_is_never_healthy(name: str, zero: float) -> None:
    made = TASKS[name]()
    loss = made.loss
    made.loss = lambda output, target: loss(output, target) - torch.log(output.sum() * 0 + zero)
    found = diagnosed(made)
    assert found.verdict == "nonfinite", str(found)


@pytest.mark.parametrize("name", ["gru_by_hand", "graph_dense", "vmap_in_forward", "experts"])
def test_labels_that_are_all_ignored_are_never_healthy(name: str) -> None:
    made = TASKS[name]()
    made.target = torch.full_like(made.target, -100)
    found = diagnosed(made)
    assert found.verdict == "nonfinite" or found.findings[0].cause == "empty-loss", str(found)


# Normalizations, biases, embeddings ------------------------------------------------------------


# Between two batch normalizations the second makes up for the first, unless the first is 0.
NORMALIZATIONS = [("convolutions_normalized", "norms.3.weight", 0.0)] + [
    (name, weight, factor)
    for name, weight in [
        ("convolutions_normalized", "norms.5.weight"),
        ("causal_language_model", "blocks.1.norm2.weight"),
        ("causal_language_model", "blocks.1.norm1.weight"),
        ("encoder_decoder_of_named_inputs", "encoder.1.norm2.weight"),
        ("batch_normalization_in_eval", "norm.2.weight"),
    ]
    for factor in (1e-4, 0.0)
]


@pytest.mark.parametrize(("name", "weight", "factor"), NORMALIZATIONS)
def test_a_normalization_that_is_closed_is_named(name: str, weight: str, factor: float) -> None:
    made = TASKS[name]()
    made.weight = weight
    multiply(made.model, weight, factor)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert set(names(found)) & made.named(), str(found)


@pytest.mark.parametrize(
    ("name", "module"),
    [("convolutions_normalized", "norms.3"), ("batch_normalization_in_eval", "norm.1")],
)
def test_running_statistics_far_from_the_batch_are_named(name: str, module: str) -> None:
    made = TASKS[name]()
    made.model.eval().get_submodule(module).running_var.fill_(1e8)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert {module, f"{module}.running_var"} & set(names(found)), str(found)


@pytest.mark.parametrize(
    ("name", "module"), [("convolutions", "convs.3"), ("graph_dense", "layers.1")]
)
def test_a_bias_that_closes_units_is_named(name: str, module: str) -> None:
    made = TASKS[name]()
    nn.init.constant_(made.model.get_parameter(f"{module}.bias"), -10.0)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert {module, f"{module}.bias"} & set(names(found)), str(found)


@pytest.mark.parametrize("name", ["tied_embedding", "encoder_decoder_of_named_inputs"])
def test_an_embedding_that_drowns_every_branch_is_named(name: str) -> None:
    made = TASKS[name]()
    multiply(made.model, "words.weight", 100.0)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert {"words", "words.weight"} & set(names(found)), str(found)


class WithToken(nn.Module):
    """A transformer whose class token begins as zeros."""

    def __init__(self, draws: bool) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        if draws:
            nn.init.normal_(self.token, std=0.02)
        self.stem = nn.Linear(WIDTH, WIDTH)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        for block in self.blocks:
            block.norm1.eps = block.norm2.eps = 1e-12
        self.out = nn.Linear(WIDTH, CLASSES)

    def forward(self, x: Any) -> Any:
        x = torch.cat([self.token.expand(len(x), 1, WIDTH), self.stem(x)], 1)
        for block in self.blocks:
            x = block(x)
        return self.out(x[:, 0])


def test_zero_vectors_that_enter_a_normalization_are_named() -> None:
    torch.manual_seed(0)
    assert diagnosed(Task(WithToken(True), F.cross_entropy, *labelled(4, WIDTH))).healthy
    found = diagnosed(Task(WithToken(False), F.cross_entropy, *labelled(4, WIDTH)))
    assert not found.healthy, str(found)
    assert found.findings[0].cause == "zero-vectors", str(found)
    assert "token" in names(found), str(found)


# The whole network -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["convolutions", "encoder_decoder_of_named_inputs"])
@pytest.mark.parametrize("std", [1.0, 1e-3])
def test_weights_that_are_all_of_another_size_are_said_of_the_whole(name: str, std: float) -> None:
    made = TASKS[name]()
    for parameter in made.model.parameters():
        if parameter.ndim > 1:
            nn.init.normal_(parameter, std=std)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert is_of_the_whole(found), str(found)


def test_attention_with_all_weight_on_one_key_is_found() -> None:
    made = TASKS["encoder_decoder_of_named_inputs"]()
    for name in [name for name, _ in made.model.named_parameters() if name.endswith("q.weight")]:
        multiply(made.model, name, 1000.0)
    found = diagnosed(made)
    assert not found.healthy, str(found)


@pytest.mark.parametrize(
    ("name", "module"),
    [("causal_language_model", "head"), ("convolutions", "out"), ("experts", "out"),
     ("u_net", "out"), ("graph_messages", "out"), ("vmap_in_forward", "net.6")],
)  # fmt: skip
def test_outputs_that_are_far_too_large_are_named(name: str, module: str) -> None:
    made = TASKS[name]()
    multiply(made.model, f"{module}.weight", 1000.0)
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert {module, f"{module}.weight"} & set(names(found)), str(found)


@pytest.mark.parametrize("name", ["convolutions", "u_net", "graph_dense", "experts"])
def test_inputs_of_whole_numbers_up_to_255_are_found(name: str) -> None:
    made = TASKS[name]()
    made.x = ((made.x - made.x.min()) / (made.x.max() - made.x.min()) * 255).round()
    found = diagnosed(made)
    assert not found.healthy, str(found)
    assert found.findings[0].cause == "input-scale", str(found)


class Deep(nn.Module):
    """Layers in a loop; what comes out of the first is beside what comes out of the last."""

    def __init__(self, depth: int, activation: Callable[[Any], Any]) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(i, 16) for i in (WIDTH, *[16] * (depth - 1))])
        self.out, self.activation = nn.Linear(17, CLASSES), activation

    def forward(self, x: Any) -> Any:
        length = torch.ones(len(x), 1)
        for layer in self.layers:
            x = self.activation(layer(x))
        return self.out(torch.cat([x, length], 1))


def deep(kind: str) -> Task:
    torch.manual_seed(0)
    if kind == "graph":
        return Task(GraphConvolutions(32), F.cross_entropy, *nodes())
    model = Deep(50, torch.relu) if kind == "plain" else Deep(20, torch.sigmoid)
    return Task(model, F.cross_entropy, *labelled(WIDTH))


@pytest.mark.parametrize("kind", ["plain", "sigmoid", "graph"])
def test_a_deep_network_that_vanishes_is_said_of_the_whole(kind: str) -> None:
    found = diagnosed(deep(kind))
    assert found.verdict == "vanishing", str(found)
    assert is_of_the_whole(found), str(found)


def test_the_norm_of_a_healthy_graph_is_that_of_its_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    model = nn.Sequential(layer, nn.Flatten(), nn.Linear(32, 3))
    x, target = torch.randn(16, 4, 8), torch.randint(3, (16,))
    found = ours.diagnose(model, F.cross_entropy, x, target)
    F.cross_entropy(model(x), target).backward()
    norm = torch.nn.utils.get_total_norm([one.grad for one in model.parameters()])
    assert found.healthy
    assert f"over all parameters is {norm:.3g}" in found.sentence

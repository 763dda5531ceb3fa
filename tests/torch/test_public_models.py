"""Judge architectures of a public library, as they are drawn and with something wrong."""

from typing import Any

import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WORDS, SIZE = 64, 32
TOKENS = torch.randint(3, WORDS, (16, 12), generator=torch.Generator().manual_seed(0))
CLASSES = torch.arange(16) % 4


def to_class(out: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.logits, target)


def to_next(out: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.logits[:, :-1].flatten(0, 1), target[:, 1:].flatten())


def to_same(out: Any, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(out.logits.flatten(0, 1), target.flatten())


def made(name: str) -> tuple[nn.Module, Any, dict[str, torch.Tensor], torch.Tensor]:
    torch.manual_seed(0)
    tr, usual = transformers, {"vocab_size": WORDS, "pad_token_id": 0}
    tiny = {"hidden_size": SIZE, "num_hidden_layers": 3, "num_attention_heads": 2}
    if name == "bert":
        config = tr.BertConfig(**usual, **tiny, intermediate_size=64, num_labels=4)
        model: nn.Module = tr.BertForSequenceClassification(config)
        return model, to_class, {"input_ids": TOKENS}, CLASSES
    if name == "gpt2":
        config = tr.GPT2Config(vocab_size=WORDS, n_embd=SIZE, n_layer=3, n_head=2, n_positions=16)
        return tr.GPT2LMHeadModel(config), to_next, {"input_ids": TOKENS}, TOKENS
    config = tr.T5Config(**usual, d_model=SIZE, d_kv=16, d_ff=64, num_layers=2, num_heads=2)
    given = {"input_ids": TOKENS, "decoder_input_ids": TOKENS.roll(1, 1)}
    return tr.T5ForConditionalGeneration(config), to_same, given, TOKENS


@pytest.mark.parametrize("name", ["bert", "gpt2", "t5"])
def test_a_model_as_it_is_drawn_is_healthy(name: str) -> None:
    model, loss, x, target = made(name)
    found = ours.diagnose(model, loss, x, target)
    assert found.healthy, found.summary


@pytest.mark.parametrize(
    ("name", "parameter", "factor"),
    [
        ("bert", "bert.encoder.layer.1.output.LayerNorm.weight", 1e-4),
        ("bert", "bert.encoder.layer.1.attention.self.value.weight", 1e3),
        ("bert", "bert.embeddings.word_embeddings.weight", 100.0),
        ("gpt2", "transformer.h.1.mlp.c_proj.weight", 1e3),
        ("t5", "encoder.block.1.layer.0.layer_norm.weight", 1e-4),
        ("t5", "decoder.block.1.layer.2.DenseReluDense.wo.weight", 1e3),
    ],
)
def test_a_parameter_of_another_size_is_named_and_mended(
    name: str, parameter: str, factor: float
) -> None:
    model, loss, x, target = made(name)
    with torch.no_grad():
        model.get_parameter(parameter).mul_(factor)
    found = ours.diagnose(model, loss, x, target)
    assert found.findings[0].sites[0].name == parameter
    assert found.apply(model) == (parameter,)
    assert ours.diagnose(model, loss, x, target).healthy


@pytest.mark.parametrize("std", [1.0, 1e-3])
def test_weights_that_are_all_drawn_otherwise_are_drawn_as_the_model_does(std: float) -> None:
    model, loss, x, target = made("bert")
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.normal_(0, std)
    found = ours.diagnose(model, loss, x, target)
    assert found.findings[0].cause == "weight-scale-all"
    assert found.apply(model)
    drawn = model.get_parameter("bert.encoder.layer.0.attention.self.query.weight")
    assert float(drawn.detach().std()) == pytest.approx(0.02, rel=0.1)  # initializer_range
    assert ours.diagnose(model, loss, x, target).healthy

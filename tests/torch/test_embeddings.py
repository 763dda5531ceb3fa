"""Judge the embeddings that enter a residual stream: too large, tiny, or healthy ones."""

from typing import Any

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WIDTH, WORDS, ROWS = 48, 30, 12
LOSS = nn.CrossEntropyLoss()
RANDOM = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, WORDS, (8, ROWS), generator=RANDOM)


def of_words(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return LOSS(output.flatten(0, 1), target.flatten())


class Transformer(nn.Module):
    """A transformer with norms before the branches (GPT-2), or after all sums (BERT)."""

    def __init__(self, depth: int, before: bool = True, scale: float = 1.0) -> None:
        super().__init__()
        self.scale, self.before = scale, before
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.kinds, self.ln_e = nn.Embedding(2, WIDTH), nn.LayerNorm(WIDTH)
        self.h = nn.ModuleList(
            nn.TransformerEncoderLayer(WIDTH, 4, 96, 0.0, batch_first=True, norm_first=before)
            for _ in range(depth)
        )
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) * self.scale + self.wpe(torch.arange(tokens.shape[1]))
        if not self.before:
            x = self.ln_e(x + self.kinds(torch.zeros_like(tokens)))
        for layer in self.h:
            x = layer(x)
        return self.head(self.ln_f(x))


def made(
    depth: int,
    std: float | None,
    before: bool = True,
    tied: bool = False,
    biases: bool = False,
    **options: Any,
) -> Transformer:
    """Make a model with matrices from N(0, std²), or for std=None with PyTorch's.

    Matrices at the end of branches are drawn smaller, and biases are 0 unless asked for.
    """
    torch.manual_seed(1)
    model = Transformer(depth, before, **options)
    for name, one in model.named_parameters():
        if std is not None and one.ndim > 1:
            last = before and name.endswith(("out_proj.weight", "linear2.weight"))
            nn.init.normal_(one, std=std / (2 * depth) ** 0.5 if last else std)
        elif std is not None and name.endswith("bias") and not biases:
            nn.init.zeros_(one)
    if tied:
        model.head.weight = model.wte.weight
    return model


def drawn(model: Transformer, std: float) -> Transformer:
    for one in (model.wte, model.wpe):
        nn.init.normal_(one.weight, std=std)
    return model


def times(model: nn.Module, name: str, factor: float) -> nn.Module:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)
    return model


def diagnosed(model: nn.Module) -> vegrad.Diagnosis:
    return ours.diagnose(model, of_words, TOKENS, TOKENS.roll(-1, 1), resamples=0)


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("std", [0.02, None])
@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize("factor", [1e3, 1e4])
@pytest.mark.parametrize("name", ["wte.weight", "wpe.weight"])
def test_an_embedding_that_drowns_all_branches_is_named_with_its_factor(
    name: str, factor: float, depth: int, std: float | None, tied: bool
) -> None:
    """The advice makes it as large as the other embedding."""
    model = times(made(depth, std, tied=tied), name, factor)
    found = diagnosed(model)
    assert len(found.findings) == 1
    finding = found.findings[0]
    assert finding.sites[0].name == name
    assert abs(finding.evidence["decades"]) > 1
    assert found.verdict == ("vanishing" if finding.evidence["decades"] < 0 else "exploding")
    assert finding.evidence["factor"] == pytest.approx(1 / factor, rel=0.1)
    assert finding.advice == f"multiply {name} by {finding.evidence['factor']:.3g}."
    assert found.rows[finding.layers[0]]["module"] == name.removesuffix(".weight")
    assert diagnosed(times(model, name, finding.evidence["factor"])).healthy


def test_a_lone_embedding_is_scaled_to_the_size_of_the_matrices() -> None:
    for std, size in ((0.02, 0.02), (None, 1.0)):
        model = made(4, std)
        nn.init.zeros_(model.wpe.weight)
        finding = diagnosed(times(model, "wte.weight", 1e3)).findings[0]
        now = float(model.wte.weight.detach().std()) * finding.evidence["factor"]
        assert now == pytest.approx(size, rel=0.05)


def test_embeddings_that_drown_each_other_before_a_normalization() -> None:
    finding = diagnosed(times(made(4, 0.02, before=False), "wte.weight", 1e4)).findings[0]
    assert finding.sites[0].name == "wte.weight"
    assert finding.cause == "embedding-scale"
    assert finding.evidence["factor"] == pytest.approx(1e-4, rel=0.1)


@pytest.mark.parametrize("before", [True, False])
@pytest.mark.parametrize("std", [0.02, None])
def test_tiny_embeddings_are_named_rather_than_the_norm_after_them(
    std: float | None, before: bool
) -> None:
    model = drawn(made(4, std, before), 1e-4)
    if not before:
        nn.init.normal_(model.kinds.weight, std=1e-4)
    found = diagnosed(model)
    assert found.verdict == "exploding"
    names = {one.sites[0].name for one in found.findings}
    wanted = {"wte.weight", "wpe.weight"} | (set() if before else {"kinds.weight"})
    assert names == wanted
    for one in found.findings:
        assert one.evidence["factor"] == pytest.approx((std or 1.0) / 1e-4, rel=0.15)
        times(model, one.sites[0].name, one.evidence["factor"])
    assert diagnosed(model).healthy


@pytest.mark.parametrize("depth", [2, 24])
@pytest.mark.parametrize("std", [0.02, None])
@pytest.mark.parametrize(
    ("size", "scale"),
    [
        (1.0, 1.0),
        (1.0, WIDTH**0.5),
        (WIDTH**-0.5, WIDTH**0.5),
        (1.0, 100.0),
        (0.006, 1.0),
    ],
)
def test_fresh_embeddings_of_all_sizes_are_healthy(
    size: float, scale: float, std: float | None, depth: int
) -> None:
    """They may be far larger than what small branches add: a scale of √width is usual."""
    model = drawn(made(depth, std, scale=scale), size)
    found = diagnosed(model)
    assert found.healthy, found.summary


@pytest.mark.parametrize("large", ["wte", "wpe", "kinds"])
def test_fresh_embeddings_beside_each_other_are_healthy(large: str) -> None:
    """One is drawn as PyTorch draws it, the others smaller."""
    model = made(4, 0.02, before=False)
    nn.init.normal_(model.get_submodule(large).weight)
    found = diagnosed(model)
    assert found.healthy, found.summary


def test_biases_of_branches_are_not_compared_as_a_chain() -> None:
    """PyTorch's module lists its norms after the layers before which they are applied."""
    model = drawn(made(2, 0.02, biases=True), 0.006)
    found = diagnosed(model)
    assert found.healthy, found.summary


def test_a_layer_that_drowns_the_branches_of_a_chain() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.up = nn.LayerNorm(32), nn.Linear(32, 64)
            self.down = nn.Linear(64, 32)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x + self.down(torch.relu(self.up(self.norm(x))))

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(20, 32), *[Branch() for _ in range(6)], nn.LayerNorm(32), nn.Linear(32, 10)
    )
    x, labels = torch.randn(32, 20), torch.randint(0, 10, (32,))
    assert ours.diagnose(model, LOSS, x, labels).healthy
    found = ours.diagnose(times(model, "0.weight", 1e4), LOSS, x, labels)
    assert found.findings[0].sites[0].name == "0"
    assert found.findings[0].evidence["factor"] == pytest.approx(1e-4, rel=0.1)
    assert times(model, "0.weight", 1e-4) is model
    assert ours.diagnose(model, LOSS, x, labels).healthy

"""Judge branches of residual streams: too large, closed, or healthy ones."""

import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.nn import functional as F  # noqa: E402, N812

pytestmark = pytest.mark.usefixtures("one_torch_thread")

WIDTH, WORDS = 48, 30
LOSS = nn.CrossEntropyLoss()
RANDOM = torch.Generator().manual_seed(0)
TOKENS = torch.randint(0, WORDS, (8, 12), generator=RANDOM)
IMAGES = torch.randn(16, 3, 8, 8, generator=RANDOM)
LABELS = torch.randint(0, 10, (16,), generator=RANDOM)


def of_words(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return LOSS(output.flatten(0, 1), target.flatten())


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_attn, self.c_proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (
            one.unflatten(-1, (4, -1)).transpose(1, 2) for one in self.c_attn(x).chunk(3, -1)
        )
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.c_proj(y.transpose(1, 2).flatten(2))


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c_fc, self.c_proj = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c_proj(F.gelu(self.c_fc(x)))


class Block(nn.Module):
    """Normalized "before" the branches (GPT-2), "after" the sums (BERT), or with a LayerScale."""

    def __init__(self, norm: str) -> None:
        super().__init__()
        self.norm = norm
        self.ln_1, self.ln_2 = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attn, self.mlp = Attention(), Wide()
        self.gammas = nn.ParameterList(
            [torch.full((WIDTH,), 1e-4) for _ in range(2)] if norm == "scaled" else []
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.norm == "after":
            x = self.ln_1(x + self.attn(x))
            return self.ln_2(x + self.mlp(x))
        if self.norm == "scaled":
            x = x + self.gammas[0] * self.attn(self.ln_1(x))
            return x + self.gammas[1] * self.mlp(self.ln_2(x))
        x = x + self.attn(self.ln_1(x))
        y = self.mlp(self.ln_2(x))
        y += x
        return y


class Transformer(nn.Module):
    def __init__(self, depth: int, norm: str = "before", std: float | None = 0.02) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(WORDS, WIDTH), nn.Embedding(12, WIDTH)
        self.h = nn.ModuleList(Block(norm) for _ in range(depth))
        self.ln_f, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WORDS, bias=False)
        for name, module in self.named_modules():
            if std is not None and isinstance(module, nn.Linear | nn.Embedding):
                last = name.endswith("c_proj") and norm == "before"
                nn.init.normal_(module.weight, std=std / (2 * depth) ** 0.5 if last else std)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.wte(tokens) + self.wpe(torch.arange(tokens.shape[1]))
        for block in self.h:
            x = block(x)
        return self.head(self.ln_f(x))


class Pictures(nn.Module):
    """A ResNet's block, with a convolution on its skip connection if the width changes."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
        self.down = nn.Conv2d(inputs, outputs, 1, bias=False) if inputs != outputs else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (x if self.down is None else self.down(x)))


def made(depth: int, norm: str = "before", std: float | None = 0.02, seed: int = 0) -> Transformer:
    torch.manual_seed(seed)
    return Transformer(depth, norm, std)


def diagnosed(model: nn.Module) -> vegrad.Diagnosis:
    return ours.diagnose(model, of_words, TOKENS, TOKENS.roll(-1, 1), resamples=0)


def times(model: nn.Module, name: str, factor: float) -> None:
    with torch.no_grad():
        model.get_parameter(name).mul_(factor)


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("depth", [4, 16, 48])
@pytest.mark.parametrize(
    ("norm", "std"),
    [
        ("before", 0.02),
        ("before", None),
        ("after", 0.02),
        ("after", None),
        ("scaled", 0.02),
        ("scaled", None),
    ],
)
def test_fresh_transformers_are_healthy(
    norm: str, std: float | None, depth: int, seed: int
) -> None:
    if depth == 48 and seed:
        pytest.skip("one seed of the deepest is enough")
    found = diagnosed(made(depth, norm, std, seed))
    assert found.healthy, found.summary


@pytest.mark.parametrize("ends", [("c_proj",), ("head",), ("c_proj", "head")])
def test_parts_that_begin_at_zero_are_healthy_with_a_note(ends: tuple[str, ...]) -> None:
    model = made(4)
    for name, module in model.named_modules():
        if name.endswith(ends):
            for parameter in module.parameters():
                nn.init.zeros_(parameter)
    found = diagnosed(model)
    assert found.healthy, found.summary
    assert "diagnose again after a step" in " ".join(str(found).split())


@pytest.mark.parametrize("std", [0.02, None])
@pytest.mark.parametrize("depth", [3, 12])
@pytest.mark.parametrize(
    ("name", "factor"),
    [
        ("h.1.mlp.c_proj.weight", 1e4),
        ("h.1.mlp.c_proj.weight", 1e3),
        ("h.2.attn.c_proj.weight", 1e4),
        ("h.2.attn.c_proj.weight", 1e3),
        ("h.0.mlp.c_fc.weight", 1e4),
        ("h.2.attn.c_attn.weight", 1e4),
        ("h.1.ln_2.weight", 1e4),
    ],
)
def test_a_branch_that_drowns_the_others_is_named_with_its_factor(
    name: str, factor: float, depth: int, std: float | None
) -> None:
    model = made(depth, std=std)
    times(model, name, factor)
    found = diagnosed(model)
    assert len(found.findings) == 1
    finding = found.findings[0]
    assert found.verdict == ("vanishing" if finding.evidence["decades"] < 0 else "exploding")
    assert finding.sites[0].name == name
    assert finding.evidence["factor"] == pytest.approx(1 / factor, rel=0.1)
    assert finding.advice == f"multiply {name} by {finding.evidence['factor']:.3g}."
    assert found.rows[finding.layers[0]]["module"] == name.removesuffix(".weight")
    assert abs(finding.evidence["decades"]) > 1  # what the factor does to some gradient
    times(model, name, finding.evidence["factor"])
    assert diagnosed(model).healthy


@pytest.mark.parametrize("std", [0.02, None])
@pytest.mark.parametrize("name", ["h.1.mlp.c_proj.weight", "h.2.attn.c_proj.weight"])
def test_a_closed_branch_is_named_with_its_factor(name: str, std: float | None) -> None:
    """It is found even if its bias keeps the size that PyTorch gives it."""
    model = made(6, std=std)
    times(model, name, 1e-4)
    found = diagnosed(model)
    assert [finding.kind for finding in found.findings] == ["vanishing"]
    finding = found.findings[0]
    assert finding.sites[0].name == name
    assert finding.evidence["factor"] == pytest.approx(1e4, rel=0.1)
    assert finding.evidence["decades"] < -3
    times(model, name, 1e4)
    assert diagnosed(model).healthy


def test_two_branches_that_drown_the_others_are_both_named() -> None:
    model = made(8)
    for name in ("h.2.mlp.c_proj.weight", "h.5.attn.c_proj.weight"):
        times(model, name, 3e3)
    found = diagnosed(model)
    assert {one.sites[0].name for one in found.findings} == {
        "h.2.mlp.c_proj.weight",
        "h.5.attn.c_proj.weight",
    }


def test_a_branch_is_named_where_sums_are_normalized() -> None:
    model = made(6, "after", None)
    times(model, "h.3.mlp.c_proj.weight", 1e4)
    found = diagnosed(model)
    assert found.findings[0].advice.startswith("multiply h.3.mlp.c_proj.weight by ")


def test_branches_of_pytorchs_transformer_are_found() -> None:
    """Its attention is one function, whose last matrix is the output projection."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(WIDTH, 4, 96, dropout=0.0, batch_first=True, norm_first=True)
    body = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False)
    model = nn.Sequential(nn.Embedding(WORDS, WIDTH), body, nn.Linear(WIDTH, WORDS))
    assert diagnosed(model).healthy
    times(model, "1.layers.3.self_attn.out_proj.weight", 1e4)
    found = diagnosed(model)
    wanted = "multiply 1.layers.3.self_attn.out_proj.weight by 0.0001."
    assert [one.advice for one in found.findings] == [wanted]


@pytest.mark.parametrize(("factor", "kind"), [(1.0, ""), (1e4, "exploding"), (1e-4, "vanishing")])
@pytest.mark.parametrize("place", [2, 4])
def test_branches_of_a_chain_of_convolutions_are_found(
    place: int, factor: float, kind: str
) -> None:
    """The fourth block's skip connection goes through a convolution."""
    torch.manual_seed(0)
    blocks = [Pictures(8, 8), Pictures(8, 8), Pictures(8, 16), Pictures(16, 16)]
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )
    times(model, f"{place}.bn2.weight", factor)
    found = ours.diagnose(model, LOSS, IMAGES, LABELS)
    assert found.flow is not None
    if not kind:
        assert found.healthy
        return
    assert found.verdict == kind
    assert found.findings[0].advice.startswith(f"multiply {place}.bn2.weight by {1 / factor:.3g}")


def test_scaling_by_the_factor_cures_the_model() -> None:
    """The task needs each word itself, which the words before it drown in the faulty model."""
    model = made(3)
    times(model, "h.1.attn.c_proj.weight", 1e4)
    before = model.h[1].attn.c_proj.weight.detach().clone()
    x = torch.randint(0, WORDS, (256, 12), generator=torch.Generator().manual_seed(3))
    found = ours.cure(
        model,
        of_words,
        x,
        (7 * x + 3) % WORDS,
        steps=60,
        optimizer=lambda parameters: torch.optim.Adam(parameters, lr=3e-3),
    )
    assert found.cured
    assert found.after.healthy
    assert [one.name for one in found.attempts if one.accepted] == ["what the diagnosis says"]
    ratio = model.h[1].attn.c_proj.weight.detach() / before
    assert float(ratio.mean()) == pytest.approx(1e-4, rel=0.1)


class Rectified(nn.Module):
    """A block without normalization, which lets the stream grow 1.7× (He weights times `scale`)."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.f = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
        with torch.no_grad():
            for layer in (self.f[0], self.f[2]):
                nn.init.kaiming_normal_(layer.weight).mul_(scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.f(x)


@pytest.mark.parametrize(("blocks", "scale"), [(40, 1.0), (8, 4.0)])
def test_stream_that_grows_is_no_branchs_fault(blocks: int, scale: float) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(*[Rectified(scale) for _ in range(blocks)], nn.Linear(64, 10))
    x = torch.randn(64, 64, generator=torch.Generator().manual_seed(1))
    labels = torch.arange(64) % 10
    told = ours.diagnose(model, LOSS, x, labels, resamples=0)
    assert [finding.cause for finding in told.findings][:1] == ["weight-scale-all"]
    assert all(finding.cause != "branch-scale" for finding in told.findings)
    with torch.no_grad():
        model[3].f[2].weight.mul_(1e-5)
    told = ours.diagnose(model, LOSS, x, labels, resamples=0)
    assert told.findings[0].cause in ("weight-scale", "branch-scale")
    assert told.findings[0].sites[0].name.startswith("3.f.2")

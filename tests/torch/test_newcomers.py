"""Diagnose and cure models as they are used: partly frozen, with adapters, in half precision."""

import copy
from typing import Any

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.checkpoint import checkpoint  # noqa: E402
from vegrad.torch.reading.reading import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()
X = torch.from_numpy(np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32))
LABELS = torch.from_numpy(np.random.default_rng(1).integers(0, 10, 64))


def mlp(depth: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[Any] = []
    for _ in range(depth - 1):
        layers += [nn.Linear(32, 32), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(32, 10))


def diagnosed(model: nn.Module, x: torch.Tensor = X) -> vegrad.Diagnosis:
    return ours.diagnose(model, LOSS, x, LABELS)


def test_a_chain_of_bfloat16_is_judged() -> None:
    found = diagnosed(mlp().bfloat16(), X.bfloat16())
    assert found.healthy
    assert found.config["dtype"] == "bfloat16"
    model = mlp().bfloat16()
    nn.init.constant_(model[2].weight, 3e38)
    assert "with that put right the loss is finite" in diagnosed(model, X.bfloat16()).summary


@pytest.mark.parametrize("frozen", [1, 2, 4])
def test_no_gradient_is_wanted_below_the_lowest_trained_layer(frozen: int) -> None:
    whole, model = diagnosed(mlp()), mlp()
    for layer in model[: 2 * frozen]:
        layer.requires_grad_(False)
    found = diagnosed(model)
    assert found.healthy, found.summary
    assert found.modules == whole.modules[frozen:]
    np.testing.assert_allclose(found.flow.delta_log2, whole.flow.delta_log2[frozen:], atol=1e-4)


@pytest.mark.parametrize("trained", ["bias", "0.bias", "0.weight", "6.bias"])
def test_the_gradient_is_followed_to_whatever_is_trained(trained: str) -> None:
    whole, model = diagnosed(mlp()), mlp()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.endswith(trained))
    found = diagnosed(model)
    assert found.healthy, found.summary
    from_here = 0 if "6" not in trained else 3
    assert found.modules == whole.modules[from_here:]
    np.testing.assert_allclose(found.flow.delta_log2, whole.flow.delta_log2[from_here:], atol=1e-4)


class Adapted(nn.Module):
    """A frozen layer with an adapter of low rank beside it, which begins at 0."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        self.down = nn.Linear(layer.in_features, 4, bias=False)
        self.up = nn.Linear(4, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x) + self.up(self.down(x))


class Classifier(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.out = nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.encoder(x.reshape(-1, 1, 32) * torch.linspace(-1, 1, 5)[:, None])
        return self.out(x.mean(1))


def test_adapters_that_begin_at_zero_are_healthy() -> None:
    model = mlp()
    for place in (0, 2, 4, 6):
        model[place] = Adapted(model[place])
    found = diagnosed(model)
    assert found.healthy
    assert found.summary.startswith("healthy: 0.up.weight and others are 0")
    model = Classifier().requires_grad_(False)
    model.out = nn.Sequential(Adapted(model.out), nn.ReLU(), Adapted(nn.Linear(10, 10)))
    found = diagnosed(model)
    assert found.healthy
    assert found.summary.startswith("healthy: ")
    assert "←" not in str(found)
    assert "diagnose again after a step" in " ".join(str(found).split())


def test_a_head_that_begins_at_zero_is_healthy_and_a_layer_amid_others_is_not() -> None:
    model = mlp()
    nn.init.zeros_(model[-1].weight)
    found = diagnosed(model)
    assert found.healthy
    assert found.summary.startswith("healthy: 8.weight is 0")
    model = mlp()
    nn.init.zeros_(model[2].weight)
    assert diagnosed(model).verdict == "vanishing"


def test_soft_labels_have_a_goal_for_the_loss() -> None:
    shares = torch.full((64, 10), 0.01)
    shares[torch.arange(64), LABELS] = 0.91
    found = ours.cure(mlp(3), LOSS, X, shares, in_place=False)
    guess = float(torch.special.entr(shares.mean(0)).sum())
    least = float(torch.special.entr(shares[0]).sum())
    assert found.goal.kind == "mse"
    assert found.goal.wanted == pytest.approx((guess + least) / 2, rel=1e-5)
    assert found.reached
    assert ours.cure(mlp(3), LOSS, X, shares, goal=1.5, in_place=False).goal.wanted == 1.5


def test_no_lowest_loss_is_known_for_targets_of_another_shape() -> None:
    """A generator's target says "real" in every row, though there is much to learn."""
    judge = mlp(2).requires_grad_(False)

    def loss(made: Any, real: Any) -> Any:
        return nn.functional.binary_cross_entropy_with_logits(judge(made)[:, :1], real)

    torch.manual_seed(1)
    generator = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32))
    found = ours.cure(generator, loss, X, torch.ones(64, 1), in_place=False)
    assert found.reached, str(found)


def test_wrong_arguments_are_refused() -> None:
    model = mlp(2)
    for wrong, error, words in (
        ({"seed": "a"}, TypeError, "seed must be an integer, not str"),
        ({"seed": -1}, ValueError, "seed must be at least 0, not -1"),
        ({"history": [1]}, TypeError, "history must be a vegrad.History, not list"),
    ):
        with pytest.raises(error, match=words):
            ours.diagnose(model, LOSS, X, LABELS, **wrong)
    for wrong, words in (
        (torch.optim.SGD(model.parameters(), 0.1), "not be a SGD"),
        (lambda parameters: 3, "not a int"),
        (torch.optim.LBFGS, "not LBFGS"),
    ):
        with pytest.raises(TypeError, match=words):
            ours.cure(model, LOSS, X, LABELS, optimizer=wrong)
    with pytest.raises(TypeError, match="seed must be an integer"):
        ours.cure(model, LOSS, X, LABELS, seed=None)
    for loss, words in (
        (nn.CrossEntropyLoss(reduction="none"), r"not one of shape \(64,\)"),
        (lambda output, target: output.detach().mean(), "depends on the model's parameters"),
        (lambda output, target: (output.mean(), 1), "one element, not "),
    ):
        with pytest.raises(ValueError, match=words):
            ours.diagnose(model, loss, X, LABELS)
    with pytest.raises(ValueError, match=r"at least one row, not the shape \(0, 32\)"):
        ours.diagnose(model, LOSS, X[:0], LABELS[:0])
    assert isinstance(diagnosed(model), vegrad.Diagnosis)


class Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(x).relu().detach()).relu())


def test_a_layer_cut_off_by_detach_is_named() -> None:
    finding = diagnosed(Detached()).findings[0]
    assert (finding.cause, finding.sites[0].name) == ("detached", "a.weight")
    assert finding.message.startswith("no gradient comes back to a.weight and a.bias: a detach")
    assert finding.advice.startswith("leave out a detach()")


class Experts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.none, self.out = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.cat([self.one(x), self.none(x[:0])]).relu())


@pytest.mark.filterwarnings("error")
def test_layers_may_get_no_rows() -> None:
    assert diagnosed(Experts()).loss > 0


def test_inference_mode_around_it_changes_nothing() -> None:
    model = mlp(3)
    with torch.inference_mode():
        assert diagnosed(model).healthy
        assert ours.cure(model, LOSS, X, LABELS, steps=20).before.healthy


def test_weights_in_autocasts_cache_are_not_used_after_they_have_changed() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    with torch.autocast("cpu", torch.bfloat16):
        found = ours.cure(model, LOSS, X, LABELS, goal=0.9, in_place=False)
        assert found.reached
        chain = read(model, LOSS, X, LABELS, resamples=1, seed=0).chain
        assert (chain.draw().gain_log2_std > 0).all()


def test_a_model_that_keeps_a_tensor_of_a_graph_is_cured_too() -> None:
    model = mlp(2)
    model.last = model(X)
    with pytest.raises(RuntimeError):
        copy.deepcopy(model)
    assert ours.cure(model, LOSS, X, LABELS).before.healthy


def test_lsuv_leaves_the_weights_where_the_model_cannot_run() -> None:
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(16, 10))
    before = [one.detach().clone() for one in model.parameters()]
    with pytest.raises(RuntimeError):
        ours.lsuv_(model, X)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Checkpointed(nn.Module):
    def __init__(self, on: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(32, 32), nn.ReLU()) for _ in range(4)])
        self.out, self.on = nn.Linear(32, 10), on

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.on else block(x)
        return self.out(x)


def test_blocks_that_are_run_again_on_the_way_back() -> None:
    plain, found = diagnosed(Checkpointed(False)), diagnosed(Checkpointed(True))
    assert found.modules == plain.modules
    np.testing.assert_allclose(found.flow.delta_log2, plain.flow.delta_log2, atol=1e-4)
    np.testing.assert_allclose(found.flow.saturated, plain.flow.saturated)
    assert ours.cure(Checkpointed(True), LOSS, X, LABELS, steps=20).before.healthy


class Centred(nn.Module):
    """A loss with parameters and buffers of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.norm = nn.Linear(10, 10), nn.BatchNorm1d(10)

    def forward(self, output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
        return LOSS(self.norm(self.scale(output)), target)


def test_the_loss_is_left_as_it_was() -> None:
    loss = Centred()
    before = {name: one.clone() for name, one in loss.state_dict().items()}
    ours.diagnose(mlp(), loss, X, LABELS)
    ours.cure(mlp(), loss, X, LABELS, steps=20)
    assert all(torch.equal(before[name], one) for name, one in loss.state_dict().items())
    assert all(parameter.grad is None for parameter in loss.parameters())


def test_models_with_sparse_gradients_are_trained() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.EmbeddingBag(20, 16, sparse=True), nn.Linear(16, 10))
    words = torch.randint(0, 20, (64, 5))
    found = ours.cure(
        model, LOSS, words, LABELS, optimizer=lambda p: torch.optim.SGD(p, 0.1), in_place=False
    )
    assert found.before.healthy
    assert found.cost > 0


@pytest.mark.parametrize("make", [nn.ReLU6, lambda: nn.Hardtanh(0.0, 1e3)])
def test_a_relu_with_an_upper_end_has_one_flat_side(make: Any) -> None:
    torch.manual_seed(0)
    layers = [(nn.Linear(32, 32), nn.BatchNorm1d(32), make()) for _ in range(4)]
    found = diagnosed(nn.Sequential(*sum(layers, ()), nn.Linear(32, 10)))
    assert found.healthy, found.summary
    assert found.config["activation"] == "relu6"
    bounded = nn.Sequential(*mlp())
    for place in (1, 3, 5, 7):
        bounded[place] = nn.Hardtanh()
    assert diagnosed(bounded).config["activation"] == "hard_tanh"


def test_an_activation_with_a_weight_for_each_unit() -> None:
    torch.manual_seed(0)
    layers = [(nn.Linear(32, 32), nn.PReLU(32)) for _ in range(3)]
    found = diagnosed(nn.Sequential(*sum(layers, ()), nn.Linear(32, 10)))
    assert found.healthy, found.summary
    assert found.config["activation"] == "prelu"


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.out = nn.Linear(32, 32), nn.Linear(32, 10)
        self.filter = nn.Parameter(torch.randn(17, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(torch.fft.irfft(torch.fft.rfft(self.one(x)) * self.filter, 32))


@pytest.mark.filterwarnings("error")
def test_complex_parameters_are_measured() -> None:
    model = Spectrum()
    assert diagnosed(model).healthy
    assert ours.cure(model, LOSS, X, LABELS, steps=20, in_place=False).before.healthy
    monitor, optimizer = ours.Monitor(model), torch.optim.SGD(model.parameters(), 0.1)
    for _ in range(2):
        LOSS(model(X), LABELS).backward()
        optimizer.step()
    norm = float(torch.view_as_real(model.filter.grad).norm())
    place = monitor.parameters.index("filter")
    assert monitor.history[-1].gradient_norms[place] == pytest.approx(norm, rel=1e-5)


class WithLoss(nn.Module):
    """A model that works out its own loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body = mlp(2)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": LOSS(self.body(x), labels)}


class Picks(nn.Module):
    """A loss that is a module and takes the output alone."""

    def forward(self, output: dict[str, torch.Tensor]) -> torch.Tensor:
        return output["loss"]


@pytest.mark.parametrize(
    "loss", [lambda output: output["loss"], lambda output, _: output["loss"], Picks()]
)
def test_a_loss_may_take_the_output_alone(loss: Any) -> None:
    assert ours.diagnose(WithLoss(), loss, {"x": X, "labels": LABELS}).healthy


def test_a_loss_that_takes_the_output_alone_has_no_use_for_a_target() -> None:
    with pytest.raises(TypeError, match="takes 1 positional argument but 2 were given"):
        ours.diagnose(WithLoss(), lambda output: output["loss"], (X, LABELS), LABELS)


@pytest.mark.parametrize("call", [ours.diagnose, ours.cure])
@pytest.mark.parametrize(
    ("x", "target", "message"),
    [
        (X.numpy(), LABELS, r"x must be a torch.Tensor, not a numpy.ndarray: .*as_tensor\(x\)"),
        (X.double().numpy(), LABELS, r"as_tensor\(x, dtype=torch.float32\)"),
        ((X.numpy(),), LABELS, r"x\[0\] must be a torch.Tensor, not a numpy.ndarray"),
        (X, LABELS.numpy(), r"target must be a torch.Tensor, not a numpy.ndarray"),
    ],
)
def test_numpy_arrays_are_refused_in_plain_words(
    call: Any, x: Any, target: Any, message: str
) -> None:
    with pytest.raises(TypeError, match=message):
        call(mlp(2), LOSS, x, target)


def test_a_model_and_a_loss_that_take_numpy_arrays_get_them() -> None:
    class Takes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = mlp(2)

        def forward(self, x: np.ndarray) -> torch.Tensor:
            return self.body(torch.from_numpy(x))

    def loss(output: torch.Tensor, target: np.ndarray) -> torch.Tensor:
        return LOSS(output, torch.from_numpy(target))

    assert ours.diagnose(Takes(), loss, X.numpy(), LABELS.numpy()).verdict == "healthy"

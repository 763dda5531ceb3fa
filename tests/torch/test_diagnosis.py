"""Compare vegrad.torch.diagnose with vegrad.diagnose, and try it on models of other kinds."""

import copy
import gc
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

ACTIVATIONS = {
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "softplus": nn.Softplus,
    "hard_tanh": nn.Hardtanh,
}
NORMS = {None: nn.Identity, "layer": nn.LayerNorm, "rms": lambda n: nn.RMSNorm(n, eps=1e-5)}
X = np.random.default_rng(0).standard_normal((64, 32)).astype(np.float32)
LABELS = np.random.default_rng(1).integers(0, 10, 64)
LOSS = nn.CrossEntropyLoss()


class Block(nn.Module):
    def __init__(
        self, linear: nn.Module, norm: nn.Module, activation: nn.Module, residual: bool
    ) -> None:
        super().__init__()
        self.linear, self.norm, self.activation = linear, norm, activation
        self.residual = residual

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.activation(self.norm(self.linear(x)))
        return x + out if self.residual and out.shape == x.shape else out


def both(width: int = 32, depth: int = 12, **options: Any) -> tuple[vegrad.MLP, nn.Module]:
    """Return a vegrad.MLP and a torch model with the same weights."""
    sizes = [32, *[width] * (depth - 1), 10]
    mlp = vegrad.MLP(sizes, loss="cross_entropy", seed=3, **options)
    blocks: list[Any] = []
    dtype = torch.from_numpy(np.zeros(0, mlp.config["dtype"])).dtype
    for layer in range(depth):
        linear = nn.Linear(sizes[layer], sizes[layer + 1], dtype=dtype)
        activation = ACTIVATIONS[mlp.config["activation"]]()
        norm = NORMS[mlp.config["norm"]](sizes[layer + 1])
        blocks.append(Block(linear, norm, activation, mlp.config["residual"]))
        if layer == depth - 1:
            blocks[-1] = linear
    model = nn.Sequential(*blocks).to(dtype)
    write(mlp, model)
    return mlp, model


def write(mlp: vegrad.MLP, model: nn.Module) -> None:
    """Copy the network's weights into the model."""
    linears = [one for one in model.modules() if isinstance(one, nn.Linear)]
    with torch.no_grad():
        for layer, linear in enumerate(linears):
            for part in ("weight", "bias"):
                value = np.array(mlp.parameters[f"layers.{layer}.{part}"])
                getattr(linear, part).copy_(torch.from_numpy(value))


def compare(mlp: vegrad.MLP, model: nn.Module, tolerance: float = 1e-3) -> vegrad.Diagnosis:
    wanted = vegrad.diagnose(mlp, X, LABELS)
    x = torch.from_numpy(X).to(next(model.parameters()).dtype)
    found = ours.diagnose(model, LOSS, x, torch.from_numpy(LABELS))
    assert found.verdict == wanted.verdict
    assert [(f.kind, f.severity, f.layers, f.blame) for f in found.findings] == [
        (f.kind, f.severity, f.layers, f.blame) for f in wanted.findings
    ]
    assert found.flow is not None
    assert wanted.flow is not None
    for name in vars(wanted.flow):
        got, right = getattr(found.flow, name), getattr(wanted.flow, name)
        np.testing.assert_allclose(got, right, rtol=tolerance, atol=tolerance, err_msg=name)
    assert found.loss == pytest.approx(wanted.loss, rel=1e-5)
    assert (found.trend is None) == (wanted.trend is None)
    if found.trend is not None and wanted.trend is not None:
        for name in ("gain", "low", "high", "weights", "activation"):
            value = getattr(wanted.trend, name)
            assert getattr(found.trend, name) == pytest.approx(value, abs=tolerance)
    assert found.underflowed == wanted.underflowed
    return found


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_a_copy_of_a_network_is_judged_as_the_network(activation: str) -> None:
    init = "he_normal" if activation.endswith("relu") else "lecun_normal"
    mlp, model = both(activation=activation, init=init)
    found = compare(mlp, model)
    expected = vegrad.diagnose(mlp, X, LABELS).expected
    assert found.config["init"] == init
    assert expected is not None
    np.testing.assert_allclose(found.expected.gain_log2, expected.gain_log2, atol=1e-6)
    np.testing.assert_allclose(found.expected.gain_log2_std, expected.gain_log2_std, atol=1e-6)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_normalization_and_skip_connections(norm: Any, residual: bool, dtype: str) -> None:
    mlp, model = both(activation="tanh", norm=norm, residual=residual, dtype=dtype)
    found = compare(mlp, model)
    assert found.config["norm"] == norm
    assert found.config["residual"] == residual
    assert found.expected is not None


@pytest.mark.parametrize(
    ("activation", "init", "depth", "verdict"),
    [
        ("sigmoid", "glorot_uniform", 100, "vanishing"),  # 1e-62: float32 has it as 0
        ("sigmoid", "glorot_uniform", 600, "vanishing"),  # 1e-375: so has float64
        ("relu", "orthogonal", 40, "vanishing"),
    ],
)
def test_sizes_are_right_beyond_the_dtype(
    activation: str, init: str, depth: int, verdict: str
) -> None:
    mlp, model = both(depth=depth, activation=activation, init=init)
    wanted = vegrad.diagnose(mlp, X, LABELS, resamples=0)
    found = ours.diagnose(model, LOSS, torch.from_numpy(X), torch.from_numpy(LABELS), resamples=0)
    assert found.verdict == wanted.verdict == verdict
    assert wanted.flow is not None
    np.testing.assert_allclose(found.flow.gain_log2, wanted.flow.gain_log2, atol=1e-3)
    np.testing.assert_allclose(found.flow.gradient_log2, wanted.flow.gradient_log2, rtol=1e-3)
    if depth > 40:  # PyTorch keeps subnormals, vegrad does not: a layer more or less
        assert abs(len(found.underflowed) - len(wanted.underflowed)) < 14
        assert found.underflowed[0] == 0


def test_a_broken_layer_is_named_with_its_factor() -> None:
    mlp, model = both(activation="tanh", init="lecun_normal")
    mlp.parameters["layers.6.weight"][...] *= 1e-3
    write(mlp, model)
    found = compare(mlp, model)
    assert found.findings[0].advice == "multiply 6.linear.weight by 1.04e+03."
    assert "6.linear" in str(found)
    assert all(len(line) <= 80 for line in str(found).splitlines())
    assert len(str(found).splitlines()) < 30


@pytest.mark.parametrize(
    "options",
    [
        {"activation": "sigmoid", "depth": 30},
        {"activation": "gelu", "depth": 60},
        {"activation": "tanh", "init": "normal", "sigma_w": 3.0},
        {"activation": "relu", "init": "normal", "sigma_w": 5.0, "norm": "layer", "depth": 60},
        {"activation": "relu", "init": "normal", "sigma_w": 4.0, "residual": True},
    ],
)
def test_advice_uses_pytorchs_names(options: dict[str, Any]) -> None:
    _, model = both(**options)
    found = ours.diagnose(model, LOSS, torch.from_numpy(X), torch.from_numpy(LABELS))
    for finding in found.findings:
        assert not any(
            word in finding.advice for word in ('init="', 'activation="', 'norm="', "residual=")
        )


def test_pytorchs_default_initialization_is_recognized() -> None:
    torch.manual_seed(0)
    layers = [nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(10)]
    model = nn.Sequential(*layers, nn.Linear(32, 10))
    found = ours.diagnose(model, LOSS, torch.from_numpy(X), torch.from_numpy(LABELS))
    assert found.config["init"] == "PyTorch's default"
    assert found.expected is not None
    assert np.abs(found.expected.deviations(found.flow)).max() < 5


def images() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(8, 16, 3, stride=2),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Flatten(),
        nn.Linear(144, 10),
    )


def test_convolutions_are_a_chain_too() -> None:
    model = images()
    with torch.no_grad():
        model[3].weight *= 1e-4
    x, target = torch.randn(16, 1, 16, 16), torch.from_numpy(LABELS[:16])
    found = ours.diagnose(model, LOSS, x, target)
    assert found.verdict == "vanishing"
    assert found.findings[0].advice.startswith("multiply 3.weight by ")
    factor = float(found.findings[0].advice.split()[-1].rstrip("."))
    with torch.no_grad():
        model[3].weight *= factor
    assert ours.diagnose(model, LOSS, x, target).healthy


def test_the_model_is_left_as_it_was() -> None:
    model = images()
    x, target = torch.randn(16, 1, 16, 16), torch.from_numpy(LABELS[:16])
    LOSS(model(x), target).backward()
    monitor = ours.Monitor(model)
    before = copy.deepcopy(model.state_dict())
    grads = [one.grad for one in model.parameters()]
    values = [one.clone() for one in grads]
    random = torch.random.get_rng_state()
    ours.diagnose(model, LOSS, x, target)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    for one, grad, value in zip(model.parameters(), grads, values, strict=True):
        assert one.grad is grad
        assert torch.equal(grad, value)
    assert model.training
    assert sum(monitor._counts) == 0


def test_a_transformer_is_judged_by_modules_and_gradients() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, dropout=0.0)
    model = nn.Sequential(nn.TransformerEncoder(layer, 3), nn.Flatten(), nn.Linear(320, 10))
    x, target = torch.randn(8, 10, 32), torch.from_numpy(LABELS[:8])
    assert ours.diagnose(model, LOSS, x, target).healthy
    with torch.no_grad():
        model[0].layers[1].linear2.weight *= 1e5
    found = ours.diagnose(model, LOSS, x, target)
    assert not found.healthy
    assert any("layers.1.linear2" in finding.advice for finding in found.findings)
    assert found.measurement is not None
    assert all(one.grad is None for one in model.parameters())


class Numbered(nn.Module):
    """A model whose modules layers.1, layers.2, ... are not layers 1, 2, ... of the chain."""

    def __init__(self) -> None:
        super().__init__()
        blocks = [
            nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
            for _ in range(8)
        ]
        self.into, self.layers = nn.Conv2d(1, 8, 3, padding=1), nn.Sequential(*blocks)
        self.out = nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layers(self.into(x)).mean((2, 3)))


def test_the_weights_that_are_off_are_named_and_not_their_normalization() -> None:
    torch.manual_seed(0)
    model = Numbered()
    with torch.no_grad():
        model.layers[3][0].weight *= 1e-4
    x, target = torch.randn(16, 1, 8, 8), torch.from_numpy(LABELS[:16])
    found = ours.diagnose(model, LOSS, x, target)
    assert found.findings[0].advice.startswith("multiply layers.3.0.weight by ")
    assert len(found.findings) == 1


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.cells = nn.LSTM(16, 16, 2, batch_first=True)
        self.out = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.cells(x)[0][:, -1])


def test_an_lstm_is_judged() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 20, 16)
    found = ours.diagnose(Recurrent(), LOSS, x, torch.from_numpy(LABELS[:8]))
    assert found.healthy
    assert "lstm" in str(found)
    torch.manual_seed(0)
    model = Recurrent()
    with torch.no_grad():
        model.cells.weight_ih_l1 *= 1e-5
    found = ours.diagnose(model, LOSS, x, torch.from_numpy(LABELS[:8]))
    assert found.verdict == "vanishing"
    assert "cells.weight_ih_l1" in found.findings[0].advice


def test_a_fused_network_is_a_chain() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 10)
    )
    x, target = torch.from_numpy(X), torch.from_numpy(LABELS)
    wanted = ours.diagnose(copy.deepcopy(model), LOSS, x, target)
    found = ours.diagnose(ours.fuse(model), LOSS, x, target)
    assert found.flow is not None
    assert str(found) == str(wanted)


def test_data_that_are_not_finite_are_a_finding() -> None:
    _, model = both()
    x = torch.from_numpy(X.copy())
    x[3, 4] = float("nan")
    found = ours.diagnose(model, LOSS, x, torch.from_numpy(LABELS))
    assert found.verdict == "nonfinite"
    assert "x[3, 4] is nan" in str(found)


def test_arguments_are_checked() -> None:
    _, model = both()
    x, target = torch.from_numpy(X), torch.from_numpy(LABELS)
    with pytest.raises(TypeError, match="model must be"):
        ours.diagnose(X, LOSS, x, target)
    with pytest.raises(TypeError, match="loss_fn must be"):
        ours.diagnose(model, 3, x, target)
    with pytest.raises(TypeError, match=r"is a class: write nn\.CrossEntropyLoss\(\), which"):
        ours.diagnose(model, torch.nn.CrossEntropyLoss, x, target)
    with pytest.raises(ValueError, match="one element"):
        ours.diagnose(model, lambda out, _: out, x, target)
    with pytest.raises(ValueError, match="requires a gradient"):
        ours.diagnose(model.requires_grad_(False), LOSS, x, target)


def test_findings_of_a_history_are_added() -> None:
    mlp, model = both(activation="tanh")
    optimizer = vegrad.SGD(50.0)
    history = mlp.fit(
        X,
        LABELS,
        optimizer=optimizer,
        epochs=20,
        batch_size=64,
        progress=False,
        gauge_every=1,
        seed=0,
        on_finding=None,
    )
    x, target = torch.from_numpy(X), torch.from_numpy(LABELS)
    found = ours.diagnose(model, LOSS, x, target, history=history)
    kinds = {finding.kind for finding in history.findings}
    assert kinds
    assert kinds <= {finding.kind for finding in found.findings}


@pytest.mark.parametrize(("skips", "size"), [(False, 1.0), (True, 1.0), (False, 0.05)])
def test_no_tensor_of_the_passes_stays_alive(skips: bool, size: float) -> None:
    passes: list[Any] = []

    def wrap(layer: nn.Module, x: torch.Tensor) -> Any:
        out = torch.relu(layer(x))
        passes.append(weakref.ref(out))
        return x + out if skips else out

    # Behind a batch norm no row goes its own way, so that batches drawn again are run where a
    # finding hangs on them.
    model = nn.Sequential(*(nn.Linear(32, 32) for _ in range(4)), nn.Linear(32, 10))
    model.insert(0, nn.BatchNorm1d(32))
    for layer in model[1:5]:
        layer.weight.data *= size
        layer.forward = partial(wrap, partial(nn.Linear.forward, layer))
    found = ours.diagnose(model, LOSS, torch.from_numpy(X), torch.from_numpy(LABELS))
    gc.collect()
    assert found.healthy == (size == 1.0)
    assert len(passes) == 4 if found.healthy else len(passes) >= 4 * 5
    assert [one for one in passes if one() is not None] == []


def test_one_advice_for_all_dead_layers() -> None:
    torch.manual_seed(0)
    model = nn.Sequential()
    for _ in range(4):
        model.extend([nn.Linear(16, 16), nn.ReLU()])
        nn.init.constant_(model[-2].bias, -3)
    model.append(nn.Linear(16, 3))
    x, labels = torch.randn(64, 16), torch.arange(64) % 3
    told = ours.diagnose(model, nn.functional.cross_entropy, x, labels, resamples=0)
    assert told.findings[0].kind == "dead"
    assert told.apply(model) == ("0.bias", "2.bias", "4.bias", "6.bias")
    again = ours.diagnose(model, nn.functional.cross_entropy, x, labels, resamples=0)
    assert again.verdict != "dead"


def test_a_model_that_gives_its_loss_needs_no_target() -> None:
    class Own(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 3)

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"loss": nn.functional.cross_entropy(self.map(x), labels)}

    batch = torch.randn(8, 4), torch.arange(8) % 3
    assert ours.diagnose(Own(), lambda output, _: output["loss"], batch).healthy


def test_what_is_no_chain_is_drawn_by_its_modules(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    model = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    told = ours.diagnose(model, nn.functional.mse_loss, torch.randn(4, 3, 4), torch.randn(4, 3, 4))
    (axes,) = told.plot(tmp_path / "modules.png").axes
    assert [line.get_label() for line in axes.get_lines()][:2] == [
        "at the weights, ‖∂loss/∂W‖",
        "at the module's output, ‖δ‖",
    ]
    assert (tmp_path / "modules.png").stat().st_size > 10_000

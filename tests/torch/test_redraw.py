"""Check what is expected of models that theory has no formulas for."""

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import vegrad

torch = pytest.importorskip("torch")
import vegrad.torch as ours  # noqa: E402
from torch import nn  # noqa: E402
from vegrad.torch.reading import redraw  # noqa: E402
from vegrad.torch.reading.reading import read  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_torch_thread")

LOSS = nn.CrossEntropyLoss()
WIDTH = 128
RANDOM = torch.Generator().manual_seed(0)
ROWS = torch.randn(64, WIDTH, generator=RANDOM)
LABELS = torch.randint(0, 10, (64,), generator=RANDOM)
IMAGES = torch.randn(16, 3, 12, 12, generator=RANDOM)


class Branch(nn.Module):
    """A block with its normalization before the branch or after the sum."""

    def __init__(self, before: bool) -> None:
        super().__init__()
        self.before, self.norm = before, nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.before:
            return x + self.down(torch.relu(self.up(self.norm(x))))
        return self.norm(x + self.down(torch.relu(self.up(x))))


class Pictures(nn.Module):
    """A block of two convolutions with BatchNorm and a skip connection."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.two = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norms = nn.ModuleList([nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.relu(self.norms[0](self.one(x)))
        return torch.relu(x + self.norms[1](self.two(y)))


def blocks(before: bool) -> nn.Sequential:
    return nn.Sequential(*[Branch(before) for _ in range(5)], nn.Linear(WIDTH, 10))


def normalized(depth: int = 10) -> nn.Sequential:
    layers = [
        nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.BatchNorm1d(WIDTH), nn.ReLU())
        for _ in range(depth)
    ]
    return nn.Sequential(*layers, nn.Linear(WIDTH, 10))


def convolutions(padding_mode: str = "zeros", depth: int = 7) -> nn.Sequential:
    layers = [
        nn.Conv2d(32 if n else 3, 32, 3, padding=1, padding_mode=padding_mode) for n in range(depth)
    ]
    for layer in layers:
        nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        nn.init.zeros_(layer.bias)
    hidden = [one for layer in layers for one in (layer, nn.ReLU())]
    head = nn.Linear(32 * 144, 10)
    nn.init.normal_(head.weight, std=(32 * 144) ** -0.5)
    nn.init.zeros_(head.bias)
    return nn.Sequential(*hidden, nn.Flatten(), head)


def pooled() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(3, 32, 3, padding=1),
        nn.ReLU(),
        Pictures(32),
        nn.MaxPool2d(2),
        Pictures(32),
        nn.Conv2d(32, 64, 3, stride=2),
        nn.GroupNorm(8, 64),
        nn.SiLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )


MODELS = {
    "norm before": lambda: blocks(True),
    "norm after": lambda: blocks(False),
    "batch norm": normalized,
    "convolutions": convolutions,
    "pooled": pooled,
}


def diagnosed(make: Any, seed: int, **options: Any) -> vegrad.Diagnosis:
    torch.manual_seed(seed)
    model = make()
    x = ROWS if isinstance(model[0], Branch) or type(model[0]) is nn.Sequential else IMAGES
    options = {"resamples": 1, "seed": seed, **options}
    found = ours.diagnose(model, LOSS, x, LABELS[: len(x)], **options)
    return found if found.findings else expecting(found, model, x, **options)


def expecting(
    found: vegrad.Diagnosis, model: nn.Module, x: torch.Tensor, **options: Any
) -> vegrad.Diagnosis:
    """Add what is expected of a healthy model, for which no weights are drawn."""
    chain = read(model, LOSS, x, LABELS[: len(x)], **{"resamples": 4, "seed": 0, **options}).chain
    draw = None if chain is None else chain.draw
    return found if draw is None else replace(found, expected_flow=draw())


@pytest.mark.parametrize("name", MODELS)
def test_measured_gains_lie_within_two_spreads(name: str) -> None:
    """The models' own weights are a further drawing, so 19 of 20 gains must lie within."""
    found = [diagnosed(MODELS[name], seed) for seed in range(8)]
    assert not any(one.drawn for one in found)
    away = np.array([one.expected.deviations(one.flow) for one in found])
    assert np.mean(np.abs(away) < 2) >= 0.88
    assert np.abs(away).max() < 8
    assert np.median([one.expected.gain_log2_std for one in found]) < 0.15
    sizes = np.array(
        [
            np.log2(one.flow.activation_rms / one.expected.activation_rms)
            / one.expected.activation_rms_std
            for one in found
        ]
    )
    assert np.mean(np.abs(sizes) < 2) >= 0.85


def test_batch_normalization_explodes_as_it_is_known_to() -> None:
    """Gradients grow by √(π/(π - 1)) a layer of ReLU (Yang et al. 2019, arXiv:1902.08129)."""
    found = diagnosed(lambda: normalized(14), 0)
    middle = 2.0 ** found.expected.gain_log2[2:-1]
    assert np.median(middle) == pytest.approx(np.sqrt(np.pi / (np.pi - 1)), rel=0.03)


def test_a_convolution_without_borders_keeps_gradients() -> None:
    """With circular padding no tap is missing, so He's variance makes a gain of exactly 1."""
    found = diagnosed(lambda: convolutions("circular"), 0)
    assert np.median(2.0 ** found.expected.gain_log2[:-1]) == pytest.approx(1.0, rel=0.04)


def test_a_broken_layer_stands_out() -> None:
    def broken() -> nn.Sequential:
        model = convolutions()
        with torch.no_grad():
            model[6].weight *= 1e-3
        return model

    found, right = diagnosed(broken, 3), diagnosed(convolutions, 3)
    np.testing.assert_allclose(found.expected.gain_log2, right.expected.gain_log2, atol=1e-6)
    away = np.abs(found.expected.deviations(found.flow))
    assert np.argmax(away) == 2
    assert away[2] > 20
    assert "weights drawn anew give" in found.findings[0].message
    assert "theory" not in str(found)
    plain = found.to_dict()
    assert plain["drawn"]
    assert plain["modules"][3] == "6"
    assert plain["expected"]["gain_log2"][2] == pytest.approx(found.expected.gain_log2[2])


def test_weights_that_are_zero_stay_zero() -> None:
    def zeros() -> nn.Sequential:
        model = blocks(True)
        for block in model[:-1]:
            nn.init.zeros_(block.down.weight)
            nn.init.zeros_(block.down.bias)
        return model

    found = diagnosed(zeros, 0)
    assert found.expected is not None
    known = np.isfinite(found.flow.gain_log2)
    np.testing.assert_allclose(
        found.expected.gain_log2[known], found.flow.gain_log2[known], atol=0.2
    )


def test_nothing_is_expected_if_weights_cannot_be_drawn_or_no_passes_are_allowed() -> None:
    assert diagnosed(normalized, 0, resamples=0).expected is None
    torch.manual_seed(0)
    model = normalized(4)
    nn.utils.parametrizations.weight_norm(model[1][0])
    assert ours.diagnose(model, LOSS, ROWS, LABELS).expected is None


def test_weights_drawn_anew_are_not_those_of_the_same_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user who seeds PyTorch with 0 too must not get the same model among the eight."""
    torch.manual_seed(0)
    model, drawn = normalized(4), []
    draw = redraw._draw

    def noted(parameters: dict[str, torch.Tensor], name: str, *rest: Any) -> None:
        draw(parameters, name, *rest)
        drawn.append((name, parameters[name].detach().clone()))

    monkeypatch.setattr(redraw, "_draw", noted)
    chain = read(model, LOSS, ROWS, LABELS, resamples=1, seed=0).chain
    assert chain is not None
    assert chain.draw is not None
    assert chain.draw() is not None
    assert len(drawn) == 5 * redraw.DRAWS
    assert not any(torch.equal(one, model.get_parameter(name)) for name, one in drawn)


def test_the_model_is_left_as_it_was() -> None:
    torch.manual_seed(0)
    model = pooled()
    before, random = copy.deepcopy(model.state_dict()), torch.random.get_rng_state()
    first = expecting(ours.diagnose(model, LOSS, IMAGES, LABELS[:16]), model, IMAGES)
    assert torch.equal(torch.random.get_rng_state(), random)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    again = expecting(ours.diagnose(model, LOSS, IMAGES, LABELS[:16]), model, IMAGES)
    np.testing.assert_array_equal(first.expected.gain_log2, again.expected.gain_log2)


def test_a_normalization_is_blamed_where_new_weights_would_do_no_better() -> None:
    def squeezed() -> nn.Sequential:
        layers = [nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh()) for _ in range(12)]
        layers[5].insert(1, nn.BatchNorm1d(WIDTH))
        for layer in layers:
            nn.init.normal_(layer[0].weight, std=WIDTH**-0.5)
            nn.init.zeros_(layer[0].bias)
        nn.init.constant_(layers[5][1].weight, 1e-3)
        return nn.Sequential(*layers, nn.Linear(WIDTH, 10))

    found = diagnosed(squeezed, 0)
    finding = found.findings[0]
    assert finding.kind == "vanishing"
    assert finding.cause == "normalization-weight"
    assert finding.sites[0].name == "5.1.weight"
    assert finding.advice == "multiply 5.1.weight by 1e+03."

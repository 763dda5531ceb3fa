"""The specimens of the zoo: data, families of networks, and faults planted in them.

A specimen is a plain dict, drawn from the zoo's seed and its number alone, so that any of them can
be made again. A family is meant to be healthy or sick; the reference decides what a specimen is.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import vegrad
from vegrad import datasets

Array = np.ndarray
Specimen = dict[str, Any]

BOUNDED = ("sigmoid", "tanh", "hard_tanh", "erf")
RECTIFIERS = ("relu", "leaky_relu")
SMOOTH = ("elu", "selu", "gelu", "silu")
ALL = (*BOUNDED, *RECTIFIERS, *SMOOTH, "softplus", "identity")

# The score to reach on all rows: accuracy, or the share of the variance that is explained.
TARGETS = {"blob": 0.7, "circle": 0.8, "digits": 0.8, "breast_cancer": 0.9, "friedman": 0.6}


@cache
def data(name: str) -> tuple[Array, Array, str, int]:
    """Load standardized inputs, target, loss and number of outputs."""
    from sklearn.datasets import make_blobs, make_circles, make_friedman1

    if name == "blob":
        x, y = make_blobs(1000, centers=3, n_features=2, cluster_std=2, random_state=2)[:2]
        return _standard(x), y, "cross_entropy", 3
    if name == "circle":  # as in AUTOTRAINER, but scaled, and with factor 0.5 for 0.8
        x, y = make_circles(1000, noise=0.1, factor=0.5, random_state=1)
        return _standard(x), y.astype(float)[:, None], "binary_cross_entropy", 1
    if name == "friedman":
        x, y = make_friedman1(1000, noise=0.5, random_state=0)
        return _standard(x), _standard(y[:, None]), "mse", 1
    found = datasets.load(name)
    return found.x, found.target(found.loss), found.loss, found.outputs(found.loss)


def _standard(x: Array) -> Array:
    return (x - x.mean(axis=0)) / x.std(axis=0)


def draw(seed: int, number: int) -> Specimen:
    """Draw specimen `number` of the zoo of this seed; even ones are meant to be healthy."""
    rng = np.random.default_rng([seed, number])
    families = HEALTHY if number % 2 == 0 else SICK
    family = families[int(rng.integers(len(families)))]
    specimen = family(rng)
    name = "sgd" if rng.random() < 0.4 else "adam"
    rates = {"sgd": 0.02, "adam": 2e-3}
    optimizer = {"name": name, "lr": rates[name], "momentum": 0.9, "clip": None}
    optimizer["lr"] *= specimen.pop("rate", 1.0)
    return {
        "number": number,
        "family": family.__name__,
        "norm": None,
        "residual": False,
        "sigma_w": None,
        "sigma_b": None,
        "fault": None,
        "loss_scale": float(rng.choice([1.0, 1.0, 1e-6, 1e6])),
        "optimizer": optimizer,
        "seed": int(rng.integers(2**31)),
        **specimen,
    }


def _pick(rng: Any, values: Any) -> Any:
    return values[int(rng.integers(len(values)))]


def _depth(rng: Any, low: int, high: int) -> int:
    return round(float(np.exp(rng.uniform(np.log(low), np.log(high)))))


def _width(rng: Any, depth: int) -> int:
    widest = 64 if depth > 40 else 128 if depth > 12 else 256 if depth > 4 else 512
    return int(_pick(rng, [width for width in (16, 32, 64, 128, 256, 512) if width <= widest]))


def _body(rng: Any, activation: str, init: str, depth: int, **more: Any) -> Specimen:
    # Linear networks cannot learn the circle.
    name = _pick(rng, [d for d in TARGETS if (d, activation) != ("circle", "identity")])
    return {
        "data": name,
        "activation": activation,
        "init": init,
        "depth": depth,
        "width": _width(rng, depth),
    } | more


# Families meant to be healthy -----------------------------------------------------------------


def small(rng: Any) -> Specimen:
    """AUTOTRAINER's perceptrons of width 5 that are not too deep."""
    activation = _pick(rng, ("relu", "tanh", "selu", "leaky_relu", "elu"))
    init = "he_uniform" if activation in RECTIFIERS else "lecun_normal"
    return {
        "data": _pick(rng, ("blob", "circle")),
        "activation": activation,
        "init": init,
        "depth": int(rng.integers(3, 7)),
        "width": 5,
    }


def saturating(rng: Any) -> Specimen:
    """Bounded activations with a suitable initialization."""
    activation = _pick(rng, ("tanh", "erf", "hard_tanh"))
    init = _pick(rng, ("critical", "lecun_normal", "orthogonal", "glorot_uniform"))
    return _body(rng, activation, init, _depth(rng, 2, 40))


def rectified(rng: Any) -> Specimen:
    """Rectifiers with He's or critical weights."""
    init = _pick(rng, ("he_normal", "he_uniform", "critical"))
    return _body(rng, _pick(rng, RECTIFIERS), init, _depth(rng, 2, 25))


def smooth(rng: Any) -> Specimen:
    """Smooth activations, not too deep."""
    activation = _pick(rng, SMOOTH)
    init = "lecun_normal" if activation in ("selu", "elu") else "he_normal"
    return _body(rng, activation, init, _depth(rng, 2, 12))


def residual(rng: Any) -> Specimen:
    """Skip connections with normalization."""
    activation = _pick(rng, ("relu", "tanh", "gelu", "silu", "elu"))
    norm = _pick(rng, ("layer", "rms"))
    return _body(rng, activation, "he_normal", _depth(rng, 10, 100), norm=norm, residual=True)


def orthogonal(rng: Any) -> Specimen:
    """Deep networks with orthogonal weights."""
    activation = _pick(rng, ("tanh", "erf", "identity"))
    return _body(rng, activation, "orthogonal", _depth(rng, 20, 150))


def shallow(rng: Any) -> Specimen:
    """Two or three layers with Glorot's weights; every activation."""
    activation = _pick(rng, ALL)
    return _body(rng, activation, "glorot_uniform", int(rng.integers(2, 4)))


# Families meant to be sick --------------------------------------------------------------------


def vanishing(rng: Any) -> Specimen:
    """Weights that are too small; every activation."""
    sigma = float(rng.uniform(0.2, 0.6))
    depth = _depth(rng, 10, 200)
    return _body(rng, _pick(rng, ALL), "normal", depth, sigma_w=sigma)


def sigmoid(rng: Any) -> Specimen:
    """Sigmoid and softplus with the usual initializations, AUTOTRAINER's small ones included."""
    activation = _pick(rng, ("sigmoid", "sigmoid", "softplus"))
    init = _pick(rng, ("glorot_uniform", "he_uniform", "lecun_normal", "orthogonal"))
    specimen = _body(rng, activation, init, _depth(rng, 6, 100))
    if rng.random() < 0.3:
        specimen |= {
            "data": _pick(rng, ("blob", "circle")),
            "width": 5,
            "depth": int(rng.integers(6, 19)),
        }
    return specimen


def glorot_relu(rng: Any) -> Specimen:
    """Rectifiers with Glorot's weights: each layer halves the variance (He 2015)."""
    activation = _pick(rng, (*RECTIFIERS, "gelu", "silu"))
    return _body(rng, activation, "glorot_uniform", _depth(rng, 15, 100))


def exploding(rng: Any) -> Specimen:
    """Weights that are too large."""
    sigma = float(rng.uniform(2.2, 4.5))
    activation = _pick(rng, (*RECTIFIERS, *SMOOTH, "identity", "tanh", "erf"))
    low = 30 if activation in BOUNDED else 10
    return _body(rng, activation, "normal", _depth(rng, low, 120), sigma_w=sigma)


def unscaled_branches(rng: Any) -> Specimen:
    """Skip connections without normalization: each layer doubles the variance (Zhang 2019)."""
    activation = _pick(rng, (*RECTIFIERS, "elu", "identity"))
    return _body(rng, activation, "he_normal", _depth(rng, 20, 100), residual=True)


def planted(rng: Any) -> Specimen:
    """A healthy body with one fault in one layer."""
    kind = _pick(rng, ("weak", "strong", "dead", "biased"))
    scaled = ("tanh", "relu", "leaky_relu", "elu", "selu", "erf")
    choices = {"dead": ("relu",), "biased": ("tanh", "erf")}
    activation = _pick(rng, choices.get(kind, scaled))
    init = "he_normal" if activation in RECTIFIERS else "lecun_normal"
    depth = int(rng.integers(5, 21))
    specimen = _body(rng, activation, init, depth)
    specimen["width"] = max(specimen["width"], 32)
    factor = {"weak": 1e-3, "strong": 1e3, "dead": -30.0, "biased": 20.0}[kind]
    layer = int(rng.integers(1, depth - 1))
    return specimen | {"fault": {"kind": kind, "layer": layer, "factor": factor}}


def unscaled_data(rng: Any) -> Specimen:
    """A healthy body with inputs a hundred times too large."""
    activation = _pick(rng, ("relu", "tanh", "elu", "gelu"))
    init = "he_normal" if activation in ("relu", "gelu") else "lecun_normal"
    body = _body(rng, activation, init, _depth(rng, 4, 15))
    return body | {"fault": {"kind": "data", "layer": None, "factor": 100.0}}


def wrong_rate(rng: Any) -> Specimen:
    """A healthy body with a learning rate a thousand times too small or too large."""
    body = rectified(rng) if rng.random() < 0.5 else saturating(rng)
    body["depth"] = min(body["depth"], 10)
    rate = float(_pick(rng, (1e-4, 1e3)))
    return body | {"rate": rate, "fault": {"kind": "rate", "layer": None, "factor": rate}}


HEALTHY = (small, saturating, rectified, smooth, residual, orthogonal, shallow)
SICK = (
    vanishing,
    sigmoid,
    glorot_relu,
    exploding,
    unscaled_branches,
    planted,
    planted,
    unscaled_data,
    wrong_rate,
)


def build(specimen: Specimen) -> tuple[vegrad.MLP, Array, Array]:
    """Build the network with its fault, and load its data."""
    x, target, loss, outputs = data(specimen["data"])
    sizes = [x.shape[1], *[specimen["width"]] * (specimen["depth"] - 1), outputs]
    names = ("activation", "init", "sigma_w", "sigma_b", "norm", "residual", "seed")
    network = vegrad.MLP(sizes, loss=loss, **{name: specimen[name] for name in names})
    fault = specimen["fault"] or {}
    if fault.get("kind") in ("weak", "strong"):
        network.parameters[f"layers.{fault['layer']}.weight"][...] *= fault["factor"]
    elif fault.get("kind") in ("dead", "biased"):
        network.parameters[f"layers.{fault['layer']}.bias"][...] += fault["factor"]
    elif fault.get("kind") == "data":
        x = x * fault["factor"]
    return network, x, target

"""The activations in plain float64 NumPy, and with more digits in mpmath.

A new activation needs its formulas here, and in the tests nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import mpmath
import numpy as np

LEAKY_SLOPE = 0.01
SELU_LAMBDA = 1.0507009873554805  # Klambauer et al. 2017
SELU_ALPHA = 1.6732632423543772

ACTIVATIONS = ("identity", "sigmoid", "tanh", "relu", "leaky_relu", "elu", "selu", "gelu", "silu",
               "softplus", "hard_tanh", "erf")  # fmt: skip

erf = np.vectorize(math.erf, otypes=[float])
erfc = np.vectorize(math.erfc, otypes=[float])


def sigmoid(z: np.ndarray) -> np.ndarray:
    e = np.exp(-np.abs(z))
    return np.where(z >= 0, 1.0, e) / (1.0 + e)


def normal_cdf(z: np.ndarray) -> np.ndarray:
    return 0.5 * erfc(-z / math.sqrt(2.0))


def normal_pdf(z: np.ndarray) -> np.ndarray:
    return np.exp(-(z**2) / 2.0) / math.sqrt(2.0 * math.pi)


def phi(name: str, z: np.ndarray) -> np.ndarray:
    """The activation φ(z), |z| at most 2^500."""
    match name:
        case "identity":
            return z
        case "sigmoid":
            return sigmoid(z)
        case "tanh":
            return np.tanh(z)
        case "relu":
            return np.maximum(z, 0.0)
        case "leaky_relu":
            return np.where(z > 0, z, LEAKY_SLOPE * z)
        case "elu":
            return np.where(z > 0, z, np.expm1(np.minimum(z, 0.0)))
        case "selu":
            below = SELU_ALPHA * np.expm1(np.minimum(z, 0.0))
            return SELU_LAMBDA * np.where(z > 0, z, below)
        case "gelu":
            return z * normal_cdf(z)
        case "silu":
            return z * sigmoid(z)
        case "softplus":
            return np.maximum(z, 0.0) + np.log1p(np.exp(-np.abs(z)))
        case "hard_tanh":
            return np.clip(z, -1.0, 1.0)
        case "erf":
            return erf(z)
    raise ValueError(name)


def phi_prime(name: str, z: np.ndarray) -> np.ndarray:
    """The derivative φ′(z), |z| at most 2^500."""
    match name:
        case "identity":
            return np.ones_like(z)
        case "sigmoid":
            return sigmoid(z) * sigmoid(-z)
        case "tanh":
            e = np.exp(-2.0 * np.abs(z))
            return 4.0 * e / (1.0 + e) ** 2
        case "relu":
            return np.where(z > 0, 1.0, 0.0)
        case "leaky_relu":
            return np.where(z > 0, 1.0, LEAKY_SLOPE)
        case "elu":
            return np.exp(np.minimum(z, 0.0))
        case "selu":
            return SELU_LAMBDA * np.where(z > 0, 1.0, SELU_ALPHA * np.exp(np.minimum(z, 0.0)))
        case "gelu":
            return normal_cdf(z) + z * normal_pdf(z)
        case "silu":
            return sigmoid(z) * (1.0 + z * sigmoid(-z))
        case "softplus":
            return sigmoid(z)
        case "hard_tanh":
            return np.where(np.abs(z) < 1, 1.0, 0.0)
        case "erf":
            return 2.0 / math.sqrt(math.pi) * np.exp(-(z**2))
    raise ValueError(name)


def log_phi_prime(name: str, z: np.ndarray) -> np.ndarray:
    """log |φ′(z)|, also where |φ′(z)| is below float64's range."""
    match name:
        case "sigmoid":
            return -np.abs(z) - 2.0 * np.log1p(np.exp(-np.abs(z)))
        case "tanh":  # 4 σ′(2z)
            return math.log(4.0) + log_phi_prime("sigmoid", 2.0 * z)
        case "elu":
            return np.minimum(z, 0.0)
        case "selu":
            below = math.log(SELU_ALPHA) + np.minimum(z, 0.0)
            return math.log(SELU_LAMBDA) + np.where(z > 0, 0.0, below)
        case "softplus":
            return np.minimum(z, 0.0) - np.log1p(np.exp(-np.abs(z)))
        case "erf":
            return math.log(2.0 / math.sqrt(math.pi)) - z**2
        case "gelu":  # φ′ = pdf(z)·(z + cdf(z)/pdf(z)), and the ratio has a series at -∞
            t = np.minimum(z, -30.0)
            ratio = -(1.0 - 1.0 / t**2 + 3.0 / t**4) / t
            tail = -(t**2) / 2.0 - math.log(math.sqrt(2.0 * math.pi)) + np.log(-t - ratio)
            return np.where(z < -30.0, tail, np.log(np.abs(phi_prime(name, z))))
        case "silu":  # φ′ → e^z (1 + z) at -∞
            t = np.minimum(z, -40.0)
            return np.where(z < -40.0, t + np.log(-1.0 - t), np.log(np.abs(phi_prime(name, z))))
    return np.log(np.abs(phi_prime(name, z)))


def log_phi(name: str, z: np.ndarray) -> np.ndarray:
    """log |φ(z)| for z ≪ 0, of the activations that vanish there; their sign is that of φ(-1)."""
    match name:
        case "sigmoid" | "softplus" | "silu":
            return z + (np.log(-z) if name == "silu" else 0.0)
        case "gelu":  # φ = z·cdf(z), and cdf/pdf has a series at -∞
            series = 1.0 - 1.0 / z**2 + 3.0 / z**4
            return -(z**2) / 2.0 - math.log(math.sqrt(2.0 * math.pi)) + np.log(series)
    return np.full_like(z, -np.inf)


# Slope on the negative and on the positive side: at 0 (None: φ(0) is not 0) and at infinity.
SLOPES_AT_ZERO = {
    "identity": (1.0, 1.0), "sigmoid": None, "tanh": (1.0, 1.0), "relu": (0.0, 1.0),
    "leaky_relu": (LEAKY_SLOPE, 1.0), "elu": (1.0, 1.0),
    "selu": (SELU_LAMBDA * SELU_ALPHA, SELU_LAMBDA), "gelu": (0.5, 0.5), "silu": (0.5, 0.5),
    "softplus": None, "hard_tanh": (1.0, 1.0), "erf": (2.0 / math.sqrt(math.pi),) * 2,
}  # fmt: skip
SLOPES_AT_INFINITY = {
    "identity": (1.0, 1.0), "sigmoid": (0.0, 0.0), "tanh": (0.0, 0.0), "relu": (0.0, 1.0),
    "leaky_relu": (LEAKY_SLOPE, 1.0), "elu": (0.0, 1.0), "selu": (0.0, SELU_LAMBDA),
    "gelu": (0.0, 1.0), "silu": (0.0, 1.0), "softplus": (0.0, 1.0), "hard_tanh": (0.0, 0.0),
    "erf": (0.0, 0.0),
}  # fmt: skip


def precisely(name: str) -> Callable[[mpmath.mpf], tuple[mpmath.mpf, mpmath.mpf]]:
    """z -> φ(z), φ′(z) with 40 digits."""
    m = mpmath
    one, zero, leak = m.mpf(1), m.mpf(0), m.mpf(LEAKY_SLOPE)
    scale, alpha = m.mpf(SELU_LAMBDA), m.mpf(SELU_ALPHA)

    def sigmoid(z: mpmath.mpf) -> mpmath.mpf:
        return 1 / (1 + m.exp(-z)) if z > 0 else m.exp(z) / (1 + m.exp(z))

    def cdf(z: mpmath.mpf) -> mpmath.mpf:
        bounded = max(min(z, m.mpf(60)), m.mpf(-60))  # mpmath's erfc fails at 1e300
        return m.erfc(-bounded / m.sqrt(2)) / 2

    def softplus(z: mpmath.mpf) -> mpmath.mpf:
        return max(z, zero) + m.log1p(m.exp(-abs(z)))

    return {
        "identity": lambda z: (z, one),
        "sigmoid": lambda z: (sigmoid(z), sigmoid(z) * sigmoid(-z)),
        "tanh": lambda z: (m.tanh(z), m.sech(z) ** 2),
        "relu": lambda z: (max(z, zero), one if z > 0 else zero),
        "leaky_relu": lambda z: (z, one) if z > 0 else (leak * z, leak),
        "elu": lambda z: (z, one) if z > 0 else (m.expm1(z), m.exp(z)),
        "selu": lambda z: (
            (scale * z, scale) if z > 0 else (scale * alpha * m.expm1(z), scale * alpha * m.exp(z))
        ),
        "gelu": lambda z: (z * cdf(z), cdf(z) + z * m.npdf(z)),
        "silu": lambda z: (z * sigmoid(z), sigmoid(z) * (1 + z * sigmoid(-z))),
        "softplus": lambda z: (softplus(z), sigmoid(z)),
        "hard_tanh": lambda z: (max(-one, min(one, z)), one if abs(z) < 1 else zero),
        "erf": lambda z: (m.erf(z), 2 / m.sqrt(m.pi) * m.exp(-(z**2))),
    }[name]

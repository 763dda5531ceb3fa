"""The names that arguments may have, and the numbers that they may be, for type checkers."""

from __future__ import annotations

from typing import Literal, SupportsFloat, TypeAlias

Number: TypeAlias = SupportsFloat
"""A real number: of Python or of NumPy, or an array or a tensor without axes."""
Policy = Literal["raise", "skip", "zero", "propagate"]
"""The ways to treat elements of gradients that are not finite."""
SpikeMode = Literal["zscore", "percentile"]
"""The ways in which `ZClip` judges a norm."""
SpikeOption = Literal["adaptive_scaling", "mean"]
"""Targets to which `ZClip` brings a norm down."""
Activation = Literal[
    "identity",
    "sigmoid",
    "tanh",
    "relu",
    "leaky_relu",
    "elu",
    "selu",
    "gelu",
    "silu",
    "softplus",
    "hard_tanh",
    "erf",
]
Loss = Literal["mse", "cross_entropy", "binary_cross_entropy"]
Normalization = Literal["layer", "rms"]
Initialization = Literal[
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_normal",
    "orthogonal",
    "lsuv",
    "normal",
    "critical",
]
"""Draws of the weights of an `MLP`."""
Cell = Literal["tanh", "relu", "lstm", "gru"]
Targets = Literal["last", "all"]
"""The steps of a sequence that have targets."""
RecurrentInitialization = Literal["default", "orthogonal", "identity", "critical", "chrono"]
"""Draws of the weights of an `RNN`."""

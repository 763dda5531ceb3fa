"""Mean-field theory of wide random networks: everything public that it predicts.

`activation` is a name of `vegrad.MLP`, and every function that takes one has the keyword
`negative_slope=0.01` for leaky_relu. Weights have variance σ_w²/fan_in and biases σ_b²; q is the
variance of pre-activations, and χ₁ the factor of ‖δ‖² from a layer to the one below.
"""

from vegrad.theory.correlation import (
    DepthScales,
    correlation_fixed_point,
    correlation_map,
    depth_scales,
)
from vegrad.theory.expected import ExpectedFlow, expected_flow
from vegrad.theory.gaussian import derivative_second_moment, mean, second_moment
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.meanfield import (
    CriticalPoint,
    chi,
    chi_parallel,
    critical_point,
    fixed_point,
    gain,
    normalized_chi,
    variance_map,
)
from vegrad.theory.moments import FAMILIES, LogMoments, gradient_log_moments, sigma_w
from vegrad.theory.truncation import truncation_error

__all__ = [
    "FAMILIES",
    "INITIALIZERS",
    "CriticalPoint",
    "DepthScales",
    "ExpectedFlow",
    "LogMoments",
    "chi",
    "chi_parallel",
    "correlation_fixed_point",
    "correlation_map",
    "critical_point",
    "depth_scales",
    "derivative_second_moment",
    "expected_flow",
    "fixed_point",
    "gain",
    "gradient_log_moments",
    "mean",
    "normalized_chi",
    "second_moment",
    "sigma_w",
    "truncation_error",
    "variance_map",
]

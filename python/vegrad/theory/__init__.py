"""Mean-field theory of wide random networks: everything public that it predicts.

`activation` is a name of `vegrad.MLP`, and every function that takes one has the keyword
`negative_slope=0.01` for leaky_relu. Weights have variance σ_w²/fan_in and biases σ_b²; q is the
variance of pre-activations, and χ₁ the factor of ‖δ‖² from a layer to the one below. Of recurrent
networks, whose layers are steps, `cells` has the formulas and `recurrent` the closed forms.
"""

from vegrad.sweeps import SweepError
from vegrad.theory.correlation import (
    DepthScales,
    correlation_fixed_point,
    correlation_map,
    depth_scales,
)
from vegrad.theory.expected import ExpectedFlow, expected_flow
from vegrad.theory.gaussian import derivative_second_moment, mean, second_moment
from vegrad.theory.initializers import INITIALIZERS
from vegrad.theory.lyapunov import (
    lyapunov_exponents,
)
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
from vegrad.theory.phase_maps import PhaseMap, phase_map
from vegrad.theory.recurrence import (
    ExpectedRecurrence,
    TiedGain,
    expected_recurrence,
    mean_gain_log2,
    tied_gain,
)
from vegrad.theory.recurrent import (
    Sensitivity,
    chrono_memory,
    critical_sigma_u,
    expected_lyapunov,
    gate_bias,
    gate_time_scale,
    reach,
    recurrent_fixed_point,
    recurrent_gain,
    sensitivity,
)
from vegrad.theory.recurrent_initializers import (
    RECURRENT_INITIALIZERS,
    draw_recurrent_parameters,
)
from vegrad.theory.steady import steadied
from vegrad.theory.truncation import truncation_error, truncation_window

__all__ = [
    "FAMILIES",
    "INITIALIZERS",
    "RECURRENT_INITIALIZERS",
    "CriticalPoint",
    "DepthScales",
    "ExpectedFlow",
    "ExpectedRecurrence",
    "LogMoments",
    "PhaseMap",
    "Sensitivity",
    "SweepError",
    "TiedGain",
    "chi",
    "chi_parallel",
    "chrono_memory",
    "correlation_fixed_point",
    "correlation_map",
    "critical_point",
    "critical_sigma_u",
    "depth_scales",
    "derivative_second_moment",
    "draw_recurrent_parameters",
    "expected_flow",
    "expected_lyapunov",
    "expected_recurrence",
    "fixed_point",
    "gain",
    "gate_bias",
    "gate_time_scale",
    "gradient_log_moments",
    "lyapunov_exponents",
    "mean",
    "mean_gain_log2",
    "normalized_chi",
    "phase_map",
    "reach",
    "recurrent_fixed_point",
    "recurrent_gain",
    "second_moment",
    "sensitivity",
    "sigma_w",
    "steadied",
    "tied_gain",
    "truncation_error",
    "truncation_window",
    "variance_map",
]

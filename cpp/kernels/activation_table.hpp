// The activations by name: one row here, one struct in activations.hpp.
//
// A row: name, the largest |φ′| (for the share of saturated elements), the slopes of φ just below
// and above 0 where φ(0) = 0, and the slopes towards -∞ and +∞ where φ is unbounded. Far from 1,
// below 2^-40 and above 2^40, an activation is its pair of slopes to better than any dtype here:
// that is how the flow stays exact where activations underflow or overflow.
#pragma once

#include "kernels/numbers.hpp"

// X(name, largest_derivative, slopes at 0: below, above, slopes at ∞: below, above)
#define VEGRAD_ACTIVATIONS(X)                                                          \
  X(identity, 1.0, 1.0, 1.0, 1.0, 1.0)                                                 \
  X(sigmoid, 0.25, kNone, kNone, kNone, kNone)                                         \
  X(tanh, 1.0, 1.0, 1.0, kNone, kNone)                                                 \
  X(relu, 1.0, 0.0, 1.0, 0.0, 1.0)                                                     \
  X(leaky_relu, 1.0, kLeakySlope, 1.0, kLeakySlope, 1.0)                               \
  X(elu, 1.0, 1.0, 1.0, 0.0, 1.0)                                                      \
  X(selu, kSeluScale* kSeluAlpha, kSeluScale* kSeluAlpha, kSeluScale, 0.0, kSeluScale) \
  X(gelu, 1.1289041440, 0.5, 0.5, 0.0, 1.0)                                            \
  X(silu, 1.0998393194, 0.5, 0.5, 0.0, 1.0)                                            \
  X(softplus, 1.0, kNone, kNone, 0.0, 1.0)                                             \
  X(hard_tanh, 1.0, 1.0, 1.0, kNone, kNone)                                            \
  X(erf, kTwoOverSqrtPi, kTwoOverSqrtPi, kTwoOverSqrtPi, kNone, kNone)

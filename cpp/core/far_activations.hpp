// Activations and their derivatives where float and double have no numbers left.
#pragma once

#include "kernels/table.hpp"

namespace vegrad {

// The pair of slopes that φ is at arguments below 2^-40 (exponent < 0) or above 2^40; false where
// φ(0) is not 0, or φ is bounded.
bool far_slopes(Activation activation, double exponent, double& below, double& above);

// φ′(z) where it is under the normal range: its sign and log2 of its size, -inf for a true zero.
struct SignedLog2 {
  double sign, log2;
};
SignedLog2 derivative_log2(Activation activation, double z);

SignedLog2 value_log2(Activation activation, double z);  // likewise φ(z)

// False if a derivative, a value of zero is always truly zero.
bool derivative_underflows(Activation activation);
bool value_underflows(Activation activation);

}  // namespace vegrad

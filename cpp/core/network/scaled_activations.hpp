// Activations where float and double have no numbers left.
#pragma once

#include <cstdint>

#include "kernels/table.hpp"

namespace vegrad {

constexpr std::int64_t kNoExponent = INT64_MIN / 4;  // of zero: smaller than any other

// mantissa 2^exponent, the mantissa not normalized.
struct ScaledNumber {
  double mantissa = 0;
  std::int64_t exponent = 0;

  std::int64_t size() const;  // floor(log2 |x|), kNoExponent for 0
};

// sign 2^log2; log2 is -inf for a true zero.
struct SignedLog2 {
  double sign, log2;
};
ScaledNumber scaled_number(const SignedLog2& x);

// φ(z) and φ′(z) for z far below 0 (the derivatives: or far above), where they are under the
// normal range.
SignedLog2 value_log2(Activation activation, double z);
SignedLog2 derivative_log2(Activation activation, double z);

// False if a derivative, a value of zero is always truly zero.
bool derivative_underflows(Activation activation);
bool value_underflows(Activation activation);

// φ and φ′ of z 2^exponent, element by element, whatever its size. `scratch` holds 3 n.
template <class T>
void scaled_activation(const Kernels<T>& kernels, Activation activation, const T* z,
                       std::int64_t exponent, int n, T* scratch, ScaledNumber* value,
                       ScaledNumber* derivative);

}  // namespace vegrad

// Activations where float and double have no numbers left.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <optional>

#include "kernels/table.hpp"

namespace vegrad {

constexpr std::int64_t kNoExponent = INT64_MIN / 4;  // of zero: smaller than any other

// mantissa 2^exponent, the mantissa not normalized.
struct ScaledNumber {
  double mantissa = 0;
  std::int64_t exponent = 0;

  // floor(log2 |x|), kNoExponent for 0
  std::int64_t size() const {
    std::uint64_t bits;
    std::memcpy(&bits, &mantissa, sizeof bits);
    const int biased = int(bits >> 52 & 0x7ff);
    if (biased > 0 && biased < 0x7ff) return biased - 1023 + exponent;
    return mantissa == 0 ? kNoExponent : std::ilogb(mantissa) + exponent;
  }
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

// Whether φ(2^k z) = 2^k φ(z) for all z and k.
bool is_homogeneous(Activation activation);

// log2 of φ′(0) if that is a power of two and φ(z) is φ′(0) z near 0: to all digits of float32
// below 2^-30, of double below 2^-60.
std::optional<int> slope_near_zero_log2(Activation activation);

// φ and φ′ of z 2^exponent, element by element, whatever its size. `scratch` holds 3 n.
template <class T>
void scaled_activation(const Kernels<T>& kernels, Activation activation, const T* z,
                       std::int64_t exponent, int n, T* scratch, ScaledNumber* value,
                       ScaledNumber* derivative);

}  // namespace vegrad

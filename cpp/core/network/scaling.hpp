// Values beside a power of two: how a pass stays within the range of T.
//
// A matrix of a pass is its values times 2^exponent. As long as mean squares are within 2^±80 the
// exponents of the forward pass are zero, and on the way back δ is brought back to about 1 by a
// factor in the next product.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace vegrad {

// values · 2^exponent
template <class T>
struct ScaledMatrix {
  T* data = nullptr;
  std::ptrdiff_t ld = 0;
  std::int64_t exponent = 0;
  double mean_square = 0;  // of the values, without the exponent
};

// Mean squares within these need no scaling: no element that matters to a norm is near the ends
// of the range of float32, nor is a square.
constexpr double kLowest = 0x1p-80, kHighest = 0x1p80;
inline bool within(double mean_square) { return mean_square >= kLowest && mean_square <= kHighest; }

// What is added to the exponent of δ in the next product, so that δ is about 1 again: 0 if its mean
// square is near enough to 1.
inline std::int64_t correction(double mean_square) {
  constexpr double kScaleBelow = 0x1p-20, kScaleAbove = 0x1p20;
  if (!(mean_square > 0) || !std::isfinite(mean_square)) return 0;
  if (mean_square >= kScaleBelow && mean_square <= kScaleAbove) return 0;
  return -std::int64_t(std::lround(std::log2(mean_square) / 2));
}

// 2^exponent, or the nearest power of two that is a normal number of T.
template <class T>
T power_of_two(std::int64_t exponent) {
  if (exponent == 0) return T(1);
  const std::int64_t most = std::numeric_limits<T>::max_exponent - 1;
  return T(std::ldexp(1.0, int(std::clamp<std::int64_t>(exponent, 1 - most, most))));
}

// 2^exponent as two factors, the second 1 unless it takes both.
template <class T>
struct TwoFactors {
  T first, second = T(1);
  explicit TwoFactors(std::int64_t exponent) {
    const bool both = std::abs(exponent) >= std::numeric_limits<T>::max_exponent - 1;
    first = power_of_two<T>(both ? exponent / 2 : exponent);
    if (both) second = power_of_two<T>(exponent - exponent / 2);
  }
};

// x · 2^exponent. As a product it is what ldexp returns, and takes a tenth of its time.
inline double shifted(double x, std::int64_t exponent) {
  if (exponent == 0) return x;
  if (std::abs(exponent) > 1022)
    return std::ldexp(x, int(std::clamp<std::int64_t>(exponent, -100000, 100000)));
  const std::uint64_t bits = std::uint64_t(exponent + 1023) << 52;
  double factor;
  std::memcpy(&factor, &bits, sizeof bits);
  return x * factor;
}

// log2 of the root of `squares` times 4^exponent.
inline double half_log2(double squares, std::int64_t exponent) {
  return 0.5 * std::log2(squares) + double(exponent);
}

}  // namespace vegrad

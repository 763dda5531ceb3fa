#include "core/network/scaled_activations.hpp"

#include <cmath>
#include <cstdlib>
#include <limits>

#include "core/network/scaling.hpp"

namespace vegrad {
namespace {

struct Slopes {
  double zero_below, zero_above, far_below, far_above;
};
constexpr Slopes kSlopes[] = {
#define VEGRAD_ROW(name, largest, ...) {__VA_ARGS__},
    VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
};

constexpr double kLog2e = 1.4426950408889634;
constexpr int kNearest = 100;  // φ is its slopes below 2^-100 and above 2^100
// Results smaller than this are made from their logarithm, where the argument says that this is a
// tail: factors of theirs may have been flushed.
template <class T>
constexpr double kTiny = sizeof(T) == 4 ? 0x1p-100 : 0x1p-990;
constexpr double kTail = -4;

// log2 of σ(-x) for x >= 0.
double log2_lower(double x) { return -(x + std::log1p(std::exp(-x))) * kLog2e; }

}  // namespace

ScaledNumber scaled_number(const SignedLog2& x) {
  if (!(x.log2 > -1e15)) return {};
  const double exponent = std::floor(x.log2);
  return {x.sign * std::exp2(x.log2 - exponent), std::int64_t(exponent)};
}

SignedLog2 derivative_log2(Activation activation, double z) {
  const double a = std::fabs(z);
  switch (activation) {
    case kActivation_sigmoid:  // σ(z) σ(-z)
      return {1, log2_lower(a) - std::log1p(std::exp(-a)) * kLog2e};
    case kActivation_tanh:  // 4 σ(2z) σ(-2z)
      return {1, 2 + log2_lower(2 * a) - std::log1p(std::exp(-2 * a)) * kLog2e};
    case kActivation_elu:
      return {1, z < 0 ? z * kLog2e : 0};
    case kActivation_selu:
      return {1, z < 0 ? z * kLog2e + std::log2(kSeluScale * kSeluAlpha) : std::log2(kSeluScale)};
    case kActivation_softplus:
      return {1, z < 0 ? log2_lower(a) : 0};
    case kActivation_silu:  // for z ≪ 0: exp(z) (1 + z)
      return {z < 0 ? -1.0 : 1.0, z < 0 ? log2_lower(a) + std::log2(a - 1) : 0};
    case kActivation_gelu:  // for z ≪ 0: (1/|z| - 1/|z|³ - |z|) exp(-z²/2)/√(2π)
      return {z < 0 ? -1.0 : 1.0, z < 0 ? std::log2(a - 1 / a + 1 / (a * a * a)) +
                                              std::log2(kOneOverSqrtTwoPi) - a * a * kLog2e / 2
                                        : 0};
    case kActivation_erf:
      return {1, std::log2(kTwoOverSqrtPi) - a * a * kLog2e};
    default:
      return {1, -std::numeric_limits<double>::infinity()};
  }
}

SignedLog2 value_log2(Activation activation, double z) {
  const double a = std::fabs(z);
  switch (z < 0 ? activation : kActivation_identity) {
    case kActivation_sigmoid:
      return {1, log2_lower(a)};
    case kActivation_softplus:  // log(1 + exp(z)) = exp(z) for z ≪ 0
      return {1, z * kLog2e};
    case kActivation_silu:
      return {-1, std::log2(a) + log2_lower(a)};
    case kActivation_gelu:  // -(1 - 1/z² + 3/z⁴) exp(-z²/2)/√(2π)
      return {-1, std::log2(kOneOverSqrtTwoPi * (1 - 1 / (a * a) + 3 / (a * a * a * a))) -
                      a * a * kLog2e / 2};
    default:
      return {1, -std::numeric_limits<double>::infinity()};
  }
}

bool value_underflows(Activation activation) {
  return value_log2(activation, -100).log2 > -std::numeric_limits<double>::infinity();
}

bool derivative_underflows(Activation activation) {
  return derivative_log2(activation, -100).log2 > -std::numeric_limits<double>::infinity();
}

bool is_homogeneous(Activation activation) {
  const Slopes& slopes = kSlopes[activation];
  return slopes.zero_below != kNone && slopes.zero_below == slopes.far_below &&
         slopes.zero_above == slopes.far_above;
}

std::optional<int> slope_near_zero_log2(Activation activation) {
  const Slopes& slopes = kSlopes[activation];
  if (slopes.zero_below == kNone || slopes.zero_below != slopes.zero_above) return {};
  int exponent;
  if (std::frexp(slopes.zero_above, &exponent) != 0.5) return {};
  return exponent - 1;
}

template <class T>
void scaled_activation(const Kernels<T>& kernels, Activation activation, const T* z,
                       std::int64_t exponent, int n, T* scratch, ScaledNumber* value,
                       ScaledNumber* derivative) {
  const Slopes& slopes = kSlopes[activation];
  T *const near = scratch, *const h = scratch + n, *const d = scratch + 2 * n;
  for (int j = 0; j < n; ++j) {
    const std::int64_t size = ScaledNumber{double(z[j]), exponent}.size();
    // Moved to where T has numbers; there φ is its slopes, and φ′ no longer changes.
    double x = size == kNoExponent ? 0 : std::ldexp(1.0, size < 0 ? -kNearest : kNearest);
    if (std::abs(size) < kNearest) x = std::fabs(shifted(double(z[j]), exponent));
    near[j] = T(z[j] < 0 ? -x : x);
  }
  kernels.activation[activation].map(near, h, d, n);
  for (int j = 0; j < n; ++j) {
    const double x = double(near[j]);
    value[j] = {double(h[j]), 0};
    derivative[j] = {double(d[j]), 0};
    if (x < kTail && std::fabs(h[j]) < kTiny<T> && value_underflows(activation))
      value[j] = scaled_number(value_log2(activation, x));
    if (std::fabs(x) > -kTail && std::fabs(d[j]) < kTiny<T> && derivative_underflows(activation))
      derivative[j] = scaled_number(derivative_log2(activation, x));
    const std::int64_t size = ScaledNumber{double(z[j]), exponent}.size();
    if (z[j] == 0 || std::abs(size) < kNearest) continue;
    const double slope = size < 0 ? (z[j] < 0 ? slopes.zero_below : slopes.zero_above)
                                  : (z[j] < 0 ? slopes.far_below : slopes.far_above);
    // A slope of 0 towards infinity leaves what φ tends to, as map() has it.
    if (slope != kNone && (slope != 0 || size < 0)) value[j] = {double(z[j]) * slope, exponent};
  }
}

template void scaled_activation(const Kernels<float>&, Activation, const float*, std::int64_t, int,
                                float*, ScaledNumber*, ScaledNumber*);
template void scaled_activation(const Kernels<double>&, Activation, const double*, std::int64_t,
                                int, double*, ScaledNumber*, ScaledNumber*);

}  // namespace vegrad

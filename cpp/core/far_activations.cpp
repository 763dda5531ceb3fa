#include "core/far_activations.hpp"

#include <cmath>
#include <limits>

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

// log2 of σ(-x) for x >= 0.
double log2_lower(double x) { return -(x + std::log1p(std::exp(-x))) * kLog2e; }

}  // namespace

bool far_slopes(Activation activation, double exponent, double& below, double& above) {
  const Slopes& s = kSlopes[activation];
  below = exponent < 0 ? s.zero_below : s.far_below;
  above = exponent < 0 ? s.zero_above : s.far_above;
  return above != kNone;
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
    case kActivation_gelu:  // for z ≪ 0: (1/|z| - |z|) exp(-z²/2)/√(2π), next term 1/|z|³
      return {z < 0 ? -1.0 : 1.0,
              z < 0 ? std::log2(a - 1 / a) + std::log2(kOneOverSqrtTwoPi) - a * a * kLog2e / 2 : 0};
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
    case kActivation_gelu:  // -exp(-z²/2)/√(2π), next term 1/z²
      return {-1, std::log2(kOneOverSqrtTwoPi * (1 - 1 / (a * a))) - a * a * kLog2e / 2};
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

}  // namespace vegrad

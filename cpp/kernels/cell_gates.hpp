// σ and tanh for the gates of a recurrent cell: fewer instructions than those of activations.hpp,
// for here the derivatives are made from the values.
#pragma once

#include "simd/math.hpp"

namespace vegrad {
namespace {

// Beyond these, σ(-z) is below the normal range, and tanh z is 1.
template <class T>
constexpr T kGateEnd = sizeof(T) == 4 ? T(88) : T(709);
template <class T>
constexpr T kTanhEnd = sizeof(T) == 4 ? T(9.05) : T(19.1);

// The coefficients of MathConstants::kExp for a factor A: c[i] A^(i + 1).
template <class T, int A>
struct ScaledExp {
  static constexpr int n = sizeof(MathConstants<T>::kExp) / sizeof(T);
  T c[n];
  constexpr ScaledExp() : c() {
    T power = A;
    for (int i = 0; i < n; ++i, power *= A) c[i] = MathConstants<T>::kExp[i] * power;
  }
};
template <class T, int A>
constexpr ScaledExp<T, A> kScaledExp{};

// exp(A z) = scale (1 + A q), for z such that scale is a number of T.
template <class T>
struct GateExponential {
  Vector<T> scale, q;
};
template <class T, int A>
VEGRAD_INLINE GateExponential<T> gate_exponential(Vector<T> z) {
  using C = MathConstants<T>;
  constexpr T round = C::kRound + T(C::kExponentBias);
  const Vector<T> shifted = fma(z, splat<T>(A * C::kLog2e), splat<T>(round));
  const Vector<T> n = shifted - round;
#if VEGRAD_VECTOR_BYTES > 16 || defined(VEGRAD_ARM)
  // n ln 2 is not rounded before the sum: the error is that of ln 2 itself.
  const Vector<T> r = fma(n, splat<T>(T(-0.69314718055994530942) / A), z);
#else
  const Vector<T> r = fma(n, splat<T>(-C::kLn2Low / A), fma(n, splat<T>(-C::kLn2High / A), z));
#endif
  return {(Vector<T>)((Bits<T>)shifted << C::kMantissaBits),
          fma(r * r, polynomial<T>(r, kScaledExp<T, A>.c), r)};
}

// 1 / (1 + exp(-z)).
template <class T>
VEGRAD_INLINE Vector<T> gate_of(Vector<T> z) {
  const GateExponential<T> e =
      gate_exponential<T, -1>(at_most<T>(at_least<T>(z, -kGateEnd<T>), kGateEnd<T>));
  return reciprocal<T>(fma(-e.scale, e.q, e.scale + T(1)));
}

// e / (e + 1) with e = expm1(2 z) / 2.
template <class T>
VEGRAD_INLINE Vector<T> tanh_of(Vector<T> z) {
  const GateExponential<T> x =
      gate_exponential<T, 2>(at_most<T>(at_least<T>(z, -kTanhEnd<T>), kTanhEnd<T>));
  const Vector<T> e = fma(x.scale, x.q, fma(x.scale, splat<T>(T(0.5)), splat<T>(T(-0.5))));
  return e * reciprocal<T>(e + T(1));
}

// 1 - y², of y = tanh z.
template <class T>
VEGRAD_INLINE Vector<T> slope_of(Vector<T> y) {
  return (T(1) - y) * (T(1) + y);
}

}  // namespace
}  // namespace vegrad

// exp, expm1, log1p and erf on vectors.
//
// The polynomials are Chebyshev interpolants of the named function, computed in 60 digits; the
// error bound beside each is that of the exact polynomial, relative to the function it serves.
// Results below the normal range are zero: the kernels run with subnormals flushed.
#pragma once

#include "simd/vector.hpp"

namespace vegrad {
namespace {

template <class T>
struct MathConstants;

template <>
struct MathConstants<float> {
  static constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  static constexpr int kMantissaBits = 23, kExponentBias = 127;
  static constexpr float kLog2e = 1.44269504f;
  static constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;  // Cody & Waite
  static constexpr float kExpLowest = -87.33654f;  // below it, exp is under the normal range
  static constexpr float kExpHighest = 87.0f;      // its inverse is still a normal number
  // (expm1(r) - r) / r^2 on |r| <= ln 2 / 2, 8e-9
  static constexpr float kExp[] = {0.5f, 0.1666657628f, 0.04166655373f, 0.008363297327f,
                                   0.001392633133f};
  // (2 atanh(s) - 2 s) / s^3 in s^2 on [0, 1/9], 4e-10
  static constexpr float kAtanh[] = {0.6666666732f, 0.3999970633f, 0.2859235799f, 0.217065758f,
                                     0.2322432922f};
  // erf(x) / x in x^2 on [0, 1], 2e-9
  static constexpr float kErf[] = {1.128379166f,    -0.3761262667f,  0.1128359472f,
                                   -0.02685421201f, 0.005189087423f, -0.0008016864287f,
                                   7.875875063e-5f};
  // (1 + 2 x) exp(x^2) erfc(x) in t = (x - k) / (x + k) on [-1, 1], 7e-9
  static constexpr float kErfcCenter = 3.0f;
  static constexpr float kErfc[] = {1.253008056f,      -0.1356211001f,   -0.04756215615f,
                                    0.1296447209f,     -0.1192752814f,   0.06831319672f,
                                    -0.0237635597f,    0.002506778672f,  0.001875060246f,
                                    -0.0007340820504f, -9.253769126e-5f, 8.007454975e-5f};
  static constexpr float kErfcFarthest = 10.1f;  // erfc beyond it is under the normal range
};

template <>
struct MathConstants<double> {
  static constexpr double kRound = 6755399441055744.0;  // 1.5 * 2^52
  static constexpr int kMantissaBits = 52, kExponentBias = 1023;
  static constexpr double kLog2e = 1.4426950408889634;
  static constexpr double kLn2High = 6.93147180369123816490e-01;
  static constexpr double kLn2Low = 1.90821492927058770002e-10;
  static constexpr double kExpLowest = -708.39641853226408;
  static constexpr double kExpHighest = 708.0;
  // 2e-17
  static constexpr double kExp[] = {0.500000000000000104,     0.166666666666666675,
                                    0.0416666666666234504,    0.00833333333333000973,
                                    0.00138888889175514041,   0.000198412698633133038,
                                    0.0000248015207722834058, 2.75572680572873852e-6,
                                    2.76203370417242846e-7,   2.51005766686571716e-8};
  // 4e-21
  static constexpr double kAtanh[] = {
      0.666666666666666667, 0.400000000000000155,  0.285714285714219433, 0.222222222233319868,
      0.181818180860056555, 0.153846202538041624,  0.133331769491381785, 0.117679977672410362,
      0.104803992343652741, 0.0994202489655473463, 0.063341108517702454, 0.152312626194289848};
  // 2e-19
  static constexpr double kErf[] = {
      1.12837916709551257,     -0.376126389031837481,     0.112837916709548787,
      -0.0268661706450767932,  0.00522397762481801447,    -0.000854832698083378991,
      0.000120553311116427109, -0.0000149255952668311816, 1.6461000484121368e-6,
      -1.6350312701054695e-7,  1.46597752740474358e-8,    -1.13728488567916737e-9,
      5.9571761477489114e-11};
  // 5e-17
  static constexpr double kErfcCenter = 4.0;
  static constexpr double kErfc[] = {
      1.23299511862555254,     -0.139621116840562487,    0.015379652102610162,
      0.0680970542546862078,   -0.101039066035852937,    0.093732834998651721,
      -0.0663303658205036706,  0.0371675155318431963,    -0.0161977339799242584,
      0.00503197003254869501,  -0.00075777371418388841,  -0.00019925700412184814,
      0.000150623117851620695, -0.000024398117942079951, -0.0000112251403544496569,
      5.70723957369325743e-6,  2.98059605532276886e-7,   -8.2180206548130448e-7,
      7.11191242801042348e-8,  1.06834429267445865e-7,   -1.6357383982124768e-8,
      -1.25448254038555187e-8, 1.57121536383190637e-9,   9.65540822548286374e-10};
  static constexpr double kErfcFarthest = 27.3;
};

template <class T>
struct Exponential {
  Vector<T> exp, expm1;
};

// exp(x) and expm1(x) from one reduction x = n ln 2 + r: with q = expm1(r) they are
// 2^n (1 + q) and 2^n q + (2^n - 1), neither of which cancels. For x between kExpLowest and
// kExpHighest.
template <class T>
VEGRAD_INLINE Exponential<T> exponential_inside(Vector<T> x) {
  using C = MathConstants<T>;
  const Vector<T> shifted = fma(x, splat<T>(C::kLog2e), splat<T>(C::kRound));
  const Vector<T> n = shifted - C::kRound;
  const Vector<T> r = fma(n, splat<T>(-C::kLn2Low), fma(n, splat<T>(-C::kLn2High), x));
  const Vector<T> q = fma(r * r, polynomial<T>(r, C::kExp), r);
  const Bits<T> exponent = (Bits<T>)shifted << C::kMantissaBits;  // kRound's own bits drop out
  const Vector<T> scale = (Vector<T>)(exponent + (Bits<T>)splat<T>(T(1)));
  return {scale * (q + T(1)), fma(scale, q, scale - T(1))};
}

// The same for any x up to kExpHighest.
template <class T>
VEGRAD_INLINE Exponential<T> exponential(Vector<T> x) {
  using C = MathConstants<T>;
  const Exponential<T> e = exponential_inside<T>(at_least<T>(x, C::kExpLowest));
  const Bits<T> tiny = x < splat<T>(C::kExpLowest);
  return {select<T>(tiny, Vector<T>{}, e.exp), select<T>(tiny, splat<T>(T(-1)), e.expm1)};
}

// log(1 + t) for t in [0, 1], as 2 atanh(t / (2 + t)), or t itself where halves would be flushed.
template <class T>
VEGRAD_INLINE Vector<T> log1p_unit(Vector<T> t) {
  const Vector<T> s = t * reciprocal<T>(t + T(2));
  const Vector<T> s2 = s * s;
  const Vector<T> log = fma(s * s2, polynomial<T>(s2, MathConstants<T>::kAtanh), s + s);
  return select<T>(t < splat<T>(std::numeric_limits<T>::epsilon() / 4), t, log);
}

// erf(x) for |x| <= 1; something finite elsewhere.
template <class T>
VEGRAD_INLINE Vector<T> erf_inner(Vector<T> x) {
  return x * polynomial<T>(at_most<T>(x * x, T(1)), MathConstants<T>::kErf);
}

// erfc(x) for x >= 0, given exp(-x^2): Shepherd & Laframboise 1981.
template <class T>
VEGRAD_INLINE Vector<T> erfc_positive(Vector<T> x, Vector<T> exp_minus_square) {
  using C = MathConstants<T>;
  const Vector<T> bounded = at_most<T>(x, C::kErfcFarthest);
  const Vector<T> t = (bounded - C::kErfcCenter) / (bounded + C::kErfcCenter);
  const Vector<T> scaled =
      polynomial<T>(t, C::kErfc) / fma(bounded, splat<T>(T(2)), splat<T>(T(1)));
  return exp_minus_square * scaled;
}

}  // namespace
}  // namespace vegrad

// φ and φ′ on vectors, one struct an activation. at(z, h, d) gives both, for they share their
// exponential; a caller that wants one of them pays for no more after inlining.
//
// An activation may have a form that the forward pass keeps in place of z, in one number, so that
// the backward pass has φ and φ′ from it without another exponential, and with all their digits.
// keep(z, h, kept) makes it, from_kept(kept, h, d) reads it.
#pragma once

#include "kernels/activation_table.hpp"
#include "simd/math.hpp"

namespace vegrad {
namespace {

struct identity {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    h = z;
    d = splat<T>(T(1));
  }
};

// With t = exp(-|z|): σ(|z|) = 1/(1 + t), σ(-|z|) = t/(1 + t), σ′ = t/(1 + t)².
template <class T>
struct Logistic {
  Vector<T> t, lower, upper, value, derivative;
};
template <class T>
VEGRAD_INLINE Logistic<T> logistic(Vector<T> z) {
  const Vector<T> t = exponential<T>(-absolute<T>(z)).exp;
  const Vector<T> upper = reciprocal<T>(t + T(1));
  const Vector<T> lower = t * upper;
  return {t, lower, upper, select<T>(z < Vector<T>{}, lower, upper), lower * upper};
}

struct sigmoid {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Logistic<T> s = logistic<T>(z);
    h = s.value;
    d = s.derivative;
  }
  // σ(-|z|) with the sign of z.
  template <class T>
  static VEGRAD_INLINE void keep(Vector<T> z, Vector<T>& h, Vector<T>& kept) {
    const Logistic<T> s = logistic<T>(z);
    h = s.value;
    kept = with_sign<T>(s.lower, z);
  }
  template <class T>
  static VEGRAD_INLINE void from_kept(Vector<T> kept, Vector<T>& h, Vector<T>& d) {
    const Vector<T> lower = absolute<T>(kept), upper = T(1) - lower;
    h = select<T>(negative<T>(kept), lower, upper);
    d = lower * upper;
  }
};

// With E = expm1(2|z|): tanh|z| = E/(E + 2), tanh′ = 4 (E + 1)/(E + 2)². From the derivative's
// own formula and not as 1 - h², which has no digits left where tanh is saturated.
struct tanh {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Parts<T> p(z);
    h = with_sign<T>(p.e * p.q, z);
    d = select<T>(p.beyond, Vector<T>{}, ((p.e + T(1)) * p.q) * (p.q * T(4)));
  }

  // h up to 1/2, beyond it 1 - |h| = 2/(E + 2), scaled to be above 1; with the sign of z. Where
  // 1 - |h| is no number of T, something that scales back to zero.
  template <class T>
  static VEGRAD_INLINE void keep(Vector<T> z, Vector<T>& h, Vector<T>& kept) {
    const Parts<T> p(z);
    const Vector<T> q = with_sign<T>(p.q, z);
    const Vector<T> rest = q * select<T>(p.beyond, splat<T>(kNoRest<T>), splat<T>(2 * kUp<T>));
    h = p.e * q;
    kept = select<T>(p.e > splat<T>(T(2)), rest, h);
  }
  template <class T>
  static VEGRAD_INLINE void from_kept(Vector<T> kept, Vector<T>& h, Vector<T>& d) {
    const Vector<T> a = absolute<T>(kept);
    const Bits<T> is_rest = a > splat<T>(T(kSmallestRest));
    const Vector<T> rest = select<T>(is_rest, a * (1 / kUp<T>), T(1) - a);
    h = with_sign<T>(select<T>(is_rest, T(1) - rest, a), kept);
    d = rest * (T(2) - rest);
  }

 private:
  template <class T>
  struct Parts {
    Bits<T> beyond;  // the normal range of 1/E
    Vector<T> e, q;  // E, 1/(E + 2)
    VEGRAD_INLINE explicit Parts(Vector<T> z) {
      const Vector<T> a = absolute<T>(z), doubled = a + a;
      const Vector<T> highest = splat<T>(MathConstants<T>::kExpHighest);
      beyond = doubled > highest;
      e = exponential_inside<T>(select<T>(beyond, highest, doubled)).expm1;
      q = reciprocal<T>(e + T(2));
    }
  };
  template <class T>
  static constexpr T kUp = sizeof(T) == 4 ? T(0x1p126) : T(0x1p1022);
  static constexpr double kSmallestRest = 0.75;
  // Times the q of kExpHighest it is 7/8.
  template <class T>
  static constexpr T kNoRest = sizeof(T) == 4 ? T(5.3165e37) : T(2.6455e307);
};

template <class T>
VEGRAD_INLINE void slopes(Vector<T> z, T below, T above, Vector<T>& h, Vector<T>& d) {
  d = select<T>(z > Vector<T>{}, splat<T>(above), splat<T>(below));
  h = z * d;
}

struct relu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Bits<T> off = z <= Vector<T>{};  // false for NaN, which must come through
    h = select<T>(off, Vector<T>{}, z);
    d = select<T>(off, Vector<T>{}, splat<T>(T(1)));
  }
};

struct leaky_relu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    slopes<T>(z, T(kLeakySlope), T(1), h, d);
  }
};

struct elu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Bits<T> positive = z > Vector<T>{};
    const Exponential<T> e = exponential<T>(select<T>(positive, Vector<T>{}, z));
    h = select<T>(positive, z, e.expm1);
    d = e.exp;  // exp(0) = 1 for the positive ones
  }
};

struct selu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Bits<T> positive = z > Vector<T>{};
    const Exponential<T> e = exponential<T>(select<T>(positive, Vector<T>{}, z));
    const T lower = T(kSeluScale * kSeluAlpha);
    h = select<T>(positive, z * T(kSeluScale), e.expm1 * lower);
    d = select<T>(positive, splat<T>(T(kSeluScale)), e.exp * lower);
  }
};

// z Φ(z), Φ = 1/2 + erf(z/√2)/2 in the middle, erfc(|z|/√2)/2 outside; derivative
// Φ + z exp(-z²/2)/√(2π).
struct gelu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const T bound = T(sizeof(T) == 4 ? 1e18 : 1e150);  // keeps z² finite
    const Vector<T> c = at_most<T>(at_least<T>(z, -bound), bound);
    const Vector<T> e = exponential<T>(c * c * T(-0.5)).exp;
    const Vector<T> x = c * T(kSqrtHalf);
    const Vector<T> tail = erfc_positive<T>(absolute<T>(x), e) * T(0.5);
    const Vector<T> outer = select<T>(z < Vector<T>{}, tail, T(1) - tail);
    const Vector<T> half_erf = erf_inner<T>(x) * T(0.5);
    const Vector<T> phi = select<T>(absolute<T>(x) > splat<T>(T(0.5)), outer, half_erf + T(0.5));
    h = select<T>(z < Vector<T>{}, c, z) * phi;
    d = fma(c * e, splat<T>(T(kOneOverSqrtTwoPi)), phi);
  }
};

// z σ(z); derivative σ(z) (1 + z σ(-z)).
struct silu {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const T bound = T(sizeof(T) == 4 ? 1e18 : 1e150);  // keeps ∞ · 0 away
    const Vector<T> c = at_most<T>(at_least<T>(z, -bound), bound);
    const Logistic<T> s = logistic<T>(z);
    const Vector<T> other = select<T>(z < Vector<T>{}, s.upper, s.t * s.upper);
    h = select<T>(z < Vector<T>{}, c, z) * s.value;
    d = s.value * fma(c, other, splat<T>(T(1)));
  }
};

// max(z, 0) + log(1 + exp(-|z|)); derivative σ(z).
struct softplus {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Logistic<T> s = logistic<T>(z);
    h = select<T>(z < Vector<T>{}, Vector<T>{}, z) + log1p_unit<T>(s.t);
    d = s.value;
  }
};

struct hard_tanh {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    h = at_most<T>(at_least<T>(z, T(-1)), T(1));
    d = select<T>(absolute<T>(z) >= splat<T>(T(1)), Vector<T>{}, splat<T>(T(1)));
  }
};

struct erf {
  template <class T>
  static VEGRAD_INLINE void at(Vector<T> z, Vector<T>& h, Vector<T>& d) {
    const Vector<T> a = at_most<T>(absolute<T>(z), MathConstants<T>::kErfcFarthest);
    const Vector<T> e = exponential<T>(-(a * a)).exp;
    const Vector<T> inner = erf_inner<T>(a);
    const Vector<T> outer = T(1) - erfc_positive<T>(a, e);
    h = with_sign<T>(select<T>(a > splat<T>(T(1)), outer, inner), z);
    d = e * T(kTwoOverSqrtPi);
  }
};

}  // namespace
}  // namespace vegrad

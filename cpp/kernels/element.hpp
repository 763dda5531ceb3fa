// Elements of every type as vectors of double, and back, rounded to nearest.
#pragma once

#include "kernels/run_table.hpp"
#include "simd/vector.hpp"

namespace vegrad {
namespace {

// Vectors of as many narrower elements as there are doubles in one.
constexpr int kWide = kLanes<double>;
typedef float NarrowFloat __attribute__((vector_size(VEGRAD_VECTOR_BYTES / 2)));
typedef std::uint32_t NarrowBits __attribute__((vector_size(VEGRAD_VECTOR_BYTES / 2)));
#if VEGRAD_VECTOR_BYTES == 32
typedef std::uint64_t HalfBits;  // four of 16 bits: no vector type has this size
#else
typedef std::uint16_t HalfBits __attribute__((vector_size(VEGRAD_VECTOR_BYTES / 4)));
#endif

// One instruction each, which GCC does not find for its vectors.
VEGRAD_INLINE Vector<double> to_double(NarrowFloat v) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_maskz_cvtps_pd(0xff, (__m256)v);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_cvtps_pd((__m128)v);
#else
  return __builtin_convertvector(v, Vector<double>);
#endif
}
VEGRAD_INLINE NarrowFloat to_float(Vector<double> v) {
#if VEGRAD_VECTOR_BYTES == 64
  return (NarrowFloat)_mm512_maskz_cvtpd_ps(0xff, (__m512d)v);
#elif VEGRAD_VECTOR_BYTES == 32
  return (NarrowFloat)_mm256_cvtpd_ps((__m256d)v);
#else
  return __builtin_convertvector(v, NarrowFloat);
#endif
}
VEGRAD_INLINE NarrowBits to_bits(HalfBits v) {
#if VEGRAD_VECTOR_BYTES == 64
  return (NarrowBits)_mm256_maskz_cvtepu16_epi32(0xff, (__m128i)v);
#elif VEGRAD_VECTOR_BYTES == 32
  return (NarrowBits)_mm_cvtepu16_epi32(_mm_cvtsi64_si128((long long)v));
#else
  return __builtin_convertvector(v, NarrowBits);
#endif
}
VEGRAD_INLINE HalfBits to_half_bits(NarrowBits v) {  // that fit
#if VEGRAD_VECTOR_BYTES == 64
  return (HalfBits)_mm256_maskz_cvtepi32_epi16(0xff, (__m256i)v);
#elif VEGRAD_VECTOR_BYTES == 32
  return (HalfBits)_mm_cvtsi128_si64(_mm_packus_epi32((__m128i)v, (__m128i)v));
#else
  return __builtin_convertvector(v, HalfBits);
#endif
}

// x as floats that are rounded to odd: what they lose is still seen by a second rounding, to fewer
// digits, so that both together round as one.
VEGRAD_INLINE NarrowFloat to_odd_float(Vector<double> x) {
  const Bits<double> low = Bits<double>{} + ((std::int64_t(1) << 29) - 1);
  const Bits<double> bits = (Bits<double>)x, lost = (bits & low) != 0;
  return to_float((Vector<double>)((bits & ~low) | (lost & (low + 1))));
}

// How elements of a type lie in memory, kWide at a time, and what they are as doubles.
template <class E>
struct Elements;

template <>
struct Elements<double> {
  using Stored = Vector<double>;
  static VEGRAD_INLINE Vector<double> widen(Stored v) { return v; }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) { return x; }
};

template <>
struct Elements<float> {
  using Stored = NarrowFloat;
  static VEGRAD_INLINE Vector<double> widen(Stored v) { return to_double(v); }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) { return to_float(x); }
};

template <>
struct Elements<bfloat16> {
  using Stored = HalfBits;
  static VEGRAD_INLINE Vector<double> widen(Stored v) {
    return to_double((NarrowFloat)(to_bits(v) << 16));
  }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) {
    // Subnormals of float are rounded to bfloat16's here, by a sum that has no room for less.
    const Vector<double> magnitude = absolute<double>(x), room = splat<double>(0x1.8p-81);
    const Vector<double> coarse = with_sign<double>((magnitude + room) - room, x);
    x = select<double>(magnitude < 0x1p-126, coarse, x);
    const NarrowBits bits = (NarrowBits)to_odd_float(x);
    const NarrowBits rounded = (bits + 0x7fffu + (bits >> 16 & 1u)) >> 16;
    const NarrowBits nan = (NarrowBits)((bits & 0x7fffffffu) > 0x7f800000u);
    return to_half_bits((nan & (bits >> 16 | 0x40u)) | (~nan & rounded));
  }
};

template <>
struct Elements<float16> {
  using Stored = HalfBits;
#if VEGRAD_VECTOR_BYTES == 64
  static VEGRAD_INLINE Vector<double> widen(Stored v) {
    return to_double((NarrowFloat)_mm256_maskz_cvtph_ps(0xff, (__m128i)v));
  }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) {
    return (Stored)_mm256_maskz_cvtps_ph(0xff, (__m256)to_odd_float(x), _MM_FROUND_TO_NEAREST_INT);
  }
#elif VEGRAD_VECTOR_BYTES == 32
  static VEGRAD_INLINE Vector<double> widen(Stored v) {
    return to_double((NarrowFloat)_mm_cvtph_ps(_mm_cvtsi64_si128((long long)v)));
  }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) {
    const __m128 v = (__m128)to_odd_float(x);
    return (Stored)_mm_cvtsi128_si64(_mm_cvtps_ph(v, _MM_FROUND_TO_NEAREST_INT));
  }
#else
  static VEGRAD_INLINE Vector<double> widen(Stored v) {
    // The exponent's bias differs by 112, which a multiplication settles, of subnormals too.
    const NarrowBits bits = to_bits(v), magnitude = bits & 0x7fffu;
    const NarrowBits finite = (NarrowBits)((NarrowFloat)(magnitude << 13) * 0x1p112f);
    const NarrowBits unbounded = magnitude << 13 | 0x7f800000u;
    const NarrowBits large = (NarrowBits)(magnitude >= 0x7c00u);
    return to_double(
        (NarrowFloat)((bits & 0x8000u) << 16 | (large & unbounded) | (~large & finite)));
  }
  static VEGRAD_INLINE Stored narrow(Vector<double> x) {
    const NarrowBits bits = (NarrowBits)to_odd_float(x), magnitude = bits & 0x7fffffffu;
    // Below 2^-14 the sum with 0.5 rounds at 2^-24, and its low bits are the result's.
    const NarrowBits small = (NarrowBits)((NarrowFloat)magnitude + 0.5f) - 0x3f000000u;
    const NarrowBits normal = (magnitude - 0x38000000u + 0xfffu + (magnitude >> 13 & 1u)) >> 13;
    const NarrowBits is_small = (NarrowBits)(magnitude < 0x38800000u);
    const NarrowBits is_large = (NarrowBits)(magnitude >= 0x477ff000u);  // 65520 and more: inf
    const NarrowBits is_nan = (NarrowBits)(magnitude > 0x7f800000u);
    const NarrowBits large = 0x7c00u | (is_nan & 0x200u);
    return to_half_bits((bits >> 16 & 0x8000u) | (is_small & small) | (is_large & large) |
                        (~(is_small | is_large) & normal));
  }
#endif
};

template <class E>
VEGRAD_INLINE typename Elements<E>::Stored load_elements(const E* p) {
  typename Elements<E>::Stored v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class E>
VEGRAD_INLINE Vector<double> load_wide(const E* p) {
  return Elements<E>::widen(load_elements(p));
}

// The first n of as many elements, zeros for the others, which are not touched in memory; any n.
VEGRAD_INLINE Vector<double> load_first_wide(const double* p, int n) {
  return load_first<double>(p, n);
}
VEGRAD_INLINE Vector<double> load_first_wide(const float* p, int n) {
#if VEGRAD_VECTOR_BYTES == 64
  return to_double((NarrowFloat)_mm256_maskz_loadu_ps((__mmask8)lane_bits<double>(n), p));
#elif VEGRAD_VECTOR_BYTES == 32
  const __m128i numbers = _mm_setr_epi32(0, 1, 2, 3);
  return to_double((NarrowFloat)_mm_maskload_ps(p, _mm_cmpgt_epi32(_mm_set1_epi32(n), numbers)));
#else
  float lanes[kWide] = {};
  for (int i = 0; i < lanes_within<double>(n); ++i) lanes[i] = p[i];
  return load_wide(lanes);
#endif
}

}  // namespace
}  // namespace vegrad

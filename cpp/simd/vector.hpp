// The vector vocabulary: the same names at every register width.
//
// Included once by each file of isa/, inside its target region, after VEGRAD_VECTOR_BYTES (16, 32
// or 64) is defined. Built on the vector extensions of GCC and Clang; intrinsics only where these
// have no word for it. Everything has internal linkage, so that no instance for one instruction
// set can be picked by the linker for another.
#pragma once

namespace vegrad {
namespace {

template <class T>
struct Lane;
template <>
struct Lane<float> {
  typedef float Vector __attribute__((vector_size(VEGRAD_VECTOR_BYTES)));
  typedef int32_t Bits __attribute__((vector_size(VEGRAD_VECTOR_BYTES)));
  typedef int32_t Integer;
};
template <>
struct Lane<double> {
  typedef double Vector __attribute__((vector_size(VEGRAD_VECTOR_BYTES)));
  typedef int64_t Bits __attribute__((vector_size(VEGRAD_VECTOR_BYTES)));
  typedef int64_t Integer;
};

template <class T>
using Vector = typename Lane<T>::Vector;
template <class T>
using Bits = typename Lane<T>::Bits;

template <class T>
constexpr int kLanes = VEGRAD_VECTOR_BYTES / int(sizeof(T));

#define VEGRAD_INLINE inline __attribute__((always_inline))

// The same pointer, of which the compiler knows nothing more.
template <class P>
VEGRAD_INLINE P* opaque(P* p) {
  asm("" : "+r"(p));
  return p;
}

template <class T>
VEGRAD_INLINE Vector<T> splat(T x) {
  return x - Vector<T>{};
}

template <class T>
VEGRAD_INLINE Vector<T> load(const T* p) {
  Vector<T> v;
  __builtin_memcpy(&v, p, sizeof v);
  return v;
}

template <class T>
VEGRAD_INLINE void store(T* p, Vector<T> v) {
  __builtin_memcpy(p, &v, sizeof v);
}

// The numbers of the lanes.
template <class T>
struct LaneNumbers {
  alignas(VEGRAD_VECTOR_BYTES) typename Lane<T>::Integer number[kLanes<T>];
  constexpr LaneNumbers() : number() {
    for (int lane = 0; lane < kLanes<T>; ++lane) number[lane] = lane;
  }
};
template <class T>
constexpr LaneNumbers<T> kLaneNumbers{};

// All bits set in the first n lanes: in none if n < 0, in all if n > kLanes.
template <class T>
VEGRAD_INLINE Bits<T> first_lanes(int n) {
  Bits<T> numbers;
  __builtin_memcpy(&numbers, kLaneNumbers<T>.number, sizeof numbers);
  return numbers < (Bits<T>{} + typename Lane<T>::Integer(n));
}

// How many of the first n lanes exist: n, brought to 0 … kLanes. Whatever touches memory lane by
// lane counts with this: a shift by a negative number is undefined and, as x86 takes it modulo 32,
// selects lanes that lie far beyond the row.
template <class T>
VEGRAD_INLINE int lanes_within(int n) {
  return n < 0 ? 0 : n > kLanes<T> ? kLanes<T> : n;
}

#if VEGRAD_VECTOR_BYTES == 64
// A bit for each of the first n lanes, whatever n is.
template <class T>
VEGRAD_INLINE unsigned lane_bits(int n) {
  return (1u << lanes_within<T>(n)) - 1;
}
#endif

// The first n lanes; the others are zero, and not touched in memory. Any n is allowed.
template <class T>
VEGRAD_INLINE Vector<T> load_first(const T* p, int n) {
#if VEGRAD_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm512_maskz_loadu_ps((__mmask16)lane_bits<T>(n), p);
  else
    return (Vector<T>)_mm512_maskz_loadu_pd((__mmask8)lane_bits<T>(n), p);
#elif VEGRAD_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    return (Vector<T>)_mm256_maskload_ps(p, (__m256i)first_lanes<T>(n));
  else
    return (Vector<T>)_mm256_maskload_pd(p, (__m256i)first_lanes<T>(n));
#else
  T lanes[kLanes<T>] = {};
  for (int i = 0; i < lanes_within<T>(n); ++i) lanes[i] = p[i];
  return load<T>(lanes);
#endif
}

// A vector of a row that ends at `columns` in memory that is not padded.
template <class T>
VEGRAD_INLINE Vector<T> load_padded(const T* row, int j, int columns) {
  return columns - j < kLanes<T> ? load_first<T>(row + j, columns - j) : load<T>(row + j);
}

// Writes the first n lanes and touches nothing else. Any n is allowed.
template <class T>
VEGRAD_INLINE void store_first(T* p, Vector<T> v, int n) {
#if VEGRAD_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4)
    _mm512_mask_storeu_ps(p, (__mmask16)lane_bits<T>(n), (__m512)v);
  else
    _mm512_mask_storeu_pd(p, (__mmask8)lane_bits<T>(n), (__m512d)v);
#elif VEGRAD_VECTOR_BYTES == 32
  if constexpr (sizeof(T) == 4)
    _mm256_maskstore_ps(p, (__m256i)first_lanes<T>(n), (__m256)v);
  else
    _mm256_maskstore_pd(p, (__m256i)first_lanes<T>(n), (__m256d)v);
#else
  T lanes[kLanes<T>];
  store<T>(lanes, v);
  for (int i = 0; i < lanes_within<T>(n); ++i) p[i] = lanes[i];
#endif
}

template <class T>
VEGRAD_INLINE Vector<T> keep(Bits<T> mask, Vector<T> v) {
  return (Vector<T>)((Bits<T>)v & mask);
}

template <class T>
VEGRAD_INLINE Vector<T> select(Bits<T> mask, Vector<T> yes, Vector<T> no) {
  return mask ? yes : no;
}

// Where the sign bit is set, of a zero or a NaN too.
template <class T>
VEGRAD_INLINE Bits<T> negative(Vector<T> v) {
  return (Bits<T>)v < Bits<T>{};
}

template <class T>
VEGRAD_INLINE Vector<T> absolute(Vector<T> v) {
  const Bits<T> sign = (Bits<T>)splat<T>(T(-0.0));
  return (Vector<T>)((Bits<T>)v & ~sign);
}

// v, which is not negative, with the sign of s.
template <class T>
VEGRAD_INLINE Vector<T> with_sign(Vector<T> v, Vector<T> s) {
  const Bits<T> sign = (Bits<T>)splat<T>(T(-0.0));
  return (Vector<T>)((Bits<T>)v | ((Bits<T>)s & sign));
}

// a > b ? a : b and a < b ? a : b: b if either is NaN. One instruction, which GCC does not find.
VEGRAD_INLINE Vector<float> larger(Vector<float> a, Vector<float> b) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_max_ps(0xffff, a, b);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_max_ps(a, b);
#else
  return a > b ? a : b;
#endif
}
VEGRAD_INLINE Vector<double> larger(Vector<double> a, Vector<double> b) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_maskz_max_pd(0xff, a, b);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_max_pd(a, b);
#else
  return a > b ? a : b;
#endif
}
VEGRAD_INLINE Vector<float> smaller(Vector<float> a, Vector<float> b) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_min_ps(0xffff, a, b);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_min_ps(a, b);
#else
  return a < b ? a : b;
#endif
}
VEGRAD_INLINE Vector<double> smaller(Vector<double> a, Vector<double> b) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_maskz_min_pd(0xff, a, b);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_min_pd(a, b);
#else
  return a < b ? a : b;
#endif
}

// Clamps that let NaN through.
template <class T>
VEGRAD_INLINE Vector<T> at_least(Vector<T> v, T low) {
  return larger(splat<T>(low), v);
}
template <class T>
VEGRAD_INLINE Vector<T> at_most(Vector<T> v, T high) {
  return smaller(splat<T>(high), v);
}

// a * b + c, rounded once where the instruction set can. GCC has no such operation on its vectors.
VEGRAD_INLINE Vector<float> fma(Vector<float> a, Vector<float> b, Vector<float> c) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(VEGRAD_ARM)
  return (Vector<float>)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}
VEGRAD_INLINE Vector<double> fma(Vector<double> a, Vector<double> b, Vector<double> c) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_fmadd_pd((__m512d)a, (__m512d)b, (__m512d)c);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_fmadd_pd((__m256d)a, (__m256d)b, (__m256d)c);
#elif defined(VEGRAD_ARM)
  return (Vector<double>)vfmaq_f64((float64x2_t)c, (float64x2_t)a, (float64x2_t)b);
#else
  return a * b + c;
#endif
}

// 1 / x to about an ulp, for x whose inverse is a normal number (else it may be NaN): an estimate
// and one step of Newton's where the instruction set has a good one, at a third of a division.
template <class T>
VEGRAD_INLINE Vector<T> reciprocal(Vector<T> x) {
#if VEGRAD_VECTOR_BYTES == 64
  if constexpr (sizeof(T) == 4) {
    const Vector<T> r = (Vector<T>)_mm512_maskz_rcp14_ps(0xffff, (__m512)x);
    return fma(r, fma(-x, r, splat<T>(T(1))), r);
  }
#endif
  return T(1) / x;
}

VEGRAD_INLINE Vector<float> square_root(Vector<float> x) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<float>)_mm512_maskz_sqrt_ps(0xffff, (__m512)x);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<float>)_mm256_sqrt_ps((__m256)x);
#elif defined(VEGRAD_ARM)
  return (Vector<float>)vsqrtq_f32((float32x4_t)x);
#elif defined(VEGRAD_X86)
  return (Vector<float>)_mm_sqrt_ps((__m128)x);
#else
  for (int i = 0; i < kLanes<float>; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}
VEGRAD_INLINE Vector<double> square_root(Vector<double> x) {
#if VEGRAD_VECTOR_BYTES == 64
  return (Vector<double>)_mm512_maskz_sqrt_pd(0xff, (__m512d)x);
#elif VEGRAD_VECTOR_BYTES == 32
  return (Vector<double>)_mm256_sqrt_pd((__m256d)x);
#elif defined(VEGRAD_ARM)
  return (Vector<double>)vsqrtq_f64((float64x2_t)x);
#elif defined(VEGRAD_X86)
  return (Vector<double>)_mm_sqrt_pd((__m128d)x);
#else
  for (int i = 0; i < kLanes<double>; ++i) x[i] = __builtin_sqrt(x[i]);
  return x;
#endif
}

// The sum of the lanes in double, pairwise.
template <class T>
VEGRAD_INLINE double sum(Vector<T> v) {
  T lanes[kLanes<T>];
  store<T>(lanes, v);
  double wide[kLanes<T>];
  for (int i = 0; i < kLanes<T>; ++i) wide[i] = double(lanes[i]);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) wide[i] += wide[i + half];
  return wide[0];
}

// The sum of the lanes in T, pairwise.
template <class T>
VEGRAD_INLINE T total(Vector<T> v) {
  T lanes[kLanes<T>];
  store<T>(lanes, v);
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Lanes of a (numbers below kLanes) and b by a vector of numbers known at compile time.
#if defined(__clang__) && VEGRAD_VECTOR_BYTES == 64
template <class T>  // which Clang does not find for a loop over lanes
VEGRAD_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, Bits<T> numbers) {
  if constexpr (sizeof(T) == sizeof(float))
    return (Vector<T>)_mm512_permutex2var_ps((__m512)a, (__m512i)numbers, (__m512)b);
  else
    return (Vector<T>)_mm512_permutex2var_pd((__m512d)a, (__m512i)numbers, (__m512d)b);
}
#elif defined(__clang__)
template <class T>
VEGRAD_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, Bits<T> numbers) {
  Vector<T> v;
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    v[i] = numbers[i] < kLanes<T> ? a[numbers[i]] : b[numbers[i] - kLanes<T>];
  return v;
}
#else
template <class T>
VEGRAD_INLINE Vector<T> shuffle(Vector<T> a, Vector<T> b, Bits<T> numbers) {
  return __builtin_shuffle(a, b, numbers);
}
#endif

// `total`, where each true lane counts as -1, with those of a comparison.
template <class T>
VEGRAD_INLINE Bits<T> count_in(Bits<T> total, Bits<T> mask) {
  return mask ? total - 1 : total;
}

// How many lanes of a comparison are true, or what count_in() has counted up to now.
template <class T>
VEGRAD_INLINE int count(Bits<T> mask) {
  typename Lane<T>::Integer lanes[kLanes<T>];
  __builtin_memcpy(lanes, &mask, sizeof mask);
  int n = 0;
  for (int i = 0; i < kLanes<T>; ++i) n -= int(lanes[i]);
  return n;
}

// c[0] + c[1] x + … (Horner; the loop is unrolled, its chain overlaps with the next vector's).
template <class T, int N>
VEGRAD_INLINE Vector<T> polynomial(Vector<T> x, const T (&c)[N]) {
  Vector<T> y = splat<T>(c[N - 1]);
#pragma GCC unroll 32
  for (int i = N - 2; i >= 0; --i) y = fma(y, x, splat<T>(c[i]));
  return y;
}

}  // namespace
}  // namespace vegrad

// The three products of a layer for a small batch, of one to four rows.
//
// Such a product reads each weight once, so that packing the weights would not pay: weights and
// their gradient are streamed in the order in which they lie in memory, and what belongs to the
// batch stays in registers. Weights are the network's or a caller's own, without padding: the last
// columns of a row are read and written with masks.
#pragma once

#include "kernels/product.hpp"

namespace vegrad {
namespace {

// Lane by lane, a where the bit HALF of the lane's number is 0 and b where it is 1, each added to
// its own lane on the other side of that bit.
template <class T, int HALF>
VEGRAD_INLINE Vector<T> fold(Vector<T> a, Vector<T> b) {
  Bits<T> low, high;
  __builtin_memcpy(&low, kExchange<T, HALF>.low, sizeof low);
  __builtin_memcpy(&high, kExchange<T, HALF>.high, sizeof high);
  return shuffle<T>(a, b, low) + shuffle<T>(a, b, high);
}

template <class T, int HALF>
VEGRAD_INLINE Vector<T> fold_down(Vector<T> v) {
  if constexpr (HALF == 0)
    return v;
  else
    return fold_down<T, HALF / 2>(fold<T, HALF>(v, v));
}

// The sums of the lanes of each of four vectors.
template <class T>
VEGRAD_INLINE void totals(const Vector<T> (&v)[4], T* out) {
  constexpr int n = kLanes<T>;
  if constexpr (n < 4) {
    for (int j = 0; j < 4; ++j) out[j] = total<T>(v[j]);
  } else {
    const Vector<T> all = fold<T, n / 4>(fold<T, n / 2>(v[0], v[2]), fold<T, n / 2>(v[1], v[3]));
    T lanes[n];
    store<T>(lanes, fold_down<T, n / 8>(all));
    for (int j = 0; j < 4; ++j) out[j] = lanes[j * (n / 4)];
  }
}

// c (ROWS, COLUMNS) = a (ROWS, k) bᵀ.
template <class T, int ROWS, int COLUMNS>
VEGRAD_INLINE void inner_products(int k, const T* a, std::ptrdiff_t lda, const T* b,
                                  std::ptrdiff_t ldb, T* c, std::ptrdiff_t ldc) {
  Vector<T> sum[ROWS][4] = {};
  int p = 0;
  for (; p + kLanes<T> <= k; p += kLanes<T>)
#pragma GCC unroll 4
    for (int j = 0; j < COLUMNS; ++j) {
      const Vector<T> y = load<T>(b + j * ldb + p);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) sum[i][j] = fma(load<T>(a + i * lda + p), y, sum[i][j]);
    }
  if (p < k)
    for (int j = 0; j < COLUMNS; ++j) {
      const Vector<T> y = load_first<T>(b + j * ldb + p, k - p);
      for (int i = 0; i < ROWS; ++i)
        sum[i][j] = fma(load_first<T>(a + i * lda + p, k - p), y, sum[i][j]);
    }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i) {
    T sums[4];
    totals<T>(sum[i], sums);
    for (int j = 0; j < COLUMNS; ++j) c[i * ldc + j] = sums[j];
  }
}

template <class T, int ROWS>
void small_forward(const SmallBatch<T>& t) {
  int o = 0;
  for (; o + 4 <= t.O; o += 4)
    inner_products<T, ROWS, 4>(t.I, t.h, t.ldh, t.weights + o * t.ldw, t.ldw, t.out + o, t.ld_out);
  for (; o < t.O; ++o)
    inner_products<T, ROWS, 1>(t.I, t.h, t.ldh, t.weights + o * t.ldw, t.ldw, t.out + o, t.ld_out);
}

// Vector j of a block of columns, `left` of which exist: zeros, and no access to memory, where the
// whole vector lies beyond them.
template <class T>
VEGRAD_INLINE Vector<T> load_columns(const T* p, int j, int left) {
  return j * kLanes<T> < left ? load_padded<T>(p, j * kLanes<T>, left) : Vector<T>{};
}

// out (ROWS, VECTORS) = delta (ROWS, O) weights (O, VECTORS), from the last row up: the layer below
// lies before this one.
template <class T, int ROWS, int VECTORS, bool WHOLE>
VEGRAD_INLINE void small_backward_block(const SmallBatch<T>& t, int begin) {
  const int left = WHOLE ? VECTORS * kLanes<T> : t.I - begin;
  Vector<T> sum[ROWS][VECTORS] = {};
  for (int o = 0; o < t.O; ++o) {
    const T* const w = t.weights + o * t.ldw + begin;
    Vector<T> x[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) x[i] = splat<T>(t.delta[i * t.ld_delta + o]);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {
      const Vector<T> y = WHOLE ? load<T>(w + j * kLanes<T>) : load_columns<T>(w, j, left);
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) sum[i][j] = fma(x[i], y, sum[i][j]);
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j)
      if (WHOLE || j * kLanes<T> < left)
        store<T>(t.out + i * t.ld_out + begin + j * kLanes<T>, sum[i][j]);
}

// out (O, VECTORS) = deltaᵀ (O, ROWS) h (ROWS, VECTORS), times so many FACTORS. Returns the sum of
// squares before them, unless there is one row, whose product has the norm of its factors.
template <class T, int ROWS, int VECTORS, bool WHOLE, int FACTORS>
VEGRAD_INLINE Vector<T> small_gradient_block(const SmallBatch<T>& t, int begin) {
  const int left = WHOLE ? VECTORS * kLanes<T> : t.I - begin;
  Vector<T> h[ROWS][VECTORS], squares[VECTORS] = {};
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j)
      h[i][j] = WHOLE ? load<T>(t.h + i * t.ldh + begin + j * kLanes<T>)
                      : load_columns<T>(t.h + i * t.ldh + begin, j, left);
  T* out = t.out - t.ld_out + begin;
  for (int o = 0; o < t.O; ++o) {
    out = opaque(out + t.ld_out);
    Vector<T> x[ROWS];
#pragma GCC unroll 4
    for (int i = 0; i < ROWS; ++i) x[i] = splat<T>(t.delta[i * t.ld_delta + o]);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) {
      if (!WHOLE && j * kLanes<T> >= left) continue;
      Vector<T> v = x[0] * h[0][j];
#pragma GCC unroll 4
      for (int i = 1; i < ROWS; ++i) v = fma(x[i], h[i][j], v);
      if (ROWS > 1) squares[j] = fma(v, v, squares[j]);
      if (FACTORS > 0) v = v * t.first;
      if (FACTORS > 1) v = v * t.second;
      if (WHOLE || left >= (j + 1) * kLanes<T>)
        store<T>(out + j * kLanes<T>, v);
      else
        store_first<T>(out + j * kLanes<T>, v, left - j * kLanes<T>);
    }
  }
  Vector<T> sum = squares[0];
#pragma GCC unroll 8
  for (int j = 1; j < VECTORS; ++j) sum = sum + squares[j];
  return sum;
}

// Vectors of a block: what belongs to the batch fits the registers, and sums do not wait for
// themselves.
template <int ROWS>
constexpr int kBlockVectors = ROWS == 1 && VEGRAD_VECTOR_BYTES == 64 ? 8 : 4;

template <class T, int ROWS>
void small_backward(const SmallBatch<T>& t) {
  constexpr int vectors = kBlockVectors<ROWS>, width = vectors * kLanes<T>;
  int j = 0;
  for (; j + width <= t.I; j += width) small_backward_block<T, ROWS, vectors, true>(t, j);
  if (j < t.I) small_backward_block<T, ROWS, vectors, false>(t, j);
}

template <class T, int ROWS, int FACTORS>
double small_gradient_blocks(const SmallBatch<T>& t) {
  constexpr int vectors = kBlockVectors<ROWS>, width = vectors * kLanes<T>;
  double squares = 0;
  int j = 0;
  for (; j + width <= t.I; j += width)
    squares += sum<T>(small_gradient_block<T, ROWS, vectors, true, FACTORS>(t, j));
  if (j < t.I) squares += sum<T>(small_gradient_block<T, ROWS, vectors, false, FACTORS>(t, j));
  return squares;
}

template <class T>
double squares_of(const T* x, int n) {
  Vector<T> squares{};
  for (int i = 0; i < n; i += kLanes<T>) {
    const Vector<T> v = load_padded<T>(x, i, n);
    squares = fma(v, v, squares);
  }
  return sum<T>(squares);
}

// Whether a sum of squares made in T is as good as one made in double.
template <class T>
bool in_range(double squares) {
  return sizeof(T) == 8 || (squares > 1e-25 && squares < 1e25);
}

template <class T, int ROWS>
void small_gradient(SmallBatch<T>& rows) {
  const SmallBatch<T> t = rows;  // a copy that nothing can alias stays in registers
  double squares;
  if (t.second != T(1))
    squares = small_gradient_blocks<T, ROWS, 2>(t);
  else if (t.first != T(1))
    squares = small_gradient_blocks<T, ROWS, 1>(t);
  else
    squares = small_gradient_blocks<T, ROWS, 0>(t);
  if constexpr (ROWS == 1) {
    const double of_delta = squares_of<T>(t.delta, t.O), of_h = squares_of<T>(t.h, t.I);
    rows.squares = of_delta * of_h;
    if (in_range<T>(of_delta) && in_range<T>(of_h)) return;
  } else {
    rows.squares = squares;
    if (in_range<T>(squares)) return;
  }
  rows.squares = 0;  // in double, where the squares leave the range of T
  for (int o = 0; o < t.O; ++o)
    for (int i = 0; i < t.I; ++i) {
      double x = 0;
      for (int r = 0; r < ROWS; ++r)
        x += double(t.delta[r * t.ld_delta + o]) * double(t.h[r * t.ldh + i]);
      rows.squares += x * x;
    }
}

template <class T>
constexpr SmallBatchKernels<T> small_batch_kernels() {
  return {{small_forward<T, 1>, small_forward<T, 2>, small_forward<T, 3>, small_forward<T, 4>},
          {small_backward<T, 1>, small_backward<T, 2>, small_backward<T, 3>, small_backward<T, 4>},
          {small_gradient<T, 1>, small_gradient<T, 2>, small_gradient<T, 3>, small_gradient<T, 4>}};
}

}  // namespace
}  // namespace vegrad

// What happens to a tile right after its matrix product, while it is in cache: bias, activation,
// derivative, and the sums that the flow is made of.
//
// Tiles are walked by columns of vectors: what belongs to a unit (bias, column sum, largest
// derivative) stays in a register, and rows are neighbours in the first-level cache.
#pragma once

#include "kernels/activations.hpp"
#include "kernels/table.hpp"

namespace vegrad {
namespace {

// What exists of the vectors of a column: all of their lanes, or the first few.
template <class T>
struct AllLanes {
  VEGRAD_INLINE Vector<T> operator()(Vector<T> v) const { return v; }
};
template <class T>
struct SomeLanes {
  Bits<T> mask;
  VEGRAD_INLINE Vector<T> operator()(Vector<T> v) const { return keep<T>(mask, v); }
};

// Whether the forward pass may keep something better than z; see activations.hpp.
template <class Phi>
constexpr bool kHasKept = requires(Vector<float> v) { Phi::template keep<float>(v, v, v); };

// Sums over a tile: Σ h²; Σ z² or, if the spread is wanted, Σ (z - shift) and Σ (z - shift)².
template <class T, class Phi, bool KEEP, bool SPREAD, class Exists>
VEGRAD_INLINE void forward_columns(const ForwardTile<T>& t, int j, Exists exists, Vector<T> shift,
                                   Vector<T> (&sums)[3]) {
  const Vector<T> bias = t.bias ? load_padded<T>(t.bias, j, t.columns) : Vector<T>{};
  for (int i = 0; i < t.rows; ++i) {
    const Vector<T> z = load<T>(t.z + i * t.ldz + j) + bias;
    Vector<T> h, kept, d;
    if constexpr (KEEP) {
      Phi::template keep<T>(z, h, kept);
    } else {
      Phi::template at<T>(z, h, d);
      kept = z;
    }
    store<T>(t.z + i * t.ldz + j, kept);
    if (t.skip) h = h + load<T>(t.skip + i * t.ld_skip + j);
    h = exists(h);
    store<T>(t.h + i * t.ldh + j, h);
    sums[0] = fma(h, h, sums[0]);
    const Vector<T> off = SPREAD ? exists(z - shift) : z;
    if (SPREAD) sums[1] = sums[1] + off;
    sums[2] = fma(off, off, sums[2]);
  }
}

template <class T, class Phi, bool KEEP, bool SPREAD>
VEGRAD_INLINE void forward_tile(const ForwardTile<T>& t, T shift, Vector<T> (&sums)[3]) {
  int j = 0;
  for (; j + kLanes<T> <= t.columns; j += kLanes<T>)
    forward_columns<T, Phi, KEEP, SPREAD>(t, j, AllLanes<T>{}, splat<T>(shift), sums);
  if (j < t.columns)
    forward_columns<T, Phi, KEEP, SPREAD>(t, j, SomeLanes<T>{first_lanes<T>(t.columns - j)},
                                          splat<T>(shift), sums);
}

template <class T, class Phi>
void forward(ForwardTile<T>& tile) {
  const ForwardTile<T> t = tile;  // a copy that nothing can alias stays in registers
  const T shift = t.z[0] + (t.bias ? t.bias[0] : T(0));
  Vector<T> sums[3] = {};
  if (t.keep && kHasKept<Phi>) {
    if (t.spread_wanted)
      forward_tile<T, Phi, kHasKept<Phi>, true>(t, shift, sums);
    else
      forward_tile<T, Phi, kHasKept<Phi>, false>(t, shift, sums);
  } else if (t.spread_wanted) {
    forward_tile<T, Phi, false, true>(t, shift, sums);
  } else {
    forward_tile<T, Phi, false, false>(t, shift, sums);
  }
  tile.h_squares = sum<T>(sums[0]);
  tile.z_squares = sum<T>(sums[2]);
  if (!t.spread_wanted) return;
  tile.spread = {double(shift), sum<T>(sums[1]), tile.z_squares};
  const double n = double(t.rows) * t.columns, s = double(shift);
  tile.z_squares += s * (2 * tile.spread.sum + n * s);
}

template <class T>
struct BackwardSums {
  Vector<T> g_squares{}, delta_squares{};
  Bits<T> saturated{};
};

// What the backward pass looks for beside the gradient.
enum Watch { kNothing, kSaturated, kSaturatedAndDead };

template <class T, class Phi, bool KEPT>
VEGRAD_INLINE void value_and_slope(Vector<T> z, Vector<T>& h, Vector<T>& d) {
  if constexpr (KEPT)
    Phi::template from_kept<T>(z, h, d);
  else
    Phi::template at<T>(z, h, d);
}

template <class T, class Phi, bool KEPT, Watch WATCH, class Exists>
VEGRAD_INLINE void backward_columns(const BackwardTile<T>& t, int j, Exists exists,
                                    BackwardSums<T>& sums) {
  Vector<T> column_sum{}, alive{};
  for (int i = 0; i < t.rows; ++i) {
    Vector<T> h, d;
    value_and_slope<T, Phi, KEPT>(load<T>(t.z + i * t.ldz + j), h, d);
    if (t.h) store<T>(t.h + i * t.ldh + j, h);
    const Vector<T> g = exists(load<T>(t.g + i * t.ldg + j));
    const Vector<T> delta = exists(g * d);
    store<T>(t.delta + i * t.ld_delta + j, delta);
    column_sum = column_sum + delta;
    sums.g_squares = fma(g, g, sums.g_squares);
    sums.delta_squares = fma(delta, delta, sums.delta_squares);
    if (WATCH == kNothing) continue;
    const Vector<T> size = absolute<T>(d);
    sums.saturated = count_in<T>(sums.saturated, size < splat<T>(t.saturated_below));
    if (WATCH == kSaturatedAndDead) alive = larger(alive, size);
  }
  store<T>(t.column_sums + j, column_sum);
  if (WATCH == kSaturatedAndDead) store<T>(t.alive + j, alive);
}

template <class T, class Phi, bool KEPT, Watch WATCH>
VEGRAD_INLINE void backward_tile(const BackwardTile<T>& t, BackwardSums<T>& sums) {
  int j = 0;
  for (; j + kLanes<T> <= t.columns; j += kLanes<T>)
    backward_columns<T, Phi, KEPT, WATCH>(t, j, AllLanes<T>{}, sums);
  if (j == t.columns) return;
  const SomeLanes<T> exists{first_lanes<T>(t.columns - j)};
  BackwardSums<T> edge = sums;
  edge.saturated = Bits<T>{};
  backward_columns<T, Phi, KEPT, WATCH>(t, j, exists, edge);
  edge.saturated = sums.saturated + (edge.saturated & exists.mask);
  sums = edge;
}

template <class T, class Phi, bool KEPT>
VEGRAD_INLINE void backward_tile(const BackwardTile<T>& t, BackwardSums<T>& sums) {
  if (!t.flow_wanted)
    backward_tile<T, Phi, KEPT, kNothing>(t, sums);
  else if (!t.alive)
    backward_tile<T, Phi, KEPT, kSaturated>(t, sums);
  else
    backward_tile<T, Phi, KEPT, kSaturatedAndDead>(t, sums);
}

template <class T, class Phi>
void backward(BackwardTile<T>& tile) {
  const BackwardTile<T> t = tile;  // as in forward()
  BackwardSums<T> sums;
  if (t.kept && kHasKept<Phi>)
    backward_tile<T, Phi, kHasKept<Phi>>(t, sums);
  else
    backward_tile<T, Phi, false>(t, sums);
  tile.g_squares = sum<T>(sums.g_squares);
  tile.delta_squares = sum<T>(sums.delta_squares);
  tile.saturated = count<T>(sums.saturated);
}

template <class T, class Phi, bool KEPT>
void map(const T* z, T* h, T* derivative, std::size_t n) {
  for (std::size_t i = 0; i < n; i += kLanes<T>) {
    const int lanes = n - i < std::size_t(kLanes<T>) ? int(n - i) : kLanes<T>;
    Vector<T> value, slope;
    value_and_slope<T, Phi, KEPT>(load_first<T>(z + i, lanes), value, slope);
    store_first<T>(h + i, value, lanes);
    store_first<T>(derivative + i, slope, lanes);
  }
}

template <class T, class Phi>
constexpr ActivationKernels<T> activation_kernels() {
  ActivationKernels<T> kernels{forward<T, Phi>, backward<T, Phi>, map<T, Phi, false>, nullptr};
  if constexpr (kHasKept<Phi>) kernels.map_kept = map<T, Phi, true>;
  return kernels;
}

// y = (z - mean) / √(var + ε) over the units of a row, or z / √(mean z² + ε).
template <class T>
void normalize(NormTile<T>& t) {
  const T shift = t.z[0] + t.bias[0];
  Vector<T> z_squares{}, off_sum{}, off_squares{};
  for (int i = 0; i < t.rows; ++i) {
    T* z = t.z + i * t.ldz;
    Vector<T> row_sum{};
    for (int j = 0; j < t.columns; j += kLanes<T>) {
      const Bits<T> exists = first_lanes<T>(t.columns - j);
      const Vector<T> v = keep<T>(exists, load<T>(z + j) + load_padded<T>(t.bias, j, t.columns));
      store<T>(z + j, v);
      row_sum = row_sum + v;
      z_squares = fma(v, v, z_squares);
      if (t.spread_wanted) {
        const Vector<T> off = keep<T>(exists, v - splat<T>(shift));
        off_sum = off_sum + off;
        off_squares = fma(off, off, off_squares);
      }
    }
    const T mean = t.center ? T(sum<T>(row_sum) / t.columns) : T(0);
    Vector<T> squares{};
    for (int j = 0; j < t.columns; j += kLanes<T>) {
      const Vector<T> v = keep<T>(first_lanes<T>(t.columns - j), load<T>(z + j) - mean);
      store<T>(z + j, v);
      squares = fma(v, v, squares);
    }
    const T inverse = T(1 / __builtin_sqrt(sum<T>(squares) / t.columns + kNormEpsilon));
    for (int j = 0; j < t.columns; j += kLanes<T>) store<T>(z + j, load<T>(z + j) * inverse);
    t.inverse[i] = inverse;
  }
  t.z_squares = sum<T>(z_squares);
  t.spread = {double(shift), sum<T>(off_sum), sum<T>(off_squares)};
}

// ∂z: (δ - mean δ - y mean(δ y)) / √(var + ε); without the mean of δ for the root mean square.
template <class T>
void normalize_backward(NormTile<T>& t) {
  Vector<T> delta_squares{};
  for (int j = 0; j < t.columns; j += kLanes<T>) store<T>(t.column_sums + j, Vector<T>{});
  for (int i = 0; i < t.rows; ++i) {
    const T* y = t.z + i * t.ldz;
    T* delta = t.delta + i * t.ld_delta;
    Vector<T> sums{}, products{};
    for (int j = 0; j < t.columns; j += kLanes<T>) {
      const Vector<T> v = load<T>(delta + j);
      sums = sums + v;
      products = fma(v, load<T>(y + j), products);
    }
    const T mean = t.center ? T(sum<T>(sums) / t.columns) : T(0);
    const T mean_product = T(sum<T>(products) / t.columns);
    for (int j = 0; j < t.columns; j += kLanes<T>) {
      const Vector<T> raw =
          ((load<T>(delta + j) - mean) - load<T>(y + j) * mean_product) * t.inverse[i];
      const Vector<T> v = keep<T>(first_lanes<T>(t.columns - j), raw);
      store<T>(delta + j, v);
      store<T>(t.column_sums + j, load<T>(t.column_sums + j) + v);
      delta_squares = fma(v, v, delta_squares);
    }
  }
  t.delta_squares = sum<T>(delta_squares);
}

template <class T>
void add_skip(SkipTile<T>& t) {
  Vector<T> product_squares{}, squares{};
  for (int j = 0; j < t.columns; j += kLanes<T>) {
    const Bits<T> exists = first_lanes<T>(t.columns - j);
    for (int i = 0; i < t.rows; ++i) {
      Vector<T> g = keep<T>(exists, load<T>(t.g + i * t.ldg + j) * t.scale);
      product_squares = fma(g, g, product_squares);
      if (t.skip)
        g = keep<T>(exists, fma(load<T>(t.skip + i * t.ld_skip + j), splat<T>(t.skip_scale), g));
      squares = fma(g, g, squares);
      store<T>(t.g + i * t.ldg + j, g);
    }
  }
  t.product_squares = sum<T>(product_squares);
  t.g_squares = sum<T>(squares);
}

// Σ c² of a tile.
template <class T>
double sum_of_squares(const GradientTile<T>& t) {
  constexpr int kSums = 4;  // in turn: one sum would wait for itself
  Vector<T> squares[kSums] = {};
  for (int i = 0; i < t.rows; ++i) {
    const T* c = t.c + i * t.ldc;
    int j = 0;
    for (; j + kSums * kLanes<T> <= t.columns; j += kSums * kLanes<T>)
#pragma GCC unroll 4
      for (int n = 0; n < kSums; ++n) {
        const Vector<T> v = load<T>(c + j + n * kLanes<T>);
        squares[n] = fma(v, v, squares[n]);
      }
    for (; j < t.columns; j += kLanes<T>) {
      const Vector<T> v = keep<T>(first_lanes<T>(t.columns - j), load<T>(c + j));
      squares[0] = fma(v, v, squares[0]);
    }
  }
  const double in_t = sum<T>((squares[0] + squares[1]) + (squares[2] + squares[3]));
  if (sizeof(T) == 8 || (in_t > 1e-25 && in_t < 1e25)) return in_t;
  double in_double = 0;  // where the squares leave the range of T
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < t.columns; ++j) {
      const double x = double(t.c[i * t.ldc + j]);
      in_double += x * x;
    }
  return in_double;
}

template <class T>
void write_gradient(GradientTile<T>& t) {
  t.squares = sum_of_squares(t);
  if (t.c == t.out && t.first == T(1) && t.second == T(1)) return;
  for (int i = 0; i < t.rows; ++i) {
    const T* c = t.c + i * t.ldc;
    T* out = t.out + i * t.ld_out;
    int j = 0;
    for (; j + kLanes<T> <= t.columns; j += kLanes<T>)
      store<T>(out + j, load<T>(c + j) * t.first * t.second);
    if (j < t.columns) store_first<T>(out + j, load<T>(c + j) * t.first * t.second, t.columns - j);
  }
}

}  // namespace
}  // namespace vegrad

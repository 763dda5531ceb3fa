// The kernels over runs; see run_table.hpp.
#pragma once

#include <limits>

#include "kernels/element.hpp"

namespace vegrad {
namespace {

constexpr int kSumVectors = kSumLanes / kWide;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Lane i + N for place i, from the first again after the last.
template <int N>
struct Turn {
  alignas(VEGRAD_VECTOR_BYTES) std::int64_t number[kWide];
  constexpr Turn() : number() {
    for (int i = 0; i < kWide; ++i) number[i] = (i + N) % kWide;
  }
};
template <int N>
constexpr Turn<N> kTurn{};

// Lane 0 and the N others, N = HALF · 2 - 1, summed by halves.
template <int HALF>
VEGRAD_INLINE double sum_of_halves(Vector<double> v) {
  if constexpr (HALF == 0) {
    return v[0];
  } else {
    Bits<double> numbers;
    __builtin_memcpy(&numbers, kTurn<HALF>.number, sizeof numbers);
    return sum_of_halves<HALF / 2>(v + shuffle<double>(v, v, numbers));
  }
}

// The lanes' sum, in an order that is the same for every width.
VEGRAD_INLINE double sum_of_lanes(const Vector<double> (&v)[kSumVectors]) {
  Vector<double> sum[kSumVectors];
#pragma GCC unroll 8
  for (int j = 0; j < kSumVectors; ++j) sum[j] = v[j];
#pragma GCC unroll 3
  for (int half = kSumVectors / 2; half > 0; half /= 2)
#pragma GCC unroll 4
    for (int j = 0; j < half; ++j) sum[j] = sum[j] + sum[j + half];
  return sum_of_halves<kWide / 2>(sum[0]);
}

VEGRAD_INLINE double largest_lane(const Vector<double> (&v)[kSumVectors]) {
  double largest = 0, lanes[kSumLanes];
  for (int j = 0; j < kSumVectors; ++j) store<double>(lanes + j * kWide, v[j]);
  for (double lane : lanes) largest = lane > largest ? lane : largest;
  return largest;
}

VEGRAD_INLINE double smallest_lane(const Vector<double> (&v)[kSumVectors]) {
  double smallest = kInfinity, lanes[kSumLanes];
  for (int j = 0; j < kSumVectors; ++j) store<double>(lanes + j * kWide, v[j]);
  for (double lane : lanes) smallest = lane < smallest ? lane : smallest;
  return smallest;
}

// x² of every type but double is exact in double, so fused or not is the same.
template <class E>
VEGRAD_INLINE Vector<double> add_square(Vector<double> x, Vector<double> total) {
  if constexpr (sizeof(E) == 8)
    return total + x * x;
  else
    return fma(x, x, total);
}

// A run's quarters are read side by side: more memory is then asked for at a time, which is what
// limits sums over it.
constexpr int kQuarters = 4;
constexpr int kAhead = 2048;  // bytes

constexpr std::size_t quarter_of(std::size_t n) { return n / (kQuarters * kSumLanes) * kSumLanes; }

// Visits kSumLanes elements, and has those fetched that lie kAhead bytes behind.
template <class E, class Visitor>
VEGRAD_INLINE void visit_group(const E* p, Visitor& visitor) {
#pragma GCC unroll 2
  for (std::size_t line = 0; line < kSumLanes * sizeof(E); line += 64)
    __builtin_prefetch(reinterpret_cast<const char*>(p) + kAhead + line);
#pragma GCC unroll 8
  for (int j = 0; j < kSumVectors; ++j) visitor.visit(load_wide(p + j * kWide), j);
}

// Visits the vectors of what a run's quarters leave with their places in the sum's lanes, in order;
// the last elements with zeros behind them.
template <class E, class Visitor>
VEGRAD_INLINE void read_rest(const E* p, std::size_t n, Visitor& visitor) {
  std::size_t i = 0;
  for (; i + kSumLanes <= n; i += kSumLanes) {
#pragma GCC unroll 8
    for (int j = 0; j < kSumVectors; ++j) visitor.visit(load_wide(p + i + j * kWide), j);
  }
  if (i == n) return;
  if constexpr (sizeof(E) >= 4) {
#pragma GCC unroll 8
    for (int j = 0; j < kSumVectors; ++j)
      visitor.visit(load_first_wide(p + i + j * kWide, int(n - i) - j * kWide), j);
    return;
  }
  E rest[kSumLanes] = {};
  __builtin_memcpy(rest, p + i, (n - i) * sizeof(E));
#pragma GCC unroll 8
  for (int j = 0; j < kSumVectors; ++j) visitor.visit(load_wide(rest + j * kWide), j);
}

// Visits every vector of a run: those of the quarters in turn, then the rest.
template <class E, class Visitor>
VEGRAD_INLINE void read_run(const E* p, std::size_t n, Visitor& visitor) {
  const std::size_t quarter = quarter_of(n);
  for (std::size_t i = 0; i < quarter; i += kSumLanes)
#pragma GCC unroll 4
    for (int k = 0; k < kQuarters; ++k) visit_group(p + k * quarter + i, visitor);
  read_rest(p + kQuarters * quarter, n - kQuarters * quarter, visitor);
}

template <class E>
struct Squares {
  Vector<double> total[kSumVectors] = {};
  VEGRAD_INLINE void visit(Vector<double> x, int j) { total[j] = add_square<E>(x, total[j]); }
};

// With sums of its own for each quarter, as many side by side as there are registers for: more sums
// are then made at a time where the memory is near. The bits are the same for any number of them.
constexpr int kAbreast = kSumVectors <= 2 ? 4 : kSumVectors <= 4 ? 2 : 1;

template <class E>
double run_squares(const E* p, std::size_t n) {
  const std::size_t quarter = quarter_of(n);
  Squares<E> total[kQuarters];
#pragma GCC unroll 4
  for (int first = 0; first < kQuarters; first += kAbreast) {
    Squares<E> squares[kAbreast];
    for (std::size_t i = 0; i < quarter; i += kSumLanes)
#pragma GCC unroll 4
      for (int k = 0; k < kAbreast; ++k)
        visit_group(p + std::size_t(first + k) * quarter + i, squares[k]);
#pragma GCC unroll 4
    for (int k = 0; k < kAbreast; ++k) total[first + k] = squares[k];
  }
  read_rest(p + kQuarters * quarter, n - kQuarters * quarter, total[0]);
#pragma GCC unroll 8
  for (int j = 0; j < kSumVectors; ++j)
    total[0].total[j] =
        (total[0].total[j] + total[1].total[j]) + (total[2].total[j] + total[3].total[j]);
  return sum_of_lanes(total[0].total);
}

struct ScaledSquares {
  double factor;
  Vector<double> total[kSumVectors] = {};
  VEGRAD_INLINE void visit(Vector<double> x, int j) {
    const Vector<double> y = x * factor;
    total[j] = total[j] + y * y;
  }
};

template <class E>
double run_scaled_squares(const E* p, std::size_t n, double factor) {
  ScaledSquares squares{factor};
  read_run(p, n, squares);
  return sum_of_lanes(squares.total);
}

struct Magnitudes {
  double factor;
  Vector<double> total[kSumVectors] = {};
  VEGRAD_INLINE void visit(Vector<double> x, int j) {
    total[j] = total[j] + absolute<double>(x) * factor;
  }
};

template <class E>
double run_magnitudes(const E* p, std::size_t n, double factor) {
  Magnitudes magnitudes{factor};
  read_run(p, n, magnitudes);
  return sum_of_lanes(magnitudes.total);
}

struct Largest {
  Vector<double> largest[kSumVectors] = {};
  VEGRAD_INLINE void visit(Vector<double> x, int j) {
    largest[j] = larger(absolute<double>(x), largest[j]);
  }
};

template <class E>
double run_largest(const E* p, std::size_t n) {
  Largest largest;
  read_run(p, n, largest);
  return largest_lane(largest.largest);
}

template <class E>
struct AllSums {
  Vector<double> squares[kSumVectors] = {}, total[kSumVectors] = {}, largest[kSumVectors] = {};
  Vector<double> smallest[kSumVectors];
  AllSums() {
    for (auto& v : smallest) v = splat<double>(kInfinity);
  }
  VEGRAD_INLINE void visit(Vector<double> x, int j) {
    squares[j] = add_square<E>(x, squares[j]);
    total[j] = total[j] + x;
    const Vector<double> magnitude = absolute<double>(x);
    largest[j] = larger(magnitude, largest[j]);
    smallest[j] = smaller(magnitude, smallest[j]);
  }
};

template <class E>
void run_sums(const E* p, std::size_t n, RunSums& out) {
  AllSums<E> sums;
  const std::size_t whole = n - n % kSumLanes;
  read_run(p, whole, sums);
  out.smallest = smallest_lane(sums.smallest);
  // The zeros behind the last elements are not the run's: these are looked at one by one.
  read_run(p + whole, n - whole, sums);
  E rest[kSumLanes] = {};
  __builtin_memcpy(rest, p + whole, (n - whole) * sizeof(E));
  double lanes[kSumLanes];
  for (int j = 0; j < kSumVectors; ++j)
    store<double>(lanes + j * kWide, absolute<double>(load_wide(rest + j * kWide)));
  for (std::size_t i = 0; i < n - whole; ++i)
    out.smallest = lanes[i] < out.smallest ? lanes[i] : out.smallest;
  out.squares = sum_of_lanes(sums.squares);
  out.sum = sum_of_lanes(sums.total);
  out.largest = largest_lane(sums.largest);
}

struct Counts {
  double smallest_normal;
  Bits<double> zeros = {}, small = {};
  Vector<double> smallest[kSumVectors];
  explicit Counts(double least) : smallest_normal(least) {
    for (auto& v : smallest) v = splat<double>(kInfinity);
  }
  VEGRAD_INLINE void visit(Vector<double> x, int j) {
    const Vector<double> magnitude = absolute<double>(x);
    const Bits<double> zero = magnitude == 0.0;
    zeros = count_in<double>(zeros, zero);
    small = count_in<double>(small, magnitude < smallest_normal);
    smallest[j] = smaller(select<double>(zero, splat<double>(kInfinity), magnitude), smallest[j]);
  }
};

template <class E>
void run_counts(const E* p, std::size_t n, double smallest_normal, RunCounts& out) {
  Counts counts(smallest_normal);
  read_run(p, n, counts);
  const std::int64_t behind = std::int64_t((kSumLanes - n % kSumLanes) % kSumLanes);
  const std::int64_t zeros = count<double>(counts.zeros);
  out.zeros = zeros - behind;
  out.subnormals = count<double>(counts.small) - zeros;
  out.smallest = smallest_lane(counts.smallest);
}

// x = change(x), rounded to E; returns Σ x² of what is stored, if SUM.
template <class E, bool SUM, class Change>
VEGRAD_INLINE double change_run(E* p, std::size_t n, const Change& change) {
  using Stored = typename Elements<E>::Stored;
  Vector<double> total[kSumVectors] = {};
  E rest[kSumLanes] = {};
  for (std::size_t i = 0; i < n; i += kSumLanes) {
    const bool last = n - i < kSumLanes;
    E* const at = last ? rest : p + i;
    if (last) __builtin_memcpy(rest, p + i, (n - i) * sizeof(E));
#pragma GCC unroll 8
    for (int j = 0; j < kSumVectors; ++j) {
      const Stored stored = Elements<E>::narrow(change(load_wide(at + j * kWide)));
      __builtin_memcpy(at + j * kWide, &stored, sizeof stored);
      if (SUM) total[j] = add_square<E>(Elements<E>::widen(stored), total[j]);
    }
    if (last) __builtin_memcpy(p + i, rest, (n - i) * sizeof(E));
  }
  return sum_of_lanes(total);
}

template <class E>
struct Scaling {
  double first, second;
  VEGRAD_INLINE Vector<double> operator()(Vector<double> x) const {
    return sizeof(E) == 8 ? x * first * second : x * first;
  }
};

template <class E>
double run_scale(E* p, std::size_t n, double first, double second) {
  return change_run<E, true>(p, n, Scaling<E>{first, second});
}

template <class E>
void run_scale_only(E* p, std::size_t n, double first, double second) {
  if constexpr (sizeof(E) == 4) {
    // A product of two floats is exact in double, so that rounded it is a float's own product.
    if (const float factor = float(first); double(factor) == first) {
      constexpr std::size_t kStep = kLanes<float>;
      std::size_t i = 0;
      for (; i + kStep <= n; i += kStep) store<float>(p + i, load<float>(p + i) * factor);
      for (; i < n; ++i) p[i] *= factor;
      return;
    }
  }
  change_run<E, false>(p, n, Scaling<E>{first, second});
}

struct Clamping {
  double limit;
  VEGRAD_INLINE Vector<double> operator()(Vector<double> x) const {
    return at_most<double>(at_least<double>(x, -limit), limit);
  }
};

template <class E>
double run_clamp(E* p, std::size_t n, double limit) {
  return change_run<E, true>(p, n, Clamping{limit});
}

template <class E>
constexpr RunKernels<E> run_kernels() {
  return {run_squares<E>, run_scaled_squares<E>, run_magnitudes<E>, run_largest<E>, run_sums<E>,
          run_counts<E>,  run_scale<E>,          run_scale_only<E>, run_clamp<E>};
}

}  // namespace
}  // namespace vegrad

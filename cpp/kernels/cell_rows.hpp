// What a recurrent cell does with a vector of units, row by row, once the product with U is there.
#pragma once

#include "kernels/activations.hpp"
#include "kernels/cell_gates.hpp"
#include "kernels/cell_product.hpp"
#include "kernels/cell_table.hpp"

namespace vegrad {
namespace {

// Keeps padding zero, of which a vector of units has some unless it is WHOLE.
template <class T, bool WHOLE>
struct Units {
  Bits<T> exists;

  VEGRAD_INLINE Units(int H, int j) : exists(first_lanes<T>(H - j)) {}
  VEGRAD_INLINE Vector<T> operator()(Vector<T> v) const { return WHOLE ? v : keep<T>(exists, v); }
};

// A row at one vector of units.
template <class T, class Units>
struct ForwardRow {
  const Units units;
  Vector<T> sum[kMostGates], bias[kMostGates];  // of U h
  T* gates;
  std::ptrdiff_t slot;
  const T *h_before, *c_before;
  T* c;

  VEGRAD_INLINE Vector<T> z(int s) const { return load<T>(gates + s * slot) + bias[s] + sum[s]; }
  VEGRAD_INLINE void put(int s, Vector<T> v) const { store<T>(gates + s * slot, units(v)); }
};

// What goes back into a row at one vector of units.
template <class T, class Units>
struct BackwardRow {
  const Units units;
  Vector<T> product, carried, scale, delta;  // carried: times scale
  T* gates;
  std::ptrdiff_t slot;
  const T *h, *h_before, *c, *c_before;
  Vector<T> carried_on, state, matrix, into_state;  // out, those that the cell has

  VEGRAD_INLINE Vector<T> get(int s) const { return load<T>(gates + s * slot); }
  VEGRAD_INLINE void put(int s, Vector<T> v) const { store<T>(gates + s * slot, units(v)); }
};

// Its only number is kept in the form that has the slope's digits where tanh is saturated.
struct TanhCell {
  static constexpr int kGates = 1, kSlots = 1, kSlotsOfU[] = {0};
  static constexpr bool kCarries = false, kCarriesInState = false;
  template <class T, class Units>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T, Units>& r) {
    Vector<T> h, kept;
    tanh::keep<T>(r.z(0), h, kept);
    r.put(0, kept);
    return h;
  }
  template <class T, class Units>
  static VEGRAD_INLINE void backward(BackwardRow<T, Units>& r) {
    Vector<T> h, slope;
    tanh::from_kept<T>(r.get(0), h, slope);
    r.put(0, r.delta * slope);
  }
};

struct ReluCell {
  static constexpr int kGates = 1, kSlots = 1, kSlotsOfU[] = {0};
  static constexpr bool kCarries = false, kCarriesInState = false;
  template <class T, class Units>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T, Units>& r) {
    const Vector<T> z = r.z(0);
    return select<T>(z <= Vector<T>{}, Vector<T>{}, z);  // false for NaN, which must come through
  }
  template <class T, class Units>
  static VEGRAD_INLINE void backward(BackwardRow<T, Units>& r) {
    r.put(0, select<T>(load<T>(r.h) <= Vector<T>{}, Vector<T>{}, r.delta));
  }
};

struct LstmCell {
  static constexpr int kGates = 4, kSlots = 4, kSlotsOfU[] = {0, 1, 2, 3};
  static constexpr bool kCarries = true, kCarriesInState = true;
  template <class T, class Units>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T, Units>& r) {
    const Vector<T> i = gate_of<T>(r.z(0)), f = gate_of<T>(r.z(1));
    const Vector<T> g = tanh_of<T>(r.z(2)), o = gate_of<T>(r.z(3));
    const Vector<T> c = fma(f, load<T>(r.c_before), i * g);
    r.put(0, i);
    r.put(1, f);
    r.put(2, g);
    r.put(3, o);
    store<T>(r.c, r.units(c));
    return o * tanh_of<T>(c);
  }
  template <class T, class Units>
  static VEGRAD_INLINE void backward(BackwardRow<T, Units>& r) {
    const Vector<T> i = r.get(0), f = r.get(1), g = r.get(2), o = r.get(3);
    const Vector<T> y = tanh_of<T>(load<T>(r.c)), through = o * slope_of<T>(y);
    const Vector<T> kappa = fma(r.delta, through, r.carried);
    const Vector<T> into_i = kappa * i;
    r.put(0, into_i * (g * (T(1) - i)));
    r.carried_on = kappa * f;
    r.put(1, r.carried_on * (load<T>(r.c_before) * (T(1) - f)));
    r.put(2, into_i * slope_of<T>(g));
    r.put(3, (r.delta * o) * (y * (T(1) - o)));
    r.state = kappa;
    r.matrix = r.product * through;
    r.into_state = r.carried + r.matrix;
  }
};

struct GruCell {
  static constexpr int kGates = 3, kSlots = 4, kSlotsOfU[] = {0, 1, 3};
  static constexpr bool kCarries = true, kCarriesInState = false;
  template <class T, class Units>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T, Units>& r) {
    const Vector<T> reset = gate_of<T>(r.z(0)), update = gate_of<T>(r.z(1));
    const Vector<T> m = r.sum[2] + r.bias[3];
    const Vector<T> n = tanh_of<T>(fma(reset, m, load<T>(r.gates + 2 * r.slot) + r.bias[2]));
    r.put(0, reset);
    r.put(1, update);
    r.put(2, n);
    r.put(3, m);
    return fma(update, load<T>(r.h_before), (T(1) - update) * n);
  }
  template <class T, class Units>
  static VEGRAD_INLINE void backward(BackwardRow<T, Units>& r) {
    const Vector<T> reset = r.get(0), update = r.get(1), n = r.get(2), m = r.get(3);
    const Vector<T> rest = r.delta * (T(1) - update);
    const Vector<T> nu = rest * slope_of<T>(n), into_u = nu * reset;
    r.put(0, into_u * (m * (T(1) - reset)));
    r.put(1, rest * (update * (load<T>(r.h_before) - n)));
    r.put(2, nu);
    r.put(3, into_u);
    r.carried_on = r.delta * update;
    r.state = Vector<T>{};
    r.matrix = r.product;
  }
};

// A pointer that is null, for something that is missing, stays so.
template <class P>
VEGRAD_INLINE void move(P*& p, std::ptrdiff_t elements) {
  if (p) p += elements;
}

template <class T>
void advance(CellForward<T>& f, std::ptrdiff_t rows) {
  move(f.h_before, rows * f.ld_before);
  move(f.c_before, rows * f.ld_before);
  move(f.gates, rows * f.ld_gates);
  move(f.h, rows * f.ld);
  move(f.c, rows * f.ld);
  move(f.h_squares, rows);
}

template <class T>
void advance(CellBackward<T>& b, std::ptrdiff_t rows) {
  move(b.after, rows * b.ld_gates);
  move(b.scale, rows);
  move(b.local, rows * b.ld_local);
  move(b.local_scale, rows);
  move(b.gates, rows * b.ld_gates);
  move(b.h, rows * b.ld);
  move(b.h_before, rows * b.ld_before);
  move(b.c, rows * b.ld);
  move(b.c_before, rows * b.ld_before);
  move(b.carried, rows * b.ld_carried);
  move(b.delta, rows * b.ld_delta);
  move(b.delta_squares, rows);
  move(b.passed_squares, rows);
  move(b.carried_squares, rows);
  move(b.state_squares, rows);
  move(b.matrix_squares, rows);
  move(b.into_state_squares, rows);
  b.carry_row += int(rows);
}

// Both halves, and so on; what a vector held is lost.
template <class T>
VEGRAD_INLINE T sum_of(T* lanes) {
#pragma GCC unroll 4
  for (int half = kLanes<T> / 2; half > 0; half /= 2)
#pragma GCC unroll 8
    for (int i = 0; i < half; ++i) lanes[i] += lanes[i + half];
  return lanes[0];
}

// Row by row Σ of squares, of which a vector a row is kept until write().
template <class T, int ROWS>
struct SquaresOfRows {
  alignas(64) T sums[ROWS * kLanes<T>];

  void clear(int rows) {
    for (int i = 0; i < rows; ++i) store<T>(sums + i * kLanes<T>, Vector<T>{});
  }
  VEGRAD_INLINE Vector<T> get(int row) const { return load<T>(sums + row * kLanes<T>); }
  VEGRAD_INLINE void put(int row, Vector<T> v) { store<T>(sums + row * kLanes<T>, v); }
  // As many rows at once as a vector has lanes, or each by itself: with the same sums.
  void write(int rows, T* out) {
    constexpr int n = kLanes<T>;
    if (rows <= 2) {
      for (int i = 0; i < rows; ++i) out[i] = sum_of(sums + i * n);
      return;
    }
    for (int first = 0; first < rows; first += n) {
      Vector<T> v[n];
#pragma GCC unroll 16
      for (int i = 0; i < n; ++i)
        v[i] = first + i < rows ? load<T>(sums + (first + i) * n) : Vector<T>{};
      exchange<T, n / 2>(v);
#pragma GCC unroll 4
      for (int half = n / 2; half > 0; half /= 2)
#pragma GCC unroll 8
        for (int i = 0; i < half; ++i) v[i] += v[i + half];
      store_first<T>(out + first, v[0], rows - first);
    }
  }
};

// The cell at one vector of units of row i, from j on. Returns h.
template <class Cell, bool WHOLE, class T>
VEGRAD_INLINE Vector<T> forward_at(const CellForward<T>& f, int i, int j, const T* sums) {
  ForwardRow<T, Units<T, WHOLE>> r{{f.H, j}, {}, {}, f.gates + i * f.ld_gates + j,
                                   f.slot,   {}, {}, {}};
  for (int s = 0; s < Cell::kSlots; ++s) r.bias[s] = load<T>(f.bias + s * f.slot + j);
  for (int s = 0; s < Cell::kGates; ++s) r.sum[s] = load<T>(sums + s * kLanes<T>);
  r.h_before = f.h_before + i * f.ld_before + j;
  if constexpr (Cell::kCarriesInState) {
    r.c_before = f.c_before + i * f.ld_before + j;
    r.c = f.c + i * f.ld + j;
  }
  const Vector<T> h = r.units(Cell::forward(r));
  store<T>(f.h + i * f.ld + j, h);
  return h;
}

// Units from j to `end` of `rows` rows from `first` on, given what the product with U has for them.
template <class Cell, class T, int ROWS>
void finish_forward(const CellForward<T> f, int first, int rows, int j, int end, const T* sums,
                    std::ptrdiff_t ld_sums, SquaresOfRows<T, ROWS>& squares) {
  constexpr int lanes = kLanes<T>;
  for (int i = first; i < first + rows; ++i, sums += ld_sums) {
    const T* sum = sums;
    Vector<T> total = f.h_squares ? squares.get(i) : Vector<T>{};
    int at = j;
    for (; at + lanes <= end; at += lanes, sum += Cell::kGates * lanes) {
      const Vector<T> h = forward_at<Cell, true>(f, i, at, sum);
      total = fma(h, h, total);
    }
    if (at < end) {
      const Vector<T> h = forward_at<Cell, false>(f, i, at, sum);
      total = fma(h, h, total);
    }
    if (f.h_squares) squares.put(i, total);
  }
}

// In the order of CellBackward's.
enum { kDelta, kPassed, kCarried, kState, kMatrix, kIntoState, kSquares };

// How many of them a cell has.
template <class Cell, bool FLOW>
constexpr int kSquaresOf = !FLOW                   ? kPassed
                           : Cell::kCarriesInState ? kSquares
                           : Cell::kCarries        ? kIntoState
                                                   : kCarried;

// What a row has at every vector.
template <class T>
struct BackwardScales {
  Vector<T> scale, local;
};

// The same back. sums: null if nothing comes back through U.
template <class Cell, bool FLOW, bool WHOLE, class T>
VEGRAD_INLINE void backward_at(const CellBackward<T>& b, int i, int j, const T* sums,
                               const BackwardScales<T>& scales, Vector<T> (&total)[kSquares]) {
  BackwardRow<T, Units<T, WHOLE>> r{{b.H, j}, {}, {}, {}, {}, {}, b.slot, {},
                                    {},       {}, {}, {}, {}, {}, {}};
  const bool carries = Cell::kCarries && b.carried;
  T* const carried = carries ? b.carried + i * b.ld_carried + j : nullptr;
  r.product = sums ? load<T>(sums) * scales.scale : Vector<T>{};
  r.carried = carries && !b.fresh ? load<T>(carried) * scales.scale : Vector<T>{};
  const Vector<T> passed = Cell::kCarriesInState ? r.product : r.product + r.carried;
  r.delta = passed;
  if (b.local) r.delta = fma(load<T>(b.local + i * b.ld_local + j), scales.local, r.delta);
  r.delta = r.units(r.delta);
  if (b.delta) store<T>(b.delta + i * b.ld_delta + j, r.delta);
  if (b.gates) {
    r.gates = b.gates + i * b.ld_gates + j;
    if constexpr (Cell::kCarriesInState) {
      r.c = b.c + i * b.ld + j;
      r.c_before = b.c_before + i * b.ld_before + j;
    } else if constexpr (Cell::kCarries) {
      r.h_before = b.h_before + i * b.ld_before + j;
    } else {
      r.h = b.h + i * b.ld + j;
    }
    if (FLOW && Cell::kCarries && b.carry_sums) {
      T* const to = b.carry_sums + (i + b.carry_row) / kRowGroup * b.slot + j;
      store<T>(to, load<T>(to) + r.get(1));
    }
    Cell::backward(r);
    if (carries) store<T>(carried, r.units(r.carried_on));
  } else if (Cell::kCarriesInState && carries) {
    store<T>(carried, r.units(r.carried));
    r.state = r.into_state = r.carried;
  } else {
    r.matrix = r.product;
  }
  total[kDelta] = fma(r.delta, r.delta, total[kDelta]);
  if constexpr (FLOW) {
    const Vector<T> of[] = {r.delta, passed, r.carried_on, r.state, r.matrix, r.into_state};
    for (int s = kPassed; s < kSquaresOf<Cell, FLOW>; ++s) {
      const Vector<T> v = r.units(of[s]);
      total[s] = fma(v, v, total[s]);
    }
  }
}

template <class Cell, bool FLOW, class T, int ROWS>
void finish_backward(const CellBackward<T> b, int first, int rows, int j, int end, const T* sums,
                     std::ptrdiff_t ld_sums, SquaresOfRows<T, ROWS> (&squares)[kSquares]) {
  constexpr int lanes = kLanes<T>;
  for (int i = first; i < first + rows; ++i) {
    const BackwardScales<T> scales = {splat<T>(b.scale ? b.scale[i] : T(1)),
                                      splat<T>(b.local_scale ? b.local_scale[i] : T(1))};
    // Continued, so that it makes no difference how many vectors are gone through at once.
    Vector<T> total[kSquares];
    for (int s = 0; s < kSquaresOf<Cell, FLOW>; ++s) total[s] = squares[s].get(i);
    int at = j;
    for (; at + lanes <= end; at += lanes)
      backward_at<Cell, FLOW, true>(b, i, at, sums ? sums + at - j : nullptr, scales, total);
    if (at < end)
      backward_at<Cell, FLOW, false>(b, i, at, sums ? sums + at - j : nullptr, scales, total);
    for (int s = 0; s < kSquaresOf<Cell, FLOW>; ++s) squares[s].put(i, total[s]);
    if (sums) sums += ld_sums;
  }
}

}  // namespace
}  // namespace vegrad

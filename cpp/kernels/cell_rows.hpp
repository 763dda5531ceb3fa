// What a recurrent cell does with a vector of units, row by row, once the product with U is there.
#pragma once

#include "kernels/cell_table.hpp"
#include "simd/math.hpp"

namespace vegrad {
namespace {

constexpr int kMostGates = 4;

// σ(z) and tanh z where derivatives are made from the values: without |z|, and for tanh without
// what lies beyond where it is 1.
template <class T>
VEGRAD_INLINE Vector<T> gate_of(Vector<T> z) {
  constexpr T highest = MathConstants<T>::kExpHighest;
  const Vector<T> x = at_most<T>(at_least<T>(-z, -highest), highest);
  const Vector<T> value = reciprocal<T>(exponential_inside<T>(x).exp + T(1));
  return select<T>(z < splat<T>(-highest), Vector<T>{}, value);
}
template <class T>
VEGRAD_INLINE Vector<T> tanh_of(Vector<T> z) {
  constexpr T highest = sizeof(T) == 4 ? T(18.1) : T(38.2);
  const Vector<T> x = at_most<T>(at_least<T>(z + z, -highest), highest);
  const Vector<T> e = exponential_inside<T>(x).expm1;
  return e * reciprocal<T>(e + T(2));
}
// 1 - y², of a tanh y.
template <class T>
VEGRAD_INLINE Vector<T> slope_of(Vector<T> y) {
  return (T(1) - y) * (T(1) + y);
}

// A row at one vector of units.
template <class T>
struct ForwardRow {
  Vector<T> sum[kMostGates], bias[kMostGates];  // of U h
  T* gates;
  std::ptrdiff_t slot;
  const T *h_before, *c_before;
  T* c;
  Bits<T> exists;

  VEGRAD_INLINE Vector<T> z(int s) const { return load<T>(gates + s * slot) + bias[s] + sum[s]; }
  VEGRAD_INLINE void put(int s, Vector<T> v) const {
    store<T>(gates + s * slot, keep<T>(exists, v));
  }
};

// What goes back into a row at one vector of units.
template <class T>
struct BackwardRow {
  Vector<T> product, carried, scale, delta;  // carried: times scale
  T* gates;
  std::ptrdiff_t slot;
  const T *h, *h_before, *c, *c_before;
  Vector<T> carried_on, state, matrix;  // out, those that the cell has
  Bits<T> exists;

  VEGRAD_INLINE Vector<T> get(int s) const { return load<T>(gates + s * slot); }
  VEGRAD_INLINE void put(int s, Vector<T> v) const {
    store<T>(gates + s * slot, keep<T>(exists, v));
  }
};

struct TanhCell {
  static constexpr int kGates = 1, kSlots = 1, kSlotsOfU[] = {0};
  static constexpr bool kCarries = false, kCarriesInState = false;
  template <class T>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T>& r) {
    return tanh_of<T>(r.z(0));
  }
  template <class T>
  static VEGRAD_INLINE void backward(BackwardRow<T>& r) {
    r.put(0, r.delta * slope_of<T>(load<T>(r.h)));
  }
};

struct ReluCell {
  static constexpr int kGates = 1, kSlots = 1, kSlotsOfU[] = {0};
  static constexpr bool kCarries = false, kCarriesInState = false;
  template <class T>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T>& r) {
    const Vector<T> z = r.z(0);
    return select<T>(z <= Vector<T>{}, Vector<T>{}, z);  // false for NaN, which must come through
  }
  template <class T>
  static VEGRAD_INLINE void backward(BackwardRow<T>& r) {
    r.put(0, select<T>(load<T>(r.h) <= Vector<T>{}, Vector<T>{}, r.delta));
  }
};

struct LstmCell {
  static constexpr int kGates = 4, kSlots = 4, kSlotsOfU[] = {0, 1, 2, 3};
  static constexpr bool kCarries = true, kCarriesInState = true;
  template <class T>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T>& r) {
    const Vector<T> i = gate_of<T>(r.z(0)), f = gate_of<T>(r.z(1));
    const Vector<T> g = tanh_of<T>(r.z(2)), o = gate_of<T>(r.z(3));
    const Vector<T> c = fma(f, load<T>(r.c_before), i * g);
    r.put(0, i);
    r.put(1, f);
    r.put(2, g);
    r.put(3, o);
    store<T>(r.c, keep<T>(r.exists, c));
    return o * tanh_of<T>(c);
  }
  template <class T>
  static VEGRAD_INLINE void backward(BackwardRow<T>& r) {
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
  }
};

struct GruCell {
  static constexpr int kGates = 3, kSlots = 4, kSlotsOfU[] = {0, 1, 3};
  static constexpr bool kCarries = true, kCarriesInState = false;
  template <class T>
  static VEGRAD_INLINE Vector<T> forward(const ForwardRow<T>& r) {
    const Vector<T> reset = gate_of<T>(r.z(0)), update = gate_of<T>(r.z(1));
    const Vector<T> m = r.sum[2] + r.bias[3];
    const Vector<T> n = tanh_of<T>(fma(reset, m, load<T>(r.gates + 2 * r.slot) + r.bias[2]));
    r.put(0, reset);
    r.put(1, update);
    r.put(2, n);
    r.put(3, m);
    return fma(update, load<T>(r.h_before), (T(1) - update) * n);
  }
  template <class T>
  static VEGRAD_INLINE void backward(BackwardRow<T>& r) {
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

template <class T>
void advance(CellForward<T>& f, std::ptrdiff_t rows) {
  f.h_before += rows * f.ld_before;
  if (f.c_before) f.c_before += rows * f.ld_before;
  f.gates += rows * f.ld_gates;
  f.h += rows * f.ld;
  if (f.c) f.c += rows * f.ld;
  if (f.h_squares) f.h_squares += rows;
}

template <class T>
void advance(CellBackward<T>& b, std::ptrdiff_t rows) {
  const auto move = [rows](auto*& p, std::ptrdiff_t ld) {
    if (p) p += rows * ld;
  };
  move(b.after, b.ld_gates);
  move(b.scale, 1);
  move(b.local, b.ld_local);
  move(b.local_scale, 1);
  move(b.gates, b.ld_gates);
  move(b.h, b.ld);
  move(b.h_before, b.ld_before);
  move(b.c, b.ld);
  move(b.c_before, b.ld_before);
  move(b.carried, b.ld_carried);
  move(b.delta, b.ld_delta);
  move(b.delta_squares, 1);
  move(b.passed_squares, 1);
  move(b.carried_squares, 1);
  move(b.state_squares, 1);
  move(b.matrix_squares, 1);
}

template <class Cell, class T>
void finish_forward(const CellForward<T>& f, int first, int rows, int j, const T* sums,
                    std::ptrdiff_t ld_sums, T* squares) {
  ForwardRow<T> r;
  r.exists = first_lanes<T>(f.H - j);
  r.slot = f.slot;
  for (int s = 0; s < Cell::kSlots; ++s) r.bias[s] = load<T>(f.bias + s * f.slot + j);
  for (int i = first; i < first + rows; ++i, sums += ld_sums) {
    for (int s = 0; s < Cell::kGates; ++s) r.sum[s] = load<T>(sums + s * kLanes<T>);
    r.gates = f.gates + i * f.ld_gates + j;
    r.h_before = f.h_before + i * f.ld_before + j;
    if constexpr (Cell::kCarriesInState) {
      r.c_before = f.c_before + i * f.ld_before + j;
      r.c = f.c + i * f.ld + j;
    }
    const Vector<T> h = keep<T>(r.exists, Cell::template forward<T>(r));
    store<T>(f.h + i * f.ld + j, h);
    if (f.h_squares) {
      T* const to = squares + i * kLanes<T>;
      store<T>(to, fma(h, h, load<T>(to)));
    }
  }
}

// Sums of squares of the rows, lane by lane.
template <class T, int ROWS>
struct SquaresOfRows {
  alignas(64) T delta[ROWS * kLanes<T>], passed[ROWS * kLanes<T>], carried[ROWS * kLanes<T>],
      state[ROWS * kLanes<T>], matrix[ROWS * kLanes<T>];

  explicit SquaresOfRows(int rows) {
    for (int i = 0; i < rows * kLanes<T>; ++i)
      delta[i] = passed[i] = carried[i] = state[i] = matrix[i] = 0;
  }
  static VEGRAD_INLINE void add(T* sums, int row, Vector<T> v) {
    T* const to = sums + row * kLanes<T>;
    store<T>(to, fma(v, v, load<T>(to)));
  }
  void write(const CellBackward<T>& b) const {
    const auto reduce = [&b](const T* sums, T* out) {
      if (out)
        for (int i = 0; i < b.rows; ++i) out[i] = T(sum<T>(load<T>(sums + i * kLanes<T>)));
    };
    reduce(delta, b.delta_squares);
    reduce(passed, b.passed_squares);
    reduce(carried, b.carried_squares);
    reduce(state, b.state_squares);
    reduce(matrix, b.matrix_squares);
  }
};

template <class Cell, class T, int ROWS>
void finish_backward(const CellBackward<T>& b, int first, int rows, int j, const T* sums,
                     std::ptrdiff_t ld_sums, SquaresOfRows<T, ROWS>& squares) {
  BackwardRow<T> r{};
  r.exists = first_lanes<T>(b.H - j);
  r.slot = b.slot;
  const bool carries = Cell::kCarries && b.carried, flow = b.passed_squares;
  for (int i = first; i < first + rows; ++i) {
    const Vector<T> scale = splat<T>(b.scale ? b.scale[i] : T(1));
    T* const carried = carries ? b.carried + i * b.ld_carried + j : nullptr;
    r.product = sums ? load<T>(sums + (i - first) * ld_sums) * scale : Vector<T>{};
    r.carried = carries && !b.fresh ? load<T>(carried) * scale : Vector<T>{};
    const Vector<T> passed = Cell::kCarriesInState ? r.product : r.product + r.carried;
    r.delta = passed;
    if (b.local) {
      const Vector<T> local = load<T>(b.local + i * b.ld_local + j);
      r.delta = fma(local, splat<T>(b.local_scale ? b.local_scale[i] : T(1)), r.delta);
    }
    r.delta = keep<T>(r.exists, r.delta);
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
      Cell::template backward<T>(r);
      if (carries) store<T>(carried, keep<T>(r.exists, r.carried_on));
    } else if (Cell::kCarriesInState && carries) {
      store<T>(carried, keep<T>(r.exists, r.carried));
      r.state = r.carried;
    } else {
      r.matrix = r.product;
    }
    squares.add(squares.delta, i, r.delta);
    if (flow) {
      squares.add(squares.passed, i, passed);
      squares.add(squares.carried, i, keep<T>(r.exists, r.carried_on));
      squares.add(squares.state, i, keep<T>(r.exists, r.state));
      squares.add(squares.matrix, i, keep<T>(r.exists, r.matrix));
    }
  }
}

}  // namespace
}  // namespace vegrad

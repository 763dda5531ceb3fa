// What every instruction set offers: one table of functions, and the arguments they take.
//
// Callers check; kernels only compute. Matrices are row-major with a leading dimension (`ld`, in
// elements). Internal ones are padded to whole vectors: kernels may read and write the padding.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/activation_table.hpp"
#include "kernels/cell_table.hpp"
#include "kernels/run_table.hpp"
#include "kernels/step_table.hpp"

namespace vegrad {

enum Activation : int {
#define VEGRAD_ROW(name, ...) kActivation_##name,
  VEGRAD_ACTIVATIONS(VEGRAD_ROW)
#undef VEGRAD_ROW
      kActivationCount
};

// Leading dimensions of internal matrices are multiples of this many bytes, on every machine.
constexpr int kPadBytes = 64;

// Of an operand with longer rows, what a product reads again and again is copied together first.
constexpr int kLongRowBytes = 512;

// The right operand of a product, element (k, n) at data[k * row + n * column]: either usable as
// it stands (column == 1) or packed by pack() into panels.
template <class T>
struct RightOperand {
  const T* data;
  std::ptrdiff_t row;    // from one k to the next
  std::ptrdiff_t panel;  // from one panel of `panel_columns` to the next
};

// Memory that is wanted after a product, fetched while it runs: lines of 64 bytes that are `step`
// bytes apart, and `columns` - 1 times those that follow them.
struct Ahead {
  const void* data = nullptr;
  std::ptrdiff_t step = 0;
  int lines = 0, columns = 0;
};

// c (m, n) = a (m, k) b (k, n), element (i, p) of a at a[i * a_row + p * a_column]. Each element
// of c is summed over p in order, whatever the tile it falls in: so results do not depend on how
// the work is cut. Writes whole vectors of c.
template <class T>
struct Product {
  int m, n, k;
  const T* a;
  std::ptrdiff_t a_row, a_column;
  RightOperand<T> b;
  T* c;
  std::ptrdiff_t ldc;
  bool c_elsewhere = false;  // c is in no near cache: fetched while the sums are made
  Ahead ahead;
  bool continued = false;  // c goes on from what it holds: k in pieces changes no bit
};

// Sums over a tile of pre-activations, about `shift` so that a small spread around a large mean
// keeps its digits.
struct SpreadSums {
  double shift = 0, sum = 0, sum_of_squares = 0;
};

template <class T>
struct ForwardTile {
  int rows, columns;
  T* z;           // in: h Wᵀ (or y if normalized); out: z = in + bias, or what is kept of it
  const T* bias;  // null: nothing to add
  std::ptrdiff_t ldz;
  const T* skip;  // residual: added to φ(z); null: none
  std::ptrdiff_t ld_skip;
  T* h;  // out: φ(z) (+ skip)
  std::ptrdiff_t ldh;
  bool keep;  // whether z may be left in the activation's kept form, if it has one
  bool spread_wanted;
  SpreadSums spread;     // out, if wanted
  double z_squares = 0;  // out: Σ z²
  double h_squares = 0;  // out: Σ h²
};

template <class T>
struct BackwardTile {
  int rows, columns;
  const T* g;  // the gradient with respect to h
  std::ptrdiff_t ldg;
  const T* z;
  std::ptrdiff_t ldz;
  bool kept;  // whether z is in the activation's kept form, if it has one
  T* delta;   // out: g φ′(z); may be g
  std::ptrdiff_t ld_delta;
  T* h;  // out: φ(z); may be z; null: not wanted
  std::ptrdiff_t ldh;
  bool flow_wanted;
  T saturated_below;           // in: a derivative smaller than this counts as saturated
  T* column_sums;              // out: Σ over rows of delta, whole vectors
  T* alive;                    // out, if flow wanted: largest |φ′| of each column, whole vectors,
                               // unless null
  double g_squares = 0;        // out: Σ g²
  double delta_squares = 0;    // out: Σ delta²
  std::int64_t saturated = 0;  // out, if flow wanted
};

template <class T>
struct NormTile {
  int rows, columns;
  bool center;  // layer norm; false: root mean square
  T* z;         // forward in: h Wᵀ, out: y; backward: y
  std::ptrdiff_t ldz;
  const T* bias;  // forward: added first
  T* inverse;     // one a row: 1/√(variance + ε); forward out, backward in
  // backward
  T* delta;  // in: the gradient with respect to y; out: with respect to z
  std::ptrdiff_t ld_delta;
  T* column_sums;            // out: Σ over rows of delta, whole vectors
  double delta_squares = 0;  // out
  // forward
  bool spread_wanted;
  SpreadSums spread;     // out, if wanted
  double z_squares = 0;  // out: Σ z², before normalization
};

// g = scale g + skip_scale skip: a gradient brought back to about 1, and that which comes around a
// residual layer.
template <class T>
struct SkipTile {
  int rows, columns;
  T scale, skip_scale;
  T* g;
  std::ptrdiff_t ldg;
  const T* skip;  // null: only scaled
  std::ptrdiff_t ld_skip;
  double product_squares = 0;  // out: Σ (scale g)², before the sum
  double g_squares = 0;        // out: Σ of the result's squares
};

// out = c first second: a gradient times a power of two that may need two factors; else second
// is 1.
template <class T>
struct GradientTile {
  int rows, columns;
  const T* c;
  std::ptrdiff_t ldc;
  T first, second;
  T* out;  // may be c
  std::ptrdiff_t ld_out;
  double squares = 0;  // out: Σ c²
};

// The products of a layer for a batch of at most kSmallBatch rows, each from two of the three.
constexpr int kSmallBatch = 4;

template <class T>
struct SmallBatch {
  int I, O;
  const T* h;  // (rows, I)
  std::ptrdiff_t ldh;
  const T* weights;  // (O, I)
  std::ptrdiff_t ldw;
  const T* delta;  // (rows, O)
  std::ptrdiff_t ld_delta;
  T* out;  // h Wᵀ or δ W, whole vectors; or δᵀ h first second
  std::ptrdiff_t ld_out;
  T first, second;
  double squares = 0;  // out, of the last: Σ (δᵀ h)²
};

template <class T>
struct SmallBatchKernels {                              // by the number of rows, minus 1
  void (*forward[kSmallBatch])(const SmallBatch<T>&);   // h Wᵀ
  void (*backward[kSmallBatch])(const SmallBatch<T>&);  // δ W
  void (*gradient[kSmallBatch])(SmallBatch<T>&);        // δᵀ h
};

template <class T>
struct ActivationKernels {
  void (*forward)(ForwardTile<T>&);
  void (*backward)(BackwardTile<T>&);
  void (*map)(const T* z, T* h, T* derivative, std::size_t n);  // without padding
  // The same from the kept form; null if there is none.
  void (*map_kept)(const T* kept, T* h, T* derivative, std::size_t n);
};

template <class T>
struct Kernels {
  int lanes;
  int panel_columns;  // of packed right operands
  // Element (p, n) of the operand at b[p * row + n * column], row or column 1; out holds k * n
  // rounded up to panels.
  void (*pack)(const T* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, T* out);
  void (*product)(const Product<T>&);
  SmallBatchKernels<T> small_batch;
  void (*normalize)(NormTile<T>&);
  void (*normalize_backward)(NormTile<T>&);
  void (*add_skip)(SkipTile<T>&);
  void (*write_gradient)(GradientTile<T>&);
  StepKernels<T> optimizer;
  ActivationKernels<T> activation[kActivationCount];
  CellKernels<T> cell[kCellCount];  // by Cell
};

struct Runs {
  RunKernels<float16> of_float16;
  RunKernels<bfloat16> of_bfloat16;
  RunKernels<float> of_float32;
  RunKernels<double> of_float64;
};

struct InstructionSet {
  const char* name;
  const Kernels<float>* float32;
  const Kernels<double>* float64;
  const Runs* all_runs;

  template <class T>
  const Kernels<T>& kernels() const {
    if constexpr (sizeof(T) == 4)
      return *float32;
    else
      return *float64;
  }

  template <class E>
  const RunKernels<E>& runs() const {
    return runs_of(E{});
  }

  const RunKernels<float16>& runs_of(float16) const { return all_runs->of_float16; }
  const RunKernels<bfloat16>& runs_of(bfloat16) const { return all_runs->of_bfloat16; }
  const RunKernels<float>& runs_of(float) const { return all_runs->of_float32; }
  const RunKernels<double>& runs_of(double) const { return all_runs->of_float64; }
};

}  // namespace vegrad

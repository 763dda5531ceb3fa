// The gradients of the weights: products over the batch, each in tasks of its own.
#include "core/network/products.hpp"

namespace vegrad {

// ∂loss/∂W (O, I) = δᵀ (O, B) h (B, I) of layer l.
template <class T>
WeightGradient<T> Network<T>::weight_gradient(int l, int B, const ScaledMatrix<T>& delta) const {
  return {l, gradient_grid(B, l), delta, delta.exponent + layers_[l - 1].h_exponent, on_unit(l)};
}

// What the gradient `next` will read, half of which another thread has made: h while the first of a
// layer's tiles is computed, delta with the others.
template <class T>
Ahead Network<T>::read_next(const Workspace& w, const WeightGradient<T>& next, const Tile& t,
                            int B) const {
  if (next.layer == 0) return {};
  constexpr int kPerLine = 64 / int(sizeof(T));
  const bool first = t.row_block == 0;
  const int columns = shape_.sizes[first ? next.layer - 1 : next.layer];
  const T* const data = first ? output_of(w, next.layer - 1) : next.delta.data;
  const std::ptrdiff_t ld = first ? padded<T>(columns) : next.delta.ld;
  return {data, ld * std::ptrdiff_t(sizeof(T)), B, (columns + kPerLine - 1) / kPerLine};
}

template <class T>
void Network<T>::gradient_task(Workspace& w, const WeightGradient<T>& g, int task, int thread,
                               int B, bool flow, TileSums& sums, const WeightGradient<T>& next) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int I = shape_.sizes[g.layer - 1];
  const T* const h = output_of(w, g.layer - 1);
  const std::ptrdiff_t ld_h = padded<T>(I);
  const TwoFactors<T> scale(g.exponent);
  const Tile t = g.grid.tile(task);
  const T* const delta = g.delta.data + t.row;
  T* const out = weight_gradient(g.layer) + std::ptrdiff_t(t.row) * I + t.column;
  sums = TileSums();
  if (B <= kFewRows) {
    FewRows<T> few{};
    few.I = I;
    few.O = t.rows;
    few.h = h;
    few.ldh = ld_h;
    few.delta = delta;
    few.ld_delta = g.delta.ld;
    few.out = out;
    few.ld_out = I;
    few.first = scale.first;
    few.second = scale.second;
    kernels.few_rows.gradient[B - 1](few);
    sums.g_squares = few.squares;
    return;
  }
  // Where rows are whole vectors, the product writes the gradient itself.
  const bool direct = I % kernels.lanes == 0;
  T* const c = direct ? out : w.tile[thread];
  const std::ptrdiff_t ldc = direct ? I : padded<T>(t.columns);
  if (g.on_unit) {
    gradient_on_unit(w, g, t, thread, B, c, ldc);
  } else {
    const RightOperand<T> right{h + t.column, ld_h, kernels.panel_columns};
    kernels.product({t.rows, t.columns, B, delta, 1, g.delta.ld, right, c, ldc, direct,
                     read_next(w, next, t, B)});
  }
  if (direct && g.exponent == 0 && !flow) return;
  GradientTile<T> tile{t.rows, t.columns, c, ldc, scale.first, scale.second, out, I};
  kernels.write_gradient(tile);
  sums.g_squares = tile.squares;
}

// c of a tile on the matrix unit. The layer's input is split once for all tiles of a column block
// that a thread meets in a row.
template <class T>
void Network<T>::gradient_on_unit(Workspace& w, const WeightGradient<T>& g, const Tile& t,
                                  int thread, int B, T* c, std::ptrdiff_t ldc) const {
  if constexpr (sizeof(T) == sizeof(float)) {
    const std::ptrdiff_t band = band_of(B), ld_h = padded<T>(shape_.sizes[g.layer - 1]);
    PackedBlock& found = w.split_block[thread];
    if (found.block != t.column_block || found.layer != g.layer) {
      found = {t.column_block, g.layer};
      unit_->right(
          {output_of(w, g.layer - 1) + t.column, ld_h, B, t.columns, w.output_right[thread], band});
    }
    unit_->left_transposed(
        {g.delta.data + t.row, g.delta.ld, B, t.rows, w.delta_left[thread], band});
    unit_->product(
        {t.rows, t.columns, B, w.delta_left[thread], band, w.output_right[thread], band, c, ldc});
  }
}

template <class T>
void Network<T>::note_gradient(const WeightGradient<T>& g, const TileSums* sums) {
  if (g.layer == 0) return;
  const double squares = add_up(sums, g.grid.tasks()).g_squares;
  flow_.gradient_log2[g.layer - 1] = half_log2(squares, g.exponent);
  const double stored = shifted(squares, 2 * g.exponent);
  gradient_squares_[g.layer - 1] = within(stored) ? stored : NAN;
}

// One or two of them in a loop of their own.
template <class T>
void Network<T>::make_gradients(Workspace& w, int B, bool flow, const WeightGradient<T>& one,
                                const WeightGradient<T>& other) {
  const int first = one.tasks(), all = first + other.tasks();
  double cycles = 0;
  for (const int l : {one.layer, other.layer}) cycles += l ? product_cycles(l, B) : 0.0;
  const int threads = team(w, B, cycles);
  std::fill(w.split_block.begin(), w.split_block.end(), PackedBlock());
  parallel_for(all, threads, [&](int i, int thread) {
    // Each thread takes the same rows of both: an optimizer's step will, too.
    const int task = of_two_kinds(i, first, all - first, threads);
    const bool of_one = task < first;
    gradient_task(w, of_one ? one : other, of_one ? task : task - first, thread, B, flow,
                  w.sums[task]);
  });
  if (!flow) return;
  note_gradient(one, w.sums.data());
  note_gradient(other, w.sums.data() + first);
}

#define VEGRAD_INSTANCE(T)                                                                        \
  template WeightGradient<T> Network<T>::weight_gradient(int, int, const ScaledMatrix<T>&) const; \
  template void Network<T>::gradient_task(Workspace&, const WeightGradient<T>&, int, int, int,    \
                                          bool, TileSums&, const WeightGradient<T>&);             \
  template void Network<T>::note_gradient(const WeightGradient<T>&, const TileSums*);             \
  template void Network<T>::make_gradients(Workspace&, int, bool, const WeightGradient<T>&,       \
                                           const WeightGradient<T>&);
VEGRAD_INSTANCE(float)
VEGRAD_INSTANCE(double)
#undef VEGRAD_INSTANCE

}  // namespace vegrad

#include "core/network/weight_gradient.hpp"

#include "core/network/backward.hpp"
#include "core/network/products.hpp"

namespace vegrad {
namespace {

// What the gradient `next` will read, half of which another thread has made: h while the first of a
// layer's tiles is computed, delta with the others.
template <class T>
Ahead read_next(const Pass<T>& pass, const WeightGradient<T>& next, const Tile& t) {
  if (next.layer == 0) return {};
  constexpr int kPerLine = 64 / int(sizeof(T));
  const bool first = t.row_block == 0;
  const int columns = pass.shape.sizes[first ? next.layer - 1 : next.layer];
  const T* const data = first ? output_of(pass, next.layer - 1) : next.delta.data;
  const std::ptrdiff_t ld = first ? padded<T>(columns) : next.delta.ld;
  return {data, ld * std::ptrdiff_t(sizeof(T)), pass.rows, (columns + kPerLine - 1) / kPerLine};
}

// c of a tile on the matrix unit. The layer's input is split once for all tiles of a column block
// that a thread meets in a row.
template <class T>
void gradient_on_unit(Pass<T>& pass, const WeightGradient<T>& g, const Tile& t, int thread, T* c,
                      std::ptrdiff_t ldc) {
  if constexpr (sizeof(T) == sizeof(float)) {
    Workspace<T>& w = pass.work;
    const int B = pass.rows;
    const std::ptrdiff_t band = band_of(B);
    PackedBlock& found = w.split_block[thread];
    if (found.block != t.column_block || found.layer != g.layer) {
      found = {t.column_block, g.layer};
      pass.unit->right({output_of(pass, g.layer - 1) + t.column, pass.ld(g.layer - 1), B, t.columns,
                        w.output_right[thread], band});
    }
    pass.unit->left_transposed(
        {g.delta.data + t.row, g.delta.ld, B, t.rows, w.delta_left[thread], band});
    pass.unit->product(
        {t.rows, t.columns, B, w.delta_left[thread], band, w.output_right[thread], band, c, ldc});
  }
}

// A tile of a small batch's gradient: rows of it, all of their columns. Returns Σ of its squares,
// before the factors.
template <class T>
double small_batch_gradient(const Pass<T>& pass, const WeightGradient<T>& g, const Tile& t,
                            const TwoFactors<T>& scale, T* out) {
  const int I = pass.shape.sizes[g.layer - 1];
  SmallBatch<T> small{};
  small.I = I;
  small.O = t.rows;
  small.h = output_of(pass, g.layer - 1);
  small.ldh = padded<T>(I);
  small.delta = g.delta.data + t.row;
  small.ld_delta = g.delta.ld;
  small.out = out;
  small.ld_out = I;
  small.first = scale.first;
  small.second = scale.second;
  instruction_set().kernels<T>().small_batch.gradient[pass.rows - 1](small);
  return small.squares;
}

}  // namespace

template <class T>
WeightGradient<T> gradient_of_layer(const Pass<T>& pass, int l, const ScaledMatrix<T>& delta) {
  return {l, pass.gradient_grid(l), delta, delta.exponent + pass.layers[l - 1].h_exponent,
          pass.on_unit(l)};
}

template <class T>
void gradient_task(Pass<T>& pass, const WeightGradient<T>& g, int task, int thread, TileSums& sums,
                   const WeightGradient<T>& next) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int I = pass.shape.sizes[g.layer - 1], B = pass.rows;
  const TwoFactors<T> scale(g.exponent);
  const Tile t = g.grid.tile(task);
  T* const out = pass.weight_gradient(g.layer) + std::ptrdiff_t(t.row) * I + t.column;
  sums = TileSums();
  if (B <= kSmallBatch) {
    sums.g_squares = small_batch_gradient(pass, g, t, scale, out);
    return;
  }
  // Where rows are whole vectors, the product writes the gradient itself.
  const bool direct = I % kernels.lanes == 0;
  T* const c = direct ? out : pass.work.tile[thread];
  const std::ptrdiff_t ldc = direct ? I : padded<T>(t.columns);
  if (g.on_unit) {
    gradient_on_unit(pass, g, t, thread, c, ldc);
  } else {
    const RightOperand<T> right{output_of(pass, g.layer - 1) + t.column, pass.ld(g.layer - 1),
                                kernels.panel_columns};
    kernels.product({t.rows, t.columns, B, g.delta.data + t.row, 1, g.delta.ld, right, c, ldc,
                     direct, read_next(pass, next, t)});
  }
  if (direct && g.exponent == 0 && !pass.flow_wanted) return;
  GradientTile<T> tile{t.rows, t.columns, c, ldc, scale.first, scale.second, out, I};
  kernels.write_gradient(tile);
  sums.g_squares = tile.squares;
}

template <class T>
void note_gradient(Pass<T>& pass, const WeightGradient<T>& g, const TileSums* sums) {
  if (g.layer == 0) return;
  const double squares = add_up(sums, g.grid.tasks()).g_squares;
  pass.flow.gradient_log2[g.layer - 1] = half_log2(squares, g.exponent);
  const double stored = shifted(squares, 2 * g.exponent);
  pass.gradient_squares[g.layer - 1] = within(stored) ? stored : NAN;
}

template <class T>
void make_gradients(Pass<T>& pass, const WeightGradient<T>& one, const WeightGradient<T>& other) {
  Workspace<T>& w = pass.work;
  const int first = one.tasks(), all = first + other.tasks();
  double cycles = 0;
  for (const int l : {one.layer, other.layer}) cycles += l ? pass.product_cycles(l) : 0.0;
  const int threads = pass.team(cycles);
  std::fill(w.split_block.begin(), w.split_block.end(), PackedBlock());
  parallel_for(all, threads, [&](int i, int thread) {
    // Each thread takes the same rows of both: an optimizer's step will, too.
    const int task = of_two_kinds(i, first, all - first, threads);
    const bool of_one = task < first;
    gradient_task(pass, of_one ? one : other, of_one ? task : task - first, thread, w.sums[task]);
  });
  if (!pass.flow_wanted) return;
  note_gradient(pass, one, w.sums.data());
  note_gradient(pass, other, w.sums.data() + first);
}

template <class T>
void make_all_gradients(Pass<T>& pass, const std::vector<WeightGradient<T>>& all) {
  Workspace<T>& w = pass.work;
  std::vector<int> begin{0};
  for (const WeightGradient<T>& g : all) begin.push_back(begin.back() + g.tasks());
  std::fill(w.split_block.begin(), w.split_block.end(), PackedBlock());
  parallel_for(begin.back(), w.threads_in_use, [&](int task, int thread) {
    const int i = int(std::upper_bound(begin.begin(), begin.end(), task) - begin.begin()) - 1;
    gradient_task(pass, all[i], task - begin[i], thread, w.sums[task],
                  i + 1 < int(all.size()) ? all[i + 1] : WeightGradient<T>());
  });
  if (!pass.flow_wanted) return;
  for (std::size_t i = 0; i < all.size(); ++i) note_gradient(pass, all[i], &w.sums[begin[i]]);
}

VEGRAD_FOR_BOTH(gradient_of_layer)
VEGRAD_FOR_BOTH(gradient_task)
VEGRAD_FOR_BOTH(note_gradient)
VEGRAD_FOR_BOTH(make_gradients)
VEGRAD_FOR_BOTH(make_all_gradients)

}  // namespace vegrad

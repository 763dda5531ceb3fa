#include <algorithm>
#include <cstring>

#include "core/network/grid.hpp"
#include "core/recurrent/pass.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// Rows that lie one behind the other in both operands of a gradient.
struct Run {
  std::ptrdiff_t left, right;  // the first row of each
  int rows;
};

// The product over steps begin … end of rows that stand at `left(t)` and `right(t)`.
template <class Left, class Right>
void find_runs(const Schedule& schedule, int begin, int end, const Left& left, const Right& right,
               std::vector<Run>& runs) {
  runs.clear();
  for (int t = begin; t < end; ++t) {
    const int n = schedule.count(t);
    if (n == 0) continue;
    const bool joins = !runs.empty() && runs.back().left + runs.back().rows == left(t) &&
                       runs.back().right + runs.back().rows == right(t);
    if (joins)
      runs.back().rows += n;
    else
      runs.push_back({left(t), right(t), n});
  }
}

// ∂loss/∂W (rows of one gate or of the head, n) = Σ leftᵀ right over runs of rows.
template <class T>
struct ProductOverRows {
  const T *left, *right;
  std::ptrdiff_t ld_left, ld_right;
  const std::vector<Run>* runs;
  Grid grid;
  T* out;  // without padding
};

template <class T>
void gradient_tile(const TimePass<T>& pass, const ProductOverRows<T>& g, int task, T* tile) {
  const Kernels<T>& kernels = pass.kernels();
  const Tile t = g.grid.tile(task);
  const std::ptrdiff_t ld = padded<T>(t.columns);
  bool continued = false;
  for (const Run& run : *g.runs) {
    Product<T> p{t.rows,
                 t.columns,
                 run.rows,
                 g.left + run.left * g.ld_left + t.row,
                 1,
                 g.ld_left,
                 {g.right + run.right * g.ld_right + t.column, g.ld_right, kernels.panel_columns},
                 tile,
                 ld,
                 false,
                 {},
                 continued};
    kernels.product(p);
    continued = true;
  }
  T* const out = g.out + std::ptrdiff_t(t.row) * g.grid.columns + t.column;
  for (int i = 0; i < t.rows; ++i)
    for (int j = 0; j < t.columns; ++j) {
      T& to = out[std::ptrdiff_t(i) * g.grid.columns + j];
      const T value = continued ? tile[i * ld + j] : T(0);
      to = pass.add ? to + value : value;
    }
}

// ∂loss/∂b = Σ over rows, of some columns.
template <class T>
struct SumOverRows {
  const T* left;
  std::ptrdiff_t ld;
  std::int64_t rows;
  int columns;
  T *out, *other;  // other: null, or a second bias with the same gradient
};

constexpr int kSumColumns = 64, kSumRows = 64;

template <class T>
void gradient_sums(const TimePass<T>& pass, const SumOverRows<T>& g, int task) {
  const int begin = task * kSumColumns, n = std::min(kSumColumns, g.columns - begin);
  double sums[kSumColumns] = {};
  for (std::int64_t row = 0; row < g.rows; row += kSumRows) {
    T part[kSumColumns] = {};
    const std::int64_t stop = std::min(g.rows, row + kSumRows);
    const T* from = g.left + row * g.ld + begin;
    for (std::int64_t i = row; i < stop; ++i, from += g.ld)
      if (n == kSumColumns)
        for (int j = 0; j < kSumColumns; ++j) part[j] += from[j];
      else
        for (int j = 0; j < n; ++j) part[j] += from[j];
    for (int j = 0; j < n; ++j) sums[j] += double(part[j]);
  }
  for (T* const out : {g.out, g.other})
    for (int j = 0; out && j < n; ++j)
      out[begin + j] = pass.add ? T(out[begin + j] + sums[j]) : T(sums[j]);
}

template <class T>
struct AllGradients {
  std::vector<Run> of_x, of_state, of_below, of_head;
  std::vector<ProductOverRows<T>> products;
  std::vector<SumOverRows<T>> sums;
};

template <class T>
Grid grid_of(int rows, int columns) {
  return make_grid(rows, kNarrowRowStep, columns, kWideBytes / int(sizeof(T)));
}

template <class T>
void add_layer(TimePass<T>& pass, int l, int begin, int end, AllGradients<T>& all) {
  const RecurrentShape& shape = pass.shape;
  const LayerWeights<T>& to = pass.gradients[l];
  const RowSizes<T>& sizes = pass.sizes;
  const T* const alpha = pass.alpha(l, pass.first);
  const int I = shape.inputs_of(l), H = shape.hidden;
  const std::int64_t rows = pass.place(end) - pass.place(begin);
  for (int g = 0; g < shape.gates(); ++g) {
    const T* const in = alpha + slot_of_input(shape.cell, g) * sizes.slot;
    const T* const state = alpha + slot_of_state(shape.cell, g) * sizes.slot;
    const std::ptrdiff_t row = std::ptrdiff_t(g) * H;
    const T* const below = l == 0 ? pass.work.x : pass.work.layers[l - 1].h;
    all.products.push_back({in, below, sizes.gates, pass.ld_input(l),
                            l == 0 ? &all.of_x : &all.of_below, grid_of<T>(H, I),
                            to.weight_ih + row * I});
    all.products.push_back({state, pass.work.layers[l].h, sizes.gates, sizes.hidden, &all.of_state,
                            grid_of<T>(H, H), to.weight_hh + row * H});
    if (!to.bias_ih) continue;
    const bool apart = in != state;
    all.sums.push_back(
        {in, sizes.gates, rows, H, to.bias_ih + row, apart ? nullptr : to.bias_hh + row});
    if (apart) all.sums.push_back({state, sizes.gates, rows, H, to.bias_hh + row, nullptr});
  }
}

template <class T>
void add_head(TimePass<T>& pass, int begin, int end, AllGradients<T>& all) {
  const RecurrentShape& shape = pass.shape;
  if (!shape.targets_all) begin = end - 1;
  const auto output = [&](int t) {
    return shape.targets_all ? std::ptrdiff_t(pass.place(t)) : std::ptrdiff_t(0);
  };
  const auto h = [&](int t) { return std::ptrdiff_t(pass.state_place(t)); };
  find_runs(pass.schedule, begin, end, output, h, all.of_head);
  std::int64_t rows = 0;
  for (const Run& run : all.of_head) rows += run.rows;
  all.products.push_back({pass.work.output, pass.work.layers.back().h, pass.sizes.output,
                          pass.sizes.hidden, &all.of_head, grid_of<T>(shape.outputs, shape.hidden),
                          pass.head_gradient.weight});
  all.sums.push_back({pass.output(begin), pass.sizes.output, rows, shape.outputs,
                      pass.head_gradient.bias, nullptr});
}

}  // namespace

template <class T>
void make_weight_gradients(TimePass<T>& pass, int begin, int end) {
  AllGradients<T> all;
  const auto place = [&](int t) { return std::ptrdiff_t(pass.place(t)); };
  const auto state = [&](int t) { return std::ptrdiff_t(pass.state_place(t)); };
  const auto before = [&](int t) { return std::ptrdiff_t(pass.state_place(t - 1)); };
  find_runs(pass.schedule, pass.first, end, place, place, all.of_x);
  find_runs(pass.schedule, pass.first, end, place, before, all.of_state);
  find_runs(pass.schedule, pass.first, end, place, state, all.of_below);
  for (int l = 0; l < pass.shape.layers; ++l) add_layer(pass, l, pass.first, end, all);
  if (pass.shape.outputs) add_head(pass, begin, end, all);
  std::vector<int> starts{0};
  for (const ProductOverRows<T>& g : all.products) starts.push_back(starts.back() + g.grid.tasks());
  for (const SumOverRows<T>& g : all.sums)
    starts.push_back(starts.back() + (g.columns + kSumColumns - 1) / kSumColumns);
  parallel_for(starts.back(), pass.threads, [&](int task, int thread) {
    const std::size_t i = std::upper_bound(starts.begin(), starts.end(), task) - starts.begin() - 1;
    if (i < all.products.size())
      gradient_tile(pass, all.products[i], task - starts[i], pass.work.scratch[thread].tile);
    else
      gradient_sums(pass, all.sums[i - all.products.size()], task - starts[i]);
  });
}

VEGRAD_FOR_BOTH_TYPES(make_weight_gradients)

}  // namespace vegrad

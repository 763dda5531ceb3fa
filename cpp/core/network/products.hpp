// The matrix products of a layer, cut into tiles for the kernels: h Wᵀ on the way forward, δ W on
// the way back. (The third, δᵀ h, is in weight_gradient.cpp.)
//
// This is the one place that knows where products come from: the vectors' register tiles, the
// matrix unit, or the kernels for a small batch. Each product is one parallel loop over the tiles
// of its result, and calls `after(tile, task)` on the thread that has made a tile while that is in
// its cache. What must hold: each element of a result is summed over k in order, whatever the tile,
// the thread or the path it was packed on, so that no result depends on the number of threads.
//
// What layers do with a product is not here; nor are exponents, which callers keep.
#pragma once

#include "core/network/pass.hpp"
#include "core/network/weight_gradient.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {

// The right operand of a tile's product: as it stands if its rows are short and whole vectors,
// else packed, once for all tiles of a column block that a thread meets in a row.
template <class T>
RightOperand<T> right_operand(const Kernels<T>& kernels, const T* b, std::ptrdiff_t row,
                              std::ptrdiff_t column, int k, const Tile& tile, bool padded_rows,
                              T* packed, PackedBlock& packed_block) {
  const T* const start = b + tile.column * column;
  const bool whole = column == 1 && (padded_rows || tile.columns % kernels.lanes == 0);
  if (whole && row * std::ptrdiff_t(sizeof(T)) <= kLongRowBytes)
    return {start, row, kernels.panel_columns};
  if (packed_block.block != tile.column_block) {
    kernels.pack(start, row, column, k, tile.columns, packed);
    packed_block.block = tile.column_block;
  }
  return {packed, kernels.panel_columns, std::ptrdiff_t(k) * kernels.panel_columns};
}

// The weights (O, I) of a layer as the right operand of a product: (I, O) on the way forward, (O,
// I) on the way back.
template <class T>
struct Weights {
  const T* data;
  int I, O;
  bool transposed;  // the way forward

  // The lines of columns begin … begin + columns.
  Ahead lines_of(int begin, int columns) const {
    constexpr int kPerLine = 64 / int(sizeof(T));
    if (transposed)
      return {data + std::ptrdiff_t(begin) * I, 64, int(std::int64_t(columns) * I / kPerLine), 1};
    return {data + begin, I * std::ptrdiff_t(sizeof(T)), O, (columns + kPerLine - 1) / kPerLine};
  }
};

// What the thread of a task will pack next: the next column block of its share, or its first one of
// the layer that follows. Only the first task of a column block asks for it.
template <class T>
Ahead packed_next(const Grid& grid, const Weights<T>& weights, const Grid& next_grid,
                  const Weights<T>& next, const Tile& t, int thread, int threads) {
  if (t.row_block > 0) return {};
  const int after = (t.column_block + 1) * grid.row_blocks;
  const Weights<T>* of = &weights;
  Tile tile{};
  if (after < first_task(grid.tasks(), thread + 1, threads)) {
    tile = grid.tile(after);
  } else {
    of = &next;
    tile = next_grid.tile(first_task(next_grid.tasks(), thread, threads));
  }
  return of->lines_of(tile.column, tile.columns);
}

// A loop over the tiles of a small batch, each thread with neighbouring ones: `product(begin,
// columns)` for all of its columns, then `after(tile, task)` for each tile.
template <class Product, class After>
void for_small_batch(const Grid& grid, int threads, const Product& product, const After& after) {
  const int groups = std::min(threads, grid.tasks());
  parallel_for(groups, threads, [&](int group, int) {
    const int first = first_task(grid.tasks(), group, groups);
    const int last = first_task(grid.tasks(), group + 1, groups);
    const int begin = grid.tile(first).column;
    product(begin, std::min(last * grid.column_step, grid.columns) - begin);
    for (int task = first; task < last; ++task) after(grid.tile(task), task);
  });
}

// The rows of a tile as the left operand of its products on the matrix unit.
template <class T>
void split_left(const Pass<T>& pass, const Tile& t, int k, const T* in, std::ptrdiff_t ld) {
  const Workspace<T>& w = pass.work;
  if constexpr (sizeof(T) == sizeof(float))
    pass.unit->left(
        {in + t.row * ld, ld, t.rows, k, w.left + t.row_block * w.left_block, band_of(k)});
}

// c of a tile whose rows are split. The right operand, of the weights (O, I), is split once for all
// tiles of a column block that a thread meets in a row.
template <class T>
void product_on_unit(const Pass<T>& pass, const Tile& t, int k, const Weights<T>& weights,
                     int thread, PackedBlock& packed_block, T* c, std::ptrdiff_t ldc) {
  if constexpr (sizeof(T) == sizeof(float)) {
    const Workspace<T>& w = pass.work;
    const std::ptrdiff_t band = band_of(k), I = weights.I;
    bfloat16* const right = w.right[thread];
    if (packed_block.block != t.column_block) {
      packed_block.block = t.column_block;
      if (weights.transposed)
        pass.unit->right_transposed({weights.data + t.column * I, I, t.columns, k, right, band});
      else
        pass.unit->right({weights.data + t.column, I, k, t.columns, right, band});
    }
    pass.unit->product(
        {t.rows, t.columns, k, w.left + t.row_block * w.left_block, band, right, band, c, ldc});
  }
}

// c (rows of a tile) = in times the weights, on the unit (whose left operand is split by then) or
// on vectors.
template <class T>
void tile_product(const Pass<T>& pass, const Tile& t, int k, const T* in, std::ptrdiff_t ld_in,
                  const Weights<T>& weights, bool unit, int thread, PackedBlock& packed_block, T* c,
                  std::ptrdiff_t ldc, const Ahead& ahead) {
  if (unit) return product_on_unit(pass, t, k, weights, thread, packed_block, c, ldc);
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const std::ptrdiff_t row = weights.transposed ? 1 : weights.I;
  const std::ptrdiff_t column = weights.transposed ? weights.I : 1;
  const RightOperand<T> b = right_operand(kernels, weights.data, row, column, k, t, false,
                                          pass.work.packed[thread], packed_block);
  kernels.product({t.rows, t.columns, k, in + t.row * ld_in, ld_in, 1, b, c, ldc, false, ahead});
}

// z (B, O) = in (B, I) Wᵀ of layer l, for a small batch.
template <class T, class After>
void small_batch_with_weights(Pass<T>& pass, int l, const T* in, std::ptrdiff_t ld_in,
                              const T* weights, T* z, const After& after) {
  const int I = pass.shape.sizes[l - 1];
  const auto product = [&](int begin, int columns) {
    SmallBatch<T> small{};
    small.I = I;
    small.O = columns;
    small.h = in;
    small.ldh = ld_in;
    small.weights = weights + std::ptrdiff_t(begin) * I;
    small.ldw = I;
    small.out = z + begin;
    small.ld_out = pass.ld(l);
    instruction_set().kernels<T>().small_batch.forward[pass.rows - 1](small);
  };
  for_small_batch(pass.row_grid(l), pass.team(pass.product_cycles(l)), product, after);
}

// z (B, O) = in (B, I) Wᵀ of layer l.
template <class T, class After>
void product_with_weights(Pass<T>& pass, int l, const T* in, std::ptrdiff_t ld_in, const T* weights,
                          T* z, const After& after) {
  if (pass.rows <= kSmallBatch)
    return small_batch_with_weights(pass, l, in, ld_in, weights, z, after);
  Workspace<T>& w = pass.work;
  const NetworkShape& shape = pass.shape;
  const int I = shape.sizes[l - 1];
  const std::ptrdiff_t ld = pass.ld(l);
  const Grid grid = pass.row_grid(l);
  const int threads = pass.team(pass.product_cycles(l));
  const int next = std::min(l + 1, shape.layers());
  const Grid next_grid = pass.row_grid(next);
  const Weights<T> own{weights, I, shape.sizes[l], true},
      following{pass.weight(next), shape.sizes[next - 1], shape.sizes[next], true};
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  const bool unit = pass.on_unit(l);
  if (unit)
    parallel_for(grid.row_blocks, threads,
                 [&](int block, int) { split_left(pass, grid.tile(block), I, in, ld_in); });
  parallel_for(grid.tasks(), threads, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    const Ahead ahead =
        unit ? Ahead() : packed_next(grid, own, next_grid, following, t, thread, threads);
    tile_product(pass, t, I, in, ld_in, own, unit, thread, w.packed_block[thread],
                 z + t.row * ld + t.column, ld, ahead);
    after(t, task);
  });
}

// The i-th task of a loop over two kinds, `first` of the one (0 …) and `second` of the other
// (first …), such that each thread starts with its share of both.
inline int of_two_kinds(int i, int first, int second, int threads) {
  const int n = first + second;
  if (second < threads) return i;
  int t = int(std::int64_t(i) * threads / n);
  while (i >= first_task(n, t + 1, threads)) ++t;
  const int begin = first_task(n, t, threads), own = first_task(first, t, threads);
  const int place = i - begin, count = first_task(first, t + 1, threads) - own;
  return place < count ? own + place : first + (begin - own) + (place - count);
}

// A loop over `first` tasks of a product, product(task, thread), and those of a weight gradient
// beside them, each thread with its share of both. `threads` from team_beside().
template <class T, class Product>
void with_gradient_beside(Pass<T>& pass, int first, int threads, const WeightGradient<T>& beside,
                          TileSums* gradient_sums, const Product& product) {
  const int second = beside.tasks();
  std::fill(pass.work.split_block.begin(), pass.work.split_block.end(), PackedBlock());
  parallel_for(first + second, threads, [&](int i, int thread) {
    const int task = of_two_kinds(i, first, second, threads);
    if (task >= first)
      gradient_task(pass, beside, task - first, thread, gradient_sums[task - first]);
    else
      product(task, thread);
  });
}

// Threads for the product of layer l with a weight gradient beside it.
template <class T>
int team_beside(const Pass<T>& pass, int l, const WeightGradient<T>& beside) {
  const double gradient = beside.layer ? pass.product_cycles(beside.layer) : 0.0;
  return pass.team(pass.product_cycles(l) + gradient);
}

// g (B, I) = delta (B, O) W of layer l, for a small batch: the weights stream through the threads
// block by block as they lie, their gradient beside them, and the blocks' sums are added in order.
template <class T, class After>
void small_batch_with_transpose(Pass<T>& pass, int l, const T* delta, std::ptrdiff_t ld_delta,
                                const T* weights, T* g, const WeightGradient<T>& beside,
                                const After& after) {
  Workspace<T>& w = pass.work;
  const int I = pass.shape.sizes[l - 1], B = pass.rows;
  const std::ptrdiff_t ld = pass.ld(l - 1);
  const Grid grid = pass.row_grid(l - 1), blocks = small_batch_grid(pass.shape.sizes[l]);
  TileSums* const gradient_sums = w.sums.data() + grid.tasks();
  const auto product = [&](int block, int) {
    const Tile t = blocks.tile(block);
    SmallBatch<T> small{};
    small.I = I;
    small.O = t.rows;
    small.delta = delta + t.row;
    small.ld_delta = ld_delta;
    small.weights = weights + std::ptrdiff_t(t.row) * I;
    small.ldw = I;
    small.out = block == 0 ? g : w.partial + (block - 1) * B * ld;
    small.ld_out = ld;
    instruction_set().kernels<T>().small_batch.backward[B - 1](small);
  };
  with_gradient_beside(pass, blocks.tasks(), team_beside(pass, l, beside), beside, gradient_sums,
                       product);
  for (int block = 1; block < blocks.tasks(); ++block) {
    const T* const more = w.partial + (block - 1) * B * ld;
    for (std::ptrdiff_t i = 0; i < B * ld; ++i) g[i] += more[i];
  }
  for (int task = 0; task < grid.tasks(); ++task) after(grid.tile(task), task);
  if (pass.flow_wanted) note_gradient(pass, beside, gradient_sums);
}

// g (B, I) = delta (B, O) W of layer l, the tiles those of layer l - 1; and the gradient `beside`.
template <class T, class After>
void product_with_transpose(Pass<T>& pass, int l, const T* delta, std::ptrdiff_t ld_delta,
                            const T* weights, T* g, const WeightGradient<T>& beside,
                            const After& after) {
  if (pass.rows <= kSmallBatch)
    return small_batch_with_transpose(pass, l, delta, ld_delta, weights, g, beside, after);
  Workspace<T>& w = pass.work;
  const NetworkShape& shape = pass.shape;
  const int I = shape.sizes[l - 1], O = shape.sizes[l];
  const std::ptrdiff_t ld = pass.ld(l - 1);
  const Grid grid = pass.row_grid(l - 1);
  const int next = std::max(l - 1, 2);
  const Grid next_grid = pass.row_grid(next - 1);
  const Weights<T> own{weights, I, O, false},
      following{pass.weight(next), shape.sizes[next - 1], shape.sizes[next], false};
  const int threads = team_beside(pass, l, beside);
  TileSums* const gradient_sums = w.sums.data() + grid.tasks();
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  const bool unit = pass.on_unit(l);
  if (unit)
    parallel_for(grid.row_blocks, threads,
                 [&](int block, int) { split_left(pass, grid.tile(block), O, delta, ld_delta); });
  const auto product = [&](int task, int thread) {
    const Tile t = grid.tile(task);
    const Ahead ahead =
        unit ? Ahead() : packed_next(grid, own, next_grid, following, t, thread, threads);
    tile_product(pass, t, O, delta, ld_delta, own, unit, thread, w.packed_block[thread],
                 g + t.row * ld + t.column, ld, ahead);
    after(t, task);
  };
  with_gradient_beside(pass, grid.tasks(), threads, beside, gradient_sums, product);
  if (pass.flow_wanted) note_gradient(pass, beside, gradient_sums);
}

}  // namespace vegrad

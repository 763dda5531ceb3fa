// The three matrix products of a network, cut into tiles for the kernels. This is the one place
// that knows where products come from.
#pragma once

#include "core/network/network.hpp"
#include "core/runtime/dispatch.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {

constexpr int kDirectBytes = 512;  // right operands with longer rows are packed

// The right operand of a tile's product: as it stands if its rows are short and whole vectors,
// else packed, once for all tiles of a column block that a thread meets in a row.
template <class T>
RightOperand<T> right_operand(const Kernels<T>& kernels, const T* b, std::ptrdiff_t row,
                              std::ptrdiff_t column, int k, const Tile& tile, bool padded_rows,
                              T* packed, PackedBlock& packed_block) {
  const T* const start = b + tile.column * column;
  const bool whole = column == 1 && (padded_rows || tile.columns % kernels.lanes == 0);
  if (whole && row * std::ptrdiff_t(sizeof(T)) <= kDirectBytes)
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

// A loop over the tiles of a few rows, each thread with neighbouring ones: `product(begin,
// columns)` for all of its columns, then `after(tile, task)` for each tile.
template <class Product, class After>
void for_few_rows(const Grid& grid, int threads, const Product& product, const After& after) {
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
void Network<T>::split_left(const Workspace& w, const Tile& t, int k, const T* in,
                            std::ptrdiff_t ld) const {
  if constexpr (sizeof(T) == sizeof(float))
    unit_->left({in + t.row * ld, ld, t.rows, k, w.left + t.row_block * w.left_block, band_of(k)});
}

// c of a tile whose rows are split. The right operand, of the weights (O, I), is split once for all
// tiles of a column block that a thread meets in a row.
template <class T>
void Network<T>::product_on_unit(const Workspace& w, const Tile& t, int k, const T* weights, int I,
                                 bool transposed, int thread, PackedBlock& packed_block, T* c,
                                 std::ptrdiff_t ldc) const {
  if constexpr (sizeof(T) == sizeof(float)) {
    const std::ptrdiff_t band = band_of(k);
    bfloat16* const right = w.right[thread];
    if (packed_block.block != t.column_block) {
      packed_block.block = t.column_block;
      if (transposed)
        unit_->right_transposed(
            {weights + std::ptrdiff_t(t.column) * I, I, t.columns, k, right, band});
      else
        unit_->right({weights + t.column, I, k, t.columns, right, band});
    }
    unit_->product(
        {t.rows, t.columns, k, w.left + t.row_block * w.left_block, band, right, band, c, ldc});
  }
}

// z (B, O) = in (B, I) Wᵀ of layer l.
template <class T>
template <class After>
void Network<T>::product_with_weights(Workspace& w, int l, int B, const T* in, std::ptrdiff_t ld_in,
                                      const T* weights, T* z, const After& after) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int I = shape_.sizes[l - 1];
  const std::ptrdiff_t ld = padded<T>(shape_.sizes[l]);
  const Grid grid = row_grid(B, l);
  const int threads = team(w, B, product_cycles(l, B));
  if (B <= kFewRows) {
    const auto product = [&](int begin, int columns) {
      FewRows<T> few{};
      few.I = I;
      few.O = columns;
      few.h = in;
      few.ldh = ld_in;
      few.weights = weights + std::ptrdiff_t(begin) * I;
      few.ldw = I;
      few.out = z + begin;
      few.ld_out = ld;
      kernels.few_rows.forward[B - 1](few);
    };
    for_few_rows(grid, threads, product, after);
    return;
  }
  const int next = std::min(l + 1, shape_.layers());
  const Grid next_grid = row_grid(B, next);
  const Weights<T> own{weights, I, shape_.sizes[l], true},
      following{weight(next), shape_.sizes[next - 1], shape_.sizes[next], true};
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  const bool unit = on_unit(l);
  if (unit)
    parallel_for(grid.row_blocks, threads,
                 [&](int block, int) { split_left(w, grid.tile(block), I, in, ld_in); });
  parallel_for(grid.tasks(), threads, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    T* const c = z + t.row * ld + t.column;
    if (unit) {
      product_on_unit(w, t, I, weights, I, true, thread, w.packed_block[thread], c, ld);
    } else {
      const RightOperand<T> b = right_operand(kernels, weights, 1, I, I, t, false, w.packed[thread],
                                              w.packed_block[thread]);
      kernels.product({t.rows, t.columns, I, in + t.row * ld_in, ld_in, 1, b, c, ld, false,
                       packed_next(grid, own, next_grid, following, t, thread, threads)});
    }
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

// g (B, I) = delta (B, O) W of layer l, the tiles those of layer l - 1; and the gradient `beside`.
template <class T>
template <class After>
void Network<T>::product_with_transpose(Workspace& w, int l, int B, const T* delta,
                                        std::ptrdiff_t ld_delta, const T* weights, T* g,
                                        const WeightGradient<T>& beside, bool flow,
                                        const After& after) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int I = shape_.sizes[l - 1], O = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(I);
  const Grid grid = row_grid(B, l - 1);
  const int next = std::max(l - 1, 2);
  const Grid next_grid = row_grid(B, next - 1);
  const Weights<T> own{weights, I, O, false},
      following{weight(next), shape_.sizes[next - 1], shape_.sizes[next], false};
  const bool few = B <= kFewRows;
  const Grid blocks = few ? few_rows_grid(O) : grid;
  const int first = blocks.tasks(), second = beside.tasks();
  const int threads =
      team(w, B, product_cycles(l, B) + (beside.layer ? product_cycles(beside.layer, B) : 0.0));
  TileSums* const gradient_sums = w.sums.data() + grid.tasks();
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  std::fill(w.split_block.begin(), w.split_block.end(), PackedBlock());
  const bool unit = on_unit(l);
  if (unit)
    parallel_for(grid.row_blocks, threads,
                 [&](int block, int) { split_left(w, grid.tile(block), O, delta, ld_delta); });
  parallel_for(first + second, threads, [&](int i, int thread) {
    const int task = of_two_kinds(i, first, second, threads);
    if (task >= first) {
      gradient_task(w, beside, task - first, thread, B, flow, gradient_sums[task - first]);
      return;
    }
    if (few) {
      few_rows_transposed(blocks.tile(task), B, delta, ld_delta, weights, I,
                          task == 0 ? g : w.partial + (task - 1) * B * ld);
      return;
    }
    const Tile t = grid.tile(task);
    T* const c = g + t.row * ld + t.column;
    if (unit) {
      product_on_unit(w, t, O, weights, I, false, thread, w.packed_block[thread], c, ld);
    } else {
      const RightOperand<T> b = right_operand(kernels, weights, I, 1, O, t, false, w.packed[thread],
                                              w.packed_block[thread]);
      kernels.product({t.rows, t.columns, O, delta + t.row * ld_delta, ld_delta, 1, b, c, ld, false,
                       packed_next(grid, own, next_grid, following, t, thread, threads)});
    }
    after(t, task);
  });
  if (few) {
    for (int block = 1; block < first; ++block) {
      const T* const more = w.partial + (block - 1) * B * ld;
      for (std::ptrdiff_t i = 0; i < B * ld; ++i) g[i] += more[i];
    }
    for (int task = 0; task < grid.tasks(); ++task) after(grid.tile(task), task);
  }
  if (flow) note_gradient(beside, gradient_sums);
}

// What a block t of a layer's units adds to the gradient with respect to its input: the weights
// stream through a thread as they lie, and their gradient beside them.
template <class T>
void Network<T>::few_rows_transposed(const Tile& t, int B, const T* delta, std::ptrdiff_t ld_delta,
                                     const T* weights, int I, T* out) {
  FewRows<T> few{};
  few.I = I;
  few.O = t.rows;
  few.delta = delta + t.row;
  few.ld_delta = ld_delta;
  few.weights = weights + std::ptrdiff_t(t.row) * I;
  few.ldw = I;
  few.out = out;
  few.ld_out = padded<T>(I);
  instruction_set().kernels<T>().few_rows.backward[B - 1](few);
}

}  // namespace vegrad

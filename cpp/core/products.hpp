// The three matrix products of a network, cut into tiles for the kernels. This is the one place
// that knows where products come from.
#pragma once

#include "core/dispatch.hpp"
#include "core/network.hpp"
#include "core/threads.hpp"

namespace vegrad {

constexpr int kFewRows = 4;        // up to here a product is bound by reading the weights
constexpr int kDirectBytes = 512;  // right operands with longer rows are packed

// The right operand of a tile's product: as it stands if its rows are short and whole vectors,
// else packed, once for all tiles of a column block that a thread meets in a row.
template <class T>
RightOperand<T> right_operand(const Kernels<T>& kernels, const T* b, std::ptrdiff_t row,
                              std::ptrdiff_t column, int k, const Tile& tile, bool padded_rows,
                              T* packed, PackedBlock& packed_block) {
  const T* const start = b + tile.column * column;
  const bool whole = column == 1 && (padded_rows || tile.columns % kernels.lanes == 0);
  if (whole && (tile.rows <= kFewRows || row * std::ptrdiff_t(sizeof(T)) <= kDirectBytes))
    return {start, row, kernels.panel_columns};
  if (packed_block.block != tile.column_block) {
    kernels.pack(start, row, column, k, tile.columns, packed);
    packed_block.block = tile.column_block;
  }
  return {packed, kernels.panel_columns, std::ptrdiff_t(k) * kernels.panel_columns};
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
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  parallel_for(grid.tasks(), w.threads_in_use, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    const T* const a = in + t.row * ld_in;
    T* const c = z + t.row * ld + t.column;
    if (t.rows <= kFewRows) {
      kernels.product_few_rows(t.rows, t.columns, I, a, ld_in,
                               weights + std::ptrdiff_t(t.column) * I, I, c, ld);
    } else {
      const RightOperand<T> b = right_operand(kernels, weights, 1, I, I, t, false, w.packed[thread],
                                              w.packed_block[thread]);
      kernels.product({t.rows, t.columns, I, a, ld_in, 1, b, c, ld});
    }
    after(t, task);
  });
}

// g (B, I) = delta (B, O) W of layer l, the tiles those of layer l - 1.
template <class T>
template <class After>
void Network<T>::product_with_transpose(Workspace& w, int l, int B, const T* delta,
                                        std::ptrdiff_t ld_delta, const T* weights, T* g,
                                        const After& after) {
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int I = shape_.sizes[l - 1], O = shape_.sizes[l];
  const std::ptrdiff_t ld = padded<T>(I);
  const Grid grid = row_grid(B, l - 1);
  std::fill(w.packed_block.begin(), w.packed_block.end(), PackedBlock());
  parallel_for(grid.tasks(), w.threads_in_use, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    const RightOperand<T> b = right_operand(kernels, weights, I, 1, O, t, false, w.packed[thread],
                                            w.packed_block[thread]);
    kernels.product({t.rows, t.columns, O, delta + t.row * ld_delta, ld_delta, 1, b,
                     g + t.row * ld + t.column, ld});
    after(t, task);
  });
}

}  // namespace vegrad

// How a matrix is cut into tiles, the tasks of a parallel loop. Tiles follow from the shape alone,
// so that results do not depend on the number of threads.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "core/network/shape.hpp"
#include "core/runtime/memory.hpp"
#include "kernels/table.hpp"

namespace vegrad {

constexpr int kWideBytes = 1024;   // Matrices whose rows are longer are cut into columns
constexpr int kColumnBytes = 256;  // of this width.
constexpr int kNarrowRowStep = 32, kWideRowStep = 128, kLossRowStep = 32;
constexpr int kSmallBatchStep = 64, kSmallBatchBlocks = 16;  // units of a layer, for a small batch
constexpr int kLongestChain = 64;                            // of layers in one loop
constexpr int kLongestBackwardChain = 16;                    // the same: their δ is kept

struct Tile {
  int row, rows, column, columns;
  int row_block, column_block;
};

struct Grid {
  int rows, columns;
  int row_blocks, column_blocks;
  int row_step;     // a block has no more rows
  int column_step;  // a multiple of kPadBytes

  int tasks() const { return row_blocks * column_blocks; }

  // Rows run fastest: neighbouring tasks share a column block, which is packed once a thread.
  Tile tile(int task) const {
    const int r = task % row_blocks, c = task / row_blocks;
    const int begin = int(std::int64_t(rows) * r / row_blocks);
    const int end = int(std::int64_t(rows) * (r + 1) / row_blocks);
    const int column = c * column_step;
    return {begin, end - begin, column, std::min(column_step, columns - column), r, c};
  }
};

// Blocks of about row_step rows, all of nearly the same height.
inline Grid make_grid(int rows, int row_step, int columns, int column_step) {
  return {rows,
          columns,
          (rows + row_step - 1) / row_step,
          (columns + column_step - 1) / column_step,
          row_step,
          column_step};
}

// The units of a layer in blocks, for a small batch: a block's weights lie together.
inline Grid small_batch_grid(int units) {
  const int step = std::max(kSmallBatchStep, (units + kSmallBatchBlocks - 1) / kSmallBatchBlocks);
  return make_grid(units, step, 1, 1);
}

// Columns of a block of a matrix: all of them, unless its rows are long.
template <class T>
int column_step(int columns) {
  const int unit = kPadBytes / int(sizeof(T));
  const int whole = (columns + unit - 1) / unit * unit;
  return whole * int(sizeof(T)) <= kWideBytes ? whole : kColumnBytes / int(sizeof(T));
}

// The tiles of layer l's values, (rows, O).
template <class T>
Grid row_grid(const NetworkShape& shape, int rows, int l) {
  const int columns = shape.sizes[l];
  const int step = column_step<T>(columns);
  if (shape.has_norm(l)) return make_grid(rows, kNarrowRowStep, columns, padded<T>(columns));
  if (rows <= kSmallBatch) return make_grid(rows, kSmallBatch, columns, kColumnBytes / sizeof(T));
  // One block of rows: columns are all that threads can share.
  if (rows <= kNarrowRowStep)
    return make_grid(rows, kNarrowRowStep, columns, kColumnBytes / sizeof(T));
  return make_grid(rows, step < columns ? kWideRowStep : kNarrowRowStep, columns, step);
}

// The tiles of layer l's weight gradient, (O, I), from so many rows.
template <class T>
Grid gradient_grid(const NetworkShape& shape, int rows, int l) {
  const int columns = shape.sizes[l - 1];
  if (rows <= kSmallBatch) {
    Grid grid = small_batch_grid(shape.sizes[l]);
    grid.columns = grid.column_step = columns;
    return grid;
  }
  return make_grid(shape.sizes[l], kNarrowRowStep, columns, kWideBytes / int(sizeof(T)));
}

// What the tasks of a loop measured, one entry a tile, added up in order afterwards.
struct TileSums {
  double z_squares = 0, h_squares = 0, g_squares = 0, delta_squares = 0;
  SpreadSums spread;
  double count = 0;
  std::int64_t saturated = 0;
};

// The sums over all tiles; spreads are merged about their common mean (Chan et al. 1983), which
// then stands in spread.shift, and the squared deviations in spread.sum_of_squares.
inline TileSums add_up(const TileSums* sums, int n) {
  TileSums all;
  for (int i = 0; i < n; ++i) {
    const TileSums& s = sums[i];
    all.z_squares += s.z_squares;
    all.h_squares += s.h_squares;
    all.g_squares += s.g_squares;
    all.delta_squares += s.delta_squares;
    all.saturated += s.saturated;
    if (s.count == 0) continue;
    const double mean = s.spread.shift + s.spread.sum / s.count;
    const double squares = s.spread.sum_of_squares - s.spread.sum * s.spread.sum / s.count;
    const double count = all.count + s.count, apart = mean - all.spread.shift;
    all.spread.sum_of_squares += squares + apart * apart * all.count * s.count / count;
    all.spread.shift += apart * s.count / count;
    all.count = count;
  }
  return all;
}

}  // namespace vegrad

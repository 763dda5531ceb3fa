// A step of a recurrent layer: the product with U, and the cell on what it gives while that is in
// the first-level cache.
//
// Forward, U is packed by vectors of units with all gates of a vector side by side, so that a cell
// has its gates together; back, by vectors of units over all gates. Both in panels as pack() makes
// them.
#pragma once

#include "kernels/cell_rows.hpp"
#include "kernels/product.hpp"

namespace vegrad {
namespace {

// Rows that are gone through together: as many sums of squares are held a vector each.
constexpr int kCellRows = 64;

// c (ROWS, VECTORS) = a b, where a's columns are cut into segments of k.
template <class T>
struct CellTile {
  int k, segments;
  std::ptrdiff_t segment[kMostGates];  // where each begins, from a
  const T* a;
  std::ptrdiff_t a_row;
  const T* b;
  T* c;
  std::ptrdiff_t ldc;
};

template <class T, int ROWS, int VECTORS>
void cell_tile(const CellTile<T>& tile) {
  RegisterTile<T> t{};
  t.k = tile.k;
  t.a_row = tile.a_row;
  t.a_column = 1;
  t.b = tile.b;
  t.b_row = kPanelColumns<T>;
  Vector<T> sum[ROWS][VECTORS] = {};
  for (int s = 0; s < tile.segments; ++s) {
    t.a = tile.a + tile.segment[s];
    accumulate<T, ROWS, VECTORS, false>(t, sum);
    t.b += t.k * t.b_row;
  }
  T* c = tile.c;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    c = opaque(c);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) store<T>(c + j * kLanes<T>, sum[i][j]);
    c += tile.ldc;
  }
}

template <class T, int VECTORS>
void run_cell_tile(const CellTile<T>& tile, int rows) {
  switch (rows) {
#define VEGRAD_CASE(n) \
  case n:              \
    return cell_tile<T, (n <= kTileRows ? n : 1), VECTORS>(tile);
    VEGRAD_CASE(1)
    VEGRAD_CASE(2)
    VEGRAD_CASE(3)
    VEGRAD_CASE(4)
    VEGRAD_CASE(5)
    VEGRAD_CASE(6)
    VEGRAD_CASE(7)
    VEGRAD_CASE(8)
    VEGRAD_CASE(9)
    VEGRAD_CASE(10)
    VEGRAD_CASE(11)
    VEGRAD_CASE(12)
#undef VEGRAD_CASE
  }
}

// `vectors` columns of a product, panel by panel.
template <class T>
void run_panels(CellTile<T> tile, int rows, int vectors) {
  for (; vectors > 1; vectors -= kTileVectors) {
    run_cell_tile<T, kTileVectors>(tile, rows);
    tile.b += std::ptrdiff_t(tile.k) * tile.segments * kPanelColumns<T>;
    tile.c += kPanelColumns<T>;
  }
  if (vectors) run_cell_tile<T, 1>(tile, rows);
}

template <class Cell, class T>
void cell_forward(const CellForward<T>& all) {
  constexpr int lanes = kLanes<T>, gates = Cell::kGates;
  // Vectors of units whose gates fill whole panels.
  constexpr int together = gates % kTileVectors ? kTileVectors : 1;
  const int vectors = (all.H + lanes - 1) / lanes;
  alignas(64) T sums[kTileRows * together * gates * lanes];
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellForward<T> f = all;
    f.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(f, first);
    alignas(64) T squares[kCellRows * lanes];
    if (f.h_squares)
      for (int i = 0; i < f.rows * lanes; ++i) squares[i] = 0;
    const int tiles = (f.rows + kTileRows - 1) / kTileRows;
    CellTile<T> t{f.H, 1, {}, nullptr, f.ld_before, f.recurrent, sums, together * gates * lanes};
    for (int v = 0; v < vectors; v += together) {
      const int here = vectors - v < together ? vectors - v : together;
      int i = 0;
      for (int n = 0; n < tiles; ++n) {
        const int rows = (f.rows - i + tiles - n - 1) / (tiles - n);
        t.a = f.h_before + i * f.ld_before;
        run_panels<T>(t, rows, here * gates);
        for (int u = 0; u < here; ++u)
          finish_forward<Cell, T>(f, i, rows, (v + u) * lanes, sums + u * gates * lanes, t.ldc,
                                  squares);
        i += rows;
      }
      t.b += std::ptrdiff_t(f.H) * together * gates * lanes;
    }
    if (f.h_squares)
      for (int i = 0; i < f.rows; ++i) f.h_squares[i] = T(sum<T>(load<T>(squares + i * lanes)));
  }
}

template <class Cell, class T>
void cell_backward(const CellBackward<T>& all) {
  constexpr int lanes = kLanes<T>, width = kPanelColumns<T>;
  alignas(64) T sums[kTileRows * width];
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellBackward<T> b = all;
    b.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(b, first);
    const bool product = b.after && !b.fresh;
    SquaresOfRows<T, kCellRows> squares(b.rows);
    const int tiles = (b.rows + kTileRows - 1) / kTileRows;
    CellTile<T> t{b.H, Cell::kGates, {}, nullptr, b.ld_gates, b.recurrent, sums, width};
    for (int s = 0; s < Cell::kGates; ++s) t.segment[s] = Cell::kSlotsOfU[s] * b.slot;
    for (int j = 0; j < b.H; j += width) {
      const int here = b.H - j > lanes ? 2 : 1;
      int i = 0;
      for (int n = 0; n < tiles; ++n) {
        const int rows = (b.rows - i + tiles - n - 1) / (tiles - n);
        if (product) {
          t.a = b.after + i * b.ld_gates;
          run_panels<T>(t, rows, here);
        }
        for (int u = 0; u < here; ++u)
          finish_backward<Cell, T>(b, i, rows, j + u * lanes, product ? sums + u * lanes : nullptr,
                                   width, squares);
        i += rows;
      }
      t.b += std::ptrdiff_t(b.H) * Cell::kGates * width;
    }
    squares.write(b);
  }
}

template <class Cell, class T>
std::size_t packed_cell_size(int H) {
  const std::size_t panels = (H + kPanelColumns<T> - 1) / kPanelColumns<T>;
  return panels * kPanelColumns<T> * Cell::kGates * H;
}

template <class Cell, class T>
void pack_cell_forward(const T* U, int H, T* out) {
  constexpr int lanes = kLanes<T>, width = kPanelColumns<T>, gates = Cell::kGates;
  for (int j = 0, vector = 0; j < H; j += lanes)
    for (int s = 0; s < gates; ++s, ++vector)
      for (int k = 0; k < H; k += lanes) {
        const T* const from = U + (std::ptrdiff_t(s) * H + j) * H + k;
        T* const to = out + (std::ptrdiff_t(vector / kTileVectors) * H + k) * width +
                      vector % kTileVectors * lanes;
        if (H - j >= lanes && H - k >= lanes)
          transpose<T>(from, H, to, width);
        else
          transpose_edge<T>(from, H, H - j, H - k < lanes ? H - k : lanes, to, width);
      }
}

template <class Cell, class T>
void pack_cell_backward(const T* U, int H, T* out) {
  pack_rows<T>(U, H, Cell::kGates * H, H, out);
}

template <class Cell, class T>
constexpr CellKernels<T> cell_kernels() {
  return {packed_cell_size<Cell, T>, pack_cell_forward<Cell, T>, pack_cell_backward<Cell, T>,
          cell_forward<Cell, T>, cell_backward<Cell, T>};
}

}  // namespace
}  // namespace vegrad

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

// Vectors of units whose sums are made before the cell goes through them: panels are whole, and the
// lines of the gates come in pairs.
constexpr int kFewRows = 3, kTogether = 4, kFewTogether = 8;
constexpr int kMostSums = kTileRows * kTogether > kFewRows* kFewTogether ? kTileRows * kTogether
                                                                         : kFewRows * kFewTogether;
constexpr int together_of(int rows) { return rows <= kFewRows ? kFewTogether : kTogether; }

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

// The same for few rows over PANELS panels: as many sums at once as hide the latency of an FMA.
template <class T, int ROWS, int PANELS>
void wide_cell_tile(const CellTile<T>& tile) {
  const std::ptrdiff_t panel = std::ptrdiff_t(tile.k) * tile.segments * kPanelColumns<T>;
  const T* b[PANELS];
#pragma GCC unroll 8
  for (int j = 0; j < PANELS; ++j) b[j] = opaque(tile.b + j * panel);
  Vector<T> sum[ROWS][PANELS][kTileVectors] = {};
  for (int s = 0; s < tile.segments; ++s) {
    const T* a = tile.a + tile.segment[s];
    for (int p = 0; p < tile.k; ++p, ++a) {
      Vector<T> x[ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) x[i] = splat<T>(a[i * tile.a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < PANELS; ++j) {
#pragma GCC unroll 2
        for (int u = 0; u < kTileVectors; ++u) {
          const Vector<T> row = load<T>(b[j] + u * kLanes<T>);
#pragma GCC unroll 4
          for (int i = 0; i < ROWS; ++i) sum[i][j][u] = fma(x[i], row, sum[i][j][u]);
        }
        b[j] += kPanelColumns<T>;
      }
    }
  }
#pragma GCC unroll 4
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < PANELS; ++j)
#pragma GCC unroll 2
      for (int u = 0; u < kTileVectors; ++u)
        store<T>(tile.c + i * tile.ldc + (j * kTileVectors + u) * kLanes<T>, sum[i][j][u]);
}

// Panels of a wide tile, by its rows.
constexpr int kWidePanels[] = {4, kTileRows >= 12 ? 4 : 2, kTileRows >= 12 ? 3 : 2};

// As many columns of a product as whole wide tiles have.
template <class T, int ROWS>
void run_wide(CellTile<T>& tile, int& vectors) {
  constexpr int panels = kWidePanels[ROWS - 1];
  for (; vectors >= panels * kTileVectors; vectors -= panels * kTileVectors) {
    wide_cell_tile<T, ROWS, panels>(tile);
    tile.b += std::ptrdiff_t(tile.k) * tile.segments * kPanelColumns<T> * panels;
    tile.c += kPanelColumns<T> * panels;
  }
  if (panels > 2 && vectors >= 2 * kTileVectors) {
    wide_cell_tile<T, ROWS, 2>(tile);
    tile.b += std::ptrdiff_t(tile.k) * tile.segments * kPanelColumns<T> * 2;
    tile.c += kPanelColumns<T> * 2;
    vectors -= 2 * kTileVectors;
  }
}

// `vectors` columns of a product, panel by panel.
template <class T>
void run_panels(CellTile<T> tile, int rows, int vectors) {
  if (rows == 1)
    run_wide<T, 1>(tile, vectors);
  else if (rows == 2)
    run_wide<T, 2>(tile, vectors);
  else if (rows == 3)
    run_wide<T, 3>(tile, vectors);
  for (; vectors > 1; vectors -= kTileVectors) {
    run_cell_tile<T, kTileVectors>(tile, rows);
    tile.b += std::ptrdiff_t(tile.k) * tile.segments * kPanelColumns<T>;
    tile.c += kPanelColumns<T>;
  }
  if (vectors) run_cell_tile<T, 1>(tile, rows);
}

// Rows are cut into tiles of nearly the same height; of(first, rows) for each.
template <class Of>
VEGRAD_INLINE void for_each_tile(int rows, Of of) {
  const int tiles = (rows + kTileRows - 1) / kTileRows;
  for (int n = 0, i = 0; n < tiles; ++n) {
    const int here = (rows - i + tiles - n - 1) / (tiles - n);
    of(i, here);
    i += here;
  }
}

// One block of rows. Vectors of units outside, rows inside, so that the panels of U stay near.
template <class Cell, class T>
void cell_forward_block(const CellForward<T>& f, int together) {
  constexpr int lanes = kLanes<T>, gates = Cell::kGates;
  alignas(64) T sums[kMostSums * gates * lanes];
  SquaresOfRows<T, kCellRows> squares;
  if (f.h_squares) squares.clear(f.rows);
  const int vectors = (f.H + lanes - 1) / lanes;
  CellTile<T> t{f.H, 1, {}, nullptr, f.ld_before, f.recurrent, sums, together * gates * lanes};
  for (int v = 0; v < vectors; v += together) {
    const int here = vectors - v < together ? vectors - v : together;
    const int end = (v + here) * lanes < f.H ? (v + here) * lanes : f.H;
    for_each_tile(f.rows, [&](int i, int rows) {
      t.a = f.h_before + i * f.ld_before;
      run_panels<T>(t, rows, here * gates);
      finish_forward<Cell>(f, i, rows, v * lanes, end, sums, t.ldc, squares);
    });
    t.b += std::ptrdiff_t(f.H) * together * gates * lanes;
  }
  if (f.h_squares) squares.write(f.rows, f.h_squares);
}

template <class Cell, bool FLOW, class T>
void cell_backward_block(const CellBackward<T>& b, int together) {
  constexpr int lanes = kLanes<T>, gates = Cell::kGates;
  const bool product = b.after && !b.fresh;
  alignas(64) T sums[kMostSums * lanes];
  SquaresOfRows<T, kCellRows> squares[kSquares];
  for (int s = 0; s < (FLOW ? kSquares : kPassed); ++s) squares[s].clear(b.rows);
  const int vectors = (b.H + lanes - 1) / lanes;
  CellTile<T> t{b.H, gates, {}, nullptr, b.ld_gates, b.recurrent, sums, together * lanes};
  for (int s = 0; s < gates; ++s) t.segment[s] = Cell::kSlotsOfU[s] * b.slot;
  for (int v = 0; v < vectors; v += together) {
    const int here = vectors - v < together ? vectors - v : together;
    const int end = (v + here) * lanes < b.H ? (v + here) * lanes : b.H;
    for_each_tile(b.rows, [&](int i, int rows) {
      if (product) {
        t.a = b.after + i * b.ld_gates;
        run_panels<T>(t, rows, here);
      }
      finish_backward<Cell, FLOW>(b, i, rows, v * lanes, end, product ? sums : nullptr, t.ldc,
                                  squares);
    });
    t.b += std::ptrdiff_t(b.H) * gates * together * lanes;
  }
  T* const out[] = {b.delta_squares, b.passed_squares, b.carried_squares, b.state_squares,
                    b.matrix_squares};
  for (int s = 0; s < (FLOW ? kSquares : kPassed); ++s)
    if (out[s]) squares[s].write(b.rows, out[s]);
}

template <class Cell, class T>
void cell_forward(const CellForward<T>& all) {
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellForward<T> f = all;
    f.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(f, first);
    cell_forward_block<Cell, T>(f, together_of(all.rows));
  }
}

template <class Cell, class T>
void cell_backward(const CellBackward<T>& all) {
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellBackward<T> b = all;
    b.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(b, first);
    if (all.passed_squares)
      cell_backward_block<Cell, true, T>(b, together_of(all.rows));
    else
      cell_backward_block<Cell, false, T>(b, together_of(all.rows));
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

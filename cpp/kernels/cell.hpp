// A step of a recurrent layer: the product with U, and the cell on what it gives while that is in
// the first-level cache.
//
// Forward, U is packed by vectors of units with all gates of a vector side by side, so that a cell
// has its gates together; back, by vectors of units over all gates. Both in panels as pack() makes
// them.
#pragma once

#include "kernels/cell_product.hpp"
#include "kernels/cell_rows.hpp"

namespace vegrad {
namespace {

// Rows of which the sums of squares are held, a vector each.
constexpr int kCellRows = 64;
// Rows whose sums stay in the first-level cache, beside a piece of a panel.
constexpr int kNearRows = 36;

// Vectors of units that the cell goes through at once: their panels are whole.
constexpr int together_of(int rows) { return rows <= kFewRows ? 8 : 4; }
constexpr int kMostSums = kNearRows * together_of(kNearRows);

// Has the product fetch `slots` slots of the gates of `vectors` vectors of units, the first lines
// of all slots first.
template <class T>
void fetch_gates(CellProduct<T>& p, const T* gates, std::ptrdiff_t slot, int slots, int vectors) {
  constexpr int line = 64 / int(sizeof(T));
  p.fetches = 0;
  for (int at = (vectors * kLanes<T> - 1) / line * line; at >= 0; at -= line)
    for (int s = 0; s < slots; ++s)
      if (p.fetches < kMostFetches) p.fetch[p.fetches++] = gates + s * slot + at;
}

// One block of rows. Vectors of units outside, rows inside, so that the panels of U stay near.
template <class Cell, class T>
void cell_forward_block(const CellForward<T>& f, int together) {
  constexpr int lanes = kLanes<T>, gates = Cell::kGates;
  alignas(64) T sums[kMostSums * gates * lanes];
  SquaresOfRows<T, kCellRows> squares;
  if (f.h_squares) squares.clear(f.rows);
  const int vectors = (f.H + lanes - 1) / lanes;
  CellProduct<T> p{
      0,  f.H, 1, {},    nullptr, f.ld_before, f.recurrent, sums, together * gates * lanes,
      {}, 0,   0, f.lone};
  for (int v = 0; v < vectors; v += together) {
    const int here = vectors - v < together ? vectors - v : together;
    const int end = (v + here) * lanes < f.H ? (v + here) * lanes : f.H;
    for (RowTiles tile(f.rows, kNearRows); tile.next();) {
      const int i = tile.first, rows = tile.rows;
      p.rows = rows;
      p.a = f.h_before + i * f.ld_before;
      p.fetch_row = f.ld_gates;
      if (!f.lone) fetch_gates(p, f.gates + i * f.ld_gates + v * lanes, f.slot, Cell::kGates, here);
      cell_product(p, here * gates);
      finish_forward<Cell>(f, i, rows, v * lanes, end, sums, p.ldc, squares);
    }
    p.b += std::ptrdiff_t(f.H) * together * gates * lanes;
  }
  if (f.h_squares) squares.write(f.rows, f.h_squares);
}

template <class Cell, bool FLOW, class T>
void cell_backward_block(const CellBackward<T>& b, int together) {
  constexpr int lanes = kLanes<T>, gates = Cell::kGates;
  const bool product = b.after && !b.fresh;
  alignas(64) T sums[kMostSums * lanes];
  SquaresOfRows<T, kCellRows> squares[kSquares];
  for (int s = 0; s < kSquaresOf<Cell, FLOW>; ++s) squares[s].clear(b.rows);
  const int vectors = (b.H + lanes - 1) / lanes;
  CellProduct<T> p{0,  b.H, gates, {},    nullptr, b.ld_gates, b.recurrent, sums, together * lanes,
                   {}, 0,   0,     b.lone};
  for (int s = 0; s < gates; ++s) p.segment[s] = Cell::kSlotsOfU[s] * b.slot;
  for (int v = 0; v < vectors; v += together) {
    const int here = vectors - v < together ? vectors - v : together;
    const int end = (v + here) * lanes < b.H ? (v + here) * lanes : b.H;
    for (RowTiles tile(b.rows, kNearRows); tile.next();) {
      const int i = tile.first, rows = tile.rows;
      if (product) {
        p.rows = rows;
        p.a = b.after + i * b.ld_gates;
        p.fetch_row = b.ld_gates;
        if (b.gates && !b.lone)
          fetch_gates(p, b.gates + i * b.ld_gates + v * lanes, b.slot, Cell::kSlots, here);
        cell_product(p, here);
      }
      finish_backward<Cell, FLOW>(b, i, rows, v * lanes, end, product ? sums : nullptr, p.ldc,
                                  squares);
    }
    p.b += std::ptrdiff_t(b.H) * gates * together * lanes;
  }
  T* const out[] = {b.delta_squares, b.passed_squares, b.carried_squares,
                    b.state_squares, b.matrix_squares, b.into_state_squares};
  for (int s = 0; s < kSquaresOf<Cell, FLOW>; ++s)
    if (out[s]) squares[s].write(b.rows, out[s]);
}

template <class Cell, class T>
void cell_forward(const CellForward<T>& all) {
  if (all.rows <= kCellRows) return cell_forward_block<Cell, T>(all, together_of(all.rows));
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellForward<T> f = all;
    f.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(f, first);
    cell_forward_block<Cell, T>(f, together_of(all.rows));
  }
}

template <class Cell, class T>
void cell_backward_rows(const CellBackward<T>& b, int together) {
  if (b.passed_squares)
    cell_backward_block<Cell, true, T>(b, together);
  else
    cell_backward_block<Cell, false, T>(b, together);
}

template <class Cell, class T>
void cell_backward(const CellBackward<T>& all) {
  if (all.rows <= kCellRows) return cell_backward_rows<Cell, T>(all, together_of(all.rows));
  for (int first = 0; first < all.rows; first += kCellRows) {
    CellBackward<T> b = all;
    b.rows = all.rows - first < kCellRows ? all.rows - first : kCellRows;
    advance(b, first);
    cell_backward_rows<Cell, T>(b, together_of(all.rows));
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

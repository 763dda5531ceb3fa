// The product with U of a recurrent step, into sums that stay in the first-level cache.
#pragma once

#include "kernels/cell_table.hpp"
#include "kernels/product.hpp"

namespace vegrad {
namespace {

constexpr int kMostGates = 4, kMostFetches = 16;

// c = a b, where a's columns are `segments` pieces of k, and b is in panels of all of them.
template <class T>
struct CellProduct {
  int rows, k, segments;
  std::ptrdiff_t segment[kMostGates];  // where each begins, from a
  const T* a;
  std::ptrdiff_t a_row;
  const T* b;
  T* c;
  std::ptrdiff_t ldc;

  // Lines that the cell wants afterwards, fetched meanwhile: of each row, from where these begin.
  const T* fetch[kMostFetches];
  int fetches;
  std::ptrdiff_t fetch_row;

  std::ptrdiff_t panel() const { return std::ptrdiff_t(k) * segments * kPanelColumns<T>; }
};

// Rows cut into tiles of nearly the same height, one after the other.
struct RowTiles {
  int first = 0, rows = 0;

  VEGRAD_INLINE RowTiles(int all, int highest)
      : left_(all), tiles_((all + highest - 1) / highest) {}
  VEGRAD_INLINE bool next() {
    if (tiles_ == 0) return false;
    first += rows;
    rows = (left_ + tiles_ - 1) / tiles_;
    --tiles_;
    left_ -= rows;
    return true;
  }

 private:
  int left_, tiles_;
};

// One panel, or the first vector of it. So much of it at a time as stays in the first-level cache
// while all tiles of rows go over it.
template <class T, int VECTORS>
void panel_product(CellProduct<T>& p) {
  constexpr int near = 768 / int(sizeof(T));
  const int pieces = p.rows > kTileRows ? (p.k + near - 1) / near : 1;
  RegisterTile<T> t{};
  t.a_row = p.a_row;
  t.a_column = 1;
  t.b = p.b;
  t.b_row = kPanelColumns<T>;
  t.ldc = p.ldc;
  t.fetch_step = p.fetch_row * int(sizeof(T));
  t.fetch_lines = p.rows;
  for (int s = 0; s < p.segments; ++s)
    for (int n = 0, k0 = 0; n < pieces; ++n) {
      t.k = (p.k - k0 + pieces - n - 1) / (pieces - n);
      for (RowTiles tile(p.rows, kTileRows); tile.next();) {
        t.a = p.a + tile.first * p.a_row + p.segment[s] + k0;
        t.c = p.c + tile.first * p.ldc;
        t.fetch = p.fetches > 0 ? reinterpret_cast<const char*>(p.fetch[--p.fetches]) : nullptr;
        tile_of<T, VECTORS>(tile.rows)(t);
      }
      t.continued = true;
      t.b += t.k * t.b_row;
      k0 += t.k;
    }
}

// Few rows over PANELS panels: as many sums at once as hide the latency of an FMA.
template <class T, int ROWS, int PANELS>
void wide_product(const CellProduct<T>& p) {
  const T* b[PANELS];
#pragma GCC unroll 8
  for (int j = 0; j < PANELS; ++j) b[j] = opaque(p.b + j * p.panel());
  Vector<T> sum[ROWS][PANELS][kTileVectors] = {};
  for (int s = 0; s < p.segments; ++s) {
    const T* a = p.a + p.segment[s];
    for (int k = 0; k < p.k; ++k, ++a) {
      Vector<T> x[ROWS];
#pragma GCC unroll 4
      for (int i = 0; i < ROWS; ++i) x[i] = splat<T>(a[i * p.a_row]);
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
        store<T>(p.c + i * p.ldc + (j * kTileVectors + u) * kLanes<T>, sum[i][j][u]);
}

template <class T>
VEGRAD_INLINE void advance(CellProduct<T>& p, int panels) {
  p.b += panels * p.panel();
  p.c += panels * kPanelColumns<T>;
}

// As many of `vectors` columns as ROWS rows take widely; returns how many are left.
template <class T, int ROWS>
int wide_products(CellProduct<T>& p, int vectors) {
  constexpr int most = kTileRows < 12 && ROWS > 1 ? 2 : ROWS > 2 ? 3 : 4;
  for (; vectors >= most * kTileVectors; vectors -= most * kTileVectors) {
    wide_product<T, ROWS, most>(p);
    advance(p, most);
  }
  if (vectors >= 2 * kTileVectors) {
    wide_product<T, ROWS, 2>(p);
    advance(p, 2);
    vectors -= 2 * kTileVectors;
  }
  return vectors;
}

constexpr int kFewRows = 3;

// `vectors` columns.
template <class T>
void cell_product(CellProduct<T> p, int vectors) {
  if (p.rows == 1)
    vectors = wide_products<T, 1>(p, vectors);
  else if (p.rows == 2)
    vectors = wide_products<T, 2>(p, vectors);
  else if (p.rows == 3)
    vectors = wide_products<T, 3>(p, vectors);
  for (; vectors > 1; vectors -= kTileVectors) {
    panel_product<T, kTileVectors>(p);
    advance(p, 1);
  }
  if (vectors) panel_product<T, 1>(p);
}

}  // namespace
}  // namespace vegrad

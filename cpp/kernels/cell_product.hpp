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
  bool lone;  // the row is the only one of its batch

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

// The next ROWS rows of b, each into sums of its own.
template <class T, int ROWS, int SUMS, int PANELS, int VECTORS>
VEGRAD_INLINE void add_rows(const T* a, const T* (&b)[PANELS],
                            Vector<T> (&sum)[SUMS][PANELS][VECTORS]) {
#pragma GCC unroll 4
  for (int s = 0; s < ROWS; ++s) {
    const Vector<T> x = splat<T>(a[s]);
#pragma GCC unroll 8
    for (int j = 0; j < PANELS; ++j)
#pragma GCC unroll 2
      for (int u = 0; u < VECTORS; ++u)
        sum[s][j][u] = fma(x, load<T>(b[j] + s * kPanelColumns<T> + u * kLanes<T>), sum[s][j][u]);
  }
#pragma GCC unroll 8
  for (int j = 0; j < PANELS; ++j) b[j] += ROWS * kPanelColumns<T>;
}

// The only row there is over PANELS panels, of which the first VECTORS vectors count: as many sums
// for every element, of every so many-th k, as hide the latency of an FMA.
template <class T, int PANELS, int VECTORS>
void lone_product(const CellProduct<T>& p) {
  constexpr int most = kTileRows < 12 ? 8 : 16, n = most / (PANELS * VECTORS);
  constexpr int sums = n < 1 ? 1 : n > 4 ? 4 : n;
  const T* b[PANELS];
#pragma GCC unroll 8
  for (int j = 0; j < PANELS; ++j) b[j] = opaque(p.b + j * p.panel());
  Vector<T> sum[sums][PANELS][VECTORS] = {};
  for (int segment = 0; segment < p.segments; ++segment) {
    const T* a = p.a + p.segment[segment];
    const T* const end = a + p.k;
    for (; a + sums <= end; a += sums) add_rows<T, sums>(a, b, sum);
    for (; a < end; ++a) add_rows<T, 1>(a, b, sum);
  }
#pragma GCC unroll 8
  for (int j = 0; j < PANELS; ++j)
#pragma GCC unroll 2
    for (int u = 0; u < VECTORS; ++u) {
      Vector<T> total = sum[0][j][u];
#pragma GCC unroll 4
      for (int s = 1; s < sums; ++s) total += sum[s][j][u];
      store<T>(p.c + (j * kTileVectors + u) * kLanes<T>, total);
    }
}

// `vectors` columns of it.
template <class T>
void lone_products(CellProduct<T> p, int vectors) {
  for (; vectors >= 4 * kTileVectors; vectors -= 4 * kTileVectors, advance(p, 4))
    lone_product<T, 4, kTileVectors>(p);
  for (; vectors >= 2 * kTileVectors; vectors -= 2 * kTileVectors, advance(p, 2))
    lone_product<T, 2, kTileVectors>(p);
  for (; vectors >= kTileVectors; vectors -= kTileVectors, advance(p, 1))
    lone_product<T, 1, kTileVectors>(p);
  if (vectors) lone_product<T, 1, 1>(p);
}

constexpr int kFewRows = 3;

// `vectors` columns.
template <class T>
void cell_product(const CellProduct<T>& all, int vectors) {
  if (all.lone) return lone_products(all, vectors);
  CellProduct<T> p = all;
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

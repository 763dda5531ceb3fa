// Matrix products: one register tile, kept full at every edge by instances of each height.
#pragma once

#include "kernels/table.hpp"
#include "simd/vector.hpp"

namespace vegrad {
namespace {

// Rows of the register tile: with two vectors a row, as many accumulators as the registers hold
// beside a row of b and a broadcast.
#if VEGRAD_VECTOR_BYTES == 64 || defined(VEGRAD_ARM)
constexpr int kTileRows = 12;
#elif VEGRAD_VECTOR_BYTES == 32
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif
constexpr int kTileVectors = 2;
// Of a block of k. Each block reads and writes c once more, so it is as long as the caches allow.
constexpr int kDepth = 1024;

template <class T>
constexpr int kPanelColumns = kTileVectors * kLanes<T>;

// Hands out what is wanted ahead to the register tiles of a product, one after the other.
class Fetcher {
 public:
  VEGRAD_INLINE explicit Fetcher(const Ahead& ahead) : ahead_(ahead) {}
  // Where a tile of k steps begins to fetch, a line a step; null: nothing is left to fetch.
  VEGRAD_INLINE const char* next(int k) {
    if (column_ == ahead_.columns) return nullptr;
    const char* const line =
        static_cast<const char*>(ahead_.data) + column_ * 64 + line_ * ahead_.step;
    line_ += k;
    if (line_ >= ahead_.lines) {
      line_ = 0;
      ++column_;
    }
    return line;
  }

 private:
  const Ahead ahead_;
  int column_ = 0, line_ = 0;
};

// c (ROWS, VECTORS) (+)= a b over k, one tile of a Product.
template <class T>
struct RegisterTile {
  int k;
  const T* a;
  std::ptrdiff_t a_row, a_column;
  const T* b;
  std::ptrdiff_t b_row;
  T* c;
  std::ptrdiff_t ldc;
  bool continued, c_elsewhere;
  const char* fetch;
  std::ptrdiff_t fetch_step;
  int fetch_lines;  // at most: one a step
};

template <class T, int ROWS, int VECTORS, bool FETCH>
VEGRAD_INLINE void accumulate(RegisterTile<T>& t, int k, Vector<T> (&sum)[ROWS][VECTORS]) {
  constexpr int kGroups = (ROWS + 3) / 4;
  const std::ptrdiff_t a_row = t.a_row, a_column = t.a_column, b_row = t.b_row;
  const T* b = t.b;
  const char* fetch = t.fetch;
  const T* group[kGroups];
#pragma GCC unroll 4
  for (int g = 0; g < kGroups; ++g) group[g] = opaque(t.a + 4 * g * a_row);
  for (int p = 0; p < k; ++p) {
    Vector<T> row[VECTORS];
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) row[j] = load<T>(b + j * kLanes<T>);
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
      const Vector<T> x = splat<T>(group[i / 4][i % 4 * a_row]);
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) sum[i][j] = fma(x, row[j], sum[i][j]);
    }
#pragma GCC unroll 4
    for (int g = 0; g < kGroups; ++g) group[g] += a_column;
    b += b_row;
    if (FETCH) {
      __builtin_prefetch(fetch, 0, 2);
      fetch += t.fetch_step;
    }
  }
  t.a += k * a_column;
  t.b = b;
}

// A running sum is continued from c, so that cutting k into blocks changes no bit.
//
// The rows of a are reached from one pointer for each four of them, and the addresses of c are made
// anew where they are needed: with a dozen rows the compiler would otherwise compute all addresses
// beforehand and reload them in the loop, at a tenth of the speed.
template <class T, int ROWS, int VECTORS>
void tile(const RegisterTile<T>& tile) {
  RegisterTile<T> t = tile;
  Vector<T> sum[ROWS][VECTORS];
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i)
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j)
      sum[i][j] = t.continued ? load<T>(t.c + i * t.ldc + j * kLanes<T>) : Vector<T>{};
  T* c = t.c;
  if (t.c_elsewhere) {
#pragma GCC unroll 16
    for (int i = 0; i < ROWS; ++i) {
#pragma GCC unroll 8
      for (int j = 0; j < VECTORS; ++j) __builtin_prefetch(c + j * kLanes<T>);
      c = opaque(c + t.ldc);
    }
  }
  const int fetches = t.fetch ? t.fetch_lines < t.k ? t.fetch_lines : t.k : 0;
  if (fetches) accumulate<T, ROWS, VECTORS, true>(t, fetches, sum);
  if (fetches < t.k) accumulate<T, ROWS, VECTORS, false>(t, t.k - fetches, sum);
  c = t.c;
#pragma GCC unroll 16
  for (int i = 0; i < ROWS; ++i) {
    c = opaque(c);
#pragma GCC unroll 8
    for (int j = 0; j < VECTORS; ++j) store<T>(c + j * kLanes<T>, sum[i][j]);
    c += t.ldc;
  }
}

template <class T>
using TileFunction = void (*)(const RegisterTile<T>&);

template <class T, int VECTORS>
TileFunction<T> tile_of(int rows) {
  switch (rows) {
#define VEGRAD_CASE(n) \
  case n:              \
    return tile<T, (n <= kTileRows ? n : 1), VECTORS>;
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
  return nullptr;
}

// Rows are cut into tiles of nearly the same height: 32 rows are 11 + 11 + 10, not 12 + 12 + 8.
template <class T>
void product_without_copy(const Product<T>& p, Fetcher& fetcher) {
  const int tiles = (p.m + kTileRows - 1) / kTileRows;
  const int blocks = p.k > kDepth ? (p.k + kDepth - 1) / kDepth : 1;
  RegisterTile<T> t{};
  t.a_row = p.a_row;
  t.a_column = p.a_column;
  t.b_row = p.b.row;
  t.ldc = p.ldc;
  t.c_elsewhere = p.c_elsewhere;
  t.fetch_step = p.ahead.step;
  t.fetch_lines = p.k;
  int k0 = 0;
  for (int block = 0; block < blocks; ++block) {
    t.k = (p.k - k0 + blocks - block - 1) / (blocks - block);
    t.continued = block > 0 || p.continued;
    int i = 0;
    for (int n = 0; n < tiles; ++n) {
      const int rows = (p.m - i + tiles - n - 1) / (tiles - n);
      const TileFunction<T> wide = tile_of<T, kTileVectors>(rows);
      t.a = p.a + i * p.a_row + k0 * p.a_column;
      t.b = p.b.data + k0 * p.b.row;
      t.c = p.c + i * p.ldc;
      int left = p.n;
      for (; left > kLanes<T>; left -= kPanelColumns<T>) {
        t.fetch = fetcher.next(t.k);
        wide(t);
        t.b += p.b.panel;
        t.c += kPanelColumns<T>;
      }
      if (left > 0) {
        t.fetch = fetcher.next(t.k);
        tile_of<T, 1>(rows)(t);
      }
      i += rows;
    }
    k0 += t.k;
  }
}

// The same for a transposed a with long rows. A tile would read a few elements of each row, all in
// different pages; so a block of a that fits the first-level cache beside a panel of b is copied
// together first.
template <class T>
void product_with_copy(const Product<T>& p, Fetcher& fetcher) {
  constexpr int kRows = 32, kSteps = 512 / sizeof(T);
  alignas(64) T copy[kRows * kSteps];
  const int blocks = (p.k + kSteps - 1) / kSteps;
  Product<T> part = p;
  part.a = copy;
  part.a_column = kRows;
  for (int i = 0; i < p.m; i += kRows) {
    part.m = p.m - i < kRows ? p.m - i : kRows;
    int k0 = 0;
    for (int block = 0; block < blocks; ++block) {
      part.k = (p.k - k0 + blocks - block - 1) / (blocks - block);
      part.continued = block > 0 || p.continued;
      const T* from = p.a + i + k0 * p.a_column;
      for (int q = 0; q < part.k; ++q, from += p.a_column)
        for (int j = 0; j < part.m; j += kLanes<T>)
          store<T>(copy + q * kRows + j, load_padded<T>(from, j, part.m));
      for (int j = 0; j < p.n; j += kPanelColumns<T>) {
        part.n = p.n - j < kPanelColumns<T> ? p.n - j : kPanelColumns<T>;
        part.b.data = p.b.data + k0 * p.b.row + j / kPanelColumns<T> * p.b.panel;
        part.c = p.c + i * p.ldc + j;
        product_without_copy(part, fetcher);
      }
      k0 += part.k;
    }
  }
}

template <class T>
void product(const Product<T>& p) {
  constexpr std::ptrdiff_t kNearBytes = 160 << 10;  // of an a too small to gain by a copy
  Fetcher fetcher(p.ahead);
  const std::ptrdiff_t row = p.a_column * sizeof(T);
  if (p.a_row == 1 && row > kLongRowBytes && p.k * row > kNearBytes)
    product_with_copy(p, fetcher);
  else
    product_without_copy(p, fetcher);
}

// Lane numbers for the exchange below: rows i and i + half swap the lanes whose numbers differ from
// theirs in the bit `half`.
template <class T>
struct Exchange {
  static constexpr int n = kLanes<T>;
  alignas(VEGRAD_VECTOR_BYTES) typename Lane<T>::Integer low[n], high[n];
  constexpr explicit Exchange(int half) : low(), high() {
    for (int lane = 0; lane < n; ++lane) {
      low[lane] = (lane & half) ? lane - half + n : lane;
      high[lane] = (lane & half) ? lane + n : lane + half;
    }
  }
};
template <class T, int HALF>
constexpr Exchange<T> kExchange{HALF};

template <class T, int HALF>
VEGRAD_INLINE void exchange(Vector<T> (&v)[kLanes<T>]) {
  Bits<T> low, high;
  __builtin_memcpy(&low, kExchange<T, HALF>.low, sizeof low);
  __builtin_memcpy(&high, kExchange<T, HALF>.high, sizeof high);
#pragma GCC unroll 16
  for (int i = 0; i < kLanes<T>; ++i)
    if (!(i & HALF)) {
      const Vector<T> a = v[i], b = v[i + HALF];
      v[i] = shuffle<T>(a, b, low);
      v[i + HALF] = shuffle<T>(a, b, high);
    }
  if constexpr (HALF > 1) exchange<T, HALF / 2>(v);
}

// Transposes a block of kLanes rows at stride ld into `out` at stride ld_out.
template <class T>
VEGRAD_INLINE void transpose(const T* in, std::ptrdiff_t ld, T* out, std::ptrdiff_t ld_out) {
  constexpr int n = kLanes<T>;
  Vector<T> v[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) v[i] = load<T>(in + i * ld);
  exchange<T, n / 2>(v);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) store<T>(out + i * ld_out, v[i]);
}

// The same of fewer rows, or fewer columns; what does not exist is zero.
template <class T>
__attribute__((noinline)) void transpose_edge(const T* in, std::ptrdiff_t ld, int rows, int columns,
                                              T* out, std::ptrdiff_t ld_out) {
  constexpr int n = kLanes<T>;
  Vector<T> v[n];
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i) v[i] = i < rows ? load_first<T>(in + i * ld, columns) : Vector<T>{};
  exchange<T, n / 2>(v);
#pragma GCC unroll 16
  for (int i = 0; i < n; ++i)
    if (i < columns) store<T>(out + i * ld_out, v[i]);
}

// Panels of an operand whose columns are neighbours.
template <class T>
void pack_rows(const T* b, std::ptrdiff_t row, int k, int n, T* out) {
  constexpr int width = kPanelColumns<T>, lanes = kLanes<T>;
  for (; n > 0; n -= width, b += width, out += std::ptrdiff_t(k) * width) {
    const T* from = b;
    T* to = out;
    if (n >= width)
      for (int p = 0; p < k; ++p, from += row, to += width)
        for (int j = 0; j < width; j += lanes) store<T>(to + j, load<T>(from + j));
    else
      for (int p = 0; p < k; ++p, from += row, to += width)
        for (int j = 0; j < width; j += lanes)
          store<T>(to + j, j < n ? load_padded<T>(from, j, n) : Vector<T>{});
  }
}

// Panels of an operand whose rows are neighbours.
template <class T>
void pack_columns(const T* b, std::ptrdiff_t column, int k, int n, T* out) {
  constexpr int width = kPanelColumns<T>, lanes = kLanes<T>;
  for (; n > 0; n -= width, b += width * column, out += std::ptrdiff_t(k) * width)
    for (int p = 0; p < k; p += lanes)
      for (int j = 0; j < width; j += lanes) {
        const T* const from = b + j * column + p;
        T* const to = out + p * width + j;
        if (n - j >= lanes && k - p >= lanes)
          transpose<T>(from, column, to, width);
        else
          transpose_edge<T>(from, column, n - j, k - p < lanes ? k - p : lanes, to, width);
      }
}

template <class T>
void pack(const T* b, std::ptrdiff_t row, std::ptrdiff_t column, int k, int n, T* out) {
  if (column == 1)
    pack_rows<T>(b, row, k, n, out);
  else
    pack_columns<T>(b, column, k, n, out);
}

}  // namespace
}  // namespace vegrad

// Products of float32 on a matrix unit that multiplies bfloat16, as an instruction set may offer it
// beside its vectors.
//
// A float32 is the sum of three bfloat16, its parts: 24 bits are three times eight. Of the nine
// products of parts six are made, which leaves out less than a float32 rounds off (Henry, Tang &
// Heinecke 2019, arXiv:1904.06376). Numbers below 2^-110 lose their last parts, which would be
// subnormal; one that is not finite makes NaN of all sums that it goes into.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/run_table.hpp"

namespace vegrad {

// A tile has 16 rows (of a left operand; columns of a right one) and 32 steps of k. Those of one
// place, a part each, follow one another: a brick. The bricks of 16 rows over all of k: a band.
constexpr int kBandRows = 16, kBrickDepth = 32, kParts = 3;
constexpr std::ptrdiff_t kTile = kBandRows * kBrickDepth, kBrick = kParts * kTile;

inline std::ptrdiff_t band_of(int k) { return (k + kBrickDepth - 1) / kBrickDepth * kBrick; }
inline std::size_t bands_of(int n, int k) {
  return std::size_t((n + kBandRows - 1) / kBandRows) * band_of(k);
}

// Whether products of (rows, I) and (O, I) are faster on the unit: each begins and ends with a
// fraction of a microsecond, and what is split must be used often enough.
inline bool suits_matrix_unit(int rows, int I, int O) {
  constexpr int kLeastRows = 64, kLeastWidth = 128;
  return rows >= kLeastRows && I >= kLeastWidth && O >= kLeastWidth;
}

// Rows and columns of x, and where its bricks go, one band `band` after the other. What a brick has
// beyond the edges of x is zero.
struct Split {
  const float* x;
  std::ptrdiff_t ld;
  int rows, columns;
  bfloat16* out;
  std::ptrdiff_t band;
};

// c (m, n) = a b over k, from bricks. Writes whole vectors of c. Each element is summed in the same
// order, whatever the tile it falls in.
struct SplitProduct {
  int m, n, k;
  const bfloat16* a;
  std::ptrdiff_t a_band;
  const bfloat16* b;
  std::ptrdiff_t b_band;
  float* c;
  std::ptrdiff_t ldc;
};

struct MatrixUnit {
  void (*left)(const Split&);              // x (m, k)
  void (*left_transposed)(const Split&);   // x (k, m)
  void (*right)(const Split&);             // x (k, n)
  void (*right_transposed)(const Split&);  // x (n, k)
  void (*product)(const SplitProduct&);
};

}  // namespace vegrad

// Operands and products for a matrix unit of tile registers (Intel's AMX); see matrix_unit.hpp.
#pragma once

#include "kernels/matrix_unit.hpp"
#include "kernels/product.hpp"

namespace vegrad {
namespace {

static_assert(kLanes<float> == kBandRows && 2 * kBandRows == kBrickDepth);

// The parts of 16 steps of k and of the 16 that follow. The unit adds the products of neighbours:
// here step p has step p + 16 beside it, in both operands, so that nothing need be shuffled.
VEGRAD_INLINE void split(Vector<float> low, Vector<float> high, bfloat16* out) {
  typedef std::uint32_t Words __attribute__((vector_size(VEGRAD_VECTOR_BYTES)));
  const Words top = Words{} + 0xffff0000u;
#pragma GCC unroll 3
  for (int part = 0; part < kParts; ++part, out += kTile) {
    const Words first = (Words)low, second = (Words)high & top;
    const Words both = first >> 16 | second;
    __builtin_memcpy(out, &both, sizeof both);
    low = low - (Vector<float>)(first & top);
    high = high - (Vector<float>)second;
  }
}

// A brick from both halves of its k, each 16 by 16 and at stride ld.
template <bool TURNED>
VEGRAD_INLINE void split_brick(const float* low, const float* high, std::ptrdiff_t ld,
                               bfloat16* out) {
  alignas(64) float turned[2 * kBandRows * kBandRows];
  if (TURNED) {
    transpose<float>(low, ld, turned, kBandRows);
    transpose<float>(high, ld, turned + kBandRows * kBandRows, kBandRows);
    low = turned;
    high = turned + kBandRows * kBandRows;
    ld = kBandRows;
  }
  for (int i = 0; i < kBandRows; ++i)
    split(load<float>(low + i * ld), load<float>(high + i * ld), out + i * kBrickDepth);
}

// k lies along the rows of x or along its columns; TURNED if a tile has it the other way.
template <bool ALONG_ROWS, bool TURNED>
void split_matrix(const Split& s) {
  constexpr int kRows = ALONG_ROWS ? kBandRows : kBrickDepth;
  constexpr int kColumns = ALONG_ROWS ? kBrickDepth : kBandRows;
  alignas(64) float edge[kRows * kColumns];
  for (int i = 0; i < s.rows; i += kRows)
    for (int j = 0; j < s.columns; j += kColumns) {
      const float* x = s.x + i * s.ld + j;
      std::ptrdiff_t ld = s.ld;
      const int rows = s.rows - i < kRows ? s.rows - i : kRows;
      const int columns = s.columns - j < kColumns ? s.columns - j : kColumns;
      if (rows < kRows || columns < kColumns) {
        __builtin_memset(edge, 0, sizeof edge);
        for (int r = 0; r < rows; ++r)
          __builtin_memcpy(edge + r * kColumns, x + r * ld, columns * sizeof(float));
        x = edge;
        ld = kColumns;
      }
      const int row = ALONG_ROWS ? i : j, p = ALONG_ROWS ? j : i;
      split_brick<TURNED>(x, x + (ALONG_ROWS ? kBandRows : kBandRows * ld), ld,
                          s.out + row / kBandRows * s.band + p / kBrickDepth * kBrick);
    }
}

struct alignas(64) TileShapes {
  std::uint8_t palette = 1, start_row = 0, reserved[14] = {};
  std::uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
  std::uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr TileShapes kTileShapes;

// Writes a tile of c, of which `rows` exist. Tile registers have literal names.
#define VEGRAD_STORE_TILE(tile, c, ldc, rows)                                              \
  do {                                                                                     \
    if ((rows) >= kBandRows) {                                                             \
      _tile_stored(tile, c, (ldc) * sizeof(float));                                        \
    } else {                                                                               \
      alignas(64) float whole[kBandRows * kBandRows];                                      \
      _tile_stored(tile, whole, kBandRows * sizeof(float));                                \
      asm volatile("" ::"r"(whole) : "memory"); /* of which the compiler knows no write */ \
      for (int i = 0; i < (rows); ++i)                                                     \
        store<float>((c) + i * (ldc), load<float>(whole + i * kBandRows));                 \
    }                                                                                      \
  } while (0)

// c (16 ROWS, 16 COLUMNS) (+)= a b, of which p.m rows exist. Registers: 0 … 3 hold c, 4 and 5 tiles
// of a, 6 and 7 of b. The smallest products come first.
template <int ROWS, int COLUMNS>
VEGRAD_INLINE void multiply_bands(const SplitProduct& p, bool continued) {
  constexpr bool kBelow = ROWS > 1, kBeside = COLUMNS > 1;
  if (continued) {
    const std::ptrdiff_t step = p.ldc * sizeof(float), below = kBandRows * p.ldc;
    _tile_loadd(0, p.c, step);
    if constexpr (kBeside) _tile_loadd(1, p.c + kBandRows, step);
    if constexpr (kBelow) _tile_loadd(2, p.c + below, step);
    if constexpr (kBelow && kBeside) _tile_loadd(3, p.c + below + kBandRows, step);
  } else {
    _tile_zero(0);
    if constexpr (kBeside) _tile_zero(1);
    if constexpr (kBelow) _tile_zero(2);
    if constexpr (kBelow && kBeside) _tile_zero(3);
  }
  // Stores wait for lines that are in no near cache: these are on their way while the sums are
  // made.
  for (int i = 0; i < 16 * ROWS && i < p.m; ++i)
#pragma GCC unroll 2
    for (int j = 0; j < COLUMNS; ++j) __builtin_prefetch(p.c + i * p.ldc + j * kBandRows, 1);
  const bfloat16 *a = p.a, *b = p.b;
#define VEGRAD_LEFT(part)               \
  _tile_loadd(4, a + part * kTile, 64); \
  if constexpr (kBelow) _tile_loadd(5, a + p.a_band + part * kTile, 64)
#define VEGRAD_RIGHT(part)              \
  _tile_loadd(6, b + part * kTile, 64); \
  if constexpr (kBeside) _tile_loadd(7, b + p.b_band + part * kTile, 64)
#define VEGRAD_MULTIPLY()                         \
  _tile_dpbf16ps(0, 4, 6);                        \
  if constexpr (kBeside) _tile_dpbf16ps(1, 4, 7); \
  if constexpr (kBelow) _tile_dpbf16ps(2, 5, 6);  \
  if constexpr (kBelow && kBeside) _tile_dpbf16ps(3, 5, 7)
  for (int k = 0; k < p.k; k += kBrickDepth, a += kBrick, b += kBrick) {
    VEGRAD_LEFT(2);
    VEGRAD_RIGHT(0);
    VEGRAD_MULTIPLY();
    VEGRAD_LEFT(1);
    VEGRAD_MULTIPLY();
    VEGRAD_RIGHT(1);
    VEGRAD_MULTIPLY();
    VEGRAD_LEFT(0);
    VEGRAD_MULTIPLY();
    VEGRAD_RIGHT(2);
    VEGRAD_MULTIPLY();
    VEGRAD_RIGHT(0);
    VEGRAD_MULTIPLY();
  }
#undef VEGRAD_LEFT
#undef VEGRAD_RIGHT
#undef VEGRAD_MULTIPLY
  VEGRAD_STORE_TILE(0, p.c, p.ldc, p.m);
  if constexpr (kBeside) VEGRAD_STORE_TILE(1, p.c + kBandRows, p.ldc, p.m);
  if constexpr (kBelow) VEGRAD_STORE_TILE(2, p.c + kBandRows * p.ldc, p.ldc, p.m - kBandRows);
  if constexpr (kBelow && kBeside)
    VEGRAD_STORE_TILE(3, p.c + kBandRows * p.ldc + kBandRows, p.ldc, p.m - kBandRows);
}
#undef VEGRAD_STORE_TILE

// The bricks that a block of c takes of both operands fit the first-level cache together if k is
// cut into blocks of this; where k is long, to read and write c once more costs more than that
// gains. Cutting changes no bit.
constexpr int kDepthOfBlock = 4 * kBrickDepth, kLongestCut = 12 * kBrickDepth;

void multiply(const SplitProduct& product) {
  _tile_loadconfig(&kTileShapes);
  // Only whole tiles can be read back.
  const bool cut = product.k <= kLongestCut && product.m % kBandRows == 0;
  const int depth = cut ? kDepthOfBlock : product.k;
  for (int k = 0; k < product.k; k += depth) {
    SplitProduct p = product;
    p.k = product.k - k < depth ? product.k - k : depth;
    const std::ptrdiff_t at = k / kBrickDepth * kBrick;
    for (int j = 0; j < product.n; j += 2 * kBandRows) {
      const bool beside = product.n - j > kBandRows;
      p.a = product.a + at;
      p.b = product.b + at + j / kBandRows * p.b_band;
      for (int i = 0; i < product.m; i += 2 * kBandRows) {
        p.m = product.m - i;
        p.c = product.c + i * p.ldc + j;
        if (p.m > kBandRows && beside)
          multiply_bands<2, 2>(p, k > 0);
        else if (p.m > kBandRows)
          multiply_bands<2, 1>(p, k > 0);
        else if (beside)
          multiply_bands<1, 2>(p, k > 0);
        else
          multiply_bands<1, 1>(p, k > 0);
        p.a += 2 * p.a_band;
      }
    }
  }
  _tile_release();
}

constexpr MatrixUnit matrix_unit_of_this_instruction_set() {
  return {split_matrix<true, false>, split_matrix<false, true>, split_matrix<false, false>,
          split_matrix<true, true>, multiply};
}

}  // namespace
}  // namespace vegrad

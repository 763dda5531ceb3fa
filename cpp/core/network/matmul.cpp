#include "core/network/matmul.hpp"

#include <cstring>

#include "core/network/products.hpp"
#include "core/runtime/floating_point.hpp"

namespace vegrad {
namespace {

void split_left_operand(const MatrixUnit& unit, const Tile& t, int k, const float* a,
                        std::ptrdiff_t a_row, std::ptrdiff_t a_column, bfloat16* out) {
  const float* const x = a + t.row * a_row;
  if (a_column == 1)
    unit.left({x, a_row, t.rows, k, out, band_of(k)});
  else
    unit.left_transposed({x, a_column, k, t.rows, out, band_of(k)});
}

void split_right_operand(const MatrixUnit& unit, const Tile& t, int k, const float* b,
                         std::ptrdiff_t b_row, std::ptrdiff_t b_column, bfloat16* out) {
  const float* const x = b + t.column * b_column;
  if (b_column == 1)
    unit.right({x, b_row, k, t.columns, out, band_of(k)});
  else
    unit.right_transposed({x, b_column, t.columns, k, out, band_of(k)});
}

}  // namespace

template <class T>
void matmul(int m, int n, int k, const T* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column,
            const T* b, std::ptrdiff_t b_row, std::ptrdiff_t b_column, T* c) {
  const FlushSubnormals flush;
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const MatrixUnit* const unit =
      sizeof(T) == sizeof(float) && suits_matrix_unit(m, n, k) ? matrix_unit() : nullptr;
  const int step = kWideBytes / 2 / int(sizeof(T)), panel = kernels.panel_columns;
  const Grid grid = make_grid(m, kWideRowStep, n, step);
  const int threads = num_threads();
  const std::size_t packed = std::size_t(k) * ((step + panel - 1) / panel * panel);
  const std::ptrdiff_t ld = padded<T>(step);
  const Buffer<T> packed_memory(packed * threads), tiles(kWideRowStep * ld * threads);
  const std::size_t left_size = bands_of(kWideRowStep, k), right_size = bands_of(step, k);
  const Buffer<bfloat16> left(unit ? left_size * threads : 0),
      right(unit ? right_size * threads : 0);
  std::vector<PackedBlock> blocks(threads);
  parallel_for(grid.tasks(), threads, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    T* const tile = tiles.data() + thread * kWideRowStep * ld;
    if constexpr (sizeof(T) == sizeof(float))
      if (unit) {
        bfloat16* const of_a = left.data() + thread * left_size;
        bfloat16* const of_b = right.data() + thread * right_size;
        split_left_operand(*unit, t, k, a, a_row, a_column, of_a);
        if (blocks[thread].block != t.column_block)
          split_right_operand(*unit, t, k, b, b_row, b_column, of_b);
        blocks[thread].block = t.column_block;
        unit->product({t.rows, t.columns, k, of_a, band_of(k), of_b, band_of(k), tile, ld});
      }
    if (!unit) {
      const RightOperand<T> of_b =
          right_operand(kernels, b, b_row, b_column, k, t, false,
                        packed_memory.data() + thread * packed, blocks[thread]);
      kernels.product(
          {t.rows, t.columns, k, a + t.row * a_row, a_row, a_column, of_b, tile, ld, false, {}});
    }
    for (int i = 0; i < t.rows; ++i)
      std::memcpy(c + std::ptrdiff_t(t.row + i) * n + t.column, tile + i * ld,
                  t.columns * sizeof(T));
  });
}

template void matmul(int, int, int, const float*, std::ptrdiff_t, std::ptrdiff_t, const float*,
                     std::ptrdiff_t, std::ptrdiff_t, float*);
template void matmul(int, int, int, const double*, std::ptrdiff_t, std::ptrdiff_t, const double*,
                     std::ptrdiff_t, std::ptrdiff_t, double*);

}  // namespace vegrad

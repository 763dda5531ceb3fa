#include "core/matmul.hpp"

#include "core/floating_point.hpp"
#include "core/products.hpp"

namespace vegrad {

template <class T>
void matmul(int m, int n, int k, const T* a, std::ptrdiff_t a_row, std::ptrdiff_t a_column,
            const T* b, std::ptrdiff_t b_row, std::ptrdiff_t b_column, T* c) {
  const FlushSubnormals flush;
  const Kernels<T>& kernels = instruction_set().kernels<T>();
  const int step = kWideBytes / 2 / int(sizeof(T)), panel = kernels.panel_columns;
  const Grid grid = make_grid(m, kWideRowStep, n, step);
  const int threads = num_threads();
  const std::size_t packed = std::size_t(k) * ((step + panel - 1) / panel * panel);
  const std::ptrdiff_t ld = padded<T>(step);
  const Buffer<T> packed_memory(packed * threads), tiles(kWideRowStep * ld * threads);
  std::vector<PackedBlock> blocks(threads);
  parallel_for(grid.tasks(), threads, [&](int task, int thread) {
    const Tile t = grid.tile(task);
    T* const tile = tiles.data() + thread * kWideRowStep * ld;
    const RightOperand<T> right =
        right_operand(kernels, b, b_row, b_column, k, t, false,
                      packed_memory.data() + thread * packed, blocks[thread]);
    kernels.product(
        {t.rows, t.columns, k, a + t.row * a_row, a_row, a_column, right, tile, ld, false, {}});
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

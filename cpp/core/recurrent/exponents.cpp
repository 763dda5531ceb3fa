#include "core/recurrent/exponents.hpp"

#include <algorithm>
#include <cmath>

namespace vegrad {
namespace {

// Σ x², in double: no square of a float leaves its range.
template <class T>
double squares_of(const T* x, std::ptrdiff_t n) {
  double sums[4] = {};
  std::ptrdiff_t j = 0;
  for (; j + 4 <= n; j += 4)
    for (int k = 0; k < 4; ++k) sums[k] += double(x[j + k]) * double(x[j + k]);
  for (; j < n; ++j) sums[0] += double(x[j]) * double(x[j]);
  return sums[0] + sums[1] + sums[2] + sums[3];
}

// The exponent of a row after a local gradient has entered, which had `coming` without it.
template <class T>
std::int64_t joined(const T* local, int H, std::int64_t local_exponent, std::int64_t coming,
                    bool fresh) {
  if (local_exponent == coming && !fresh) return coming;
  const double mean_square = squares_of(local, H) / H;
  if (!(mean_square > 0)) return coming;
  const std::int64_t shift = std::isfinite(mean_square) ? -correction(mean_square) : 0;
  const std::int64_t wanted = local_exponent + shift;
  return fresh || wanted > coming ? wanted : coming;
}

}  // namespace

template <class T>
StepScales<T> scales_of_step(TimePass<T>& pass, int l, int t, RowRange rows, bool fresh,
                             double factor, const T* local, std::ptrdiff_t ld_local,
                             const std::int32_t* local_exponents, const ThreadScratch<T>& scratch) {
  LayerMemory<T>& m = pass.work.layers[l];
  bool scaled = factor != 1, local_scaled = false;
  std::int32_t* const at_step = m.exponents.data() + pass.place(t);
  for (int i = rows.begin; i < rows.end; ++i) {
    const int k = i - rows.begin;
    const std::int64_t before = fresh ? 0 : m.exponent[i];
    const std::int64_t of_local = local_exponents ? local_exponents[i] : 0;
    std::int64_t now = fresh ? (local ? of_local : 0) : before - m.shift[i];
    if (local) now = joined(local + k * ld_local, pass.shape.hidden, of_local, now, fresh);
    now = std::clamp<std::int64_t>(now, INT32_MIN / 2, INT32_MAX / 2);
    m.exponent[i] = at_step[i] = std::int32_t(now);
    scaled |= before != now;
    scratch.scale[k] = power_of_two<T>(before - now) * T(factor);
    if (!local) continue;
    local_scaled |= of_local != now;
    scratch.local_scale[k] = power_of_two<T>(of_local - now);
  }
  StepScales<T> scales;
  if (scaled && !fresh) scales.scale = scratch.scale;
  if (local_scaled) scales.local_scale = scratch.local_scale;
  return scales;
}

template <class T>
void note_step(TimePass<T>& pass, int l, int t, RowRange rows, const T* delta_squares) {
  LayerMemory<T>& m = pass.work.layers[l];
  const int H = pass.shape.hidden;
  const T lowest = T(H) * T(0x1p-20), highest = T(H) * T(0x1p20);
  for (int i = rows.begin; i < rows.end; ++i) {
    const T squares = delta_squares[i - rows.begin];
    m.shift[i] = 0;
    if (squares >= lowest && squares <= highest) continue;
    // What goes back is α's and what is carried: δ itself may be 0, or lost in its square.
    const RowSizes<T>& sizes = pass.sizes;
    double largest =
        squares_of(pass.alpha(l, t) + i * sizes.gates, pass.shape.slots() * sizes.slot);
    if (m.carried) largest = std::max(largest, squares_of(m.carried + i * sizes.hidden, H));
    m.shift[i] = std::int32_t(correction(std::max(largest, double(squares)) / H));
  }
}

template <class T>
void multiply_back(T* row, std::ptrdiff_t n, std::int64_t exponent) {
  if (exponent == 0) return;
  constexpr std::int64_t most = 2 * (std::numeric_limits<T>::max_exponent - 1);
  const TwoFactors<T> factors(std::clamp(exponent, -most, most));
  for (std::ptrdiff_t j = 0; j < n; ++j) row[j] = row[j] * factors.first * factors.second;
}

VEGRAD_FOR_BOTH_TYPES(scales_of_step)
VEGRAD_FOR_BOTH_TYPES(note_step)
VEGRAD_FOR_BOTH_TYPES(multiply_back)

}  // namespace vegrad

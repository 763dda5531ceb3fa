#include "core/recurrent/head.hpp"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "core/recurrent/decayed.hpp"
#include "core/recurrent/products.hpp"

namespace vegrad {
namespace {

// Whether a gradient, and the squares of what is made of it, have all their digits.
template <class T>
bool in_range(const T* gradient, int n) {
  constexpr double lowest = sizeof(T) == 4 ? 0x1p-160 : 0x1p-800;
  constexpr double highest = sizeof(T) == 4 ? 0x1p80 : 0x1p800;
  double squares = 0;
  for (int j = 0; j < n; ++j) squares += double(gradient[j]) * double(gradient[j]);
  return squares >= lowest && squares <= highest;
}

// Numbers with an exponent in common, the largest about 1.
template <class T>
std::int64_t normalize(const std::vector<ScaledNumber>& numbers, T* out) {
  std::int64_t exponent = kNoExponent;
  for (const ScaledNumber& x : numbers) exponent = std::max(exponent, x.size());
  if (exponent == kNoExponent) exponent = 0;
  for (std::size_t j = 0; j < numbers.size(); ++j)
    out[j] = T(shifted(numbers[j].mantissa, numbers[j].exponent - exponent));
  return exponent;
}

// V h + b with exponents to `output`, of an h that may be out of range.
template <class T>
void make_scaled_output(const TimePass<T>& pass, int row, int t,
                        std::vector<ScaledNumber>& output) {
  const int top = pass.shape.layers - 1, O = pass.shape.outputs, H = pass.shape.hidden;
  const DecayedState* const state = decayed_state(pass, top, t, row);
  const T* const h = pass.h(top, t) + row * pass.sizes.hidden;
  for (int j = 0; j < O; ++j) {
    double sum = 0;
    for (int k = 0; k < H; ++k)
      sum += double(pass.head.weight[std::ptrdiff_t(j) * H + k]) *
             (state ? state->h[k] : double(h[k]));
    const ScaledNumber of_h{sum, state ? state->exponent : 0};
    const double bias = double(pass.head.bias[j]);
    const std::int64_t unit = bias == 0 ? of_h.exponent : std::max<std::int64_t>(of_h.exponent, 0);
    output[j] = {shifted(of_h.mantissa, of_h.exponent - unit) + shifted(bias, -unit), unit};
  }
}

// The loss of a row, and its gradient to `out` with the exponent that is returned beside it, both
// whatever their sizes. False, and nothing is done, if numbers are not finite.
template <class T>
bool scaled_loss(const TimePass<T>& pass, int row, int t, LossRow<T> of_row, T* out, double& loss,
                 std::int32_t& exponent, ThreadScratch<T>& scratch) {
  std::vector<ScaledNumber>& numbers = scratch.outputs;
  make_scaled_output(pass, row, t, numbers);
  for (std::size_t j = 0; j < numbers.size(); ++j)
    if (!std::isfinite(numbers[j].mantissa) || (of_row.values && !std::isfinite(of_row.values[j])))
      return false;
  of_row.h = scratch.output_mantissas.data();
  of_row.exponent = normalize(numbers, scratch.output_mantissas.data());
  loss = loss_row<T, T>(pass.shape.loss, of_row, pass.request.loss_scale, nullptr);
  loss_row_scaled(pass.shape.loss, of_row, pass.request.loss_scale, numbers.data());
  exponent =
      std::int32_t(std::clamp<std::int64_t>(normalize(numbers, out), INT32_MIN / 4, INT32_MAX / 4));
  return true;
}

// The outputs of step t, of a chunk that began at `begin`.
template <class T>
T* outputs_at(const TimePass<T>& pass, int begin, int t) {
  const std::ptrdiff_t step = pass.shape.targets_all ? t - begin : 0;
  return pass.work.outputs + step * pass.schedule.rows() * pass.sizes.output;
}

// A row's output, to whoever wants it.
template <class T>
void finish_output(TimePass<T>& pass, int row, int t, T* out, ThreadScratch<T>& scratch) {
  const TimeRequest<T>& r = pass.request;
  const int top = pass.shape.layers - 1, O = pass.shape.outputs;
  for (int j = 0; j < O; ++j) out[j] += pass.head.bias[j];
  if (r.output.data) std::memcpy(r.output.at(pass.schedule, row, t), out, O * sizeof(T));
  if (!r.values.data && !r.labels.data) return;
  const LossRow<T> of_row{O, out, 0, r.values.data ? r.values.at(pass.schedule, row, t) : nullptr,
                          r.labels.data ? *r.labels.at(pass.schedule, row, t) : 0};
  const bool back = pass.work.training;
  T* const gradient = back ? pass.output_gradient(t) + std::ptrdiff_t(row) * O : out;
  double loss = loss_row<T, T>(pass.shape.loss, of_row, r.loss_scale, gradient);
  std::int32_t exponent = 0;
  if (decayed_state(pass, top, t, row) || !in_range(gradient, O))
    scaled_loss(pass, row, t, of_row, gradient, loss, exponent, scratch);
  if (back) pass.work.output_exponents[pass.output_place(t) + row] = exponent;
  pass.work.losses[row] += loss;
}

}  // namespace

template <class T>
void multiply_by_head(TimePass<T>& pass, int begin, int end, RowRange rows) {
  const RecurrentShape& shape = pass.shape;
  const int top = shape.layers - 1;
  if (!shape.targets_all) {
    if (end < pass.schedule.steps()) return;
    begin = end - 1;
  }
  const std::ptrdiff_t ld = pass.sizes.hidden, ld_output = pass.sizes.output;
  for_rows_of_steps(pass.schedule, begin, end, rows.begin, rows.end, [&](int t, int n) {
    packed_product(pass.kernels(), n, shape.outputs, shape.hidden, pass.h(top, t) + rows.begin * ld,
                   ld, pass.work.head, outputs_at(pass, begin, t) + rows.begin * ld_output,
                   ld_output);
  });
}

template <class T>
void finish_outputs(TimePass<T>& pass, int begin, int t, RowRange rows, ThreadScratch<T>& scratch) {
  if (!pass.on_last(t)) return;
  for (int i = rows.begin; i < rows.end; ++i)
    finish_output(pass, i, t, outputs_at(pass, begin, t) + i * pass.sizes.output, scratch);
}

template <class T>
void head_backward(const TimePass<T>& pass, int begin, int end, RowRange rows, T* local) {
  const std::ptrdiff_t ld = pass.ld_local(), O = pass.shape.outputs;
  for_rows_of_steps(pass.schedule, begin, end, rows.begin, rows.end, [&](int t, int n) {
    packed_product(pass.kernels(), n, pass.shape.hidden, int(O),
                   pass.output_gradient(t) + rows.begin * O, O, pass.work.head_back,
                   local + (std::ptrdiff_t(t - begin) * pass.schedule.rows() + rows.begin) * ld,
                   ld);
  });
}

VEGRAD_FOR_BOTH_TYPES(multiply_by_head)
VEGRAD_FOR_BOTH_TYPES(finish_outputs)
VEGRAD_FOR_BOTH_TYPES(head_backward)

}  // namespace vegrad

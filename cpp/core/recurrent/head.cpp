#include "core/recurrent/head.hpp"

#include <algorithm>
#include <cstring>

#include "core/recurrent/products.hpp"

namespace vegrad {
namespace {

// A row's output as it stands in memory, to whoever wants it.
template <class T>
void finish_output(TimePass<T>& pass, int row, int t, T* out) {
  const TimeRequest<T>& r = pass.request;
  const int O = pass.shape.outputs;
  for (int j = 0; j < O; ++j) out[j] += pass.head.bias[j];
  if (r.output.data) std::memcpy(r.output.at(pass.schedule, row, t), out, O * sizeof(T));
  if (!r.values.data && !r.labels.data) return;
  const LossRow<T> of_row{O, out, 0, r.values.data ? r.values.at(pass.schedule, row, t) : nullptr,
                          r.labels.data ? *r.labels.at(pass.schedule, row, t) : 0};
  pass.work.losses[row] += loss_row<T, T>(pass.shape.loss, of_row, r.loss_scale, out);
}

}  // namespace

template <class T>
void head_forward(TimePass<T>& pass, int begin, int end, RowRange rows) {
  const RecurrentShape& shape = pass.shape;
  const int top = shape.layers - 1, O = shape.outputs;
  if (!shape.targets_all) {
    if (end < pass.schedule.steps()) return;
    begin = end - 1;
  }
  const std::ptrdiff_t ld = pass.sizes.hidden, ld_output = pass.sizes.output;
  for_rows_of_steps(pass.schedule, begin, end, rows.begin, rows.end, [&](int t, int n) {
    packed_product(pass.kernels(), n, O, shape.hidden, pass.h(top, t) + rows.begin * ld, ld,
                   pass.work.head, pass.output(t) + rows.begin * ld_output, ld_output);
  });
  for (int t = begin; t < end; ++t)
    for (int i = rows.begin; i < std::min(rows.end, pass.schedule.count(t)); ++i)
      finish_output(pass, i, t, pass.output(t) + i * ld_output);
}

template <class T>
void head_backward(const TimePass<T>& pass, int begin, int end, RowRange rows, T* local) {
  const std::ptrdiff_t ld = pass.ld_local(), ld_output = pass.sizes.output;
  for_rows_of_steps(pass.schedule, begin, end, rows.begin, rows.end, [&](int t, int n) {
    packed_product(pass.kernels(), n, pass.shape.hidden, pass.shape.outputs,
                   pass.output(t) + rows.begin * ld_output, ld_output, pass.work.head_back,
                   local + (std::ptrdiff_t(t - begin) * pass.schedule.rows() + rows.begin) * ld,
                   ld);
  });
}

VEGRAD_FOR_BOTH_TYPES(head_forward)
VEGRAD_FOR_BOTH_TYPES(head_backward)

}  // namespace vegrad

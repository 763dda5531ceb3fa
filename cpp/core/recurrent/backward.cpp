#include <algorithm>
#include <cstring>

#include "core/recurrent/decayed.hpp"
#include "core/recurrent/exponents.hpp"
#include "core/recurrent/head.hpp"
#include "core/recurrent/pass.hpp"
#include "core/recurrent/products.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// What a thread does on the way back: its rows, through a chunk of steps of one layer after the
// other, from the uppermost on.
template <class T>
class BackwardRows {
 public:
  BackwardRows(TimePass<T>& pass, RowRange rows, int begin, int end, int thread)
      : pass_(pass),
        shape_(pass.shape),
        schedule_(pass.schedule),
        rows_(rows),
        begin_(begin),
        end_(end),
        scratch_(pass.work.scratch[thread]) {}

  void run() {
    const int L = shape_.layers;
    if (pass_.request.flow) clear_carry_sums();
    for (int stop = end_; stop > pass_.first; stop -= pass_.chunk) {
      first_ = std::max(pass_.first, stop - pass_.chunk);
      for (int l = L - 1; l >= 0; --l) {
        if (l == L - 1)
          enter_above(stop);
        else
          multiply_back_through_input(l + 1, stop);
        for (int t = stop - 1; t >= first_; --t) step_back(l, t);
      }
      if (pass_.request.x_gradient.data) write_x_gradient(stop);
    }
    for (int l = 0; l < L; ++l) {
      if (pass_.first == 0 && first_wanted()) before_first(l);
    }
  }

 private:
  bool first_wanted() const { return pass_.request.flow || pass_.request.h_before_gradient; }
  bool enters(int l, int t) const {
    if (l < shape_.layers - 1) return true;
    return shape_.outputs ? t >= begin_ && pass_.on_last(t) : true;
  }
  // Of one leading dimension whatever it holds: each thread has its rows of it.
  T* local(int t, int row) const {
    return pass_.work.local +
           (std::ptrdiff_t(t - first_) * schedule_.rows() + row) * pass_.ld_local();
  }

  // The gradient that enters the uppermost layer at the steps of this chunk.
  void enter_above(int stop) {
    if (shape_.outputs) {
      int from = std::max(first_, begin_);
      if (!shape_.targets_all) from = std::max(from, schedule_.steps() - 1);
      if (from < stop) head_backward(pass_, from, stop, rows_, local(from, 0));
      return;
    }
    const TimeRequest<T>& r = pass_.request;
    const int H = shape_.hidden;
    for (int t = first_; t < stop; ++t)
      for (int i = rows_.begin; i < std::min(rows_.end, schedule_.count(t)); ++i) {
        T* const to = local(t, i);
        if (r.output_gradient.data)
          std::memcpy(to, r.output_gradient.at(schedule_, i, t), H * sizeof(T));
        else
          std::memset(to, 0, H * sizeof(T));
        if (r.h_gradient && i >= schedule_.count(t + 1))
          for (int j = 0; j < H; ++j)
            to[j] += r.h_gradient[schedule_.row_of(i) * std::ptrdiff_t(H) + j];
      }
  }

  // Wᵀ α of layer l at the steps of this chunk, with α's exponents.
  void multiply_back_through_input(int l, int stop) {
    const Kernels<T>& kernels = pass_.kernels();
    const int I = shape_.inputs_of(l), H = shape_.hidden;
    const std::ptrdiff_t size = packed_numbers(kernels, H, I);
    for_rows_of_steps(schedule_, first_, stop, rows_.begin, rows_.end, [&](int t, int rows) {
      const T* const in = pass_.alpha(l, t) + rows_.begin * pass_.sizes.gates;
      for (int g = 0; g < shape_.gates(); ++g)
        packed_product(kernels, rows, I, H, in + slot_of_input(shape_.cell, g) * pass_.sizes.slot,
                       pass_.sizes.gates, pass_.work.layers[l].input_back + g * size,
                       local(t, rows_.begin), pass_.ld_local(), g > 0);
    });
  }

  void write_x_gradient(int stop) {
    multiply_back_through_input(0, stop);
    for (int t = first_; t < stop; ++t)
      for (int i = rows_.begin; i < std::min(rows_.end, schedule_.count(t)); ++i) {
        T* const row = local(t, i);
        multiply_back(row, shape_.inputs, pass_.work.layers[0].exponents[pass_.place(t) + i]);
        std::memcpy(pass_.request.x_gradient.at(schedule_, i, t), row, shape_.inputs * sizeof(T));
      }
  }

  void step_back(int l, int t) {
    const int there = std::min(rows_.end, schedule_.count(t));
    if (there <= rows_.begin) return;
    const double factor =
        pass_.request.factors && t + 1 < schedule_.steps() ? pass_.request.factors[t + 1] : 1;
    const int after = t == end_ - 1 || factor == 0 ? 0 : schedule_.count(t + 1);
    const int split = std::clamp(after, rows_.begin, there);
    if (pass_.work.layers[l].alpha != pass_.work.layers[l].gates)
      std::memcpy(pass_.alpha(l, t) + rows_.begin * pass_.sizes.gates,
                  pass_.gates(l, t) + rows_.begin * pass_.sizes.gates,
                  (there - rows_.begin) * pass_.sizes.gates * sizeof(T));
    call_by_kind(l, t, {rows_.begin, split}, false, factor);
    call_by_kind(l, t, {split, there}, true, 1);
  }

  // Whether a row of relu was out of range: its slopes then stand in place of the gates.
  bool has_slopes(int l, int t, int row) const {
    return shape_.cell == Cell::relu && decayed_state(pass_, l, t, row);
  }

  void call_by_kind(int l, int t, RowRange rows, bool fresh, double factor) {
    for (int i = rows.begin, end; i < rows.end; i = end) {
      for (end = i + 1; end < rows.end && has_slopes(l, t, end) == has_slopes(l, t, i);) ++end;
      call(l, t, {i, end}, fresh, factor);
    }
  }

  CellBackward<T> arguments(int l, int t, RowRange rows) const {
    LayerMemory<T>& m = pass_.work.layers[l];
    const std::ptrdiff_t ld = pass_.sizes.hidden, at = rows.begin * ld;
    CellBackward<T> b{};
    b.rows = rows.end - rows.begin;
    b.lone = schedule_.rows() == 1;
    b.H = shape_.hidden;
    b.slot = pass_.sizes.slot;
    b.recurrent = m.state_back;
    b.carried = m.carried ? m.carried + at : nullptr;
    b.ld = b.ld_before = b.ld_carried = ld;
    b.ld_gates = pass_.sizes.gates;
    b.ld_local = b.ld_delta = pass_.ld_local();
    b.delta_squares = scratch_.squares;
    if (t < 0) return b;
    b.gates = pass_.alpha(l, t) + rows.begin * pass_.sizes.gates;
    b.h = pass_.h(l, t) + at;
    b.h_before = pass_.h(l, t - 1) + at;
    if (shape_.has_c()) {
      b.c = pass_.c(l, t) + at;
      b.c_before = pass_.c(l, t - 1) + at;
    }
    return b;
  }

  void call(int l, int t, RowRange rows, bool fresh, double factor) {
    LayerMemory<T>& m = pass_.work.layers[l];
    CellBackward<T> b = arguments(l, t, rows);
    if (enters(l, t)) b.local = local(t, rows.begin);
    const std::int32_t* const of_local =
        l + 1 < shape_.layers ? pass_.work.layers[l + 1].exponents.data() + pass_.place(t)
        : shape_.outputs      ? pass_.work.output_exponents.data() + pass_.output_place(t)
                              : nullptr;
    const StepScales<T> scales = scales_of_step(pass_, l, t, rows, fresh, factor, b.local,
                                                pass_.ld_local(), of_local, scratch_);
    b.scale = scales.scale;
    b.local_scale = scales.local_scale;
    b.fresh = fresh;
    if (has_slopes(l, t, rows.begin)) {
      b.h = b.gates;
      b.ld = b.ld_gates;
    }
    if (!fresh)
      b.after = pass_.alpha(l, t + 1) + rows.begin * pass_.sizes.gates;
    else if (pass_.request.c_gradient)
      enter_c(b, l, rows);
    if (pass_.request.flow) want_flow(b, m.sums, pass_.place(t) + rows.begin);
    b.carry_sums = m.carry_sums;
    b.carry_row = rows.begin;
    pass_.cell().backward(b);
    note_step(pass_, l, t, rows, b.delta_squares);
  }

  // The gradient with respect to c after the last step: carried into it.
  void enter_c(CellBackward<T>& b, int l, RowRange rows) {
    b.fresh = false;
    const std::ptrdiff_t H = shape_.hidden;
    T* const carried = pass_.work.layers[l].carried;
    for (int i = rows.begin; i < rows.end; ++i) {
      T* const to = carried + i * pass_.sizes.hidden;
      std::memcpy(to, pass_.request.c_gradient + schedule_.row_of(i) * H, H * sizeof(T));
      multiply_back(to, H, -std::int64_t(pass_.work.layers[l].exponent[i]));
    }
  }

  void want_flow(CellBackward<T>& b, const FlowSums<T>& sums, std::ptrdiff_t at) const {
    b.delta_squares = sums.delta + at;
    b.passed_squares = sums.passed + at;
    b.carried_squares = sums.carried + at;
    b.state_squares = sums.state + at;
    b.matrix_squares = sums.matrix + at;
    b.into_state_squares = sums.into_state + at;
  }

  // What passes from step 0 into the initial state.
  void before_first(int l) {
    LayerMemory<T>& m = pass_.work.layers[l];
    const RowRange rows{rows_.begin, std::min(rows_.end, schedule_.count(0))};
    if (rows.begin >= rows.end) return;
    const std::ptrdiff_t ld = pass_.sizes.hidden, H = shape_.hidden;
    CellBackward<T> b = arguments(l, -1, rows);
    b.after = pass_.alpha(l, 0) + rows.begin * pass_.sizes.gates;
    b.delta = local(first_, rows.begin);
    const T factor = pass_.request.factors ? T(pass_.request.factors[0]) : T(1);
    for (int i = rows.begin; i < rows.end; ++i)
      scratch_.scale[i - rows.begin] = power_of_two<T>(m.shift[i]) * factor;
    b.scale = scratch_.scale;
    if (pass_.request.flow) want_flow(b, m.first, rows.begin);
    pass_.cell().backward(b);
    for (int i = rows.begin; i < rows.end; ++i) {
      m.exponent[i] -= m.shift[i];
      m.shift[i] = 0;
      if (!pass_.request.h_before_gradient) continue;
      T* const row = b.delta + (i - rows.begin) * b.ld_delta;
      multiply_back(row, H, m.exponent[i]);
      std::memcpy(pass_.request.h_before_gradient + schedule_.row_of(i) * H, row, H * sizeof(T));
      if (!pass_.request.c_before_gradient) continue;
      T* const c = m.carried + i * ld;
      multiply_back(c, H, m.exponent[i]);
      std::memcpy(pass_.request.c_before_gradient + schedule_.row_of(i) * H, c, H * sizeof(T));
    }
  }

  void clear_carry_sums() {
    for (LayerMemory<T>& m : pass_.work.layers)
      for (int group = rows_.begin / kRowGroup; group * kRowGroup < rows_.end; ++group)
        std::memset(m.carry_sums + group * pass_.sizes.slot, 0, pass_.sizes.slot * sizeof(T));
  }

  TimePass<T>& pass_;
  const RecurrentShape& shape_;
  const Schedule& schedule_;
  const RowRange rows_;
  const int begin_, end_;
  const ThreadScratch<T>& scratch_;
  int first_ = 0;  // of the chunk
};

}  // namespace

template <class T>
void backward_steps(TimePass<T>& pass, int begin, int end) {
  const Schedule& schedule = pass.schedule;
  const int groups = row_tasks(pass);
  parallel_for(groups, pass.threads, [&](int i, int thread) {
    RowRange rows{schedule.begin_of(i, groups), schedule.begin_of(i + 1, groups)};
    if (rows.begin < rows.end) BackwardRows<T>(pass, rows, begin, end, thread).run();
  });
}

VEGRAD_FOR_BOTH_TYPES(backward_steps)

}  // namespace vegrad

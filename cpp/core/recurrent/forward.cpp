#include <algorithm>
#include <cstring>

#include "core/recurrent/decayed.hpp"
#include "core/recurrent/head.hpp"
#include "core/recurrent/pass.hpp"
#include "core/recurrent/products.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// What a thread does forward: its rows, through a chunk of steps of one layer after the other.
template <class T>
class ForwardRows {
 public:
  ForwardRows(TimePass<T>& pass, RowRange rows, int thread)
      : pass_(pass),
        shape_(pass.shape),
        schedule_(pass.schedule),
        rows_(rows),
        scratch_(pass.work.scratch[thread]) {}

  void run(int begin, int end) {
    const bool anew = begin == 0 && !pass_.request.again;
    for (int l = 0; anew && l < shape_.layers; ++l) begin_rows(l, -1);
    for (int t = begin; t < end; t += pass_.chunk) {
      const int stop = std::min(end, t + pass_.chunk);
      gather(t, stop);
      for (int l = 0; l < shape_.layers; ++l) {
        multiply_input(l, t, stop);
        for (int step = t; step < stop; ++step) make_step(l, step);
      }
      if (shape_.outputs)
        finish_steps(t, stop);
      else if (pass_.request.output.data)
        write_output(t, stop);
    }
  }

 private:
  int rows_at(int t) const { return std::min(rows_.end, schedule_.count(t)) - rows_.begin; }

  // The initial states of the rows that are there after step t, but not yet at it.
  void begin_rows(int l, int t) {
    const std::ptrdiff_t ld = pass_.sizes.hidden, H = shape_.hidden;
    const int stop = std::min(rows_.end, schedule_.count(t + 1));
    for (int i = std::max(rows_.begin, schedule_.count(t)); i < stop; ++i) {
      const std::ptrdiff_t from = (std::ptrdiff_t(l) * schedule_.rows() + schedule_.row_of(i)) * H;
      set(pass_.h(l, t) + i * ld, pass_.request.h_before, from);
      if (shape_.has_c()) set(pass_.c(l, t) + i * ld, pass_.request.c_before, from);
      if (pass_.follows()) pass_.work.layers[l].is_decayed[i] = false;
    }
  }

  void set(T* to, const T* all, std::ptrdiff_t from) const {
    if (all)
      std::memcpy(to, all + from, shape_.hidden * sizeof(T));
    else
      std::memset(to, 0, shape_.hidden * sizeof(T));
  }

  // x of the chunk's steps: each thread has its rows of it.
  T* x(int t) const {
    return pass_.work.local + std::ptrdiff_t(t - first_) * schedule_.rows() * pass_.ld_input(0);
  }

  void gather(int begin, int end) {
    first_ = begin;
    for (int t = begin; t < end; ++t)
      for (int i = rows_.begin; i < rows_.begin + rows_at(t); ++i)
        std::memcpy(x(t) + i * pass_.ld_input(0), pass_.request.x.at(schedule_, i, t),
                    shape_.inputs * sizeof(T));
  }

  void write_output(int begin, int end) {
    const int top = shape_.layers - 1;
    for (int t = begin; t < end; ++t)
      for (int i = rows_.begin; i < rows_.begin + rows_at(t); ++i)
        std::memcpy(pass_.request.output.at(schedule_, i, t),
                    pass_.h(top, t) + i * pass_.sizes.hidden, shape_.hidden * sizeof(T));
  }

  // W x into the gates.
  void multiply_input(int l, int begin, int end) {
    const Kernels<T>& kernels = pass_.kernels();
    const int I = shape_.inputs_of(l), H = shape_.hidden;
    const std::ptrdiff_t ld = pass_.ld_input(l), size = packed_numbers(kernels, I, H);
    for_rows_of_steps(schedule_, begin, end, rows_.begin, rows_.end, [&](int t, int rows) {
      const T* const in = (l == 0 ? x(t) : pass_.h(l - 1, t)) + rows_.begin * ld;
      T* const out = pass_.gates(l, t) + rows_.begin * pass_.sizes.gates;
      for (int g = 0; g < shape_.gates(); ++g)
        packed_product(kernels, rows, H, I, in, ld, pass_.work.layers[l].input + g * size,
                       out + slot_of_input(shape_.cell, g) * pass_.sizes.slot, pass_.sizes.gates);
    });
  }

  void make_step(int l, int t) {
    const int rows = rows_at(t);
    LayerMemory<T>& m = pass_.work.layers[l];
    if (rows > 0) {
      const std::ptrdiff_t ld = pass_.sizes.hidden, at = rows_.begin * ld;
      CellForward<T> f{};
      f.rows = rows;
      f.lone = schedule_.rows() == 1;
      f.H = shape_.hidden;
      f.slot = pass_.sizes.slot;
      f.recurrent = m.state;
      f.bias = m.bias;
      f.h_before = pass_.h(l, t - 1) + at;
      f.gates = pass_.gates(l, t) + rows_.begin * pass_.sizes.gates;
      f.h = pass_.h(l, t) + at;
      if (shape_.has_c()) {
        f.c_before = pass_.c(l, t - 1) + at;
        f.c = pass_.c(l, t) + at;
      }
      f.ld_before = f.ld = ld;
      f.ld_gates = pass_.sizes.gates;
      if (pass_.follows()) f.h_squares = m.hidden_squares + pass_.place(t) + rows_.begin;
      pass_.cell().forward(f);
    }
    begin_rows(l, t);
    end_rows(l, t);
  }

  // The head, beside the states out of range, of which only those of one step are there at a time.
  void finish_steps(int begin, int end) {
    multiply_by_head(pass_, begin, end, rows_);
    for (int t = begin; t < end; ++t) {
      const RowRange there{rows_.begin, rows_.begin + std::max(rows_at(t), 0)};
      if (pass_.follows()) follow_decayed(pass_, t, there);
      finish_outputs(pass_, begin, t, there, scratch_);
    }
  }

  // Keeps the states of the rows whose last step is t.
  void end_rows(int l, int t) {
    LayerMemory<T>& m = pass_.work.layers[l];
    const std::ptrdiff_t ld = pass_.sizes.hidden;
    const int stop = std::min(rows_.end, schedule_.count(t));
    const int first = std::max(rows_.begin, std::min(schedule_.count(t), schedule_.count(t + 1)));
    if (first >= stop) return;
    const std::size_t bytes = (stop - first) * ld * sizeof(T);
    std::memcpy(m.last_h + first * ld, pass_.h(l, t) + first * ld, bytes);
    if (m.c) std::memcpy(m.last_c + first * ld, pass_.c(l, t) + first * ld, bytes);
  }

  TimePass<T>& pass_;
  const RecurrentShape& shape_;
  const Schedule& schedule_;
  const RowRange rows_;
  ThreadScratch<T>& scratch_;
  int first_ = 0;  // of the chunk
};

}  // namespace

template <class T>
void forward_steps(TimePass<T>& pass, int begin, int end) {
  const int groups = row_tasks(pass);
  parallel_for(groups, pass.threads, [&](int i, int thread) {
    const RowRange rows{pass.schedule.begin_of(i, groups), pass.schedule.begin_of(i + 1, groups)};
    if (rows.begin < rows.end) ForwardRows<T>(pass, rows, thread).run(begin, end);
  });
}

VEGRAD_FOR_BOTH_TYPES(forward_steps)

}  // namespace vegrad

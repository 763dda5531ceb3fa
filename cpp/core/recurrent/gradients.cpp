#include <algorithm>
#include <cstring>

#include "core/recurrent/exponents.hpp"
#include "core/recurrent/pass.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// Where rows of a block stand in α (or the head's gradient), in the layer's input and in the state
// before it.
struct BlockOfRows {
  int rows = 0;
  std::ptrdiff_t left[kGradientRows], input[kGradientRows], state[kGradientRows];
};

// Calls body(block) for all rows of steps begin … end, in order. `input(t)` and `state(t)` are the
// places of a step's first rows.
template <class Place, class Input, class State, class Body>
void for_blocks(const Schedule& schedule, int begin, int end, const Place& left, const Input& input,
                const State& state, const Body& body) {
  BlockOfRows block;
  for (int t = begin; t < end; ++t)
    for (int i = 0; i < schedule.count(t); ++i) {
      block.left[block.rows] = left(t) + i;
      block.input[block.rows] = input(t) + i;
      block.state[block.rows++] = state(t) + i;
      if (block.rows < kGradientRows) continue;
      body(block);
      block.rows = 0;
    }
  if (block.rows) body(block);
}

// The columns of α that belong to one gate's rows of a weight, or to both weights'.
template <class T>
struct GateGradient {
  const T* left;
  T *weight_ih, *weight_hh, *bias, *other_bias;  // null: α has no part in it
};

// All gradients of one layer, or of the head, whose only operand is then `state`.
template <class T>
struct LayerGradient {
  std::ptrdiff_t ld_left;
  int columns;  // of each gate
  const T *input, *state;
  std::ptrdiff_t ld_input, ld_state;
  int inputs, states;
  const std::int32_t* exponents;  // of the rows of α; null: 0
  T *sums_ih, *sums_hh;           // (gates * columns, ld_input), …: what is summed up so far
  double* bias_sums;              // (slots, columns)
  std::vector<GateGradient<T>> gates;

  int tasks_of_gate() const { return (columns + kGradientColumns - 1) / kGradientColumns; }
  int tasks() const { return int(gates.size()) * tasks_of_gate(); }
};

// Rows of x one after the other in panels, as pack() leaves them.
template <class T>
void pack_block(const T* x, std::ptrdiff_t ld, const std::ptrdiff_t* at, int rows, int n, int width,
                T* out) {
  for (int j = 0; j < n; j += width) {
    const std::size_t bytes = std::min<std::ptrdiff_t>(width, ld - j) * sizeof(T);
    for (int i = 0; i < rows; ++i, out += width) std::memcpy(out, x + at[i] * ld + j, bytes);
  }
}

// What a thread does: some tasks of a layer, block by block of rows.
template <class T>
class GradientTasks {
 public:
  GradientTasks(const TimePass<T>& pass, const LayerGradient<T>& layer, int first, int last,
                const ThreadScratch<T>& scratch)
      : pass_(pass),
        kernels_(pass.kernels()),
        layer_(layer),
        first_(first),
        last_(last),
        left_(scratch.left),
        input_(scratch.right),
        state_(scratch.right + kGradientRows * (layer.input ? whole(layer.inputs) : 0)) {}

  void add(const BlockOfRows& block) {
    const int width = kernels_.panel_columns;
    if (layer_.input)
      pack_block(layer_.input, layer_.ld_input, block.input, block.rows, layer_.inputs, width,
                 input_);
    pack_block(layer_.state, layer_.ld_state, block.state, block.rows, layer_.states, width,
               state_);
    for (int task = first_; task < last_; ++task) add_tile(block, task);
    started_ = true;
  }

  void write() const {
    for (int task = first_; task < last_; ++task) {
      const Place p = place(task);
      const GateGradient<T>& gate = layer_.gates[p.gate];
      write_weight(gate.weight_ih, layer_.sums_ih, layer_.ld_input, layer_.inputs, p);
      write_weight(gate.weight_hh, layer_.sums_hh, layer_.ld_state, layer_.states, p);
      const double* const sums = layer_.bias_sums + std::ptrdiff_t(p.gate) * layer_.columns;
      for (T* const bias : {gate.bias, gate.other_bias})
        for (int j = p.column; bias && j < p.column + p.columns; ++j)
          bias[j] = T((pass_.add ? double(bias[j]) : 0.0) + (started_ ? sums[j] : 0.0));
    }
  }

 private:
  struct Place {
    int gate, column, columns;
  };

  std::ptrdiff_t whole(int n) const {
    const int width = kernels_.panel_columns;
    return (n + width - 1) / width * width;
  }

  Place place(int task) const {
    const int column = task % layer_.tasks_of_gate() * kGradientColumns;
    return {task / layer_.tasks_of_gate(), column,
            std::min(kGradientColumns, layer_.columns - column)};
  }

  // Where a tile's sums stand: gates that share a weight with no other have rows of their own.
  T* sums(T* all, std::ptrdiff_t ld, const Place& p) const {
    return all + (std::ptrdiff_t(p.gate) * layer_.columns + p.column) * ld;
  }

  void add_tile(const BlockOfRows& block, int task) {
    const Place p = place(task);
    const GateGradient<T>& gate = layer_.gates[p.gate];
    pack_left(block, gate.left + p.column, p.columns);
    if (gate.bias) add_bias(block.rows, p);
    if (gate.weight_ih)
      multiply(block.rows, p.columns, input_, layer_.inputs,
               sums(layer_.sums_ih, layer_.ld_input, p), layer_.ld_input);
    if (gate.weight_hh)
      multiply(block.rows, p.columns, state_, layer_.states,
               sums(layer_.sums_hh, layer_.ld_state, p), layer_.ld_state);
  }

  // α of these columns, its exponents multiplied back.
  void pack_left(const BlockOfRows& block, const T* from, int columns) {
    T* out = left_;
    for (int i = 0; i < block.rows; ++i, out += kGradientColumns) {
      std::memcpy(out, from + block.left[i] * layer_.ld_left, columns * sizeof(T));
      if (layer_.exponents) multiply_back(out, columns, layer_.exponents[block.left[i]]);
    }
  }

  void add_bias(int rows, const Place& p) {
    T sums[kGradientColumns] = {};
    for (int i = 0; i < rows; ++i)
      for (int j = 0; j < kGradientColumns; ++j) sums[j] += left_[i * kGradientColumns + j];
    double* const to = layer_.bias_sums + std::ptrdiff_t(p.gate) * layer_.columns + p.column;
    for (int j = 0; j < p.columns; ++j) to[j] = (started_ ? to[j] : 0.0) + double(sums[j]);
  }

  void multiply(int rows, int columns, const T* right, int n, T* to, std::ptrdiff_t ld) const {
    const int width = kernels_.panel_columns;
    for (int j = 0; j < n; j += width) {
      const RightOperand<T> b{right + std::ptrdiff_t(j) * rows, width, 0};
      kernels_.product({columns,
                        std::min(width, n - j),
                        rows,
                        left_,
                        1,
                        kGradientColumns,
                        b,
                        to + j,
                        ld,
                        false,
                        {},
                        started_});
    }
  }

  void write_weight(T* weight, T* all, std::ptrdiff_t ld, int n, const Place& p) const {
    if (!weight) return;
    const T* from = sums(all, ld, p);
    T* to = weight + std::ptrdiff_t(p.column) * n;
    for (int i = 0; i < p.columns; ++i, from += ld, to += n)
      if (!started_) {
        if (!pass_.add) std::memset(to, 0, n * sizeof(T));
      } else if (pass_.add) {
        for (int j = 0; j < n; ++j) to[j] += from[j];
      } else {
        std::memcpy(to, from, n * sizeof(T));
      }
  }

  const TimePass<T>& pass_;
  const Kernels<T>& kernels_;
  const LayerGradient<T>& layer_;
  const int first_, last_;
  T *const left_, *const input_, *const state_;
  bool started_ = false;
};

template <class T, class Blocks>
void make_gradients(const TimePass<T>& pass, const LayerGradient<T>& layer, const Blocks& blocks) {
  const int groups = std::min(pass.threads, layer.tasks());
  parallel_for(groups, groups, [&](int group, int thread) {
    GradientTasks<T> tasks(pass, layer, first_task(layer.tasks(), group, groups),
                           first_task(layer.tasks(), group + 1, groups), pass.work.scratch[thread]);
    blocks([&](const BlockOfRows& block) { tasks.add(block); });
    tasks.write();
  });
}

template <class T>
LayerGradient<T> gradient_of(TimePass<T>& pass, int l) {
  const RecurrentShape& shape = pass.shape;
  const LayerWeights<T>& to = pass.gradients[l];
  const std::ptrdiff_t slot = pass.sizes.slot, H = shape.hidden, I = shape.inputs_of(l);
  const T* const alpha = pass.work.layers[l].alpha;
  LayerGradient<T> g{pass.sizes.gates,
                     shape.hidden,
                     l == 0 ? pass.work.x : pass.work.layers[l - 1].h,
                     pass.work.layers[l].h,
                     pass.ld_input(l),
                     pass.sizes.hidden,
                     shape.inputs_of(l),
                     shape.hidden,
                     pass.work.layers[l].exponents.data(),
                     pass.work.sums_ih,
                     pass.work.sums_hh,
                     pass.work.bias_sums.data(),
                     {}};
  const auto bias = [H](T* of, int gate) { return of ? of + gate * H : nullptr; };
  for (int i = 0; i < shape.gates(); ++i) {
    const int in = slot_of_input(shape.cell, i), state = slot_of_state(shape.cell, i);
    T *const ih = to.weight_ih + i * H * I, *const hh = to.weight_hh + i * H * H;
    T *const b_ih = bias(to.bias_ih, i), *const b_hh = bias(to.bias_hh, i);
    if (in == state) {
      g.gates.push_back({alpha + in * slot, ih, hh, b_ih, b_hh});
    } else {
      g.gates.push_back({alpha + in * slot, ih, nullptr, b_ih, nullptr});
      g.gates.push_back({alpha + state * slot, nullptr, hh, b_hh, nullptr});
    }
  }
  return g;
}

template <class T>
LayerGradient<T> gradient_of_head(TimePass<T>& pass) {
  const int H = pass.shape.hidden;
  return {
      pass.sizes.output,
      pass.shape.outputs,
      nullptr,
      pass.work.layers.back().h,
      0,
      pass.sizes.hidden,
      0,
      H,
      pass.work.output_exponents.data(),
      nullptr,
      pass.work.sums_hh,
      pass.work.bias_sums.data(),
      {{pass.work.output, nullptr, pass.head_gradient.weight, pass.head_gradient.bias, nullptr}}};
}

}  // namespace

template <class T>
void make_weight_gradients(TimePass<T>& pass, int begin, int end) {
  const Schedule& schedule = pass.schedule;
  const auto place = [&](int t) { return std::ptrdiff_t(pass.place(t)); };
  const auto state = [&](int t) { return std::ptrdiff_t(pass.state_place(t)); };
  const auto before = [&](int t) { return std::ptrdiff_t(pass.state_place(t - 1)); };
  for (int l = 0; l < pass.shape.layers; ++l)
    make_gradients(pass, gradient_of(pass, l), [&](const auto& body) {
      if (l == 0)
        for_blocks(schedule, pass.first, end, place, place, before, body);
      else
        for_blocks(schedule, pass.first, end, place, state, before, body);
    });
  if (pass.shape.outputs == 0) return;
  const bool all = pass.shape.targets_all;
  const auto output = [&](int t) { return all ? place(t) : 0; };
  make_gradients(pass, gradient_of_head(pass), [&](const auto& body) {
    for_blocks(schedule, all ? begin : end - 1, end, output, output, state, body);
  });
}

VEGRAD_FOR_BOTH_TYPES(make_weight_gradients)

}  // namespace vegrad

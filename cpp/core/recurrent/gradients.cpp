#include <algorithm>
#include <cstring>

#include "core/recurrent/exponents.hpp"
#include "core/recurrent/pass.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// Which rows of α (or the head's gradient) a block has, and where its rows of the layer's input and
// of the state before it are.
template <class T>
struct BlockOfRows {
  int rows = 0;
  std::ptrdiff_t left[kGradientRows];
  const T *input[kGradientRows], *state[kGradientRows];
};

// Calls body(block) for all rows of steps begin … end, in order. `left(t)` is the place of a step's
// first row; `input(t, i)` and `state(t, i)` are rows.
template <class T, class Place, class Input, class State, class Body>
void for_blocks(const Schedule& schedule, int begin, int end, const Place& left, const Input& input,
                const State& state, const Body& body) {
  BlockOfRows<T> block;
  for (int t = begin; t < end; ++t)
    for (int i = 0; i < schedule.count(t); ++i) {
      block.left[block.rows] = left(t) + i;
      block.input[block.rows] = input(t, i);
      block.state[block.rows++] = state(t, i);
      if (block.rows < kGradientRows) continue;
      body(block);
      block.rows = 0;
    }
  if (block.rows) body(block);
}

constexpr int kMostGateGradients = 4;  // gru: α of n belongs to W, that of m to U

// The columns of α that belong to one gate's rows of a weight, or to both weights'.
template <class T>
struct GateGradient {
  const T* left;
  T *weight_ih, *weight_hh, *bias, *other_bias;  // null: α has no part in it
};

// All gradients of one layer, or of the head, whose only operand is then `state` (inputs 0).
template <class T>
struct LayerGradient {
  std::ptrdiff_t ld_left;
  int columns;  // of each gate
  int inputs, states;
  const std::int32_t* exponents;  // of the rows of α; null: 0
  T *edge_ih, *edge_hh;  // (slots * columns, a vector): sums of what is beyond whole vectors
  double* bias_sums;     // (slots, columns)
  int count = 0;
  GateGradient<T> gates[kMostGateGradients] = {};

  void push(const GateGradient<T>& gate) { gates[count++] = gate; }
  int tasks_of_gate() const { return (columns + kGradientColumns - 1) / kGradientColumns; }
  int tasks() const { return count * tasks_of_gate(); }
  // Of a task, but for the last of a gate: nearly alike, and whole register tiles.
  int columns_of_task() const {
    constexpr int unit = 12;
    const int each = (columns + tasks_of_gate() - 1) / tasks_of_gate();
    return (each + unit - 1) / unit * unit;
  }
  // Tasks in `groups` parts of about equal work: where part i begins.
  int begin_of(int i, int groups) const {
    const auto work = [&](int gate) {
      return (gates[gate].weight_ih ? inputs : 0) + (gates[gate].weight_hh ? states : 0);
    };
    if (i == groups) return tasks();
    std::int64_t left = 0;
    for (int gate = 0; gate < count; ++gate) left += work(gate);
    left = left * columns * i / groups;
    for (int gate = 0; gate < count; ++gate) {
      const std::int64_t of_task = std::int64_t(work(gate)) * columns_of_task();
      const std::int64_t task = (2 * left + of_task) / (2 * of_task);
      if (task < tasks_of_gate()) return gate * tasks_of_gate() + int(task);
      left = std::max<std::int64_t>(left - std::int64_t(work(gate)) * columns, 0);
    }
    return tasks();
  }
};

// Rows one after the other in panels, as pack() leaves them.
template <class T>
void pack_block(const T* const* from, int rows, int n, int width, T* out) {
  for (int j = 0; j < n; j += width) {
    const std::size_t bytes = std::min(width, n - j) * sizeof(T);
    for (int i = 0; i < rows; ++i, out += width) std::memcpy(out, from[i] + j, bytes);
  }
}

// What a thread does: some tasks of a layer, block by block of rows. Sums stand where the gradients
// are to be, but for columns that are no whole vector.
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
        width_(kernels_.panel_columns),
        left_(scratch.left),
        input_(scratch.right),
        state_(scratch.right + kGradientRows * whole(layer.inputs)) {
    for_edges([](T* edge, T* weight, int n) { std::memcpy(edge, weight, n * sizeof(T)); });
  }

  void add(const BlockOfRows<T>& block) {
    if (layer_.inputs) pack_block(block.input, block.rows, layer_.inputs, width_, input_);
    pack_block(block.state, block.rows, layer_.states, width_, state_);
    for (int task = first_; task < last_; ++task) add_tile(block, task);
    started_ = true;
  }

  void write() const {
    for_edges([](T* edge, T* weight, int n) { std::memcpy(weight, edge, n * sizeof(T)); });
    for (int task = first_; task < last_; ++task) {
      const Place p = place(task);
      const GateGradient<T>& gate = layer_.gates[p.gate];
      if (!started_ && !pass_.add) {
        clear(gate.weight_ih, layer_.inputs, p);
        clear(gate.weight_hh, layer_.states, p);
      }
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

  int whole(int n) const { return (n + width_ - 1) / width_ * width_; }
  int edge_of(int n) const { return n % (width_ / 2); }  // of two vectors a panel

  Place place(int task) const {
    const int columns = layer_.columns_of_task(), column = task % layer_.tasks_of_gate() * columns;
    return {task / layer_.tasks_of_gate(), column, std::min(columns, layer_.columns - column)};
  }

  T* edge(T* all, const Place& p) const {
    return all + (std::ptrdiff_t(p.gate) * layer_.columns + p.column) * kEdge;
  }

  // body(edge, weight, n) for the last n numbers of each row of a weight that are no whole vector,
  // if something has been summed up already.
  template <class Body>
  void for_edges(const Body& body) const {
    for (int task = first_; (started_ || pass_.add) && task < last_; ++task) {
      const Place p = place(task);
      const GateGradient<T>& gate = layer_.gates[p.gate];
      const auto rows = [&](T* weight, T* all, int n) {
        const int few = edge_of(n);
        for (int i = 0; weight && few && i < p.columns; ++i)
          body(edge(all, p) + i * kEdge, weight + std::ptrdiff_t(p.column + i + 1) * n - few, few);
      };
      rows(gate.weight_ih, layer_.edge_ih, layer_.inputs);
      rows(gate.weight_hh, layer_.edge_hh, layer_.states);
    }
  }

  void add_tile(const BlockOfRows<T>& block, int task) {
    const Place p = place(task);
    const GateGradient<T>& gate = layer_.gates[p.gate];
    pack_left(block, gate.left + p.column, p.columns);
    if (gate.bias) add_bias(block.rows, p);
    if (gate.weight_ih)
      multiply(block.rows, p, input_, layer_.inputs, gate.weight_ih, layer_.edge_ih);
    if (gate.weight_hh)
      multiply(block.rows, p, state_, layer_.states, gate.weight_hh, layer_.edge_hh);
  }

  // α of these columns, its exponents multiplied back.
  void pack_left(const BlockOfRows<T>& block, const T* from, int columns) {
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

  // These rows of a weight's gradient (·, n).
  void multiply(int rows, const Place& p, const T* right, int n, T* weight, T* edges) const {
    weight += std::ptrdiff_t(p.column) * n;
    const int few = edge_of(n);
    for (int j = 0; j < n; j += width_) {
      const T* const panel = right + std::ptrdiff_t(j) * rows;
      const int columns = std::min(width_, n - few - j);
      if (columns > 0) product(rows, p.columns, columns, panel, weight + j, n);
    }
    const T* const last = right + std::ptrdiff_t(n / width_ * width_) * rows;
    if (few) product(rows, p.columns, few, last + (n - few) % width_, edge(edges, p), kEdge);
  }

  void product(int rows, int m, int n, const T* right, T* c, std::ptrdiff_t ldc) const {
    const RightOperand<T> b{right, width_, 0};
    const bool continued = started_ || pass_.add;
    kernels_.product({m, n, rows, left_, 1, kGradientColumns, b, c, ldc, false, {}, continued});
  }

  void clear(T* weight, int n, const Place& p) const {
    if (weight) std::memset(weight + std::ptrdiff_t(p.column) * n, 0, sizeof(T) * n * p.columns);
  }

  static constexpr std::ptrdiff_t kEdge = kPadBytes / sizeof(T);
  const TimePass<T>& pass_;
  const Kernels<T>& kernels_;
  const LayerGradient<T>& layer_;
  const int first_, last_, width_;
  T *const left_, *const input_, *const state_;
  bool started_ = false;
};

template <class T, class Blocks>
void make_gradients(const TimePass<T>& pass, const LayerGradient<T>& layer, const Blocks& blocks) {
  // As row_tasks(): two a thread, though each packs the operands for itself.
  const int groups = pass.threads == 1 ? 1 : std::min(2 * pass.threads, layer.tasks());
  parallel_for(groups, pass.threads, [&](int group, int thread) {
    const int first = layer.begin_of(group, groups), last = layer.begin_of(group + 1, groups);
    if (first == last) return;
    GradientTasks<T> tasks(pass, layer, first, last, pass.work.scratch[thread]);
    blocks([&](const BlockOfRows<T>& block) { tasks.add(block); });
    tasks.write();
  });
}

template <class T>
LayerGradient<T> gradient_of(TimePass<T>& pass, int l) {
  const RecurrentShape& shape = pass.shape;
  const LayerWeights<T>& to = pass.gradients[l];
  TimeWorkspace<T>& w = pass.work;
  const std::ptrdiff_t slot = pass.sizes.slot, H = shape.hidden, I = shape.inputs_of(l);
  const T* const alpha = w.layers[l].alpha;
  LayerGradient<T> g{pass.sizes.gates,
                     shape.hidden,
                     int(I),
                     shape.hidden,
                     w.layers[l].exponents.data(),
                     w.edge_ih,
                     w.edge_hh,
                     w.bias_sums.data()};
  const auto bias = [H](T* of, int gate) { return of ? of + gate * H : nullptr; };
  for (int i = 0; i < shape.gates(); ++i) {
    const int in = slot_of_input(shape.cell, i), state = slot_of_state(shape.cell, i);
    T *const ih = to.weight_ih + i * H * I, *const hh = to.weight_hh + i * H * H;
    T *const b_ih = bias(to.bias_ih, i), *const b_hh = bias(to.bias_hh, i);
    if (in == state) {
      g.push({alpha + in * slot, ih, hh, b_ih, b_hh});
    } else {
      g.push({alpha + in * slot, ih, nullptr, b_ih, nullptr});
      g.push({alpha + state * slot, nullptr, hh, b_hh, nullptr});
    }
  }
  return g;
}

template <class T>
LayerGradient<T> gradient_of_head(TimePass<T>& pass) {
  const HeadWeights<T>& to = pass.head_gradient;
  LayerGradient<T> g{pass.shape.outputs,
                     pass.shape.outputs,
                     0,
                     pass.shape.hidden,
                     pass.work.output_exponents.data(),
                     nullptr,
                     pass.work.edge_hh,
                     pass.work.bias_sums.data()};
  g.push({pass.work.output_gradient, nullptr, to.weight, to.bias, nullptr});
  return g;
}

}  // namespace

template <class T>
void make_weight_gradients(TimePass<T>& pass, int begin, int end) {
  const Schedule& schedule = pass.schedule;
  const std::ptrdiff_t ld = pass.sizes.hidden;
  const auto place = [&](int t) { return std::ptrdiff_t(pass.place(t)); };
  const auto x = [&](int t, int i) { return pass.request.x.at(schedule, i, t); };
  for (int l = 0; l < pass.shape.layers; ++l) {
    const auto below = [&](int t, int i) { return pass.h(l - 1, t) + i * ld; };
    const auto before = [&](int t, int i) { return pass.h(l, t - 1) + i * ld; };
    make_gradients(pass, gradient_of(pass, l), [&](const auto& body) {
      if (l == 0)
        for_blocks<T>(schedule, pass.first, end, place, x, before, body);
      else
        for_blocks<T>(schedule, pass.first, end, place, below, before, body);
    });
  }
  if (pass.shape.outputs == 0) return;
  const int top = pass.shape.layers - 1;
  const bool all = pass.shape.targets_all;
  const auto output = [&](int t) { return all ? place(t) : 0; };
  const auto none = [](int, int) -> const T* { return nullptr; };
  const auto state = [&](int t, int i) { return pass.h(top, t) + i * ld; };
  make_gradients(pass, gradient_of_head(pass), [&](const auto& body) {
    for_blocks<T>(schedule, all ? begin : end - 1, end, output, none, state, body);
  });
}

VEGRAD_FOR_BOTH_TYPES(make_weight_gradients)

}  // namespace vegrad

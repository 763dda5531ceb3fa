#include <algorithm>
#include <cstring>

#include "core/recurrent/pass.hpp"
#include "core/recurrent/products.hpp"
#include "core/runtime/threads.hpp"

namespace vegrad {
namespace {

// Rows of a chunk of steps: so many that their gates take a part of the second-level cache, and
// enough for a product.
template <class T>
std::size_t chunk_rows(const RowSizes<T>& sizes) {
  constexpr std::size_t kChunkBytes = 384 * 1024, kMost = 256;
  return std::clamp<std::size_t>(kChunkBytes / (sizes.gates * sizeof(T)), 1, kMost);
}

// Room for what pack() leaves, whatever the instruction set.
template <class T>
std::size_t packed_size(std::size_t k, int columns) {
  constexpr std::size_t panel = 2 * 64 / sizeof(T);  // of the widest vectors
  return k * ((columns + panel - 1) / panel * panel);
}

template <class T>
FlowSums<T> take_sums(Parts<T>& parts, std::size_t n) {
  FlowSums<T> sums;
  for (T** at :
       {&sums.delta, &sums.passed, &sums.carried, &sums.state, &sums.matrix, &sums.into_state})
    *at = parts.take(n);
  return sums;
}

template <class T>
void layout_layer(TimeWorkspace<T>& w, Parts<T>& parts, const RecurrentShape& shape, int l) {
  const RowSizes<T> sizes(shape);
  const CellKernels<T>& cell = instruction_set().kernels<T>().cell[int(shape.cell)];
  const std::size_t B = w.rows, all = w.row_steps, H = shape.hidden;
  LayerMemory<T>& m = w.layers[l];
  m.gates = parts.take(all * sizes.gates);
  m.alpha = w.sliding ? parts.take(all * sizes.gates) : m.gates;
  m.h = parts.take((all + B) * sizes.hidden);
  if (shape.has_c()) m.c = parts.take((all + B) * sizes.hidden);
  m.last_h = parts.take(B * sizes.hidden);
  if (shape.has_c()) m.last_c = parts.take(B * sizes.hidden);
  m.bias = parts.take(shape.slots() * sizes.slot);
  m.state = parts.take(cell.packed_size(shape.hidden));
  m.input = parts.take(shape.gates() * packed_size<T>(shape.inputs_of(l), shape.hidden));
  if (w.follows) m.hidden_squares = parts.take(all);
  if (!w.training) return;
  if (shape.carries()) m.carried = parts.take(B * sizes.hidden);
  m.state_back = parts.take(cell.packed_size(shape.hidden));
  if (l > 0 || shape.outputs == 0)
    m.input_back = parts.take(shape.gates() * packed_size<T>(H, shape.inputs_of(l)));
  if (w.flow) {
    m.sums = take_sums(parts, all);
    m.first = take_sums(parts, B);
    m.carry_sums = parts.take((B + kRowGroup - 1) / kRowGroup * sizes.slot);
  }
}

// What a thread has while weight gradients are made.
template <class T>
void layout_operands(TimeWorkspace<T>& w, Parts<T>& parts, const RecurrentShape& shape) {
  const std::size_t H = packed_size<T>(1, shape.hidden);
  const std::size_t widest = std::max(H, packed_size<T>(1, shape.inputs));
  for (ThreadScratch<T>& s : w.scratch) {
    s.left = parts.take(kGradientRows * kGradientColumns);
    s.right = parts.take(kGradientRows * (H + widest));
  }
}

// Says where everything lies in w.memory; returns the number of elements.
template <class T>
std::size_t layout(TimeWorkspace<T>& w, const RecurrentShape& shape) {
  const RowSizes<T> sizes(shape);
  const std::size_t B = w.rows, H = shape.hidden, vector = kPadBytes / sizeof(T);
  Parts<T> parts(w.memory.data());
  w.layers.resize(shape.layers);
  for (int l = 0; l < shape.layers; ++l) layout_layer(w, parts, shape, l);
  if (shape.outputs) {
    w.head = parts.take(packed_size<T>(H, shape.outputs));
    if (w.training) w.head_back = parts.take(packed_size<T>(shape.outputs, shape.hidden));
    if (w.training)
      w.output_gradient = parts.take((shape.targets_all ? w.row_steps : B) * shape.outputs);
  }
  w.scratch.resize(w.threads);
  for (ThreadScratch<T>& s : w.scratch) {
    s.scale = parts.take(B);
    s.local_scale = parts.take(B);
    s.squares = parts.take(B);
  }
  if (w.training) {
    const std::size_t slots = std::max<std::size_t>(shape.slots() * H, shape.outputs);
    const auto edges = [&](std::size_t columns) { return columns % vector ? slots * vector : 0; };
    w.edge_ih = parts.take(std::max(edges(shape.inputs), shape.layers > 1 ? edges(H) : 0));
    w.edge_hh = parts.take(edges(H));
    w.bias_sums.resize(slots);
  }
  // The steps are over when weight gradients are made, so that both have the same memory; but not
  // where each part is to be guarded by itself.
  Parts<T> again = parts;
  const std::ptrdiff_t widest = std::max(sizes.hidden, padded<T>(shape.inputs));
  const std::size_t chunk = std::max(B, chunk_rows<T>(sizes));
  w.local = parts.take(chunk * widest);
  w.outputs = parts.take((shape.targets_all ? chunk : B) * sizes.output);
  if (guard_pages() != GuardPages::kNone) again = parts;
  if (w.training) layout_operands(w, again, shape);
  return std::max(parts.size(), again.size());
}

}  // namespace

template <class T>
void prepare(TimePass<T>& pass, int rows, int steps, bool training, bool sliding, bool flow) {
  TimeWorkspace<T>& w = pass.work;
  pass.threads = time_threads<T>(pass.shape, rows, steps, training);
  const std::size_t row_steps = std::size_t(rows) * steps;
  const bool follows = pass.shape.outputs && (flow || pass.shape.cell == Cell::relu);
  pass.chunk = int(std::max<std::size_t>(chunk_rows<T>(pass.sizes) / rows, 1));
  if (std::size_t(rows) > w.rows || row_steps > w.row_steps || pass.threads > w.threads ||
      (training && !w.training) || (sliding && !w.sliding) || (flow && !w.flow) ||
      (follows && !w.follows)) {
    TimeWorkspace<T> wanted;
    wanted.rows = std::max<std::size_t>(rows, w.rows);
    wanted.row_steps = std::max(row_steps, w.row_steps);
    wanted.threads = std::max(pass.threads, w.threads);
    wanted.training = training || w.training;
    wanted.sliding = sliding || w.sliding;
    wanted.flow = flow || w.flow;
    wanted.follows = follows || w.follows;
    w = TimeWorkspace<T>();  // the old memory goes before the new comes
    w = std::move(wanted);
    w.memory = Buffer<T>(layout(w, pass.shape));
    layout(w, pass.shape);
  }
  w.losses.assign(rows, 0.0);
  for (ThreadScratch<T>& s : w.scratch) {
    s.outputs.resize(pass.shape.outputs);
    s.output_mantissas.resize(pass.shape.outputs);
  }
  if (training) w.output_exponents.resize(pass.shape.targets_all ? w.row_steps : w.rows);
  for (LayerMemory<T>& m : w.layers) {
    if (training) m.exponents.resize(w.row_steps);
    if (follows) m.hidden_exponents.resize(w.row_steps);
    if (follows) m.decayed.resize(w.rows);
    if (follows) m.is_decayed.resize(w.rows);
    m.exponent.resize(rows);
    m.shift.resize(rows);
  }
}

template <class T>
int time_threads(const RecurrentShape& shape, int rows, int steps, bool training) {
  // Cycles for which one more thread pays. A single row goes through its steps on one, and shares
  // only its weight gradients: by then the others sleep.
  constexpr double kWorthwhile = 2e5;
  if (shares_everything()) return num_threads();
  double weights = 0;
  for (int l = 0; l < shape.layers; ++l)
    weights += double(shape.gates()) * shape.hidden * (shape.inputs_of(l) + shape.hidden);
  const int shared = (training ? 1 : 0) + (rows > 1 ? training ? 2 : 1 : 0);  // of 3 products
  const double cycles = weights * rows * steps * shared * sizeof(T) / 64;
  return int(std::clamp(cycles / kWorthwhile, 1.0, double(num_threads())));
}

template <class T>
std::size_t time_bytes(const RecurrentShape& shape, int rows, int steps, bool sliding) {
  TimeWorkspace<T> w;
  w.rows = rows;
  w.row_steps = std::size_t(rows) * steps;
  w.threads = time_threads<T>(shape, rows, steps, true);
  w.training = true;
  w.sliding = sliding;
  w.follows = shape.outputs && shape.cell == Cell::relu;
  const std::size_t exponents = shape.layers * (w.follows ? 2 : 1) + (shape.targets_all ? 1 : 0);
  return layout(w, shape) * sizeof(T) + w.row_steps * exponents * sizeof(std::int32_t);
}

template <class T>
void pack_weights(TimePass<T>& pass, bool training) {
  const RecurrentShape& shape = pass.shape;
  const Kernels<T>& kernels = pass.kernels();
  const int H = shape.hidden, G = shape.gates(), O = shape.outputs;
  constexpr int kJobs = 4;
  parallel_for(shape.layers * kJobs + 1, pass.threads, [&](int task, int) {
    const int l = task / kJobs;
    if (l == shape.layers) {
      if (O) kernels.pack(pass.head.weight, 1, H, H, O, pass.work.head);
      if (O && training) kernels.pack(pass.head.weight, H, 1, O, H, pass.work.head_back);
      return;
    }
    const LayerWeights<const T>& of = pass.weights[l];
    LayerMemory<T>& m = pass.work.layers[l];
    const std::ptrdiff_t I = shape.inputs_of(l);
    switch (task % kJobs) {
      case 0:
        pass.cell().pack_forward(of.weight_hh, H, m.state);
        break;
      case 1:
        if (training) pass.cell().pack_backward(of.weight_hh, H, m.state_back);
        break;
      case 2:
        for (int g = 0; g < G; ++g)
          kernels.pack(of.weight_ih + g * H * I, 1, I, int(I), H,
                       m.input + g * packed_numbers(kernels, I, H));
        break;
      case 3:
        if (training && m.input_back)
          for (int g = 0; g < G; ++g)
            kernels.pack(of.weight_ih + g * H * I, I, 1, H, int(I),
                         m.input_back + g * packed_numbers(kernels, H, int(I)));
        for (int g = 0; g < G; ++g)
          for (int j = 0; j < H; ++j) {
            const T in = of.bias_ih ? of.bias_ih[g * H + j] : T(0);
            const T state = of.bias_hh ? of.bias_hh[g * H + j] : T(0);
            const bool apart = slot_of_input(shape.cell, g) != slot_of_state(shape.cell, g);
            m.bias[slot_of_input(shape.cell, g) * pass.sizes.slot + j] = apart ? in : in + state;
            if (apart) m.bias[slot_of_state(shape.cell, g) * pass.sizes.slot + j] = state;
          }
        break;
    }
  });
}

template <class T>
int row_tasks(const TimePass<T>& pass) {
  constexpr std::size_t kNear = 512 * 1024;  // U stays in the second-level cache beside the rest
  const int rows = pass.schedule.rows(), H = pass.shape.hidden;
  if (pass.threads == 1) return 1;
  const bool near = std::size_t(pass.shape.gates()) * H * H * sizeof(T) <= kNear;
  const int least = near ? 8 : 32;
  return std::min(rows, rows >= 2 * pass.threads * least ? 2 * pass.threads : pass.threads);
}

template <class T>
void move_window(TimePass<T>& pass, int first, int end) {
  if (first == pass.first) return;
  const std::size_t row_steps = pass.place(end) - pass.place(first);
  const std::size_t states = pass.state_place(end) - pass.state_place(first - 1);
  const auto move = [](T* to, const T* from, std::size_t n) {
    if (to) std::memmove(to, from, n * sizeof(T));
  };
  for (int l = 0; l < pass.shape.layers; ++l) {
    LayerMemory<T>& m = pass.work.layers[l];
    move(m.gates, pass.gates(l, first), row_steps * pass.sizes.gates);
    move(m.h, pass.h(l, first - 1), states * pass.sizes.hidden);
    move(m.c, pass.c(l, first - 1), states * pass.sizes.hidden);
    if (pass.follows())
      std::copy_n(m.hidden_exponents.begin() + pass.place(first), row_steps,
                  m.hidden_exponents.begin());
  }
  pass.first = first;
}

VEGRAD_FOR_BOTH_TYPES(prepare)
VEGRAD_FOR_BOTH_TYPES(row_tasks)
VEGRAD_FOR_BOTH_TYPES(move_window)
VEGRAD_FOR_BOTH_TYPES(time_threads)
VEGRAD_FOR_BOTH_TYPES(time_bytes)
VEGRAD_FOR_BOTH_TYPES(pack_weights)

}  // namespace vegrad

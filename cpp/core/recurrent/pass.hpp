// The state of a pass through time, forward and back.
//
// A pass has the rows of a batch (schedule.hpp) and goes through a window of their steps: forward
// over those that are new, back over all that are in memory. Rows are shared among threads: each
// takes its rows through all steps and layers, chunk by chunk of steps, and never waits for
// another (forward.cpp, backward.cpp). Then the weight gradients are made, in one loop over their
// tiles (gradients.cpp). What a row gets depends on no other row, and the weight gradients are
// summed in an order that follows from the shape: so no result depends on the number of threads.
//
// δ of a row has an exponent of its own at each step, as do its α and what is carried: all are
// their values times 2^exponent. It is 0 while δ stays within 2^±10.
#pragma once

#include <cstdint>
#include <vector>

#include "core/network/scaling.hpp"
#include "core/recurrent/schedule.hpp"
#include "core/recurrent/shape.hpp"
#include "core/runtime/dispatch.hpp"

namespace vegrad {

// Somebody's (B, T, n) or (T, B, n), or without T: distances in elements.
template <class T>
struct StepRows {
  T* data = nullptr;
  std::ptrdiff_t row = 0, step = 0;
  T* at(const Schedule& schedule, int sorted, int t) const {
    return data + schedule.row_of(sorted) * row + (step ? schedule.step_of(sorted, t) * step : 0);
  }
};

// What a pass reads and writes of its caller's. Rows have no padding. Null: not wanted.
template <class T>
struct TimeRequest {
  StepRows<const T> x;
  bool again = false;  // the state before is in memory from the same pass before
  // of each layer (L, B, H); null: zeros
  const T *h_before = nullptr, *c_before = nullptr;
  StepRows<T> output;
  // with a head
  StepRows<const T> values;
  StepRows<const std::int64_t> labels;
  double loss_scale = 0;
  // without: the gradients that enter, all of one layer; and those that leave
  StepRows<const T> output_gradient;
  const T *h_gradient = nullptr, *c_gradient = nullptr;  // at each row's last step (B, H)
  StepRows<T> x_gradient;
  T *h_before_gradient = nullptr, *c_before_gradient = nullptr;  // (B, H)
  // what the gradient that goes from step t back to t - 1 is multiplied by (T); null: 1
  const double* factors = nullptr;
  bool flow = false;
};

// The sums of squares that a step's flow is made of, of each row (in memory as its gates are).
template <class T>
struct FlowSums {
  T *delta, *passed, *carried, *state, *matrix, *into_state;
};

// Rows of a block of a weight gradient's operands, of which a panel fits the first-level cache and
// all the second; and columns of α in a tile: whole register tiles on every machine.
constexpr int kGradientRows = 192, kGradientColumns = 48;

// What a thread uses for itself.
template <class T>
struct ThreadScratch {
  T *scale, *local_scale, *squares;  // of each row
  T *left, *right;                   // operands of a weight gradient, packed
  // the outputs of a row that is out of range
  std::vector<ScaledNumber> outputs;
  std::vector<T> output_mantissas;
};

// h of a row (and c) is `h` 2^exponent, while it is out of the dtype's range (decayed.hpp).
struct DecayedState {
  std::int64_t exponent = 0;
  std::vector<double> h, c;
  std::vector<double> next_h, next_c;  // of a step, while it is made
};

template <class T>
struct LayerMemory {
  T *gates = nullptr, *alpha = nullptr;  // alpha: gates' own memory unless they are needed again
  T *h = nullptr, *c = nullptr;
  T* carried = nullptr;                       // (B, H)
  T *last_h = nullptr, *last_c = nullptr;     // (B, H): of each row's last step so far
  T *state = nullptr, *state_back = nullptr;  // U, packed
  T *input = nullptr, *input_back = nullptr;  // W, packed gate by gate
  T* bias = nullptr;                          // of each slot
  std::vector<std::int32_t> exponents;        // of each row and step in memory
  std::vector<std::int32_t> exponent, shift;  // of each row: of the last step back
  FlowSums<T> sums{}, first{};                // of each row and step; of what comes before
  T* carry_sums = nullptr;                    // of each group of rows (slot)
  // If states are followed: Σ h² 4^exponent of each row and step, the exponent 0 while in range
  T* hidden_squares = nullptr;
  std::vector<std::int32_t> hidden_exponents;
  std::vector<std::uint8_t> is_decayed;  // of each row: its state is out of range,
  std::vector<DecayedState> decayed;     // and is this one
};

template <class T>
struct TimeWorkspace {
  std::size_t rows = 0, row_steps = 0;  // There is room for so many,
  int threads = 0;                      // and for so many threads.
  bool training = false, sliding = false, flow = false, follows = false;
  Buffer<T> memory;
  std::vector<LayerMemory<T>> layers;
  T *head = nullptr, *head_back = nullptr;     // packed
  T* outputs = nullptr;                        // of a chunk of steps (chunk, B, O); and their
  T* output_gradient = nullptr;                // gradient, of each row (and step), unpadded,
  std::vector<std::int32_t> output_exponents;  // times 2^exponent
  T* local = nullptr;  // (chunk, B, widest): forward x, back the gradient that enters
  T *edge_ih = nullptr, *edge_hh = nullptr;  // of weight gradients that are no whole vectors
  std::vector<double> bias_sums;
  std::vector<ThreadScratch<T>> scratch;
  std::vector<double> losses;  // of each row
};

template <class T>
struct TimePass {
  explicit TimePass(const RecurrentShape& shape) : shape(shape), sizes(shape) {}

  const RecurrentShape shape;
  const RowSizes<T> sizes;
  std::vector<LayerWeights<const T>> weights;
  std::vector<LayerWeights<T>> gradients;
  HeadWeights<const T> head;
  HeadWeights<T> head_gradient;

  Schedule schedule;
  TimeWorkspace<T> work;
  TimeRequest<T> request;
  int threads = 1;   // of this pass
  int chunk = 1;     // steps that a thread takes through a layer before the next
  int first = 0;     // the first step in memory
  bool add = false;  // to the gradients

  const Kernels<T>& kernels() const { return instruction_set().kernels<T>(); }
  const CellKernels<T>& cell() const { return kernels().cell[int(shape.cell)]; }
  // Whether states that leave the dtype's range are followed (decayed.hpp): for the flow, and for
  // the slopes of relu, which are their signs.
  bool follows() const { return shape.outputs && (request.flow || shape.cell == Cell::relu); }
  bool on_last(int t) const { return shape.targets_all || t == schedule.steps() - 1; }

  std::int64_t place(int t) const { return schedule.place(t) - schedule.place(first); }
  std::int64_t state_place(int t) const {
    return schedule.state_place(t) - schedule.state_place(first - 1);
  }
  T* gates(int l, int t) const { return work.layers[l].gates + place(t) * sizes.gates; }
  T* alpha(int l, int t) const { return work.layers[l].alpha + place(t) * sizes.gates; }
  T* h(int l, int t) const { return work.layers[l].h + state_place(t) * sizes.hidden; }
  T* c(int l, int t) const {
    return work.layers[l].c ? work.layers[l].c + state_place(t) * sizes.hidden : nullptr;
  }
  std::ptrdiff_t ld_input(int l) const { return l == 0 ? padded<T>(shape.inputs) : sizes.hidden; }
  std::ptrdiff_t ld_local() const { return std::max(sizes.hidden, ld_input(0)); }
  std::int64_t output_place(int t) const { return shape.targets_all ? place(t) : 0; }
  T* output_gradient(int t) const { return work.output_gradient + output_place(t) * shape.outputs; }
};

// Makes room for so many rows, and steps of a window.
template <class T>
void prepare(TimePass<T>& pass, int rows, int steps, bool training, bool sliding, bool flow);
// How many threads such a pass, with so many steps in memory, pays for.
template <class T>
int time_threads(const RecurrentShape& shape, int rows, int steps, bool training);
template <class T>
std::size_t time_bytes(const RecurrentShape& shape, int rows, int steps, bool sliding);
// Packs the weights, which may have changed.
template <class T>
void pack_weights(TimePass<T>& pass, bool training);

constexpr int kInferenceSteps = 16;  // in memory where nothing goes back

// The rows of a task of a loop over rows: those of task i of n.
struct RowRange {
  int begin, end;
};

// How many tasks the rows are. Two a thread where there are enough of them: who has lost its core
// to another process then holds up half of its rows. Rows of a task share what they read of U.
template <class T>
int row_tasks(const TimePass<T>& pass);

// Makes `first` the first step in memory, where those before `end` are kept.
template <class T>
void move_window(TimePass<T>& pass, int first, int end);

// Steps first … end, of which those from `begin` on are new: gates, h and c. With a head, outputs
// and losses (and where targets are, in place of the outputs, the loss's gradient).
template <class T>
void forward_steps(TimePass<T>& pass, int begin, int end);

// From step end - 1 back to the first in memory; the loss enters at steps from `begin` on.
template <class T>
void backward_steps(TimePass<T>& pass, int begin, int end);

// The gradients of all weights from the α of steps first … end; of the head from `begin` on.
template <class T>
void make_weight_gradients(TimePass<T>& pass, int begin, int end);

#define VEGRAD_FOR_BOTH_TYPES(function)               \
  template decltype(function<float>) function<float>; \
  template decltype(function<double>) function<double>;

}  // namespace vegrad

// A recurrent network: its parameters and their gradients, and the passes over it.
#pragma once

#include <cstdint>

#include "core/recurrent/flow.hpp"
#include "core/recurrent/pass.hpp"
#include "core/runtime/lock.hpp"

namespace vegrad {

// A batch without padding: x (B, T, I), lengths (B) or null, values (B, O) or (B, T, O), or labels
// (B) or (B, T).
template <class T>
struct Sequences {
  int rows, steps;
  const T* x;
  const std::int64_t* lengths;
  const T *h, *c;  // (L, B, H): the state before; null: zeros
  const T* values;
  const std::int64_t* labels;
};

// How a pass goes back: the losses of each `steps` new steps over `back` steps; 0: all.
struct TimeWindow {
  int steps = 0, back = 0;
};

template <class T>
class Recurrent {
 public:
  explicit Recurrent(const RecurrentShape& shape);
  Recurrent(const Recurrent&) = delete;
  Recurrent& operator=(const Recurrent&) = delete;

  const RecurrentShape& shape() const { return training_.shape; }
  const LayerWeights<T>& weights(int l) const { return weights_[l]; }
  const LayerWeights<T>& gradients(int l) const { return training_.gradients[l]; }
  const HeadWeights<T>& head() const { return head_; }
  const HeadWeights<T>& head_gradient() const { return training_.head_gradient; }
  // All of them, and all gradients, with zeros between.
  std::size_t size() const { return parameters_.size(); }
  T* all_parameters() const { return parameters_.data(); }
  T* all_gradients() const { return gradients_.data(); }

  void forward(const Sequences<T>& batch, T* out);
  double loss(const Sequences<T>& batch);
  // The losses of steps before `losses_from` are left out, if there is one at each step and no
  // window: so a window of a longer sequence is gone through, whose first steps are not new.
  double backward(const Sequences<T>& batch, TimeWindow window, const double* factors, bool flow,
                  int losses_from = 0);
  // After the last pass: h and, of an lstm, c (L, B, H).
  struct State {
    int rows;
    std::vector<T> h, c;
  };
  State state() const;
  TimeFlowColumns flow() const;
  std::size_t workspace_bytes(int rows, int steps, TimeWindow window) const;

 private:
  void begin(TimePass<T>& pass, const Sequences<T>& batch, int steps, bool sliding, bool flow,
             int losses_from = 0);
  void forward_only(TimePass<T>& pass, int end);
  double sum_of_losses(const TimePass<T>& pass) const;

  Buffer<T> parameters_, gradients_;
  std::vector<LayerWeights<T>> weights_;
  HeadWeights<T> head_;
  TimePass<T> training_, inference_;
  TimePass<T>* last_ = nullptr;
  TimeFlowColumns flow_;
  mutable WorkLock running_;
};

}  // namespace vegrad

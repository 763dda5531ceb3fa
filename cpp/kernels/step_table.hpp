// Kernels of the optimizers: a step on a run of weights.
#pragma once

#include <cstddef>

#include "kernels/run_table.hpp"

namespace vegrad {

enum StepKind : int { kSgd, kAdam, kLion, kStepKindCount };

// Everything that is the same for all elements of a buffer.
template <class T>
struct StepNumbers {
  T rate;                         // of what is taken off the weights
  T weight_decay;                 // added to the gradient, times the weight
  T shrink;                       // factor of the weights (decoupled weight decay)
  T momentum, undamped;           // SGD
  T mean_weight;                  // 1 − β1
  T square_weight, square_decay;  // 1 − β2, β2; Lion's mean: 1 − β2
  T root_scale, eps;              // Adam: √v root_scale + eps
  bool nesterov, amsgrad, first;  // first: nothing has been seen yet
};

template <class T>
struct StepRun {
  const StepNumbers<T>* numbers;
  std::size_t count;
  T* p;
  const T* g;
  T* state[3];  // null: not kept
  T factor;     // of the gradient
};

template <class T>
struct StepKernels {
  void (*step[kStepKindCount])(const StepRun<T>&);
  void (*from_float16)(const float16*, std::size_t n, T* out);
  void (*from_bfloat16)(const bfloat16*, std::size_t n, T* out);
  void (*from_float32)(const float*, std::size_t n, T* out);
  void (*from_float64)(const double*, std::size_t n, T* out);
};

}  // namespace vegrad

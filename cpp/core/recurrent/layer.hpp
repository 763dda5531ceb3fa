// One layer and one direction over somebody else's parameters, forward and back in two calls.
#pragma once

#include <algorithm>
#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "core/recurrent/pass.hpp"

namespace vegrad {

// Inputs without padding, (B, T, I), or (T, B, I) if time_major; lengths (B) or null. Reversed,
// each row is read from its last step to its first.
template <class T>
struct LayerInput {
  int rows, steps;
  const T* x;
  const std::int64_t* lengths;
  const T *h, *c;  // (B, H): the state before; null: zeros
  bool time_major, reverse;
};

// Gradients that enter, null where there are none: of the output, in the order of x, and of the
// last state.
template <class T>
struct LayerGradients {
  const T *output, *h, *c;
};

// Where those that leave go; x null: not wanted.
template <class T>
struct LayerInputGradients {
  T *x, *h, *c;
};

// What a forward pass has kept for its way back.
template <class T>
struct KeptPass {
  explicit KeptPass(const RecurrentShape& shape) : pass(shape) {}
  TimePass<T> pass;
  bool time_major = false, replaced = false;  // replaced: α stands where gates stood
};

template <class T>
class RecurrentLayer {
 public:
  RecurrentLayer(int inputs, int hidden, Cell cell)
      : shape_{inputs, hidden, 0, cell, 1, true, Loss::given} {}

  const RecurrentShape& shape() const { return shape_; }
  // A pass that nobody uses, with the memory that it has. To be given back.
  std::unique_ptr<KeptPass<T>> take(bool keep);
  void give_back(std::unique_ptr<KeptPass<T>> kept, bool keep);

  // How many threads such a pass pays for.
  int threads(int rows, int steps, bool keep) const {
    return time_threads<T>(shape_, rows, steps_in_memory(steps, keep), keep);
  }
  // Outputs in the order of x, the rest (B, H). Biases may be null. What is kept needs x again.
  void forward(KeptPass<T>& kept, const LayerInput<T>& in, const LayerWeights<const T>& weights,
               bool keep, T* out, T* h, T* c);
  // May be called again.
  void backward(KeptPass<T>& kept, const LayerGradients<T>& in, const LayerInputGradients<T>& out,
                const LayerWeights<T>& gradients);

 private:
  static int steps_in_memory(int steps, bool keep) {
    return keep ? steps : std::min(steps, kInferenceSteps);
  }

  const RecurrentShape shape_;
  std::mutex taking_;
  std::vector<std::unique_ptr<KeptPass<T>>> free_[2];  // by keep
};

}  // namespace vegrad

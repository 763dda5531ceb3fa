// A multilayer perceptron: its parameters and their gradients, and the passes over it.
#pragma once

#include <cstdint>

#include "core/network/pass.hpp"
#include "core/runtime/lock.hpp"

namespace vegrad {

template <class T>
class Network {
 public:
  explicit Network(NetworkShape shape);
  Network(const Network&) = delete;  // its passes refer to it
  Network& operator=(const Network&) = delete;

  const NetworkShape& shape() const { return shape_; }
  T* weight(int l) const { return parameters_.data() + places_.weight_at[l]; }
  T* bias(int l) const { return parameters_.data() + places_.bias_at[l]; }
  T* weight_gradient(int l) const { return gradients_.data() + places_.weight_at[l]; }
  T* bias_gradient(int l) const { return gradients_.data() + places_.bias_at[l]; }
  // All of them, and all gradients, with zeros between.
  std::size_t size() const { return places_.size; }
  T* parameters() const { return parameters_.data(); }
  T* gradients() const { return gradients_.data(); }
  std::size_t used() const { return places_.used; }

  // x (B, I) and out (B, O) without padding. Target: values (B, O), or labels (B). Only so many
  // layers from the top get a gradient; if that is not all of them, there is no flow.
  void forward(const T* x, int B, T* out);
  double loss(const T* x, int B, const T* values, const std::int64_t* labels);
  double backward(const T* x, int B, const T* values, const std::int64_t* labels, bool flow,
                  int layers);
  // All of it with flow, the outputs (B, O), and the sizes of the rows of δ.
  double examine(const T* x, int B, const T* values, const std::int64_t* labels, T* out,
                 const RowSquares& rows);
  // The same in two calls, the loss being somebody else's (Loss::given). The first returns the
  // number of its pass. If another has been since, the second goes forward again. `delta`, unless
  // null, gets δ of the first layer (B, O); `gradients` (used()) the gradients, as they lie here.
  std::uint64_t forward_kept(const T* x, int B, T* out);
  void backward_kept(std::uint64_t number, const T* x, int B, const T* gradient, T* delta,
                     T* gradients);
  // Of the last backward pass with flow.
  FlowColumns flow() const;
  double gradient_squares(int l) const { return training_.gradient_squares[l - 1]; }
  std::size_t workspace_bytes(int B) const { return training_bytes<T>(shape_, B); }

 private:
  const NetworkShape shape_;
  const ParameterLayout places_;
  const Buffer<T> parameters_, gradients_;
  mutable WorkLock running_;
  std::uint64_t number_ = 0;  // of the last pass of either kind; a backward pass uses it up
  Pass<T> training_, inference_;
};

}  // namespace vegrad

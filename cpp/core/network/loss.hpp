// The losses, one row of the batch at a time, in double.
#pragma once

#include <cstdint>

#include "core/network/scaled_activations.hpp"

namespace vegrad {

// given: somebody else's, whose gradient with respect to h is the target.
enum class Loss : int { mse, cross_entropy, binary_cross_entropy, given };
constexpr const char* kLossNames[] = {"mse", "cross_entropy", "binary_cross_entropy", "given"};

// A row of outputs h 2^exponent and its target: `values` for mse and binary_cross_entropy,
// `label` for cross_entropy.
template <class T>
struct LossRow {
  int columns;
  const T* h;
  std::int64_t exponent;
  const T* values;
  std::int64_t label;
};

// Returns the row's sum of losses; writes scale · ∂(that sum)/∂h to gradient (columns), unless it
// is null. T the network's dtype, G that of the gradient.
template <class T, class G>
double loss_row(Loss loss, const LossRow<T>& row, double scale, G* gradient);

// That gradient where it leaves the range of a double.
template <class T>
void loss_row_scaled(Loss loss, const LossRow<T>& row, double scale, ScaledNumber* gradient);

}  // namespace vegrad

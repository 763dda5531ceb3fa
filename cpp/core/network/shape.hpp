// The shape of a multilayer perceptron.
//
// Letters as everywhere: B batch, I inputs, O outputs of a layer, L layers. Layers are counted from
// 1; layer 0 is the input.
#pragma once

#include <cstddef>
#include <vector>

#include "core/network/loss.hpp"
#include "kernels/table.hpp"

namespace vegrad {

enum class Norm : int { none, layer, rms };
constexpr const char* kNormNames[] = {"none", "layer", "rms"};

struct NetworkShape {
  std::vector<int> sizes;
  Activation activation, output;
  Loss loss;
  Norm norm;
  bool residual;

  int layers() const { return int(sizes.size()) - 1; }
  Activation activation_of(int l) const { return l == layers() ? output : activation; }
  bool has_norm(int l) const { return norm != Norm::none && l < layers(); }
  bool has_skip(int l) const { return residual && sizes[l] == sizes[l - 1]; }
  // Whether each layer's output has memory of its own on the way back; see output_of.
  bool keeps_outputs() const { return residual || norm == Norm::none; }
  double elements(int l, int B) const { return double(B) * sizes[l]; }
  // The loss is this times the sum over rows.
  double loss_scale(int B) const {
    if (loss == Loss::given) return 1.0;
    return 1.0 / (loss == Loss::cross_entropy ? B : elements(layers(), B));
  }
};

// Where the weights and the bias of each layer lie in one block, from one cache line on each; the
// gradients lie alike in another.
struct ParameterLayout {
  std::vector<std::size_t> weight_at, bias_at;  // of each layer
  std::size_t size = 0;                         // of the block, with zeros between
  std::size_t used = 0;                         // up to the end of the last bias

  // Throws std::bad_alloc if the sizes' products pass what an index can hold.
  ParameterLayout(const NetworkShape& shape, std::size_t itemsize);
};

}  // namespace vegrad

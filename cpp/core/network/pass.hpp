// The state of a pass through a network, forward and back.
//
// The steps of a pass (forward.hpp, backward.hpp, weight_gradient.hpp, …) are functions over it. A
// pass knows where parameters lie and where their gradients go, not whose they are, so that every
// kind of network can be made of the same steps. Only one thread may run a pass at a time; the
// loops inside of it have several.
//
// Layers are counted from 1; layer 0 is the input. Exponents are zero while values stay within
// 2^±40, where the fast path runs (forward.cpp, backward.cpp); beyond, rescaled.hpp's does the
// layer again, or the fast path goes on beside its inputs' exponent (forward_beside()).
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <vector>

#include "core/network/grid.hpp"
#include "core/network/scaled_activations.hpp"
#include "core/network/scaling.hpp"
#include "core/network/shape.hpp"
#include "core/network/workspace.hpp"
#include "core/runtime/dispatch.hpp"

namespace vegrad {

// The functions of a step for both types, from their names alone: in the file that defines them.
#define VEGRAD_FOR_BOTH(function)                     \
  template decltype(function<float>) function<float>; \
  template decltype(function<double>) function<double>;

// One entry a layer, first layer first; see Flow in network.py.
struct FlowColumns {
  std::vector<double> activation_rms, preactivation_mean, preactivation_std, saturated, dead,
      delta_log2, gradient_log2, weight_gain_log2, activation_gain_log2;
  explicit FlowColumns(int layers = 0);
};

// Σ δ² of each row, of all layers (L, B), as δ is stored: true is that times 2^(2 exponent) of the
// layer.
struct RowSquares {
  double* squares;
  double* exponents;
};

// What a layer's forward pass leaves for its backward pass.
struct LayerState {
  std::int64_t z_exponent = 0;
  std::int64_t h_exponent = 0;
  std::int64_t inverse_exponent = 0;  // of the normalization's 1/√(var + ε)
  bool kept = false;                  // z is in the activation's kept form
  bool replaced = false;              // φ(z) stands where z stood
  bool beside = false;                // the fast path took it beside an exponent
  bool straight = false;              // … and φ for a straight line, so small its arguments are
  int slope_exponent = 0;             // of that line
};

// The gradient of a layer's weights, still to be made; there is none if the layer is 0.
template <class T>
struct WeightGradient {
  int layer = 0;
  Grid grid{};
  ScaledMatrix<T> delta;
  std::int64_t exponent = 0;
  bool on_unit = false;

  int tasks() const { return layer ? grid.tasks() : 0; }
};

// The work that makes one more thread worth its start, in cycles. To start and end a loop takes a
// few hundred, but the threads must also fetch what the others have made, which is little in a
// small batch.
constexpr double kWorthwhile = 5000, kWorthwhileSmallBatch = 1800;

template <class T>
struct Pass {
  Pass(const NetworkShape& shape, const ParameterLayout& places, const T* parameters, T* gradients);

  const NetworkShape& shape;
  const ParameterLayout& places;
  const T* parameters;
  T* gradients;  // where a backward pass leaves them

  const T* weight(int l) const { return parameters + places.weight_at[l]; }
  const T* bias(int l) const { return parameters + places.bias_at[l]; }
  T* weight_gradient(int l) const { return gradients + places.weight_at[l]; }
  T* bias_gradient(int l) const { return gradients + places.bias_at[l]; }

  // What is asked of the pass; see prepare() in workspace.hpp.
  int rows = 0;          // B: of the piece that goes through now
  int rows_of_call = 0;  // of the largest piece of the call
  bool training = false;
  bool flow_wanted = false;
  int lowest = 1;                           // the layer where the way back ends
  const RowSquares* row_squares = nullptr;  // null: not wanted

  Workspace<T> work;
  const MatrixUnit* unit = nullptr;  // null if the pass may not use one
  std::vector<LayerState> layers;
  ScaledMatrix<T> output;         // of the forward pass
  ScaledMatrix<T> delta;          // of the layer last reached by the backward pass
  ScaledMatrix<T> skip_gradient;  // with respect to that layer's output, if residual
  bool nonfinite = false;         // inf or NaN were met: no scaling can help

  FlowColumns flow;
  // Σ of the squares of a weight gradient as it is stored, from a backward pass with flow; NaN if
  // that is not known because elements of it may have left the range of T.
  std::vector<double> gradient_squares;

  // What backward chains expect, which changes no result: by what power of two each layer's δ was
  // scaled in the last pass, and for how many passes that is not to be relied on.
  std::vector<std::int64_t> expected_shifts;
  int passes_without_chains = 1;

  // Scratch of layers with exponents.
  std::vector<T> scaled_left, scaled_right, scaled_bias;
  std::vector<double> values;
  std::vector<ScaledNumber> numbers;

  // Whether the products of layer l run on the matrix unit. Not where a number is not finite: the
  // unit would make NaN of inf. All rows of a call do alike, in whatever pieces they go through.
  bool on_unit(int l) const {
    return unit && !nonfinite &&
           suits_matrix_unit(rows_of_call, shape.sizes[l - 1], shape.sizes[l]);
  }
  // Threads for a loop of so many cycles.
  int team(double cycles) const {
    const double worthwhile = rows <= kSmallBatch ? kWorthwhileSmallBatch : kWorthwhile;
    return int(std::clamp(cycles / worthwhile, 1.0, double(work.threads_in_use)));
  }
  // About what a product of layer l takes: the multiplications, or reading the weights.
  double product_cycles(int l) const {
    return double(shape.sizes[l]) * shape.sizes[l - 1] * sizeof(T) * (rows / 64.0 + 1 / 24.0);
  }
  double elements(int l) const { return shape.elements(l, rows); }
  Activation activation_of(int l) const {
    return layers[l].straight ? kActivation_identity : shape.activation_of(l);
  }
  Grid row_grid(int l) const { return vegrad::row_grid<T>(shape, rows, l); }
  Grid gradient_grid(int l) const { return vegrad::gradient_grid<T>(shape, rows, l); }
  std::ptrdiff_t ld(int l) const { return padded<T>(shape.sizes[l]); }  // of layer l's matrices
};

}  // namespace vegrad
